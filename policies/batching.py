"""From rollouts of unequal lengths to microbatches under a token budget, with little padding."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from policies.shared_prompts import Part, SharedPrompts
from policies.types import Rollout

ATTENTION_TOKENS = 4096  # queries of one call: rows longer than a quarter of that are seldom padded to a longer one


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


def consecutive(sizes: Sequence[int], *, limit: int) -> list[list[int]]:
    """Indices in their order, cut into runs whose sizes add up to at most the limit; a larger one goes alone."""
    runs: list[list[int]] = []
    room = 0
    for i, size in enumerate(sizes):
        if not runs or size > room:
            runs.append([])
            room = limit
        runs[-1].append(i)
        room -= size
    return runs


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
    """A microbatch on the device: b rollouts in r rows of t tokens, padded on the right; packed, several in one row.

    With shared prompts it is one row of every prompt that differs and of every completion.
    """

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
    shared_prompts: SharedPrompts | None = None
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


def make_shared_rows(
    rollouts: Sequence[Rollout], index: list[int], device: torch.device, *, idle: bool = False
) -> Rows:
    """Each prompt once and then its completions, in one row without padding; a prompt's only completion follows it."""
    count = Counter(r.prompt_tokens for r in rollouts)
    several = [count[r.prompt_tokens] > 1 for r in rollouts]
    root_of: dict[tuple[int, ...], int] = {}
    roots: list[tuple[int, ...]] = []
    for rollout, shared in zip(rollouts, several, strict=True):
        if rollout.prompt_tokens not in root_of:
            root_of[rollout.prompt_tokens] = len(roots)
            roots.append(rollout.prompt_tokens if shared else rollout.prompt_tokens + rollout.tokens)
    own = [i for i, shared in enumerate(several) if shared]  # whose completions are pieces of their own
    pieces = [*roots, *(rollouts[i].tokens for i in own)]
    first = [0] * len(roots) + [len(rollouts[i].prompt_tokens) for i in own]
    starts = [0, *itertools.accumulate(map(len, pieces))]
    # A token is predicted where the one before it stands: the first where its prompt ends.
    ends = [starts[root_of[r.prompt_tokens]] + len(r.prompt_tokens) - 1 for r in rollouts]
    piece_of = {i: len(roots) + at for at, i in enumerate(own)}
    begins = [starts[piece_of[i]] if shared else ends[i] + 1 for i, shared in enumerate(several)]
    place_bT, mask_bT = spans(begins, [len(r.tokens) for r in rollouts], at_least=1)
    place_bT = torch.where(mask_bT, torch.cat([torch.tensor(ends)[:, None], place_bT[:, :-1]], dim=1), 0)
    position_ids_n = torch.cat([torch.arange(at, at + len(piece)) for at, piece in zip(first, pieces, strict=True)])
    width = mask_bT.shape[1]
    return Rows(
        index=index,
        input_ids_rt=torch.tensor([[token for piece in pieces for token in piece]]).to(device),
        attention_rt=None,
        position_ids_rt=position_ids_n.unsqueeze(0).to(device),
        owner_rt=None,
        place_bT=place_bT.to(device),
        target_bT=pad([torch.tensor(r.tokens) for r in rollouts], width).long().to(device),
        mask_bT=(mask_bT & (not idle)).to(device),
        sampler_logprobs_bT=pad([torch.tensor(r.logprobs) for r in rollouts], width).to(device),
        real=starts[-1],
        shared_prompts=look_back([root_of[rollouts[i].prompt_tokens] for i in own], starts, len(roots), device),
        idle=idle,
    )


def look_back(prompt_of_b: Sequence[int], starts: Sequence[int], prompts: int, device: torch.device) -> SharedPrompts:
    """Attention's parts for a row of `prompts` prompts and then completions, of which prompt_of_b[i] begins the i-th.

    A prompt may be a whole rollout. Prompt or completion i stands at starts[i] to starts[i + 1]. Rows of like length
    attend together.
    """
    lengths = [end - start for start, end in itertools.pairwise(starts)]
    parts: list[Part] = []
    tokens: list[Tensor] = []  # of the parts' queries, -1 where there is none
    for group in microbatches(lengths[:prompts], token_budget=ATTENTION_TOKENS):
        query_bq, real_bq = spans([starts[i] for i in group], [lengths[i] for i in group])
        parts.append(Part(query_bq=query_bq, key_bs=query_bq, mask_b1qs=None))
        tokens.append(torch.where(real_bq, query_bq, -1).flatten())
    whole = [lengths[prompt] + lengths[prompts + i] for i, prompt in enumerate(prompt_of_b)]
    for group in microbatches(whole, token_budget=ATTENTION_TOKENS):
        mine, theirs = [prompts + i for i in group], [prompt_of_b[i] for i in group]
        query_bq, real_bq = spans([starts[i] for i in mine], [lengths[i] for i in mine], at_least=1)
        prompt_bp, seen_bp = spans([starts[i] for i in theirs], [lengths[i] for i in theirs])
        width = query_bq.shape[1]
        seen_bqp = seen_bp[:, None, :].expand(-1, width, -1)
        earlier_bqq = torch.ones(width, width, dtype=torch.bool).tril().expand(len(group), -1, -1)
        mask_bqs = torch.cat([seen_bqp, earlier_bqq], dim=2)
        parts.append(
            Part(query_bq=query_bq, key_bs=torch.cat([prompt_bp, query_bq], dim=1), mask_b1qs=mask_bqs.unsqueeze(1))
        )
        tokens.append(torch.where(real_bq, query_bq, -1).flatten())
    token_of_query = torch.cat(tokens)
    real = token_of_query >= 0
    place_n = torch.empty(starts[-1], dtype=torch.long)
    place_n[token_of_query[real]] = torch.arange(len(token_of_query))[real]
    return SharedPrompts(parts=tuple(part.to(device) for part in parts), place_n=place_n.to(device))


def spans(starts: Sequence[int], lengths: Sequence[int], *, at_least: int = 0) -> tuple[Tensor, Tensor]:
    """(places from each start on, 0 where there are none; whether there is one), rows x longest."""
    step_q = torch.arange(max(at_least, *lengths))
    real_bq = step_q[None, :] < torch.tensor(lengths)[:, None]
    return torch.where(real_bq, torch.tensor(starts)[:, None] + step_q[None, :], 0), real_bq


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
