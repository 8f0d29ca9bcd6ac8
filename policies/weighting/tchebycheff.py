"""Smooth Tchebycheff scalarisation (arXiv 2402.19078): weight to the objective furthest below the best seen."""

from __future__ import annotations

import torch

from policies.types import StepStats, Weights
from policies.weighting.base import Weighting
from policies.weighting.tilt import tilt


class Tchebycheff(Weighting):
    """w_k proportional to preference_k * softmax_k(preference_k (z_k - q_k) / mu).

    It is the gradient of the smoothed max_k preference_k (z_k - q_k): q is the latest evaluation's point, z the best
    of each objective among the evaluations plus `margin`, all in [0, 1]. The larger mu, the nearer to the preference.
    Before the first evaluation, and at z itself without a margin, the weights are the preference.
    """

    needs = frozenset({"archive"})

    def __init__(self, *, mu: float = 0.1, margin: float = 0.0) -> None:
        self.mu = mu
        self.margin = margin

    def update(self, stats: StepStats) -> Weights:
        if stats.front is None:
            return Weights(weights_K=stats.preference_K.float())
        current_K = stats.front.current_K.double()
        seen_NK = torch.cat([stats.front.points_NK.double(), current_K[None]])
        gaps_K = seen_NK.amax(dim=0) + self.margin - current_K
        factors_K = torch.softmax(stats.preference_K.double() * gaps_K / self.mu, dim=0)
        return tilt(stats.preference_K, factors_K, {"gap": gaps_K, "factor": factors_K})
