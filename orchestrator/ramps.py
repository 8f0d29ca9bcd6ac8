"""A steer that takes effect over several steps: the applied weights go to its target on a straight line.

The line begins at what the step before applied, brought within the new bounds, which hold at once. Its end is what the
new steering makes of the strategy's choice at each step. The strategy reads a new preference at once: in mode auto what
it chooses comes in gradually.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from orchestrator.steering import Steering, apply_steering


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """Of one version of the steering. `start` has a minus where an objective is pushed down."""

    version: int
    first: int  # the step that goes the first part of the way
    over: int
    start: dict[str, float]

    @classmethod
    def begin(cls, step: int, version: int, steering: Steering, applied: Mapping[str, float]) -> Self:
        """From the signed weights that were `applied` last."""
        amounts = {name: abs(weight) for name, weight in applied.items()}
        inside = _within_bounds(steering, amounts)
        start = {name: math.copysign(inside[name], weight) for name, weight in applied.items()}
        return cls(version=version, first=step, over=steering.over, start=start)

    @property
    def last(self) -> int:
        """The step that applies the target."""
        return self.first + self.over - 1

    def weights(
        self, step: int, steering: Steering, target: Mapping[str, float], signs: Mapping[str, float]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """(the weights of a step, the sign of each objective), from those that would be applied at once."""
        if step >= self.last:
            return dict(target), dict(signs)
        share = (step - self.first + 1) / self.over
        mixed = {name: (1 - share) * self.start[name] + share * signs[name] * weight for name, weight in target.items()}
        total = math.fsum(abs(value) for value in mixed.values())
        if total < 1e-12:  # up and down cancel altogether
            return dict(target), dict(signs)
        turned = {name: signs[name] if value == 0 else math.copysign(1.0, value) for name, value in mixed.items()}
        return _within_bounds(steering, {name: abs(value) / total for name, value in mixed.items()}), turned

    def figures(self, step: int, target: Mapping[str, float]) -> dict[str, Any]:
        """For the step's record."""
        return {"step": step - self.first + 1, "of": self.over, "target": dict(target)}


def _within_bounds(steering: Steering, amounts: Mapping[str, float]) -> dict[str, float]:
    return apply_steering(steering.model_copy(update={"mode": "auto"}), amounts)
