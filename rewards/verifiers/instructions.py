"""Instructions that a program can check: how many of a prompt's constraints the completion keeps."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import BaseModel, Field, JsonValue, field_validator

from rewards.base import RewardBatch
from rewards.registry import register
from rewards.verifiers import rows
from rewards.verifiers.constraints import prepare

_MAX_CONSTRAINTS = 50
_IDS, _ARGUMENTS = "instruction_id_list", "kwargs"

Constraints = tuple[Callable[[str], bool], ...]


class InstructionsOptions(rows.RowOptions):
    """Which constraints, and how they are counted."""

    constraints: list[dict[str, JsonValue]] | None = Field(
        None,
        min_length=1,
        max_length=_MAX_CONSTRAINTS,
        description="constraints of every row, each an object with `id` and that constraint's arguments, in IFEval's "
        "names; those of the row's columns instruction_id_list and kwargs when absent",
    )
    score_as: Literal["share", "all"] = Field(
        "share", description="share of the constraints that are kept, or 1 where all are and else 0"
    )

    @property
    def columns_read(self) -> tuple[str, ...]:
        return () if self.constraints else (_IDS,)

    @field_validator("constraints")
    @classmethod
    def _can_be_checked(cls, constraints: list[dict[str, JsonValue]] | None) -> list[dict[str, JsonValue]] | None:
        _of_spec(constraints or [])
        return constraints


@register
class Instructions:
    """The share of a prompt's verifiable constraints that the completion keeps: lengths, keywords, case, format.

    Ids and arguments are IFEval's (arXiv 2311.07911), so its rows work as they are; all 25 of its constraints are
    there, and `startend:start_checker` beside them. An empty completion keeps none.

    Raises ValueError for a constraint that is unknown or lacks an argument.
    """

    name: ClassVar[str] = "instructions"
    Options: ClassVar[type[BaseModel]] = InstructionsOptions
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    rowwise: ClassVar[bool] = True

    def __init__(self, options: InstructionsOptions) -> None:
        self._options = options
        self._prepared = functools.lru_cache(4096)(_prepare)  # the rollouts of a prompt share theirs
        self._fixed = _of_spec(options.constraints or [])

    def score(self, batch: RewardBatch) -> list[float | None]:
        return [self._score(batch, row) for row in range(len(batch))]

    def _score(self, batch: RewardBatch, row: int) -> float | None:
        constraints = self._fixed or self._of_row(batch, row)
        if constraints is None:
            return None
        kept = sum(holds(batch.completions[row]) for holds in constraints)
        if self._options.score_as == "all":
            return float(kept == len(constraints))
        return kept / len(constraints)

    def _of_row(self, batch: RewardBatch, row: int) -> Constraints | None:
        missing = self._options.missing
        ids = rows.detail(batch, row, _IDS, missing)
        arguments = rows.detail(batch, row, _ARGUMENTS, "skip") if ids is not None else None
        if ids is None or (ids == [] and missing == "skip"):
            return None
        try:
            return self._prepared(_text(ids), _text(arguments))
        except ValueError as error:
            raise rows.MissingRow(row, "has constraints that can't be checked", f": {error}") from None


def _of_spec(constraints: list[dict[str, JsonValue]]) -> Constraints:
    return tuple(
        prepare(given.get("id"), {key: value for key, value in given.items() if key != "id"}) for given in constraints
    )


def _text(value: JsonValue) -> str:
    """Columns of CSV files hold JSON as text already."""
    return value if isinstance(value, str) else json.dumps(value)


def _prepare(ids_text: str, arguments_text: str) -> Constraints:
    ids, arguments = json.loads(ids_text), json.loads(arguments_text)
    if not isinstance(ids, list) or not 1 <= len(ids) <= _MAX_CONSTRAINTS:
        raise ValueError(f"expected a list of 1 to {_MAX_CONSTRAINTS} ids in {_IDS}")
    if arguments is None:
        arguments = [{}] * len(ids)
    if not isinstance(arguments, list) or len(arguments) != len(ids):
        raise ValueError(f"expected one object in {_ARGUMENTS} for each id")
    return tuple(prepare(name, given) for name, given in zip(ids, arguments, strict=True))
