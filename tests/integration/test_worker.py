"""The worker with real processes in the place of drivers, on a real Redis."""

import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import LauncherUnavailable
from orchestrator.launch.custody import Custody
from orchestrator.launch.launchers import SubprocessLauncher, driver_command
from orchestrator.launch.worker import Worker
from orchestrator.state.embedded_redis import EmbeddedRedis, connect
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobRecord, JobStore, StoreUnavailable
from orchestrator.storage.recovery import keep_document
from tests.support import make_policy, small_spec

# What every driver below starts with: its arguments, and the lease on its job.
PRELUDE = """
import os, signal, subprocess, sys, time
from orchestrator.state.embedded_redis import connect
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore
job, owner, state_dir = sys.argv[1:]
store = JobStore(connect(os.environ["EQUIPOISE_REDIS_URL"]), owner=owner)
def claim(ttl_s=30):
    lease = store.claim(job, nonce=os.environ["EQUIPOISE_LEASE_NONCE"], ttl_s=ttl_s).lease
    assert lease is not None
    store.set_status(lease, JobStatus.RUNNING)
    return lease
"""
SUCCEEDS = "store.finish(claim(), JobStatus.SUCCEEDED)"
HANDS_BACK = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # whoever sees it run may end it before its next line
lease = claim()
def stop(*_):
    store.release(lease, "handed back")
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
time.sleep(60)
"""
IGNORES_SIGTERM = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
with open(state_dir + "/child", "w") as file:
    file.write(str(child.pid))
claim()
time.sleep(60)
"""
CRASHES = 'print("a traceback"); print("CUDA out of memory\\n\\n", flush=True); claim(ttl_s=600); os._exit(7)'
GIVEN_UP = (
    "3 starts came to no new checkpoint (the events have each); the last ended with: "
    "its driver died: CUDA out of memory"
)
NEVER_STARTS = 'sys.exit("no module named torch")'
FINDS_NO_ROOM = 'store.release(claim(), "waiting for resources: needs 2 GPUs, 1 free"); sys.exit(4)'
IS_KILLED = "claim(ttl_s=600); os.kill(os.getpid(), signal.SIGKILL)"


class Bench:
    """A worker with its own owner in the shared Redis."""

    def __init__(self, redis_url: str, state_dir: Path) -> None:
        self.redis_url, self.state_dir = redis_url, state_dir
        self.owner = f"worker-{uuid.uuid4().hex}"
        self.client = connect(redis_url)
        self.store = JobStore(self.client, owner=self.owner)
        self.owners = {self.owner}
        self.started: list[str] = []

    def submit(self, owner: str | None = None, *, priority: int = 0) -> str:
        job_id = f"job-{uuid.uuid4().hex[:12]}"
        store = self.store if owner is None else JobStore(self.client, owner=owner)
        store.submit("{}", name="x", job_id=job_id, steering={}, priority=priority)
        return job_id

    def new_owner(self) -> str:
        owner = f"worker-{uuid.uuid4().hex}"
        self.owners.add(owner)
        return owner

    @contextmanager
    def working(
        self,
        script: str,
        *,
        capacity: int = 1,
        grace_s: float = 10.0,
        hung_s: float = 30.0,
        most_running: int | None = None,
    ) -> Iterator[Worker]:
        def command(job_id: str, owner: str, state_dir: Path) -> list[str]:
            self.started.append(job_id)
            return [sys.executable, "-c", PRELUDE + script, job_id, owner, str(state_dir)]

        worker = Worker(
            self.store, SubprocessLauncher(self.redis_url, self.state_dir, command=command), owners=self.owners,
            capacity=capacity, grace_s=grace_s, poll_s=0.05, sweep_s=0.2, resources_s=0.05, hung_s=hung_s,
            most_running=lambda _: most_running,
        )  # fmt: skip
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            yield worker
        finally:
            worker.request_stop()
            thread.join(20)
            assert not thread.is_alive()
            assert worker.running == []

    def wait(self, job_id: str, met: Callable[[JobRecord], bool], timeout_s: float = 20) -> JobRecord:
        deadline = time.monotonic() + timeout_s
        while True:
            job = self.store.job(job_id)
            if met(job):
                return job
            assert time.monotonic() < deadline, job
            time.sleep(0.02)

    def events(self, job_id: str, kind: str) -> list[dict[str, object]]:
        return [event.data for event in self.store.events(job_id).items if event.type == kind]


@contextmanager
def working(worker: Worker) -> Iterator[Worker]:
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        worker.request_stop()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def bench(redis_url: str, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(redis_url, tmp_path)
    yield bench
    bench.client.close()


def has(status: JobStatus) -> Callable[[JobRecord], bool]:
    return lambda job: job.status is status


def is_alive(pid: int) -> bool:
    """A zombie whose parent is gone is not."""
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_jobs_run_one_after_another_each_in_its_own_session(bench: Bench) -> None:
    jobs = [bench.submit() for _ in range(3)]
    with bench.working(SUCCEEDS + "; print(os.getsid(0) == os.getpid())"):
        for job_id in jobs:
            bench.wait(job_id, has(JobStatus.SUCCEEDED))
    assert bench.started == jobs
    assert (bench.state_dir / "jobs" / jobs[0] / "driver.log").read_text() == "True\n"


def test_capacity_is_how_many_run_at_once(bench: Bench) -> None:
    jobs = [bench.submit() for _ in range(3)]
    with bench.working(HANDS_BACK, capacity=2) as worker:
        for job_id in jobs[:2]:
            bench.wait(job_id, has(JobStatus.RUNNING))
        time.sleep(0.3)
        assert sorted(worker.running) == sorted(jobs[:2])
        assert bench.store.job(jobs[2]).status is JobStatus.QUEUED


def test_a_stop_lets_the_driver_hand_its_job_back(bench: Bench) -> None:
    job_id = bench.submit()
    with bench.working(HANDS_BACK):
        bench.wait(job_id, has(JobStatus.RUNNING))
    job = bench.store.job(job_id)
    assert (job.status, job.reason, job.attempts) == (JobStatus.QUEUED, "handed back", 0)
    assert bench.started == [job_id]


def test_a_driver_that_ends_at_a_stop_without_a_word_does_not_keep_its_lease(bench: Bench) -> None:
    job_id = bench.submit()
    with bench.working("claim(ttl_s=600); time.sleep(60)"):  # SIGTERM ends it
        bench.wait(job_id, has(JobStatus.RUNNING))
    job = bench.store.job(job_id)
    assert (job.status, job.reason, job.attempts) == (JobStatus.QUEUED, "its driver died", 1)


@pytest.mark.parametrize("killed", [False, True])
def test_a_driver_that_does_not_stop_is_killed_with_all_it_started(bench: Bench, killed: bool) -> None:
    job_id = bench.submit()
    with bench.working(IGNORES_SIGTERM, grace_s=60 if killed else 0.3) as worker:
        bench.wait(job_id, has(JobStatus.RUNNING))
        if killed:
            worker.request_kill()
        started = time.monotonic()
    assert time.monotonic() - started < 30
    child = int((bench.state_dir / "child").read_text())
    while is_alive(child):  # a signal is not delivered at once
        assert time.monotonic() - started < 30
        time.sleep(0.01)


def test_a_driver_that_ended_while_the_store_was_away_is_followed_up_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow_up, away = Worker._follow_up, iter([True, True, False])

    def sometimes(self: Worker, *arguments: Any) -> None:
        if next(away, False):
            raise StoreUnavailable("away")
        follow_up(self, *arguments)

    monkeypatch.setattr(Worker, "_follow_up", sometimes)
    job_id = bench.submit()
    with bench.working(CRASHES):
        job = bench.wait(job_id, has(JobStatus.FAILED))
    assert (job.reason, job.attempts) == (GIVEN_UP, 3)
    assert len(bench.events(job_id, "job.driver_died")) == 3


def test_a_driver_of_which_nothing_can_be_said_does_not_stop_the_worker(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow_up, odd = Worker._follow_up, iter([True])

    def once(self: Worker, *arguments: Any) -> None:
        if next(odd, False):
            raise FileNotFoundError("driver.log")
        follow_up(self, *arguments)

    monkeypatch.setattr(Worker, "_follow_up", once)
    jobs = [bench.submit() for _ in range(2)]
    with bench.working(SUCCEEDS):
        bench.wait(jobs[1], has(JobStatus.SUCCEEDED))


def test_a_driver_that_crashes_is_reported_and_after_three_the_job_is_poison(bench: Bench) -> None:
    job_id = bench.submit()
    with bench.working(CRASHES):
        job = bench.wait(job_id, has(JobStatus.FAILED))
    assert (job.reason, job.attempts) == (GIVEN_UP, 3)
    reports = bench.events(job_id, "job.driver_died")
    log = str(bench.state_dir / "jobs" / job_id / "driver.log")
    assert reports[:3] == [{"exit_code": 7, "last_line": "CUDA out of memory", "log": log}] * 3


def test_a_killed_driver_is_replaced_at_once(bench: Bench) -> None:
    """Its worker knows that nothing of it is left, so nobody waits for ten minutes of lease."""
    job_id = bench.submit()
    with bench.working(IS_KILLED):
        bench.wait(job_id, lambda job: job.fence >= 2)
    assert bench.events(job_id, "job.driver_died")[0]["exit_code"] == -signal.SIGKILL


def test_a_driver_that_lost_its_job_and_does_not_end_is_killed(bench: Bench) -> None:
    """Whoever took the job back: its place is wanted."""
    job_id = bench.submit()
    hangs = "lease = claim()\nif lease.fence == 1:\n    store.release(lease)\n    time.sleep(600)\n"
    with bench.working(hangs + "store.finish(lease, JobStatus.SUCCEEDED)", hung_s=0.3):
        bench.wait(job_id, has(JobStatus.SUCCEEDED))
    assert bench.started.count(job_id) == 2


def test_the_lease_of_a_driver_elsewhere_is_left_alone(bench: Bench) -> None:
    """Ours died without having claimed, as another worker's was quicker."""
    job_id = bench.submit()
    other = "other = store.claim(job, nonce='elsewhere', ttl_s=600).lease; os._exit(7)"
    with bench.working(other):
        bench.wait(job_id, lambda _: bool(bench.events(job_id, "job.driver_died")))
        assert bench.store.job(job_id).status is JobStatus.STARTING
        time.sleep(0.5)
    assert bench.store.job(job_id).fence == 1


def test_a_driver_that_never_starts_fails_its_job_with_the_reason(bench: Bench) -> None:
    broken, waiting = bench.submit(), bench.submit()
    with bench.working(f"if job == {broken!r}:\n    {NEVER_STARTS}\n{SUCCEEDS}"):
        bench.wait(waiting, has(JobStatus.SUCCEEDED))  # the broken one does not hold up the rest
        job = bench.wait(broken, has(JobStatus.FAILED))
    assert job.reason == "its driver does not start: no module named torch"
    assert bench.started.count(broken) == 3


def test_another_workers_job_is_left_alone(bench: Bench) -> None:
    job_id = bench.submit()
    with bench.working(SUCCEEDS + "\nsys.exit(3)"):  # what a driver answers that found another holder
        bench.wait(job_id, has(JobStatus.SUCCEEDED))
    assert bench.events(job_id, "job.driver_died") == []


def test_a_frozen_redis_neither_ends_the_worker_nor_its_driver(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "redis") as redis:
        bench = Bench(redis.url, tmp_path)
        first = bench.submit()
        with bench.working(HANDS_BACK, capacity=2) as worker:
            bench.wait(first, has(JobStatus.RUNNING))
            assert redis.pid is not None
            os.kill(redis.pid, signal.SIGSTOP)
            time.sleep(2.5)
            os.kill(redis.pid, signal.SIGCONT)
            second = bench.submit()
            bench.wait(second, has(JobStatus.RUNNING))
            assert sorted(worker.running) == sorted([first, second])
        bench.client.close()


def test_owners_share_the_capacity(bench: Bench) -> None:
    """One who came first with many jobs leaves room for one who came later with few."""
    other = bench.new_owner()
    first = [bench.submit() for _ in range(5)]
    second = [bench.submit(other) for _ in range(2)]
    with bench.working(HANDS_BACK, capacity=4) as worker:
        deadline = time.monotonic() + 60
        while len(worker.running) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert bench.started == [first[0], second[0], first[1], second[1]]


def test_an_owner_runs_so_many_at_once_whoever_started_them(bench: Bench) -> None:
    elsewhere, *waiting = [bench.submit() for _ in range(4)]
    lease = bench.store.claim(elsewhere, nonce="n", ttl_s=60).lease  # by another worker's driver
    assert lease is not None
    other = bench.new_owner()
    theirs = bench.submit(other)
    with bench.working(HANDS_BACK, capacity=8, most_running=2) as worker:
        bench.wait(waiting[0], has(JobStatus.RUNNING))
        time.sleep(1)  # long enough for the others, if they were to start
        assert sorted(worker.running) == sorted([waiting[0], theirs])
        bench.store.finish(lease, JobStatus.FAILED, "x")
        bench.wait(waiting[1], has(JobStatus.RUNNING))
        assert waiting[2] not in worker.running


def test_owners_take_turns_at_a_worker_of_one_job(bench: Bench) -> None:
    other = bench.new_owner()
    first = [bench.submit() for _ in range(3)]
    second = [bench.submit(other) for _ in range(2)]
    with bench.working(SUCCEEDS):
        bench.wait(first[-1], has(JobStatus.SUCCEEDED))
    assert bench.started == [first[0], second[0], first[1], second[1], first[2]]


def test_a_dead_driver_of_any_owner_is_swept_up(bench: Bench) -> None:
    """By its lease alone: the worker does not know its nonce."""
    other = bench.new_owner()
    job_id = bench.submit(other)
    with bench.working("store.claim(job, nonce='own', ttl_s=0.2); os._exit(7)"):
        bench.store = JobStore(bench.client, owner=other)
        bench.wait(job_id, lambda job: job.fence >= 2)


def test_a_worker_works_for_every_owner_unless_told(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "redis") as redis, connect(redis.url) as client:
        bench = Bench(redis.url, tmp_path)
        jobs = [bench.submit(owner) for owner in ("local", "ann", "bob")]

        def command(job_id: str, owner: str, state_dir: Path) -> list[str]:
            return [sys.executable, "-c", PRELUDE + SUCCEEDS, job_id, owner, str(state_dir)]

        launcher = SubprocessLauncher(redis.url, tmp_path, command=command)
        with working(Worker(JobStore(client), launcher, poll_s=0.05)):
            for owner, job_id in zip(("local", "ann", "bob"), jobs, strict=True):
                bench.store = JobStore(client, owner=owner)
                bench.wait(job_id, has(JobStatus.SUCCEEDED))
        bench.client.close()


def test_a_driver_does_not_inherit_the_keys_of_the_api(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EQUIPOISE_API_KEY", "EQUIPOISE_METRICS_KEY", "EQUIPOISE_METRICS_KEY_FILE"):
        monkeypatch.setenv(name, "eqp_canary")
    job_id = bench.submit()
    with bench.working(f'print("eqp_canary" in os.environ.values())\n{SUCCEEDS}'):
        bench.wait(job_id, has(JobStatus.SUCCEEDED))
    assert (bench.state_dir / "jobs" / job_id / "driver.log").read_text() == "False\n"


def test_a_password_never_stands_in_a_process_list(tmp_path: Path) -> None:
    password = f"canary-{uuid.uuid4().hex}"
    with EmbeddedRedis(tmp_path / "redis") as redis:
        with connect(redis.url) as admin:
            admin.execute_command("ACL", "SETUSER", "worker", "on", f">{password}", "~*", "&*", "+@all")
        url = redis.url.replace("unix://", f"unix://worker:{password}@")
        with connect(url) as client:
            store = JobStore(client)
            store.submit("{}", name="x", job_id="job-1", steering={})

            def command(job_id: str, owner: str, state_dir: Path) -> list[str]:
                real = driver_command(job_id, owner, state_dir)
                assert real[1:3] == ["-m", "orchestrator.driver"]
                return [sys.executable, "-c", PRELUDE + HANDS_BACK, *real[4:8:2], str(state_dir)]

            launcher = SubprocessLauncher(url, tmp_path, command=command)
            with working(Worker(store, launcher, owners=["local"], poll_s=0.05)) as worker:
                deadline = time.monotonic() + 20
                while store.job("job-1").status is not JobStatus.RUNNING:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                assert worker.running == ["job-1"]
                assert password not in " ".join(driver_command("job-1", "local", tmp_path))
                for shown in Path("/proc").glob("[0-9]*/cmdline"):
                    with suppress(OSError):
                        assert password.encode() not in shown.read_bytes()
        assert password not in (tmp_path / "jobs" / "job-1" / "driver.log").read_text()


def test_the_real_command_claims_the_job_and_hands_it_back_with_a_reason(redis_url: str, tmp_path: Path) -> None:
    """The job's spec is nonsense: the driver starts, takes the lease, and leaves the job to a version that reads it."""
    with connect(redis_url) as client:
        owner = f"worker-{uuid.uuid4().hex}"
        store = JobStore(client, owner=owner)
        job_id = f"job-{uuid.uuid4().hex[:12]}"
        store.submit(json.dumps({"name": "x"}), name="x", job_id=job_id, steering={})
        with working(Worker(store, SubprocessLauncher(redis_url, tmp_path), owners=[owner], poll_s=0.05)):
            deadline = time.monotonic() + 120
            while not (job := store.job(job_id)).reason and time.monotonic() < deadline:
                time.sleep(0.1)
    assert (job.status, job.attempts) == (JobStatus.QUEUED, 0), job.reason
    assert "Field required" in (job.reason or "")


@pytest.mark.parametrize("address", ["127.0.0.1:{closed}", "no-address"])
def test_a_job_whose_ray_cluster_is_away_waits_for_it_uncounted(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = address.format(closed=server.getsockname()[1])
    monkeypatch.setenv("EQUIPOISE_RAY_ADDRESS", address)
    spec = small_spec(make_policy(tmp_path / "policy")).model_dump(mode="json")
    with connect(redis_url) as client:
        owner = f"worker-{uuid.uuid4().hex}"
        store = JobStore(client, owner=owner)
        job_id = f"job-{uuid.uuid4().hex[:12]}"
        store.submit(json.dumps(spec), name="x", job_id=job_id, steering={})
        with working(Worker(store, SubprocessLauncher(redis_url, tmp_path), owners=[owner], poll_s=0.05)):
            deadline = time.monotonic() + 120
            while not (job := store.job(job_id)).reason and time.monotonic() < deadline:
                time.sleep(0.1)
    assert (job.status, job.attempts) == (JobStatus.QUEUED, 0), job.reason
    assert f"the Ray cluster at {address} (EQUIPOISE_RAY_ADDRESS) can't be reached" in (job.reason or "")


def test_a_job_that_cannot_be_started_holds_up_nobody(bench: Bench) -> None:
    (bench.state_dir / "jobs").mkdir(exist_ok=True)
    stuck = bench.submit()
    (bench.state_dir / "jobs" / stuck).write_text("in the way of its directory")
    others = [bench.submit() for _ in range(2)]
    with bench.working(SUCCEEDS):
        for job_id in others:
            bench.wait(job_id, lambda job: job.status is JobStatus.SUCCEEDED)
    assert bench.store.job(stuck).status is JobStatus.QUEUED


def test_a_job_that_finds_no_resources_waits_uncounted_and_lets_others_go_first(bench: Bench) -> None:
    large, small = bench.submit(), bench.submit()
    with bench.working(f"if job == {large!r}:\n    {FINDS_NO_ROOM}\n{SUCCEEDS}"):
        bench.wait(small, has(JobStatus.SUCCEEDED))
        job = bench.wait(large, lambda job: job.fence >= 5 and job.status is JobStatus.QUEUED)
    assert (job.attempts, job.reason) == (0, "waiting for resources: needs 2 GPUs, 1 free")
    assert bench.events(large, "job.driver_died") == []


def test_a_jobs_place_among_its_owners_is_its_priority_and_owners_take_turns_all_the_same(bench: Bench) -> None:
    other = bench.new_owner()
    plain, urgent, late = bench.submit(), bench.submit(priority=5), bench.submit(priority=-1)
    theirs = [bench.submit(other) for _ in range(2)]
    with bench.working(SUCCEEDS):
        bench.wait(late, has(JobStatus.SUCCEEDED))
    # The other owner's jobs came last and have no priority, and still get every second turn.
    assert [job_id for job_id in bench.started if job_id not in theirs] == [urgent, plain, late]
    assert [bench.started.index(job_id) for job_id in theirs] == [1, 3]


def test_job_directories_that_redis_does_not_know_are_told_of_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("orchestrator.launch.worker.ORPHAN_AGE_S", 0.0)  # it tidies at every turn
    for job_id in ("job-1", "job-2"):
        (bench.state_dir / "jobs" / job_id).mkdir(parents=True)
        keep_document(bench.state_dir / "jobs" / job_id, owner=bench.owner, spec="{}")
    launcher = SubprocessLauncher(bench.redis_url, bench.state_dir)
    with working(Worker(bench.store, launcher, state_dir=bench.state_dir, owners=bench.owners, poll_s=0.05)):
        time.sleep(1)
    told = [record.getMessage() for record in caplog.records if "not in this Redis" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("2 job directories")
    assert "such as job-1" in told[0]
    assert "`equipoise recover --dry-run`, where the API runs" in told[0]


@dataclass(kw_only=True)
class Elsewhere:
    """A driver on a cluster, which goes on until it is told how it ended."""

    owner: str
    job_id: str
    fence: int
    code: int | None = None
    nonce: None = None
    log: str = "nowhere"

    @property
    def name(self) -> str:
        return f"driver of {self.job_id}"

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.code = 0

    kill = terminate

    def last_line(self) -> str:
        return ""


class Cluster:
    """Starts drivers that claim their jobs at once, and outlive the workers."""

    survives_worker = True

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.drivers: list[Elsewhere] = []

    def start(self, job_id: str, owner: str, *, fence: int) -> Elsewhere:
        driver = Elsewhere(owner=owner, job_id=job_id, fence=fence)
        self.drivers.append(driver)
        self.store.claim(job_id, nonce=job_id, ttl_s=600)
        return driver

    def running(self) -> list[Elsewhere]:
        return [driver for driver in self.drivers if driver.code is None]

    def worker(self, *, capacity: int = 2, custody_s: float = 30.0) -> Worker:
        return Worker(
            self.store,
            self,
            owners=[self.store.owner],
            capacity=capacity,
            poll_s=0.05,
            sweep_s=0.1,
            custody_s=custody_s,
        )


def until(met: Callable[[], object], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_each_of_several_workers_watches_the_drivers_that_are_its_own(bench: Bench) -> None:
    cluster = Cluster(bench.store)
    jobs = {bench.submit() for _ in range(4)}
    with working(cluster.worker(custody_s=3)) as first:
        with working(cluster.worker(custody_s=3)) as second:
            until(lambda: len(cluster.drivers) == 4)
            until(lambda: len(first.running) == len(second.running) == 2)
            mine, theirs = set(first.running), set(second.running)
            assert mine | theirs == jobs
        with working(cluster.worker(custody_s=3)) as third:  # the second's, which it left
            until(lambda: set(third.running) == theirs)
            time.sleep(0.5)
            assert (set(first.running), set(third.running)) == (mine, theirs)
            for driver in cluster.drivers:
                driver.code = 7
            until(lambda: not first.running and not third.running)
    for job_id in jobs:
        assert len(bench.events(job_id, "job.driver_died")) == 1


def test_the_drivers_of_a_worker_that_is_gone_are_taken_over_and_take_places_until_then(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(bench.store)
    left, waiting = bench.submit(), bench.submit()
    with monkeypatch.context() as patch:
        patch.setattr(Custody, "leave", lambda *_: None)  # as of a worker that was killed
        with working(cluster.worker(capacity=1, custody_s=1.5)):
            until(lambda: len(cluster.drivers) == 1)
    with working(cluster.worker(capacity=1, custody_s=1.5)) as heir:
        time.sleep(0.5)
        assert heir.running == []
        until(lambda: heir.running == [left])
        assert len(cluster.drivers) == 1
        cluster.drivers[0].code = 0
        until(lambda: heir.running == [waiting])


def test_a_list_of_drivers_that_does_not_come_stops_no_work(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A cluster that keeps thousands of ended ones may be too slow to list them."""
    cluster = Cluster(bench.store)
    listed = cluster.running
    jobs = [bench.submit() for _ in range(2)]

    def late() -> list[Elsewhere]:
        if cluster.drivers:
            raise LauncherUnavailable("the list takes too long")
        return listed()

    cluster.running = late  # type: ignore[method-assign]
    with working(cluster.worker(capacity=1, custody_s=0.3)) as worker:
        until(lambda: worker.running == [jobs[0]])
        until(lambda: "the list takes too long" in caplog.text)
        cluster.drivers[0].code = 0
        until(lambda: worker.running == [jobs[1]])
        time.sleep(1)
    assert caplog.text.count("the list takes too long") == 1


def test_a_driver_that_was_taken_over_is_no_longer_ours(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """As when this worker stood still for longer than its word lasts."""
    cluster, other = Cluster(bench.store), Custody(bench.store, held_s=30)
    job_id = bench.submit()
    with working(cluster.worker()) as worker:
        until(lambda: worker.running == [job_id])
        Custody.leave(worker._custody, bench.owner, job_id)
        assert other.take(bench.owner, job_id)
        until(lambda: worker.running == [])
    assert f"{job_id}: another worker watches driver of {job_id} now" in caplog.text
