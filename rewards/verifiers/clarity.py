r"""Clarity: the work is shown step by step, and the answer stands in a box."""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import BaseModel, Field, field_validator

from rewards.base import RewardBatch, RewardOptions
from rewards.registry import register
from rewards.verifiers.boxed import last_boxed
from rewards.verifiers.patterns import Pattern

# `30-1=29`, `x^2 = 4`. The bounded prefix keeps the search linear in the length of the text.
_EQUATION = re.compile(r"[^\s=]{0,40}\d[ \t]{0,3}=[ \t]{0,3}-?\d[\d.,]{0,20}")

# `1. ...`, `(2) ...`, `Step 3: ...`, `- ...`, `## ...`, `Then ...` at the start of a line, and what follows.
_LISTED = re.compile(
    r"""^[ \t]*
        (?: (?: (?:\#{1,6}|\*\*) [ \t]{0,3} )? step [ \t]{1,3} \d+
          | \(?\d{1,2}[.):] (?=\s)
          | [-*•] (?=[ \t])
          | \#{2,6} (?=[ \t])
          | (?:first|second|third|next|then|finally) (?:ly)? \b
        )
        (.*\S)""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_BLANK_LINE = re.compile(r"\n\s*\n")
_MIN_PARAGRAPH_WORDS = 5  # fewer is a heading or a filler such as "So:"


class ClarityOptions(RewardOptions):
    """How much work has to be shown."""

    min_steps: int = Field(2, ge=1, le=100, description="steps that count as fully shown, a number of steps")
    step_pattern: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="regular expression (RE2, multiline): every distinct match is a step; replaces our rule",
    )

    @field_validator("step_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        Pattern(pattern or "", multiline=True)
        return pattern


@register
class Clarity:
    """1 where the completion shows its steps and boxes an answer, in between where part of that is missing.

        min(1, steps / min_steps) * (1 if boxed else 0.5)

    So a boxed answer alone scores 0, as does an empty completion, and steps without a box score at most 0.5.
    It grades the published rule, which is `format`, so that a group that never gets everything right still has
    something to learn from, and is harder to satisfy by marks alone: a step is a line, an equation or a paragraph,
    before the box, and no other one's repetition. Whether the steps are correct it does not ask: pair it with `math`.

    Steps are counted before the box: equations (`digits = digits`), lines that begin like a list's (`1.`,
    `Step 2`, `-`, `Then`) or paragraphs of five words or more, whichever are most. Repeating a step does not
    make another one. `step_pattern` replaces the rule.
    """

    name: ClassVar[str] = "clarity"
    Options: ClassVar[type[BaseModel]] = ClarityOptions
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    rowwise: ClassVar[bool] = True

    def __init__(self, options: ClarityOptions) -> None:
        self._min_steps = options.min_steps
        self._pattern = Pattern(options.step_pattern, multiline=True) if options.step_pattern else None

    def score(self, batch: RewardBatch) -> list[float]:
        return [self._score(completion) for completion in batch.completions]

    def _score(self, completion: str) -> float:
        boxed = last_boxed(completion)
        work = completion[: boxed.start] if boxed else completion
        steps = len(set(map(str.strip, self._pattern.found(work)))) if self._pattern else count_steps(work)
        return min(1.0, steps / self._min_steps) * (1.0 if boxed else 0.5)


def count_steps(text: str) -> int:
    """Distinct steps by the built-in rule: the kind of step that the text has most of decides."""
    paragraphs = {
        " ".join(words)
        for paragraph in _BLANK_LINE.split(text)
        if len(words := paragraph.split()) >= _MIN_PARAGRAPH_WORDS
    }
    return max(_distinct(_EQUATION, text), _distinct(_LISTED, text, group=1), len(paragraphs))


def _distinct(pattern: re.Pattern[str], text: str, group: int = 0) -> int:
    return len({match.group(group).strip() for match in pattern.finditer(text)})
