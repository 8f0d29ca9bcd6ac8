"""DARA (2026): weight to the objectives that few groups can learn from."""

from __future__ import annotations

import torch

from policies.types import StepStats, Weights
from policies.weighting.base import Weighting
from policies.weighting.tilt import tilt

SLIVER = 1e-6  # of the declared range: a smaller spread within a group is no signal


class SignalShare(Weighting):
    """w_k proportional to preference_k * min(cap, sqrt(max_l pi_l / pi_k)), pi_k the share of groups where k varies.

    A group varies in k where its largest and smallest measured reward differ by more than a millionth of the range;
    groups that k does not apply to count as not varying. An objective that varies nowhere gets the cap. The largest
    share is that of the objectives with a preference. Where none of these varies, as with one rollout per group, the
    weights are the preference.
    """

    on_preference = "multiplies"

    def __init__(self, *, cap: float = 5.0) -> None:
        self.cap = cap

    def update(self, stats: StepStats) -> Weights:
        rewards_PGK = stats.rewards_PGK.double()
        missing_PGK = torch.isnan(rewards_PGK)
        largest_PK = torch.where(missing_PGK, -torch.inf, rewards_PGK).amax(dim=1)
        smallest_PK = torch.where(missing_PGK, torch.inf, rewards_PGK).amin(dim=1)
        low_K, high_K = stats.objectives.ranges_K2.double().unbind(dim=1)
        shares_K = (largest_PK - smallest_PK > SLIVER * (high_K - low_K)).double().mean(dim=0)
        largest = shares_K[stats.preference_K > 0].max()
        if float(largest) == 0:
            return Weights(weights_K=stats.preference_K.float(), because={"signal_share": shares_K})
        free_K = (largest / shares_K.clamp_min(1e-12)).sqrt()
        factors_K = free_K.clamp_max(self.cap)
        because = {"signal_share": shares_K, "factor": factors_K, "limit": (free_K > self.cap).double()}
        return tilt(stats.preference_K, factors_K, because)
