"""Numbers as the pages write them in sentences; tables and charts do it in the browser."""

from __future__ import annotations

import math
from typing import Any


def figure(value: Any) -> str:
    """Three digits that matter."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"  # the latter also of what rounds to 1,000


def percent(value: Any) -> str:
    return "–" if not isinstance(value, int | float) or not math.isfinite(value) else f"{100 * value:.0f}%"


def change(before: float | None, after: float | None) -> str:
    """`+0.04`, for what is beside a figure, of whatever size; empty where there is no other."""
    if before is None or after is None:
        return ""
    return f"{'-' if after < before else '+'}{figure(abs(after - before))}"


def span(seconds: Any) -> str:
    """`1 h 05 min`."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds < 0:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
