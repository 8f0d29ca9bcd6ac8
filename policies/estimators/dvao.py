"""Variance-adaptive advantages (DVAO, arXiv 2605.25604): the objectives' spreads weigh their group's advantages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from policies.estimators.base import Estimator, combine, finish
from policies.statistics import centre, std


@dataclass(frozen=True)
class Dvao(Estimator):
    """A = sum_k w_k (R_k - mu_k) / sum_l w_l s_l, s_l the group's spread of reward l.

    That is sum_k v_k Z_k with v_k proportional to w_k s_k. It does not re-weight the objectives: within a group it is
    the combined reward times one positive factor, so it re-weights prompts: against grpo, those count less where
    objectives oppose each other. 0 where the weighted spread does not exceed the floor.
    """

    std_floor: float = 1e-6

    def __call__(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        rewards_PGK = rewards_PGK.double()
        spread_P1 = self._spread(rewards_PGK, weights_K)
        advantages_PG = combine(centre(rewards_PGK, 1), weights_K) / spread_P1
        return finish(torch.where(spread_P1 > self.std_floor, advantages_PG, 0.0))

    def summands(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        """(R_k - mu_k) / sum_l w_l s_l."""
        rewards_PGK = rewards_PGK.double()
        spread_P11 = self._spread(rewards_PGK, weights_K)[:, :, None]
        scaled_PGK = centre(rewards_PGK, 1) / spread_P11
        return torch.where((spread_P11 > self.std_floor) | torch.isnan(scaled_PGK), scaled_PGK, 0.0)

    def _spread(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        """spread_P1, above 0."""
        return (std(rewards_PGK, 1) @ weights_K.double()).clamp_min(torch.finfo(torch.float64).tiny)
