"""What a chart is given of a long series: at most some hundred buckets of steps, each with its mean.

A bucket holds a power of two of steps, so a series grows by appending, and only when the power changes is it sent anew.
A part that somebody looks at closely comes in smaller ones.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

Value = float | int | None
_UNKNOWN = -(2**63)  # among whole numbers
MOST = 512  # buckets; a chart is narrower than that in pixels, or not by much


class Column(Sequence[Value]):
    """Numbers, and None where nothing is known, of 8 bytes each: a job has millions, and many may watch it.

    Whole numbers stay whole as long as there are no others.
    """

    def __init__(self, unknown: int = 0) -> None:
        self._values: Any = array("q", [_UNKNOWN]) * unknown  # or "d"

    def append(self, value: Value) -> None:
        is_whole = self._values.typecode == "q"
        if value is None:
            self._values.append(_UNKNOWN if is_whole else math.nan)
            return
        if is_whole and not (isinstance(value, int) and abs(value) < -_UNKNOWN):
            self._values = array("d", [math.nan if known is None else known for known in self])
        self._values.append(value)

    @overload
    def __getitem__(self, place: int) -> Value: ...
    @overload
    def __getitem__(self, place: slice) -> list[Value]: ...
    def __getitem__(self, place: int | slice) -> Value | list[Value]:
        found = self._values[place] if isinstance(place, slice) else self._values[place : place + 1 or None]
        if self._values.typecode == "q":
            values = [None if value == _UNKNOWN else value for value in found]
        else:
            values = [None if value != value else value for value in found]
        return values if isinstance(place, slice) else values[0]

    def __delitem__(self, place: slice) -> None:
        del self._values[place]

    def __len__(self) -> int:
        return len(self._values)


@dataclass
class Columns:
    """Figures of committed steps by name; `steps` rises by one from its first."""

    steps: list[int] = field(default_factory=list)
    values: dict[str, Column] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def last(self) -> int:
        return self.steps[-1] if self.steps else 0

    def append(self, step: int, figures: dict[str, Value]) -> None:
        """A name that is new has no value at the steps before, one that is missing none at this."""
        count = len(self.steps)
        self.steps.append(step)
        for name, value in figures.items():
            column = self.values.get(name)
            if column is None:
                column = self.values[name] = Column(count)
            column.append(value)
        for name in self.values.keys() - figures.keys():
            self.values[name].append(None)

    def truncate(self, step: int) -> None:
        """Forgets what came after a step."""
        keep = sum(found <= step for found in self.steps)
        del self.steps[keep:]
        for column in self.values.values():
            del column[keep:]


def stride(count: int, most: int = MOST) -> int:
    """Steps in a bucket, so that there are at most `most` of them."""
    return 1 if count <= most else 2 ** math.ceil(math.log2(count / most))


def rows(
    columns: Columns, names: Sequence[str], start: int = 0, *, most: int = MOST, extremes: bool = False
) -> list[list[Value]]:
    """[last step of a bucket, then each name's mean in it] from bucket `start` on; None where nothing is known.

    With `extremes`, after each mean come the least value and how far the greatest is above it; None of a single step.
    """
    width = stride(len(columns), most)
    return _buckets(columns, names, range(start * width, len(columns), width), len(columns), extremes)


def closer(
    columns: Columns, names: Sequence[str], first: int, last: int, *, most: int = MOST, extremes: bool = False
) -> tuple[int, int, list[list[Value]]] | None:
    """(first step, last step, smaller buckets) of the buckets that hold these steps; None where there are none."""
    width = stride(len(columns), most)
    if not len(columns) or last < first:
        return None
    begin, end = ((step - columns.steps[0]) // width * width for step in (first, last))
    begin, end = max(0, begin), min(len(columns), end + width)
    if end <= begin or (smaller := stride(end - begin, most)) >= width:
        return None
    found = _buckets(columns, names, range(begin, end, smaller), end, extremes)
    return columns.steps[begin], columns.steps[end - 1], found


def _buckets(columns: Columns, names: Sequence[str], starts: range, stop: int, extremes: bool) -> list[list[Value]]:
    found: list[list[Value]] = []
    for first in starts:
        end = min(first + starts.step, stop)
        row: list[Value] = [columns.steps[end - 1]]
        for name in names:
            part = columns.values.get(name, _NOTHING)[first:end]
            row.append(_mean(part))
            if extremes:
                row += _extremes(part) if starts.step > 1 else (None, None)
        found.append(row)
    return found


_NOTHING: list[Value] = []


def _extremes(values: Sequence[Value]) -> tuple[Value, Value]:
    known = [value for value in values if value is not None]
    return (min(known), max(known) - min(known)) if known else (None, None)


def _mean(values: Sequence[Value]) -> Value:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return known[0] if len(known) == 1 else math.fsum(known) / len(known)


@dataclass
class Tail:
    """What a chart has already: how many buckets, of what width, of which generation of the series."""

    sent: int = 0
    width: int = 1
    generation: int = 0

    def next_rows(
        self, columns: Columns, names: Sequence[str], generation: int, *, most: int = MOST, extremes: bool = False
    ) -> tuple[int, list[list[Value]]] | None:
        """(first bucket, rows from there on) to replace and append; None where there is nothing new.

        A generation is over when steps were taken back: what was sent before may be wrong anywhere.
        """
        width = stride(len(columns), most)
        buckets = -(-len(columns) // width)
        if width != self.width or generation != self.generation:
            start = 0
        elif buckets == self.sent and width == 1:
            return None
        else:
            start = self.sent if width == 1 else max(0, self.sent - 1)  # the last one may not have been full
        self.sent, self.width, self.generation = buckets, width, generation
        return start, rows(columns, names, start, most=most, extremes=extremes)
