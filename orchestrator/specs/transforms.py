"""Transforms of an objective's reward as a spec names them; rewards/transforms has the forms."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from orchestrator.specs.base import Finite, Positive, RuleSpec

REFERENCE_COST = "completions of the initial policy, scored, for each training prompt that the steps may reach"


class IdentitySpec(RuleSpec):
    """The raw reward as it is."""

    source = "no transform"

    name: Literal["identity"] = "identity"


class ClipSpec(RuleSpec):
    """Clipped: no more to gain above one end, no more to lose below the other."""

    source = "common practice"

    name: Literal["clip"] = "clip"
    lo: Finite | None = Field(None, description="lower end, in units of the raw reward; open when absent")
    hi: Finite | None = Field(None, description="upper end, in units of the raw reward; open when absent")

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.lo is None and self.hi is None:
            raise ValueError("expected lo, hi or both")
        if self.lo is not None and self.hi is not None and self.lo >= self.hi:
            raise ValueError(f"expected lo < hi, got {self.lo:g} and {self.hi:g}")
        return self


class ZScoreSpec(RuleSpec):
    """Standardised by mean and spread over the whole job so far."""

    source = "Welford's running moments"

    name: Literal["zscore"] = "zscore"
    eps: Positive = Field(1e-6, le=1, description="added to the standard deviation, in units of the raw reward")
    decay: float = Field(
        1.0,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="weight of a batch beside the next one; 1 forgets nothing: what was gained since counts as spread",
    )


class LscSpec(RuleSpec):
    """Log-sigmoid of the distance to what the initial policy reaches on the prompt.

    What is already good gains little.
    """

    source = "arXiv 2402.00742"
    needs = frozenset({"references"})
    cost = REFERENCE_COST

    name: Literal["lsc"] = "lsc"
    quantile: float = Field(
        0.85, gt=0, lt=1, allow_inf_nan=False, description="of the initial policy's rewards, where the centre lies"
    )
    scale: Positive = Field(1.0, description="divides the distance, in units of the raw reward; 1 as published")


class CalibrateSpec(RuleSpec):
    """The reward's rank among the initial policy's on the prompt, then a curve for best-of-N sampling."""

    source = "InfAlign-CTRL, arXiv 2412.19792"
    needs = frozenset({"references"})
    cost = REFERENCE_COST

    name: Literal["calibrate"] = "calibrate"
    transform: Literal["identity", "exponential", "log"] = Field(
        "exponential",
        description="of the rank in [0, 1]: identity for the win rate, exponential for best-of-N, "
        "log for the log-rank of best-of-N distillation (arXiv 2407.14622)",
    )
    t: float = Field(
        10.0,
        ge=-100,
        le=100,
        allow_inf_nan=False,
        description="steepness of the exponential; negative for the worst of N",
    )


class SoftOverlongSpec(RuleSpec):
    """Completions near the limit cost: 0 until the buffer begins, then linear to -penalty."""

    source = "DAPO, arXiv 2503.14476"

    name: Literal["soft_overlong"] = "soft_overlong"
    max_tokens: int = Field(ge=1, description="length that costs the penalty, in tokens of the completion")
    buffer_tokens: int = Field(ge=1, description="tokens before max_tokens over which the cost rises from 0")
    add: bool = Field(False, description="add the cost to the reward, as published, instead of taking its place")
    penalty: Positive = Field(
        1.0,
        le=1000,
        description="cost at max_tokens, in units of the reward; the published 1 stands beside a correctness of -1 or "
        "1, so that 0.5 is as much beside one of 0 or 1, such as math's",
    )

    @model_validator(mode="after")
    def _buffer_fits(self) -> Self:
        if self.buffer_tokens > self.max_tokens:
            raise ValueError(f"buffer_tokens ({self.buffer_tokens}) must not exceed max_tokens ({self.max_tokens})")
        return self


class CosineSpec(RuleSpec):
    """A right answer should be short, a wrong one may think longer."""

    source = "arXiv 2502.03373"

    name: Literal["cosine"] = "cosine"
    max_tokens: int = Field(ge=1, description="length at which the curves end, in tokens of the completion")
    correct_at: Finite = Field(0.5, description="raw reward from which on an answer is right")
    correct: tuple[Finite, Finite] = Field((2.0, 1.0), description="reward of a right answer at 0 and at max_tokens")
    wrong: tuple[Finite, Finite] = Field((-10.0, 0.0), description="reward of a wrong answer at 0 and at max_tokens")
    exceeded: Finite = Field(-10.0, description="reward of any answer from max_tokens on")

    @model_validator(mode="after")
    def _right_beats_wrong(self) -> Self:
        if min(self.correct) < max(self.wrong):
            raise ValueError("a right answer must not be rewarded less than a wrong one: min(correct) >= max(wrong)")
        return self


class GroupLengthSpec(RuleSpec):
    """Shorter than the prompt's other rollouts: 1/2 for the shortest, -1/2 for the longest."""

    source = "Kimi k1.5, arXiv 2501.12599"

    name: Literal["group_length"] = "group_length"
    correct_at: Finite | None = Field(
        0.5, description="raw reward from which on an answer is right; a wrong one gains nothing; all gain when null"
    )
    add: bool = Field(False, description="add it to the reward instead of taking its place")


class MeanLengthSpec(RuleSpec):
    """1 for fewer tokens than the mean over all completions of the job so far, else 0."""

    source = "arXiv 2509.11452"

    name: Literal["mean_length"] = "mean_length"
    decay: float = Field(
        1.0,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="weight of a batch's completions beside the next one's; 1, as published, forgets nothing",
    )
    add: bool = Field(False, description="add it to the reward instead of taking its place, as published")


TransformSpec = Annotated[
    IdentitySpec
    | ClipSpec
    | ZScoreSpec
    | LscSpec
    | CalibrateSpec
    | SoftOverlongSpec
    | CosineSpec
    | GroupLengthSpec
    | MeanLengthSpec,
    Field(discriminator="name"),
]
