"""Where a held-out figure lies between the worst (0) and the best (1) of its objective's range.

The one place that knows which way an objective is better: the front, its volumes, `best`, the watch for a collapse and
comparisons all count places. Nothing here imports more than the standard library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Better = Literal["larger", "smaller", "nearer"]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The range of an objective, and whether larger or smaller is better, or what is nearer to a target."""

    low: float
    high: float
    better: Better = "larger"
    target: float | None = None  # of "nearer"

    def place(self, value: float) -> float:
        """In [0, 1], larger is better; values, and a target, outside the range count as its nearer end."""
        clipped = self._clipped(value)
        if self.better == "smaller":
            return (self.high - clipped) / (self.high - self.low)
        if self.better == "nearer":
            return 1.0 - abs(clipped - self._aim) / self.width
        return (clipped - self.low) / (self.high - self.low)

    @property
    def width(self) -> float:
        """Raw units between the places 0 and 1."""
        if self.better == "nearer":
            return max(self._aim - self.low, self.high - self._aim)
        return self.high - self.low

    @property
    def worst(self) -> float:
        """The raw value at place 0."""
        if self.better == "nearer":
            return self.low if self._aim - self.low >= self.high - self._aim else self.high
        return self.high if self.better == "smaller" else self.low

    def corner(self, reference: float | None) -> float:
        """The raw value that volumes are measured from: the reference, unless nothing is better than that."""
        return self.worst if reference is None or self.place(reference) >= 1.0 else reference

    @property
    def direction(self) -> dict[str, Any]:
        """As documents have it."""
        return {"better": self.better, "target": self.target}

    @property
    def _aim(self) -> float:
        assert self.target is not None, "what is to be near a target has one"
        return self._clipped(self.target)

    def _clipped(self, value: float) -> float:
        return min(max(value, self.low), self.high)


def is_gated(points: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a front's points are ranked after the gates; those of older jobs say nothing of them."""
    return len(points) > 0 and all(point.get("counted") for point in points)


def counted_values(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, float]]:
    """What each point of a front's document counts with: its means after the gates, where every point says them."""
    gated = is_gated(points)
    return [(point["counted"] if gated else point.get("objectives")) or {} for point in points]


def read_scales(
    ranges: Mapping[str, Iterable[float]], directions: Mapping[str, Mapping[str, Any]] | None
) -> dict[str, Scale]:
    """From a front's document; those of older jobs say no directions, and larger was better."""
    found = {}
    for name, (low, high) in ranges.items():
        direction = (directions or {}).get(name) or {}
        better: Better = direction.get("better", "larger")
        found[name] = Scale(low=float(low), high=float(high), better=better, target=direction.get("target"))
    return found
