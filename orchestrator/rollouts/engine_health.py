"""What is known of each rollout engine, and which ways lead from one state to another.

    starting -> stale -> healthy -> stale ...          any of them -> retired -> starting

There is no way from retired to healthy: an engine that was started again serves only once it has said that it holds
the current weights (NeMo-RL's rule, reliability.md fact 7).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Health(StrEnum):
    """Only a healthy engine gets requests."""

    STARTING = "starting"  # its process is coming up
    STALE = "stale"  # up, its weights old, mixed or unknown
    HEALTHY = "healthy"  # it said that it holds the current weights
    RETIRED = "retired"  # gone, or given up


MOVES: dict[Health, frozenset[Health]] = {
    Health.STARTING: frozenset({Health.STALE, Health.RETIRED}),
    Health.STALE: frozenset({Health.HEALTHY, Health.RETIRED}),
    Health.HEALTHY: frozenset({Health.STALE, Health.RETIRED}),
    Health.RETIRED: frozenset({Health.STARTING}),
}


_TELLING = ("resent", "failures", "restarts")


def recorded(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Of all engines' figures, what a step's record has: how many are in which state, and each with something to tell.

    64 figures of healthy ones would be more than all else in it.
    """
    telling = {
        number: found
        for number, found in figures.items()
        if found["health"] != Health.HEALTHY or any(found[name] for name in _TELLING)
    }
    return {"engines": dict(Counter(found["health"] for found in figures.values())), "engine_health": telling}


def counted(record: Mapping[str, Any]) -> dict[str, int]:
    """How many engines were in which state at a step. Records of earlier versions have each engine's figures."""
    found: Mapping[str, Mapping[str, Any]] = record.get("engine_health") or {}
    return dict(record.get("engines") or Counter(figures.get("health") for figures in found.values()))


@dataclass(kw_only=True)
class Place:
    """Where one engine works, and after it those that replace it. Its owner holds a lock."""

    number: int
    engine: Any  # an Engine (engines.py)
    health: Health = Health.STARTING
    reason: str | None = None  # why the last engine here was retired
    since: float = field(default_factory=time.monotonic)  # when its health last changed
    version: int | None = None  # of the policy that it serves
    held: int = 0  # rollouts that it was asked for and has not ended
    streak: int = 0  # failed calls since its last rollout
    starts: int = 1  # without having become healthy in between
    restarts: int = 0
    heard: float = field(default_factory=time.monotonic)  # when it last showed that it is at work
    rollouts: int = 0  # that it ended, since the last reading
    resent: int = 0  # rollouts that had to be made again, mostly by another engine, likewise
    failures: int = 0  # failed calls, likewise
    last_failure: str | None = None

    def move(self, health: Health) -> None:
        assert health in MOVES[self.health], f"engine {self.number}: no way from {self.health} to {health}"
        self.health, self.since = health, time.monotonic()

    def retire(self, reason: str) -> None:
        self.move(Health.RETIRED)
        self.reason, self.version, self.streak = reason, None, 0

    def replace(self, start: Callable[[int], Any]) -> None:
        """Another engine, coming up in the background."""
        self.move(Health.STARTING)
        self.engine = start(self.number)
        self.starts += 1
        self.restarts += 1

    def up(self) -> None:
        """It answers; what it samples from is another question."""
        self.move(Health.STALE)

    def serve(self, version: int) -> bool:
        """It said that it holds these weights. Whether it does so for the first time."""
        first = self.starts > 0
        self.move(Health.HEALTHY)
        self.version, self.starts = version, 0
        return first

    def failed(self, reason: str, rows: int) -> bool:
        """A call of which `rows` had not ended. Whether it is the first since the last reading."""
        self.streak += 1
        self.failures += 1
        self.resent += rows
        self.last_failure = reason
        return self.failures == 1

    def figures(self) -> dict[str, Any]:
        """For a step's record: counts are since the last reading."""
        found = {
            "health": str(self.health),
            "policy_version": self.version,
            "rollouts": self.rollouts,
            "resent": self.resent,
            "failures": self.failures,
            "restarts": self.restarts,
            "reason": self.last_failure if self.health is Health.HEALTHY else self.reason,
        }
        self.rollouts = self.resent = self.failures = 0
        self.last_failure = None
        return found
