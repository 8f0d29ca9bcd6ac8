"""The jobs in the shapes of the fine-tuning API, for clients that know that one: list, look at, cancel, pause, resume.

`fine_tuned_model` is the front's best by the steered weights, as `fork --at best` takes it; the newest checkpoint where
none is on the front.
What it has no word for (objectives, weights, the front) is under /v1/jobs. Jobs are submitted there too.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from orchestrator.directions import scales
from orchestrator.lineage import best_step
from orchestrator.state.states import JobStatus
from orchestrator.state.store import Checkpoint, Event, JobRecord, JobStore
from services.body import optional_json_body
from services.deps import MAX_PAGE, Caller, JobId, MaxActive, Store, page
from services.errors import ApiProblem, StrictJSONResponse
from services.job_requests import (
    EMPTY_BODY,
    METADATA_PARAMETER,
    PAUSE_BODY,
    JobList,
    Metadata,
    NoFields,
    back_in_queue,
    jobs_with,
    saves,
)

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

STATUSES = {
    JobStatus.VALIDATING: "validating_files",
    JobStatus.QUEUED: "queued",
    JobStatus.STARTING: "queued",
    JobStatus.RUNNING: "running",
    JobStatus.PAUSING: "running",
    JobStatus.PAUSED: "paused",
    JobStatus.CANCELLING: "running",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "cancelled",
}
_LEVELS = {"warning": "warn"}


class Page(BaseModel):
    """Query of the lists. Filters metadata[k]=v of the jobs are read apart."""

    model_config = ConfigDict(extra="ignore")

    after: str | None = Query(None, max_length=300, description="the id of the last one seen")
    limit: int = Query(20, ge=1, le=MAX_PAGE)


@router.get("", openapi_extra={"parameters": [METADATA_PARAMETER]})
def list_jobs(query: Annotated[Page, Query()], metadata: Metadata, store: Store) -> Response:
    """Newest first."""
    found = jobs_with(
        store, JobList(after=query.after, limit=query.limit, status=None, submitted_by=None, owner=None), metadata
    )
    texts = store.specs([record.job_id for record in found.items])
    shown = _jobs(store, [(record, texts[record.job_id]) for record in found.items if record.job_id in texts])
    return StrictJSONResponse(page(shown, has_more=found.has_more))


@router.get("/{job_id}")
def get_job(job_id: JobId, store: Store) -> Response:
    """A job in this API's shape."""
    return StrictJSONResponse(_jobs(store, [store.job_and_spec(job_id)])[0])


@router.post("/{job_id}/cancel", dependencies=[NoFields], openapi_extra=EMPTY_BODY)
def cancel_job(job_id: JobId, store: Store, caller: Caller) -> Response:
    """At once where it waits; a running job ends within half a minute."""
    store.request_cancel(job_id, by=caller.key_name)
    return StrictJSONResponse(_jobs(store, [store.job_and_spec(job_id)])[0])


@router.post("/{job_id}/pause", openapi_extra=PAUSE_BODY)
def pause_job(
    job_id: JobId, document: Annotated[Any, Depends(optional_json_body)], store: Store, caller: Caller
) -> Response:
    """A running job writes a checkpoint first, unless the body has `{"checkpoint": "latest"}`."""
    store.request_pause(job_id, save=saves(document), by=caller.key_name)
    return StrictJSONResponse(_jobs(store, [store.job_and_spec(job_id)])[0])


@router.post("/{job_id}/resume", dependencies=[NoFields], openapi_extra=EMPTY_BODY)
def resume_job(job_id: JobId, store: Store, max_active: MaxActive, caller: Caller) -> Response:
    """Back in the queue; it goes on from its newest checkpoint."""
    back_in_queue(store, job_id, max_active, caller.key_name)
    return StrictJSONResponse(_jobs(store, [store.job_and_spec(job_id)])[0])


@router.get("/{job_id}/events")
def list_events(job_id: JobId, query: Annotated[Page, Query()], store: Store) -> Response:
    """Newest first; `after` goes on to older ones."""
    before = _newest(store, job_id) + 1
    if query.after is not None:
        before = min(before, _number("ftevent", job_id, query.after))
    first = max(0, before - 1 - query.limit)
    found = [event for event in store.events(job_id, after=first, limit=query.limit).items if event.seq < before]
    older = first > 0 and bool(found) and found[0].seq == first + 1  # else the rest is no longer kept
    return StrictJSONResponse(page([_event(job_id, event) for event in reversed(found)], has_more=older))


@router.get("/{job_id}/checkpoints")
def list_checkpoints(job_id: JobId, query: Annotated[Page, Query()], store: Store) -> Response:
    """Newest first; each is a Hugging Face directory on the machine that trains."""
    record = store.job(job_id)
    found = store.checkpoints(job_id)[::-1]
    if query.after is not None:
        below = _number("ftckpt", job_id, query.after)
        found = [checkpoint for checkpoint in found if checkpoint.step < below]
    shown = [_checkpoint(record, checkpoint) for checkpoint in found[: query.limit]]
    return StrictJSONResponse(page(shown, has_more=len(found) > query.limit))


def _jobs(store: JobStore, found: Sequence[tuple[JobRecord, str]]) -> list[dict[str, Any]]:
    """Jobs with their specs; what their results follow from is read at once."""
    jobs = [(record, json.loads(text)) for record, text in found]
    kept = store.weighed_checkpoints([record.job_id for record, spec in jobs if _has_front(record, spec)])
    return [_job(store.owner, record, spec, _result(record, spec, kept.get(record.job_id))) for record, spec in jobs]


def _has_front(record: JobRecord, spec: dict[str, Any]) -> bool:
    return record.status is JobStatus.SUCCEEDED and spec.get("kind") != "reward_model"


def _job(owner: str, record: JobRecord, spec: dict[str, Any], result: str | None) -> dict[str, Any]:
    model, files, batch_size, seed = _trained(spec)
    failed, succeeded = record.status is JobStatus.FAILED, record.status is JobStatus.SUCCEEDED
    message = record.reason or "the job failed"
    return {
        "id": record.job_id,
        "object": "fine_tuning.job",
        "created_at": int(record.created_at),
        "finished_at": None if record.finished_at is None else int(record.finished_at),
        "status": STATUSES[record.status],
        "error": {"code": "job_failed", "message": message, "param": None} if failed else None,
        "model": model,
        "fine_tuned_model": result if succeeded else None,
        "training_file": files[0],
        "validation_file": files[1],
        "hyperparameters": {
            "n_epochs": "auto",
            "batch_size": batch_size,
            "learning_rate_multiplier": "auto",
        },
        "organization_id": owner,
        "result_files": [],
        "seed": seed,
        "trained_tokens": None,
        "estimated_finish": None,
        "integrations": [],
        "metadata": spec.get("metadata", {}),
    }


def _result(
    record: JobRecord, spec: dict[str, Any], weighed: tuple[list[Checkpoint], dict[str, float]] | None
) -> str | None:
    path = record.checkpoint_path
    if weighed is not None:  # else it has no front, or was deleted a moment ago
        kept, weights = weighed
        best = best_step(kept, scales(spec), weights)
        path = next((found.path for found in kept if found.step == best), path)
    return str(Path(path) / "policy") if path else None


def _trained(spec: dict[str, Any]) -> tuple[str, tuple[str, str | None], int, int]:
    """(model, files of both splits, rows of an update, seed) of a job of either kind."""
    if spec.get("kind") == "reward_model":
        training = spec["training"]
        files = training["train"][0], next(iter(training["validation"]), None)
        return training["model"], files, training["batch_size"], training["seed"]
    data, rollout = spec["data"], spec["rollout"]
    train, validation = (_file(data, split) for split in ("train", "validation"))
    batch_size = rollout["prompts_per_step"] * rollout["rollouts_per_prompt"]
    return spec["policy"]["model"], (train, validation), batch_size, spec["seed"]


def _file(data: dict[str, Any], split: str) -> str:
    """The first of a split's; of what a share holds back, the train split's."""
    named = data["train"] if isinstance(data[split], dict) else data[split]
    if isinstance(named, int):
        return str(data["type"])
    return str(named if isinstance(named, str) else named[0])


def _event(job_id: str, event: Event) -> dict[str, Any]:
    return {
        "id": f"ftevent-{job_id}-{event.seq}",
        "object": "fine_tuning.job.event",
        "created_at": int(event.at),
        "level": _LEVELS.get(event.level, event.level),
        "message": f"{event.type}: {json.dumps(event.data)}" if event.data else event.type,
        "type": "metrics" if event.type == "evaluated" else "message",
        "data": event.data,
    }


def _checkpoint(record: JobRecord, checkpoint: Checkpoint) -> dict[str, Any]:
    created_at = record.started_at or record.created_at
    with contextlib.suppress(OSError):  # it may lie on another machine
        created_at = Path(checkpoint.path).stat().st_mtime
    return {
        "id": f"ftckpt-{record.job_id}-{checkpoint.step}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(created_at),
        "fine_tuned_model_checkpoint": str(Path(checkpoint.path) / "policy"),
        "fine_tuning_job_id": record.job_id,
        "metrics": {"step": checkpoint.step, **checkpoint.metrics.get("objectives", {})},
        "step_number": checkpoint.step,
    }


def _newest(store: JobStore, job_id: str) -> int:
    """The number of the newest event, by halving: they are numbered without a gap."""
    if not store.events(job_id, after=0, limit=1).items:
        return 0
    low, high = 0, 1
    while store.events(job_id, after=high, limit=1).items:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if store.events(job_id, after=middle, limit=1).items else (low, middle)
    return high


def _number(prefix: str, job_id: str, given: str) -> int:
    match = re.fullmatch(rf"{prefix}-{re.escape(job_id)}-(\d{{1,15}})", given, flags=re.ASCII)
    if match is None:
        raise ApiProblem(422, "invalid_parameter", "after: expected the id of one of this list", param="after")
    return int(match.group(1))
