"""Correlation-aware GRPO (CorrGRPO, arXiv 2609.36820): objectives that move together count less."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from policies.estimators.base import Estimator, combine, finish
from policies.statistics import centre, standardise


@dataclass(frozen=True)
class CorrGrpo(Estimator):
    """A = sum_k w_k (R_k - mu_k) / sqrt(max(floor, sum_lm rho_lm)), rho the objectives' correlations in the group.

    Objectives without spread in the group, or with weight 0, have no part in rho. The sum is n^2 where n objectives
    move together, n where they are independent and goes to 0 where they oppose each other; the floor (ours) keeps
    the factor below 1 / sqrt(floor) there. It does not re-weight the objectives: within a group it is the combined
    reward times one positive factor, so it re-weights prompts. The advantages keep the rewards' unit.
    """

    correlation_floor: float = 0.1
    std_floor: float = 1e-6

    def __call__(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        rewards_PGK = rewards_PGK.double()
        together_P1 = self._correlation(rewards_PGK[..., weights_K > 0]).clamp_min(self.correlation_floor)
        return finish(combine(centre(rewards_PGK, 1), weights_K) / together_P1.sqrt())

    def _correlation(self, rewards_PGK: Tensor) -> Tensor:
        """sum_lm rho_lm as _P1: the squared length of the objectives' unit vectors over the group, added up."""
        scores_PGK = standardise(rewards_PGK, 1, std_floor=self.std_floor)
        count_P1K = (~torch.isnan(scores_PGK)).sum(dim=1, keepdim=True).clamp_min(1)
        units_PGK = torch.nan_to_num(scores_PGK, nan=0.0) / count_P1K.sqrt()
        return units_PGK.sum(dim=2).square().sum(dim=1, keepdim=True)
