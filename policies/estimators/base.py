"""What every advantage estimator is: rewards and weights in, one advantage per rollout out.

Rewards may hold NaN: a rollout that the prompt did not get (every objective NaN: groups of unequal size), or an
objective that does not apply to a rollout. Such entries take part in no statistic.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from policies import statistics
from policies.signal import SPREAD
from policies.statistics import WHITEN_EPS


class Estimator:
    """A pure function of raw rewards and weights, with its constants. Rules are frozen dataclasses over this class."""

    def __call__(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        """advantages_PG, float32; 0 where there is no rollout.

        Finite for every input, also with one rollout per prompt or without spread.
        """
        raise NotImplementedError  # abstract: each subclass has its own

    def per_objective(self, rewards_PGK: Tensor) -> Tensor:
        """advantages_PGK, float64: what each objective alone asks for; NaN where it was not measured.

        The rule with all weight on one objective, unless the rule says better.
        """
        one_hot_KK = torch.eye(rewards_PGK.shape[2], dtype=torch.float64)
        alone_PGK = torch.stack([self(rewards_PGK, weights_K).double() for weights_K in one_hot_KK], dim=2)
        return torch.where(torch.isnan(rewards_PGK), torch.nan, alone_PGK)

    def summands(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        """v_PGK, float64, where the rule learns from c * sum_k w_k v_k: what an objective brings beside the others.

        `per_objective`, unless the rule adds rewards first: each of these is standardised by its own spread, the sum by
        that of them all. NaN where it was not measured.
        """
        del weights_K
        return self.per_objective(rewards_PGK)

    def factor(self, advantages_PGK: Tensor, weights_K: Tensor) -> float | None:
        """c where A = c * sum_k w_k A_k over the whole batch, None where the rule is not linear.

        With it the objectives' gradients are also the parts of the update: no second pass.
        """
        del advantages_PGK, weights_K
        return None

    @property
    def least_spread(self) -> float:
        """An objective that spreads no more in a group asks for nothing there."""
        floor: float = getattr(self, "std_floor", SPREAD)
        return floor

    def at(self, progress: float) -> Self:
        """The rule at this share of the job's steps, 0 at the first and 1 at the last, for constants that move."""
        del progress
        return self


def combine(values_PGK: Tensor, weights_K: Tensor) -> Tensor:
    """sum_k w_k v_k, in double precision: equal sums stay equal, so that ties carry no signal.

    An objective that does not apply to a rollout counts as its group's mean there, which favours nobody. NaN where the
    prompt has no such rollout.
    """
    values_PGK = values_PGK.double()
    missing_PGK = torch.isnan(values_PGK)
    if bool(missing_PGK.any()):
        values_PGK = torch.where(missing_PGK, statistics.mean(values_PGK, 1), values_PGK)
    return torch.where(missing_PGK.all(dim=2), torch.nan, values_PGK @ weights_K.double())


def finish(advantages_PG: Tensor) -> Tensor:
    """float32, and 0 where there is no rollout."""
    return torch.where(torch.isnan(advantages_PG), 0.0, advantages_PG).float()


def whitening_factor(advantages_PGK: Tensor, weights_K: Tensor) -> float:
    """c of whiten(sum_k w_k A_k) = c sum_k w_k A_k, for A_k centred in every group; 0 where nothing spreads."""
    spread = float(statistics.std(combine(advantages_PGK, weights_K), (0, 1)))
    return 1.0 / (spread + WHITEN_EPS) if spread > WHITEN_EPS else 0.0
