"""What handlers ask for by type, and the shapes that several of them share.

None of it waits for anything, so all of it is `async`: what is not costs every request a thread of its own. Each is a
dependency by itself, as every level of them costs as much again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Query, Request
from fastapi import Path as PathParameter
from pydantic import AfterValidator, BaseModel, ConfigDict

from orchestrator.checks.access import HUB, Access
from orchestrator.errors import JobNotFound
from orchestrator.state.keys import is_name
from orchestrator.state.store import Checkpoint, JobStore
from orchestrator.storage.checkpoint_store import find_checkpoint
from orchestrator.storage.datasets import Datasets
from services.auth import Principal
from services.errors import ApiProblem
from services.settings import Limits, Settings

MAX_PAGE = 100


def _owner(request: Request) -> str:
    owner: str = request.state.principal.owner
    return owner


def _owns_all(request: Request) -> bool:
    """True for the installation's own owner."""
    return bool(_owner(request) == request.app.state.store.owner)


async def _principal(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


def store_of(request: Request) -> JobStore:
    """The jobs of the key's owner: another owner's job does not exist here."""
    store: JobStore = request.app.state.store
    return store.of_owner(_owner(request))


async def _store(request: Request) -> JobStore:
    return store_of(request)


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _max_active(request: Request) -> int | None:
    limits: Limits = request.app.state.settings.limits
    return (limits.active_jobs_local if _owns_all(request) else limits.active_jobs) or None


def _most_bytes(request: Request) -> int | None:
    limits: Limits = request.app.state.settings.limits
    return (limits.kept_bytes_local if _owns_all(request) else limits.kept_bytes) or None


async def _max_kept_bytes(request: Request) -> int | None:
    return _most_bytes(request)


async def _access(request: Request) -> Access:
    """Which files a spec may name: any for the installation's own owner, none for others, or those of the roots.

    Who may name any file may name any dataset of the hub, too: both are read by what the server's machine may read.
    """
    settings: Settings = request.app.state.settings
    limits, store = settings.limits, store_of(request)
    is_free = _owns_all(request) and limits.data_roots is None

    def is_own(job_id: str) -> bool:
        try:
            return is_name(job_id) and store.job(job_id) is not None
        except JobNotFound:
            return False

    return Access(
        owner=store.owner,
        state_dir=settings.state_dir,
        roots=None if is_free else limits.data_roots or (),
        model_roots=limits.model_roots,
        urls=(*limits.data_urls, HUB) if is_free else limits.data_urls,
        own_job=is_own,
    )


@dataclass(frozen=True, kw_only=True)
class Submitter:
    """Whom new jobs come from, and what they may be."""

    store: JobStore
    settings: Settings
    access: Access
    max_active: int | None
    max_kept: int | None  # jobs of the owner in all
    max_kept_bytes: int | None  # of their specs, metadata, steps and steering
    name: str  # of the key, as the steering log has it


async def _submitter(request: Request) -> Submitter:
    principal: Principal = request.state.principal
    limits: Limits = request.app.state.settings.limits
    return Submitter(
        store=store_of(request),
        settings=request.app.state.settings,
        access=await _access(request),
        max_active=await _max_active(request),
        max_kept=(limits.kept_jobs_local if _owns_all(request) else limits.kept_jobs) or None,
        max_kept_bytes=_most_bytes(request),
        name=principal.key_name,
    )


async def _finder(request: Request) -> Callable[[str, Checkpoint], Path]:
    settings: Settings = request.app.state.settings
    owner = _owner(request)

    def find(job_id: str, checkpoint: Checkpoint) -> Path:
        """A directory here with the checkpoint's policy. Raises CheckpointError."""
        url, state_dir = settings.checkpoint_store, settings.state_dir
        return find_checkpoint(checkpoint, url, owner=owner, job_id=job_id, state_dir=state_dir)

    return find


async def _datasets(request: Request) -> Datasets:
    return Datasets(request.app.state.settings.state_dir, _owner(request))


def _job_id(job_id: str) -> str:
    if not is_name(job_id):
        raise JobNotFound(job_id)  # not 422: an id that can't exist is one that doesn't
    return job_id


Caller = Annotated[Principal, Depends(_principal)]
Store = Annotated[JobStore, Depends(_store)]
MaxActive = Annotated[int | None, Depends(_max_active)]  # how many jobs of the owner may wait or run; None: any number
MaxKeptBytes = Annotated[int | None, Depends(_max_kept_bytes)]  # of what Redis keeps of the owner's jobs
Configuration = Annotated[Settings, Depends(_settings)]
Finder = Annotated[Callable[[str, Checkpoint], Path], Depends(_finder)]  # of a checkpoint's policy on this machine
FileAccess = Annotated[Access, Depends(_access)]
OwnDatasets = Annotated[Datasets, Depends(_datasets)]
From = Annotated[Submitter, Depends(_submitter)]  # one dependency, as each costs a request as much again
JobId = Annotated[str, PathParameter(description="a job's id"), AfterValidator(_job_id)]


def alignment_only(spec: Mapping[str, Any], what: str) -> None:
    """Raises ApiProblem for a job that trains a reward model: it has no `what`. `spec` is the job's document."""
    if spec.get("kind") == "reward_model":
        raise ApiProblem(409, "wrong_kind", f"this job trains a reward model, which has no {what}")


class Cursor(BaseModel):
    """Of lists that are numbered: events by seq, metrics by step."""

    model_config = ConfigDict(extra="forbid")

    after: int = Query(0, ge=0, le=2**53, description="only what is numbered above this")
    limit: int = Query(MAX_PAGE, ge=1, le=MAX_PAGE)


def page(items: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    return {"object": "list", "data": items, "has_more": has_more}


def body_schema(schema: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    """For openapi_extra, as the handlers read bodies themselves (services/body.py)."""
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}
