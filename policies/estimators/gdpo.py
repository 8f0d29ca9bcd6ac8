"""Group reward-decoupled normalisation (arXiv 2601.05242): normalise each reward, then combine, then whiten."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from policies.estimators.base import combine, standardise, whiten


@dataclass(frozen=True)
class Gdpo:
    """A = whiten(sum_k w_k Z_k), Z_k the group's standardised reward k, 0 where it does not spread.

    Group-centred advantages have batch mean zero, so the whitening is one positive factor c, and the update gradient
    is exactly c * sum_k w_k g_k.
    """

    std_floor: float = 1e-6

    def __call__(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        return whiten(combine(self.per_objective(rewards_PGK), weights_K)).float()

    def per_objective(self, rewards_PGK: Tensor) -> Tensor:
        """advantages_PGK = Z_k."""
        objectives = rewards_PGK.double().unbind(dim=2)
        return torch.stack([standardise(rewards_PG, self.std_floor) for rewards_PG in objectives], dim=2)
