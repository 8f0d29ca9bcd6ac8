"""When the next call may be made: a pace, and a breaker that leaves an endpoint alone that keeps failing."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_BACKOFF_S = 30.0
Clock = Callable[[], float]


class Breaker:
    """Opens after `failures` in a row, for `open_s`; then one call tries, and its end closes it or opens it again."""

    def __init__(self, failures: int, open_s: float, clock: Clock = time.monotonic) -> None:
        self._limit, self._open_s, self._clock = failures, open_s, clock
        self._in_a_row = 0
        self._until = 0.0
        self._trying = False
        self.opened = 0
        """How often."""

    def wait_s(self) -> float:
        """Seconds until it is worth asking again; 0 is leave for one call, and its end must be told."""
        if self._in_a_row < self._limit:
            return 0.0
        if self._trying:
            return min(self._open_s, 0.2)
        left_s = self._until - self._clock()
        if left_s <= 0:
            self._trying = True
        return max(left_s, 0.0)

    def succeeded(self) -> None:
        self._in_a_row, self._trying = 0, False

    def failed(self) -> None:
        self._in_a_row += 1
        if self._in_a_row == self._limit or self._trying:
            self.opened += 1
            self._until = self._clock() + self._open_s
        self._trying = False

    def left(self) -> None:
        """The call was given up before it said anything."""
        self._trying = False


class Pace:
    """At most `per_minute` calls a minute, evenly spaced; None is no limit."""

    def __init__(self, per_minute: int | None, clock: Clock = time.monotonic) -> None:
        self._gap_s = 60.0 / per_minute if per_minute else 0.0
        self._clock = clock
        self._next = 0.0

    def wait_s(self) -> float:
        """Takes the next place, and says how long it is until then."""
        now = self._clock()
        at = max(now, self._next)
        self._next = at + self._gap_s
        return at - now


def backoff_s(
    attempt: int, first_s: float, asked_s: float | None = None, draw: Callable[[], float] = random.random
) -> float:
    """Wait after the failure of `attempt` (from 0): doubled each time, half of it by chance, at least what is asked."""
    longest_s = min(LONGEST_BACKOFF_S, first_s * 2.0**attempt)
    return max(longest_s * (1.0 + draw()) / 2, asked_s or 0.0)


def retry_after_s(header: str | None, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> float | None:
    """Seconds that a Retry-After asks for, as a number or as a date; None where it says neither."""
    if header is None:
        return None
    header = header.strip()
    if header.isascii() and header.isdigit() and len(header) <= 9:
        return float(header)
    try:
        at = parsedate_to_datetime(header)
        return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - now()).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
