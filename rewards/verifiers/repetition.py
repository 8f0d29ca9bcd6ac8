"""Repetition: a text that goes round in circles scores low."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import BaseModel, Field

from rewards.base import RewardBatch, RewardOptions
from rewards.registry import register

_WORD = re.compile(r"\w+|[^\w\s]")


class RepetitionOptions(RewardOptions):
    """What is counted."""

    n: int = Field(4, ge=1, le=50, description="length of the runs that are compared, in units")
    unit: Literal["words", "characters"] = Field("words", description="words with punctuation, or characters")


@register
class Repetition:
    """The share of runs of n words that are not repetitions: 1 where none is, towards 0 for a loop.

        distinct runs / runs

    (1 plus the n-gram penalty of arXiv 2502.03373). 1 for a text of fewer than n + 1 words, the empty one included:
    pair it with a reward for the answer. 0 where the completion was cut before an answer began: thoughts without end
    are not seen (`rollout.reasoning`), and are most often a loop.
    """

    name: ClassVar[str] = "repetition"
    Options: ClassVar[type[BaseModel]] = RepetitionOptions
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    rowwise: ClassVar[bool] = True

    def __init__(self, options: RepetitionOptions) -> None:
        self._options = options

    def score(self, batch: RewardBatch) -> list[float]:
        return [
            0.0 if batch.is_unanswered(row) else self._score(completion.lower())
            for row, completion in enumerate(batch.completions)
        ]

    def _score(self, text: str) -> float:
        units, n = (_WORD.findall(text) if self._options.unit == "words" else text), self._options.n
        runs = len(units) - n + 1
        if runs < 2:
            return 1.0
        # Their hashes: of a long text the runs themselves would take n times its memory.
        return len({hash(tuple(units[start : start + n])) for start in range(runs)}) / runs
