"""A number compared with a tolerance."""

from __future__ import annotations

import math
import re
from typing import ClassVar, Literal

from pydantic import BaseModel, Field

from rewards.base import RewardBatch
from rewards.registry import register
from rewards.verifiers import rows
from rewards.verifiers.extract import ExtractOptions, extract

_MAX_ANSWER_CHARS = 20_000  # numbers are looked for in the last of them
_NUMBER = re.compile(
    r"(?<![\w.])[-+\u2212]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,400})?(?:\.\d{1,400})?(?<=\d)"
    r"(?:[eE][-+]?\d{1,4}|[ ]?(?:\u00d7|\\times|\\cdot|\*)[ ]?10\^\{?[-+]?\d{1,4}\}?)?"
    r"(?:[ ]?/[ ]?\d{1,400}(?!\d|\.\d))?(?:[ ]?\\?%)?",
    re.ASCII,
)
_FRACTION = re.compile(
    r"(?:(?<![\d.,])(\d{1,9})\s?)?\\[dt]?frac(?:\{(-?\d{1,400})\}|\s?(\d))\s?(?:\{(\d{1,400})\}|(\d))", re.ASCII
)
_MIXED = re.compile(r"(?<![\w.,/^])(\d{1,9}) (\d{1,9})/(\d{1,9})(?![\d/]|\.\d)", re.ASCII)
_RAISED = re.compile(r"[\^_]\{?$")  # in front of an exponent or an index, which is no number of the text
_RAISES = re.compile(r"\^\{?[-+]?\d")  # behind the base of a power, which is not what the text says
_TIMES = re.compile(r" ?(?:\u00d7|\\times|\\cdot|\*) ?10\^\{?([-+]?\d+)\}?")


class NumericOptions(ExtractOptions):
    """Where the number stands, and how near it has to be."""

    pick: Literal["last", "first", "only"] = Field(
        "last", description="which number of that part counts; with `only`, a part with several numbers scores 0"
    )
    absolute: float = Field(0.0, ge=0, description="tolerated distance, in the answer's unit")
    relative: float = Field(1e-6, ge=0, lt=1, description="tolerated distance as a share of the ground truth's size")


@register
class Numeric:
    """1 where the answer's number is near enough to the ground truth, else 0.

        |x - truth| <= max(absolute, relative |truth|)

    Reads 1,234.5, 1e-3, 3 x 10^8, 3/4, 3 1/2 (all as LaTeX has them too) and 5% (which is 0.05, unless the ground
    truth is percent as well: then both are, and 5 is 5%). Digits inside of a word are no number, nor are exponents,
    indices and what an exponent raises: of 2^3 = 8 only 8.
    """

    name: ClassVar[str] = "numeric"
    Options: ClassVar[type[BaseModel]] = NumericOptions
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    rowwise: ClassVar[bool] = True
    wanted_truth: ClassVar[str] = "one number"

    def __init__(self, options: NumericOptions) -> None:
        self._options = options

    def score(self, batch: RewardBatch) -> list[float | None]:
        scores: list[float | None] = []
        for row, completion in enumerate(batch.completions):
            truth = rows.answer(batch, row, self._options.missing)
            scores.append(None if truth is None else float(self._near(row, truth, completion)))
        return scores

    @staticmethod
    def takes_truth(truth: str) -> bool:
        return len(numbers(truth[:_MAX_ANSWER_CHARS])) == 1

    def _near(self, row: int, truth: str, completion: str) -> bool:
        wanted = numbers(truth)
        if len(wanted) != 1:
            raise rows.MissingRow(row, f"needs a ground truth that is {self.wanted_truth}")
        part = extract(completion, self._options.where)
        found = numbers(part[-_MAX_ANSWER_CHARS:]) if part else []
        if not found or (self._options.pick == "only" and len(found) > 1):
            return False
        target, target_is_percent = wanted[0]
        number, is_percent = found[0 if self._options.pick == "first" else -1]
        scale = 0.01 if is_percent and not target_is_percent else 1.0
        distance = abs(number * scale - target)
        return distance <= max(self._options.absolute, self._options.relative * abs(target))


def numbers(text: str) -> list[tuple[float, bool]]:
    """Every finite number of a text, in order, and whether a percent sign follows it."""
    text = text.replace("{,}", ",").replace(r",\!", ",")
    text = _MIXED.sub(_improper, _FRACTION.sub(_written_out, text))
    found = (_parse(match.group()) for match in _NUMBER.finditer(text) if match.group() and not _is_power(match))
    return [(number, percent) for number, percent in found if math.isfinite(number)]


def _is_power(number: re.Match[str]) -> bool:
    """Whether it is raised, or raises."""
    text, start = number.string, number.start()
    return bool(_RAISED.search(text[max(0, start - 2) : start]) or _RAISES.match(text, number.end()))


def _written_out(fraction: re.Match[str]) -> str:
    r"""a/b of \frac{a}{b}, and w a/b where a whole number stands before it."""
    whole, top, digit, below, digit_below = fraction.groups()
    return f"{whole + ' ' if whole else ''}{top or digit}/{below or digit_below}"


def _improper(mixed: re.Match[str]) -> str:
    """A mixed number as one fraction; as it stands where it is none."""
    whole, top, below = map(int, mixed.groups())
    return f"{whole * below + top}/{below}" if top < below else mixed.group()


def _parse(text: str) -> tuple[float, bool]:
    percent = text.endswith("%")
    text = text.rstrip("\\% ").replace(",", "").replace("\u2212", "-")
    top, _, bottom = _TIMES.sub(r"e\1", text).replace(" ", "").partition("/")
    divisor = float(bottom or 1)
    return (float(top) / divisor if divisor else math.nan), percent
