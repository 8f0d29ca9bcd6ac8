r"""Finds the final answer: the content of the last `\boxed{...}`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_OPENING = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # `\{` is a set's brace, not a group's


@dataclass(frozen=True, kw_only=True)
class Boxed:
    """A complete box: its content, stripped, and where the box begins in the text."""

    content: str
    start: int


def last_boxed(text: str) -> Boxed | None:
    r"""The last box of the text, or None where there is none, it is empty, or it is never closed.

    Braces are balanced, so `\boxed{\frac{1}{2}}` gives `\frac{1}{2}`; of nested boxes the innermost counts. A
    last box that truncation left open is no answer, and an earlier one does not stand in for it.
    """
    openings = list(_OPENING.finditer(text))
    if not openings:
        return None
    opening, depth = openings[-1], 1
    for brace in _BRACE.finditer(text, opening.end()):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            content = text[opening.end() : brace.start()].strip()
            return Boxed(content=content, start=opening.start()) if content else None
    return None
