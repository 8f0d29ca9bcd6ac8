"""PAMA (arXiv 2508.07768): all weight to the objective with the least to gain from this batch."""

from __future__ import annotations

import torch

from policies.types import StepStats, Weights
from policies.weighting.base import Weighting
from policies.weighting.tilt import tilt


class LeastAdvantage(Weighting):
    """w = one-hot on argmin_k of the mean of max(A_k, 0) over the rollouts that were measured.

    That is the closed form of min over the simplex of (sum_k w_k a_k)^2. The paper then uses its scalar as every
    token's advantage, which loses whose doing it was; here the one-hot weights leave the objective's own A_k.

    Only objectives with a preference above 0 and with some advantage take part: one that does not vary has the least
    of all and nothing to learn from. Ties share by preference; without any candidate the weights are the preference.
    """

    on_preference = "multiplies"

    def update(self, stats: StepStats) -> Weights:
        missing_PGK = torch.isnan(stats.rewards_PGK) | torch.isnan(stats.advantages_PGK)
        gains_PGK = torch.where(missing_PGK, torch.nan, stats.advantages_PGK.double().clamp_min(0))
        gains_K = torch.nan_to_num(torch.nanmean(gains_PGK, dim=(0, 1)), nan=0.0)
        candidates_K = (gains_K > 0) & (stats.preference_K > 0)
        least = torch.where(candidates_K, gains_K, torch.inf).min()
        return tilt(stats.preference_K, (candidates_K & (gains_K <= least * (1 + 1e-9))).double(), {"gain": gains_K})
