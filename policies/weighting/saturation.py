"""SA-MRPO (2026): weight away from the objectives that are nearly solved."""

from __future__ import annotations

import torch

from policies.types import StepStats, Weights
from policies.weighting.base import Weighting
from policies.weighting.tilt import batch_mean, tilt


class SaturationAware(Weighting):
    """w_k proportional to preference_k * (1 - s_k)^gamma, s_k the batch's mean reward as a place in its range.

    Where every objective is at the upper end of its range, the weights are the preference. An objective that the batch
    did not measure counts as not saturated at all.
    """

    on_preference = "multiplies"

    def __init__(self, *, gamma: float = 0.5) -> None:
        self.gamma = gamma

    def update(self, stats: StepStats) -> Weights:
        places_K = stats.objectives.normalise(batch_mean(stats.rewards_PGK))
        left_K = 1 - torch.nan_to_num(places_K, nan=0.0)
        factors_K = left_K**self.gamma
        return tilt(stats.preference_K, factors_K, {"place": places_K, "factor": factors_K})
