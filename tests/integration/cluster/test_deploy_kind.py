"""The overlay `kind` on this machine: its own commands, settings and secrets, down to a job that ends well."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
import redis

from services.client import Client
from tests.deploy_local import Installation
from tests.deploy_support import Rendered, prepare, render, wait_for
from tests.support import make_policy, small_spec

ROUNDING = 1e-5  # as in test_tensor_parallel.py


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    tree = prepare(tmp_path_factory.mktemp("deploy"))
    directory = tmp_path_factory.mktemp("installation")
    with Installation(Rendered(render(tree, "kind")), directory, tree / "secrets" / "files").open() as place:
        place.start_ray()
        for name in ("scripts", "serve"):
            place.start(name)
        place.start_worker()
        yield place


def key(place: Installation, name: str = "api-key") -> str:
    return (place.secrets / name).read_text().strip()


def ready(place: Installation) -> bool:
    for name, process in place.processes.items():
        assert process.poll() is None, f"{name}: {place.log(name)[-3000:]}"
    try:
        return httpx.get(f"{place.url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def ray_status(place: Installation, token: str | None) -> int:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    try:
        return httpx.get(f"{place.ray_url}/api/jobs/", headers=headers).status_code
    except httpx.TransportError:
        return 0


SHARED_BY_RANKS = re.compile(r"/dev/shm/(?:psm|vllm_dist)_\S+")


def shared_by_ranks(place: Installation) -> set[Path]:
    """In the maps of what its Ray machines run, as other tests on this machine may share memory under such names."""
    found: set[Path] = set()
    for machine in place.processes.values():
        for process in psutil.Process(machine.pid).children(recursive=True):
            with suppress(OSError):  # it has just ended
                maps = Path(f"/proc/{process.pid}/maps").read_text(errors="replace")
                found |= {Path(name) for name in SHARED_BY_RANKS.findall(maps)}
    return found


def test_a_job_that_is_submitted_through_the_api_ends_well(place: Installation, tmp_path: Path) -> None:
    """Its engine has two ranks: it samples from the learner's weights in every step, and the memory that its ranks
    shared is given back.
    """
    wait_for(lambda: ready(place), 120)
    policy = make_policy(tmp_path / "policy")
    rollout = {"tensor_parallel": 2, "max_tokens": 8, "kv_cache_gib": 0.1}
    spec = small_spec(policy, steps=2, weighting={"name": "fixed"}, rollout=rollout)
    seen: set[Path] = set()

    def ended() -> bool:
        time.sleep(0.3)  # the job needs the processors
        seen.update(shared_by_ranks(place))
        return client.job(job_id)["status"] not in ("queued", "starting", "running")

    with Client(place.url, key(place)) as client:
        job_id = client.submit(spec.model_dump(mode="json", exclude_unset=True))["id"]
        wait_for(ended, 480)
        job = client.job(job_id)
        told = place.log("worker") + place.log("serve") + place.log("scripts")
        assert job["status"] == "succeeded", f"{job['reason']}\n{told[-4000:]}"
        assert job["step"] == 2
        assert client.front(job_id)["points"]
        assert [step["sampler_gap"] < ROUNDING for step in client.metrics(job_id)["data"]] == [True, True]
    assert seen
    wait_for(lambda: not any(path.exists() for path in seen), 60)
    for secret in place.secrets.iterdir():
        if secret.name.endswith((".password", "-key", "auth_token")):
            assert secret.read_text().strip() not in told, secret.name
    assert not (place.state / "api.json").exists()  # Ray's machines read that volume


def test_ray_refuses_who_has_no_token(place: Installation) -> None:
    wait_for(lambda: ray_status(place, key(place, "auth_token")) == 200, 120)
    assert ray_status(place, None) in (401, 403)
    assert ray_status(place, "wrong") in (401, 403)
    submitted = httpx.post(f"{place.ray_url}/api/jobs/", json={"entrypoint": "id"})
    assert submitted.status_code in (401, 403)


def test_redis_refuses_what_no_app_needs(place: Installation) -> None:
    for user in ("api", "worker", "driver"):
        with place.redis.client(user, place.secrets) as client:
            for words in (("FLUSHALL",), ("CONFIG", "GET", "*"), ("EVAL", "return 1", "0")):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*words)


def test_the_probes_and_the_figures_answer_as_they_are_asked(place: Installation) -> None:
    (container,) = place.rendered.pod("serve").containers
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert httpx.get(place.url + container[name]["httpGet"]["path"]).status_code == 200
    headers = {"authorization": f"Bearer {key(place, 'metrics-key')}"}
    assert "equipoise_redis_up 1" in httpx.get(f"{place.url}/metrics", headers=headers).text
    assert httpx.get(f"{place.url}/v1/jobs", headers=headers).status_code == 401
    for name in ("worker", "scripts"):
        alive = place.directory / "pods" / name / "tmp" / "alive"
        before = alive.stat().st_mtime_ns
        wait_for(lambda alive=alive, before=before: alive.stat().st_mtime_ns > before)


def test_all_of_it_ends_when_it_is_asked_to(place: Installation) -> None:
    for name in ("worker", "serve", "scripts"):
        assert place.stop(name, signal.SIGTERM) == 0, place.log(name)[-2000:]
