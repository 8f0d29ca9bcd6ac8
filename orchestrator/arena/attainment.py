"""Fronts over seeds: what every seed, half of them and the luckiest attain, of two objectives at a time."""

from __future__ import annotations

import moocore
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Stairs = list[tuple[float, float]]


def attainment_stairs(fronts: list[Array], across: int, up: int) -> dict[str, Stairs]:
    """Edges of the regions attained by `every` seed, the `median` and `any` of them, from moocore's empirical
    attainment function.

    `fronts`: one points_NK in [0, 1]^K for each seed, larger is better. Each edge starts at the left side of the square
    and ends at its lower one. Seeds without a point attain nothing and are counted.
    """
    kept = [front_NK for front_NK in fronts if len(front_NK)]
    if not kept:
        return {}
    losses = np.concatenate([1.0 - front_NK[:, [across, up]] for front_NK in kept])
    sets = np.concatenate([np.full(len(front_NK), i) for i, front_NK in enumerate(kept, start=1)])
    levels = {"any": 100 / len(fronts), "median": 50.0, "every": 100.0}
    edges = {}
    for name, level in levels.items():
        share = level * len(fronts) / len(kept)  # of the seeds that have points
        surface = (
            moocore.eaf(losses, sets, percentiles=[min(share, 100.0)]) if share <= 100 + 1e-9 else np.empty((0, 3))
        )
        edges[name] = _stairs(1.0 - surface[:, :2])
    return edges


def _stairs(points_N2: Array) -> Stairs:
    """The edge of the region that these nondominated points dominate."""
    stairs: Stairs = [(0.0, float(points_N2[:, 1].max()) if len(points_N2) else 0.0)]
    for x, y in sorted(map(tuple, points_N2.tolist())):
        stairs += [(stairs[-1][0], y), (x, y)]
    return [*stairs, (stairs[-1][0], 0.0)]
