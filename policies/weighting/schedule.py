"""Weights by step, drawn up in advance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from policies.types import StepStats, Weights
from policies.weighting.base import Weighting


class Schedule(Weighting):
    """Piecewise linear between the points, constant before the first and after the last.

    A point is a step and every objective's weight there, scaled to sum to 1 before the line is drawn: from
    {a: 2, b: 2} to {a: 5, b: 0} the way leads over (0.75, 0.25). The preference plays no part: the schedule is one.
    """

    follows_preference = False

    def __init__(self, *, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        if not points:
            raise ValueError("a schedule needs at least one point")
        self.points = sorted(points, key=lambda point: point[0])

    def update(self, stats: StepStats) -> Weights:
        names = stats.objectives.names
        after = next((i for i, (step, _) in enumerate(self.points) if step >= stats.step), len(self.points) - 1)
        before = max(0, after - 1)
        (first, low), (last, high) = self.points[before], self.points[after]
        share = min(1.0, max(0.0, (stats.step - first) / (last - first))) if last > first else 1.0
        before_K, after_K = _share(low, names), _share(high, names)
        weights_K = torch.lerp(before_K, after_K, share)
        return Weights(weights_K=weights_K.float(), because={"before": before_K, "after": after_K})


def _share(weights: Mapping[str, float], names: tuple[str, ...]) -> Tensor:
    weights_K = torch.tensor([weights[name] for name in names], dtype=torch.float64)
    return weights_K / weights_K.sum()
