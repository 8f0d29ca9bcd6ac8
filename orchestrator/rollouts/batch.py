"""A step's prompts, rollouts and rewards side by side, and what the engines and the rewards take.

P prompts, G rollouts of the prompt that has most, K objectives; B rollouts in one row, prompt by prompt.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.rollouts.prompts import Prompt
from orchestrator.specs.rollout import RolloutSpec
from policies.types import Rollout, RolloutRequest
from rewards.base import RewardBatch, Scores, answer_of


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Groups of rollouts with their rewards. NaN stands where a prompt has fewer rollouts than another."""

    prompt_index: tuple[int, ...]  # P, of the train split
    counts: tuple[int, ...]  # P: rollouts of each prompt
    rollouts: list[Rollout]  # B
    rewards_PGK: Tensor  # raw
    signal_PGK: Tensor  # after gates and transforms: what the estimator sees
    dropped: int = 0  # rollouts that are not here, as they could not be scored
    put_off: int = 0  # prompts that are not here, as their rollouts were not waited for

    def groups(self, kept: Sequence[int]) -> Batch:
        """These groups alone, in this order."""
        widest = max(self.counts[p] for p in kept)
        starts = [0, *itertools.accumulate(self.counts)]
        return Batch(
            prompt_index=tuple(self.prompt_index[p] for p in kept),
            counts=tuple(self.counts[p] for p in kept),
            rollouts=[rollout for p in kept for rollout in self.rollouts[starts[p] : starts[p + 1]]],
            rewards_PGK=self.rewards_PGK[list(kept), :widest],
            signal_PGK=self.signal_PGK[list(kept), :widest],
        )

    def in_a_row(self, values_PG: Tensor) -> Tensor:
        """One value (or K) for each rollout, from values laid out by prompt."""
        return torch.cat([values_PG[p, :count] for p, count in enumerate(self.counts)])

    def by_prompt(self, values_B: Tensor) -> Tensor:
        """The other way; NaN where there is no rollout."""
        return by_prompt(values_B, self.counts)


def by_prompt(values_B: Tensor, counts: Sequence[int]) -> Tensor:
    """values_PG (or PGK) from one row; NaN where a prompt has fewer rollouts than another."""
    out = torch.full((len(counts), max(counts), *values_B.shape[1:]), torch.nan, dtype=torch.float64)
    for p, row in enumerate(torch.split(values_B, list(counts))):
        out[p, : len(row)] = row
    return out


def without(
    dropped: Collection[int], index: Sequence[int], counts: Sequence[int]
) -> tuple[list[int], list[int], list[int]]:
    """(index, counts, rows that stay) without these rows; a prompt that has no other leaves with them."""
    owners = [p for p, count in enumerate(counts) for _ in range(count)]
    rows = [row for row in range(len(owners)) if row not in dropped]
    left = Counter(owners[row] for row in rows)
    prompts = [p for p in range(len(counts)) if left[p]]
    return [index[p] for p in prompts], [left[p] for p in prompts], rows


def rollout_seed(seed: int, purpose: str, *place: int) -> int:
    """A seed of 63 bits that no other request has, the same on every machine."""
    text = f"{seed}/{purpose}/{'/'.join(str(number) for number in place)}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def rollout_request(rollout: RolloutSpec, prompt: Prompt, seed: int | None, temperature: float) -> RolloutRequest:
    """One completion of a prompt, as the spec has it."""
    return RolloutRequest(
        prompt_tokens=tuple(prompt.tokens),
        seed=seed,
        max_tokens=rollout.max_tokens,
        temperature=temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        min_p=rollout.min_p,
        stop=rollout.stop,
        include_stop=rollout.include_stop,
    )


def reward_batch(
    prompts: Sequence[Prompt],
    counts: Sequence[int],
    rollouts: Sequence[Rollout],
    max_tokens: int,
    thoughts_end: str | None = None,
) -> RewardBatch:
    """The rollouts of each prompt in a row, with what its row says."""
    rows = [prompt for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]
    return RewardBatch(
        prompts=tuple(prompt.text for prompt in rows),
        completions=tuple(answer_of(rollout.text, thoughts_end) for rollout in rollouts),
        answers=tuple(prompt.answer for prompt in rows),
        completion_tokens=tuple(len(rollout.tokens) for rollout in rollouts),
        truncated=tuple(rollout.truncated for rollout in rollouts),
        max_tokens=max_tokens,
        messages=tuple(prompt.messages for prompt in rows),
        domains=tuple(prompt.domain for prompt in rows),
        details=tuple(prompt.details for prompt in rows),
    )


def stack(scores: Mapping[str, Scores], names: Sequence[str]) -> Tensor:
    """rewards_BK from scores by name; NaN where an objective does not apply."""
    columns = [[math.nan if score is None else score for score in scores[name]] for name in names]
    return torch.tensor(columns, dtype=torch.float64).T
