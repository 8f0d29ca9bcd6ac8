"""What several jobs found side by side: their fronts, and what each adds to the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.directions import scales
from policies.places import counted_values, read_scales

Json = dict[str, Any]
_POINTS, _POINTS_TIMES_JOBS = 4000, 16_000  # of one comparison: some seconds where volumes are approximated
_EXACT_POINTS = {1: _POINTS, 2: _POINTS, 3: _POINTS, 4: _POINTS, 5: 1000, 6: 200, 7: 60}  # by objectives: under 0.1 s


def corners(spec: Mapping[str, Any], told: Mapping[str, Any] | None = None) -> dict[str, list[float]]:
    """By objective: the ends of its range, and the value from which its volume is measured.

    `told`: the directions that the job's front has.
    """
    found, known = {}, scales(spec, told)
    for objective in spec["objectives"]:
        name, scale = objective["name"], known[objective["name"]]
        found[name] = [scale.low, scale.high, scale.corner(objective.get("reference"))]
    return found


def front_as_told(front: Json, spec: Mapping[str, Any]) -> Json:
    """A front's document, where an older job keeps its initial policy's point under the name of the corner."""
    if "initial" in front:
        return front
    corner = {name: found for name, (_, _, found) in corners(spec).items()}
    return {**front, "reference": corner, "initial": front.get("reference", {})}


def tested_points(front: Mapping[str, Any]) -> tuple[int, int]:
    """Of the front's points, how many have figures of the test split, whose volume is theirs alone; and all."""
    found = [point for point in front.get("points") or [] if point.get("on_front")]
    return sum(bool((point.get("test") or {}).get("sampled")) for point in found), len(found)


class TooManyPoints(ValueError):
    """More than is compared in one go."""


def compared(
    scale: Mapping[str, Sequence[float]],
    points: Mapping[str, Sequence[Json]],
    directions: Mapping[str, Json] | None = None,
) -> Json:
    """Fronts of jobs that share a scale (`corners`) and directions: volume of each and of all, and what each adds.

    points: by job, as the front's documents have them; those of a collapsed run take part in nothing. Raises
    TooManyPoints for what would take long. Exact where that is quick (exact volumes of 300 points in 7 objectives take
    seconds each), else approximated, all in the same way.
    """
    import numpy as np

    from policies.pareto import hypervolume, nondominated

    known = read_scales({name: (low, high) for name, (low, high, _) in scale.items()}, directions)
    names = list(scale)
    corner_K = np.array([known[name].place(scale[name][2]) for name in names])
    fronts = {}  # of each job alone: (its points that nothing of its own dominates, their places)
    for job, found in points.items():
        counted = zip(found, counted_values(found), strict=True)
        kept = [(point, values) for point, values in counted if not point["collapsed"]]
        eligible = [point for point, _ in kept]
        placed = [[known[name].place(values[name]) for name in names] for _, values in kept]
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
