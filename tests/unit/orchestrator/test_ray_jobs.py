"""The launcher against Ray's documented answers; test_ray_jobs_cluster.py has a real Ray."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.errors import LauncherUnavailable
from orchestrator.launch.launchers import NO_RESOURCES
from orchestrator.launch.ray_jobs import RayJobsLauncher

SECRET = Path("/run/secrets/redis-url")


class JobServer:
    """What Ray's job server keeps, answered as its REST API does."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.submitted: list[dict[str, Any]] = []
        self.stopped: list[str] = []
        self.headers: list[httpx.Headers] = []
        self.lose_replies = 0  # to submissions, which are carried out all the same
        self.down = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.down:
            raise httpx.ConnectError("connection refused")
        self.headers.append(request.headers)
        name = request.url.path.removeprefix("/api/jobs/")
        if request.method == "POST" and not name:
            return self.submit(json.loads(request.content))
        if not name:
            return httpx.Response(200, json=list(self.jobs.values()))
        if request.method == "DELETE":
            del self.jobs[name]
            return httpx.Response(200, json={"deleted": True})
        if request.method == "POST":
            self.stopped.append(name.removesuffix("/stop"))
            return httpx.Response(200, json={"stopped": True})
        if name not in self.jobs:
            return httpx.Response(404, text=f"Job {name} does not exist.")
        return httpx.Response(200, json=self.jobs[name])

    def submit(self, document: dict[str, Any]) -> httpx.Response:
        name = document["submission_id"]
        if name in self.jobs:
            return httpx.Response(500, text=f"Traceback\nValueError: Job with submission_id {name} already exists.")
        self.submitted.append(document)
        self.jobs[name] = {"submission_id": name, "status": "PENDING", "metadata": document["metadata"]}
        if self.lose_replies:
            self.lose_replies -= 1
            raise httpx.ReadTimeout("timed out")
        return httpx.Response(200, json={"submission_id": name})


@pytest.fixture
def server() -> JobServer:
    return JobServer()


@pytest.fixture
def launcher(server: JobServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RayJobsLauncher:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    return make(server)


def make(server: JobServer) -> RayJobsLauncher:
    return RayJobsLauncher(
        "http://head:8265",
        Path("/state"),
        redis_url_file=SECRET,
        grace_s=90,
        transport=httpx.MockTransport(server),
    )


def test_what_ray_is_told_of_a_job_holds_no_secret(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_REDIS_URL", "redis://:canary@redis:6379/0")
    monkeypatch.setenv("EQUIPOISE_API_KEY", "canary")
    monkeypatch.setenv("EQUIPOISE_CHECKPOINT_STORE", "s3://bucket/checkpoints")
    monkeypatch.setenv("EQUIPOISE_JUDGES", "/etc/equipoise/judges.yaml")
    monkeypatch.setenv("EQUIPOISE_RAY_ROLE_LABEL", "equipoise.io/role")
    monkeypatch.setenv("EQUIPOISE_RAY_GROWTH_S", "1800")
    monkeypatch.setenv("EQUIPOISE_RAY_MACHINES", "rollout=1")
    monkeypatch.setenv("EQUIPOISE_RAY_DEVICE", "cuda")
    job = make(server).start("job-1", "ann", fence=4)
    assert job.log.startswith("/state/jobs/job-1/driver.log; ")
    [document] = server.submitted
    assert document["entrypoint"] == (
        "python -m orchestrator.driver --job job-1 --owner ann --state-dir /state --ray-address auto"
    )
    assert document["runtime_env"] == {
        "env_vars": {
            "EQUIPOISE_CHECKPOINT_STORE": "s3://bucket/checkpoints",
            "EQUIPOISE_JUDGES": "/etc/equipoise/judges.yaml",
            "EQUIPOISE_RAY_DEVICE": "cuda",
            "EQUIPOISE_RAY_GROWTH_S": "1800",
            "EQUIPOISE_RAY_MACHINES": "rollout=1",
            "EQUIPOISE_RAY_ROLE_LABEL": "equipoise.io/role",
            "EQUIPOISE_REDIS_URL_FILE": str(SECRET),
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",  # of another owner than the server's own
            "RAY_JOB_STOP_WAIT_TIME_S": "90",
        }
    }
    assert document["entrypoint_num_cpus"] == 1
    assert document["entrypoint_label_selector"] == {"equipoise.io/role": "reward"}  # no machine with a GPU
    assert "canary" not in json.dumps(document)


def test_a_job_has_one_driver_at_a_fence_however_often_it_is_started(
    server: JobServer, launcher: RayJobsLauncher
) -> None:
    first = launcher.start("job-1", "ann", fence=0)
    assert make(server).start("job-1", "ann", fence=0).submission_id == first.submission_id
    assert len(server.submitted) == 1
    others = [launcher.start("job-1", "bob", fence=0), launcher.start("job-1", "ann", fence=1)]
    server.jobs[first.submission_id]["status"] = "FAILED"
    others.append(launcher.start("job-1", "ann", fence=0))  # that one ended: it gets a successor
    assert len({first.submission_id, *(other.submission_id for other in others)}) == 4
    assert len(server.submitted) == 4


def test_a_lost_reply_to_a_submission_makes_no_second_driver(server: JobServer, launcher: RayJobsLauncher) -> None:
    server.lose_replies = 1
    job = launcher.start("job-1", "ann", fence=0)
    assert [document["submission_id"] for document in server.submitted] == [job.submission_id]


def test_a_worker_that_starts_finds_the_drivers_that_run(server: JobServer, launcher: RayJobsLauncher) -> None:
    running, ended = (launcher.start(f"job-{i}", "ann", fence=7) for i in (1, 2))
    server.jobs[ended.submission_id]["status"] = "SUCCEEDED"
    server.jobs["notebook"] = {"submission_id": "notebook", "status": "RUNNING", "metadata": {"who": "else"}}
    server.jobs["driver"] = {"submission_id": None, "status": "RUNNING", "metadata": None}
    [found] = make(server).running()
    assert (found.owner, found.job_id, found.fence, found.submission_id) == ("ann", "job-1", 7, running.submission_id)


@pytest.mark.parametrize(
    ("ray", "code", "line"),
    [
        ({"status": "PENDING"}, None, ""),
        ({"status": "RUNNING"}, None, ""),
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0, ""),
        ({"status": "STOPPED", "message": "Job was intentionally stopped."}, 0, "Job was intentionally stopped."),
        ({"status": "FAILED", "driver_exit_code": 3, "message": "failed, logs:\nCUDA out of memory\n"}, 3,
         "CUDA out of memory"),
        ({"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_START_TIMEOUT", "message": "no room"}, 4, "no room"),
        ({"status": "FAILED", "message": "The actor died unexpectedly"}, 1, "The actor died unexpectedly"),
    ],
)  # fmt: skip
def test_how_a_driver_ended(
    server: JobServer, launcher: RayJobsLauncher, ray: dict[str, Any], code: int | None, line: str
) -> None:
    job = launcher.start("job-1", "ann", fence=0)
    server.jobs[job.submission_id].update(ray)
    assert job.poll() == code
    assert job.last_line() == line


def test_what_ended_some_time_ago_is_deleted(server: JobServer, launcher: RayJobsLauncher) -> None:
    """Ray keeps all that it is not told to delete, and a job that waits for room has a driver every minute."""
    ours = {"equipoise_job": "j", "equipoise_owner": "o", "equipoise_fence": "1"}

    def ended(name: str, ago_s: float, **how: Any) -> None:
        at = 1000 * (time.time() - ago_s)
        known = {"submission_id": name, "status": "FAILED", "metadata": ours, "end_time": at}
        server.jobs[name] = known | how

    hour_s = 3600.0
    ended("waited", hour_s, driver_exit_code=NO_RESOURCES)
    ended("no room", hour_s, error_type="JOB_SUPERVISOR_ACTOR_START_TIMEOUT")
    ended("done", hour_s, status="SUCCEEDED")
    ended("just now", 60, status="SUCCEEDED")
    ended("died", hour_s, driver_exit_code=-9)
    ended("died long ago", 48 * hour_s)
    ended("of somebody else", 48 * hour_s, metadata={})
    ended("of another installation", 48 * hour_s, metadata={**ours, "equipoise_state": "/elsewhere"})
    ended("at work", 48 * hour_s, status="RUNNING")
    assert [driver.submission_id for driver in launcher.running()] == ["at work"]
    assert list(server.jobs) == ["just now", "died", "of somebody else", "of another installation", "at work"]
    for number in range(50):
        ended(f"long list {number}", hour_s, status="SUCCEEDED")
    launcher.running()
    assert len(server.jobs) == 5 + 30
    launcher.start("job-1", "ann", fence=1)
    assert server.submitted[-1]["metadata"]["equipoise_state"] == str(launcher.state_dir)


def test_a_driver_that_ray_has_forgotten_is_gone(server: JobServer, launcher: RayJobsLauncher) -> None:
    job = launcher.start("job-1", "ann", fence=0)
    server.jobs.clear()
    assert job.poll() == 1
    assert "started anew" in job.last_line()


def test_a_server_that_is_down_says_nothing_of_the_drivers(server: JobServer, launcher: RayJobsLauncher) -> None:
    job = launcher.start("job-1", "ann", fence=0)
    server.down = True
    for call in (job.poll, job.terminate, launcher.running, lambda: launcher.start("job-2", "ann", fence=0)):
        with pytest.raises(LauncherUnavailable, match="does not answer"):
            call()


def test_the_clusters_token_is_read_anew_for_each_call(
    server: JobServer, launcher: RayJobsLauncher, tmp_path: Path
) -> None:
    for token in (None, "first", "second"):
        if token is not None:
            (tmp_path / "token").write_text(f"{token}\n")
        launcher.running()
    assert [headers.get("authorization") for headers in server.headers] == [None, "Bearer first", "Bearer second"]


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "http://head:port"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="http://ray-head:8265"):
        RayJobsLauncher(address, Path("/state"), redis_url_file=SECRET)
