"""What crosses between the parts of a step.

Shape letters, used as suffixes of names in the whole project:
P prompts, G rollouts per prompt, K objectives, B = P * G rollouts (flattened), T tokens of a completion.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutRequest:
    """One completion to sample. The seed makes it the same whatever else the engine is doing."""

    prompt_tokens: tuple[int, ...]
    seed: int | None  # None samples greedily
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """A sampled completion with the sampler's own log-probabilities and the policy version that wrote it."""

    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]  # T, end-of-sequence included where the policy wrote one
    logprobs: tuple[float, ...]  # T
    text: str
    truncated: bool  # ran into max_tokens
    policy_version: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontStats:
    """The Pareto archive as the latest evaluation left it; points are normalised to [0, 1], larger is better."""

    step: int  # of the latest evaluation
    growth: float  # hypervolume after the latest point minus before it, >= 0
    points_NK: Tensor  # the initial policy first


@dataclass(frozen=True, kw_only=True, slots=True)
class StepStats:
    """What a weighting strategy sees of one step."""

    step: int
    rewards_PGK: Tensor  # raw rewards of the batch
    preference_K: Tensor  # the person's weights, on the simplex
    gramian_KK: Tensor | None = None  # inner products of the objectives' gradients, for strategies that need it
    front: FrontStats | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """A strategy's choice: where on the simplex, and how strongly this batch counts."""

    weights_K: Tensor
    advantage_scale: float = 1.0  # multiplies the advantages after every normalisation
    reward_scale: float = 1.0  # multiplies the rewards before it


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnStats:
    """What one update reports. Means are over the completion tokens of the batch."""

    loss: float
    grad_norm: float
    lr: float
    entropy: float  # nats per token
    kl: float  # k3 estimate to the reference, nats per token; 0 without a reference
    clip_share: float  # share of tokens whose ratio was clipped
    importance_mean: float  # learner / sampler probability ratio before truncation
    sampler_gap: float  # mean |learner - sampler| log-probability
    padding_share: float  # share of the forward passes' tokens that were padding
    updates: int = 1
    extra: dict[str, float] = field(default_factory=dict)


def on_simplex(weights_K: Tensor) -> Tensor:
    """Non-negative weights scaled to sum to 1. Raises ValueError where they can't be: negative, not finite, all 0."""
    if not bool(torch.isfinite(weights_K).all()) or bool((weights_K < 0).any()) or float(weights_K.sum()) <= 0:
        raise ValueError(f"weights must be finite, >= 0 and not all 0, got {weights_K.tolist()}")
    return weights_K / weights_K.sum()
