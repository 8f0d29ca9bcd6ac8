"""A mixed soak: toy jobs under random kills and pauses, every step of theirs checked by an offline replay.

    python -m tests.benchmarks.faults [--minutes 15] [--mean-s 60] [--seed 1]

Real: Redis, API, two workers, driver, loop, journal, checkpoints, lease (30 s). Toy: engines, learner and rewards
(tests/toy_driver.py), so that a step is mostly sleep and its figures can be computed again. A few jobs are kept going
at any time; each is steered through the API while it runs. Before the faults, the same jobs run without any for a tenth
of the time: goodput is steps of the final lineage per second, with faults over without. Figures go to
tests/benchmarks/results/faults.json under `soak`; the last line is them as JSON. Under `tests` are those of the fault
tests (tests/fault_figures.py):

    EQUIPOISE_FAULT_REPEATS=10 EQUIPOISE_FAULT_FIGURES=tests/benchmarks/results/faults.json pytest FILE
"""

from __future__ import annotations

import argparse
import contextlib
import json
import operator
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from orchestrator.errors import StoreUnavailable
from orchestrator.launch.launchers import SubprocessLauncher
from orchestrator.launch.worker import Worker
from orchestrator.spec import JobSpec
from orchestrator.state.embedded_redis import EmbeddedRedis, connect
from orchestrator.state.states import is_terminal
from orchestrator.state.store import JobStore
from services.client import ApiError, Client
from tests.benchmarks.machine import machine
from tests.toy_api import KEY, Api
from tests.toy_driver import command
from tests.toy_jobs import audit, conserved, events_of, toy_spec, weights

RESULTS = Path(__file__).parent / "results" / "faults.json"
AT_ONCE = 4  # jobs
STEPS, STEP_S, EVERY = 100, 0.3, 10  # of a job: steps, seconds, checkpoint interval
TTL_S = 30.0  # the driver's own
STEER_EVERY_S = 3.0
DRAIN_S = 240.0
KINDS = ("kill_driver", "stop_driver", "kill_redis", "freeze_redis", "kill_api", "pause_resume", "cancel")
TARGETS: dict[str, tuple[str, float]] = {
    "lineage_mismatches": ("==", 0),
    "duplicates": ("==", 0),
    "lost_acks": ("==", 0),
    "goodput": (">=", 0.8),
    "max_rerun": ("<=", EVERY),
    "ops_ok": (">=", 100),  # or a run of nothing but errors would look well
    "drained": ("==", True),
}
Figures = dict[str, Any]


# ------------------------------------------------------------------------------------------------------- the victims


class Plant:
    """All that can break, and how to put it right."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.redis = EmbeddedRedis(directory / "redis")
        stack.callback(lambda: self.redis.stop())
        self.client = connect(self.redis.url)
        stack.callback(self.client.close)
        self.store = JobStore(self.client)
        self.api = Api(self.redis.url, directory)
        stack.callback(lambda: self.api.kill())
        for _ in range(2):
            launcher = SubprocessLauncher(self.redis.url, directory, command=command)
            worker = Worker(self.store, launcher, capacity=AT_ONCE // 2)
            stack.enter_context(_working(worker))

    def restart_redis(self) -> float:
        """Killed and started again; seconds until it answers."""
        assert self.redis.pid is not None
        os.kill(self.redis.pid, signal.SIGKILL)
        began = time.monotonic()
        self.redis.stop()
        self.redis = EmbeddedRedis(self.directory / "redis")
        return time.monotonic() - began

    def drivers(self) -> dict[str, int]:
        """job id -> pid, of the drivers that run here."""
        found = {}
        for process in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if "tests.toy_driver" in words and process.status() != psutil.STATUS_ZOMBIE:
                    found[words[words.index("--job") + 1]] = process.pid
        return found


@contextmanager
def _working(worker: Worker) -> Iterator[None]:
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield
    finally:
        worker.request_kill()
        thread.join(30)


# -------------------------------------------------------------------------------------------------------- the people


@dataclass
class Acknowledged:
    """What the API said yes to: it must be there at the end."""

    submitted: dict[str, JobSpec] = field(default_factory=dict)
    steers: list[tuple[str, int, int, float]] = field(default_factory=list)  # job, version, effective step, share
    cancels: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)


class People:
    """Keep a few jobs going, and steer them. Errors of a service that is down are counted, and tried again."""

    def __init__(self, plant: Plant, seed: int) -> None:
        self.plant = plant
        self.random = random.Random(f"people {seed}")
        self.said = Acknowledged()
        self.seed = seed
        self.open = True  # new jobs are submitted
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        next_steer = 0.0
        with Client(self.plant.api.url, KEY, timeout_s=5) as client:
            while not self._stopping.wait(0.3):
                try:
                    active = [job["id"] for job in client.iter_jobs() if not is_terminal(job["status"])]
                    while self.open and len(active) < AT_ONCE:
                        active.append(self._submit(client))
                    if time.monotonic() >= next_steer and active:
                        next_steer = time.monotonic() + STEER_EVERY_S
                        self._steer(client, self.random.choice(active))
                except ApiError as error:
                    self.said.refused[error.code] += 1

    def _submit(self, client: Client) -> str:
        number = len(self.said.submitted)
        spec = toy_spec(steps=STEPS, step_s=STEP_S, every=EVERY, seed=1000 * self.seed + number)
        job_id = str(client.submit(json.loads(spec.to_json()), idempotency_key=f"job-{number}")["id"])
        self.said.submitted[job_id] = spec
        return job_id

    def _steer(self, client: Client, job_id: str) -> None:
        share = round(self.random.uniform(0.1, 0.9), 3)
        done = client.steer(job_id, **weights(share))
        self.said.steers.append((job_id, done["version"], done["effective_step"], share))

    def __enter__(self) -> People:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(30)

    def ask(self, call: Callable[[Client], Any], *, patience_s: float = 60.0) -> Any:
        """What a person tries until it works; None where the job's state does not allow it."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                with Client(self.plant.api.url, KEY, timeout_s=5) as client:
                    return call(client)
            except ApiError as error:
                self.said.refused[error.code] += 1
                if error.status == 409 or time.monotonic() > deadline:
                    return None
                time.sleep(0.5)


# -------------------------------------------------------------------------------------------------------- the faults


class Punisher:
    """One fault after another, at random times."""

    def __init__(self, plant: Plant, people: People, *, seed: int, mean_s: float) -> None:
        self.plant, self.people, self.mean_s = plant, people, mean_s
        self.random = random.Random(f"faults {seed}")
        self.done: Counter[str] = Counter()
        self.struck: list[tuple[str, str, float]] = []  # kind, job, when: those that need a takeover
        self.restarts: dict[str, list[float]] = {"redis": [], "api": []}
        self.stopped: list[psutil.Process] = []
        self._bag: list[str] = []

    def run(self, until: float) -> None:
        due = time.monotonic()
        while True:
            due += self.mean_s * self.random.uniform(0.25, 1.75)  # what a fault itself takes is not added
            time.sleep(max(0.0, min(due, until) - time.monotonic()))
            if due > until:
                return
            if not self._bag:  # every kind comes, drivers' deaths twice as often
                self._bag = [*KINDS, "kill_driver"]
                self.random.shuffle(self._bag)
            kind = self._bag.pop()
            print(f"{time.strftime('%H:%M:%S')} {kind}", flush=True)
            if getattr(self, kind)():
                self.done[kind] += 1

    def _driver(self) -> tuple[str, psutil.Process] | None:
        running = sorted(self.plant.drivers().items())
        if not running:
            return None
        job_id, pid = self.random.choice(running)
        return job_id, psutil.Process(pid)

    def kill_driver(self) -> bool:
        if chosen := self._driver():
            self.struck.append(("kill_driver", chosen[0], time.time()))
            chosen[1].kill()
        return chosen is not None

    def stop_driver(self) -> bool:
        """A zombie: beyond its lease it is woken, if no worker has killed it by then."""
        if chosen := self._driver():
            job_id, process = chosen
            self.struck.append(("stop_driver", job_id, time.time()))
            process.suspend()

            def wake() -> None:
                time.sleep(TTL_S + 15)
                with contextlib.suppress(psutil.Error):
                    process.resume()

            threading.Thread(target=wake, daemon=True).start()
        return chosen is not None

    def kill_redis(self) -> bool:
        self.restarts["redis"].append(self.plant.restart_redis())
        return True

    def freeze_redis(self) -> bool:
        server = psutil.Process(self.plant.redis.pid)
        server.suspend()
        time.sleep(self.random.uniform(5, 12))
        server.resume()
        return True

    def kill_api(self) -> bool:
        self.plant.api.kill()
        self.restarts["api"].append(self.plant.api.start())
        return True

    def _running(self) -> str | None:
        listed = self.people.ask(lambda client: list(client.iter_jobs())) or []
        ids = sorted(job["id"] for job in listed if job["status"] == "running")
        return self.random.choice(ids) if ids else None

    def pause_resume(self) -> bool:
        job_id = self._running()
        if job_id is None or self.people.ask(lambda client: client.pause(job_id)) is None:
            return False
        for _ in range(60):
            job = self.people.ask(lambda client: client.job(job_id))
            if job and job["status"] == "paused":
                return self.people.ask(lambda client: client.resume(job_id)) is not None
            time.sleep(0.5)
        return True  # it ended meanwhile, or its driver is away: what was asked for is done when the lease runs out

    def cancel(self) -> bool:
        job_id = self._running()
        if job_id is None or self.people.ask(lambda client: client.cancel(job_id)) is None:
            return False
        self.people.said.cancels.append(job_id)
        return True


# -------------------------------------------------------------------------------------------------------------- soak


def soak(seconds: float, *, seed: int, mean_s: float | None) -> Figures:
    """Jobs for so long, with faults unless `mean_s` is None; then to their ends, and every one is audited."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="eqp-")))
        plant = Plant(directory, stack)
        people = stack.enter_context(People(plant, seed))
        punisher = Punisher(plant, people, seed=seed, mean_s=mean_s or 1.0)
        warm_up(plant)
        began, until = time.time(), time.monotonic() + seconds
        if mean_s is None:
            time.sleep(seconds)
        else:
            punisher.run(until)
        ended = time.time()
        people.open = False
        drained = drain(plant, people)
        return {
            **verdict(plant, people.said, punisher, began, ended),
            "faults": dict(punisher.done),
            "faults_total": sum(punisher.done.values()),
            "restart_redis_s": round(max(punisher.restarts["redis"], default=0.0), 2),
            "restart_api_s": round(max(punisher.restarts["api"], default=0.0), 2),
            "drained": drained,
            "seconds": round(ended - began),
        }


def warm_up(plant: Plant) -> None:
    """Until all places are taken and at work: the seconds before would count against the shorter run."""
    deadline = time.monotonic() + DRAIN_S
    while sum(job.step > 0 for job in plant.store.jobs(limit=100).items) < AT_ONCE:
        assert time.monotonic() < deadline, "the jobs do not start"
        time.sleep(0.2)


def drain(plant: Plant, people: People) -> bool:
    """Whether every job came to an end; a pause that was overtaken by its job's takeover is taken back."""
    deadline = time.monotonic() + DRAIN_S
    while time.monotonic() < deadline:
        with contextlib.suppress(StoreUnavailable):
            waiting = [job for job in plant.store.jobs(limit=10_000).items if not is_terminal(job.status)]
            if not waiting:
                return True
            for job in waiting:
                if job.status == "paused":
                    people.ask(lambda client, job=job: client.resume(job.job_id))
        time.sleep(0.5)
    return False


def verdict(plant: Plant, said: Acknowledged, punisher: Punisher, began: float, ended: float) -> Figures:
    store = plant.store
    # One whose answer was lost, and that nobody asked again for as the time was up, is no loss and no invention.
    listed = {job.job_id for job in store.jobs(limit=10_000).items}
    unheard = listed - said.submitted.keys()
    audits, committed = {}, 0
    for job_id, spec in said.submitted.items():
        audits[job_id] = audit(store, job_id, spec, plant.directory, every=EVERY)
        committed += sum(began <= record["at"] <= ended for record in store.steps(job_id))
    violations = [f"{job}: {words}" for job, found in audits.items() for words in found.violations]
    violations += conserved(store, {*said.submitted, *unheard})
    if len(unheard) > 1:
        violations.append(f"jobs that nobody asked for: {unheard}")
    jobs = {job_id: store.job(job_id) for job_id in said.submitted}
    return {
        "jobs": len(jobs),
        "jobs_by_end": dict(Counter(str(job.status) for job in jobs.values())),
        "reasons": sorted({job.reason for job in jobs.values() if job.status == "failed" and job.reason}),
        "ops_ok": len(said.submitted) + len(said.steers) + committed,
        "steers_acknowledged": len(said.steers),
        "requests_refused": dict(said.refused),
        "steps_per_s": round(committed / (ended - began), 3),
        "steps_committed": committed,
        "lineage_mismatches": sum(found.mismatches for found in audits.values()),
        "duplicates": sum(found.duplicates for found in audits.values()),
        "lost_acks": lost_acks(store, said),
        "steps_rerun": sum(found.rerun for found in audits.values()),
        "max_rerun": max((found.max_rerun for found in audits.values()), default=0),
        "takeover_s": takeover_s(store, punisher),
        "violations": violations,
    }


def lost_acks(store: JobStore, said: Acknowledged) -> int:
    listed = {job.job_id: job for job in store.jobs(limit=10_000).items}
    lost = len(said.submitted.keys() - listed.keys())
    for job_id, version, effective_step, share in said.steers:
        entry = next((found for found in store.steering(job_id).log if found.version == version), None)
        kept = entry is not None and (entry.effective_step, entry.state["weights"]["accuracy"]) == (
            effective_step,
            share,
        )
        lost += not kept
    return lost + sum(not is_terminal(listed[job_id].status) for job_id in said.cancels)


def takeover_s(store: JobStore, punisher: Punisher) -> float:
    """Of the drivers that were killed or stopped: the longest time until another had the job."""
    longest = 0.0
    for _, job_id, at in punisher.struck:
        claims = [event.at for event in events_of(store, job_id) if event.type == "job.claimed" and event.at > at]
        ends = store.job(job_id).finished_at
        longest = max(longest, min([*claims, *([ends] if ends else [])]) - at)
    return round(longest, 1)


def show(figures: Figures) -> None:
    table = Table("figure", "value", "target", "")
    for name, value in figures.items():
        words = ["", ""]
        if name in TARGETS:
            sign, target = TARGETS[name]
            met = {">=": operator.ge, "<=": operator.le, "==": operator.eq}[sign](value, target)
            words = [f"{sign} {target:g}", "met" if met else "MISSED"]
        table.add_row(name, json.dumps(value), *words)
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=15.0, help="with faults")
    parser.add_argument("--mean-s", type=float, default=60.0, help="between two faults, on the average")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    began = time.monotonic()
    print("== without faults", flush=True)
    calm = soak(max(60.0, 6 * options.minutes), seed=options.seed, mean_s=None)
    print("== with faults", flush=True)
    figures = soak(60 * options.minutes, seed=options.seed, mean_s=options.mean_s)
    figures |= {
        "goodput": round(figures["steps_per_s"] / calm["steps_per_s"], 3),
        "steps_per_s_calm": calm["steps_per_s"],
        "calm_violations": calm["violations"],
        "mean_s": options.mean_s,
        "seed": options.seed,
        "wall_s": round(time.monotonic() - began),
        "machine": machine(),
    }
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    results["soak"] = figures
    options.results.parent.mkdir(exist_ok=True)
    options.results.write_text(json.dumps(results, indent=1) + "\n")
    show(figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
