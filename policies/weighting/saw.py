"""SAW (arXiv 2606.07705): weight to the objectives whose rewards still differ between rollouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from policies.statistics import mean, std
from policies.types import StepStats, Weights
from policies.weighting.base import Weighting
from policies.weighting.tilt import tilt


class CoefficientOfVariation(Weighting):
    """w_k proportional to preference_k * max(floor, u_k), u an exponential mean of K CV_k / sum_l CV_l.

    CV = std / mean over the batch of the reward above the lower end of its range (the published code adds 3 to a reward
    in [-3, 3]), or above the batch's least reward where that is lower still. u starts at 1 and moves by `rate` of the
    way each step; rate 1 and floor 0 is the published code. An objective that the batch did not measure or that has no
    preference keeps its u and moves no other's: K counts those that take part. Where nothing varies, every u stays.
    """

    on_preference = "multiplies"

    def __init__(self, *, rate: float = 0.1, floor: float = 0.25) -> None:
        self.rate = rate
        self.floor = floor
        self._factors_K: Tensor | None = None

    def update(self, stats: StepStats) -> Weights:
        if self._factors_K is None:
            self._factors_K = torch.ones(len(stats.preference_K), dtype=torch.float64)
        rewards_NK = stats.rewards_PGK.double().flatten(0, 1)
        taking_K = (~torch.isnan(rewards_NK)).any(dim=0) & (stats.preference_K > 0)
        least_K = torch.where(torch.isnan(rewards_NK), torch.inf, rewards_NK).amin(dim=0)
        above_NK = rewards_NK - torch.minimum(stats.objectives.ranges_K2.double()[:, 0], least_K)
        tiny = torch.finfo(torch.float64).tiny
        variation_K = (std(above_NK, 0) / mean(above_NK, 0).clamp_min(tiny)).squeeze(0)
        variation_K = torch.where(taking_K, variation_K, 0.0)
        total = variation_K.sum()
        if float(total) > 1e-12:
            now_K = taking_K.sum() * variation_K / total
            moved_K = self._factors_K + self.rate * (now_K - self._factors_K)
            self._factors_K = torch.where(taking_K, moved_K, self._factors_K)
        factors_K = self._factors_K.clamp_min(self.floor)
        limits_K = -(self._factors_K < self.floor).double()
        because = {"variation": variation_K.where(taking_K, torch.nan), "factor": factors_K, "limit": limits_K}
        return tilt(stats.preference_K, factors_K, because)

    def state_dict(self) -> dict[str, Any]:
        return {"factors": None if self._factors_K is None else self._factors_K.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        factors = state["factors"]
        self._factors_K = None if factors is None else torch.tensor(factors, dtype=torch.float64)
