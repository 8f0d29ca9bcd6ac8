"""Jobs counted and running ones read, cheaply enough for a monitor that asks every few seconds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from orchestrator.clock import tokens_per_s
from orchestrator.state.fronts import until
from orchestrator.state.keys import Keys
from orchestrator.state.reader import JobReader
from orchestrator.state.records import ledger_step
from orchestrator.state.redis_calls import Arg
from orchestrator.state.states import JobStatus

COUNTED_JOBS = 2000  # newest, in one reading; older ones that are over are left out of the counts
_CHUNK = 500
_Reader = TypeVar("_Reader", bound=JobReader)


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Of one owner's jobs."""

    by_status: dict[JobStatus, int]
    queued: int
    leases: int
    failed: int  # jobs, ever: of those that are no longer counted above, too
    held: tuple[str, ...]  # jobs that a driver holds, newest first


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulse:
    """Where a running job is: its last committed step as recorded, None before the first."""

    step: int
    record: dict[str, Any] | None
    hypervolume: float | None
    failed_checkpoints: int = 0  # so far, of all its drivers; some may have been tried again with success

    @property
    def tokens_per_s(self) -> float | None:
        return tokens_per_s(self.record or {})


class Census:
    """One owner's jobs, in figures."""

    def __init__(self, reader: JobReader) -> None:
        self._calls = reader.calls
        self._keys = Keys(reader.owner)

    def counts(self, *, at_most: int = COUNTED_JOBS) -> Counts:
        """Of the newest `at_most` jobs, and of all those that wait or are held."""
        ids, waiting, leased = self._calls.reads(
            [
                ("ZREVRANGE", self._keys.jobs, 0, at_most - 1),
                ("ZRANGE", self._keys.queue, 0, at_most - 1),
                ("ZRANGE", self._keys.leases, 0, at_most - 1),
            ]
        )
        ids = list(dict.fromkeys([*ids, *waiting, *leased]))
        statuses: list[str | None] = []
        for start in range(0, len(ids), _CHUNK):
            chunk = ids[start : start + _CHUNK]
            statuses += self._calls.reads([("HGET", self._keys.job(job_id), "status") for job_id in chunk])
        queued, leases, failed = self._calls.reads(
            [("ZCARD", self._keys.queue), ("ZCARD", self._keys.leases), ("HGET", self._keys.gpu_time, "failed")]
        )
        return Counts(
            by_status={JobStatus(status): count for status, count in Counter(filter(None, statuses)).items()},
            queued=queued,
            leases=leases,
            failed=int(failed or 0),
            held=tuple(job_id for job_id, status in zip(ids, statuses, strict=True) if status in _HELD),
        )

    def active(self) -> int:
        """Jobs that wait or that a driver holds, as quotas count them."""
        return sum(self._calls.reads([("ZCARD", self._keys.queue), ("ZCARD", self._keys.leases)]))

    def kept(self) -> tuple[int, int]:
        """(jobs in all, ended ones among them; bytes of what is kept of them), as quotas count them."""
        jobs, size = self._calls.reads([("ZCARD", self._keys.jobs), ("HGET", self._keys.kept, "bytes")])
        return int(jobs), int(size or 0)

    def pulses(self, job_ids: Sequence[str]) -> dict[str, Pulse]:
        """By job; one that is gone is left out."""
        commands = [
            command
            for job_id in job_ids
            for command in (
                ("HMGET", self._keys.job(job_id), "step", "ckpt_failures"),
                ("XREVRANGE", self._keys.steps(job_id), "+", "-", "COUNT", 1),
                ("HGET", self._keys.front(job_id), "volume"),
            )
        ]
        replies = self._calls.reads(commands) if commands else []
        found: dict[str, Pulse] = {}
        for i, job_id in enumerate(job_ids):
            (step, failures), entries, volume = replies[3 * i : 3 * i + 3]
            if step is None:
                continue
            newest = ledger_step(*entries[0]) if entries else None
            found[job_id] = Pulse(
                step=int(step),
                # After a crash the newest entry may lie above the step that the job was set back to.
                record=newest[2] if newest is not None and newest[1] == int(step) else None,
                hypervolume=self._hypervolume(job_id, int(step), volume),
                failed_checkpoints=int(failures or 0),
            )
        return found

    def _hypervolume(self, job_id: str, step: int, volume: str | None) -> float | None:
        """By the committed step. The whole front, a megabyte of a long job, is read only where it has later points."""
        if volume is not None and (known := json.loads(volume))["step"] <= step:
            found: float | None = known["hypervolume"]
            return found
        front = self._calls.command("HGET", self._keys.front(job_id), "doc")  # or it is of an earlier version
        return None if front is None else until(json.loads(front), step).get("hypervolume")


_HELD = frozenset({JobStatus.STARTING, JobStatus.RUNNING, JobStatus.PAUSING, JobStatus.CANCELLING})


def busiest(readers: Sequence[_Reader], most: int) -> list[_Reader]:
    """Of that many owners: first those with jobs that wait or are held, then those whose newest job is the newest."""
    if len(readers) <= most:
        return list(readers)
    found: list[Any] = []
    for start in range(0, len(readers), _CHUNK):
        commands: list[Sequence[Arg]] = []
        for of in (Keys(reader.owner) for reader in readers[start : start + _CHUNK]):
            commands += [("ZCARD", of.queue), ("ZCARD", of.leases), ("ZREVRANGE", of.jobs, 0, 0, "WITHSCORES")]
        found += readers[0].calls.reads(commands)
    figures = zip(found[::3], found[1::3], found[2::3], strict=True)
    ranks = [(queued + held > 0, float(newest[1]) if newest else 0.0) for queued, held, newest in figures]
    order = sorted(range(len(readers)), key=lambda i: ranks[i], reverse=True)
    return [readers[i] for i in sorted(order[:most])]
