"""Where the time of a step goes."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

STAGES = ("rollout", "score", "learn", "sync", "evaluate", "checkpoint")
PHASES = {
    "rollout": "generating", "score": "scoring", "learn": "updating the policy", "sync": "syncing the engines",
    "evaluate": "evaluating", "checkpoint": "writing a checkpoint", "commit": "committing the step",
    "parked": "waiting for Redis",
}  # fmt: skip
"""What a run may be at, in words."""
Phase = tuple[str, float]  # and since when, in Unix seconds


def tokens_per_s(record: Mapping[str, Any]) -> float | None:
    """Of a step's record, while it trains: an evaluation or a checkpoint makes no training slower."""
    timings_s = record.get("timings_s") or {}
    tokens, seconds = record.get("tokens"), timings_s.get("step")
    if tokens is None or seconds is None:
        return None
    seconds -= (timings_s.get("evaluate") or 0.0) + (timings_s.get("checkpoint") or 0.0)
    return tokens / seconds if seconds > 0 else None


class Clock:
    """Seconds by stage from one reading to the next; what no stage claims is `other`, the cost of orchestration.

    The first step counts from its own beginning: references and the evaluation of the initial policy are not its own.
    Each later one counts from the reading before it, so that a step has what comes after the commit of the one before:
    its checkpoint, and as `other` the commit itself, with all the time that the store lets it wait.
    """

    def __init__(self, window: int = 10) -> None:
        self._began: float | None = None  # the first step, then the last reading
        self._spent: dict[str, float] = {}
        self._recent: deque[float] = deque(maxlen=window)
        self._entered: list[Phase] = []

    def begin(self) -> None:
        """At the head of every step, and of one that is begun again."""
        if self._began is None:
            self._began, self._spent = time.perf_counter(), {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        self._entered.append((stage, time.time()))
        try:
            yield
        finally:
            self._entered.pop()
            self._spent[stage] = self._spent.get(stage, 0.0) + time.perf_counter() - started

    def at(self) -> Phase | None:
        """What is under way now, for who looks on from another thread."""
        return next(iter(self._entered[-1:]), None)

    def read(self) -> dict[str, float]:
        """Ends the step; seconds of every stage, `other`, and `step` in all."""
        assert self._began is not None
        now = time.perf_counter()
        total = now - self._began
        stages = {stage: self._spent.get(stage, 0.0) for stage in STAGES}
        self._began, self._spent = now, {}
        self._recent.append(total)
        return {**stages, "other": total - sum(stages.values()), "step": total}

    def eta_s(self, steps_left: int) -> float | None:
        """Seconds to go at the recent pace."""
        return steps_left * sum(self._recent) / len(self._recent) if self._recent else None
