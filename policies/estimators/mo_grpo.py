"""Multi-objective GRPO (arXiv 2509.22047): normalise each reward in its group, then combine."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from policies.estimators.base import Estimator, combine, finish
from policies.statistics import standardise


@dataclass(frozen=True)
class MoGrpo(Estimator):
    """A = sum_k w_k Z_k, Z_k the group's standardised reward k, 0 where it does not spread: gdpo without whitening."""

    std_floor: float = 1e-6

    def __call__(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        return finish(combine(self.per_objective(rewards_PGK), weights_K))

    def per_objective(self, rewards_PGK: Tensor) -> Tensor:
        """advantages_PGK = Z_k."""
        return standardise(rewards_PGK.double(), 1, std_floor=self.std_floor)

    def factor(self, advantages_PGK: Tensor, weights_K: Tensor) -> float:
        del advantages_PGK, weights_K
        return 1.0
