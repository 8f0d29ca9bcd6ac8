"""What verifiers look up in the row of a prompt, and what they do where it is not there."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from rewards.base import RewardBatch, RewardOptions, RewardRowError

Missing = Literal["error", "skip"]


class RowOptions(RewardOptions):
    """Of a verifier that compares with something in the row."""

    missing: Missing = Field(
        "error",
        description="rows without what the verifier compares with: `error` counts them as ones that can't be scored "
        "(above hosting.max_bad_share the job stops), `skip` leaves them out of this objective alone",
    )

    @property
    def columns_read(self) -> tuple[str, ...]:
        """Further columns of the data, without which no row has a score."""
        column = getattr(self, "column", None)
        return () if column is None else (column,)


class MissingRow(RewardRowError):
    """A row lacks what a verifier needs, or has it in a form that can't be used."""


def answer(batch: RewardBatch, row: int, missing: Missing) -> str | None:
    """The row's ground truth, stripped. None where it has none and that may be; else MissingRow."""
    found = (batch.answers[row] or "").strip()
    if not found and missing == "error":
        raise MissingRow(row, "has no ground truth; this reward needs an answer for every prompt")
    return found or None


def detail(batch: RewardBatch, row: int, column: str, missing: Missing) -> JsonValue:
    """What the row has in a further column. None where it is absent or null and that may be; else MissingRow."""
    found = batch.details[row].get(column)
    if found is None and missing == "error":
        raise MissingRow(row, f"has nothing in the column {column!r}, which this reward reads")
    return found
