"""New jobs from a checkpoint of another, and what several jobs found side by side.

A fork starts from a copy of the checkpoint's policy in its own directory, JOB/init, so that the parent's retention
can't take it away. Where it comes from stands in its spec's metadata.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.checkpoints import CheckpointError, verify
from orchestrator.spec import JobSpec
from orchestrator.store import Checkpoint

Json = dict[str, Any]
MAX_FORKS = 32
PARENT, PARENT_STEP = "equipoise.parent", "equipoise.parent_step"
_KINDS = ("name", "type")  # what says which variant of a branch is meant
_PLAN_TTL_S = 24 * 3600


def lineage(spec: Mapping[str, Any]) -> Json | None:
    """{parent, step} of a job that was forked."""
    metadata = spec.get("metadata", {})
    if PARENT not in metadata or not metadata.get(PARENT_STEP, "").isdecimal():
        return None
    return {"parent": metadata[PARENT], "step": int(metadata[PARENT_STEP])}


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


def fork_document(spec: JobSpec, *, name: str, weights: Mapping[str, float] | None, origin: Json, init: Path) -> Json:
    """The spec of one fork. `origin`: its lineage; `init`: where its first policy will be."""
    document: Json = spec.model_dump(mode="json")
    document |= {"name": name, "init_checkpoint": str(init)}
    document["metadata"] |= {PARENT: origin["parent"], PARENT_STEP: str(origin["step"])}
    for objective in document["objectives"]:
        if weights is not None:
            objective["weight"] = weights[objective["name"]]
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
    disk has them. Raises CheckpointError.
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
        raise CheckpointError(
            f"can't copy the policy of step {checkpoint.step}: {error.strerror or 'a file failed'}; "
            "free space, or take another checkpoint if this one was dropped meanwhile"
        ) from error


def _copy(source: Path, target: Path, *, link: bool) -> None:
    """Whole or not there; whoever comes first with the same target wins."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    hidden = target.with_name(f".{target.name}-{secrets.token_hex(8)}")
    try:
        shutil.copytree(source, hidden, copy_function=_link if link else shutil.copy2)
        for path in [*hidden.rglob("*"), hidden]:
            _flush(path)
        try:
            hidden.rename(target)
        except OSError:
            if not target.exists():
                raise
        for folder in (target.parent, target.parent.parent):
            _flush(folder)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    hidden = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    hidden.write_text(json.dumps({**plan, "request": _digest(request)}), encoding="utf-8")
    _flush(hidden)
    with contextlib.suppress(FileExistsError):
        os.link(hidden, path)
    hidden.unlink()
    return kept_plan(path, request) or plan


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


def compared(scale: Mapping[str, Sequence[float]], points: Mapping[str, Sequence[Json]]) -> Json:
    """Fronts of jobs that share a scale (`corners`): volume of each and of all, and what each adds to the others.

    points: by job, as the front's documents have them; those of a collapsed run take part in nothing.
    """
    import numpy as np

    from policies.pareto import hypervolume, nondominated, normalise

    names = list(scale)
    ranges = [(scale[name][0], scale[name][1]) for name in names]
    corner_K = normalise([scale[name][2] for name in names], ranges)
    rows = [(job, point) for job, found in points.items() for point in found if not point["collapsed"]]
    placed = [normalise([point["objectives"][name] for name in names], ranges) for _, point in rows]
    places_NK = np.array(placed, dtype=np.float64).reshape(len(rows), len(names))
    jobs_N = np.array([job for job, _ in rows], dtype=object)
    union = hypervolume(places_NK, corner_K)
    on_front = nondominated(places_NK)
    data = {}
    for job, found in points.items():
        mine_N = jobs_N == job
        own = nondominated(places_NK[mine_N])
        mine = [point for point in found if not point["collapsed"]]
        data[job] = {
            "hypervolume": hypervolume(places_NK[mine_N], corner_K),
            "adds": max(0.0, union - hypervolume(places_NK[~mine_N], corner_K)),
            "front": [_shown(point) for point, keep in zip(mine, own, strict=True) if keep],
        }
    front = [{"job": job, **_shown(point)} for (job, point), keep in zip(rows, on_front, strict=True) if keep]
    return {"hypervolume": union, "front": front, "jobs": data}


def _shown(point: Json) -> Json:
    return {"step": point["step"], "objectives": point["objectives"], "checkpoint": point.get("checkpoint", False)}
