"""What every advantage estimator is: rewards and weights in, one advantage per rollout out."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

WHITEN_EPS = 1e-8


class Estimator(Protocol):
    """A pure function of raw rewards and weights, with its constants."""

    def __call__(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        """advantages_PG. Finite for every finite input, also with one rollout per prompt or without spread."""
        ...


@runtime_checkable
class LinearEstimator(Estimator, Protocol):
    """Where A = c * sum_k w_k A_k with c > 0: then the objectives' gradients are also the parts of the update."""

    def per_objective(self, rewards_PGK: Tensor) -> Tensor:
        """advantages_PGK, one advantage per rollout and objective."""
        ...


def combine(values_PGK: Tensor, weights_K: Tensor) -> Tensor:
    """sum_k w_k v_k, in double precision: equal sums stay equal, so that ties carry no signal."""
    return values_PGK.double() @ weights_K.double()


def standardise(values_PG: Tensor, std_floor: float) -> Tensor:
    """(v - mean) / std over the group; exactly 0 where std (unbiased off) does not exceed std_floor."""
    centred_PG = values_PG - values_PG.mean(dim=1, keepdim=True)
    std_P1 = values_PG.std(dim=1, keepdim=True, correction=0)
    return torch.where(std_P1 > std_floor, centred_PG / std_P1.clamp_min(torch.finfo(std_P1.dtype).tiny), 0.0)


def whitening_factor(advantages_PGK: Tensor, weights_K: Tensor) -> float:
    """c of whiten(sum_k w_k A_k) = c sum_k w_k A_k, for A_k centred in every group; 0 where nothing spreads."""
    std = float(combine(advantages_PGK, weights_K).std(correction=0))
    return 1.0 / (std + WHITEN_EPS) if std > WHITEN_EPS else 0.0


def whiten(advantages_PG: Tensor) -> Tensor:
    """(A - mean) / (std + 1e-8) over the batch (arXiv 2501.03262); exactly 0 where nothing spreads."""
    centred_PG = advantages_PG - advantages_PG.mean()
    std = advantages_PG.std(correction=0)
    return centred_PG / (std + WHITEN_EPS) if float(std) > WHITEN_EPS else torch.zeros_like(centred_PG)
