"""Regular expressions that somebody else wrote, run by RE2: in time linear in the text, whatever the pattern.

Python's own engine backtracks, and `(a|a)*$` on a long completion would keep a worker for ever.
"""

from __future__ import annotations

from typing import Any

import re2

MAX_PATTERN_CHARS = 1000

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False
_OPTIONS.max_mem = 4 << 20  # of the compiled pattern; a larger one is refused


class Pattern:
    """A compiled pattern. ValueError for one that is none, or needs look-around or back references."""

    def __init__(self, pattern: str, *, multiline: bool = False, ignore_case: bool = False) -> None:
        flags = "m" * multiline + "i" * ignore_case
        try:
            self._compiled: Any = re2.compile(_bytes(f"(?{flags}){pattern}" if flags else pattern), _OPTIONS)
        except re2.error as error:
            reason = error.args[0]
            reason = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
            raise ValueError(
                f"not a regular expression that RE2 takes (no look-around, no back references): {reason[:100]}"
            ) from None

    def search(self, text: str) -> bool:
        return self._compiled.search(_bytes(text)) is not None

    def fullmatch(self, text: str) -> bool:
        return self._compiled.fullmatch(_bytes(text)) is not None

    def found(self, text: str) -> list[str]:
        """Every match, in order and whole, without those that are empty."""
        matches = self._compiled.finditer(_bytes(text))
        return [match.group().decode(errors="replace") for match in matches if match.group()]


def _bytes(text: str) -> bytes:
    """RE2's own form, which matches without converting positions; half a surrogate pair becomes a question mark."""
    return text.encode(errors="replace")
