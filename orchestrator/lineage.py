"""New jobs from a checkpoint of another, and what several jobs found side by side.

A fork starts from a copy of the checkpoint's policy in its own directory, JOB/init, so that the parent's retention
can't take it away. Where it comes from stands in its record, which no document that a user sends can say.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.spec import JobSpec
from orchestrator.state.store import Checkpoint, JobRecord, JobStore
from orchestrator.steering import initial_steering
from orchestrator.storage.checkpoints import CheckpointError, verify
from orchestrator.storage.recovery import Survey, survey
from policies.disk import flush

Json = dict[str, Any]
MAX_FORKS = 32
_KINDS = ("name", "type")  # what says which variant of a branch is meant
_PLAN_TTL_S = 24 * 3600
ORPHAN_AGE_S = 3600.0
_POINTS, _POINTS_TIMES_JOBS = 4000, 16_000  # of one comparison: some seconds where volumes are approximated
_EXACT_POINTS = {1: _POINTS, 2: _POINTS, 3: _POINTS, 4: _POINTS, 5: 1000, 6: 200, 7: 60}  # by objectives: under 0.1 s


def lineage(record: JobRecord) -> Json | None:
    """{parent, step} of a job that was forked."""
    return None if record.origin is None else {"parent": record.origin.parent, "step": record.origin.step}


def merged(document: Mapping[str, Any], changes: Mapping[str, Any]) -> Json:
    """A document with some fields changed, branch by branch; lists are replaced.

    A branch that becomes another variant (another `name` or `type`) keeps nothing of the old one's options.
    """
    result = dict(document)
    for key, change in changes.items():
        old = result.get(key)
        if not (isinstance(change, Mapping) and isinstance(old, Mapping)):
            result[key] = change
        elif any(kind in change and change[kind] != old.get(kind) for kind in _KINDS):
            result[key] = dict(change)
        else:
            result[key] = merged(old, change)
    return result


def fork_document(spec: JobSpec, *, name: str, weights: Mapping[str, float] | None, init: Path) -> Json:
    """The spec of one fork. `init`: where its first policy will be."""
    document: Json = spec.model_dump(mode="json")
    document |= {"name": name, "init_checkpoint": str(init)}
    for objective in document["objectives"]:
        if weights is not None:
            objective["weight"] = weights[objective["name"]]
    return document


def steered(spec: JobSpec, steering: Mapping[str, Any]) -> Json:
    """The document of a job that begins with what another one is steered with."""
    document: Json = spec.model_dump(mode="json")
    if steering == initial_steering(spec).model_dump(mode="json"):
        return document
    for objective in document["objectives"]:
        name = objective["name"]
        objective |= {"weight": steering["weights"][name], "bounds": steering["bounds"][name]}
    document["steering"] |= {"mode": steering["mode"], "blend": steering["blend"]}
    return document


def best_step(
    checkpoints: Sequence[Checkpoint], ranges: Mapping[str, Sequence[float]], preference: Mapping[str, float]
) -> int | None:
    """Of the checkpoints on the front, the one with the highest preference-weighted total on the validation split.

    Values count by their place in the objective's range. Of equal ones the latest; None where none is on the front.
    """
    totals = {
        found.step: sum(preference[name] * _place(found.metrics["objectives"][name], ranges[name]) for name in ranges)
        for found in checkpoints
        if found.on_front and found.metrics.get("objectives", {}).keys() >= ranges.keys()
    }
    return max(totals, key=lambda step: (totals[step], step), default=None)


def _place(value: float, ends: Sequence[float]) -> float:
    return min(max((value - ends[0]) / (ends[1] - ends[0]), 0.0), 1.0)


# ----------------------------------------------------------------------------------- policies on disk


def copy_policy(
    checkpoint: Checkpoint,
    targets: Sequence[Path],
    *,
    find: Callable[[Checkpoint], Path] = lambda found: Path(found.path),
) -> None:
    """The checkpoint's policy, verified and flushed, at every target; those that are there stay.

    `find` says where this machine has the checkpoint. One copy is made, the others are links to its files where the
    disk has them. Raises CheckpointError, and NoRoom.
    """
    missing = [target for target in targets if not target.exists()]
    if not missing:
        return
    source = find(checkpoint)
    if verify(source, under="policy/").digest != checkpoint.digest:
        raise CheckpointError(f"step {checkpoint.step} is not the checkpoint that was registered; take another")
    try:
        _copy(source / "policy", missing[0], link=False)
        for target in missing[1:]:
            _copy(missing[0], target, link=True)
    except OSError as error:
        if is_full(error):
            raise NoRoom from error
        raise CheckpointError(
            f"can't copy the policy of step {checkpoint.step}: {error.strerror or 'a file failed'}; "
            "take another checkpoint if this one was dropped meanwhile"
        ) from error


class NoRoom(Exception):
    """The disk, or a quota on it, is full."""


def is_full(error: OSError | shutil.Error) -> bool:
    """Also of what copytree raises: an error with those of many files in it, as text."""
    full = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, shutil.Error):
        return any(f"[Errno {code}]" in str(why) for _, _, why in error.args[0] for code in full)
    return error.errno in full


@contextlib.contextmanager
def forking(state_dir: Path) -> Iterator[None]:
    """From the first copy until the jobs are queued: what is copied here is nobody's yet, and stays."""
    with _locked(state_dir, fcntl.LOCK_SH):
        yield


def drop_orphans(
    state_dir: Path, store: JobStore, *, older_than_s: float = ORPHAN_AGE_S, found: Survey | None = None
) -> list[str]:
    """Deletes copies that a crash left between copy and submission, and returns the ids of their jobs.

    Only a directory with nothing but a fork's copy in it, which no owner has a job for, nor a job that names it, nor a
    plan that may be asked for again. Nothing while a fork is under way, nor with a Redis that does not know the jobs
    of the other directories (`found`; looked at here if absent): to one that was emptied, the copies of all forks that
    wait would be nobody's.
    """
    jobs = state_dir / "jobs"
    try:
        with _locked(state_dir, fcntl.LOCK_EX | fcntl.LOCK_NB):
            candidates = [path for path in jobs.iterdir() if _is_bare_copy(path, older_than_s)] if jobs.is_dir() else []
            if not candidates or not (found or survey(store, state_dir)).fits:
                return []
            wanted = _named_jobs(store, {path.name for path in candidates}) | _planned_jobs(state_dir)
            orphans = [path for path in candidates if path.name not in wanted]
            for path in orphans:
                shutil.rmtree(path, ignore_errors=True)
            return [path.name for path in orphans]
    except BlockingIOError:
        return []


def _is_bare_copy(directory: Path, older_than_s: float) -> bool:
    """By the inodes' own times, since a copy has its files' dates."""
    if directory.is_symlink() or not directory.is_dir():
        return False
    names = [path.name for path in directory.iterdir()]
    if not all(name == "init" or name.startswith(".init-") for name in names):
        return False
    newest = max(path.lstat().st_ctime for path in [directory, *directory.rglob("*")])
    return time.time() - newest > older_than_s


def _named_jobs(store: JobStore, job_ids: set[str]) -> set[str]:
    """Those of the ids that are a job of some owner's, or stand in the spec of one as a path."""
    found: set[str] = set()
    for owner in store.owners():
        reader = store.of_owner(owner)
        after, more = None, True
        while more:
            page = reader.jobs(after=after, limit=100)
            for job in page.items:
                spec = reader.spec(job.job_id)
                found |= {job_id for job_id in job_ids if job_id == job.job_id or f"/{job_id}/" in spec}
                after = job.job_id
            more = page.has_more
    return found


def _planned_jobs(state_dir: Path) -> set[str]:
    """Those of the plans that are kept: who asks again gets what is missing of them."""
    found: set[str] = set()
    for path in (state_dir / "forks").glob("*.json"):
        with contextlib.suppress(FileNotFoundError, ValueError):
            if time.time() - path.stat().st_mtime <= _PLAN_TTL_S:
                document: Json = json.loads(path.read_text(encoding="utf-8"))
                found |= {job["id"] for job in document.get("jobs", [])}  # an answer has none
    return found


@contextlib.contextmanager
def _locked(state_dir: Path, how: int) -> Iterator[None]:
    """Between processes; the system unlocks for one that dies. Raises BlockingIOError with LOCK_NB."""
    (state_dir / "forks").mkdir(parents=True, exist_ok=True)
    with (state_dir / "forks" / "lock").open("a") as file:
        fcntl.flock(file, how)
        yield


def _copy(source: Path, target: Path, *, link: bool) -> None:
    """Whole or not there; whoever comes first with the same target wins."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    hidden = target.with_name(f".{target.name}-{secrets.token_hex(8)}")
    try:
        shutil.copytree(source, hidden, copy_function=_link if link else shutil.copy2)
        for path in [*hidden.rglob("*"), hidden]:
            flush(path)
        try:
            hidden.rename(target)
        except OSError:
            if not target.exists():
                raise
        for folder in (target.parent, target.parent.parent):
            flush(folder)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


# ----------------------------------------------------------------------------------- plans


class PlanConflict(ValueError):
    """The same Idempotency-Key came with another request."""


def plan_path(state_dir: Path, owner: str, parent: str, key: str) -> Path:
    """Where the plan of one Idempotency-Key is kept."""
    name = hashlib.sha256(json.dumps([owner, parent, key]).encode()).hexdigest()
    return state_dir / "forks" / f"{name}.json"


def kept_plan(path: Path, request: Any) -> Json | None:
    """The plan that was made for this request, for 24 h. Raises PlanConflict where it was for another."""
    try:
        if time.time() - path.stat().st_mtime > _PLAN_TTL_S:
            path.unlink()
            return None
        plan: Json = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if plan["request"] != _digest(request):
        raise PlanConflict("this Idempotency-Key was used with another body")
    return plan


def keep_plan(path: Path, request: Any, plan: Json) -> Json:
    """The plan that all who ask with this key carry out: the first that is kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - other.stat().st_mtime > _PLAN_TTL_S:
                other.unlink()
    _keep_first(path, {**plan, "request": _digest(request)})
    return kept_plan(path, request) or plan


def kept_answer(path: Path, plan: Json) -> Json | None:
    """What was answered when all of the plan had been carried out. `path` is the plan's."""
    try:
        answer: Json = json.loads(_answer_path(path, plan).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return answer


def keep_answer(path: Path, plan: Json, answer: Json) -> Json:
    """The answer that all who ask with this key get: the first that is kept."""
    _keep_first(_answer_path(path, plan), answer)
    return kept_answer(path, plan) or answer


def _answer_path(path: Path, plan: Json) -> Path:
    """Of this plan alone: one that follows it under the same key makes other jobs."""
    return path.with_name(f"{path.stem}-{_digest([job['id'] for job in plan['jobs']])[:32]}.json")


def _keep_first(path: Path, document: Json) -> None:
    """On the disk, unless another is there."""
    hidden = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    hidden.write_text(json.dumps(document), encoding="utf-8")
    flush(hidden)
    with contextlib.suppress(FileExistsError):
        os.link(hidden, path)
    hidden.unlink()


def _digest(request: Any) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


# ----------------------------------------------------------------------------------- side by side


def corners(spec: Mapping[str, Any]) -> dict[str, list[float]]:
    """By objective: the ends of its range, and the value from which its volume is measured."""
    found = {}
    for objective in spec["objectives"]:
        low, high = objective.get("range", (0.0, 1.0))
        reference = objective.get("reference")
        found[objective["name"]] = [low, high, low if reference is None else reference]
    return found


def front_as_told(front: Json, spec: Mapping[str, Any]) -> Json:
    """A front's document, where an older job keeps its initial policy's point under the name of the corner."""
    if "initial" in front:
        return front
    corner = {name: found for name, (_, _, found) in corners(spec).items()}
    return {**front, "reference": corner, "initial": front.get("reference", {})}


class TooManyPoints(ValueError):
    """More than is compared in one go."""


def compared(scale: Mapping[str, Sequence[float]], points: Mapping[str, Sequence[Json]]) -> Json:
    """Fronts of jobs that share a scale (`corners`): volume of each and of all, and what each adds to the others.

    points: by job, as the front's documents have them; those of a collapsed run take part in nothing. Raises
    TooManyPoints for what would take long. Exact where that is quick (exact volumes of 300 points in 7 objectives take
    seconds each), else approximated, all in the same way.
    """
    import numpy as np

    from policies.pareto import hypervolume, nondominated, normalise

    names = list(scale)
    ranges = [(scale[name][0], scale[name][1]) for name in names]
    corner_K = normalise([scale[name][2] for name in names], ranges)
    fronts = {}  # of each job alone: (its points that nothing of its own dominates, their places)
    for job, found in points.items():
        eligible = [point for point in found if not point["collapsed"]]
        placed = [normalise([point["objectives"][name] for name in names], ranges) for point in eligible]
        places_NK = np.array(placed, dtype=np.float64).reshape(len(placed), len(names))
        own_N = nondominated(places_NK)
        fronts[job] = ([point for point, keep in zip(eligible, own_N, strict=True) if keep], places_NK[own_N])

    rows = [(job, point) for job, (kept, _) in fronts.items() for point in kept]
    if len(rows) > _POINTS or len(rows) * len(points) > _POINTS_TIMES_JOBS:
        raise TooManyPoints(f"{len(rows)} points of {len(points)} jobs take too long to be compared")
    exact = len(rows) <= _EXACT_POINTS.get(len(names), 0)
    places_NK = np.concatenate([places for _, places in fronts.values()])
    jobs_N = np.array([job for job, _ in rows], dtype=object)
    on_front = nondominated(places_NK)
    union = hypervolume(places_NK[on_front], corner_K, exact=exact)
    data = {
        job: {
            "hypervolume": hypervolume(places, corner_K, exact=exact),
            "adds": _added(
                places_NK, jobs_N == job, on_front, union, lambda rest: hypervolume(rest, corner_K, exact=exact)
            ),
            "front": [_shown(point) for point in kept],
        }
        for job, (kept, places) in fronts.items()
    }
    front = [{"job": job, **_shown(point)} for (job, point), keep in zip(rows, on_front, strict=True) if keep]
    return {"hypervolume": union, "front": front, "jobs": data}


def _added(places_NK: Any, mine_N: Any, on_front: Any, union: float, volume: Callable[[Any], float]) -> float:
    """What the front of all loses without these: nothing where none of them is on it."""
    if not (mine_N & on_front).any():
        return 0.0
    return max(0.0, union - volume(places_NK[~mine_N]))


def _shown(point: Json) -> Json:
    return {"step": point["step"], "objectives": point["objectives"], "checkpoint": point.get("checkpoint", False)}
