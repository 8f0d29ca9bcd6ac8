"""What a judge said, as numbers: untrusted text in, scores inside the declared scale out, or nothing.

A judge reads what the policy wrote, so its answer may be whatever the policy made it say, or quote it. It is parsed as
JSON of a fixed shape, with which it has to end, clamped to the scale, and never run, shown as markup or passed on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

READING = 2  # which answers give which scores: one more where that changes, as scores are kept in files
_TAIL_CHARS = 8192  # that are searched: the time for a hostile text grows with the square
_BRACE = re.compile(r"[{}]")
_BEGINS = re.compile(r'\{\s*"')  # an object of JSON, unlike the braces of a formula
_ENDS = re.compile(r"[\s.!*]*(?:```)?\s*(?:</\w{1,20}>|<\|\w{1,20}\|>)?\s*")  # a tag is closed, a turn ended
_VALUE = r"(-?\d{1,6}(?:\.\d{1,6})?)[\s*]*(?:(?:/|out of|of)\s*(\d{1,6}))?(?:\s*points?)?[\s.*]*"
_LABELLED = re.compile(rf"(?i)\b(?:score|rating)\b[\s\"'*:=]{{1,8}}{_VALUE}\Z")
_BARE = re.compile(rf"\s*{_VALUE}")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Scores on the declared scale."""

    scores: dict[str, float]
    clamped: int
    """How many were outside the scale."""


class _Ambiguous(ValueError):
    pass


def parse(text: str, names: Sequence[str], scale: tuple[float, float]) -> Verdict | None:
    """The JSON object that ends `text`, where it has a finite number for every name; None where it does not.

    With one name alone, a bare number or `score: N` will do at the end of a text that has no brace. `N/M` is of this
    scale or says nothing.
    """
    text = text.rpartition("</think>")[2]
    if "{" in text:
        found = _numbers(_last(text), names)
    else:
        found = _number(text[-_TAIL_CHARS:], names[0], scale) if len(names) == 1 else None
    if found is None:
        return None
    low, high = scale
    scores = {name: min(max(value, low), high) for name, value in found.items()}
    return Verdict(scores=scores, clamped=sum(scores[name] != value for name, value in found.items()))


def choice(text: str, name: str, allowed: Sequence[str]) -> str | None:
    """Of the JSON object that ends the text, `name`, where that is one of the allowed words."""
    value = _last(text).get(name)
    return value if isinstance(value, str) and value in allowed else None


def is_whole(text: str) -> bool:
    """Whether it is a JSON object and nothing else, so that nothing of it is missing."""
    return _whole(text) is not None


def _whole(text: str) -> dict[str, Any] | None:
    try:
        document = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _last(text: str) -> dict[str, Any]:
    """The object that ends the text, but for space and the end of a code fence; empty where there is none.

    None that others follow, nor one inside of an object that was begun and can't be read: a judge may quote what a
    completion would have it say, and its answer be cut or badly written.
    """
    if (whole := _whole(text)) is not None:
        return whole
    text, at = text[-_TAIL_CHARS:], 0
    begun: list[bool] = []  # of each brace that is open: whether an object begins with it
    while brace := _BRACE.search(text, at):
        at = brace.end()
        if brace[0] == "}":
            del begun[-1:]
            continue
        try:
            document, end = _DECODER.raw_decode(text, brace.start())
        except (ValueError, RecursionError):
            begun.append(_BEGINS.match(text, brace.start()) is not None)
            continue
        if _ENDS.fullmatch(text, end):
            return {} if any(begun) else document
        at = end
    return {}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise _Ambiguous("the same key twice")
    return document


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)


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


def _number(text: str, name: str, scale: tuple[float, float]) -> dict[str, float] | None:
    found = _BARE.fullmatch(text) or _LABELLED.search(text)
    if found is None or (found[2] is not None and float(found[2]) != scale[1]):
        return None
    return {name: float(found[1])}
