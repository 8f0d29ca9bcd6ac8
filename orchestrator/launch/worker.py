"""Gives queued jobs to drivers: one process per job, on this machine or on a cluster, as its launcher has it.

The worker holds no lease. A driver claims its job itself, and one that died is found by its process or by its lease
running out; all that is kept here is which drivers are ours. Drivers that outlive their workers are watched by one of
them each (custody.py), and by another once that one is gone. It works for every owner, or for those that it is told,
and shares its capacity among them: owners take turns, and priority orders an owner's own jobs alone, so that nobody
gets more by calling everything urgent. A job that waits for resources steps aside, for a while, and others go first.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import LauncherUnavailable
from orchestrator.fork_copies import ORPHAN_AGE_S, drop_orphans
from orchestrator.launch.custody import Custody
from orchestrator.launch.launchers import NO_RESOURCES, OTHER_HOLDER, Handle, Launcher
from orchestrator.state.states import JobStatus, is_terminal
from orchestrator.state.store import (
    ClaimOutcome,
    Fenced,
    IllegalTransition,
    JobNotFound,
    JobRecord,
    JobStore,
    Lease,
    StoreUnavailable,
)
from orchestrator.storage import job_files
from orchestrator.storage.recovery import survey

log = logging.getLogger(__name__)

_UNCLAIMED_LIMIT = 3  # drivers of a job that die before they claim it
_LONGEST_PAUSE_S = 60.0
_AT_WORK = frozenset({JobStatus.STARTING, JobStatus.RUNNING, JobStatus.PAUSING, JobStatus.CANCELLING})


@dataclass(kw_only=True)
class _History:
    """Of a job's drivers that ended without having got to work."""

    unclaimed: int = 0
    without_resources: int = 0
    not_before: float = field(default=0.0)  # monotonic seconds

    def pause(self, times: int, base_s: float) -> None:
        self.not_before = time.monotonic() + min(2.0 ** min(times, 30) * base_s, _LONGEST_PAUSE_S)


@dataclass(kw_only=True)
class _Watch:
    """On one driver of ours."""

    fence: int  # of its claim
    lost_at: float | None = None  # monotonic seconds


class Worker:
    """Runs up to `capacity` drivers until told to stop. `run` has one thread; the rest may be called from any.

    Without `owners`, the jobs of all of them. With `state_dir`, what a fork that crashed left there is deleted, how
    jobs ended is written down for `recover`, and jobs that Redis has lost are told of. A job that found no resources is
    tried again after 2 `resources_s`, then after twice that, and so on up to a minute. `alive_file` is touched at every
    poll, for whoever watches that this does not hang. Drivers that outlive us are taken over `custody_s` after their
    worker was last heard of. `most_running`: how many of an owner's jobs may have a driver, whoever started it (None:
    any number); workers that start some at the same moment may exceed it by their number.
    """

    def __init__(
        self,
        store: JobStore,
        launcher: Launcher,
        *,
        state_dir: Path | None = None,
        owners: Collection[str] | None = None,
        capacity: int = 1,
        grace_s: float = 120.0,
        poll_s: float = 0.5,
        sweep_s: float = 5.0,
        resources_s: float = 5.0,
        hung_s: float = 30.0,
        custody_s: float = 30.0,
        alive_file: Path | None = None,
        most_running: Callable[[str], int | None] = lambda _: None,
    ) -> None:
        self._any = store
        self._owners = owners
        self._launcher = launcher
        self._state_dir = state_dir
        self._capacity = capacity
        self._grace_s = grace_s
        self._poll_s = poll_s
        self._sweep_s = sweep_s
        self._resources_s = resources_s
        self._hung_s = hung_s
        self._custody_s = custody_s
        self._custody = Custody(store, held_s=custody_s)
        self._alive_file = alive_file
        self._most_running = most_running
        self._stores: dict[str, JobStore] = {}
        self._drivers: dict[tuple[str, str], Handle] = {}
        self._histories: dict[tuple[str, str], _History] = {}
        self._watches: dict[tuple[str, str], _Watch] = {}
        self._has_searched = False
        self._unlisted = False
        self._unsure = 0  # drivers whose worker may be gone: until it is known, they take places of ours
        self._turns = 0  # drivers started so far
        self._served: dict[str, int] = {}  # owner -> turn of its last driver
        self._missing: tuple[str, ...] = ()  # jobs that were told of
        self._ended: dict[str, str] = {}  # owners of the jobs whose directories say how they ended
        self._stopping = threading.Event()
        self._killing = threading.Event()

    def run(self) -> None:
        """Works until `request_stop`, then ends its drivers where they don't survive it.

        A Redis or a launcher that is away is waited for.
        """
        next_sweep = next_search = next_tidying = 0.0
        told: str | None = None  # why it waits
        try:
            while not self._stopping.wait(self._poll_s):
                try:
                    if self._alive_file is not None:
                        self._alive_file.touch()
                    if time.monotonic() >= next_sweep:
                        next_sweep = time.monotonic() + self._sweep_s
                        self._sweep()
                        self._keep_custody()
                        self._kill_hung()
                        self._stop_needless()
                    if time.monotonic() >= next_search:
                        next_search = time.monotonic() + self._custody_s
                        self._search()
                    if time.monotonic() >= next_tidying:
                        next_tidying = time.monotonic() + ORPHAN_AGE_S
                        self._tidy()
                    self._reap()
                    if self._has_searched:  # else it would start more than there may be
                        self._fill()
                    told = None
                except (StoreUnavailable, LauncherUnavailable) as error:
                    why = error.outage if isinstance(error, StoreUnavailable) else "launcher"
                    if why != told:
                        log.warning("%s; waiting for it, drivers go on", error)
                    told = why
                except Exception:  # a full disk, a damaged job: the other jobs' drivers still need us
                    log.exception("the worker goes on in %.0f s", self._sweep_s)
                    self._stopping.wait(self._sweep_s)
        finally:
            if self._launcher.survives_worker:
                self._leave_drivers()
            else:
                self._end_drivers()
            self._drivers.clear()

    def request_stop(self) -> None:
        """No new drivers. Those that don't survive us get SIGTERM, write a checkpoint and hand their jobs back."""
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
            for job_id in self._store(owner).sweep(grace_s=0.9 * self._sweep_s):
                log.warning("%s: its lease ran out; it was taken back", job_id)
                if driver := self._drivers.get((owner, job_id)):  # it hangs, and would keep its job from our next one
                    driver.kill()

    def _tidy(self) -> None:
        if self._state_dir is None:
            return
        job_files.sweep(self._state_dir)
        found = survey(self._any, self._state_dir, self._ended)
        missing = found.missing
        if missing and missing != self._missing:
            log.warning(
                "%d job directories in %s are not in this Redis, such as %s: is it the right one? "
                "`equipoise recover --dry-run`, where the API runs (on Kubernetes `exec deploy/serve`), tells what it "
                "would put back; delete those that nobody wants",
                len(missing),
                self._state_dir / "jobs",
                missing[0],
            )
        self._missing = missing
        for job_id in drop_orphans(self._state_dir, self._any, found=found):
            log.info("%s: a copy for a fork that was never queued was deleted", job_id)

    def _search(self) -> None:
        """A list that does not come, as it may be long, keeps nobody from the drivers that are known."""
        try:
            self._find_again()
            self._unlisted = False
        except LauncherUnavailable as error:
            if not self._unlisted:
                log.warning("%s; drivers that are known are watched on, those of other workers are not found", error)
            self._unlisted = True

    def _find_again(self) -> None:
        """Drivers whose worker is gone count as ours: their jobs are at work, and so not in the queue."""
        owners, theirs = set(self._all_owners()), 0
        for driver in self._launcher.running():
            key = driver.owner, driver.job_id
            if driver.owner not in owners or key in self._drivers:
                continue
            try:
                job = self._store(driver.owner).job(driver.job_id)
            except JobNotFound:  # of another installation on the same cluster
                continue
            if _is_needless(driver, job):  # it may be on its way out already, which takes Ray a while
                driver.terminate()
                continue
            if not self._custody.take(*key):
                theirs += 1
                continue
            self._drivers[key] = driver
            log.info("%s: %s runs already", driver.job_id, driver.name, extra={"job_id": driver.job_id})
        # Those that are another's the second time have a worker that lives.
        self._unsure = 0 if self._has_searched else theirs
        self._has_searched = True

    def _keep_custody(self) -> None:
        if not self._launcher.survives_worker:
            return
        for key, driver in list(self._drivers.items()):
            if not self._custody.take(*key):  # Redis was away, or we were, for too long
                log.warning("%s: another worker watches %s now", driver.job_id, driver.name)
                self._forget(key)

    def _let_go(self, key: tuple[str, str]) -> None:
        """Of a driver that has ended, or is on its way."""
        self._forget(key)
        if self._launcher.survives_worker:
            self._custody.leave(*key)

    def _forget(self, key: tuple[str, str]) -> None:
        del self._drivers[key]
        self._watches.pop(key, None)

    def _leave_drivers(self) -> None:
        with contextlib.suppress(StoreUnavailable):  # else they are others' once our word runs out
            for key in self._drivers:
                self._custody.leave(*key)

    def _kill_hung(self) -> None:
        """A driver of ours that lost its job, and yet does not end, would keep its place and its GPUs for ever."""
        for key, driver in list(self._drivers.items()):
            with contextlib.suppress(JobNotFound):
                job = self._store(driver.owner).job(driver.job_id)
                if job.fence == driver.fence:
                    continue  # not claimed yet
                watch = self._watches.setdefault(key, _Watch(fence=job.fence))
                if job.fence == watch.fence and job.status in _AT_WORK:
                    watch.lost_at = None
                elif watch.lost_at is None:
                    watch.lost_at = time.monotonic()  # it may be about to end
                elif time.monotonic() > watch.lost_at + self._hung_s:
                    log.warning("%s: %s lost its job and does not end: it is killed", driver.job_id, driver.name)
                    driver.kill()
                    watch.lost_at = time.monotonic()  # again after as long: a machine that is gone may take its time

    def _stop_needless(self) -> None:
        """A driver that waits for room on a cluster can't hear that its job was cancelled or paused meanwhile."""
        for key, driver in list(self._drivers.items()):
            try:
                job = self._store(driver.owner).job(driver.job_id)
            except JobNotFound:
                continue  # `_reap` says so
            if not _is_needless(driver, job):
                continue
            log.info("%s: is %s, %s is stopped", driver.job_id, job.status, driver.name)
            driver.terminate()
            if self._launcher.survives_worker:  # Ray hears it when there is room; our own child is waited for
                self._let_go(key)

    def _fill(self) -> None:
        """One driver at a time, so that each choice sees the ones before it."""
        if self._free_places() <= 0:
            return
        waiting = {owner: queue for owner in self._all_owners() if (queue := self._startable(owner))}
        while waiting and self._free_places() > 0:
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

    def _free_places(self) -> int:
        return self._capacity - len(self._drivers) - self._unsure

    def _startable(self, owner: str) -> list[str]:
        """An owner's waiting jobs, as many as may run beside its others, in the order of its queue: by priority, then
        oldest first.
        """
        found = [
            job_id
            for job_id in self._store(owner).queued()
            if (owner, job_id) not in self._drivers
            and time.monotonic() >= self._histories.get((owner, job_id), _History()).not_before
        ]
        most = self._most_running(owner)
        if most is None or not found:
            return found
        running = self._store(owner).held() | {job_id for of, job_id in self._drivers if of == owner}
        return found[: max(0, most - len(running))]

    def _place(self, owner: str, job_id: str) -> tuple[int, int, float]:
        """Lowest goes first: fewest drivers of ours, then served longest ago, then the job that was submitted first.

        Without the second, an owner with a long queue would hold a worker of capacity 1 until it is empty.
        """
        running = sum(driver.owner == owner for driver in self._drivers.values())
        try:
            created_at = self._store(owner).job(job_id).created_at
        except JobNotFound:
            created_at = 0.0  # its turn comes, and says so
        return running, self._served.get(owner, 0), created_at

    def _start(self, owner: str, job_id: str) -> None:
        store = self._store(owner)
        store.check_writes()  # or the driver could not claim it, and would end, again and again
        if self._launcher.survives_worker and not self._custody.take(owner, job_id):
            return  # another worker has started a driver, which has not claimed the job yet
        driver = self._launcher.start(job_id, owner, fence=store.job(job_id).fence)
        self._drivers[owner, job_id] = driver
        self._turns += 1
        self._served[owner] = self._turns
        log.info("%s: %s started, log in %s", job_id, driver.name, driver.log, extra={"job_id": job_id})

    def _reap(self) -> None:
        for key, driver in list(self._drivers.items()):
            code = driver.poll()
            if code is None:
                continue
            known = False
            try:
                self._follow_up(key, driver, code)
            except JobNotFound:
                log.warning("%s: is gone from the store", driver.job_id)
            except (StoreUnavailable, LauncherUnavailable):
                known = True  # until they are back, and it can be followed up
                raise
            finally:
                if not known:
                    self._let_go(key)

    def _follow_up(self, key: tuple[str, str], driver: Handle, code: int) -> None:
        """Tells people of a driver that died, and keeps a job whose drivers can't even start from going round."""
        store = self._store(driver.owner)
        job = store.job(driver.job_id)
        if is_terminal(job.status) or _is_needless(driver, job):
            self._histories.pop(key, None)
            return
        if code == NO_RESOURCES:  # not its fault: it waits, longer each time, and no attempt is counted
            history = self._histories.setdefault(key, _History())
            history.without_resources += 1
            history.pause(history.without_resources, self._resources_s)
            log.info("%s: %s", driver.job_id, job.reason, extra={"job_id": driver.job_id})
            return
        last_line = driver.last_line()
        died = code not in (0, OTHER_HOLDER)
        if died:
            told = {"job_id": driver.job_id}
            log.error("%s: driver died with exit code %d: %s", driver.job_id, code, last_line, extra=told)
            data = {"exit_code": code, "last_line": last_line, "log": driver.log}
            once = f"driver {driver.fence} {driver.name}"  # whoever else watched it
            store.event(driver.job_id, "job.driver_died", data, level="error", once=once)
            self._take_back(driver, job, last_line)
        if job.fence > driver.fence:  # claimed: from here the lease and the limit on attempts decide
            self._histories.pop(key, None)
            return
        history = self._histories.setdefault(key, _History())
        history.unclaimed += 1
        history.pause(history.unclaimed, self._poll_s)
        if died and history.unclaimed >= _UNCLAIMED_LIMIT:
            self._give_up(key, f"its driver does not start: {last_line}")

    def _take_back(self, driver: Handle, job: JobRecord, last_line: str = "") -> None:
        """Nothing of the driver is left: if the lease is still its own, nobody need wait for it to run out."""
        if driver.nonce is None:
            return
        lease = Lease(job_id=driver.job_id, fence=job.fence, nonce=driver.nonce)
        with contextlib.suppress(Fenced):  # it never claimed, or another has claimed since
            self._store(driver.owner).release(lease, "its driver died" + (last_line and f": {last_line}"), crashed=True)

    def _give_up(self, key: tuple[str, str], reason: str) -> None:
        owner, job_id = key
        store = self._store(owner)
        claim = store.claim(job_id, nonce=secrets.token_hex(16), ttl_s=30.0)
        if claim.outcome is ClaimOutcome.OK and claim.lease is not None:
            try:
                store.finish(claim.lease, JobStatus.FAILED, reason)
            except (Fenced, IllegalTransition):
                log.warning("%s: someone else decided first", job_id)
        self._histories.pop(key, None)

    def _end_drivers(self) -> None:
        for driver in self._drivers.values():
            driver.terminate()
        deadline = time.monotonic() + self._grace_s
        while self._drivers and time.monotonic() < deadline and not self._killing.is_set():
            for key, driver in list(self._drivers.items()):
                if (code := driver.poll()) is None:
                    continue
                if code not in (0, OTHER_HOLDER, NO_RESOURCES):  # without a word: its lease would have to run out
                    self._take_back_at_the_end(driver)
                del self._drivers[key]
            self._killing.wait(0.05)
        for driver in self._drivers.values():
            log.warning("%s: %s is killed; the job goes on from its last checkpoint", driver.job_id, driver.name)
            driver.kill()
            self._take_back_at_the_end(driver)

    def _take_back_at_the_end(self, driver: Handle) -> None:
        with contextlib.suppress(StoreUnavailable, JobNotFound):
            self._take_back(driver, self._store(driver.owner).job(driver.job_id))


def _is_needless(driver: Handle, job: JobRecord) -> bool:
    """Nobody claimed the job since the driver was started, and it no longer waits: it was paused or cancelled."""
    return job.fence == driver.fence and job.status is not JobStatus.QUEUED
