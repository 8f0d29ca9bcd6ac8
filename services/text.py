"""How figures, times and foreign text are written for a terminal."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.clock import PHASES

_BARS = "▁▂▃▄▅▆▇█"
_BRIEF = {"evaluated": ("step", "objectives", "mean_tokens", "hypervolume", "on_front")}  # the rest is in the front
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+")


def plain(text: object) -> str:
    """Names, reasons and log lines come from elsewhere: nothing in them may steer the terminal."""
    return _CONTROL.sub(" ", str(text))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def taken(gpu_hours: float | None, cost: float | None) -> dict[str, str]:
    """What a job took so far, where it did. A cost is in the currency of the judges' profiles, which name none."""
    told = {"GPU-hours": amount(gpu_hours or 0.0), "judges' cost": amount(cost or 0.0)}
    return {name: value for name, value in told.items() if value}


def amount(value: float) -> str:
    """With as many digits as people pay for; empty for nothing."""
    if value <= 0:
        return ""
    return f"{value:,.2f}" if value >= 0.01 else "below 0.01"


def figure(value: Any, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if is_number(value) else "–"


def signed(value: Any, digits: int = 3) -> str:
    return f"{value:+.{digits}f}" if is_number(value) else "–"


def duration(seconds: Any) -> str:
    if not is_number(seconds) or seconds < 0:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def at_told(progress: Mapping[str, Any], at_least_s: float = 0.0) -> str:
    """`generating for 3:05`: what the step under way is at; empty where that is not known, or goes on for less."""
    at, since = str(progress.get("at")), progress.get("since")
    lasted = -1.0 if since is None else max(0.0, time.time() - since)
    if lasted < at_least_s:
        return ""
    return f"{PHASES.get(at, plain(at))} for {duration(lasted)}"


def ago(unix_s: Any) -> str:
    """Coarse, for lists."""
    if not is_number(unix_s):
        return "–"
    seconds = max(0, round(time.time() - unix_s))
    for unit_s, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_s:
            return f"{seconds // unit_s} {name} ago"
    return f"{seconds} s ago"


def clock(unix_s: Any) -> str:
    return time.strftime("%H:%M:%S", time.localtime(unix_s)) if is_number(unix_s) else "--:--:--"


def sparkline(values: Sequence[Any], width: int = 24) -> str:
    """The series in at most `width` characters, each the mean of its part, between the series' own extremes."""
    known = [value for value in values if is_number(value)]
    if not known:
        return ""
    count = min(width, len(known))
    edges = [round(i * len(known) / count) for i in range(count + 1)]
    means = [math.fsum(known[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, spread = min(means), max(means) - min(means)
    if spread < 1e-9:
        return _BARS[3] * count
    return "".join(_BARS[min(7, int((mean - low) / spread * 8))] for mean in means)


def event_line(event: Mapping[str, Any]) -> str:
    """`12:00:01 collapse.detected  objective=clarity drop=0.21`, without what says nothing."""
    data = event.get("data") or {}
    if data.get("message"):
        data = {"": data["message"]}
    elif event.get("type") in _BRIEF:
        data = {key: data.get(key) for key in _BRIEF[event["type"]]}
    shown = {key: value for key, value in data.items() if value not in ("", None)}
    pairs = [f"{plain(key)}={_value(value)}".removeprefix("=") for key, value in shown.items()]
    return f"{clock(event.get('at'))} {plain(event.get('type', ''))}  {' '.join(pairs)}".rstrip()


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{plain(key)}: {_value(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(part) for part in value) + "]"
    return plain(value)[:200]
