"""The arena itself: takes runs in their order, gives them to workers, and puts down what comes of each."""

from __future__ import annotations

import datetime
import os
import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import psutil

from orchestrator.arena.ledger import SCHEMA, Ledger, LedgerError
from orchestrator.arena.plan import Planned, digest, packages
from orchestrator.arena.protocol import rule_version
from orchestrator.software import code, processor, versions
from orchestrator.spec import JobSpec

Json = dict[str, Any]
State = Literal["done", "failed", "running", "waiting", "left"]


class RunFailed(RuntimeError):
    """A run that came to no figures; the message says why."""


class ArenaStopped(RuntimeError):
    """No other run would fare better: the disk is full, or workers can't start."""


class Worker(Protocol):
    """Makes runs; the seam between the arena and processes, or stand-ins."""

    def make(self, planned: Planned, spec: JobSpec) -> Json:
        """The figures. Raises RunFailed, ArenaStopped."""
        ...

    def kill(self) -> None:
        """Ends what it is at, from another thread; `make` then raises."""
        ...

    def close(self) -> None: ...


@dataclass(kw_only=True)
class Arena:
    """Runs that are to be made, those under way, and the ledger of those that ended.

    A finished run is never made again; a failed one only where `retry_failed`. `limit`: runs to make at most.
    """

    runs: Sequence[Planned]
    ledger: Ledger
    hire: Callable[[int], Worker]
    workers: int = 1
    limit: int | None = None
    retry_failed: bool = False
    on_change: Callable[[Arena], None] = lambda _: None
    made: list[Json] = field(default_factory=list)  # by this call
    _running: set[int] = field(default_factory=set)
    _ended: dict[int, State] = field(default_factory=dict)  # by this call, or found in the ledger
    _specs: dict[int, JobSpec] = field(default_factory=dict)  # that are known
    _hired: list[Worker] = field(default_factory=list)
    _stopped: bool = False
    _interrupted: bool = False

    def __post_init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        statuses: dict[tuple[Any, ...], set[str]] = {}
        for run in self.ledger.runs:
            statuses.setdefault(tuple(run[key] for key in KEY), set()).add(run["status"])
        for i, planned in enumerate(self.runs):
            spec = self._spec(i)
            found = statuses.get(identity(planned, spec), set()) if spec is not None else set()
            if spec is not None:
                found |= {run["status"] for run in self.ledger.runs if planned.is_of_targets(run, spec)}
            if "done" in found:
                self._ended[i] = "done"
            elif found and not self.retry_failed:
                self._ended[i] = "failed"

    # ----------------------------------------------------------------- states

    def states(self) -> list[tuple[Planned, State]]:
        """What has become of each run."""
        with self._changed:
            return [(planned, self._state(i)) for i, planned in enumerate(self.runs)]

    def _state(self, i: int) -> State:
        if i in self._running:
            return "running"
        return self._ended.get(i) or ("waiting" if self._spec(i) is None else "left")

    def _spec(self, i: int) -> JobSpec | None:
        """Known from the start, or once the runs that it relies on have ended."""
        if i not in self._specs and (spec := self.runs[i].spec(self.ledger.runs)) is not None:
            self._specs[i] = spec
        return self._specs.get(i)

    @property
    def left(self) -> int:
        return len(self.runs) - len(self._ended)

    @property
    def coming(self) -> int:
        """Of those left, what this call makes."""
        return self.left if self.limit is None else min(self.left, self.limit - len(self.made))

    @property
    def coming_s(self) -> float | None:
        """Time to go at the pace of the newest runs; None before there are any."""
        seconds = [run["seconds"]["total"] for run in self.ledger.runs[-20:] if run["status"] == "done"]
        return statistics.median(seconds) * self.coming / self.workers if seconds else None

    # -------------------------------------------------------------------- run

    def run(self) -> None:
        """Until nothing is left, or the limit is reached. Raises ArenaStopped, LedgerError once workers are closed."""
        self.on_change(self)
        with ThreadPoolExecutor(self.workers, thread_name_prefix="arena") as pool:
            try:
                for lane in [pool.submit(self._lane, number) for number in range(self.workers)]:
                    lane.result()
            except BaseException as error:
                self._stop()
                if not isinstance(error, Exception):  # a person's: nobody waits for the runs under way
                    self._interrupted = True
                    for worker in list(self._hired):
                        worker.kill()
                raise

    def _lane(self, number: int) -> None:
        worker: Worker | None = None
        try:
            while (taken := self._take()) is not None:
                if worker is None:
                    worker = self.hire(number)
                    self._hired.append(worker)
                self._make(worker, *taken)
        except (ArenaStopped, LedgerError):
            self._stop()
            raise
        finally:
            if worker is not None:
                worker.close()

    def _take(self) -> tuple[int, Planned, JobSpec] | None:
        """The next run whose spec is known; waits where only runs under way can make one known."""
        with self._changed:
            while not self._stopped and (self.limit is None or len(self.made) + len(self._running) < self.limit):
                for i, planned in enumerate(self.runs):
                    if i in self._running or i in self._ended:
                        continue
                    if (spec := self._spec(i)) is not None:
                        self._running.add(i)
                        self.on_change(self)
                        return i, planned, spec
                if not self._running:
                    return None
                self._changed.wait()
        return None

    def _make(self, worker: Worker, i: int, planned: Planned, spec: JobSpec) -> None:
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        try:
            if self._interrupted:  # while its worker was hired
                return
            try:
                came_to: Json = {"status": "done", "reason": None, **worker.make(planned, spec)}
            except RunFailed as error:
                if self._interrupted:
                    return
                came_to = {"status": "failed", "reason": str(error)}
            record = {
                **heading(planned, spec),
                "started": started,
                "workers": self.workers,
                **surroundings(),
                **came_to,
            }
            with self._changed:
                self.ledger.add(record)
                self.made.append(record)
                self._ended[i] = record["status"]
        finally:
            with self._changed:
                self._running.discard(i)
                self._changed.notify_all()
        self.on_change(self)

    def _stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


KEY = ("task", "entry", "seed", "steps", "digest")


def identity(planned: Planned, spec: JobSpec) -> tuple[Any, ...]:
    """The values of KEY: runs with the same are the same run."""
    mark = digest(spec, planned.task, planned.policy_seed)
    return (planned.task.name, planned.entry.name, planned.seed, planned.steps, mark)


def heading(planned: Planned, spec: JobSpec) -> Json:
    """What a record says of its run whatever came of it."""
    return {
        "schema": SCHEMA,
        "task": planned.task.name,
        "entry": planned.entry.name,
        "role": planned.entry.role,
        "estimator": spec.estimator.name,
        "weighting": spec.weighting.name,
        "rule_version": rule_version(spec.estimator.name, spec.weighting.name),
        "packages": packages(spec),
        "preference": spec.preference,
        "seed": planned.seed,
        "steps": planned.steps,
        "conditions": planned.preset.conditions,
        "digest": digest(spec, planned.task, planned.policy_seed),
        "objectives": {o.name: {"range": list(o.range), "reference": o.reference} for o in spec.objectives},
        "targets": {o.name: o.target.value for o in spec.objectives if o.target is not None},
    }


def surroundings() -> Mapping[str, Json]:
    """Where and with what it was made."""
    memory_gib = round(psutil.virtual_memory().total / 2**30, 1)
    return {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "memory_gib": memory_gib},
        "versions": versions(),
        "code": code(),
    }
