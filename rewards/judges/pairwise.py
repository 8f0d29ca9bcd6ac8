"""A judge's comparison of the completion with the row's reference answer.

Judges prefer what they read first or last (arXiv 2306.05685), so each pair is shown in both orders.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, Field

from rewards.base import RewardBatch, RewardOptions
from rewards.judges import profiles, rubrics
from rewards.registry import register

if TYPE_CHECKING:
    from rewards.judges.answers import Verdict
    from rewards.judges.panel import Question

_WIN = "win"
_CHOICES = ("first", "second", "tie")


class PairwiseOptions(RewardOptions):
    """Who is asked, and which of two is the better one."""

    needs_answer: ClassVar[bool] = True

    profile: str = Field(pattern=profiles.NAME, description="one of the operator's judges (GET /v1/judges)")
    question: str = Field(
        "Which of the two does better what the prompt asks for?",
        min_length=1,
        max_length=8000,
        description="what the judge is asked of the two",
    )
    max_tokens: int = Field(512, ge=1, le=32_768, description="longest answer of the judge, in its tokens")
    reason: bool = Field(True, description="whether the judge says why before it chooses, which costs tokens")
    max_chars: int = Field(
        24_000, ge=100, le=1_000_000, description="of each text that is shown; of a longer one, its beginning and end"
    )


@register
class PairwiseJudge:
    """How a language model likes the completion beside the row's reference answer: 1 better, 0.5 as good, 0 worse.

    The mean over both orders. It doesn't apply to a row whose answer is absent or blank. Errors are those of `judge`.
    """

    name: ClassVar[str] = "judge_pairwise"
    Options: ClassVar[type[BaseModel]] = PairwiseOptions
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(self, options: PairwiseOptions) -> None:
        from rewards.judges.panel import Panel  # with httpx and asyncio, which a list of rewards does without

        self._options = options
        self._panel = Panel(options.profile, temperature=0.0, max_tokens=options.max_tokens)

    @classmethod
    def problems(cls, options: PairwiseOptions) -> Iterator[tuple[str, str]]:
        """(option, what is wrong) on this machine: what can't be told from the options alone."""
        if found := profiles.problem(options.profile):
            yield "profile", found

    def score(self, batch: RewardBatch) -> list[float | None]:
        rows = [row for row in range(len(batch)) if rubrics.reference_of(batch, row) is not None]
        questions = [self._question(batch, row, is_first) for row in rows for is_first in (True, False)]
        wins = [vote[_WIN] for (vote,) in self._panel.ask(questions)]
        scores: list[float | None] = [None] * len(batch)
        for i, row in enumerate(rows):
            scores[row] = statistics.fmean(wins[2 * i : 2 * i + 2])
        return scores

    def figures(self) -> dict[str, float]:
        """Calls, tokens, cost, latency, and what became of answers, since the start."""
        return self._panel.figures()

    def close(self) -> None:
        """Ends its connections and its thread."""
        self._panel.close()

    def _question(self, batch: RewardBatch, row: int, is_first: bool) -> Question:
        from rewards.judges.panel import Question

        pair = (batch.completions[row], batch.answers[row])
        first, second = pair if is_first else pair[::-1]
        texts = {"prompt": rubrics.prompt_of(batch, row), "first": first, "second": second}
        options = self._options
        return Question(
            messages=rubrics.comparison(options.question, texts, reason=options.reason, max_chars=options.max_chars),
            schema=rubrics.object_schema({"choice": {"type": "string", "enum": list(_CHOICES)}}, reason=options.reason),
            names=(_WIN,),
            scale=(0.0, 1.0),
            read=lambda text: _read(text, "first" if is_first else "second"),
        )


def _read(text: str, ours: str) -> Verdict | None:
    from rewards.judges.answers import Verdict, choice

    chosen = choice(text, "choice", _CHOICES)
    if chosen is None:
        return None
    return Verdict(scores={_WIN: 0.5 if chosen == "tie" else float(chosen == ours)}, clamped=0)
