"""Risk-averse combination (RVPO, arXiv 2605.05750): a soft minimum over objectives, sharper as training goes on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from policies.estimators.base import Estimator, finish
from policies.statistics import standardise, whiten


@dataclass(frozen=True)
class Softmin(Estimator):
    """A = whiten(-(1 / kappa) log sum_k w_k exp(-kappa Z_k)); kappa goes from kappa_start to kappa_end, linearly.

    Equal weights are the published mean over objectives. kappa -> 0 is gdpo, large kappa the worst objective with
    weight > 0. An objective that does not apply to a rollout counts as Z_k = 0, its group's mean; one that applies to
    none of a group has no part in it, and the others' weights are scaled to sum to 1 there.

    The soft minimum is below the mean, so a group in which objectives spread has a mean below 0, and a group in which
    none does ends above the batch's mean: all its rollouts get the same positive advantage.
    """

    kappa_start: float = 0.5
    kappa_end: float = 2.0
    std_floor: float = 1e-6

    def __call__(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        kappa = self.kappa_start
        scores_PGK = standardise(rewards_PGK.double(), 1, std_floor=self.std_floor)
        part_P1K = ~torch.isnan(scores_PGK).all(dim=1, keepdim=True) * weights_K.double()
        share_P1K = part_P1K / part_P1K.sum(dim=2, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        logs_PGK = share_P1K.log() - kappa * torch.nan_to_num(scores_PGK, nan=0.0)
        lowest_PG = torch.where((share_P1K > 0).any(dim=2), -torch.logsumexp(logs_PGK, dim=2) / kappa, 0.0)
        return finish(whiten(torch.where(torch.isnan(rewards_PGK).all(dim=2), torch.nan, lowest_PG)))

    def at(self, progress: float) -> Self:
        """The rule with kappa fixed at its value there."""
        share = min(max(progress, 0.0), 1.0)
        kappa = (1 - share) * self.kappa_start + share * self.kappa_end
        return replace(self, kappa_start=kappa, kappa_end=kappa)
