"""Where the loop writes what happened and reads what people want: Redis under the job's lease.

A store that is away is waited for: the loop parks before its next write, and goes on when Redis is back. A lease that
another has taken ends the run at once (`Fenced`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from orchestrator.clock import Clock, Phase
from orchestrator.failpoints import reach
from orchestrator.state.store import IllegalTransition, JobStore, Lease, StoreUnavailable
from orchestrator.steering import Steering
from orchestrator.storage.checkpoints import Manifest

T = TypeVar("T")
CLOCKED = frozenset({"timings_s", "reward_health", "engines", "engine_health"})
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """What a person asked of the running job."""

    cancel: bool = False
    pause: bool = False
    save: bool = True  # with a checkpoint, if it is to pause
    stop: bool = False  # hand the job back: the machine is going down


class Journal(Protocol):
    """The loop's view of the job's state."""

    def steering(self, step: int) -> tuple[int, Steering]:
        """(version, steering) in force at a step."""
        ...

    def commit(self, record: Mapping[str, Any]) -> None: ...
    def event(self, type: str, *, level: str = "info", once: str | None = None, **data: Any) -> None:
        """`once` names what is told: not again where a crash makes the step run again."""
        ...

    def steered(self, *, version: int, **data: Any) -> None: ...
    def progress(self, **line: Any) -> None: ...
    def spent(self, cost: float) -> dict[str, float]:
        """Keeps what rewards cost in this run so far, and gives `cost` and `gpu_hours` of all the job's runs."""
        ...

    def front(self, document: Mapping[str, Any]) -> None: ...
    def checkpoint(self, path: Path, manifest: Manifest) -> None: ...
    def checkpoints(self, changes: Mapping[int, Mapping[str, Any]], removals: list[int]) -> None: ...
    def request_pause(self, why: str) -> None: ...
    def wishes(self) -> Wishes: ...


class StoreJournal:
    """A Journal in the job store."""

    def __init__(
        self, store: JobStore, lease: Lease, wishes: Callable[[], Wishes], *, patience_s: float = 600.0
    ) -> None:
        self.store = store
        self.lease = lease
        self._wishes = wishes
        self.patience_s = patience_s
        self._pausing = False
        self._cost_before: float | None = None  # of earlier runs of the job
        self._parked_since: float | None = None  # Unix seconds
        self.clock: Clock | None = None  # of the loop, once there is one

    def steering(self, step: int) -> tuple[int, Steering]:
        entry = self.patiently(lambda: self.store.steering_at(self.lease.job_id, step))
        assert entry is not None, "version 1 is in force from the start"
        return entry.version, Steering.model_validate({**entry.state, "over": entry.over})

    def commit(self, record: Mapping[str, Any]) -> None:
        reach("before_commit")
        self.patiently(
            lambda: self.store.commit(self.lease, step=record["step"], digest=figures_digest(record), record=record)
        )
        reach("after_commit")

    def event(self, type: str, *, level: str = "info", once: str | None = None, **data: Any) -> None:
        token = secrets.token_hex(8)  # one for all tries
        self.patiently(
            lambda: self.store.event(self.lease.job_id, type, data, self.lease, level=level, token=token, once=once)
        )

    def steered(self, *, version: int, **data: Any) -> None:
        """`steering.applied`, with who asked: once for a version, however often a crash makes its step run again."""
        by = self.patiently(lambda: self.store.steering_by(self.lease.job_id, version))
        self.event("steering.applied", once=f"steering {version}", version=version, by=by, **data)

    def progress(self, **line: Any) -> None:
        self.patiently(lambda: self.store.set_progress(self.lease, line))

    def spent(self, cost: float) -> dict[str, float]:
        record = self.patiently(lambda: self.store.job(self.lease.job_id))
        if self._cost_before is None:
            self._cost_before = record.cost
        total = self._cost_before + cost
        if total != record.cost:
            self.patiently(lambda: self.store.set_cost(self.lease, total))
        return {"cost": total, "gpu_hours": record.gpu_hours}

    def front(self, document: Mapping[str, Any]) -> None:
        self.patiently(lambda: self.store.set_front(self.lease, document))

    def checkpoint(self, path: Path, manifest: Manifest) -> None:
        self.patiently(
            lambda: self.store.register_checkpoint(
                self.lease, step=manifest.step, path=str(path), digest=manifest.digest
            )
        )

    def checkpoints(self, changes: Mapping[int, Mapping[str, Any]], removals: list[int]) -> None:
        self.patiently(lambda: self.store.update_checkpoints(self.lease, changes, removals=removals))

    def request_pause(self, why: str) -> None:
        """As a person would: a guardrail may stop the run and wait for one. A cancel that came first stands."""
        with contextlib.suppress(IllegalTransition):
            self.patiently(lambda: self.store.request_pause(self.lease.job_id, why=why))
            self._pausing = True  # at once: the next renewal would tell some steps later

    def wishes(self) -> Wishes:
        wishes = self._wishes()
        return replace(wishes, pause=True) if self._pausing else wishes

    def at(self) -> Phase | None:
        """What the run is at, for who looks on from another thread."""
        if (since := self._parked_since) is not None:
            return "parked", since
        return None if self.clock is None else self.clock.at()

    def patiently(self, call: Callable[[], T]) -> T:
        """Retry while Redis is away, for `patience_s` at most. Every call here may be repeated without effect."""
        deadline = time.monotonic() + self.patience_s
        pause_s = 0.2
        try:
            while True:
                try:
                    return call()
                except StoreUnavailable as error:
                    if time.monotonic() > deadline:
                        raise
                    self._parked_since = self._parked_since or time.time()
                    log.warning("parked, waiting for the store: %s", error)
                    time.sleep(pause_s)
                    pause_s = min(2 * pause_s, 5.0)
        finally:
            self._parked_since = None


def figures_digest(record: Mapping[str, Any]) -> str:
    """sha256 of what a step decided, without what depends on the clock."""
    figures = {key: value for key, value in record.items() if key not in CLOCKED}
    return hashlib.sha256(json.dumps(figures, sort_keys=True).encode()).hexdigest()
