"""Jobs over HTTP: submit, list, look at, cancel, pause, resume."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from orchestrator.actors.placement import may_take_gpus
from orchestrator.checks.disk import disk_doubts
from orchestrator.checks.doubts import doubts, estimated_doubts
from orchestrator.checks.estimate import estimate
from orchestrator.checks.judge_calls import evaluations, judge_calls
from orchestrator.checks.layout import Machine
from orchestrator.lineage import lineage
from orchestrator.rollouts.prompts import Contents
from orchestrator.spec import JobSpec
from orchestrator.specs.reward_job import RewardJobSpec
from orchestrator.state.gpu_hours import is_owner
from orchestrator.state.keys import is_name
from orchestrator.state.states import is_terminal
from orchestrator.state.store import JobStore, Submission, SubmitOutcome
from orchestrator.storage import job_files
from orchestrator.storage.recovery import keep_ending
from orchestrator.webhooks.subscriptions import WebhookStore
from services.auth import Principal
from services.body import json_body, optional_json_body
from services.deps import Caller, Configuration, From, JobId, MaxActive, Store, body_schema, page, store_of
from services.errors import ApiProblem, StrictJSONResponse, quota_problem
from services.job_requests import (
    EMPTY_BODY,
    PAUSE_BODY,
    IdempotencyKey,
    JobList,
    Metadata,
    NoFields,
    back_in_queue,
    job_document,
    jobs_with,
    list_parameters,
    list_query,
    saves,
)
from services.query import StrictRoute
from services.slots import held
from services.spec_checks import check_files, first_steering, strict_spec, text_of

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute)


class Submit(BaseModel):
    """Query of a submission."""

    model_config = ConfigDict(extra="forbid")

    validate_only: bool = Query(False, description="check, and say what would run, without running it")
    gpus: int | None = Query(None, ge=0, le=65_536, description="of validate_only: GPUs that there are; any if absent")
    gpu_gib: float | None = Query(
        None,
        ge=1,
        le=65_536,
        allow_inf_nan=False,
        description="of validate_only: memory of each; as configured if absent",
    )
    memory_gib: float | None = Query(
        None,
        ge=1,
        le=1_048_576,
        allow_inf_nan=False,
        description="of validate_only: memory of the machine that a job on CPU gets; as configured if absent",
    )


_NO = ("false", "f", "no", "n", "off", "0")  # what pydantic takes for one


async def _place(request: Request, caller: Caller) -> AsyncIterator[None]:
    """A dry run is as much work as a submission, and no quota counts it."""
    if request.query_params.get("validate_only", "false").lower() in _NO:
        yield
        return
    with held(request.app, "dry runs of jobs", caller.owner, at_once=10, of_owner=6):
        yield


@router.post(
    "",
    status_code=201,
    responses={200: {"description": "with validate_only: what would run"}},
    openapi_extra=body_schema(
        {"anyOf": [{"$ref": "#/components/schemas/JobSpec"}, {"$ref": "#/components/schemas/RewardJobSpec"}]}
    ),
)
def submit_job(
    document: Annotated[Any, Depends(json_body)],
    query: Annotated[Submit, Query()],
    by: From,
    _place: Annotated[None, Depends(_place)],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Queues a job. The body is the same document as the CLI's YAML.

    With validate_only it says what would run, and of an alignment reckons GPUs and memory: `estimate` has a layout for
    each device that the job may run on, its processes' bytes by part, and what does not fit with the settings that
    would help; its `disk` is what the job's checkpoints take. `judges` has the calls of each judge, at most, and what
    they cost by its profile's prices where completions and answers are as long as they may be. `doubts` names what is
    valid but was probably not meant.
    """
    _check_query(query)
    if idempotency_key is not None and not query.validate_only:
        known = _known(by.store, document, idempotency_key)
        if known is not None:  # also where its files are gone meanwhile, or a new version would refuse it
            return _answer(known)
    spec = strict_spec(document)
    contents = check_files(spec, by.access)
    text = text_of(spec)
    if query.validate_only:
        plan = _validated(spec, text, contents, query.gpus)
        if isinstance(spec, JobSpec):
            machine = Machine(
                gpus=query.gpus,
                gpu_gib=query.gpu_gib or by.settings.gpu_gib,
                memory_gib=query.memory_gib or by.settings.memory_gib,
                disk_bytes=_free_bytes(by.settings.state_dir),
            )
            plan["estimate"] = reckoned = estimate(spec, machine, hub_token=by.access.is_own)
            plan["doubts"] += _doubts_document([*estimated_doubts(spec, reckoned), *disk_doubts(reckoned["disk"])])
        return StrictJSONResponse(plan)
    submission = by.store.submit(
        text,
        name=spec.name,
        job_id=f"job-{secrets.token_hex(6)}",
        steering=first_steering(spec),
        idempotency_key=idempotency_key,
        body=_canonical(document),
        max_active=by.max_active,
        max_kept=by.max_kept,
        max_kept_bytes=by.max_kept_bytes,
        priority=spec.priority,
        by=by.name,
        may_take_gpus=may_take_gpus(spec),
        metadata=spec.metadata,
    )
    if submission.outcome is SubmitOutcome.QUOTA:
        raise quota_problem(by.max_active)
    return _answer(submission)


def _known(store: JobStore, document: Any, idempotency_key: str) -> Submission | None:
    """What the key stands for; None where it is new."""
    known = store.submitted(_canonical(document), idempotency_key=idempotency_key)
    if known is not None and known.outcome is SubmitOutcome.CONFLICT:
        # An earlier version kept the digest of the resolved spec: of no use any more a day after the upgrade.
        return store.submitted(strict_spec(document).to_json(), idempotency_key=idempotency_key) or known
    return known


def _canonical(document: Any) -> str:
    """The body as it was sent, whatever the order of its keys and the space between them."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def _check_query(query: Submit) -> None:
    """Of a job that is really queued, these would say nothing."""
    for name in ("gpus", "gpu_gib", "memory_gib"):
        if getattr(query, name) is not None and not query.validate_only:
            raise ApiProblem(422, "invalid_parameter", f"{name}: of a dry run; add validate_only=true", param=name)


def _answer(submission: Submission) -> Response:
    if submission.outcome is SubmitOutcome.CONFLICT:
        raise ApiProblem(
            409, "idempotency_conflict", "this Idempotency-Key was used with another body", param="Idempotency-Key"
        )
    assert submission.job is not None
    replay = submission.outcome is SubmitOutcome.REPLAY
    return StrictJSONResponse(
        job_document(submission.job),
        status_code=201,
        headers={"location": f"/v1/jobs/{submission.job_id}", "idempotent-replayed": str(replay).lower()},
    )


@router.get("", openapi_extra={"parameters": list_parameters()})
def list_jobs(
    query: Annotated[JobList, Depends(list_query)], metadata: Metadata, store: Store, caller: Caller
) -> Response:
    """Newest first. A filtered list looks at 10,000 jobs at most: while has_more, next_after is the cursor to go on."""
    if query.owner is not None and query.owner != caller.owner:
        store = _of_other(store, query.owner, caller)
    found = jobs_with(store, query, metadata)
    document = page([job_document(job) for job in found.items], has_more=found.has_more)
    return StrictJSONResponse({**document, "next_after": found.last if found.has_more else None})


def _of_other(store: JobStore, owner: str, caller: Principal) -> JobStore:
    if not caller.is_operator:
        message = "only the installation's own key lists the jobs of other owners"
        raise ApiProblem(403, "other_owner", message, param="owner")
    if not is_name(owner) or not is_owner(store.calls, owner):
        raise ApiProblem(422, "invalid_parameter", "owner: no such owner: it has neither keys nor jobs", param="owner")
    return store.of_owner(owner)


_IF_NONE_MATCH: dict[str, Any] = {
    "in": "header",
    "name": "If-None-Match",
    "schema": {"type": "string"},
    "description": "304 where it is current",
}


@router.get(
    "/{job_id}",
    responses={304: {"description": "If-None-Match names the current state"}},
    openapi_extra={"parameters": [_IF_NONE_MATCH]},
)
def get_job(job_id: JobId, request: Request) -> Response:
    """A job with its spec, every default written out, and the job that it was forked from. The ETag is its state's.

    While it runs, `progress` has the `stage`, the seconds left, and of what its step has been at for some seconds, `at`
    (rollout, score, learn, sync, evaluate, checkpoint, commit, or parked where Redis is waited for) and `since` when.
    """
    record, spec = request.app.state.specs.job_and_spec(store_of(request), job_id)
    document = {
        **job_document(record),
        "total_steps": record.total_steps or spec.steps,
        "lineage": lineage(record),
    }
    # The spec is JSON already, and by far the largest part.
    body = bytes(StrictJSONResponse(document).body[:-1]) + b',"spec":' + spec.body + b"}"
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    named = request.headers.get("if-none-match", "")
    if etag in [part.strip().removeprefix("W/") for part in named.split(",")]:
        return Response(status_code=304, headers={"etag": etag})
    return Response(body, media_type="application/json", headers={"etag": etag})


@router.post("/{job_id}/cancel", dependencies=[NoFields], openapi_extra=EMPTY_BODY)
def cancel_job(job_id: JobId, store: Store, caller: Caller) -> Response:
    """At once where it waits; a running job ends within half a minute."""
    store.request_cancel(job_id, by=caller.key_name)
    return StrictJSONResponse(job_document(store.job(job_id)))


class Delete(BaseModel):
    """Query of a deletion."""

    model_config = ConfigDict(extra="forbid")

    files: bool = Query(False, description="its directory too: checkpoints, rollouts and report, on the server's disk")


@router.delete("/{job_id}")
def delete_job(job_id: JobId, query: Annotated[Delete, Query()], store: Store, config: Configuration) -> Response:
    """Forgets a job that has ended: its record, events, figures and steering, for good. 409 for any other: cancel it.

    Its directory, with checkpoints and rollouts, stays on the server's disk unless `files` is true; no request finds it
    any more, nor does `equipoise recover` bring the job back. Copies in a checkpoint store stay. Jobs that were forked
    from it are left as they are; one whose spec names a path in its directory needs that. What webhooks were not told
    yet, they are told no more.
    """
    status = store.job(job_id).status
    if not is_terminal(status):
        raise ApiProblem(409, "illegal_transition", f"a job that is {status} can't be deleted: cancel it first")
    keep_ending(config.state_dir / "jobs" / job_id, status)
    document = {"object": "job", "id": job_id, "deleted": True}
    hidden = None
    if query.files:
        try:
            hidden = job_files.hide(config.state_dir, job_id, owner=store.owner)
        except OSError as error:
            log.exception("the directory of %s can't be removed", job_id)
            reason = error.strerror or "it is another's"
            raise ApiProblem(409, "files_stay", f"its directory can't be removed: {reason}", param="files") from None
        document["files"] = hidden is not None
    store.delete(job_id)
    WebhookStore(store).forget(job_id)
    if hidden is not None:
        shutil.rmtree(hidden, ignore_errors=True)  # after the record: who is cut short here asks for no more than this
    return StrictJSONResponse(document)


@router.post("/{job_id}/pause", openapi_extra=PAUSE_BODY)
def pause_job(
    job_id: JobId, document: Annotated[Any, Depends(optional_json_body)], store: Store, caller: Caller
) -> Response:
    """A running job writes a checkpoint and lets go of its resources."""
    store.request_pause(job_id, save=saves(document), by=caller.key_name)
    return StrictJSONResponse(job_document(store.job(job_id)))


@router.post("/{job_id}/resume", dependencies=[NoFields], openapi_extra=EMPTY_BODY)
def resume_job(job_id: JobId, store: Store, max_active: MaxActive, caller: Caller) -> Response:
    """Puts a paused job back in the queue; it goes on from its newest checkpoint."""
    back_in_queue(store, job_id, max_active, caller.key_name)
    return StrictJSONResponse(job_document(store.job(job_id)))


def _doubts_document(found: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"param": param, "message": message} for param, message in found]


def _validated(
    spec: JobSpec | RewardJobSpec, text: str, contents: Mapping[str, Contents], gpus: int | None
) -> dict[str, Any]:
    if isinstance(spec, RewardJobSpec):
        return {"object": "validation", "valid": True, "spec": json.loads(text)}
    rollouts = spec.prompts_asked * spec.rollout.rollouts_per_prompt
    return {
        "object": "validation",
        "valid": True,
        "rollouts_per_step": rollouts,
        "rollouts": rollouts * spec.steps,
        "evaluations": evaluations(spec),
        "judges": [calls.document() for calls in judge_calls(spec, contents)],
        "doubts": _doubts_document(doubts(spec, contents, gpus=gpus)),
        "spec": json.loads(text),
    }


def _free_bytes(directory: Path) -> int | None:
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return None
