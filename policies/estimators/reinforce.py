"""REINFORCE++ (arXiv 2501.03262): the baseline and the scale come from the whole batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from policies.estimators.base import Estimator, combine, finish, whitening_factor
from policies.statistics import centre, whiten


@dataclass(frozen=True)
class Reinforce(Estimator):
    """A = whiten(sum_k w_k R_k) over the batch. Works with one rollout per prompt.

    An objective that was measured in no rollout of a prompt counts there as the batch's mean.
    """

    def __call__(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        return finish(whiten(combine(self.per_objective(rewards_PGK), weights_K)))

    def per_objective(self, rewards_PGK: Tensor) -> Tensor:
        """advantages_PGK = R_k - mean over the batch."""
        return centre(rewards_PGK.double(), (0, 1))

    def factor(self, advantages_PGK: Tensor, weights_K: Tensor) -> float | None:
        """None where single objectives were not measured in a rollout: filling them in moves the batch's mean."""
        missing_PGK = torch.isnan(advantages_PGK)
        partly = bool((missing_PGK.any(dim=2) & ~missing_PGK.all(dim=2)).any())
        return None if partly else whitening_factor(advantages_PGK, weights_K)
