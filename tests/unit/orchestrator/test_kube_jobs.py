"""The RayJob launcher against a stand-in for the API server (tests/kube_server.py), through Kubernetes' own client."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kubernetes import client

from orchestrator.errors import LauncherUnavailable
from orchestrator.launch.kube_jobs import RayJobLauncher, in_cluster
from tests.deploy_support import Rendered, prepare, render, wait_for
from tests.kube_server import ApiServer, serving
from tests.unit.deploy.test_schemas import check

SECRET = Path("/run/secrets/equipoise/redis-url")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    return Rendered(render(prepare(tmp_path_factory.mktemp("deploy")), "kind-ray-job"))


@pytest.fixture
def server(rendered: Rendered) -> Iterator[ApiServer]:
    state = ApiServer(check)
    state.clusters["ray"] = rendered.named("RayCluster", "ray")
    with serving(state):
        yield state


_made: list[RayJobLauncher] = []


@pytest.fixture(autouse=True)
def _closed_in_the_end() -> Iterator[None]:
    yield
    while _made:
        _made.pop().close()


def make(server: ApiServer, **options: Any) -> RayJobLauncher:
    settings = client.Configuration()
    settings.host = server.url
    settings.retries = False
    api = client.CustomObjectsApi(client.ApiClient(settings))
    options = {"timeout_s": 5.0, "kept_s": 600.0, **options}
    _made.append(RayJobLauncher(api, "equipoise", "ray", Path("/state"), redis_url_file=SECRET, grace_s=90, **options))
    return _made[-1]


@pytest.fixture
def launcher(server: ApiServer) -> RayJobLauncher:
    return make(server)


def test_a_driver_is_a_rayjob_like_the_suspended_cluster(
    server: ApiServer, launcher: RayJobLauncher, rendered: Rendered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_REDIS_URL", "redis://:canary@redis:6379/0")
    monkeypatch.setenv("EQUIPOISE_JUDGES", "/etc/equipoise/judges/judges.yaml")
    launcher.start("job-1", "ann", fence=4)
    [job] = server.created
    spec, model = job["spec"], rendered.named("RayCluster", "ray")["spec"]
    assert model["suspend"] is True
    of_the_model = {"suspend", "upgradeStrategy"}  # KubeRay refuses the latter of a RayJob's cluster
    assert of_the_model <= set(model)
    assert spec["rayClusterSpec"] == {key: value for key, value in model.items() if key not in of_the_model}
    assert spec["entrypoint"] == (
        "python -m orchestrator.driver --job job-1 --owner ann --state-dir /state --ray-address auto"
    )
    assert "EQUIPOISE_REDIS_URL_FILE: /run/secrets/equipoise/redis-url" in spec["runtimeEnvYAML"]
    assert "EQUIPOISE_JUDGES: /etc/equipoise/judges/judges.yaml" in spec["runtimeEnvYAML"]
    assert (spec["submissionMode"], spec["backoffLimit"], spec["shutdownAfterJobFinishes"]) == ("HTTPMode", 0, True)
    assert "canary" not in json.dumps(job)
    assert len(job["metadata"]["name"]) <= 47
    assert launcher.start("job-1", "ann", fence=4).log == "/state/jobs/job-1/driver.log"  # the volume, not a machine


def test_a_job_has_one_driver_at_a_fence_however_often_it_is_started(
    server: ApiServer, launcher: RayJobLauncher
) -> None:
    first = launcher.start("job-1", "ann", fence=0)
    assert make(server).start("job-1", "ann", fence=0).name == first.name
    others = [launcher.start("job-1", "bob", fence=0), launcher.start("job-1", "ann", fence=1)]
    server.set_status(first.name, jobDeploymentStatus="Failed", reason="AppFailed")
    others.append(launcher.start("job-1", "ann", fence=0))  # that one ended: it gets a successor
    assert len({first.name, *(other.name for other in others)}) == len(server.created) == 4


def test_a_worker_that_was_faster_has_made_the_same(
    server: ApiServer, launcher: RayJobLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked before the other created, and hears 409 of its own."""
    look, looked = launcher._look, []

    def late(name: str) -> Any:
        looked.append(name)
        return None if len(looked) == 1 else look(name)

    make(server).start("job-1", "ann", fence=0)
    monkeypatch.setattr(launcher, "_look", late)
    assert launcher.start("job-1", "ann", fence=0).name == looked[0]
    assert len(server.created) == 1
    assert len(looked) == 2


def test_a_lost_reply_to_a_creation_makes_no_second_driver(server: ApiServer, launcher: RayJobLauncher) -> None:
    server.lose_replies = 1
    job = launcher.start("job-1", "ann", fence=0)
    assert [item["metadata"]["name"] for item in server.created] == [job.name]


@pytest.mark.parametrize(
    ("status", "code", "line"),
    [
        ({}, None, ""),
        ({"jobDeploymentStatus": "Initializing"}, None, ""),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, None, ""),
        ({"jobDeploymentStatus": "Suspended"}, None, ""),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, 0, ""),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED", "message": "stopped"}, 0, "stopped"),
        (
            {
                "jobDeploymentStatus": "Failed",
                "reason": "AppFailed",
                "message": "Job entrypoint command failed with exit code 3, last available logs:\nanother holder\n",
            },
            3,
            "another holder",
        ),
        ({"jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": "The actor died"}, 1, "The actor died"),
        (
            {"jobDeploymentStatus": "Failed", "reason": "PreRunningDeadlineExceeded", "message": "no machines"},
            4,
            "no machines",
        ),
        (
            {
                "jobDeploymentStatus": "Failed",
                "reason": "AppFailed",
                "message": "Job supervisor actor failed to start within 1800.0 seconds. This timeout can be set.",
            },
            4,
            "Job supervisor actor failed to start within 1800.0 seconds. This timeout can be set.",
        ),
        ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}, 1, "DeadlineExceeded"),
        ({"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": "bad"}, 1, "bad"),
    ],
)
def test_how_a_driver_ended(
    server: ApiServer, launcher: RayJobLauncher, status: dict[str, Any], code: int | None, line: str
) -> None:
    job = launcher.start("job-1", "ann", fence=0)
    server.set_status(job.name, **status)
    wait_for(lambda: job.poll() == code)
    assert job.last_line() == line


def test_changes_arrive_by_the_watch_and_not_by_asking(server: ApiServer, launcher: RayJobLauncher) -> None:
    jobs = [launcher.start(f"job-{i}", "ann", fence=0) for i in range(3)]
    wait_for(lambda: all(job.poll() is None and launcher._watch.get(job.name) for job in jobs))
    before = len([call for call in server.calls if call[0] in ("get", "list")])
    for _ in range(50):
        assert [job.poll() for job in jobs] == [None] * 3
    server.set_status(jobs[1].name, jobDeploymentStatus="Complete")
    wait_for(lambda: [job.poll() for job in jobs] == [None, 0, None])
    assert len([call for call in server.calls if call[0] in ("get", "list")]) == before


def test_a_version_that_is_gone_is_listed_anew(server: ApiServer, launcher: RayJobLauncher) -> None:
    job, other = (launcher.start(f"job-{i}", "ann", fence=0) for i in (1, 2))
    wait_for(lambda: job.poll() is None and launcher._watch.get(other.name))
    with server._changed:  # what happens now is in no history any more
        server.jobs[job.name]["status"] = {"jobDeploymentStatus": "Complete"}
        del server.jobs[other.name]
    lists = server.calls.count(("list", "rayjobs"))
    server.forget_history()
    wait_for(lambda: job.poll() == 0 and other.poll() == 1)
    assert "was deleted" in other.last_line()
    assert server.calls.count(("list", "rayjobs")) == lists + 1


def test_a_server_that_is_down_says_nothing_of_the_drivers(rendered: Rendered) -> None:
    state = ApiServer(check)
    state.clusters["ray"] = rendered.named("RayCluster", "ray")
    with serving(state):
        launcher = make(state)
        launcher._watch._pause_s = 0.05
        job = launcher.start("job-1", "ann", fence=0)
        wait_for(lambda: launcher._watch.get(job.name) or job.poll() is not None)
    port = int(urlsplit(state.url).port or 0)
    wait_for(lambda: launcher._watch.problem)
    for call in (job.poll, job.terminate, launcher.running, lambda: launcher.start("job-2", "ann", fence=0)):
        with pytest.raises(LauncherUnavailable, match="API server does not"):
            call()
    state.jobs[job.name]["status"] = {"jobDeploymentStatus": "Complete"}  # meanwhile
    with serving(state, port):
        wait_for(lambda: not launcher._watch.problem)
        assert job.poll() == 0


def test_a_worker_that_starts_finds_what_runs_and_deletes_what_ended_long_ago(
    server: ApiServer, launcher: RayJobLauncher
) -> None:
    running, ended, old = (launcher.start(f"job-{i}", "ann", fence=7) for i in (1, 2, 3))
    now = datetime.datetime.now(datetime.UTC)
    for job, age_s in ((ended, 60), (old, 3600)):
        at = (now - datetime.timedelta(seconds=age_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
        server.set_status(job.name, jobDeploymentStatus="Complete", endTime=at)
    server.jobs["someones"] = {"metadata": {"name": "someones", "labels": {}}}
    ours = server.jobs[running.name]["metadata"]["labels"]
    server.jobs["by-hand"] = {"metadata": {"name": "by-hand", "labels": ours}}
    [found] = make(server).running()
    assert (found.owner, found.job_id, found.fence, found.name) == ("ann", "job-1", 7, running.name)
    assert set(server.jobs) == {running.name, ended.name, "someones", "by-hand"}


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_one_that_is_sent_away_is_deleted_and_did_not_die(
    server: ApiServer, launcher: RayJobLauncher, end: str
) -> None:
    job = launcher.start("job-1", "ann", fence=0)
    getattr(job, end)()
    assert server.jobs == {}
    wait_for(lambda: job.poll() == 0)
    getattr(job, end)()  # again does no harm


def test_one_that_somebody_else_deleted_died(server: ApiServer, launcher: RayJobLauncher) -> None:
    job = launcher.start("job-1", "ann", fence=0)
    server.remove(job.name)
    wait_for(lambda: job.poll() == 1)


def test_what_it_may_not_do_is_told(server: ApiServer, launcher: RayJobLauncher) -> None:
    server.forbid = {"create"}
    with pytest.raises(LauncherUnavailable, match=r"refuses rayjobs: 403 .*cannot create"):
        launcher.start("job-1", "ann", fence=0)


def test_a_model_that_kuberay_would_not_take_is_told(server: ApiServer, launcher: RayJobLauncher) -> None:
    server.clusters["ray"] = {"metadata": {"name": "ray"}, "spec": {"headGroup": {}}}
    with pytest.raises(LauncherUnavailable, match="refuses rayjobs: 422"):
        launcher.start("job-1", "ann", fence=0)


def test_it_does_no_more_than_its_role_allows(server: ApiServer, launcher: RayJobLauncher, rendered: Rendered) -> None:
    """And everything that the role allows."""
    job = launcher.start("job-1", "ann", fence=0)
    launcher.running()
    job.terminate()
    wait_for(lambda: ("watch", "rayjobs") in server.calls)
    allowed = {
        (verb, resource)
        for item in rendered.named("Role", "worker")["rules"]
        for resource in item["resources"]
        for verb in item["verbs"]
    }
    assert set(server.calls) == allowed


def test_outside_of_a_pod_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ValueError, match="no pod"):
        in_cluster()
