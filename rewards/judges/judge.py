"""A judge's score by a rubric, in [0, 1]: one criterion, or several from the same call.

Judges as constraints (`threshold`, a score of 0 or 1): CGPO, arXiv 2409.20370.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import BaseModel, Field, model_validator

from rewards.base import RewardBatch, RewardOptions
from rewards.judges import profiles, rubrics
from rewards.registry import register

if TYPE_CHECKING:
    from rewards.judges.panel import Question

_NAME = r"^[a-z][a-z0-9_]{0,63}$"


class JudgeOptions(RewardOptions):
    """Who is asked, what about, and how the answers become a score."""

    profile: str = Field(pattern=profiles.NAME, description="one of the operator's judges (GET /v1/judges)")
    rubric: str | dict[str, str] = Field(
        description=f"a built-in rubric ({', '.join(rubrics.BUILT_IN)}) or a text of your own, where {{prompt}}, "
        "{completion} and {answer} stand for the row's; or several, by name, that one call scores"
    )
    head: str = Field(rubrics.SINGLE, pattern=_NAME, description="which of several rubrics this objective is")
    worst: int = Field(1, ge=-1000, le=1000, description="lower end of the judge's scale, which becomes 0")
    best: int = Field(10, ge=-1000, le=1000, description="upper end, which becomes 1; at most 100 above worst")
    threshold: float | None = Field(None, description="on the judge's scale: 1 from here on, else 0")
    votes: int = Field(1, ge=1, le=16, description="times that each completion is judged")
    aggregate: Literal["mean", "median"] = Field("mean", description="of the votes")
    temperature: float = Field(0.0, ge=0, le=2, description="of the judge; votes need one above 0 to differ")
    max_tokens: int = Field(512, ge=1, le=32_768, description="longest answer of the judge, in its tokens")
    reason: bool = Field(True, description="whether the judge says why before it scores, which costs tokens")
    max_chars: int = Field(
        24_000, ge=100, le=1_000_000, description="of each text that is shown; of a longer one, its beginning and end"
    )
    unparsed: Literal["error", "lowest"] = Field(
        "error",
        description="what a row without a score is (three answers held none, or an endpoint that answers others "
        "refuses it, as content filters do, with 400, 413 or 422): an error of that row, or a 0",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.worst < self.best <= self.worst + 100:
            raise ValueError("best: expected more than worst, by 100 at most")
        if self.threshold is not None and not self.worst < self.threshold <= self.best:
            raise ValueError("threshold: expected more than worst, and best at most")
        if self.votes > 1 and self.temperature == 0:
            raise ValueError("temperature: votes are all the same at 0; 0.7 is usual")
        rubrics.check(self.rubric, self.head)
        return self

    @property
    def needs_answer(self) -> bool:
        """Whether the criterion of this objective says nothing about a row without a reference answer."""
        return any(each.needs_answer for each in rubrics.criteria_of(self.rubric) if each.name == self.head)

    @property
    def scale(self) -> tuple[int, int]:
        return self.worst, self.best


@register
class Judge:
    """A language model's score of the completion by a rubric, from 0 to 1.

        (clip(score, worst, best) - worst) / (best - worst), the mean or median over votes

    or, with a threshold, 1 where that score of the judge's scale reaches it, else 0. Rubrics that need a reference
    answer don't apply to a row where it is absent or blank. Objectives that differ in `head` alone share their calls.

    Raises ProfileError where it is built, JudgeError where the judge gives no scores for a row, and
    JudgeUnavailableError where it does not answer; none says where the judge is or what was sent.
    """

    name: ClassVar[str] = "judge"
    Options: ClassVar[type[BaseModel]] = JudgeOptions
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    head_option: ClassVar[str] = "head"

    def __init__(self, options: JudgeOptions) -> None:
        from rewards.judges.panel import Panel  # with httpx and asyncio, which a list of rewards does without

        self._options = options
        self._criteria = rubrics.criteria_of(options.rubric)
        self._panel = Panel(
            options.profile,
            temperature=options.temperature,
            max_tokens=options.max_tokens,
            votes=options.votes,
            unparsed=options.unparsed,
        )

    @classmethod
    def problems(cls, options: JudgeOptions) -> Iterator[tuple[str, str]]:
        """(option, what is wrong) on this machine: what can't be told from the options alone."""
        if found := profiles.problem(options.profile):
            yield "profile", found

    def score(self, batch: RewardBatch) -> list[float | None]:
        return self.score_heads(batch)[self._options.head]

    def score_heads(self, batch: RewardBatch) -> dict[str, list[float | None]]:
        questions = [self._question(batch, row) for row in range(len(batch))]
        asked = [question for question in questions if question is not None]
        answers = iter(self._panel.ask(asked))
        scores: dict[str, list[float | None]] = {each.name: [None] * len(batch) for each in self._criteria}
        for row, question in enumerate(questions):
            if question is None:
                continue
            votes = next(answers)
            for name in question.names:
                scores[name][row] = self._score([vote[name] for vote in votes])
        return scores

    def figures(self) -> dict[str, float]:
        """Calls, tokens, cost, latency, and what became of answers, since the start."""
        return self._panel.figures()

    def close(self) -> None:
        """Ends its connections and its thread."""
        self._panel.close()

    def _question(self, batch: RewardBatch, row: int) -> Question | None:
        """What is asked about a row; None where no criterion applies."""
        from rewards.judges.answers import parse
        from rewards.judges.panel import Question

        answer = rubrics.reference_of(batch, row)
        criteria = [each for each in self._criteria if answer is not None or not each.needs_answer]
        if not criteria:
            return None
        options, names = self._options, tuple(each.name for each in criteria)
        texts = {"prompt": rubrics.prompt_of(batch, row), "completion": batch.completions[row], "answer": answer}
        return Question(
            messages=rubrics.messages(
                criteria, texts, scale=options.scale, reason=options.reason, max_chars=options.max_chars
            ),
            schema=rubrics.schema(criteria, scale=options.scale, reason=options.reason),
            names=names,
            scale=options.scale,
            read=lambda text: parse(text, names, options.scale),
        )

    def _score(self, votes: list[float]) -> float:
        options = self._options
        score = statistics.fmean(votes) if options.aggregate == "mean" else statistics.median(votes)
        if options.threshold is not None:
            return float(score >= options.threshold)
        return (score - options.worst) / (options.best - options.worst)
