"""REINFORCE++ (arXiv 2501.03262): the baseline and the scale come from the whole batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from policies.estimators.base import combine, whiten


@dataclass(frozen=True)
class Reinforce:
    """A = whiten(sum_k w_k R_k) over the batch. Works with one rollout per prompt."""

    def __call__(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        return whiten(combine(rewards_PGK, weights_K)).float()
