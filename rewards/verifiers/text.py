"""Answers compared as text: to the letter, or by their words."""

from __future__ import annotations

import re
import unicodedata
from typing import ClassVar

from pydantic import BaseModel, Field

from rewards.base import RewardBatch
from rewards.registry import register
from rewards.verifiers import rows
from rewards.verifiers.extract import ExtractOptions, extract

_MAX_ANSWER_CHARS = 10_000  # Unicode's normal form takes time in the square of a run of accents
# A word follows an article, and "a" is one of more than a letter: the choice "A" is none, nor are those of "A, B".
_ARTICLES = re.compile(r"\b(?:an|the)\s+(?=[^\w\s]*\w)|\ba\s+(?=[^\w\s]*\w\w)", re.IGNORECASE)
_MEANT = re.compile(r"(?<![\w-])-(?=[^\w\s]?\d)|(?<=\w)#(?!\w)")  # of punctuation: the sign of a number, C#


class ExactOptions(ExtractOptions):
    """What is compared."""


@register
class Exact:
    """1 where the answer is the ground truth to the letter, apart from white space around it, else 0."""

    name: ClassVar[str] = "exact"
    Options: ClassVar[type[BaseModel]] = ExactOptions
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    rowwise: ClassVar[bool] = True

    def __init__(self, options: ExactOptions) -> None:
        self._options = options

    def score(self, batch: RewardBatch) -> list[float | None]:
        scores: list[float | None] = []
        for row, completion in enumerate(batch.completions):
            truth = rows.answer(batch, row, self._options.missing)
            scores.append(None if truth is None else float(extract(completion, self._options.where) == truth))
        return scores


class TextOptions(ExtractOptions):
    """What is compared, and what makes no difference."""

    case: bool = Field(False, description="whether upper and lower case differ")
    punctuation: bool = Field(False, description="whether punctuation makes a difference")
    articles: bool = Field(False, description="whether a, an and the make a difference")


@register
class Text:
    """1 where the answer has the ground truth's words, else 0: case, punctuation and articles aside.

    Both are brought to Unicode's NFKC first, so that full-width letters and ligatures are what they look like, and
    white space is one space. A number keeps its sign, C# its #, and an "a" that no word follows is no article. An
    answer above 10,000 characters scores 0. Where nothing is left of the ground truth (it was punctuation alone),
    punctuation counts.
    """

    name: ClassVar[str] = "text"
    Options: ClassVar[type[BaseModel]] = TextOptions
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    rowwise: ClassVar[bool] = True

    def __init__(self, options: TextOptions) -> None:
        self._options = options

    def score(self, batch: RewardBatch) -> list[float | None]:
        scores: list[float | None] = []
        for row, completion in enumerate(batch.completions):
            truth = rows.answer(batch, row, self._options.missing)
            scores.append(None if truth is None else float(self._same(truth, completion)))
        return scores

    def _same(self, truth: str, completion: str) -> bool:
        found = extract(completion, self._options.where)
        if found is None or len(found) > _MAX_ANSWER_CHARS:
            return False
        wanted = normalise(truth, self._options)
        if not wanted:
            return " ".join(found.split()) == " ".join(truth.split())
        return normalise(found, self._options) == wanted


def normalise(text: str, options: TextOptions) -> str:
    """One spelling for what is meant to be the same."""
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-")
    if not options.case:
        text = text.casefold()
    if not options.articles:
        text = _ARTICLES.sub(" ", text)
    if not options.punctuation:
        meant = {found.start() for found in _MEANT.finditer(text)}
        text = "".join(
            " " if unicodedata.category(letter).startswith("P") and place not in meant else letter
            for place, letter in enumerate(text)
        )
    return " ".join(text.split())
