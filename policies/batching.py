"""From rollouts of unequal lengths to microbatches under a token budget, with little padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from policies.types import Rollout


def microbatches(lengths: Sequence[int], *, token_budget: int) -> list[list[int]]:
    """Indices grouped so that rows x longest row stays within the budget, longest first.

    Rows of like length stand together, so that little is padded: once a group holds a quarter of the budget, a row
    less than 0.8 times as long as its longest opens another. A row longer than the budget goes alone: the budget
    bounds memory where it can, and never drops a rollout. Deterministic: ties keep their order.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    groups: list[list[int]] = []
    for i in order:
        group = groups[-1] if groups else []
        longest = lengths[group[0]] if group else 0
        fits = (len(group) + 1) * longest <= token_budget
        alike = lengths[i] >= 0.8 * longest or len(group) * longest < token_budget / 4
        if group and fits and alike:
            group.append(i)
        else:
            groups.append([i])
    return groups


def minibatches(size: int, *, count: int, order: Sequence[int]) -> list[list[int]]:
    """`order` (a permutation of range(size)) cut into `count` parts whose sizes differ by at most one."""
    assert sorted(order) == list(range(size))
    return [list(order[size * part // count : size * (part + 1) // count]) for part in range(count)]


def shards(lengths: Sequence[int], *, ranks: int) -> list[list[int]]:
    """Indices for each rank, so that all have about as many tokens: the longest first, to whoever has the fewest.

    The difference between two ranks is at most the longest row. Deterministic, so that every rank knows all parts.
    """
    parts: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        rank = loads.index(min(loads))
        parts[rank].append(i)
        loads[rank] += lengths[i]
    return [sorted(part) for part in parts]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A microbatch on the device: b rollouts in r rows of t tokens, padded on the right; packed, several in one row."""

    index: list[int]  # b, of the whole batch
    input_ids_rt: Tensor
    attention_rt: Tensor | None  # packed: None, as positions that start again tell the rollouts of a row apart
    position_ids_rt: Tensor | None
    owner_rt: Tensor | None  # packed: whose token it is, of the b; padding is the first's
    place_bT: Tensor  # where among all r x t tokens each completion token is predicted
    target_bT: Tensor
    mask_bT: Tensor
    sampler_logprobs_bT: Tensor
    real: int  # tokens that are no padding
    idle: bool = False  # nothing is learned or reported of it: it keeps a rank in step with the others


def make_rows(
    rollouts: Sequence[Rollout],
    index: list[int],
    device: torch.device,
    *,
    packed: Sequence[Sequence[int]] | None = None,
    idle: bool = False,
) -> Rows:
    """Prompt and completion side by side, padded on the right. `packed`: which rollouts stand in each row."""
    lengths = [len(r.prompt_tokens) + len(r.tokens) for r in rollouts]
    layout = packed or [[i] for i in range(len(rollouts))]
    width, completion = max(sum(lengths[i] for i in row) for row in layout), max(1, *(len(r.tokens) for r in rollouts))
    input_ids_rt, attention_rt, position_ids_rt, owner_rt = torch.zeros(4, len(layout), width, dtype=torch.long)
    starts_b = torch.zeros(len(rollouts), dtype=torch.long)
    for at, row in enumerate(layout):
        start = 0
        for i in row:
            end = start + lengths[i]
            input_ids_rt[at, start:end] = torch.tensor(rollouts[i].prompt_tokens + rollouts[i].tokens)
            attention_rt[at, start:end] = 1
            position_ids_rt[at, start:end] = torch.arange(lengths[i])
            owner_rt[at, start:end] = i
            # The token at place prompt + i is predicted at place prompt + i - 1.
            starts_b[i] = at * width + start + len(rollouts[i].prompt_tokens) - 1
            start = end
    mask_bT = pad([torch.ones(len(r.tokens)) for r in rollouts], completion).bool()
    place_bT = torch.where(mask_bT, starts_b[:, None] + torch.arange(completion)[None, :], 0)
    several = packed is not None and len(layout) < len(rollouts)
    return Rows(
        index=index,
        input_ids_rt=input_ids_rt.to(device),
        attention_rt=None if several else attention_rt.to(device),
        position_ids_rt=position_ids_rt.to(device) if several else None,
        owner_rt=owner_rt.to(device) if several else None,
        place_bT=place_bT.to(device),
        target_bT=pad([torch.tensor(r.tokens) for r in rollouts], completion).long().to(device),
        mask_bT=(mask_bT & (not idle)).to(device),
        sampler_logprobs_bT=pad([torch.tensor(r.logprobs) for r in rollouts], completion).to(device),
        real=sum(lengths),
        idle=idle,
    )


def packing(lengths: Sequence[int], *, width: int) -> list[list[int]]:
    """Rows of at most `width` tokens, or of one that is longer, with little left over: first fit, longest first."""
    rows: list[list[int]] = []
    free: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = next((row for row, room in enumerate(free) if room >= lengths[i]), None)
        if at is None:
            rows.append([])
            free.append(max(width, lengths[i]))
            at = len(rows) - 1
        rows[at].append(i)
        free[at] -= lengths[i]
    return rows


def pad(rows: Sequence[Tensor], width: int) -> Tensor:
    """Rows side by side, zeros on the right."""
    out = torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
