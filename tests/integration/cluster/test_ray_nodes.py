"""Machines of a Ray cluster that are lost, the head among them: real raylets here, one for each role (T15).

Each check is shown a mistake that it must see, in a driver that makes it (tests/toy_mutants.py) or in the worker.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from orchestrator.launch.ray_jobs import _LOST, RayJob, RayJobsLauncher, cluster_driver_command
from orchestrator.launch.worker import Worker
from orchestrator.spec import JobSpec
from orchestrator.state.redis_calls import connect
from orchestrator.state.states import JobStatus, is_terminal
from orchestrator.state.store import JobStore
from tests.fault_figures import REPEATS, tell
from tests.integration.cluster.test_ray_jobs_cluster import wait_for
from tests.ports import free_port
from tests.support import largest_difference, make_policy, run_job, small_spec, submit

pytestmark = [
    pytest.mark.skipif(REPEATS == 1, reason="it takes some minutes: EQUIPOISE_FAULT_REPEATS=2 and above run it"),
    pytest.mark.timeout(3600),
]
LABEL = "equipoise.io/role"
EVERY = 2  # steps between checkpoints
GONE_S = 300.0  # after which nothing of a lost driver or cluster may hold a GPU
ALIKE = 1e-5  # of two runs' figures
STARTS, START_S = 3, 90.0  # of a machine: tries, and the time for each
ROLES = ("learner", "rollout", "reward")
MARK = "EQUIPOISE_TEST_CLUSTER"  # in the environment of all that a cluster starts


class Machines:
    """A head that takes no work, and machines with a role each. All are this one, by processes of their own."""

    def __init__(self, folder: Path, token: Path) -> None:
        self.folder, self.token = folder, token
        self.ports: set[int] = set()
        self.port, self.dashboard = self._another_port(), self._another_port()
        self.mark = uuid.uuid4().hex
        self.started: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def start_head(self) -> None:
        self._start(
            "head", "--head", f"--port={self.port}", "--num-cpus=0", "--include-dashboard=true",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}",
            f"--ray-client-server-port={self._another_port()}", f"--temp-dir={self.folder / uuid.uuid4().hex[:4]}",
        )  # fmt: skip

    def start(self, role: str) -> None:
        self._start(role, f"--address=127.0.0.1:{self.port}", "--num-cpus=3", f"--labels={LABEL}={role}")

    def _start(self, name: str, *options: str) -> None:
        """As KubeRay does, once more where Ray gives its own processes too little time. Returns when it is in sight.

        So that each starts when the one before is up: those that start together may choose the same ports.
        """
        log = self.folder / f"{name}.log"
        for _ in range(STARTS):
            before = self.machines()
            self.started[name] = machine = self._spawn(log, *options)
            deadline = time.monotonic() + START_S
            while machine.poll() is None and time.monotonic() < deadline:
                if self.machines() > before:
                    return
                time.sleep(0.5)
            self.lose(name)
        pytest.fail(f"the machine {name} does not start: {log.read_text()[-2000:]}")

    def _another_port(self) -> int:
        """One that is free, and that no call before this one returned."""
        while (port := free_port()) in self.ports:
            pass
        self.ports.add(port)
        return port

    def _spawn(self, log: Path, *options: str) -> subprocess.Popen[bytes]:
        common = ["--block", "--node-ip-address=127.0.0.1", "--object-store-memory=80000000", "--disable-usage-stats"]
        with log.open("ab") as output:
            return subprocess.Popen(
                [str(Path(sys.executable).with_name("ray")), "start", *common,
                 f"--dashboard-agent-listen-port={self._another_port()}", *options],
                env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token),
                     "EQUIPOISE_RAY_ROLE_LABEL": LABEL, MARK: self.mark, "PYTHONPATH": str(Path(__file__).parents[3]),
                     "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
                start_new_session=True, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip

    def machines(self) -> int:
        """Those that the head has seen come; none without a head."""
        try:
            return len(self._list("nodes"))
        except httpx.HTTPError:
            return 0

    def reserved(self) -> int:
        """Placement groups that hold what they reserved."""
        return sum(group["state"] != "REMOVED" for group in self._list("placement_groups"))

    def _list(self, kind: str) -> list[dict[str, Any]]:
        headers = {"authorization": f"Bearer {self.token.read_text()}"}
        answer = httpx.get(f"{self.address}/api/v0/{kind}", headers=headers, timeout=30, trust_env=False)
        return list(answer.raise_for_status().json()["data"]["result"]["result"])

    def lose(self, name: str) -> None:
        """As when its power goes: every process of it at once."""
        machine = self.started.pop(name)
        for process in _family(machine.pid):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        machine.wait()

    def everything(self) -> set[psutil.Process]:
        """All that runs on the machines, and what one of their processes has left behind elsewhere."""
        found = {process for machine in self.started.values() for process in _family(machine.pid)}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark:
                    found.add(process)
        return found

    def at_work(self) -> set[psutil.Process]:
        """Of everything, drivers and actors, and what an actor started."""
        return {process for process in self.everything() if _is_at_work(_words(process))}

    def close(self) -> None:
        for name in list(self.started):
            self.lose(name)
        for process in self.everything():
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _family(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _words(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _is_at_work(words: str) -> bool:
    """By what Ray and vLLM call their processes; Ray's own are agents and workers without work."""
    if words.startswith("ray::"):
        return not words.startswith(("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent"))
    return words.startswith("VLLM::") or "orchestrator.driver" in words or "toy_mutants" in words


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> JobSpec:
    return small_spec(
        make_policy(tmp_path_factory.mktemp("policy") / "llama"),
        steps=24, data={"type": "quickstart", "train": 16, "validation": 4, "test": 4}, weighting={"name": "fixed"},
        checkpoints={"every": EVERY}, resources={"device": "cpu", "placement_timeout_s": 600},
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(spec: JobSpec, redis_url: str, state_dir: Path) -> list[dict[str, Any]]:
    """The steps of a run on this machine alone, from which nothing is taken."""
    store, job_id = run_job(spec, redis_url, state_dir)
    return store.steps(job_id)


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    token = tmp_path / "token"
    token.write_text(uuid.uuid4().hex * 2)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setenv("EQUIPOISE_RAY_ROLE_LABEL", LABEL)
    folder = Path(f"/tmp/ray-{uuid.uuid4().hex[:8]}")  # Ray's sockets need a short path
    folder.mkdir()
    machines = Machines(folder, token)
    try:
        machines.start_head()
        for role in ROLES:
            machines.start(role)
        yield machines
    finally:
        machines.close()
        subprocess.run(["rm", "-rf", str(folder)], check=True)


class Job:
    """One, and a worker that starts its drivers on the cluster; `mutant` is a mistake that each of them makes."""

    def __init__(
        self, spec: JobSpec, machines: Machines, redis_url: str, folder: Path, *, mutant: str | None = None
    ) -> None:
        file = folder / "redis-url"
        file.write_text(redis_url + "\n")
        self.store = JobStore(connect(redis_url), owner=f"nodes-{uuid.uuid4().hex}")
        launcher = RayJobsLauncher(
            machines.address, folder / "state", redis_url_file=file, cpus=0.1, grace_s=30, command=_driver(mutant)
        )
        self.worker = Worker(self.store, launcher, owners=[self.store.owner], capacity=1, poll_s=0.2, sweep_s=1)
        self.machines = machines
        self.job_id = submit(self.store, spec)

    def __enter__(self) -> Job:
        self.thread = threading.Thread(target=self.worker.run)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.request_stop()
        self.thread.join(60)
        assert not self.thread.is_alive()

    def reach(self, step: int, *, within_s: float = 400) -> None:
        deadline = time.monotonic() + within_s
        while (job := self.store.job(self.job_id)).step < step:
            assert not is_terminal(job.status), job.reason
            assert time.monotonic() < deadline, f"step {step} was not reached: {job}"
            time.sleep(0.1)

    def goes_on_without(self, role: str, *, gone_s: float = GONE_S) -> set[psutil.Process]:
        """Loses a machine for another of its role; what is left of the driver at that time once the next one works."""
        old = self.machines.at_work()
        self.machines.lose(role)
        self.machines.start(role)
        self.reach(self.store.job(self.job_id).step + 4)
        return set(psutil.wait_procs(old, timeout=gone_s)[1])

    def seen_to_its_end(self, undisturbed: list[dict[str, Any]], *, claims: int) -> dict[str, Any]:
        """Its figures, after it has succeeded and has left nothing behind. It must have been claimed so often."""
        self.reach(len(undisturbed))
        wait_for(lambda: self.store.job(self.job_id).status is JobStatus.SUCCEEDED, timeout_s=120)
        wait_for(lambda: not self.machines.at_work() and not self.machines.reserved(), timeout_s=120)
        assert [step["step"] for step in self.store.steps(self.job_id)] == [step["step"] for step in undisturbed]
        claimed = [event.data for event in self.store.events(self.job_id).items if event.type == "job.claimed"]
        rerun = [claim["from"] - claim["to"] for claim in claimed]
        assert len(rerun) >= claims
        assert max(rerun) <= EVERY
        assert self.differs(undisturbed) < ALIKE
        return {"rerun": rerun, "allowed": EVERY, "different_figures": 0}

    def differs(self, undisturbed: list[dict[str, Any]]) -> float:
        """The largest difference of a figure of its steps from one where nothing was lost."""
        steps = self.store.steps(self.job_id)
        return max(map(largest_difference, steps, undisturbed[: len(steps)]))


def _driver(mutant: str | None) -> Callable[[str, str, Path], list[str]]:
    def command(job_id: str, owner: str, state_dir: Path) -> list[str]:
        python, _, _, *arguments = cluster_driver_command(job_id, owner, state_dir)
        wrong = f"from tests import toy_mutants; toy_mutants.apply({mutant!r}); from orchestrator import driver; "
        return [python, "-c", wrong + "driver.main()", *arguments]

    return command if mutant else cluster_driver_command


def test_a_job_outlives_its_machines(
    undisturbed: list[dict[str, Any]], spec: JobSpec, machines: Machines, redis_url: str, tmp_path: Path
) -> None:
    """Each is lost in turn, and another takes its place. The driver of that time leaves no process and no reservation,
    and the job's figures are an undisturbed run's."""
    with Job(spec, machines, redis_url, tmp_path) as job:
        job.reach(3)
        for role in ("rollout", "learner", "reward"):  # engine, learner, driver
            left = job.goes_on_without(role)
            assert not left, (role, [_words(process) for process in left])
            assert machines.reserved() == 1
        tell("T15", machines_lost=3, orphans=len(left), **job.seen_to_its_end(undisturbed, claims=4))


def test_a_job_outlives_its_head(
    undisturbed: list[dict[str, Any]], spec: JobSpec, machines: Machines, redis_url: str, tmp_path: Path
) -> None:
    """Its cluster ends by itself, with all that it ran; the job goes on in the one that is started in its place."""
    with Job(spec, machines, redis_url, tmp_path) as job:
        job.reach(3)
        old = machines.everything()
        machines.lose("head")
        lost_at = time.monotonic()
        _, left = psutil.wait_procs(old, timeout=GONE_S)
        assert not left, [_words(process) for process in left]
        ended_s = time.monotonic() - lost_at
        for role in ROLES:
            machines.started.pop(role).wait()
        wait_for(lambda: not machines.everything(), timeout_s=max(1.0, GONE_S - ended_s))
        machines.start_head()
        for role in ROLES:
            machines.start(role)
        figures = job.seen_to_its_end(undisturbed, claims=2)
        tell("T15", heads_lost=1, cluster_ended_s=round(ended_s, 1), orphans=len(left), **figures)


def test_what_a_lost_driver_leaves_behind_is_seen(
    spec: JobSpec, machines: Machines, redis_url: str, tmp_path: Path
) -> None:
    """The mistake: its actors do not end with it."""
    with Job(spec, machines, redis_url, tmp_path, mutant="leave_actors") as job:
        job.reach(1)
        left = job.goes_on_without("reward", gone_s=30)
        assert {"ray::LearnerActor", "ray::EngineActor"} <= {_words(process).split(".")[0].strip() for process in left}


def test_a_restart_without_the_learners_state_is_seen(
    undisturbed: list[dict[str, Any]], spec: JobSpec, machines: Machines, redis_url: str, tmp_path: Path
) -> None:
    with Job(spec, machines, redis_url, tmp_path, mutant="forget_weights") as job:
        job.reach(3)
        job.goes_on_without("rollout")
        assert job.differs(undisturbed) > ALIKE


def test_a_lost_driver_that_counts_as_running_is_seen(
    spec: JobSpec, machines: Machines, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistake: the worker takes a driver of which Ray can't say how it ended for one that goes on."""
    poll = RayJob.poll
    monkeypatch.setattr(RayJob, "poll", lambda driver: None if (code := poll(driver)) == _LOST else code)
    with Job(spec, machines, redis_url, tmp_path) as job:
        job.reach(1)
        machines.lose("reward")
        machines.start("reward")
        before = job.store.job(job.job_id)
        with pytest.raises(AssertionError, match="was not reached"):
            job.reach(before.step + 4, within_s=120)
