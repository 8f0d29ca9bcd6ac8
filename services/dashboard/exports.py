"""Tables as CSV, for spreadsheets, which take a cell that begins like a formula for one."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

# What starts a formula in the usual programs, also behind blanks and control characters that they drop.
_FORMULA = re.compile(r"[\s\x00-\x1f\ufeff\u200b]*[=+\-@\uff1d\uff0b\uff0d\uff20|%]")


def cell(value: Any) -> Any:
    """Text that would be a formula gets an apostrophe before it; numbers are numbers."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = str(value).replace("\x00", "")
        return f"'{text}" if _FORMULA.match(text) or text[:1] in ("\t", "\r", "\n") else text
    return value


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """RFC 4180, every text quoted. It begins with a mark by which spreadsheets know that it is UTF-8."""
    file = io.StringIO()
    writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow([cell(name) for name in header])
    writer.writerows([cell(value) for value in row] for row in rows)
    return f"\ufeff{file.getvalue()}"
