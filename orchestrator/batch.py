"""From prompts and rollouts to what the engines and the rewards take."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from orchestrator.prompts import Prompt
from policies.types import Rollout
from rewards.base import RewardBatch


def rollout_seed(seed: int, purpose: str, *place: int) -> int:
    """A seed of 63 bits that no other request has, the same on every machine."""
    text = f"{seed}/{purpose}/{'/'.join(str(number) for number in place)}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def reward_batch(prompts: Sequence[Prompt], rollouts: Sequence[Rollout], max_tokens: int) -> RewardBatch:
    """The rollouts of each prompt in a row, with its ground truth."""
    repeats = len(rollouts) // len(prompts)
    rows = [prompt for prompt in prompts for _ in range(repeats)]
    return RewardBatch(
        prompts=tuple(prompt.text for prompt in rows),
        completions=tuple(rollout.text for rollout in rollouts),
        answers=tuple(prompt.answer for prompt in rows),
        completion_tokens=tuple(len(rollout.tokens) for rollout in rollouts),
        truncated=tuple(rollout.truncated for rollout in rollouts),
        max_tokens=max_tokens,
    )


def stack(scores: Mapping[str, Sequence[float]], names: Sequence[str], repeats: int) -> Tensor:
    """rewards_PGK from flat scores by name."""
    return torch.tensor([scores[name] for name in names], dtype=torch.float64).T.reshape(-1, repeats, len(names))
