"""Gives queued jobs to drivers: one process per job, each in a session of its own, so that a signal to us or our
death doesn't reach it.

The worker holds no lease. A driver claims its job itself, and a driver that died is found by its lease running out;
all that is kept here is which processes are ours. It works for every owner, or for those that it is told, and shares
its capacity among them. A driver gets the Redis URL, which may hold a password, by its environment: everyone on a
machine can read arguments.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.states import JobStatus, is_terminal
from orchestrator.store import ClaimOutcome, Fenced, IllegalTransition, JobNotFound, JobStore, StoreUnavailable

log = logging.getLogger(__name__)

REDIS_URL_VARIABLE = "EQUIPOISE_REDIS_URL"

_OTHER_HOLDER = 3  # exit code of a driver that lost or missed its lease: no harm done
_UNCLAIMED_LIMIT = 3  # drivers of a job that die before they claim it
_LONGEST_PAUSE_S = 60.0
_LAST_LINE_CHARS = 300


def driver_command(job_id: str, owner: str, state_dir: Path) -> list[str]:
    """How a driver is started on this machine; the Redis URL is in its environment."""
    return [
        sys.executable, "-m", "orchestrator.driver",
        "--job", job_id, "--owner", owner, "--state-dir", str(state_dir),
    ]  # fmt: skip


@dataclass(kw_only=True)
class _Driver:
    owner: str
    job_id: str
    process: subprocess.Popen[bytes]
    fence: int  # the job's when it was started: a claim raises it
    log_path: Path

    @property
    def key(self) -> tuple[str, str]:
        return self.owner, self.job_id


@dataclass(kw_only=True)
class _History:
    """Of a job's drivers that ended without having claimed it."""

    unclaimed: int = 0
    not_before: float = field(default=0.0)  # monotonic seconds


class Worker:
    """Runs up to `capacity` drivers until told to stop. `run` has one thread; the rest may be called from any.

    Without `owners`, the jobs of all of them.
    """

    def __init__(
        self,
        store: JobStore,
        redis_url: str,
        state_dir: Path,
        *,
        owners: Collection[str] | None = None,
        capacity: int = 1,
        grace_s: float = 120.0,
        poll_s: float = 0.5,
        sweep_s: float = 5.0,
        command: Callable[[str, str, Path], list[str]] = driver_command,
    ) -> None:
        self._any = store
        self._owners = owners
        self._redis_url = redis_url
        self._state_dir = state_dir
        self._capacity = capacity
        self._grace_s = grace_s
        self._poll_s = poll_s
        self._sweep_s = sweep_s
        self._command = command
        self._stores: dict[str, JobStore] = {}
        self._drivers: dict[tuple[str, str], _Driver] = {}
        self._histories: dict[tuple[str, str], _History] = {}
        self._turns = 0  # drivers started so far
        self._served: dict[str, int] = {}  # owner -> turn of its last driver
        self._stopping = threading.Event()
        self._killing = threading.Event()

    def run(self) -> None:
        """Works until `request_stop`, then ends its drivers. A Redis that is away is waited for."""
        next_sweep = 0.0
        reachable = True
        try:
            while not self._stopping.wait(self._poll_s):
                try:
                    if time.monotonic() >= next_sweep:
                        next_sweep = time.monotonic() + self._sweep_s
                        self._sweep()
                    self._reap()
                    self._fill()
                    reachable = True
                except StoreUnavailable as error:
                    if reachable:
                        log.warning("%s; waiting for it, drivers go on", error)
                    reachable = False
                except Exception:  # a full disk, a damaged job: the other jobs' drivers still need us
                    log.exception("the worker goes on in %.0f s", self._sweep_s)
                    self._stopping.wait(self._sweep_s)
        finally:
            self._end_drivers()

    def request_stop(self) -> None:
        """No new drivers; those that run get SIGTERM, write a checkpoint and hand their jobs back."""
        self._stopping.set()

    def request_kill(self) -> None:
        """The same without waiting: SIGKILL. The jobs go on from their last checkpoints."""
        self._killing.set()
        self._stopping.set()

    @property
    def running(self) -> list[str]:
        """The jobs whose drivers are ours."""
        return [job_id for _, job_id in list(self._drivers)]

    def _store(self, owner: str) -> JobStore:
        if owner not in self._stores:
            self._stores[owner] = self._any.of_owner(owner)
        return self._stores[owner]

    def _all_owners(self) -> Collection[str]:
        return self._any.owners() if self._owners is None else self._owners

    def _sweep(self) -> None:
        for owner in self._all_owners():
            for job_id in self._store(owner).sweep():
                log.warning("%s: its lease ran out; it was taken back", job_id)
                if driver := self._drivers.get((owner, job_id)):  # it hangs, and would keep its job from our next one
                    _kill_group(driver.process)

    def _fill(self) -> None:
        """One driver at a time, so that each choice sees the ones before it."""
        if len(self._drivers) >= self._capacity:
            return
        waiting = {owner: queue for owner in self._all_owners() if (queue := self._startable(owner))}
        while waiting and len(self._drivers) < self._capacity:
            owner = min(waiting, key=lambda owner: self._place(owner, waiting[owner][0]))
            job_id = waiting[owner].pop(0)
            if not waiting[owner]:
                del waiting[owner]
            try:
                self._start(owner, job_id)
            except (OSError, JobNotFound) as error:  # its directory, or an entry without a job: the others still run
                log.error("%s: can't be started: %s", job_id, error, extra={"job_id": job_id})
                history = self._histories.setdefault((owner, job_id), _History())
                history.not_before = time.monotonic() + _LONGEST_PAUSE_S

    def _startable(self, owner: str) -> list[str]:
        """An owner's waiting jobs in the order of its queue (oldest first: the queue's score is what decides)."""
        return [
            job_id
            for job_id in self._store(owner).queued()
            if (owner, job_id) not in self._drivers
            and time.monotonic() >= self._histories.get((owner, job_id), _History()).not_before
        ]

    def _place(self, owner: str, job_id: str) -> tuple[int, int, float]:
        """Lowest goes first: fewest drivers of ours, then served longest ago, then the oldest job.

        Without the second, an owner with a long queue would hold a worker of capacity 1 until it is empty.
        """
        running = sum(driver.owner == owner for driver in self._drivers.values())
        try:
            created_at = self._store(owner).job(job_id).created_at
        except JobNotFound:
            created_at = 0.0  # its turn comes, and says so
        return running, self._served.get(owner, 0), created_at

    def _start(self, owner: str, job_id: str) -> None:
        directory = self._state_dir / "jobs" / job_id
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        log_path = directory / "driver.log"
        fence = self._store(owner).job(job_id).fence
        with log_path.open("ab") as output:
            process = subprocess.Popen(
                self._command(job_id, owner, self._state_dir),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=self._environment(),
            )
        driver = _Driver(owner=owner, job_id=job_id, process=process, fence=fence, log_path=log_path)
        self._drivers[driver.key] = driver
        self._turns += 1
        self._served[owner] = self._turns
        log.info("%s: driver %d started, log in %s", job_id, process.pid, log_path, extra={"job_id": job_id})

    def _environment(self) -> dict[str, str]:
        """Ours, with the Redis and without the API's key, which no driver needs."""
        kept = {name: value for name, value in os.environ.items() if name != "EQUIPOISE_API_KEY"}
        return {**kept, REDIS_URL_VARIABLE: self._redis_url}

    def _reap(self) -> None:
        for driver in list(self._drivers.values()):
            if not _has_ended(driver.process):
                continue
            _kill_group(driver.process)  # what it left behind; its pid is ours until we wait for it
            code = driver.process.wait()
            del self._drivers[driver.key]
            try:
                self._follow_up(driver, code)
            except JobNotFound:
                log.warning("%s: is gone from the store", driver.job_id)

    def _follow_up(self, driver: _Driver, code: int) -> None:
        """Tells people of a driver that died, and keeps a job whose drivers can't even start from going round."""
        store = self._store(driver.owner)
        job = store.job(driver.job_id)
        if is_terminal(job.status):
            self._histories.pop(driver.key, None)
            return
        last_line = _last_line(driver.log_path)
        died = code not in (0, _OTHER_HOLDER)
        if died:
            told = {"job_id": driver.job_id}
            log.error("%s: driver died with exit code %d: %s", driver.job_id, code, last_line, extra=told)
            data = {"exit_code": code, "last_line": last_line, "log": str(driver.log_path)}
            store.event(driver.job_id, "job.driver_died", data, level="error")
        if job.fence > driver.fence:  # claimed: from here the lease and the limit on attempts decide
            self._histories.pop(driver.key, None)
            return
        history = self._histories.setdefault(driver.key, _History())
        history.unclaimed += 1
        history.not_before = time.monotonic() + min(2.0**history.unclaimed * self._poll_s, _LONGEST_PAUSE_S)
        if died and history.unclaimed >= _UNCLAIMED_LIMIT:
            self._give_up(driver, f"its driver does not start: {last_line}")

    def _give_up(self, driver: _Driver, reason: str) -> None:
        store = self._store(driver.owner)
        claim = store.claim(driver.job_id, nonce=secrets.token_hex(16), ttl_s=30.0)
        if claim.outcome is ClaimOutcome.OK and claim.lease is not None:
            try:
                store.finish(claim.lease, JobStatus.FAILED, reason)
            except (Fenced, IllegalTransition):
                log.warning("%s: someone else decided first", driver.job_id)
        self._histories.pop(driver.key, None)

    def _end_drivers(self) -> None:
        for driver in self._drivers.values():
            os.kill(driver.process.pid, signal.SIGTERM)  # Popen.send_signal would reap one that has ended
        deadline = time.monotonic() + self._grace_s
        while self._drivers and time.monotonic() < deadline and not self._killing.is_set():
            for driver in [driver for driver in self._drivers.values() if _has_ended(driver.process)]:
                self._bury(driver)
            self._killing.wait(0.05)
        for driver in list(self._drivers.values()):
            log.warning(
                "%s: driver %d is killed; the job goes on from its last checkpoint", driver.job_id, driver.process.pid
            )
            self._bury(driver)

    def _bury(self, driver: _Driver) -> None:
        _kill_group(driver.process)
        driver.process.wait()
        del self._drivers[driver.key]


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Without reaping it: until then its pid, which names its group, can't be given to another process."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: nobody left but the zombie itself
        os.killpg(process.pid, signal.SIGKILL)


def _last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        lines = file.read().decode("utf-8", "replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    with contextlib.suppress(ValueError, AttributeError):  # a JSON line
        last = str(json.loads(last).get("message", last))
    return last[:_LAST_LINE_CHARS]
