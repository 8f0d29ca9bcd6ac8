"""What a job has found so far: series by step, the Pareto front, checkpoints and their export."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask
from starlette.responses import FileResponse, Response, StreamingResponse

from orchestrator.choice import WEIGHTS, known_objective, parse_conditions, pick
from orchestrator.comparison import front_as_told
from orchestrator.state.states import is_terminal
from orchestrator.state.store import Checkpoint
from orchestrator.storage.checkpoints import CheckpointError, export_policy, verify
from policies.models import ADAPTER_CONFIG
from services.archive import Archive
from services.body import json_body, parsed
from services.deps import Configuration, Cursor, Finder, JobId, Store, alignment_only, body_schema, page
from services.errors import ApiProblem, StrictJSONResponse, not_found
from services.model_card import FILE, model_card
from services.query import StrictRoute
from services.slots import place

router = APIRouter(prefix="/v1", tags=["results"], route_class=StrictRoute)
log = logging.getLogger(__name__)


class Export(BaseModel):
    """Where a checkpoint goes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    to: str = Field(min_length=1, max_length=4096, pattern=r"^/[^\x00]*$", description="absolute path, new or empty")


class Metrics(Cursor):
    """Which steps, and what of them."""

    names: str | None = Query(
        None,
        max_length=1000,
        description="fields by name, separated by commas (`objectives,loss`); `step` always comes too, and a name that "
        "a step has no field of is passed over. All if absent",
    )


@router.get("/jobs/{job_id}/metrics")
def get_metrics(job_id: JobId, query: Annotated[Metrics, Query()], store: Store) -> Response:
    """Committed steps in order, each once: objectives, weights and what led to them, losses, evaluations, timings."""
    records = store.steps(job_id, after_step=query.after, limit=query.limit + 1)
    wanted = None if query.names is None else {"step", *query.names.split(",")}
    shown = [
        {key: value for key, value in record.items() if key not in _INTERNAL and (wanted is None or key in wanted)}
        for record in records[: query.limit]
    ]
    return StrictJSONResponse(page(shown, has_more=len(records) > query.limit))


_INTERNAL = frozenset({"fence", "digest"})


class Choice(BaseModel):
    """Which point of the front is wanted; none where neither is given."""

    model_config = ConfigDict(extra="forbid")

    require: str | None = Query(
        None,
        max_length=4096,
        description="conditions on raw means over the validation split, by comma: `accuracy>=0.8,length<=400`",
    )
    by: str | None = Query(
        None,
        max_length=64,
        description="an objective, or `weights`: those that the job is steered with, also where this is absent",
    )


@router.get("/jobs/{job_id}/front")
def get_front(job_id: JobId, query: Annotated[Choice, Query()], store: Store) -> Response:
    """The Pareto archive: points, hypervolume by step. Without points before the first evaluation.

    `reference` is the corner that the hypervolume is measured from (`objectives[].reference`, else the worse ends of
    the ranges), `initial` what the policy reached before its first step. `directions` says of each objective whether
    larger or smaller is better, or what is nearer to a target; a point's `counted` are its means after the gates, by
    which it is ranked, where the job has gates. All other figures are raw. `hypervolume_test` is that of the front's
    tested points on the test split, once the run has ended: the validation split chose them, so that its own
    hypervolume also grows by luck.

    With `require` or `by`, `picked` is that point of the front, of those whose checkpoint is kept: of what meets the
    conditions the best by the objective or the weights; null where nothing meets them.
    """
    found, spec = store.front(job_id), json.loads(store.spec(job_id))
    if found:
        found = front_as_told(found, spec)
    else:
        alignment_only(spec, "front")
    empty: dict[str, Any] = {
        "objectives": [],
        "ranges": {},
        "directions": {},
        "reference": {},
        "initial": {},
        "hypervolume": None,
        "hypervolume_base": None,
        "hypervolume_test": None,
        "hypervolume_test_base": None,
        "hypervolume_over_base": None,
        "hypervolume_by_step": [],
        "points": [],
    }
    front = {**empty, **(found or {})}
    is_asked = query.require is not None or query.by is not None
    chosen = {"picked": _picked(store, job_id, spec, front, query)} if is_asked else {}
    return StrictJSONResponse({"object": "front", **front, **chosen})


def _picked(store: Store, job_id: str, spec: dict[str, Any], front: dict[str, Any], query: Choice) -> Any:
    names = [objective["name"] for objective in spec["objectives"]]
    conditions, by = [], query.by
    try:
        if query.require is not None:
            conditions = parse_conditions(query.require, names)
    except ValueError as error:
        raise ApiProblem(422, "invalid_parameter", f"require: {error}", param="require") from None
    try:
        if by == WEIGHTS and by not in names:
            by = None
        if by is not None:
            known_objective(by, names)
    except ValueError as error:
        raise ApiProblem(422, "invalid_parameter", f"by: {error}, or {WEIGHTS}", param="by") from None
    return pick(front, conditions, by, store.steering_head(job_id).current["weights"])


@router.get(
    "/jobs/{job_id}/report",
    response_class=FileResponse,
    responses={200: {"description": "one HTML file that needs no network", "content": {"text/html": {}}}},
)
def get_report(job_id: JobId, store: Store, settings: Configuration) -> Response:
    """The report that the driver wrote when the job ended or paused. 425 before that."""
    record = store.job(job_id)
    path = settings.state_dir / "jobs" / job_id / "report.html"
    if not path.is_file():
        if is_terminal(record.status):
            raise not_found(
                "this job has no report here: it ended before its first step, where none could be written, or on "
                "another machine; its reason and events say how it ended"
            )
        raise ApiProblem(425, "report_not_ready", "the report is written when the job ends or pauses")
    # Never shown as a page of this origin, although what is in it is escaped and its own policy forbids it to load.
    return FileResponse(path, media_type="text/html", filename=f"{job_id}-report.html", headers=_ASIDE)


_ASIDE = {"content-security-policy": "sandbox allow-scripts", "x-content-type-options": "nosniff"}


@router.get("/jobs/{job_id}/checkpoints")
def get_checkpoints(job_id: JobId, store: Store) -> Response:
    """By step; `path` is on the machine that trains."""
    return StrictJSONResponse(page([_checkpoint(found) for found in store.checkpoints(job_id)], has_more=False))


@router.post("/jobs/{job_id}/checkpoints/{step}/export", openapi_extra=body_schema(Export.model_json_schema()))
def export_checkpoint(
    request: Request,
    job_id: JobId,
    step: int,
    document: Annotated[Any, Depends(json_body)],
    store: Store,
    settings: Configuration,
    find: Finder,
    _place: Annotated[None, place("exports", at_once=2, of_owner=2)],
) -> Response:
    """Verifies a checkpoint and copies its policy, a Hugging Face directory, to a directory of the server's machine.

    For the installation's own key alone: it writes with the server's rights.
    """
    store.job(job_id)  # another owner's is not there, before anything else is said
    if not (settings.local_exports and request.state.principal.is_operator):
        raise ApiProblem(
            403, "exports_disabled", "this key does not write to the server's machine; download the checkpoint instead"
        )
    destination = Path(parsed(Export, document, "invalid_export").to)
    checkpoint = _kept_at(store, job_id, step)
    try:
        directory = find(job_id, checkpoint)
        export_policy(directory, destination, beside=_card(store, job_id, step, directory / "policy"))
    except CheckpointError as error:
        raise ApiProblem(409, "export_failed", str(error)) from None
    return StrictJSONResponse({"object": "export", "step": step, "path": str(destination)})


@router.get(
    "/jobs/{job_id}/checkpoints/{step}/download",
    response_class=StreamingResponse,
    responses={200: {"description": "a tar file with one folder", "content": {"application/x-tar": {}}}},
)
def download_checkpoint(
    job_id: JobId,
    step: int,
    store: Store,
    find: Finder,
    _place: Annotated[None, place("downloads", at_once=8, of_owner=2)],
) -> Response:
    """Verifies a checkpoint and sends its policy as a tar file: a Hugging Face directory, or an adapter's for PEFT."""
    store.job(job_id)
    checkpoint = _kept_at(store, job_id, step)
    try:
        directory = find(job_id, checkpoint)
        verify(directory, under="policy/")
        policy = directory / "policy"
        archive = Archive(policy, name=f"{job_id}-step-{step}", beside=_card(store, job_id, step, policy))
    except (CheckpointError, OSError):
        log.exception("checkpoint %d of %s can't be sent", step, job_id)
        raise ApiProblem(409, "checkpoint_unusable", "its files are gone or damaged; take another checkpoint") from None
    headers = {
        "content-length": str(archive.size),
        "content-disposition": f'attachment; filename="{job_id}-step-{step}.tar"',
    }
    sent = StreamingResponse(archive.chunks(), media_type="application/x-tar", headers=headers)
    sent.background = BackgroundTask(archive.close)
    return sent


def _card(store: Store, job_id: str, step: int, policy: Path) -> dict[str, bytes]:
    """A model card, where the policy has none; of a reward model none is written."""
    spec = json.loads(store.spec(job_id))
    if "objectives" not in spec or (policy / FILE).exists():
        return {}
    points = (store.front(job_id) or {}).get("points", ())
    records = store.steps(job_id, after_step=step - 1, limit=1) if step else []
    card = model_card(
        job_id,
        step,
        spec,
        point=next((point for point in points if point["step"] == step), None),
        weights=(records[0].get("weights") or {}).get("applied") if records else None,
        is_adapter=(policy / ADAPTER_CONFIG).is_file(),
    )
    return {FILE: card.encode()}


def _kept_at(store: Store, job_id: str, step: int) -> Checkpoint:
    if (checkpoint := store.checkpoint(job_id, step)) is not None:
        return checkpoint
    record = store.job(job_id)
    if step > record.step and not is_terminal(record.status):
        raise ApiProblem(425, "checkpoint_not_ready", f"the job has not come to step {step} yet")
    raise not_found(f"no checkpoint is kept at step {step}")


def _checkpoint(found: Checkpoint) -> dict[str, Any]:
    return {
        "object": "checkpoint",
        "step": found.step,
        "path": found.path,
        "metrics": found.metrics,
        "on_front": found.on_front,
    }
