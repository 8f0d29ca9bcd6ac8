"""Our own: climb the volume that the policy's own point spans, at the steepness that its rewards really have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from policies.statistics import std
from policies.types import StepStats, Weights
from policies.weighting.base import Weighting
from policies.weighting.tilt import batch_mean, from_json, tilt, to_json


class LogVolume(Weighting):
    """w_k proportional to preference_k * s_k / max(q_k, least): gradient ascent on sum_k preference_k log q_k.

    q_k is the batch's mean reward as a place in its range, so with equal preferences the sum is the logarithm of the
    box below the policy's point, its share of the hypervolume where no objective has a reference: the box always
    begins at the ranges' lower ends. Its gradient is sum_k preference_k grad q_k / q_k, and grad q_k comes from
    R_k - mean_k = s_k Z_k with s_k the spread within groups: an estimator that standardises each objective (gdpo,
    mo_grpo) has divided by s_k, and this gives it back. So an objective that is solved, or that no rollout changes,
    asks for nothing, and one that is far behind asks for more. For estimators that combine rewards before they
    standardise, s_k would count twice.

    That is exact for one group, and without gates and transforms: s and q are of the raw rewards, Z is of what came of
    them. Over several groups s_k is their mean, also of those without spread, which have no part in Z_k: an objective
    that few groups vary in gets less than its gradient's share.

    q and s are exponential means that move by `rate` of the way each step, which keeps a batch's noise out. An
    objective that the batch did not measure keeps its own. Until something has varied, the weights are the preference;
    after that, where nothing varies, all s fade alike and keep their ratios.
    """

    on_preference = "multiplies"

    def __init__(self, *, rate: float = 0.3, least: float = 0.05) -> None:
        self.rate = rate
        self.least = least
        self._places_K: Tensor | None = None
        self._spreads_K: Tensor | None = None

    def update(self, stats: StepStats) -> Weights:
        low_K, high_K = stats.objectives.ranges_K2.double().unbind(dim=1)
        spreads_PK = std(stats.rewards_PGK.double(), 1).squeeze(1)
        measured_PK = ~torch.isnan(stats.rewards_PGK).all(dim=1)
        spread_K = torch.where(measured_PK, spreads_PK, torch.nan).nanmean(dim=0) / (high_K - low_K)
        self._spreads_K = self._moved(self._spreads_K, spread_K)
        self._places_K = self._moved(self._places_K, stats.objectives.normalise(batch_mean(stats.rewards_PGK)))
        factors_K = self._spreads_K / self._places_K.clamp_min(self.least)
        because = {
            "place": self._places_K,
            "spread": self._spreads_K,
            "factor": factors_K,
            "limit": (self._places_K < self.least).double(),
        }
        return tilt(stats.preference_K, torch.nan_to_num(factors_K, nan=0.0), because)

    def _moved(self, mean_K: Tensor | None, now_K: Tensor) -> Tensor:
        """The exponential mean, begun by an objective's first measurement; NaN before it."""
        if mean_K is None:
            return now_K
        moved_K = torch.where(torch.isnan(mean_K), now_K, mean_K + self.rate * (now_K - mean_K))
        return torch.where(torch.isnan(now_K), mean_K, moved_K)

    def state_dict(self) -> dict[str, Any]:
        return {"places": to_json(self._places_K), "spreads": to_json(self._spreads_K)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._places_K, self._spreads_K = from_json(state["places"]), from_json(state["spreads"])
