"""Where the time of a step goes."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator

STAGES = ("rollout", "score", "learn", "sync", "evaluate", "checkpoint")


class Clock:
    """Seconds by stage since `begin`; what no stage claims is `other`, the cost of orchestration.

    A checkpoint is written after its step is committed, so its time shows in the next step's reading.
    """

    def __init__(self, window: int = 10) -> None:
        self._began: float | None = None
        self._spent: dict[str, float] = {}
        self._between: dict[str, float] = {}
        self._recent: deque[float] = deque(maxlen=window)

    def begin(self) -> None:
        self._began = time.perf_counter()
        self._spent, self._between = self._between, {}
        self._carried = sum(self._spent.values())

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = self._between if self._began is None else self._spent
            spent[stage] = spent.get(stage, 0.0) + time.perf_counter() - started

    def read(self) -> dict[str, float]:
        """Ends the step; seconds of every stage, `other`, and `step` in all."""
        assert self._began is not None
        total = time.perf_counter() - self._began + self._carried
        self._began = None
        stages = {stage: self._spent.get(stage, 0.0) for stage in STAGES}
        self._recent.append(total)
        return {**stages, "other": total - sum(stages.values()), "step": total}

    def eta_s(self, steps_left: int) -> float | None:
        """Seconds to go at the recent pace."""
        return steps_left * sum(self._recent) / len(self._recent) if self._recent else None
