"""Models over HTTP, in the shape that clients of other model APIs list them in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from orchestrator.state.store import JobStore
from policies.models import ModelError, check_directory
from services.deps import MAX_PAGE, Configuration, Store
from services.errors import StrictJSONResponse
from services.query import StrictRoute

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=StrictRoute)

_JOBS = 200  # the newest, whose checkpoints are listed
_DIRECTORIES = 1000


@router.get("")
def list_models(store: Store, settings: Configuration) -> Response:
    """Policies that a spec's `policy.model` may name, and checkpoints on the fronts of the newest 200 jobs.

    `kind` says which: `policy` or `checkpoint`. A checkpoint's `path` is a Hugging Face directory on the machine that
    trains.
    """
    policies = [_model("quickstart", "equipoise", 0, kind="policy")]
    policies += [
        _model(str(path), "operator", path.stat().st_mtime, kind="policy")
        for path in _usable(settings.limits.model_roots)
    ]
    return StrictJSONResponse({"object": "list", "data": [*policies, *_checkpoints(store)]})


def _usable(roots: tuple[Path, ...]) -> Iterator[Path]:
    """The roots and the directories in them that hold a policy; links that lead out of a root are none."""
    seen = 0
    for root in roots:
        try:
            base = root.resolve()
            directories = [base, *sorted(path for path in base.iterdir() if path.is_dir())]
        except OSError:  # it is not there (any more)
            continue
        for path in directories:
            seen += 1
            if seen > _DIRECTORIES:
                return
            try:
                if path.resolve().is_relative_to(base):
                    check_directory(path)
                    yield path
            except (ModelError, OSError):
                continue


def _checkpoints(store: JobStore) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after, seen = None, 0
    while seen < _JOBS:
        jobs = store.jobs(after=after, limit=MAX_PAGE)
        for job in jobs.items:
            found += [
                _model(
                    f"{job.job_id}:step-{checkpoint.step}",
                    store.owner,
                    job.created_at,
                    kind="checkpoint",
                    job=job.job_id,
                    step=checkpoint.step,
                    path=str(Path(checkpoint.path) / "policy"),
                )
                for checkpoint in store.checkpoints(job.job_id)
                if checkpoint.on_front
            ]
        if not jobs.has_more:
            break
        seen += len(jobs.items)
        after = jobs.last
    return found


def _model(model_id: str, owned_by: str, created: float, **more: Any) -> dict[str, Any]:
    return {"id": model_id, "object": "model", "created": int(created), "owned_by": owned_by, **more}
