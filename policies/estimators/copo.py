"""A global advantage for groups without signal (COPO, arXiv 2508.04138), over any other estimator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from policies.estimators.base import Estimator, finish
from policies.signal import global_advantages_PG, global_advantages_PGK, signal_P


@dataclass(frozen=True)
class Copo(Estimator):
    """A = A_inner + coefficient * A_global, A_global 0 in groups where a weighted objective spreads.

    What is no spread for the inner rule is none here.
    """

    inner: Estimator
    coefficient: float = 1.0

    def __call__(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        global_PG = global_advantages_PG(rewards_PGK, weights_K, self.least_spread)
        return finish(self.inner(rewards_PGK, weights_K) + self.coefficient * global_PG)

    def per_objective(self, rewards_PGK: Tensor) -> Tensor:
        """The inner rule's, and the objective's own share of A_global in groups where no objective spreads."""
        flat_P = ~signal_P(rewards_PGK, torch.ones(rewards_PGK.shape[2]), self.least_spread)
        global_PGK = torch.where(flat_P[:, None, None], global_advantages_PGK(rewards_PGK, self.least_spread), 0.0)
        return self.inner.per_objective(rewards_PGK) + self.coefficient * global_PGK

    def summands(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        """The inner rule's, and what `per_objective` adds to it."""
        added_PGK = self.per_objective(rewards_PGK) - self.inner.per_objective(rewards_PGK)
        return self.inner.summands(rewards_PGK, weights_K) + added_PGK

    @property
    def least_spread(self) -> float:
        return self.inner.least_spread

    def at(self, progress: float) -> Self:
        return replace(self, inner=self.inner.at(progress))
