"""A pattern that the answer has to match."""

from __future__ import annotations

import functools
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from rewards.base import RewardBatch
from rewards.registry import register
from rewards.verifiers import rows
from rewards.verifiers.extract import ExtractOptions, extract
from rewards.verifiers.patterns import MAX_PATTERN_CHARS, Pattern


class RegexOptions(ExtractOptions):
    """The pattern, or the column that holds each row's."""

    pattern: str | None = Field(
        None, min_length=1, max_length=MAX_PATTERN_CHARS, description="regular expression, of those that RE2 takes"
    )
    column: str | None = Field(
        None, min_length=1, max_length=200, description="column of the data with each row's pattern, in place of one"
    )
    mode: Literal["search", "fullmatch"] = Field("search", description="anywhere in that part, or all of it")
    ignore_case: bool = Field(False, description="whether upper and lower case are the same")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            Pattern(pattern)
        return pattern

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.pattern is None) == (self.column is None):
            raise ValueError("give one of `pattern` and `column`")
        return self


@register
class Regex:
    """1 where the completion matches a regular expression, else 0, also where that part is absent or empty.

    The pattern is the spec's or the row's. RE2 runs it, in time linear in the text: no pattern hangs a worker, and
    look-around and back references are refused.
    """

    name: ClassVar[str] = "regex"
    Options: ClassVar[type[BaseModel]] = RegexOptions
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    rowwise: ClassVar[bool] = True

    def __init__(self, options: RegexOptions) -> None:
        self._options = options
        self._compile = functools.lru_cache(1024)(Pattern)

    def score(self, batch: RewardBatch) -> list[float | None]:
        return [self._score(batch, row) for row in range(len(batch))]

    def _score(self, batch: RewardBatch, row: int) -> float | None:
        pattern = self._pattern(batch, row)
        if pattern is None:
            return None
        part = extract(batch.completions[row], self._options.where)
        if part is None:
            return 0.0
        return float(pattern.search(part) if self._options.mode == "search" else pattern.fullmatch(part))

    def _pattern(self, batch: RewardBatch, row: int) -> Pattern | None:
        wanted = self._options.pattern
        if self._options.column is not None:
            found = rows.detail(batch, row, self._options.column, self._options.missing)
            if found is None:
                return None
            if not isinstance(found, str) or not 0 < len(found) <= MAX_PATTERN_CHARS:
                raise rows.MissingRow(row, f"needs a pattern of at most {MAX_PATTERN_CHARS} characters as text")
            wanted = found
        assert wanted is not None
        try:
            return self._compile(wanted, ignore_case=self._options.ignore_case)
        except ValueError as error:
            raise rows.MissingRow(row, "has a pattern that can't be used", f": it is {error}") from None
