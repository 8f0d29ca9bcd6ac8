"""Drivers as jobs of a real Ray with its job server: small programs in their place, and the real one in long runs."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from orchestrator.errors import LauncherUnavailable
from orchestrator.launch.ray_jobs import RayJob, RayJobsLauncher
from orchestrator.launch.worker import Worker
from orchestrator.state.redis_calls import connect
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore
from orchestrator.steering import initial_steering
from tests.fault_figures import REPEATS
from tests.ports import free_port
from tests.support import make_policy, small_spec

T = TypeVar("T")

# What every driver below starts with: the Redis URL as the real one finds it, and the lease on its job.
PRELUDE = """
import os, pathlib, signal, sys, time
from orchestrator.driver import redis_url_from
from orchestrator.state.redis_calls import connect
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore
job, owner = sys.argv[1:]
store = JobStore(connect(redis_url_from(os.environ)), owner=owner)
def claim():
    lease = store.claim(job, nonce=str(os.getpid()), ttl_s=30).lease
    store.set_status(lease, JobStatus.RUNNING)
    return lease
"""
HANDS_BACK = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # whoever sees it run may end it before its next line
lease = claim()
def stop(*_):
    store.release(lease, "handed back")
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
while not store.job(job).progress.get("go"):
    time.sleep(0.05)
"""


def wait_for(found: Callable[[], T], timeout_s: float = 60) -> T:
    deadline = time.monotonic() + timeout_s
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return value


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ray-token") / "token"
    path.write_text(uuid.uuid4().hex + uuid.uuid4().hex)
    return path


@pytest.fixture(scope="module")
def address(token: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray of its own beside the tests' common one, with a job server that asks for a token."""
    port = free_port()
    folder = Path(f"/tmp/ray-{uuid.uuid4().hex[:8]}")  # Ray's sockets need a short path
    with (tmp_path_factory.mktemp("ray-start") / "log").open("wb") as log:
        head = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--port=0",
                "--node-ip-address=127.0.0.1", "--num-cpus=3", "--num-gpus=2", "--object-store-memory=80000000",
                "--labels=equipoise.io/role=learner", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
                f"--dashboard-port={port}",
                f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}",
                f"--temp-dir={folder}", "--disable-usage-stats",
            ],
            env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token),
                 "PYTHONPATH": str(Path(__file__).parents[3]),
                 "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        started = psutil.Process(head.pid).children(recursive=True)
        head.terminate()
        with suppress(subprocess.TimeoutExpired):
            head.wait(30)
        for process in started:  # those that did not end with their head
            with suppress(psutil.NoSuchProcess):
                process.kill()
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        subprocess.run(["rm", "-rf", str(folder)], check=True)


class Bench:
    """A job and a launcher of small programs for it."""

    def __init__(self, address: str, redis_url: str, state_dir: Path) -> None:
        self.address, self.state_dir = address, state_dir
        self.url_file = state_dir / "redis-url"
        self.url_file.write_text(redis_url + "\n")
        self.store = JobStore(connect(redis_url), owner=f"ray-{uuid.uuid4().hex}")

    def submit(self) -> str:
        job_id = f"job-{uuid.uuid4().hex[:12]}"
        self.store.submit("{}", name="x", job_id=job_id)
        return job_id

    def launcher(self, script: str, *, cpus: float = 0.1) -> RayJobsLauncher:
        def command(job_id: str, owner: str, _state_dir: Path) -> list[str]:
            return [sys.executable, "-c", PRELUDE + script, job_id, owner]

        return RayJobsLauncher(
            self.address, self.state_dir, redis_url_file=self.url_file, cpus=cpus, grace_s=30, command=command
        )

    def start(self, script: str) -> RayJob:
        return self.launcher(script).start(self.submit(), self.store.owner, fence=0)


@pytest.fixture
def bench(
    address: str, token: Path, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    bench = Bench(address, redis_url, tmp_path)

    def is_up() -> bool:
        with suppress(LauncherUnavailable):
            bench.launcher("").running()
            return True
        return False

    wait_for(is_up)
    yield bench
    for job in bench.launcher("").running():
        job.kill()


def ended(job: RayJob) -> int:
    wait_for(lambda: job.poll() is not None)
    code = job.poll()
    assert code is not None
    return code


def test_a_driver_that_dies_is_reported_with_its_code_and_its_last_words(bench: Bench) -> None:
    def started() -> RayJob | None:
        with suppress(LauncherUnavailable):  # the job server is up before a machine that can take a job
            return bench.start('print("a traceback"); print("CUDA out of memory\\n\\n", flush=True); os._exit(7)')
        return None

    job = wait_for(started)
    assert ended(job) == 7
    assert job.last_line() == "CUDA out of memory"


def test_a_driver_that_is_stopped_hands_its_job_back(bench: Bench) -> None:
    job = bench.start(HANDS_BACK)
    wait_for(lambda: bench.store.job(job.job_id).status is JobStatus.RUNNING)
    assert job.poll() is None
    job.terminate()
    assert ended(job) == 0
    found = bench.store.job(job.job_id)
    assert (found.status, found.reason, found.attempts) == (JobStatus.QUEUED, "handed back", 0)


def test_a_driver_outlives_its_worker_and_the_next_worker_sees_it_to_its_end(bench: Bench) -> None:
    first, second = bench.submit(), bench.submit()
    script = HANDS_BACK + "\nstore.finish(lease, JobStatus.SUCCEEDED)"
    launcher = bench.launcher(script)

    def worker() -> tuple[Worker, threading.Thread]:
        made = Worker(bench.store, launcher, owners=[bench.store.owner], capacity=1, poll_s=0.1, sweep_s=0.5)
        thread = threading.Thread(target=made.run)
        thread.start()
        return made, thread

    def end(made: Worker, thread: threading.Thread) -> None:
        made.request_stop()
        thread.join(30)
        assert not thread.is_alive()

    def go(job_id: str) -> None:
        key = bench.store._keys.job(job_id)
        bench.store.calls.command("HSET", key, "progress", '{"go": 1}')

    before = worker()
    try:
        wait_for(lambda: bench.store.job(first).status is JobStatus.RUNNING)
    finally:
        end(*before)
    assert bench.store.job(first).status is JobStatus.RUNNING
    after = worker()
    try:
        assert wait_for(lambda: after[0].running) == [first]
        time.sleep(1)  # its capacity is taken: the second job waits
        assert bench.store.job(second).status is JobStatus.QUEUED
        go(first)
        wait_for(lambda: bench.store.job(first).status is JobStatus.SUCCEEDED)
        go(second)
        wait_for(lambda: bench.store.job(second).status is JobStatus.SUCCEEDED)
    finally:
        end(*after)
    assert [bench.store.job(job_id).fence for job_id in (first, second)] == [1, 1]


def test_a_driver_that_waits_for_room_is_withdrawn_when_its_job_is_cancelled(bench: Bench) -> None:
    job_id = bench.submit()
    launcher = bench.launcher(HANDS_BACK, cpus=1000)
    worker = Worker(bench.store, launcher, owners=[bench.store.owner], poll_s=0.1, sweep_s=0.2)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        wait_for(lambda: worker.running)
        bench.store.request_cancel(job_id)
        wait_for(lambda: worker.running == [])
    finally:
        worker.request_stop()
        thread.join(30)
    assert bench.store.job(job_id).status is JobStatus.CANCELLED
    assert [event.type for event in bench.store.events(job_id).items] == ["job.queued", "job.cancelled"]


def test_nothing_that_ray_shows_holds_the_password(bench: Bench) -> None:
    bench.url_file.write_text(bench.url_file.read_text().replace("unix://", "unix://default:canary-password@"))
    job = bench.start("")
    assert ended(job) == 0
    shown = bench.launcher("")._call("GET", f"/api/jobs/{job.submission_id}").text
    assert "canary-password" not in shown
    assert str(bench.url_file) in shown


def test_a_drivers_actors_get_their_room_at_once_and_those_that_share_a_gpu_get_the_same(bench: Bench) -> None:
    """Ray believes that there are two GPUs; nothing here uses them."""
    job = bench.start(
        """
import ray
from orchestrator.errors import DoesNotFit
from orchestrator.actors.gang import reserve
ray.init(address="auto", log_to_driver=False)
class Actor:
    def gpus(self):
        return ray.get_gpu_ids()
actors = [{"num_cpus": 0.1, "num_gpus": 0.3333}] * 3
gang = reserve([("rollout", actor) for actor in actors], timeout_s=60, grows=True)
started = [ray.remote(Actor).options(**actor, **gang.place(i)).remote() for i, actor in enumerate(actors)]
used = ray.get([actor.gpus.remote() for actor in started])
assert len(used[0]) == 1 and used == [used[0]] * 3, used
try:
    reserve([("rollout", {"num_cpus": 0.1, "num_gpus": 2})] * 2, timeout_s=1, grows=True)
except DoesNotFit as error:
    sys.exit(f"{error}")
"""
    )
    assert ended(job) == 1
    assert job.last_line() == "resources: the job needs 4 GPUs at once, the cluster has 2"


def test_actors_go_to_machines_that_are_labelled_for_their_role(bench: Bench) -> None:
    """The cluster has one, for learners."""
    job = bench.start(
        """
import ray
from orchestrator.errors import DoesNotFit
from orchestrator.actors.gang import reserve
ray.init(address="auto", log_to_driver=False)
one = {"num_cpus": 0.1}
reserve([("learner", one)], timeout_s=60, grows=True, role_label="equipoise.io/role").close()
try:
    reserve([("learner", one), ("rollout", one)], timeout_s=1, grows=True, role_label="equipoise.io/role")
except DoesNotFit as error:
    sys.exit(f"{error}")
"""
    )
    assert ended(job) == 1
    wanted = "an actor needs 0.1 CPUs on one machine with the label equipoise.io/role=rollout, and none has them"
    assert job.last_line() == f"resources: {wanted}"


@pytest.mark.skipif(REPEATS == 1, reason="it takes a minute or more: EQUIPOISE_FAULT_REPEATS=2 and above run it")
def test_a_policy_is_trained_by_the_real_driver_on_the_cluster(bench: Bench, tmp_path: Path) -> None:
    """The command that workers send; engine, learner and rewards are actors of the cluster that runs the driver."""
    policy = make_policy(tmp_path / "policy")
    data = {"type": "quickstart", "train": 8, "validation": 4, "test": 4}
    spec = small_spec(policy, steps=2, data=data, weighting={"name": "fixed"})
    job_id = f"job-{uuid.uuid4().hex[:12]}"
    steering = initial_steering(spec).model_dump(mode="json")
    bench.store.submit(spec.to_json(), name="real", job_id=job_id, steering=steering)
    launcher = RayJobsLauncher(bench.address, tmp_path, redis_url_file=bench.url_file, cpus=0.1)

    def started() -> RayJob | None:
        with suppress(LauncherUnavailable):  # no machine can take a job yet
            return launcher.start(job_id, bench.store.owner, fence=0)
        return None

    driver = wait_for(started)
    wait_for(lambda: driver.poll() is not None, timeout_s=240)
    record = bench.store.job(job_id)
    assert (driver.poll(), record.status) == (0, JobStatus.SUCCEEDED), (record.reason, driver.last_line())
    steps = bench.store.steps(job_id)
    assert [step["policy_version"] for step in steps] == [0, 1]
    assert all(step["sampler_gap"] < 1e-4 for step in steps)  # the engine has what the learner made of the weights
    newest = max(bench.store.checkpoints(job_id), key=lambda checkpoint: checkpoint.step)
    learned = Path(newest.path) / "policy" / "model.safetensors"
    assert learned.read_bytes() != (policy / "model.safetensors").read_bytes()
    assert record.gpu_hours == 0  # the cluster has GPUs, and the job is on CPU
