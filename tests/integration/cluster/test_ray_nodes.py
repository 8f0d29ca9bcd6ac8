"""Machines of a Ray cluster that are lost, the head among them: real raylets here, one for each role (T15)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from orchestrator.ray_jobs import RayJobsLauncher
from orchestrator.redis_calls import connect
from orchestrator.states import JobStatus, is_terminal
from orchestrator.steering import initial_steering
from orchestrator.store import JobStore
from orchestrator.worker import Worker
from tests.fault_figures import REPEATS, tell
from tests.integration.cluster.test_ray_jobs_cluster import free_port, wait_for
from tests.support import make_policy, small_spec

pytestmark = pytest.mark.skipif(
    REPEATS == 1, reason="it takes some minutes: EQUIPOISE_FAULT_REPEATS=2 and above run it"
)
LABEL = "equipoise.io/role"
EVERY = 2  # steps between checkpoints
GONE_S = 300.0  # after which nothing of a lost cluster may hold a GPU


class Machines:
    """A head that takes no work, and machines with a role each. All are this one, by processes of their own."""

    def __init__(self, folder: Path, token: Path) -> None:
        self.folder, self.token = folder, token
        self.port, self.dashboard = free_port(), free_port()
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        self.begun: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def start_head(self) -> None:
        self._start(
            "head", "--head", f"--port={self.port}", "--num-cpus=0", "--include-dashboard=true",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}",
            f"--ray-client-server-port={free_port()}", f"--temp-dir={self.folder / uuid.uuid4().hex[:4]}",
        )  # fmt: skip

    def start(self, role: str) -> None:
        self._start(role, f"--address=127.0.0.1:{self.port}", "--num-cpus=3", f"--labels={LABEL}={role}")

    def _start(self, name: str, *options: str) -> None:
        common = ["--block", "--node-ip-address=127.0.0.1", "--object-store-memory=80000000", "--disable-usage-stats"]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.started[name] = subprocess.Popen(
                [str(Path(sys.executable).with_name("ray")), "start", *common,
                 f"--dashboard-agent-listen-port={free_port()}", *options],
                env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token),
                     "EQUIPOISE_RAY_ROLE_LABEL": LABEL, "PYTHONPATH": str(Path(__file__).parents[3]),
                     "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
                start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        # Each when the one before is up: those that start together on one machine may choose the same ports.
        starts = sum(other == name for other in self.begun)
        wait_for(lambda: (self.folder / f"{name}.log").read_text().count("Ray runtime started") > starts)
        self.begun.append(name)

    def family(self, name: str) -> list[psutil.Process]:
        machine = psutil.Process(self.started[name].pid)
        return [machine, *machine.children(recursive=True)]

    def lose(self, name: str) -> None:
        """As when its power goes: every process of it at once."""
        for process in self.family(name):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.started.pop(name).wait()

    def close(self) -> None:
        for name in list(self.started):
            self.lose(name)


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    token = tmp_path / "token"
    token.write_text(uuid.uuid4().hex * 2)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setenv("EQUIPOISE_RAY_ROLE_LABEL", LABEL)
    folder = Path(f"/tmp/ray-{uuid.uuid4().hex[:8]}")  # Ray's sockets need a short path
    folder.mkdir()
    machines = Machines(folder, token)
    machines.start_head()
    for role in ("learner", "rollout", "reward"):
        machines.start(role)
    yield machines
    machines.close()
    subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.fixture
def store(machines: Machines, redis_url: str, tmp_path: Path) -> Iterator[JobStore]:
    """Whose jobs a worker starts on the cluster."""
    file = tmp_path / "redis-url"
    file.write_text(redis_url + "\n")
    store = JobStore(connect(redis_url), owner=f"nodes-{uuid.uuid4().hex}")
    launcher = RayJobsLauncher(machines.address, tmp_path / "state", redis_url_file=file, cpus=0.1, grace_s=30)
    made = Worker(store, launcher, owners=[store.owner], capacity=1, poll_s=0.2, sweep_s=1)
    thread = threading.Thread(target=made.run)
    thread.start()
    yield store
    made.request_stop()
    thread.join(60)
    assert not thread.is_alive()


def test_a_job_outlives_its_machines_and_its_head(machines: Machines, store: JobStore, tmp_path: Path) -> None:
    """Each is lost in turn, and another takes its place; last the head, whose cluster ends by itself."""
    policy = make_policy(tmp_path / "policy")
    data = {"type": "quickstart", "train": 16, "validation": 4, "test": 4}
    spec = small_spec(
        policy, steps=24, data=data, weighting={"name": "fixed"}, checkpoints={"every": EVERY},
        resources={"device": "cpu", "placement_timeout_s": 600},
    )  # fmt: skip
    job_id = f"job-{uuid.uuid4().hex[:12]}"
    steering = initial_steering(spec).model_dump(mode="json")
    store.submit(spec.to_json(), name="outlives", job_id=job_id, steering=steering)

    def reach(step: int) -> None:
        deadline = time.monotonic() + 400
        while (job := store.job(job_id)).step < step:
            assert not is_terminal(job.status), job.reason
            assert time.monotonic() < deadline, (step, job)
            time.sleep(0.1)

    reach(3)
    for role in ("rollout", "learner", "reward"):  # engine, learner, driver
        machines.lose(role)
        machines.start(role)
        reach(store.job(job_id).step + 4)

    old = [process for name in ("learner", "rollout", "reward") for process in machines.family(name)]
    machines.lose("head")
    lost_at = time.monotonic()
    _, left = psutil.wait_procs(old, timeout=GONE_S)
    assert not left, [process.cmdline() for process in left]
    ended_s = time.monotonic() - lost_at
    for name in ("learner", "rollout", "reward"):
        machines.started.pop(name).wait()
    machines.start_head()
    for role in ("learner", "rollout", "reward"):
        machines.start(role)
    reach(24)
    wait_for(lambda: store.job(job_id).status is JobStatus.SUCCEEDED, timeout_s=120)

    assert [step["step"] for step in store.steps(job_id)] == list(range(1, 25))
    claims = [event.data for event in store.events(job_id).items if event.type == "job.claimed"]
    rerun = [claim["from"] - claim["to"] for claim in claims if "to" in claim]
    tell("T15", machines_lost=3, heads_lost=1, rerun=rerun, cluster_ended_s=round(ended_s, 1), orphans=0)
    assert len(rerun) >= 4
    assert max(rerun) <= EVERY
