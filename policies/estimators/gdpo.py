"""Group reward-decoupled normalisation (arXiv 2601.05242): normalise each reward, then combine, then whiten."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from policies.estimators.base import Estimator, combine, finish, whitening_factor
from policies.statistics import standardise, whiten


@dataclass(frozen=True)
class Gdpo(Estimator):
    """A = whiten(sum_k w_k Z_k), Z_k the group's standardised reward k, 0 where it does not spread.

    Group-centred advantages have batch mean zero, so the whitening is one positive factor c, and the update gradient
    is exactly c * sum_k w_k g_k.
    """

    std_floor: float = 1e-6

    def __call__(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        return finish(whiten(combine(self.per_objective(rewards_PGK), weights_K)))

    def per_objective(self, rewards_PGK: Tensor) -> Tensor:
        """advantages_PGK = Z_k."""
        return standardise(rewards_PGK.double(), 1, std_floor=self.std_floor)

    def factor(self, advantages_PGK: Tensor, weights_K: Tensor) -> float:
        return whitening_factor(advantages_PGK, weights_K)
