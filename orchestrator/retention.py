"""Which of the front's checkpoints stay where there are more than `checkpoints.front`."""

from __future__ import annotations

from collections.abc import Collection

import moocore
import numpy as np

from policies.pareto import EXACT_OBJECTIVES, Archive, Array, hypervolume, nondominated

_SAMPLES = 4096  # above EXACT_OBJECTIVES: of a point's own box, in a few milliseconds


def widest(archive: Archive, steps: Collection[int], at_most: int, *, always: Collection[int]) -> set[int]:
    """Of these steps the `at_most` that hold most of the hypervolume alone, those of `always` among them.

    In the order of the steps: one comes, and the one that the others need least goes. So the choice is that of a run
    that asked after each of its evaluations.
    """
    points = [point for point in archive.points if point.step in steps]
    places = dict(zip((point.step for point in points), archive.above_reference(points), strict=True))
    kept: list[int] = []
    for step in sorted(places):
        kept.append(step)
        free = [other for other in kept if other not in always]
        if len(kept) > at_most and free:
            alone = [held_alone(places[one], np.array([places[o] for o in kept if o != one])) for one in free]
            kept.remove(free[int(np.argmin(alone))])
    return set(kept)


def held_alone(point_K: Array, others_NK: Array) -> float:
    """The volume between 0 and the point that none of the others dominates: its box less theirs within it."""
    box = float(np.prod(point_K))
    within_NK = np.minimum(point_K, others_NK)
    within_NK = within_NK[nondominated(within_NK)]
    if len(point_K) <= EXACT_OBJECTIVES:
        return box - hypervolume(within_NK)
    above_NK = within_NK[(within_NK > 0).all(axis=1)]
    if box == 0 or len(above_NK) == 0:
        return box
    return box - float(moocore.hv_approx(above_NK, ref=np.zeros_like(point_K), maximise=True, nsamples=_SAMPLES))
