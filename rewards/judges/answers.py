"""What a judge said, as numbers: untrusted text in, scores inside the declared scale out, or nothing.

A judge reads what the policy wrote, so its answer may be whatever the policy made it say. It is parsed as JSON of a
fixed shape, clamped to the scale, and never run, shown as markup or passed on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_TAIL_CHARS = 8192  # that are searched: the time for a hostile text grows with the square
_LABELLED = re.compile(r"(?i)\b(?:score|rating)\b[\s\"'*:=]{1,8}(-?\d{1,6}(?:\.\d{1,6})?)(?![\d.]*\d)")
_BARE = re.compile(r"(-?\d{1,6}(?:\.\d{1,6})?)(?:\s*/\s*\d{1,6})?\.?")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Scores on the declared scale."""

    scores: dict[str, float]
    clamped: int
    """How many were outside the scale."""


class _Ambiguous(ValueError):
    pass


def parse(text: str, names: Sequence[str], scale: tuple[float, float]) -> Verdict | None:
    """The last JSON object in `text` that has a finite number for every name; None where there is none.

    With one name alone, a bare number or `score: N` will do where the text has no brace.
    """
    found: dict[str, float] | None = None
    for document in _objects(text):
        found = _numbers(document, names) or found
    if found is None and len(names) == 1 and "{" not in text:
        found = _number(text[-_TAIL_CHARS:], names[0])
    if found is None:
        return None
    low, high = scale
    scores = {name: min(max(value, low), high) for name, value in found.items()}
    return Verdict(scores=scores, clamped=sum(scores[name] != value for name, value in found.items()))


def choice(text: str, name: str, allowed: Sequence[str]) -> str | None:
    """The last JSON object in `text` whose `name` is one of the allowed words."""
    chosen = None
    for document in _objects(text):
        value = document.get(name)
        if isinstance(value, str) and value in allowed:
            chosen = value
    return chosen


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The whole text, if it is a JSON object; else every one that stands by itself near its end, in order."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)
    try:
        whole = decoder.decode(text)
    except (ValueError, RecursionError):
        text = text[-_TAIL_CHARS:]
    else:
        if isinstance(whole, dict):
            yield whole
        return
    at = text.find("{")
    while at >= 0:
        try:
            document, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            yield document
        at = text.find("{", end)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise _Ambiguous("the same key twice")
    return document


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _numbers(document: dict[str, Any], names: Sequence[str]) -> dict[str, float] | None:
    found = {}
    for name in names:
        value = document.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        try:
            found[name] = float(value)
        except OverflowError:  # an integer beyond float64
            return None
        if not math.isfinite(found[name]):  # 1e999 is
            return None
    return found


def _number(text: str, name: str) -> dict[str, float] | None:
    if bare := _BARE.fullmatch(text.strip()):
        return {name: float(bare[1])}
    labelled = _LABELLED.findall(text)
    return {name: float(labelled[-1])} if labelled else None
