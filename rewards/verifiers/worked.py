"""Rewards of the arena's tasks: a right answer in few tokens, and working that is told in words."""

from __future__ import annotations

import hashlib
import re
from typing import ClassVar

from pydantic import BaseModel, Field

from rewards.base import RewardBatch, RewardOptions
from rewards.registry import register
from rewards.verifiers import rows
from rewards.verifiers.boxed import last_boxed

_WORD = re.compile(r"[^\W\d_]{2,}")


class RightWithinOptions(rows.RowOptions):
    """How long a right answer may be."""

    needs_answer: ClassVar[bool] = True

    max_tokens: int = Field(20, ge=1, description="more tokens than this score 0")


@register
class RightWithin:
    """1 where the last box holds the row's answer, letter for letter, and the completion is short enough, else 0.

    Sparse for a policy that works its answers out.
    """

    name: ClassVar[str] = "right_within"
    Options: ClassVar[type[BaseModel]] = RightWithinOptions
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    rowwise: ClassVar[bool] = True

    def __init__(self, options: RightWithinOptions) -> None:
        self._options = options

    def score(self, batch: RewardBatch) -> list[float | None]:
        answers = [rows.answer(batch, row, self._options.missing) for row in range(len(batch))]
        columns = zip(batch.completions, answers, batch.completion_tokens, strict=True)
        return [
            None if answer is None else float(tokens <= self._options.max_tokens and _boxes(text, answer))
            for text, answer, tokens in columns
        ]


class WordedOptions(RewardOptions):
    """How reliable the rating is."""

    noise: float = Field(
        0.0, ge=0, le=10, allow_inf_nan=False, description="half the width of the uniform noise that is added"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of the noise")


@register
class Worded:
    """Rates from 0 to 10 how much of the working is told in words: 10 times the share of the lines before the last.

    With `noise`, as from a rater who is not sure: uniform, of mean 0, and the same for the same prompt, completion and
    seed. A completion of one line scores 0, before the noise.
    """

    name: ClassVar[str] = "worded"
    Options: ClassVar[type[BaseModel]] = WordedOptions
    range: ClassVar[tuple[float, float]] = (-10.0, 20.0)
    rowwise: ClassVar[bool] = True

    def __init__(self, options: WordedOptions) -> None:
        self._options = options

    def score(self, batch: RewardBatch) -> list[float]:
        columns = zip(batch.prompts, batch.completions, strict=True)
        return [10 * _share_in_words(text) + self._noise(prompt, text) for prompt, text in columns]

    def _noise(self, prompt: str, completion: str) -> float:
        if self._options.noise == 0:
            return 0.0
        key = f"{self._options.seed}\0{prompt}\0{completion}".encode("utf-8", "surrogatepass")
        chance = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2**64
        return self._options.noise * (2 * chance - 1)


def _boxes(text: str, answer: str) -> bool:
    box = last_boxed(text)
    return box is not None and box.content == answer


def _share_in_words(text: str) -> float:
    steps = text.strip().split("\n")[:-1]
    return sum(_WORD.search(step) is not None for step in steps) / len(steps) if steps else 0.0
