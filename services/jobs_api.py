"""Jobs over HTTP: submit, list, look at, cancel, pause, resume."""

from __future__ import annotations

import math
import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from orchestrator.errors import JobNotFound
from orchestrator.preflight import preflight
from orchestrator.spec import JobSpec, parse_spec
from orchestrator.states import JobStatus
from orchestrator.steering import initial_steering
from orchestrator.store import JobRecord, SubmitOutcome
from services.body import json_body, parse_json
from services.deps import MAX_PAGE, JobId, Store, body_schema, page
from services.errors import ApiProblem, StrictJSONResponse, spec_problem

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="the same key and body is answered with the job that was made the first time, for 24 h",
    ),
]


class JobList(BaseModel):
    """Query of the list."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Query(None, description="only jobs older than this one")
    limit: int = Query(20, ge=1, le=MAX_PAGE)
    status: JobStatus | None = None


class Submit(BaseModel):
    """Query of a submission."""

    model_config = ConfigDict(extra="forbid")

    validate_only: bool = Query(False, description="check, and say what would run, without running it")


@router.post("", status_code=201, openapi_extra=body_schema({"$ref": "#/components/schemas/JobSpec"}))
def submit_job(
    document: Annotated[Any, Depends(json_body)],
    query: Annotated[Submit, Query()],
    store: Store,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Queues a job. The body is the same document as the CLI's YAML."""
    spec = checked_spec(document)
    text = spec.to_json()
    if query.validate_only:
        return StrictJSONResponse(_validated(spec, text))
    submission = store.submit(
        text,
        name=spec.name,
        job_id=f"job-{secrets.token_hex(6)}",
        steering=_steering(spec),
        idempotency_key=idempotency_key,
    )
    if submission.outcome is SubmitOutcome.CONFLICT:
        raise ApiProblem(
            409, "idempotency_conflict", "this Idempotency-Key was used with another body", param="Idempotency-Key"
        )
    replay = submission.outcome is SubmitOutcome.REPLAY
    return StrictJSONResponse(
        job_document(store.job(submission.job_id)),
        status_code=201,
        headers={"location": f"/v1/jobs/{submission.job_id}", "idempotent-replayed": str(replay).lower()},
    )


@router.get("")
def list_jobs(query: Annotated[JobList, Query()], store: Store) -> Response:
    """Newest first."""
    try:
        found = store.jobs(after=query.after, limit=query.limit, status=query.status)
    except JobNotFound:
        raise ApiProblem(422, "invalid_parameter", "after: no such job", param="after") from None
    return StrictJSONResponse(page([job_document(job) for job in found.items], has_more=found.has_more))


@router.get("/{job_id}")
def get_job(job_id: JobId, store: Store) -> Response:
    """A job with its spec, every default written out."""
    record = store.job(job_id)
    spec = parse_json(store.spec(job_id).encode())
    return StrictJSONResponse(
        {**job_document(record), "total_steps": record.total_steps or spec["steps"], "spec": spec}
    )


@router.post("/{job_id}/cancel")
def cancel_job(job_id: JobId, store: Store) -> Response:
    """At once where it waits; a running job ends after the step in flight."""
    store.request_cancel(job_id)
    return StrictJSONResponse(job_document(store.job(job_id)))


@router.post("/{job_id}/pause")
def pause_job(job_id: JobId, store: Store) -> Response:
    """A running job writes a checkpoint and lets go of its resources."""
    store.request_pause(job_id)
    return StrictJSONResponse(job_document(store.job(job_id)))


@router.post("/{job_id}/resume")
def resume_job(job_id: JobId, store: Store) -> Response:
    """Puts a paused job back in the queue; it goes on from its newest checkpoint."""
    store.resume(job_id)
    return StrictJSONResponse(job_document(store.job(job_id)))


def checked_spec(document: Any) -> JobSpec:
    """A spec that can run here: its fields fit, and so do the files that it names."""
    try:
        spec = parse_spec(document)
    except RuntimeError as error:  # an installed reward plugin is broken, which the spec's author can't help
        raise ApiProblem(500, "plugin_broken", str(error)) from error
    if problems := preflight(spec):
        raise spec_problem(problems)
    return spec


def _steering(spec: JobSpec) -> dict[str, Any]:
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
        "status": record.status,
        "reason": record.reason,
        "created_at": record.created_at,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
        "step": record.step,
        "total_steps": record.total_steps,
        "attempts": record.attempts,
        "checkpoint_step": record.checkpoint_step,
        "progress": record.progress,
    }


def _validated(spec: JobSpec, text: str) -> dict[str, Any]:
    rollouts = spec.rollout.prompts_per_step * spec.rollout.rollouts_per_prompt
    evaluations = math.ceil(spec.steps / spec.evaluation.every) + 1
    return {
        "object": "validation",
        "valid": True,
        "rollouts_per_step": rollouts,
        "rollouts": rollouts * spec.steps,
        "evaluations": evaluations,
        "spec": parse_json(text.encode()),
    }
