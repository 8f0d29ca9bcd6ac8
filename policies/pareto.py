"""The Pareto archive: which evaluated policies are on the front, and how much of the objective space it covers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray

from policies.places import read_scales

Array = NDArray[np.float64]

EXACT_OBJECTIVES = 7
EXACT_POINTS = {6: 400, 7: 150}  # of a front, by objectives: half a second; 300 in 7 objectives take five


def hypervolume(points_NK: Array, reference_K: Array | None = None, *, exact: bool | None = None) -> float:
    """Share of the box above the reference that at least one point dominates; points in [0, 1]^K, larger is better.

    Computed by moocore, exactly up to EXACT_OBJECTIVES and EXACT_POINTS, and by its deterministic approximation (to
    about three digits) above: the exact volume's time is exponential in K (15 points in 20 objectives: over a second).
    Without a reference the corner is 0, every objective at the lower end of its range. A point that is not better than
    the reference in every objective adds nothing. `exact` chooses for those who compare volumes with each other.
    """
    if len(points_NK) == 0:
        return 0.0
    corner_K = np.zeros(points_NK.shape[1]) if reference_K is None else reference_K
    above_NK = points_NK[(points_NK > corner_K).all(axis=1)]  # moocore wants none below the reference
    if len(above_NK) == 0:
        return 0.0
    if exact is None:
        exact = _is_quick(above_NK)
    volume = (moocore.hypervolume if exact else moocore.hv_approx)(above_NK, ref=corner_K, maximise=True)
    return float(volume / np.prod(1.0 - corner_K))


def _is_quick(points_NK: Array) -> bool:
    """Whether an exact volume is: only points that no other dominates cost time."""
    most = EXACT_POINTS.get(points_NK.shape[1])
    if most is None or len(points_NK) <= most:
        return bool(points_NK.shape[1] <= EXACT_OBJECTIVES)
    return bool(nondominated(points_NK).sum() <= most)


def nondominated(points_NK: Array) -> NDArray[np.bool_]:
    """Which points no other point dominates. Of equal points the first is kept."""
    if len(points_NK) == 0:
        return np.zeros(0, dtype=bool)
    return np.asarray(moocore.is_nondominated(points_NK, maximise=True, keep_weakly=False), dtype=bool)


def normalise(values_K: Sequence[float], ranges_K: Sequence[tuple[float, float]]) -> Array:
    """Each value's place in its declared range, clipped to [0, 1].

    Without it the hypervolume follows whichever objective has the largest unit.
    """
    low_K, high_K = np.array(ranges_K, dtype=np.float64).reshape(-1, 2).T
    clipped: Array = np.clip((np.asarray(values_K, dtype=np.float64) - low_K) / (high_K - low_K), 0.0, 1.0)
    return clipped


@dataclass(frozen=True, kw_only=True)
class Point:
    """One evaluated policy: raw objective means by name, and whether the run had collapsed there.

    `counted`: the means after the gates, by which it is ranked; None where no objective has a gate.
    """

    step: int
    objectives: dict[str, float]
    mean_tokens: float
    collapsed: bool = False
    counted: dict[str, float] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class Archive:
    """Evaluated policies in the order of their steps, the initial policy first.

    Two volumes: `hypervolume` measures from the references, or the worse ends of the ranges, so the initial policy
    itself has one (`hypervolume_base`); `hypervolume_over_base` measures from the initial policy's own point, so it
    counts only policies that are better in every objective. Points of a collapsed run are kept and shown, and never on
    the front. An objective's `direction` turns its places (policies/places.py); what points say stays raw.
    """

    def __init__(
        self,
        ranges: Mapping[str, tuple[float, float]],
        references: Mapping[str, float] | None = None,
        directions: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """`references`: the corner in raw units, where it is not the range's worse end. Larger is better without
        `directions`."""
        self.scales = read_scales(ranges, directions)
        self.references = dict(references or {})
        self.points: list[Point] = []
        self._volumes: dict[int, float] = {}  # by step, of the points up to it, as far as known: each is dear

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        return {name: (scale.low, scale.high) for name, scale in self.scales.items()}

    @property
    def directions(self) -> dict[str, dict[str, Any]]:
        return {name: scale.direction for name, scale in self.scales.items()}

    @property
    def is_turned(self) -> bool:
        """Whether larger is not better for all of them."""
        return any(scale.better != "larger" for scale in self.scales.values())

    def add(self, point: Point) -> float:
        """Put in an evaluated policy; the growth of the hypervolume, >= 0. The same step again replaces the point."""
        if set(point.objectives) != set(self.scales):
            raise ValueError(f"expected objectives {sorted(self.scales)}, got {sorted(point.objectives)}")
        self.points = [other for other in self.points if other.step != point.step]
        self._forget_volumes(point.step)
        before = self.hypervolume
        self._forget_volumes(point.step)  # what has just been found lacks the point
        self.points.append(point)
        self.points.sort(key=lambda other: other.step)
        return max(0.0, self.hypervolume - before)

    @property
    def corner(self) -> dict[str, float]:
        """From which the hypervolume is measured, in raw units."""
        return {name: scale.corner(self.references.get(name)) for name, scale in self.scales.items()}

    @property
    def reference_K(self) -> Array:
        """The corner, normalised."""
        return self._placed(self.corner)

    @property
    def eligible(self) -> list[Point]:
        return [point for point in self.points if not point.collapsed]

    def normalised(self, points: Sequence[Point]) -> Array:
        """points_NK in [0, 1], larger is better.

        By what counts after the gates, where every point says it: those of an older version say raw means alone, and
        raw ones are not ranked beside gated ones.
        """
        gated = self.is_gated(points)
        rows = [self._placed(point.counted if gated and point.counted else point.objectives) for point in points]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.scales))

    def is_gated(self, points: Sequence[Point]) -> bool:
        """Whether these are ranked by what counts after the gates."""
        return all(point.counted is not None for point in [*self.points, *points])

    def _placed(self, values: Mapping[str, float]) -> Array:
        return np.array([scale.place(values[name]) for name, scale in self.scales.items()], dtype=np.float64)

    def above_reference(self, points: Sequence[Point]) -> Array:
        """points_NK in the box between the references (0) and the better ends (1)."""
        scaled: Array = np.clip((self.normalised(points) - self.reference_K) / (1.0 - self.reference_K), 0.0, 1.0)
        return scaled

    @property
    def front(self) -> list[Point]:
        kept = nondominated(self.normalised(self.eligible))
        return [point for point, on_front in zip(self.eligible, kept, strict=True) if on_front]

    def volume(self, points: Sequence[Point]) -> float:
        """Of any points, from the archive's corner."""
        return hypervolume(self.normalised(points), self.reference_K)

    @property
    def hypervolume(self) -> float:
        return self._volume(self.eligible)

    @property
    def hypervolume_base(self) -> float:
        return self.volume(self.points[:1])

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
        volumes = (self._volume(points[: i + 1]) for i in range(len(points)))
        rising = itertools.accumulate(volumes, max)  # against the last digit's rounding
        return [(point.step, volume) for point, volume in zip(points, rising, strict=True)]

    def _volume(self, points: Sequence[Point]) -> float:
        """Of the eligible points up to the last of these."""
        if not points:
            return 0.0
        if (step := points[-1].step) not in self._volumes:
            self._volumes[step] = hypervolume(self.normalised(points), self.reference_K)
        return self._volumes[step]

    def _forget_volumes(self, step: int) -> None:
        """Those from this step on."""
        self._volumes = {known: volume for known, volume in self._volumes.items() if known < step}

    def state_dict(self) -> dict[str, Any]:
        return {
            "ranges": {name: list(ends) for name, ends in self.ranges.items()},
            "directions": self.directions,
            "references": dict(self.references),
            "points": [vars(p) for p in self.points],
            "volumes": [list(pair) for pair in sorted(self._volumes.items())],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """A state without directions is of a version that took larger for better: the collapses that it saw in an
        objective that is to fall were none."""
        self.scales = read_scales(state["ranges"], state.get("directions", self.directions))
        self.references = dict(state["references"])
        known = {one.name for one in fields(Point)}  # a later version's points may say more
        self.points = [Point(**{name: point[name] for name in known & point.keys()}) for point in state["points"]]
        if "directions" not in state and self.is_turned:
            self.points = [replace(point, collapsed=False) for point in self.points]
        self._volumes = dict(state.get("volumes", []))  # absent: of an earlier version
