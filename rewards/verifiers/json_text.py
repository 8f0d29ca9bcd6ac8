"""JSON as policies write it: read within bounds, and compared by JSON's rules rather than Python's."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable

from pydantic import JsonValue

MAX_JSON_CHARS = 100_000
_MAX_DEPTH = 100  # of brackets, so that whoever walks through it may recur

_FENCE = re.compile(r"^[ \t]*```[^\n`]*$", re.MULTILINE)


class NoJson(ValueError):
    """A text that is not JSON, is too long, or nests too deep."""


def read_json(text: str) -> JsonValue:
    """NoJson for anything but one JSON value; NaN and Infinity are none."""
    if len(text) > MAX_JSON_CHARS:
        raise NoJson("too long")
    try:
        value: JsonValue = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:  # ValueError also for a number of too many digits
        raise NoJson(str(error)) from None
    if _nests_deeper(value, _MAX_DEPTH):
        raise NoJson("nests too deep")
    return value


def fenced(text: str) -> str:
    """The content of the last closed code fence; the text itself where there is none."""
    lines = list(_FENCE.finditer(text))
    if len(lines) < 2:
        return text
    opening, closing = lines[len(lines) // 2 * 2 - 2 : len(lines) // 2 * 2]
    return text[opening.end() : closing.start()]


def canonical(value: JsonValue) -> str:
    """The same text for values that JSON holds equal: 1 and 1.0 are, 1 and true are not, keys have no order."""
    return json.dumps(_whole(value), sort_keys=True)


def _nests_deeper(value: JsonValue, levels: int) -> bool:
    layer: list[JsonValue] = [value]
    for _ in range(levels):
        layer = [inner for outer in layer if isinstance(outer, dict | list) for inner in _inside(outer)]
        if not layer:
            return False
    return any(isinstance(outer, dict | list) for outer in layer)


def _inside(outer: dict[str, JsonValue] | list[JsonValue]) -> Iterable[JsonValue]:
    return outer.values() if isinstance(outer, dict) else outer


def _whole(value: JsonValue) -> JsonValue:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return value


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError("a number out of range")
    return number
