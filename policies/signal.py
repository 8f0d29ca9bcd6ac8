"""Groups without signal: which they are, and what a step does with them.

A group carries signal where any weighted objective spreads inside it. Judged on the weighted sum, groups would be
lost whose objectives disagree and cancel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from policies import statistics

SPREAD = 1e-6
"""A population standard deviation that does not exceed this is none."""


def signal_P(rewards_PGK: Tensor, weights_K: Tensor, spread: float | Tensor = SPREAD) -> Tensor:
    """True for a group in which an objective with weight above 0 spreads by more than `spread`, or its own of K."""
    spreads_PK = statistics.std(rewards_PGK.double(), 1).squeeze(1)
    return ((spreads_PK > spread) & (weights_K > 0)).any(dim=1)


def keep(signal_P: Tensor) -> Tensor:
    """Indices of all groups."""
    return torch.arange(len(signal_P))


def drop(signal_P: Tensor, wanted: int | None = None) -> Tensor:
    """Indices, in order, of the groups with signal (arXiv 2503.14476).

    Where no group has any, the first `wanted` are kept as if they had, so that a step is never empty.
    """
    indices = signal_P.nonzero().flatten()
    return indices if len(indices) else keep(signal_P)[:wanted]


def missing(signal_P: Tensor, wanted: int) -> int:
    """How many groups are still to be sampled before `wanted` of them carry signal; the caller bounds the rounds."""
    return max(0, wanted - int(signal_P.sum()))


def global_advantages_PGK(rewards_PGK: Tensor, spread: float = SPREAD) -> Tensor:
    """Each objective's mean in a group, standardised over the batch's groups; the same for every rollout of a group.

    0 where the groups' means do not spread, and for a group or a rollout where the objective was not measured.
    """
    rewards_PGK = rewards_PGK.double()
    unmeasured_PGK = torch.isnan(rewards_PGK)
    means_P1K = torch.where(unmeasured_PGK.all(dim=1, keepdim=True), torch.nan, statistics.mean(rewards_PGK, 1))
    standard_P1K = statistics.standardise(means_P1K, 0, std_floor=spread)
    return torch.where(unmeasured_PGK, 0.0, standard_P1K)


def global_advantages_PG(rewards_PGK: Tensor, weights_K: Tensor, spread: float = SPREAD) -> Tensor:
    """Global advantage of groups without signal (COPO, arXiv 2508.04138), float64; 0 for the others.

    sum_k w_k (mean_g R_k - mean over the batch) / std over the batch: a prompt that is always solved is still better
    than one that never is. The paper fades from the group's advantage to this one by the entropy of the outcomes;
    here it stands in where the group's own is 0.
    """
    combined_PG = global_advantages_PGK(rewards_PGK, spread) @ weights_K.double()
    return torch.where(signal_P(rewards_PGK, weights_K, spread)[:, None], 0.0, combined_PG)
