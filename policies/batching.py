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


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A microbatch on the device; b rows, t tokens of prompt and completion, padded on the right."""

    index: list[int]  # rows of the whole batch
    input_ids_bt: Tensor
    attention_bt: Tensor
    keep: int  # last positions of every row that hold a completion token's prediction
    position_bT: Tensor  # where among the kept positions each completion token is predicted
    target_bT: Tensor
    mask_bT: Tensor
    sampler_logprobs_bT: Tensor


def make_rows(rollouts: Sequence[Rollout], index: list[int], device: torch.device) -> Rows:
    """Prompt and completion side by side, padded on the right; only positions that predict a completion are kept."""
    prompts = [len(r.prompt_tokens) for r in rollouts]
    lengths = [len(r.prompt_tokens) + len(r.tokens) for r in rollouts]
    width, completion = max(lengths), max(1, max(len(r.tokens) for r in rollouts))
    keep = width - min(prompts) + 1
    input_ids_bt = torch.zeros(len(rollouts), width, dtype=torch.long)
    attention_bt = torch.zeros(len(rollouts), width, dtype=torch.long)
    for row, (rollout, length) in enumerate(zip(rollouts, lengths, strict=True)):
        input_ids_bt[row, :length] = torch.tensor(rollout.prompt_tokens + rollout.tokens)
        attention_bt[row, :length] = 1
    mask_bT = pad([torch.ones(len(r.tokens)) for r in rollouts], completion).bool()
    # The token at place prompt + i is predicted at place prompt + i - 1, counted from the first kept one.
    start_b1 = torch.tensor(prompts)[:, None] - 1 - (width - keep)
    position_bT = torch.where(mask_bT, start_b1 + torch.arange(completion)[None, :], 0)
    return Rows(
        index=index,
        input_ids_bt=input_ids_bt.to(device),
        attention_bt=attention_bt.to(device),
        keep=keep,
        position_bT=position_bT.to(device),
        target_bT=pad([torch.tensor(r.tokens) for r in rollouts], completion).long().to(device),
        mask_bT=mask_bT.to(device),
        sampler_logprobs_bT=pad([torch.tensor(r.logprobs) for r in rollouts], completion).to(device),
    )


def pad(rows: Sequence[Tensor], width: int) -> Tensor:
    """Rows side by side, zeros on the right."""
    out = torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
