"""What a rank sees of a minibatch: its rollouts in microbatches, and each token's share in the loss of all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from policies.batching import Rows, make_rows, microbatches, packing, shards
from policies.learner_settings import LearnerSettings
from policies.losses import token_weights
from policies.ranks import Ranks
from policies.types import Rollout

PACKED_ROW = 2  # of the longest rollout: attention's cost grows with the row


def rank_rows(
    rollouts: Sequence[Rollout], part: Sequence[int], settings: LearnerSettings, ranks: Ranks
) -> Iterator[Rows]:
    """This rank's microbatches of the rollouts in `part`, evenly shared by tokens.

    All ranks have as many, some idle: a forward or backward pass of one needs the others'.
    """
    lengths = [len(rollouts[i].prompt_tokens) + len(rollouts[i].tokens) for i in part]
    shares = [
        _groups([lengths[i] for i in mine], [part[i] for i in mine], settings)
        for mine in shards(lengths, ranks=ranks.size)
    ]
    mine, most = shares[ranks.rank], max(map(len, shares))
    for n in range(most):
        idle = n >= len(mine)
        group = [list(part[:1])] if idle else mine[n]
        index = sorted(i for row in group for i in row)
        packed = [[index.index(i) for i in row] for row in group] if settings.packing else None
        yield make_rows([rollouts[i] for i in index], index, ranks.device, packed=packed, idle=idle)


def _groups(lengths: list[int], index: list[int], settings: LearnerSettings) -> list[list[list[int]]]:
    """Microbatches of rows of rollouts."""
    budget = settings.tokens_per_microbatch
    if not settings.packing:
        return [[[index[i]] for i in group] for group in microbatches(lengths, token_budget=budget)]
    rows = packing(lengths, width=min(budget, PACKED_ROW * max(lengths, default=1)))
    filled = [sum(lengths[i] for i in row) for row in rows]
    return [[[index[i] for i in rows[row]] for row in group] for group in microbatches(filled, token_budget=budget)]


def token_shares(
    rollouts: Sequence[Rollout], part: Sequence[int], settings: LearnerSettings
) -> Callable[[Rows], Tensor]:
    """For a microbatch, the share of each token in the aggregated loss of the whole minibatch; none of idle rows."""
    lengths = torch.tensor([len(rollouts[i].tokens) for i in part])
    mask_BT = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
    weights_BT = token_weights(mask_BT, settings.aggregation, max_tokens=settings.max_tokens)
    row_of = {i: row for row, i in enumerate(part)}

    def of(rows: Rows) -> Tensor:
        kept = weights_BT[[row_of[i] for i in rows.index], : rows.mask_bT.shape[1]]
        return kept.to(rows.mask_bT.device) * rows.mask_bT

    return of
