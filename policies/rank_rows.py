"""What a rank sees of a minibatch: its rollouts in microbatches, and each token's share in the loss of all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from policies.batching import Rows, consecutive, make_rows, make_shared_rows, microbatches, packing, shards
from policies.learner_settings import LearnerSettings
from policies.losses import token_weights
from policies.ranks import Ranks
from policies.types import Rollout

T = TypeVar("T")
PACKED_ROW = 2  # of the longest rollout: attention's cost grows with the row
WORTH_SHARING = 0.9  # of the places, padding included: rows of their own are what attention's kernels are made for
UNPADDED = 0.8  # of attention's rows, at least: as alike as batching.microbatches has them
PIECES = 4  # of each rank at least, where rollouts of a prompt stay together: so that ranks are about even


def rank_rows(
    rollouts: Sequence[Rollout], part: Sequence[int], settings: LearnerSettings, ranks: Ranks, *, share: bool = False
) -> Iterator[Rows]:
    """This rank's microbatches of the rollouts in `part`, evenly shared by tokens.

    All ranks have as many, some idle: a forward or backward pass of one needs the others'. To `share` is to put all
    rollouts of a microbatch in one row, without padding and each prompt once, where that saves enough, or where
    packing is asked for.
    """
    lengths = [_tokens(rollouts, [i]) for i in part]
    shares = [
        _groups([lengths[i] for i in mine], [part[i] for i in mine], settings)
        for mine in shards(lengths, ranks=ranks.size)
    ]
    slots = sum(len(group) * max(_tokens(rollouts, row) for row in group) for groups in shares for group in groups)
    if share and (settings.packing or _tokens_once(rollouts, part) <= WORTH_SHARING * slots):
        for index, idle in _of_rank(_together(rollouts, part, settings, ranks), part, ranks):
            yield make_shared_rows([rollouts[i] for i in index], index, ranks.device, idle=idle)
        return
    for group, idle in _of_rank(shares, [[part[0]]] if part else [], ranks):
        index = sorted(i for row in group for i in row)
        packed = [[index.index(i) for i in row] for row in group] if settings.packing else None
        yield make_rows([rollouts[i] for i in index], index, ranks.device, packed=packed, idle=idle)


def _of_rank(shares: list[list[list[T]]], filler: Sequence[T], ranks: Ranks) -> Iterator[tuple[list[T], bool]]:
    """(microbatch, whether it is idle) of this rank: as many as the rank with the most has."""
    mine = shares[ranks.rank]
    for n in range(max(map(len, shares))):
        idle = n >= len(mine)
        yield list(filler[:1]) if idle else mine[n], idle


def _tokens(rollouts: Sequence[Rollout], part: Sequence[int]) -> int:
    return sum(len(rollouts[i].prompt_tokens) + len(rollouts[i].tokens) for i in part)


def _tokens_once(rollouts: Sequence[Rollout], part: Sequence[int]) -> int:
    """With each prompt counted once."""
    prompts = {rollouts[i].prompt_tokens for i in part}
    return sum(map(len, prompts)) + sum(len(rollouts[i].tokens) for i in part)


def _together(
    rollouts: Sequence[Rollout], part: Sequence[int], settings: LearnerSettings, ranks: Ranks
) -> list[list[list[int]]]:
    """Microbatches of each rank: rollouts of a prompt together, as far as the budget and even ranks allow.

    The budget counts a prompt for each of its rollouts, as attention's keys and values do, and leaves room for their
    padding.
    """
    budget = int(settings.tokens_per_microbatch * UNPADDED)
    even = math.ceil(_tokens(rollouts, part) / (PIECES * ranks.size)) if ranks.size > 1 else budget
    of_prompt: dict[tuple[int, ...], list[int]] = {}
    for i in part:
        of_prompt.setdefault(rollouts[i].prompt_tokens, []).append(i)
    pieces = [
        [group[i] for i in run]
        for group in of_prompt.values()
        for run in consecutive([_tokens(rollouts, [i]) for i in group], limit=min(budget, even))
    ]
    shares = []
    for mine in shards([_tokens_once(rollouts, piece) for piece in pieces], ranks=ranks.size):
        runs = consecutive([_tokens(rollouts, pieces[i]) for i in mine], limit=budget)
        shares.append([sorted(i for at in run for i in pieces[mine[at]]) for run in runs])
    return shares


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
    """For a microbatch, the share of each token in the aggregated loss of the whole minibatch; none of idle rows.

    A rollout that is not learned from counts as an empty one does.
    """
    lengths = torch.tensor([len(rollouts[i].tokens) for i in part])
    learned_B = torch.tensor([settings.learns_from(rollouts[i]) for i in part])
    mask_BT = (torch.arange(int(lengths.max()))[None, :] < lengths[:, None]) & learned_B[:, None]
    weights_BT = token_weights(mask_BT, settings.aggregation, max_tokens=settings.max_tokens)
    row_of = {i: row for row, i in enumerate(part)}

    def of(rows: Rows) -> Tensor:
        kept = weights_BT[[row_of[i] for i in rows.index], : rows.mask_bT.shape[1]]
        return kept.to(rows.mask_bT.device) * rows.mask_bT

    return of
