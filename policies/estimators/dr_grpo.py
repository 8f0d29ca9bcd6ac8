"""GRPO done right (arXiv 2503.20783): the group's mean as baseline, no division by its spread."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from policies.estimators.base import Estimator, combine, finish
from policies.statistics import centre


@dataclass(frozen=True)
class DrGrpo(Estimator):
    """A = r - mean(r) over the G rollouts of a prompt, r = sum_k w_k R_k; 0 for a single rollout.

    The paper also divides the loss by a constant instead of the length: that is the loss's aggregation.
    """

    def __call__(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        return finish(combine(self.per_objective(rewards_PGK), weights_K))

    def per_objective(self, rewards_PGK: Tensor) -> Tensor:
        """advantages_PGK = R_k - mu_k: the rule is linear in the rewards."""
        return centre(rewards_PGK.double(), 1)

    def factor(self, advantages_PGK: Tensor, weights_K: Tensor) -> float:
        del advantages_PGK, weights_K
        return 1.0
