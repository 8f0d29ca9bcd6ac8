"""What crosses between the parts of a step.

Shape letters, used as suffixes of names in the whole project:
P prompts, G rollouts per prompt (the most that any has), K objectives, B rollouts in one row, T tokens of a completion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutRequest:
    """One completion to sample. The seed makes it the same whatever else the engine is doing."""

    prompt_tokens: tuple[int, ...]
    seed: int | None  # None samples greedily
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    stop: tuple[str, ...] = ()  # texts that end it
    include_stop: bool = False  # in its text


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """A sampled completion with the sampler's own log-probabilities and the policy versions that wrote it."""

    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]  # T, end-of-sequence or stop text included where the policy wrote one
    logprobs: tuple[float, ...]  # T
    text: str
    truncated: bool  # ran into max_tokens
    policy_version: int  # of the first token: the oldest
    version_spans: tuple[tuple[int, int], ...] = ()  # (version, tokens that it wrote) in order; () where one wrote all

    def staleness(self, version: int) -> list[tuple[int, int]]:
        """(versions that a policy is behind this one, tokens that it wrote), in order."""
        spans = self.version_spans or ((self.policy_version, len(self.tokens)),)
        return [(version - wrote, count) for wrote, count in spans]


@dataclass(frozen=True, kw_only=True, slots=True)
class Objectives:
    """What a job says of its K objectives, once for all steps. All in units of the raw rewards."""

    names: tuple[str, ...]
    ranges_K2: Tensor  # [lo, hi]
    targets_K: Tensor  # NaN where an objective has none
    target_signs_K: Tensor  # +1: at least the target, -1: at most

    def normalise(self, values_K: Tensor) -> Tensor:
        """Places of values in their ranges, clipped to [0, 1]."""
        low_K, high_K = self.ranges_K2.double().unbind(dim=1)
        return ((values_K.double() - low_K) / (high_K - low_K)).clamp(0, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontStats:
    """The Pareto archive as the latest evaluation left it; larger is better.

    Points are scaled to [0, 1]: 0 is the corner from which the hypervolume is measured, 1 the ranges' upper ends.
    """

    step: int  # of the latest evaluation
    growth: float  # hypervolume after the latest point minus before it, >= 0
    points_NK: Tensor  # the initial policy first
    current_K: Tensor  # the latest evaluation's own point, whether or not it is on the front


@dataclass(frozen=True, kw_only=True, slots=True)
class StepStats:
    """What a weighting strategy sees of one step, before its update.

    rewards_PGK are raw: before gates and transforms. NaN is "not measured": a rollout that the prompt did not get, or
    an objective that does not apply to it. advantages_PGK are the estimator's per-objective ones, NaN where not
    measured and in groups that are not learned from.
    Measurements of gradients are of this step or of the one before, by the mode that measured them, and absent at a
    step that has none yet.
    """

    step: int
    objectives: Objectives
    rewards_PGK: Tensor
    advantages_PGK: Tensor
    preference_K: Tensor  # the person's weights, on the simplex
    gramian_KK: Tensor | None = None  # inner products of the objectives' gradients
    influence_K: Tensor | None = None  # of each objective on all, where that alone was measured
    front: FrontStats | None = None
    decides: bool = True  # False while the person alone sets the weights: what is chosen then has no effect


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateOutcome:
    """What an update did with the step's advantages, for strategies that need "credit"."""

    rewards_PGK: Tensor  # raw, as in StepStats
    credit_PG: Tensor  # advantage times the mean over tokens of ratio * [not clipped]; 0 where there is no rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """A strategy's choice: where on the simplex, and how strongly this batch counts.

    `because` is for people: what led to it, a number for each objective (NaN where there is none) under the field's
    name. `limit` among them is 1 where a limit of the rule's own keeps a weight from more, and -1 where from less.
    """

    weights_K: Tensor
    signs_K: Tensor | None = None  # -1 for an objective that is to fall: its rewards change sign; None is all +1
    directions_K: Tensor | None = None  # where a person's own weight pushes, where signs are given; None is all +1
    advantage_scale: float = 1.0  # multiplies the advantages after every normalisation
    reward_scale: float = 1.0  # multiplies the rewards before it
    because: Mapping[str, Tensor] = field(default_factory=dict)  # K numbers each


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveAdvantages:
    """The parts of a batch's advantages, for measuring the objectives' gradients."""

    advantages_BK: Tensor
    weights_K: Tensor | None  # v_k where A = sum_k v_k A_k over the batch; None where the estimator is not linear


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnStats:
    """What the updates of a batch report. Means are over its completion tokens, without those whose figures are not
    finite; NaN where there are no others.
    """

    loss: float
    grad_norm: float
    lr: float
    entropy: float  # nats per token
    kl: float | None  # k3 estimate to the reference, nats per token; None without a reference
    clip_share: float  # share of tokens whose ratio was clipped
    importance_mean: float  # learner / sampler probability ratio before truncation
    sampler_gap: float  # mean |learner - sampler| log-probability
    padding_share: float  # share of the forward passes' tokens that were padding
    kl_bounded: int | None = None  # tokens whose log-ratio to the reference was beyond what k3 counts
    updates: int = 1
    updates_not_finite: int = 0  # not made, as the gradient or the loss was not finite
    updates_masked: int = 0  # not made, as none of their rollouts has a share in the loss
    surviving_B: tuple[float, ...] = ()  # mean over each rollout's tokens of ratio * [not clipped]; 0: not learned from
    gramian_KK: tuple[tuple[float, ...], ...] | None = None  # as measured during the update, for the next step
    influence_K: tuple[float, ...] | None = None
