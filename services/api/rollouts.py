"""Training rollouts of a job: what was asked, what came back, and what each completion was worth."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from orchestrator.rollouts.samples import Row
from services.deps import Configuration, Cursor, JobId, Store, alignment_only, page
from services.errors import ApiProblem, StrictJSONResponse
from services.job_requests import rollouts_of
from services.query import StrictRoute

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
