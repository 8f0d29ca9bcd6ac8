"""REINFORCE leave-one-out (arXiv 2402.14740): the baseline is the mean of the group's other rollouts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from policies.estimators.base import combine


@dataclass(frozen=True)
class Rloo:
    """A_g = r_g - mean of the other r = G / (G - 1) (r_g - mean(r)), r = sum_k w_k R_k; 0 for a single rollout."""

    def __call__(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        rewards_PG = combine(rewards_PGK, weights_K)
        groups = rewards_PG.shape[1]
        if groups == 1:
            return torch.zeros_like(rewards_PG, dtype=torch.float32)
        return (groups / (groups - 1) * (rewards_PG - rewards_PG.mean(dim=1, keepdim=True))).float()
