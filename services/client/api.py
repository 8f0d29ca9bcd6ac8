"""The table of what a client can do: each request of the API once, for both clients.

name of a thing        one document, or one page of a list
iter_...               every page of a list, item by item
stream_events, wait, download, ready   services/client/flows.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Literal

import httpx

from services.client import flows, types
from services.client.methods import endpoint, flow, pages, stream
from services.client.requests import LONG_S, Request, given, new_idempotency_key
from services.client.types import Page

Document = Mapping[str, Any]

_SCORING_S = 60.0
_READING_S = 60.0  # the server gives the reading of a file half of it


class Api:
    """Every method raises ApiError (services/client/errors.py)."""

    # -- jobs ------------------------------------------------------------------------------------------------

    @endpoint
    def submit(self, spec: Document, *, idempotency_key: str | None = None) -> Request[types.Job]:
        """Queues a job. Whatever happens on the way, it is one job: a key of its own stands for the call.

        An error has it, as `idempotency_key`, for whoever asks again.
        """
        return Request(
            method="POST",
            route="/v1/jobs",
            body=dict(spec),
            headers={"idempotency-key": idempotency_key or new_idempotency_key()},
            timeout_s=LONG_S,  # the server reads the data first
            is_repeatable=True,
        )

    @endpoint
    def plan(
        self,
        spec: Document,
        *,
        gpus: int | None = None,
        gpu_gib: float | None = None,
        memory_gib: float | None = None,
    ) -> Request[types.Plan]:
        """Checks a spec and says what would run and what it would take, without running it.

        `gpus` and `gpu_gib`: how many there are, and the memory of each; as many as wanted, as the server has them.
        `memory_gib`: of the machine, for a job on CPU; as the server has it.
        """
        params = {"validate_only": "true", "gpus": gpus, "gpu_gib": gpu_gib, "memory_gib": memory_gib}
        return Request(
            method="POST",
            route="/v1/jobs",
            body=dict(spec),
            params=params,
            timeout_s=LONG_S,  # as of `submit`
            is_repeatable=True,
        )

    @endpoint
    def jobs(
        self,
        *,
        after: str | None = None,
        limit: int = 100,
        status: types.JobStatus | None = None,
        submitted_by: str | None = None,
        owner: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Request[Page[types.Job]]:
        """A page of the list, newest first; `after` is the id of the last one seen, `submitted_by` a key's name.

        A page's `next_after` does for that id, also where the job is deleted meanwhile; `iter_jobs` goes by it.
        The installation's own key may ask for the jobs of another `owner`.
        """
        return _jobs(after, limit, status, submitted_by, owner, metadata)

    @pages(by="id")
    def iter_jobs(
        self,
        *,
        status: types.JobStatus | None = None,
        submitted_by: str | None = None,
        owner: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Request[Page[types.Job]]:
        """All jobs, newest first."""
        return _jobs(None, 100, status, submitted_by, owner, metadata)

    @endpoint
    def job(self, job_id: str) -> Request[types.JobDetail]:
        """A job with its spec."""
        return _get("/v1/jobs/{job_id}", job_id=job_id)

    @endpoint
    def cancel(self, job_id: str) -> Request[types.Job]:
        """At once where it waits; a running job ends within half a minute."""
        return _job_request("cancel", job_id, is_repeatable=True)

    @endpoint
    def pause(self, job_id: str, *, checkpoint: Literal["save", "latest"] = "save") -> Request[types.Job]:
        """A running job writes a checkpoint, or stops at its latest one, and lets go of its resources."""
        route = "/v1/jobs/{job_id}/pause"
        body = {"checkpoint": checkpoint}
        return Request(method="POST", route=route, ids={"job_id": job_id}, body=body, is_repeatable=True)

    @endpoint
    def resume(self, job_id: str) -> Request[types.Job]:
        """Back to the queue. Never sent twice: a job that is already taken from the queue refuses the second."""
        return _job_request("resume", job_id, is_repeatable=False)

    @endpoint
    def delete_job(self, job_id: str, *, files: bool = False) -> Request[types.Deleted]:
        """For good, once it has ended; its directory stays on the server's disk, unless its `files` are to go too."""
        params = {"files": "true" if files else None}
        return Request(method="DELETE", route="/v1/jobs/{job_id}", ids={"job_id": job_id}, params=params)

    @endpoint
    def fork(
        self,
        job_id: str,
        *,
        checkpoint: int | Literal["latest", "best"],
        weights: Mapping[str, float] | None = None,
        sweep: Sequence[Mapping[str, float]] | None = None,
        changes: Document | None = None,
        name: str | None = None,
        steps: int | None = None,
        idempotency_key: str | None = None,
    ) -> Request[types.Forks]:
        """New jobs from a checkpoint: one, or one for each weight vector of `sweep`; `changes` are of the spec.

        With `steps`, and checkpoint "latest", the job's own run goes on to that step, in a new job.
        """
        return Request(
            method="POST",
            route="/v1/jobs/{job_id}/fork",
            ids={"job_id": job_id},
            body=given(checkpoint=checkpoint, weights=weights, sweep=sweep, changes=changes, name=name, steps=steps),
            headers={"idempotency-key": idempotency_key or new_idempotency_key()},
            timeout_s=LONG_S,
            is_repeatable=True,
        )

    @endpoint
    def compare(self, job_ids: Sequence[str]) -> Request[types.Comparison]:
        """Fronts side by side."""
        return _get("/v1/jobs/compare", ids=",".join(job_ids))

    wait = flow(flows.wait)

    # -- what a job does -------------------------------------------------------------------------------------

    @endpoint
    def events(self, job_id: str, *, after: int = 0, limit: int = 100) -> Request[types.EventPage[types.Event]]:
        """Oldest first; `after` is a seq."""
        return _get("/v1/jobs/{job_id}/events", job_id=job_id, after=after, limit=limit)

    @pages(by="seq")
    def iter_events(self, job_id: str, *, after: int = 0) -> Request[Page[types.Event]]:
        """All that happened so far, as far as it is kept."""
        return _get("/v1/jobs/{job_id}/events", job_id=job_id, after=after, limit=100)

    stream_events = stream(flows.stream_events)

    @endpoint
    def metrics(
        self, job_id: str, *, after: int = 0, limit: int = 100, names: Sequence[str] | None = None
    ) -> Request[Page[types.Step]]:
        """Committed steps, each once; `after` is a step. Of each `step` and the fields `names`, or all of them."""
        return _metrics(job_id, after, limit, names)

    @pages(by="step")
    def iter_metrics(
        self, job_id: str, *, after: int = 0, names: Sequence[str] | None = None
    ) -> Request[Page[types.Step]]:
        """All steps that are committed so far."""
        return _metrics(job_id, after, 100, names)

    @endpoint
    def rollouts(
        self, job_id: str, *, step: int | None = None, sort: str | None = None, after: int = 0, limit: int = 100
    ) -> Request[types.RolloutPage[types.Rollout]]:
        """Kept rollouts of a step (the latest kept if None); `sort` is an objective, or one after a `-`."""
        return _get("/v1/jobs/{job_id}/rollouts", job_id=job_id, step=step, sort=sort, after=after, limit=limit)

    @pages(by=None)
    def iter_rollouts(self, job_id: str, *, step: int, sort: str | None = None) -> Request[Page[types.Rollout]]:
        """All kept rollouts of a step."""
        return _get("/v1/jobs/{job_id}/rollouts", job_id=job_id, step=step, sort=sort, after=0, limit=100)

    @endpoint
    def front(
        self, job_id: str, *, require: Sequence[str] | None = None, by: str | None = None
    ) -> Request[types.Front]:
        """The Pareto archive; with conditions (`accuracy>=0.8`) or an objective also the point `picked` by them."""
        required = None if require is None else ",".join(require)
        return _get("/v1/jobs/{job_id}/front", job_id=job_id, require=required, by=by)

    @endpoint
    def report(self, job_id: str) -> Request[str]:
        """One HTML file; NotReady before the job ends or pauses."""
        ids = {"job_id": job_id}
        return Request(method="GET", route="/v1/jobs/{job_id}/report", ids=ids, parse=_text, is_repeatable=True)

    # -- steering --------------------------------------------------------------------------------------------

    @endpoint
    def steering(
        self, job_id: str, *, log_before: int | None = None, log_limit: int | None = None
    ) -> Request[types.Steering]:
        """The newest steering; its `version` is what `steer` takes as `if_match`.

        `log` are the newest changes before version `log_before`; while `log_has_more`, there are older ones.
        """
        return _get("/v1/jobs/{job_id}/steering", job_id=job_id, log_before=log_before, log_limit=log_limit)

    @endpoint
    def steer(
        self,
        job_id: str,
        *,
        if_match: int | None = None,
        mode: types.SteeringMode | None = None,
        blend: float | None = None,
        weights: Mapping[str, float] | None = None,
        bounds: Mapping[str, Sequence[float]] | None = None,
        guardrails: Sequence[Mapping[str, Any]] | None = None,
        over: int | None = None,
        to_version: int | None = None,
    ) -> Request[types.Steered]:
        """Changes what is given; the rest stays. StaleVersion unless version `if_match` is current.

        `guardrails` are all that hold from then on. `over`: gradually, in so many steps. `to_version`, without others
        than `over`: back to the steering as it stood under a version of the log.
        Never sent twice: after a lost answer, `steering` says whether it was taken.
        """
        return Request(
            method="PUT",
            route="/v1/jobs/{job_id}/steering",
            ids={"job_id": job_id},
            body=given(
                mode=mode,
                blend=blend,
                weights=weights,
                bounds=bounds,
                guardrails=guardrails,
                over=over,
                to_version=to_version,
            ),
            headers={"if-match": None if if_match is None else f'"{if_match}"'},
        )

    @endpoint
    def preview(
        self,
        job_id: str,
        *,
        mode: types.SteeringMode | None = None,
        blend: float | None = None,
        weights: Mapping[str, float] | None = None,
        bounds: Mapping[str, Sequence[float]] | None = None,
        guardrails: Sequence[Mapping[str, Any]] | None = None,
        over: int | None = None,
        to_version: int | None = None,
    ) -> Request[types.Preview]:
        """What `steer` with the same change would have made of the latest kept rollouts; nothing is applied."""
        return Request(
            method="POST",
            route="/v1/jobs/{job_id}/steering/preview",
            ids={"job_id": job_id},
            body=given(
                mode=mode,
                blend=blend,
                weights=weights,
                bounds=bounds,
                guardrails=guardrails,
                over=over,
                to_version=to_version,
            ),
            is_repeatable=True,
        )

    # -- checkpoints and models ------------------------------------------------------------------------------

    @endpoint
    def checkpoints(self, job_id: str) -> Request[Page[types.Checkpoint]]:
        """Those that are kept, by step."""
        return _get("/v1/jobs/{job_id}/checkpoints", job_id=job_id)

    @endpoint
    def export(self, job_id: str, step: int, directory: str) -> Request[types.Export]:
        """Copies a checkpoint's model to a new directory of the server's machine."""
        return Request(
            method="POST",
            route="/v1/jobs/{job_id}/checkpoints/{step}/export",
            ids={"job_id": job_id, "step": step},
            body={"to": directory},
            timeout_s=LONG_S,
        )

    download = flow(flows.download)

    @endpoint
    def models(self) -> Request[types.Models]:
        """Policies that can be aligned, and checkpoints that can be served."""
        return _get("/v1/models")

    # -- what a spec may name --------------------------------------------------------------------------------

    @endpoint
    def rewards(self, *, details: bool | None = None) -> Request[Page[types.RewardInfo]]:
        """Every reward, with its options; with `details` those of plug-ins too, which are imported for that."""
        return _get("/v1/rewards", details=None if details is None else str(details).lower())

    @endpoint
    def reward(self, name: str) -> Request[types.RewardInfo]:
        """One reward, with its options."""
        return _get("/v1/rewards/{name}", name=name)

    @endpoint
    def judges(self) -> Request[Page[types.JudgeInfo]]:
        """The operator's judges, by name."""
        return _get("/v1/judges")

    @endpoint
    def validate_reward(self, name: str, options: Document | None = None) -> Request[types.RewardValidation]:
        """A reward's options with every default; Invalid says what is wrong with them."""
        body = {"name": name, "options": options or {}}
        return Request(method="POST", route="/v1/rewards/validate", body=body, is_repeatable=True)

    @endpoint
    def run_rewards(
        self,
        rewards: Sequence[types.RewardChoice],
        samples: Sequence[types.Sample],
        *,
        max_tokens: int | None = None,
        thoughts_end: str | None = None,
    ) -> Request[types.RewardRun]:
        """What each reward gives for pairs of prompt and completion."""
        body = given(rewards=rewards, samples=samples, max_tokens=max_tokens, thoughts_end=thoughts_end)
        return Request(method="POST", route="/v1/rewards/run", body=body, timeout_s=_SCORING_S, is_repeatable=True)

    @endpoint
    def rules(self, *, kind: str | None = None) -> Request[Page[types.Rule]]:
        """How rewards become an update: estimators, weightings and the rest."""
        return _get("/v1/rules", kind=kind)

    @endpoint
    def rule(self, name: str) -> Request[Page[types.Rule]]:
        """The rules of that name: one, or several of different kinds."""
        return _get("/v1/rules/{name}", name=name)

    # -- datasets --------------------------------------------------------------------------------------------

    @endpoint
    def upload_dataset(
        self,
        content: BinaryIO,
        *,
        name: str,
        format: types.DatasetFormat,
        prompt: str = "prompt",
        answer: str = "answer",
        domain: str = "",
        details: Sequence[str] = (),
    ) -> Request[types.Dataset]:
        """Keeps a file whose rows are all usable. `content` is read as it is sent; the same again is the same dataset.

        `prompt`, `answer` and `domain` are columns, the last two '' where rows have none; `details` are further ones.
        """
        return Request(
            method="POST",
            route="/v1/datasets",
            params={
                "name": name,
                "format": format,
                "prompt": prompt,
                "answer": answer,
                "domain": domain or None,
                "details": list(details) or None,
            },
            content=content,
            timeout_s=LONG_S,
            is_repeatable=True,
        )

    @endpoint
    def datasets(self, *, after: str | None = None, limit: int = 100) -> Request[Page[types.Dataset]]:
        """A page of the list, newest first."""
        return _get("/v1/datasets", after=after, limit=limit)

    @pages(by="id")
    def iter_datasets(self) -> Request[Page[types.Dataset]]:
        """All datasets, newest first."""
        return _get("/v1/datasets", limit=100)

    @endpoint
    def dataset(self, dataset_id: str) -> Request[types.Dataset]:
        """What is known of it."""
        return _get("/v1/datasets/{dataset_id}", dataset_id=dataset_id)

    @endpoint
    def dataset_rows(self, dataset_id: str, *, after: int = 0, limit: int = 20) -> Request[Page[types.DatasetRow]]:
        """Its first rows, as a job gets them."""
        return Request(
            method="GET",
            route="/v1/datasets/{dataset_id}/rows",
            ids={"dataset_id": dataset_id},
            params={"after": after, "limit": limit},
            timeout_s=_READING_S,
            is_repeatable=True,
        )

    @endpoint
    def delete_dataset(self, dataset_id: str) -> Request[types.Deleted]:
        """For good."""
        return Request(method="DELETE", route="/v1/datasets/{dataset_id}", ids={"dataset_id": dataset_id})

    # -- webhooks and keys -----------------------------------------------------------------------------------

    @endpoint
    def create_webhook(
        self,
        *,
        url: str,
        events: Sequence[str],
        secret: str | None = None,
        format: Literal["json", "slack"] | None = None,
    ) -> Request[types.NewWebhook]:
        """`secret` in the answer is shown this once; it signs the deliveries. `format` slack: for people in a chat."""
        body = given(url=url, events=list(events), secret=secret, format=format)
        return Request(method="POST", route="/v1/webhooks", body=body)

    @endpoint
    def webhooks(self) -> Request[Page[types.Webhook]]:
        """Oldest first, without their secrets."""
        return _get("/v1/webhooks")

    @endpoint
    def delete_webhook(self, webhook_id: str) -> Request[None]:
        """What is not delivered yet never will be."""
        ids = {"webhook_id": webhook_id}
        return Request(method="DELETE", route="/v1/webhooks/{webhook_id}", ids=ids, parse=_nothing)

    @endpoint
    def set_webhook_secret(self, webhook_id: str, *, secret: str | None = None) -> Request[types.NewWebhook]:
        """Another one, for deliveries from now on; made by the server if absent, and shown this once."""
        ids, body = {"webhook_id": webhook_id}, given(secret=secret)
        return Request(method="POST", route="/v1/webhooks/{webhook_id}/secret", ids=ids, body=body)

    @endpoint
    def test_webhook(self, webhook_id: str) -> Request[types.WebhookTest]:
        """Delivers an event of type `webhook.test` now, once, and says how it went."""
        return Request(
            method="POST", route="/v1/webhooks/{webhook_id}/test", ids={"webhook_id": webhook_id}, timeout_s=60
        )

    @endpoint
    def create_key(
        self,
        *,
        name: str,
        scopes: Sequence[types.Scope],
        owner: str | None = None,
        expires_in_s: int | None = None,
    ) -> Request[types.NewApiKey]:
        """`key` in the answer is shown this once."""
        body = given(name=name, scopes=list(scopes), owner=owner, expires_in_s=expires_in_s)
        return Request(method="POST", route="/v1/keys", body=body)

    @endpoint
    def keys(
        self, *, owner: str | None = None, after: str | None = None, limit: int = 100
    ) -> Request[Page[types.ApiKey]]:
        """A page of the list, newest first."""
        return _get("/v1/keys", owner=owner, after=after, limit=limit)

    @endpoint
    def own_key(self) -> Request[types.OwnKey]:
        """Whom this client's key speaks for, what it may do, and its owner's GPU-hours of this month."""
        return _get("/v1/key")

    @endpoint
    def quota(self, owner: str) -> Request[types.Quota]:
        """An owner's GPU-hours: what it may take in a month, and took in this one."""
        return _get("/v1/quotas/{owner}", owner=owner)

    @endpoint
    def set_quota(self, owner: str, *, gpu_hours: float | None) -> Request[types.Quota]:
        """How many GPU-hours it may take in a month; None is no limit. For the installation's own key."""
        body = {"gpu_hours": gpu_hours}
        return Request(method="PUT", route="/v1/quotas/{owner}", ids={"owner": owner}, body=body, is_repeatable=True)

    @pages(by="id")
    def iter_keys(self, *, owner: str | None = None) -> Request[Page[types.ApiKey]]:
        """All keys, newest first, never their secrets."""
        return _get("/v1/keys", owner=owner, limit=100)

    @endpoint
    def revoke_key(self, key_id: str) -> Request[types.ApiKey]:
        """Refused from the next request on, by other servers of the installation within 2 s."""
        return Request(method="DELETE", route="/v1/keys/{key_id}", ids={"key_id": key_id}, is_repeatable=True)

    # -- health ----------------------------------------------------------------------------------------------

    @endpoint
    def livez(self) -> Request[types.Health]:
        """The process answers."""
        return _get("/livez")

    @endpoint
    def readyz(self) -> Request[types.Health]:
        """And so does its Redis, and it knows the key; ApiError otherwise."""
        return _get("/readyz")

    ready = flow(flows.ready)

    @endpoint
    def prometheus(self) -> Request[str]:
        """Requests, queues and running jobs, in Prometheus' text format."""
        return Request(method="GET", route="/metrics", parse=_text, is_repeatable=True)


def _get(route: str, **values: Any) -> Request[Any]:
    """Values that the route has a place for are ids, all others are parameters."""
    ids = {name: value for name, value in values.items() if f"{{{name}}}" in route}
    params = {name: value for name, value in values.items() if name not in ids}
    return Request(method="GET", route=route, ids=ids, params=params, is_repeatable=True)


def _jobs(
    after: str | None,
    limit: int,
    status: types.JobStatus | None,
    submitted_by: str | None,
    owner: str | None,
    metadata: Mapping[str, str] | None,
) -> Request[Any]:
    wanted = {f"metadata[{key}]": value for key, value in (metadata or {}).items()}
    chosen = {"status": status, "submitted_by": submitted_by, "owner": owner}
    params = {"after": after, "limit": limit, **chosen, **wanted}
    return Request(method="GET", route="/v1/jobs", params=params, is_repeatable=True)


def _metrics(job_id: str, after: int, limit: int, names: Sequence[str] | None) -> Request[Any]:
    wanted = None if names is None else ",".join(names)
    return _get("/v1/jobs/{job_id}/metrics", job_id=job_id, after=after, limit=limit, names=wanted)


def _job_request(action: str, job_id: str, *, is_repeatable: bool) -> Request[Any]:
    route = f"/v1/jobs/{{job_id}}/{action}"
    return Request(method="POST", route=route, ids={"job_id": job_id}, is_repeatable=is_repeatable)


def _text(response: httpx.Response) -> str:
    return response.text


def _nothing(_: httpx.Response) -> None:
    return None
