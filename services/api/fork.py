"""New jobs from a job's checkpoint, with other weights or another spec; and jobs side by side."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from orchestrator import spec_errors
from orchestrator.actors.placement import may_take_gpus
from orchestrator.checks.access import Access
from orchestrator.comparison import TooManyPoints, compared, corners
from orchestrator.directions import directions, scales
from orchestrator.errors import JobNotFound
from orchestrator.fork_copies import NoRoom, copy_policy, copy_run, forking, is_full
from orchestrator.fork_plans import PlanConflict, keep_answer, keep_plan, kept_answer, kept_plan, plan_path
from orchestrator.lineage import MAX_FORKS, best_step, fork_document, holds_back_trained, lineage, merged, steered
from orchestrator.measurement import measured_differently, set_differently
from orchestrator.spec import JobSpec, parse_spec, problem_of_name
from orchestrator.specs.data import FilesData
from orchestrator.state.census import Census
from orchestrator.state.gpu_hours import GpuQuotaReached
from orchestrator.state.gpu_hours import read as read_gpu_hours
from orchestrator.state.records import dumps
from orchestrator.state.states import is_terminal
from orchestrator.state.store import (
    Checkpoint,
    JobStore,
    KeepsTooMany,
    Origin,
    Submission,
    SubmitOutcome,
    too_many_bytes,
)
from orchestrator.steering import SteeringError, initial_steering, merge
from orchestrator.storage.checkpoint_store import CheckpointStore, Remote
from orchestrator.storage.checkpoints import CheckpointError, LaterFormat, Unreadable
from orchestrator.stored_spec import read_stored
from services.body import first_of, json_body, parse_json
from services.deps import (
    Finder,
    From,
    JobId,
    Store,
    Submitter,
    alignment_only,
    body_schema,
    page,
)
from services.errors import (
    ApiProblem,
    StrictJSONResponse,
    gpu_quota_problem,
    kept_problem,
    not_found,
    quota_problem,
    spec_problem,
)
from services.job_requests import IdempotencyKey, job_document
from services.query import StrictRoute
from services.settings import Settings
from services.slots import place
from services.spec_checks import checked_spec, first_steering, text_of

router = APIRouter(prefix="/v1/jobs", tags=["lineage"], route_class=StrictRoute)
log = logging.getLogger(__name__)

_Weight = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
_Weights = dict[str, _Weight]


class Fork(BaseModel):
    """From where, and what is different. One job, or one for each weight vector of a sweep."""

    model_config = ConfigDict(extra="forbid", strict=True)

    checkpoint: Annotated[int, Field(ge=0, le=2**53)] | Literal["latest", "best"] = Field(
        description="a kept step; `best` is the front's highest by the weights that the job is steered with"
    )
    weights: _Weights | None = Field(
        None,
        description="one for each objective; scaled to sum to 1. Without them or a sweep, a fork begins with what the "
        "job is steered with now: weights, mode, blend and bounds",
    )
    sweep: list[_Weights] | None = Field(None, min_length=1, max_length=MAX_FORKS, description="one job for each")
    changes: dict[str, Any] = Field(default_factory=dict, description="of the spec, merged branch by branch")
    name: str | None = Field(None, min_length=1, max_length=120)
    steps: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="the job's own run goes on, to this step: with the optimiser, the weighting's state, the order of "
        "prompts, the front and the KL reference of the newest checkpoint. With `checkpoint: latest` and `name` alone",
    )


class Ids(BaseModel):
    """Query of a comparison."""

    model_config = ConfigDict(extra="forbid")

    ids: str = Query(min_length=1, max_length=256 * MAX_FORKS, description=f"job ids, at most {MAX_FORKS}, by comma")


@router.get("/compare")
def compare_jobs(
    query: Annotated[Ids, Query()],
    store: Store,
    _place: Annotated[None, place("comparisons", at_once=4, of_owner=2)],
) -> Response:
    """Fronts side by side: each job's volume, what it adds to the others', and the front of all together.

    Jobs whose objectives, ranges or references differ have no common scale: `comparable` is false, and says why.
    `measured_differently` says what else makes the figures of one scale no measure of the policies: another reward or
    gate, held-out prompts that are others or sampled otherwise. `set_differently` has what else differs from the first
    job: fields of the spec, and the software, device, commit and data that it was made of.
    Volumes of many points in more than four objectives are approximated, all of them in the same way.
    """
    ids = list(dict.fromkeys(query.ids.split(",")))
    if len(ids) > MAX_FORKS:
        raise ApiProblem(422, "invalid_parameter", f"ids: at most {MAX_FORKS} jobs are compared", param="ids")
    records = {job_id: store.job(job_id) for job_id in ids}
    specs = {job_id: json.loads(store.spec(job_id)) for job_id in ids}
    for spec in specs.values():
        alignment_only(spec, "front to compare")
    fronts = {job_id: store.front(job_id) or {} for job_id in ids}
    ways = {job_id: fronts[job_id].get("directions") or directions(spec) for job_id, spec in specs.items()}
    its_corners = {job_id: corners(specs[job_id], ways[job_id]) for job_id in ids}
    scale = its_corners[ids[0]]
    differences = [
        line
        for job_id in ids[1:]
        for line in _differences(ids[0], scale, ways[ids[0]], job_id, its_corners[job_id], ways[job_id])
    ]
    points = {job_id: fronts[job_id].get("points", []) for job_id in ids}
    try:
        found = None if differences else compared(scale, points, ways[ids[0]])
    except TooManyPoints as error:
        raise ApiProblem(422, "too_many_points", f"ids: {error}; compare fewer jobs", param="ids") from None
    same = [job_id for job_id in ids[1:] if its_corners[job_id].keys() == scale.keys()]
    unlike = [line for job_id in same for line in measured_differently(ids[0], job_id, specs, fronts)]
    data = [
        {
            "id": job_id,
            "name": record.name,
            "status": record.status,
            "step": record.step,
            "lineage": lineage(record),
            **(_alone(fronts[job_id]) if found is None else found["jobs"][job_id]),
        }
        for job_id, record in records.items()
    ]
    return StrictJSONResponse(
        {
            "object": "comparison",
            "comparable": found is not None,
            "differences": differences,
            "measured_differently": unlike,
            "set_differently": [line for line in _set_differently(store, specs) if line not in unlike],
            "objectives": list(scale),
            "ranges": {name: ends[:2] for name, ends in scale.items()} if found else None,
            "hypervolume": found and found["hypervolume"],
            "front": found and found["front"],
            "data": data,
        }
    )


@router.post("/{job_id}/fork", status_code=201, openapi_extra=body_schema(Fork.model_json_schema()))
def fork_job(
    job_id: JobId,
    document: Annotated[Any, Depends(json_body)],
    by: From,
    find: Finder,
    _place: Annotated[None, place("forks", at_once=4, of_owner=2)],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Queues jobs that start from a copy of the checkpoint's policy. Each is queued whole or not at all.

    All but the policy begins anew: steps, AdamW's moments, the learning rate's schedule, the weighting's state, the
    order of prompts, the front. The KL reference is the policy that the job starts from.

    With `steps`, which is also how a job goes on that has ended, nothing begins anew but the ledger, events and the log
    of the steering: those of the steps before stay with the parent. What is measured against the job's length (the
    learning rate's schedule, weights and estimators that change along it) takes the new one from the next step on.

    An Idempotency-Key stands for the whole set: who asks again gets the jobs that were missing, and once all are made
    the same answer.
    """
    fork = _checked(document)
    store, config = by.store, by.settings
    store.job(job_id)
    path = None if idempotency_key is None else plan_path(config.state_dir, store.owner, job_id, idempotency_key)
    try:
        plan = None if path is None else kept_plan(path, document)
        replay = plan is not None
        if plan is None:
            plan = _plan(store, config, by.access, job_id, fork, find)
            if path is not None:
                plan = keep_plan(path, document, plan)
    except PlanConflict as error:
        raise ApiProblem(409, "idempotency_conflict", str(error), param="Idempotency-Key") from None
    except OSError as error:
        if is_full(error):
            raise _full() from None
        raise
    answer = None if path is None else kept_answer(path, plan)
    if answer is None:
        _check_room(store, plan, by)
        try:
            with forking(config.state_dir):
                made = _carry_out(
                    store,
                    config,
                    plan,
                    by,
                    again=path is not None,
                    find=lambda found: find(job_id, found),
                )
            answer = {**page(made, has_more=False), "lineage": {"parent": job_id, "step": plan["step"]}}
            if path is not None:
                answer = keep_answer(path, plan, answer)
        except OSError as error:
            if is_full(error):
                raise _full() from None
            raise
    headers = {"idempotent-replayed": str(replay).lower(), "location": f"/v1/jobs/{plan['jobs'][0]['id']}"}
    return StrictJSONResponse(answer, status_code=201, headers=headers)


def _checked(document: Any) -> Fork:
    try:
        fork = Fork.model_validate(document)
    except ValidationError as error:
        first = first_of(error)
        if first["loc"][:1] == ("checkpoint",):
            raise _invalid("checkpoint", "expected a step, 'latest' or 'best'") from None
        param, message = spec_errors.problem(Fork, first)
        raise _invalid(param or None, message) from None
    if fork.weights is not None and fork.sweep is not None:
        raise _invalid("sweep", "give weights for one job or a sweep for several, not both")
    if fork.steps is not None:
        for field in ("weights", "sweep", "changes"):
            if getattr(fork, field):
                raise _invalid(field, "a job goes on to `steps` as it is; steer the new job, or fork without `steps`")
        if fork.checkpoint != "latest":
            raise _invalid("checkpoint", "a job goes on to `steps` from its newest one: expected 'latest'")
    for field in ("init_checkpoint", "name"):
        if field in fork.changes:
            hint = "the fork's own field" if field == "name" else "the checkpoint says where a fork starts"
            raise _invalid(f"changes.{field}", hint)
    return fork


def _unusable(parent: str, step: int, error: CheckpointError) -> ApiProblem:
    """The log has the path, the answer has not."""
    log.warning("checkpoint %d of %s can't be forked: %s", step, parent, error)
    if isinstance(error, LaterFormat):
        message = f"step {step} was written by a later version, whose state this one can't read; go on with that "
        message += "version, or fork its policy alone, without `steps`"
    elif isinstance(error, Unreadable):
        message = "its files can't be read now, which the server's log has; try again, or take another checkpoint"
    else:
        message = "its files are gone or damaged; take another checkpoint"
    return ApiProblem(409, "checkpoint_unusable", message, param="checkpoint")


def _plan(store: JobStore, config: Settings, access: Access, parent: str, fork: Fork, find: Finder) -> dict[str, Any]:
    """What will be made: ids and whole specs, so that carrying it out twice makes the same jobs."""
    text = store.spec(parent)
    alignment_only(parse_json(text.encode()), "front to fork from")
    spec = read_stored(text)
    assert isinstance(spec, JobSpec), "of another kind it has no front"
    checkpoint = _checkpoint(store, parent, spec, fork.checkpoint)
    if fork.steps is not None:
        return _plan_to_go_on(store, config, access, parent, spec, checkpoint, fork)
    own_weights = fork.weights is not None or fork.sweep is not None
    begun = spec.model_dump(mode="json") if own_weights else steered(spec, store.steering_head(parent).current)
    wanted = merged(begun, fork.changes)
    try:
        wanted["init_checkpoint"] = str(find(parent, checkpoint) / "policy")
    except CheckpointError as error:
        raise _unusable(parent, checkpoint.step, error) from None
    base = checked_spec(wanted, access)
    assert isinstance(base, JobSpec), "a document with objectives is of no other kind"
    if "data" in fork.changes and isinstance(base.data, FilesData):
        _check_held_out(store, base.data, Origin(parent=parent, step=checkpoint.step))
    vectors: Sequence[_Weights | None] = fork.sweep if fork.sweep is not None else [fork.weights]
    name = fork.name or f"{spec.name[:96]} from {checkpoint.step}"
    jobs = []
    for i, vector in enumerate(vectors):
        field = "weights" if fork.sweep is None else f"sweep.{i}"
        new = f"job-{secrets.token_hex(6)}"
        document = fork_document(
            base,
            name=name if fork.sweep is None else f"{name} #{i + 1}",
            weights=None if vector is None else _scaled(base, vector, field),
            init=_init(config, new),
        )
        jobs.append({"id": new, "spec": text_of(parse_spec(document))})
    return {
        "parent": parent,
        "step": checkpoint.step,
        "path": checkpoint.path,
        "digest": checkpoint.digest,
        "jobs": jobs,
    }


def _check_held_out(store: JobStore, data: FilesData, origin: Origin | None) -> None:
    """Raises ApiProblem where a job that the policy comes from, as far as it is kept, has learnt what is held back."""
    while origin is not None:
        try:
            spec, record = json.loads(store.spec(origin.parent)), store.job(origin.parent)
        except JobNotFound:
            return
        if origin.step and holds_back_trained(data, spec):
            said = f"{origin.parent} was trained on prompts that this share holds back"
            use = "keep its share and seed, or a smaller share, or name files with other prompts"
            raise _invalid("changes.data.validation", f"{said}; {use}")
        origin = record.origin


def _plan_to_go_on(
    store: JobStore, config: Settings, access: Access, parent: str, spec: JobSpec, checkpoint: Checkpoint, fork: Fork
) -> dict[str, Any]:
    """One job, of the parent's spec and steering, whose first policy is the parent's first one.

    It is judged as one that is resumed: what only new jobs may not have, or is in the parent's directory alone, stays.
    """
    assert fork.steps is not None
    if fork.name is not None and (problem := problem_of_name(fork.name)) is not None:
        raise _invalid("name", problem)
    if fork.steps <= checkpoint.step:
        raise _invalid("steps", f"the job's newest checkpoint is of step {checkpoint.step} already; expected more")
    wanted = steered(spec, store.steering_head(parent).current)
    wanted |= {"steps": fork.steps, "name": fork.name or f"{spec.name[:96]} to {fork.steps}"}
    base, new = parse_spec(wanted), f"job-{secrets.token_hex(6)}"
    if problems := access.problems(base):
        raise spec_problem(problems)
    document = base.model_dump(mode="json")
    if document["init_checkpoint"] == str(_init(config, parent)):
        document["init_checkpoint"] = str(_init(config, new))
    return {
        "parent": parent,
        "step": checkpoint.step,
        "goes_on": True,
        "jobs": [{"id": new, "spec": text_of(parse_spec(document))}],
    }


def _copy_run(store: JobStore, config: Settings, plan: dict[str, Any]) -> None:
    """The parent's checkpoints up to the plan's, of which one that is elsewhere is fetched. As `copy_run`."""
    parent, new = plan["parent"], plan["jobs"][0]["id"]
    if _is_job(store, new):  # its driver may have been at them
        return
    kept = [found for found in store.checkpoints(parent) if found.step <= plan["step"]]
    if not kept or kept[-1].step != plan["step"]:
        raise CheckpointError("it is kept no more")
    directory, url = config.state_dir.absolute() / "jobs" / parent, config.checkpoint_store
    held = CheckpointStore(directory / "checkpoints", Remote(url, store.owner, parent) if url else None)
    held.registered = {found.step: found.digest for found in kept}
    held.directory(plan["step"])
    copy_run(directory, kept, config.state_dir.absolute() / "jobs" / new)


def _carry_out(
    store: JobStore,
    config: Settings,
    plan: dict[str, Any],
    by: Submitter,
    *,
    again: bool,
    find: Callable[[Checkpoint], Path],
) -> list[dict[str, Any]]:
    """First the policies, which must outlive the parent's, then the jobs. `again`: the caller can ask for the rest."""
    ids = [job["id"] for job in plan["jobs"]]
    try:
        if plan.get("goes_on"):
            _copy_run(store, config, plan)
        else:
            start = Checkpoint(step=plan["step"], path=plan["path"], digest=plan["digest"], metrics={}, on_front=False)
            copy_policy(start, [_init(config, new) for new in ids], find=find)
    except NoRoom:
        _forget(config, [] if again else ids)  # with a key, some of them may be jobs already
        raise _full() from None
    except CheckpointError as error:
        _forget(config, [] if again else ids)
        raise _unusable(plan["parent"], plan["step"], error) from None
    made: list[dict[str, Any]] = []
    for i, job in enumerate(plan["jobs"]):
        spec = parse_spec(json.loads(job["spec"]))
        origin = Origin(parent=plan["parent"], step=plan["step"])
        try:
            submission = _queued(store, job["id"], job["spec"], spec, by, origin)
        except ApiProblem as problem:
            _forget(config, [] if again else ids[i:])
            if made:
                problem.message += f"; made already: {', '.join(found['id'] for found in made)}"
            raise
        assert submission.job is not None
        made.append({**job_document(submission.job), "lineage": lineage(submission.job)})
    return made


def _queued(store: JobStore, job_id: str, text: str, spec: JobSpec, by: Submitter, origin: Origin) -> Submission:
    """Raises ApiProblem where its owner may have no more."""
    try:
        submission = store.submit(
            text,
            name=spec.name,
            job_id=job_id,
            steering=first_steering(spec),
            max_active=by.max_active,
            max_kept=by.max_kept,
            max_kept_bytes=by.max_kept_bytes,
            origin=origin,
            priority=spec.priority,
            by=by.name,
            may_take_gpus=may_take_gpus(spec),
            metadata=spec.metadata,
        )
    except GpuQuotaReached as error:
        raise gpu_quota_problem(error.hours) from None
    except KeepsTooMany as error:
        raise kept_problem(error) from None
    if submission.outcome is SubmitOutcome.QUOTA:
        raise quota_problem(by.max_active)
    return submission


def _check_room(store: JobStore, plan: dict[str, Any], by: Submitter) -> None:
    """Before anything is copied; each submission is checked again, as others may come first."""
    texts = [job["spec"] for job in plan["jobs"] if not _is_job(store, job["id"])]
    missing, max_active = len(texts), by.max_active
    if missing and any(may_take_gpus(parse_spec(json.loads(job["spec"]))) for job in plan["jobs"]):
        hours = read_gpu_hours(store.calls, store.owner)
        if hours.is_used_up:
            raise GpuQuotaReached(hours)
    if max_active is not None and missing and Census(store).active() + missing > max_active:
        problem = quota_problem(max_active)
        problem.message = f"{missing} more would be above the {max_active} jobs of an owner that may wait or run"
        raise problem
    kept, kept_bytes = Census(store).kept()
    if by.max_kept is not None and missing and kept + missing > by.max_kept:
        most = f"the {by.max_kept} jobs of an owner that are kept"
        raise KeepsTooMany(f"{missing} more would be above {most}: delete some that have ended")
    if by.max_kept_bytes is not None and missing and kept_bytes + sum(map(_kept_bytes, texts)) > by.max_kept_bytes:
        raise too_many_bytes(by.max_kept_bytes, f"{missing} more: ")


def _kept_bytes(text: str) -> int:
    """With its steering and metadata, as scripts/submit.lua counts it."""
    spec = parse_spec(json.loads(text))
    return len(text.encode()) + 3 * len(dumps(first_steering(spec))) + len(dumps(spec.metadata))


def _is_job(store: JobStore, job_id: str) -> bool:
    try:
        store.job(job_id)
    except JobNotFound:
        return False
    return True


def _full() -> ApiProblem:
    return ApiProblem(507, "storage_full", "the server has no room for a copy of this policy")


def _checkpoint(store: JobStore, job_id: str, spec: JobSpec, wanted: int | str) -> Checkpoint:
    kept = {found.step: found for found in store.checkpoints(job_id)}
    if wanted == "latest":
        step = max(kept, default=None)
    elif wanted == "best":
        found = scales(spec.model_dump(mode="json"))
        step = best_step(list(kept.values()), found, store.steering_head(job_id).current["weights"])
    else:
        step = int(wanted)
    if step is not None and step in kept:
        return kept[step]
    record = store.job(job_id)
    if not is_terminal(record.status) and (step is None or step > record.step):
        which = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise ApiProblem(425, "checkpoint_not_ready", f"there is no {which} yet", param="checkpoint")
    steps = ", ".join(str(found) for found in kept) or "none"
    problem = not_found(f"no such checkpoint is kept; kept steps: {steps}")
    problem.param = "checkpoint"
    raise problem


def _scaled(spec: JobSpec, weights: _Weights, field: str) -> dict[str, float]:
    try:
        steering = initial_steering(spec).model_dump(mode="json")
        return merge(steering, {"weights": weights}, spec.objective_names).weights
    except SteeringError as error:
        path = error.field.replace("weights", field, 1)
        raise _invalid(path, error.message) from None


def _init(config: Settings, job_id: str) -> Path:
    return config.state_dir.absolute() / "jobs" / job_id / "init"


def _forget(config: Settings, ids: Sequence[str]) -> None:
    """Directories of jobs that were not queued."""
    for job_id in ids:
        shutil.rmtree(_init(config, job_id).parent, ignore_errors=True)


def _invalid(param: str | None, message: str) -> ApiProblem:
    return ApiProblem(422, "invalid_fork", f"{param or 'body'}: {message}", param=param)


def _differences(
    first: str,
    scale: dict[str, list[float]],
    ways: dict[str, Any],
    other: str,
    its: dict[str, list[float]],
    its_ways: dict[str, Any],
) -> list[str]:
    if scale.keys() != its.keys():
        return [f"{first} and {other} have other objectives: {', '.join(scale)} and {', '.join(its)}"]
    found = []
    for name in scale:
        if ways[name] != its_ways[name]:
            found.append(f"{name}: {first} and {other} do not train it towards the same: {_way(ways[name])} is better "
                         f"in the one, {_way(its_ways[name])} in the other")  # fmt: skip
        elif scale[name] != its[name]:
            found.append(f"{name}: {first} and {other} measure it on other ranges or from another reference")
    return found


def _way(direction: dict[str, Any]) -> str:
    return f"nearer to {direction['target']:g}" if direction["better"] == "nearer" else str(direction["better"])


def _set_differently(store: JobStore, specs: dict[str, Any]) -> list[str]:
    """From the first of the jobs, whose own record of what they were made of comes with their first step."""
    made_of = {}
    for job_id in specs:
        told = (event.data for event in store.events(job_id).items if event.type == "job.software")
        made_of[job_id] = next(told, {})
    first, *others = specs
    return [line for job_id in others for line in set_differently(first, job_id, specs, made_of)]


def _alone(front: dict[str, Any]) -> dict[str, Any]:
    """A job on its own scale."""
    points = [point for point in front.get("points", []) if point["on_front"]]
    shown = [{"step": point["step"], "objectives": point["objectives"]} for point in points]
    return {"hypervolume": front.get("hypervolume"), "adds": None, "front": shown}
