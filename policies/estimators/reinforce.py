"""REINFORCE++ (arXiv 2501.03262): the scale comes from the whole batch, and the baseline from it or from the group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from policies.estimators.base import Estimator, combine, finish, whitening_factor
from policies.statistics import centre, whiten


@dataclass(frozen=True)
class Reinforce(Estimator):
    """A = whiten(sum_k w_k R_k) over the batch. Works with one rollout per prompt.

    An objective that was measured in no rollout of a prompt counts there as the batch's mean. With the baseline
    "group" (REINFORCE++-baseline) A = whiten(r - mean(r) of the G rollouts of a prompt), r = sum_k w_k R_k: 0 for a
    single rollout, and such an objective asks for nothing.
    """

    baseline: Literal["batch", "group"] = "batch"

    def __call__(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        return finish(whiten(combine(self.per_objective(rewards_PGK), weights_K)))

    def per_objective(self, rewards_PGK: Tensor) -> Tensor:
        """advantages_PGK = R_k - mean over the batch, or over the group."""
        return centre(rewards_PGK.double(), 1 if self.baseline == "group" else (0, 1))

    def factor(self, advantages_PGK: Tensor, weights_K: Tensor) -> float | None:
        """None where single objectives were not measured in a rollout: filling them in moves the batch's mean.

        What is filled in with its group's mean moves nothing.
        """
        missing_PGK = torch.isnan(advantages_PGK)
        partly = bool((missing_PGK.any(dim=2) & ~missing_PGK.all(dim=2)).any())
        return None if partly and self.baseline == "batch" else whitening_factor(advantages_PGK, weights_K)
