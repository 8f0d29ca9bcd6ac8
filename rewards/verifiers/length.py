"""Conciseness: fewer tokens score higher, until short enough."""

from __future__ import annotations

from typing import ClassVar, Self

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
