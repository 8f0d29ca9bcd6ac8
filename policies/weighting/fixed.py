"""The person's preference, as it is: the baseline of every comparison."""

from __future__ import annotations

from policies.types import StepStats, Weights
from policies.weighting.base import Weighting


class Fixed(Weighting):
    """w = preference."""

    on_preference = "repeats"

    def update(self, stats: StepStats) -> Weights:
        return Weights(weights_K=stats.preference_K)
