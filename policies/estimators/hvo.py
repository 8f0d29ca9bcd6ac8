"""Hypervolume scalarisation: the product of the rewards above the batch's worst, as the volume that they span."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from policies.estimators.base import Estimator, combine, finish
from policies.statistics import centre

LARGEST_LOG = math.log(1e30)  # float32 holds what is below


@dataclass(frozen=True)
class Hvo(Estimator):
    """A = v - mean(v) over the group, v = prod_k (R_k - min over the batch of R_k + offset)^(K w_k); no spread.

    Equal weights are the plain product. The size of the advantages goes with the rewards' units: bring them to about
    [0, 1]. Products above 1e30 count as 1e30. An objective that does not apply to a rollout counts as its group's
    geometric mean there, and as factor 1 where no rollout of the prompt has it.
    """

    offset: float = 0.1

    def __call__(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        rewards_PGK = rewards_PGK.double()
        lowest_K = torch.where(torch.isnan(rewards_PGK), torch.inf, rewards_PGK).amin(dim=(0, 1))
        logs_PGK = (rewards_PGK - lowest_K + self.offset).log()
        volume_PG = combine(logs_PGK, len(weights_K) * weights_K.double()).clamp_max(LARGEST_LOG).exp()
        return finish(centre(volume_PG, 1))
