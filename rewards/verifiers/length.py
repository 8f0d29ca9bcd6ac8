"""Lengths in tokens of the policy: as they are, against a threshold, and graded.

What compares a completion with its group or with all so far is a transform: group_length and mean_length.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, Field, model_validator

from rewards.base import RewardBatch, RewardOptions
from rewards.registry import register


class ConcisenessOptions(RewardOptions):
    """Where the score starts to fall, and where it reaches zero."""

    max_tokens: int | None = Field(
        None, ge=1, description="length that scores 0, in tokens; the job's completion limit when absent"
    )
    free_tokens: int = Field(
        0, ge=0, description="length up to which a completion scores 1, in tokens; must be below max_tokens"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_tokens is not None:
            _check_order(self.free_tokens, self.max_tokens)
        return self


@register
class Conciseness:
    """1 for a short completion, falling linearly to 0 at the longest one allowed.

        clip(1 - max(0, tokens - free_tokens) / (max_tokens - free_tokens), 0, 1)

    `free_tokens` takes the pressure off completions that are short enough: up to it all score 1, so that one
    token more or less does not decide the update alone once the other objectives are constant in a group.

    Raises ValueError where the batch's limit is not above free_tokens.
    """

    name: ClassVar[str] = "conciseness"
    Options: ClassVar[type[BaseModel]] = ConcisenessOptions
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    rowwise: ClassVar[bool] = True

    def __init__(self, options: ConcisenessOptions) -> None:
        self._options = options

    def score(self, batch: RewardBatch) -> list[float]:
        free_tokens = self._options.free_tokens
        max_tokens = self._options.max_tokens or batch.max_tokens
        _check_order(free_tokens, max_tokens)
        return [
            max(0.0, 1.0 - max(0, tokens - free_tokens) / (max_tokens - free_tokens))
            for tokens in batch.completion_tokens
        ]


def _check_order(free_tokens: int, max_tokens: int) -> None:
    if free_tokens >= max_tokens:
        raise ValueError(f"free_tokens ({free_tokens}) must be below max_tokens ({max_tokens})")


class LengthOptions(RewardOptions):
    """Which way is better."""

    better: Literal["shorter", "longer"] = Field("shorter", description="shorter counts tokens negatively")


@register
class Length:
    """The completion's tokens, negative where shorter is better: a plain number for figures and transforms.

    It has no bounds, so give its objective a `range`, such as [-1024, 0], and mind that under an estimator that sums
    raw rewards it drowns a reward between 0 and 1.
    """

    name: ClassVar[str] = "length"
    Options: ClassVar[type[BaseModel]] = LengthOptions
    range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    rowwise: ClassVar[bool] = True

    def __init__(self, options: LengthOptions) -> None:
        self._sign = -1 if options.better == "shorter" else 1

    def score(self, batch: RewardBatch) -> list[float]:
        return [float(self._sign * tokens) for tokens in batch.completion_tokens]


class LengthWithinOptions(RewardOptions):
    """The two ends."""

    min_tokens: int = Field(0, ge=0, description="fewer tokens than this score 0")
    max_tokens: int | None = Field(
        None, ge=1, description="more tokens than this score 0; any length that was not cut off is allowed when absent"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})")
        return self


@register
class LengthWithin:
    """1 where the completion's length lies between two thresholds, else 0; a completion that was cut off scores 0."""

    name: ClassVar[str] = "length_within"
    Options: ClassVar[type[BaseModel]] = LengthWithinOptions
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    rowwise: ClassVar[bool] = True

    def __init__(self, options: LengthWithinOptions) -> None:
        self._options = options

    def score(self, batch: RewardBatch) -> list[float]:
        low, high = self._options.min_tokens, self._options.max_tokens or math.inf
        return [
            float(low <= tokens <= high and not cut)
            for tokens, cut in zip(batch.completion_tokens, batch.truncated, strict=True)
        ]
