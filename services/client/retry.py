"""When a call is tried again, and after how long."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Waits double from `first_wait_s` on, each shortened by up to half at random, so that clients don't come at once.

    A server that asks for more patience than `longest_wait_s` (Retry-After) is not waited for: the error says how long
    it wants. No attempt begins later than `deadline_s` after the first.
    """

    attempts: int = 4
    first_wait_s: float = 0.25
    longest_wait_s: float = 10.0
    deadline_s: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or min(self.first_wait_s, self.longest_wait_s, self.deadline_s) < 0:
            raise ValueError("a Retry has at least one attempt and no negative times")

    def wait_s(self, attempts: int, elapsed_s: float, retry_after_s: float | None = None) -> float | None:
        """How long to wait after this many attempts in this time; None: no more."""
        if attempts >= self.attempts:
            return None
        wait_s = self.backoff_s(attempts) if retry_after_s is None else retry_after_s
        if wait_s > self.longest_wait_s or elapsed_s + wait_s > self.deadline_s:
            return None
        return wait_s

    def backoff_s(self, attempts: int) -> float:
        doubled_s = self.first_wait_s * 2.0 ** min(attempts - 1, 30)
        return min(doubled_s, self.longest_wait_s) * random.uniform(0.5, 1.0)


NO_RETRY = Retry(attempts=1)
