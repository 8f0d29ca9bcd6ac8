"""Conditioned gdpo (arXiv 2601.05242): one objective gates the others, so that an easy one can't replace it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from policies.estimators.base import Estimator, combine, finish, whitening_factor
from policies.statistics import standardise, whiten


@dataclass(frozen=True)
class CondGdpo(Estimator):
    """gdpo over R_k <- R_k where R_condition >= at_least, else min(0, lowest R_k of the batch), for each other k.

    The published gate gives 0 to what fails. A reward that can be negative, such as a length penalty, would make
    failing the better choice; so what fails gets no more than the worst that was measured. Where the condition was
    not measured, the gated rewards count as not measured either.

    `condition` is the gating objective's index, `at_least` is in units of its raw reward. A group that fails as a
    whole has no spread in its gated objectives: they are 0 there, and the condition's own Z_k teaches alone.
    """

    condition: int
    at_least: float
    std_floor: float = 1e-6

    def __call__(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        return finish(whiten(combine(self.per_objective(rewards_PGK), weights_K)))

    def per_objective(self, rewards_PGK: Tensor) -> Tensor:
        """advantages_PGK = Z_k of the gated rewards."""
        return standardise(self._gate(rewards_PGK), 1, std_floor=self.std_floor)

    def factor(self, advantages_PGK: Tensor, weights_K: Tensor) -> float:
        return whitening_factor(advantages_PGK, weights_K)

    def _gate(self, rewards_PGK: Tensor) -> Tensor:
        condition_PG1 = rewards_PGK[..., self.condition, None]
        reached_PG1 = condition_PG1 >= self.at_least  # in the rewards' own precision: float32 0.7 reaches 0.7
        lowest_K = torch.where(torch.isnan(rewards_PGK), torch.inf, rewards_PGK).amin(dim=(0, 1))
        gated_PGK = torch.where(reached_PG1, rewards_PGK, lowest_K.clamp_max(0.0))
        gated_PGK = torch.where(torch.isnan(rewards_PGK) | torch.isnan(condition_PG1), torch.nan, gated_PGK)
        gated_PGK[..., self.condition] = condition_PG1[..., 0]
        return gated_PGK.double()
