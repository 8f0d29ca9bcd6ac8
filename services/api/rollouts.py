"""Training rollouts of a job: what was asked, what came back, and what each completion was worth."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from orchestrator.rollouts.samples import FOLDER, Row, kept_steps, read_samples
from orchestrator.state.store import JobStore
from services.deps import Configuration, Cursor, JobId, Store, alignment_only, page
from services.errors import ApiProblem, StrictJSONResponse, not_found
from services.query import StrictRoute
from services.settings import Settings

router = APIRouter(prefix="/v1/jobs/{job_id}/rollouts", tags=["results"], route_class=StrictRoute)

_FIELDS = ("advantage", "tokens")


class RolloutQuery(Cursor):
    """Which step, and in which order; `after` counts in that order."""

    step: int | None = Query(None, ge=1, le=2**53, description="a step whose rollouts are kept; the latest when absent")
    sort: str | None = Query(
        None, max_length=256, description="an objective, `advantage` or `tokens`; with - before it, the highest first"
    )


@router.get("")
def get_rollouts(
    job_id: JobId, query: Annotated[RolloutQuery, Query()], store: Store, config: Configuration
) -> Response:
    """The rollouts that are kept of a step, numbered as they are stored. An empty list before the first."""
    spec = json.loads(store.spec(job_id))
    alignment_only(spec, "rollouts")
    names = [objective["name"] for objective in spec["objectives"]]
    step, rows = rollouts_of(store, config, job_id, query.step)
    ordered = _sorted(rows, query.sort, names)
    shown = ordered[query.after : query.after + query.limit]
    document = page([_shown(row) for row in shown], has_more=len(ordered) > query.after + query.limit)
    return StrictJSONResponse({**document, "step": step, "total": len(ordered)})


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


def _sorted(rows: list[Row], sort: str | None, names: list[str]) -> list[Row]:
    """Equal values in the order of storage, rewards that were not measured last."""
    if sort is None:
        return rows
    key = sort.removeprefix("-")
    if key not in (*_FIELDS, *names):
        known = ", ".join((*_FIELDS, *names))
        raise ApiProblem(422, "invalid_parameter", f"sort: expected one of {known}, or - and one of them", param="sort")

    def value(row: Row) -> float | None:
        found: float | None = row["rewards"][key] if key in names else row[key]  # an objective may be called tokens
        return found

    measured = [row for row in rows if value(row) is not None]
    measured.sort(key=lambda row: value(row) or 0.0, reverse=sort.startswith("-"))
    return measured + [row for row in rows if value(row) is None]


def _shown(row: Row) -> dict[str, Any]:
    """Without what only the files need."""
    return {"object": "rollout", **{key: item for key, item in row.items() if key not in ("fence", "scales", "choice")}}
