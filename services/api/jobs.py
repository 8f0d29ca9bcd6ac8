"""Jobs over HTTP: submit, list, look at, cancel, pause, resume."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from orchestrator.actors.placement import may_take_gpus
from orchestrator.checks.access import Access
from orchestrator.checks.doubts import doubts
from orchestrator.checks.estimate import estimate
from orchestrator.checks.judge_calls import evaluations, judge_calls
from orchestrator.checks.layout import Machine
from orchestrator.checks.preflight import look
from orchestrator.errors import JobNotFound
from orchestrator.lineage import lineage
from orchestrator.rollouts.prompts import Contents
from orchestrator.spec import JobSpec, check_new, parse_job, validated
from orchestrator.spec_errors import problem
from orchestrator.specs.reward_job import RewardJobSpec
from orchestrator.state.states import JobStatus, is_terminal
from orchestrator.state.store import JobRecord, JobStore, Page, QuotaReached, Submission, SubmitOutcome
from orchestrator.steering import initial_steering
from orchestrator.storage.recovery import keep_ending
from orchestrator.webhooks.subscriptions import WebhookStore
from rewards.verifiers.json_schema import schemas_within
from services.body import json_body, optional_json_body
from services.deps import MAX_PAGE, Caller, Configuration, From, JobId, MaxActive, Store, body_schema, page, store_of
from services.errors import ApiProblem, StrictJSONResponse, quota_problem, spec_problem
from services.query import StrictRoute
from services.slots import held

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute)

_MAX_SPEC_BYTES = 256 << 10

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="the same key and body is answered as it was the first time, for 24 h",
    ),
]


class JobList(BaseModel):
    """Query of the list."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Query(None, description="only jobs older than this one")
    limit: int = Query(20, ge=1, le=MAX_PAGE)
    status: JobStatus | None = None


_METADATA = re.compile(r"metadata\[(.{1,512})\]", flags=re.DOTALL)


async def _wanted_metadata(request: Request, caller: Caller) -> AsyncIterator[dict[str, str]]:
    """The filters metadata[k]=v of a list; a job must have them all. To look at thousands of jobs takes a place."""
    given = request.query_params.multi_items()
    wanted = {match.group(1): value for name, value in given if (match := _METADATA.fullmatch(name))}
    if not wanted:
        yield wanted
        return
    with held(request.app, "lists by metadata", caller.owner, at_once=4, of_owner=2):
        yield wanted


async def _list_query(request: Request) -> JobList:
    plain = {name: value for name, value in request.query_params.items() if not _METADATA.fullmatch(name)}
    try:
        return JobList.model_validate(plain)
    except ValidationError as error:
        raise RequestValidationError([{**found, "loc": ("query", *found["loc"])} for found in error.errors()]) from None


METADATA_PARAMETER = {
    "name": "metadata",
    "in": "query",
    "style": "deepObject",
    "explode": True,
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
}


def _list_parameters() -> list[dict[str, Any]]:
    """For openapi_extra, as the handler reads them itself."""
    text = {"type": "string"}
    return [
        {"name": "after", "in": "query", "schema": text, "description": "only jobs older than this one"},
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE}},
        {"name": "status", "in": "query", "schema": {**text, "enum": [str(status) for status in JobStatus]}},
        METADATA_PARAMETER,
    ]


async def _no_fields(document: Annotated[Any, Depends(optional_json_body)]) -> None:
    """A body that says something is refused: what it asks for would not happen."""
    if document is None or document == {}:
        return
    field = next(iter(document)) if isinstance(document, dict) else ""
    raise spec_problem([(field, "unknown field; this takes none" if field else "expected no body, or an object")])


NoFields = Depends(_no_fields)
EMPTY_BODY = body_schema({"type": "object", "additionalProperties": False}, required=False)

Metadata = Annotated[dict[str, str], Depends(_wanted_metadata)]


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


async def _place(request: Request, caller: Caller) -> AsyncIterator[None]:
    """A dry run is as much work as a submission, and no quota counts it."""
    if "validate_only" not in request.query_params:
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
    would help. `judges` has the calls of each judge, at most, and what they cost by its profile's prices where
    completions and answers are as long as they may be. `doubts` names what is valid but was probably not meant.
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
            )
            plan["estimate"] = estimate(spec, machine)
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


@router.get("", openapi_extra={"parameters": _list_parameters()})
def list_jobs(query: Annotated[JobList, Depends(_list_query)], metadata: Metadata, store: Store) -> Response:
    """Newest first. A filtered list looks at 10,000 jobs at most: while has_more, next_after is the cursor to go on."""
    found = jobs_with(store, query, metadata)
    document = page([job_document(job) for job in found.items], has_more=found.has_more)
    return StrictJSONResponse({**document, "next_after": found.last if found.has_more else None})


def jobs_with(store: JobStore, query: JobList, metadata: dict[str, str]) -> Page[JobRecord]:
    """A page of the list."""
    try:
        return store.jobs(after=query.after, limit=query.limit, status=query.status, metadata=metadata)
    except JobNotFound:
        raise ApiProblem(422, "invalid_parameter", "after: no such job", param="after") from None


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
    """A job with its spec, every default written out, and the job that it was forked from. The ETag is its state's."""
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
def cancel_job(job_id: JobId, store: Store) -> Response:
    """At once where it waits; a running job ends within half a minute."""
    store.request_cancel(job_id)
    return StrictJSONResponse(job_document(store.job(job_id)))


@router.delete("/{job_id}")
def delete_job(job_id: JobId, store: Store, config: Configuration) -> Response:
    """Forgets a job that has ended: its record, events, figures and steering, for good. 409 for any other: cancel it.

    Its directory, with checkpoints and rollouts, stays on the server's disk; no request finds it any more, nor does
    `equipoise recover` bring the job back. Jobs that were forked from it are left as they are. What webhooks were not
    told yet, they are told no more.
    """
    status = store.job(job_id).status
    if not is_terminal(status):
        raise ApiProblem(409, "illegal_transition", f"a job that is {status} can't be deleted: cancel it first")
    keep_ending(config.state_dir / "jobs" / job_id, status)
    store.delete(job_id)
    WebhookStore(store).forget(job_id)
    return StrictJSONResponse({"object": "job", "id": job_id, "deleted": True})


class Pause(BaseModel):
    """Where a running job stops."""

    model_config = ConfigDict(extra="forbid", strict=True)

    checkpoint: Literal["save", "latest"] = Field(
        "save", description="`save` a new one; or at the `latest`, after which the steps since then run again"
    )


PAUSE_BODY = body_schema(Pause.model_json_schema(), required=False)


@router.post("/{job_id}/pause", openapi_extra=PAUSE_BODY)
def pause_job(job_id: JobId, document: Annotated[Any, Depends(optional_json_body)], store: Store) -> Response:
    """A running job writes a checkpoint and lets go of its resources."""
    store.request_pause(job_id, save=saves(document))
    return StrictJSONResponse(job_document(store.job(job_id)))


def saves(document: Any) -> bool:
    """Whether a pause, by its body, writes a checkpoint first. Raises ApiProblem."""
    try:
        pause = Pause.model_validate({} if document is None else document)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise spec_problem([problem(Pause, detail) for detail in found]) from None
    return pause.checkpoint == "save"


@router.post("/{job_id}/resume", dependencies=[NoFields], openapi_extra=EMPTY_BODY)
def resume_job(job_id: JobId, store: Store, max_active: MaxActive) -> Response:
    """Puts a paused job back in the queue; it goes on from its newest checkpoint."""
    back_in_queue(store, job_id, max_active)
    return StrictJSONResponse(job_document(store.job(job_id)))


def back_in_queue(store: JobStore, job_id: str, max_active: int | None) -> None:
    """As a submission, a resumed job counts against its owner's quota."""
    try:
        store.resume(job_id, max_active=max_active)
    except QuotaReached:
        raise quota_problem(max_active) from None


def checked_spec(document: Any, access: Access) -> JobSpec | RewardJobSpec:
    """A spec that can run here: its fields fit, and so do the files that it names, which `access` allows."""
    spec = strict_spec(document)
    check_files(spec, access)
    return spec


def check_files(spec: JobSpec | RewardJobSpec, access: Access) -> Mapping[str, Contents]:
    """What the files of its splits hold, as far as they were read."""
    found = look(spec, access)
    if found.problems:
        raise spec_problem(found.problems)
    return found.contents


@schemas_within()
def strict_spec(document: Any) -> JobSpec | RewardJobSpec:
    """Without YAML's leniency, which takes the text 1e-6 for a number: in JSON a number is one, and true is not."""
    kind = document.get("kind", "alignment") if isinstance(document, dict) else None
    try:
        text = json.dumps(document)
        if kind == "alignment":
            return check_new(validated(JobSpec, lambda: JobSpec.model_validate_json(text, strict=True)))
        if kind == "reward_model":
            return check_new(validated(RewardJobSpec, lambda: RewardJobSpec.model_validate_json(text, strict=True)))
        return parse_job(document)  # which says what is wrong
    except RuntimeError as error:  # an installed reward plugin is broken, which the spec's author can't help
        raise ApiProblem(500, "plugin_broken", str(error)) from error


def text_of(spec: JobSpec | RewardJobSpec) -> str:
    """The document that is kept, with every default. Redis holds it in memory for as long as the job is known."""
    text = spec.to_json()
    if (size := len(text.encode())) > _MAX_SPEC_BYTES:
        message = f"the spec has {size} bytes with its defaults, expected at most {_MAX_SPEC_BYTES}; shorten its texts"
        raise ApiProblem(413, "spec_too_large", message)
    return text


def first_steering(spec: JobSpec | RewardJobSpec) -> dict[str, Any]:
    """Version 1: whole, so that every later change has something to stand on."""
    try:
        return initial_steering(spec).model_dump(mode="json")
    except OverflowError:
        raise spec_problem([("objectives", "the weights are too large to be scaled")]) from None


def job_document(record: JobRecord) -> dict[str, Any]:
    """A job as clients see it. What only the lease's holder needs (fence, digests) stays inside."""
    return {
        "object": "job",
        "id": record.job_id,
        "name": record.name,
        "priority": record.priority,
        "status": record.status,
        "reason": record.reason,
        "created_at": record.created_at,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
        "step": record.step,
        "total_steps": record.total_steps,
        "attempts": record.attempts,
        "checkpoint_step": record.checkpoint_step,
        "gpu_hours": record.gpu_hours,
        "cost": record.cost,
        "progress": record.progress,
    }


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
        "doubts": [{"param": param, "message": message} for param, message in doubts(spec, contents, gpus=gpus)],
        "spec": json.loads(text),
    }
