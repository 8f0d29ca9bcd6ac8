"""What routers of jobs share: how a request names, filters and pauses jobs, and how a job is shown."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import Depends, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.errors import IllegalTransition, JobNotFound
from orchestrator.rollouts.samples import FOLDER, Row, kept_steps, read_samples
from orchestrator.spec_errors import problem
from orchestrator.state.states import JobStatus, is_terminal
from orchestrator.state.store import JobRecord, JobStore, Page, QuotaReached
from services.body import optional_json_body
from services.deps import MAX_PAGE, Caller, body_schema
from services.errors import ApiProblem, not_found, quota_problem, spec_problem
from services.settings import Settings
from services.slots import held

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


AFTER_JOB = "only jobs older than this one: its id, or a page's next_after, which holds when that job is deleted"


class JobList(BaseModel):
    """Query of the list."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Query(None, description=AFTER_JOB)
    limit: int = Query(20, ge=1, le=MAX_PAGE)
    status: JobStatus | None = None
    submitted_by: str | None = Query(None, max_length=256, description="the name of the key that submitted it")
    owner: str | None = Query(None, description="whose; the installation's own key may name another owner")


_METADATA = re.compile(r"metadata\[(.{1,512})\]", flags=re.DOTALL)


async def wanted_metadata(request: Request, caller: Caller) -> AsyncIterator[dict[str, str]]:
    """The filters metadata[k]=v of a list; a job must have them all. To look at thousands of jobs takes a place, also
    for those of one key."""
    given = request.query_params.multi_items()
    wanted = {match.group(1): value for name, value in given if (match := _METADATA.fullmatch(name))}
    if not wanted and "submitted_by" not in request.query_params:
        yield wanted
        return
    with held(request.app, "filtered lists", caller.owner, at_once=4, of_owner=2):
        yield wanted


async def list_query(request: Request) -> JobList:
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


def list_parameters() -> list[dict[str, Any]]:
    """For openapi_extra, as the handler reads them itself."""
    text = {"type": "string"}
    return [
        {"name": "after", "in": "query", "schema": text, "description": AFTER_JOB},
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE}},
        {"name": "status", "in": "query", "schema": {**text, "enum": [str(status) for status in JobStatus]}},
        {"name": "submitted_by", "in": "query", "schema": text, "description": "the name of the key that submitted it"},
        {
            "name": "owner",
            "in": "query",
            "schema": text,
            "description": "whose; the installation's own key may name any",
        },
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

Metadata = Annotated[dict[str, str], Depends(wanted_metadata)]


class Pause(BaseModel):
    """Where a running job stops."""

    model_config = ConfigDict(extra="forbid", strict=True)

    checkpoint: Literal["save", "latest"] = Field(
        "save", description="`save` a new one; or at the `latest`, after which the steps since then run again"
    )


PAUSE_BODY = body_schema(Pause.model_json_schema(), required=False)


def saves(document: Any) -> bool:
    """Whether a pause, by its body, writes a checkpoint first. Raises ApiProblem."""
    try:
        pause = Pause.model_validate({} if document is None else document)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise spec_problem([problem(Pause, detail) for detail in found]) from None
    return pause.checkpoint == "save"


def jobs_with(store: JobStore, query: JobList, metadata: dict[str, str]) -> Page[JobRecord]:
    """A page of the list."""
    try:
        return store.jobs(
            after=query.after,
            limit=query.limit,
            status=query.status,
            submitted_by=query.submitted_by,
            metadata=metadata,
        )
    except JobNotFound:
        raise ApiProblem(
            422,
            "invalid_parameter",
            "after: no such job; a page's next_after holds when a job is deleted",
            param="after",
        ) from None


def back_in_queue(store: JobStore, job_id: str, max_active: int | None, by: str) -> None:
    """As a submission, a resumed job counts against its owner's quota."""
    try:
        store.resume(job_id, max_active=max_active, by=by)
    except QuotaReached:
        raise quota_problem(max_active) from None
    except IllegalTransition as error:
        if not is_terminal(JobStatus(error.current)):
            raise
        way = f"`equipoise fork {job_id} --steps N` goes on to step N in a new job, with all of its state"
        if json.loads(store.spec(job_id)).get("kind") == "reward_model":
            way = "submit it again, with more epochs"
        raise ApiProblem(409, "illegal_transition", f"a job that is {error.current} stays so: {way}") from None


def rollouts_of(
    store: JobStore, config: Settings, job_id: str, step: int | None = None
) -> tuple[int | None, list[Row]]:
    """The latest kept step, or this one (404 where it is not kept), and its rollouts with their numbers from 1."""
    directory = config.state_dir / "jobs" / job_id / FOLDER
    kept = kept_steps(directory, up_to=store.job(job_id).step)
    if step is not None and step not in kept:
        every = json.loads(store.spec(job_id)).get("samples", {}).get("every", 1)
        raise not_found(f"no rollouts are kept of this step; the spec's samples.every is {every}")
    for candidate in [step] if step is not None else reversed(kept):
        if rows := read_samples(directory, candidate):
            return candidate, [{"number": number, **row} for number, row in enumerate(rows, start=1)]
    return step, []


_AT_WORK = (JobStatus.RUNNING, JobStatus.PAUSING, JobStatus.CANCELLING)


def job_document(record: JobRecord) -> dict[str, Any]:
    """A job as clients see it. What only the lease's holder needs (fence, digests) stays inside."""
    return {
        "object": "job",
        "id": record.job_id,
        "name": record.name,
        "submitted_by": record.submitted_by,
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
        "progress": {**record.progress, **(record.phase or {})} if record.status in _AT_WORK else record.progress,
    }
