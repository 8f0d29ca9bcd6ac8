r"""Accuracy on problems whose answer is known: the last `\boxed{}` against the ground truth."""

from __future__ import annotations

import functools
import re
from decimal import Decimal
from typing import ClassVar

from pydantic import BaseModel, Field

from rewards.base import RewardBatch, RewardOptions
from rewards.registry import register
from rewards.verifiers.boxed import last_boxed
from rewards.verifiers.equivalence import Equivalence

_MAX_ANSWER_CHARS = 300  # a final answer is short; what is longer is slow to parse and not compared

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)", re.ASCII)
_GROUPED = re.compile(r"[+-]?\d{1,3}((,|\{,\})\d{3})+(\.\d*)?", re.ASCII)
_SPACING = re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\[,;:! ]|\\?\$|\s|~")
_SPELLING = str.maketrans({"\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u03c0": r"\pi "})

# An operator between two operands. A power of ten is how a large number is written, not a product left to do.
_UNEVALUATED = re.compile(r"(?<=[\d)}\]!])(?:[-+]|(?:\*|\\times|\\cdot)(?!10\^)|\\div|\((?=[\d(]))")
_MARKER = re.compile(r"(?:answer(?:\s+is)?|####)\s*:?\s*(.*\S)", re.IGNORECASE)


class MathOptions(RewardOptions):
    """What counts as an answer."""

    require_boxed: bool = Field(
        True,
        description="whether only \\boxed{} counts; if not, the last line stands in for a missing box",
    )
    timeout_s: float = Field(
        2.0, gt=0, le=60, description="processor time for one symbolic comparison, in seconds; more scores 0"
    )


@register
class MathAccuracy:
    r"""1 where the final answer equals the ground truth, else 0.

    The answer is the content of the last `\boxed{}`. Equal text (apart from spacing) and equal numbers are
    decided at once, everything else by math-verify: fractions, roots, units, sets, intervals, matrices.

    Where the ground truth is a plain number the answer must be worked out: `30-1+6` or `9 \times 3` scores 0,
    so that copying the problem into the box earns nothing. Of `x = 5` or `2 + 3 = 5` the last part counts.

    An answer above 300 characters, or one that takes longer than `timeout_s` to compare, scores 0. Raises
    ValueError, which names the row, where there is no ground truth.
    """

    name: ClassVar[str] = "math"
    Options: ClassVar[type[BaseModel]] = MathOptions
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(self, options: MathOptions) -> None:
        self._require_boxed = options.require_boxed
        self._equivalence = Equivalence(options.timeout_s)

    def score(self, batch: RewardBatch) -> list[float]:
        correct = functools.cache(self._correct)  # the rollouts of one prompt often agree
        return [
            float(correct(_gold(row, answer), *self._final_answer(completion)))
            for row, (answer, completion) in enumerate(zip(batch.answers, batch.completions, strict=True))
        ]

    def _final_answer(self, completion: str) -> tuple[str, bool]:
        """The answer, empty where there is none, and whether it is a line of prose rather than a box."""
        boxed = last_boxed(completion)
        if boxed or self._require_boxed:
            return (boxed.content if boxed else ""), False
        line = completion.strip().rpartition("\n")[2]
        marked = _MARKER.search(line)
        return (marked.group(1) if marked else line), True

    def _correct(self, gold: str, answer: str, prose: bool) -> bool:
        quick = compare_plainly(gold, answer)
        return self._equivalence.same(gold, answer, prose=prose) if quick is None else quick


def compare_plainly(gold: str, answer: str) -> bool | None:
    """Whether the two are equal, where that needs no algebra; None where it does."""
    plain_gold, plain = normalise(gold), normalise(answer)
    if not plain or plain == plain_gold:
        return bool(plain)
    if len(answer) > _MAX_ANSWER_CHARS:
        return False
    if not _NUMBER.fullmatch(plain_gold):
        return None
    result = normalise(plain.rpartition("=")[2])
    if _NUMBER.fullmatch(result):
        return Decimal(plain_gold) == Decimal(result)
    return False if _UNEVALUATED.search(plain) else None


def normalise(answer: str) -> str:
    """One spelling for what is written in several ways with one meaning: spacing, minus signs, 1,000."""
    answer = _SPACING.sub("", answer.translate(_SPELLING)).rstrip(".")
    if _GROUPED.fullmatch(answer):
        return re.sub(r"[{,}]", "", answer)
    return answer.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")


def _gold(row: int, answer: str | None) -> str:
    if answer is None or not answer.strip():
        raise ValueError(f"row {row} has no ground truth; this reward needs an answer for every prompt")
    boxed = last_boxed(answer)
    return boxed.content if boxed else answer.strip()
