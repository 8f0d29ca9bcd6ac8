"""The Pareto archive: which evaluated policies are on the front, and how much of the objective space it covers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def hypervolume(points_NK: Array) -> float:
    """Volume of [0, 1]^K that at least one point dominates, in [0, 1]; points are normalised, larger is better.

    Computed by moocore, with 0 (every objective at the lower end of its range) as the corner.
    """
    if len(points_NK) == 0:
        return 0.0
    return float(moocore.hypervolume(points_NK, ref=np.zeros(points_NK.shape[1]), maximise=True))


def nondominated(points_NK: Array) -> NDArray[np.bool_]:
    """Which points no other point dominates. Of equal points the first is kept."""
    if len(points_NK) == 0:
        return np.zeros(0, dtype=bool)
    return np.asarray(moocore.is_nondominated(points_NK, maximise=True, keep_weakly=False), dtype=bool)


def normalise(values_K: Sequence[float], ranges_K: Sequence[tuple[float, float]]) -> Array:
    """Each value's place in its declared range, clipped to [0, 1].

    Without it the hypervolume follows whichever objective has the largest unit.
    """
    low_K, high_K = np.array(ranges_K, dtype=np.float64).T
    clipped: Array = np.clip((np.asarray(values_K, dtype=np.float64) - low_K) / (high_K - low_K), 0.0, 1.0)
    return clipped


@dataclass(frozen=True, kw_only=True)
class Point:
    """One evaluated policy: raw objective means by name, and whether the run had collapsed there."""

    step: int
    objectives: dict[str, float]
    mean_tokens: float
    collapsed: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


class Archive:
    """Evaluated policies in the order of their steps, the initial policy first.

    Two volumes: `hypervolume` measures from the lower end of every range, so the initial policy itself has one
    (`hypervolume_base`); `hypervolume_over_base` measures from the initial policy's own point, so it counts only
    policies that are better in every objective. Points of a collapsed run are kept and shown, and never on the front.
    """

    def __init__(self, ranges: Mapping[str, tuple[float, float]]) -> None:
        self.ranges = dict(ranges)
        self.points: list[Point] = []

    def add(self, point: Point) -> float:
        """Put in an evaluated policy; the growth of the hypervolume, >= 0. The same step again replaces the point."""
        if set(point.objectives) != set(self.ranges):
            raise ValueError(f"expected objectives {sorted(self.ranges)}, got {sorted(point.objectives)}")
        self.points = [other for other in self.points if other.step != point.step]
        before = self.hypervolume
        self.points.append(point)
        self.points.sort(key=lambda other: other.step)
        return max(0.0, self.hypervolume - before)

    @property
    def eligible(self) -> list[Point]:
        return [point for point in self.points if not point.collapsed]

    def normalised(self, points: Sequence[Point]) -> Array:
        """points_NK in [0, 1]."""
        rows = [
            normalise([point.objectives[name] for name in self.ranges], list(self.ranges.values())) for point in points
        ]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.ranges))

    @property
    def front(self) -> list[Point]:
        kept = nondominated(self.normalised(self.eligible))
        return [point for point, on_front in zip(self.eligible, kept, strict=True) if on_front]

    @property
    def hypervolume(self) -> float:
        return hypervolume(self.normalised(self.eligible))

    @property
    def hypervolume_base(self) -> float:
        return hypervolume(self.normalised(self.points[:1]))

    @property
    def hypervolume_over_base(self) -> float:
        """Volume gained with the initial policy's point as the corner, as a share of what is left above it."""
        if not self.points:
            return 0.0
        base_K = self.normalised(self.points[:1])[0]
        room_K = np.maximum(1.0 - base_K, 1e-12)
        return hypervolume(np.clip((self.normalised(self.eligible) - base_K) / room_K, 0.0, 1.0))

    def hypervolume_by_step(self) -> list[tuple[int, float]]:
        """(step, hypervolume of the points up to it), never falling."""
        points = self.eligible
        volumes = (hypervolume(self.normalised(points[: i + 1])) for i in range(len(points)))
        rising = itertools.accumulate(volumes, max)  # against the last digit's rounding
        return [(point.step, volume) for point, volume in zip(points, rising, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {
            "ranges": {name: list(ends) for name, ends in self.ranges.items()},
            "points": [vars(p) for p in self.points],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.ranges = {name: (float(low), float(high)) for name, (low, high) in state["ranges"].items()}
        self.points = [Point(**point) for point in state["points"]]
