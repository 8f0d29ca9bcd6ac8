"""REINFORCE leave-one-out (arXiv 2402.14740): the baseline is the mean of the group's other rollouts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from policies.estimators.base import Estimator, combine, finish
from policies.statistics import centre


@dataclass(frozen=True)
class Rloo(Estimator):
    """A_g = r_g - mean of the other r = G / (G - 1) (r_g - mean(r)), r = sum_k w_k R_k; 0 for a single rollout.

    For each objective, G counts the rollouts in which it was measured.
    """

    def __call__(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        return finish(combine(self.per_objective(rewards_PGK), weights_K))

    def per_objective(self, rewards_PGK: Tensor) -> Tensor:
        """advantages_PGK: the rule is linear in the rewards."""
        count_P1K = (~torch.isnan(rewards_PGK)).sum(dim=1, keepdim=True)
        return count_P1K / (count_P1K - 1).clamp_min(1) * centre(rewards_PGK.double(), 1)

    def factor(self, advantages_PGK: Tensor, weights_K: Tensor) -> float:
        del advantages_PGK, weights_K
        return 1.0
