"""GPU-hour quotas from the operator's word to a real driver that pauses, over HTTP and at the command line."""

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from orchestrator.state import gpu_hours
from orchestrator.state.redis_calls import connect
from orchestrator.state.store import JobStore
from services.cli import app as cli
from services.client import ApiError, Client, RateLimited
from services.keys import digest, new_key
from services.server import ApiServer
from services.settings import Limits, Settings, write_credentials
from tests.toy_driver import Forks, Garage
from tests.toy_jobs import audit, toy_spec

OPERATOR = new_key()
OWNER = "acme"


class Place:
    """A server on a Redis that other tests share: its owners have names of their own."""

    def __init__(self, store: JobStore, url: str, directory: Path) -> None:
        self.store, self.url, self.directory = store, url, directory
        self.owner = f"{OWNER}-{uuid.uuid4().hex[:8]}"
        with Client(url, OPERATOR) as client:
            made = client.create_key(name="team", scopes=["admin"], owner=self.owner)
        self.team = Client(url, made["key"])

    def operator(self) -> Client:
        return Client(self.url, OPERATOR)


@pytest.fixture
def place(redis_url: str, tmp_path: Path) -> Iterator[Place]:
    with connect(redis_url, timeout_s=5) as client:
        store = JobStore(client, owner=f"operator-{uuid.uuid4().hex}")
        server = ApiServer("127.0.0.1", 0)
        limits = Limits(writes_per_minute=0)
        server.start(store, Settings(state_dir=tmp_path, key_sha256=digest(OPERATOR), limits=limits))
        place = Place(store, server.url, tmp_path)
        try:
            yield place
        finally:
            place.team.close()
            server.stop()


def test_a_job_that_uses_the_quota_up_pauses_with_a_checkpoint_and_goes_on_later(
    place: Place, forks: Forks, redis_url: str
) -> None:
    toy = toy_spec(steps=60, step_s=0.1, every=80)
    document = json.loads(toy.to_json())
    document["metadata"]["toy.gpus"] = "1000"
    assert document["resources"]["device"] == "auto"
    job_id = place.team.submit(document)["id"]
    store = place.store.of_owner(place.owner)
    with Garage(forks, redis_url, place.directory, renew_s=0.1) as garage:
        driver = garage.start(job_id, owner=place.owner)
        deadline = time.monotonic() + 60
        while store.job(job_id).step == 0:  # however long a busy machine takes to start it
            assert time.monotonic() < deadline, driver.tail()
            time.sleep(0.02)
        quota = store.job(job_id).gpu_hours + 500 / 3600
        with place.operator() as operator:
            operator.set_quota(place.owner, gpu_hours=quota)  # half a second more: it has 1,000 GPUs
        assert driver.wait() == 0, driver.tail()
        job = place.team.job(job_id)
        assert job["status"] == "paused", job["reason"]
        assert "GPU-hours" in (job["reason"] or "")
        assert 0 < job["step"] < 60
        assert job["checkpoint_step"] == job["step"]  # none is lost
        own = place.team.own_key()["gpu_hours"]
        assert own["quota"] == pytest.approx(quota)
        assert own["used"] == pytest.approx(job["gpu_hours"])
        assert own["used"] >= own["quota"]

        for refused in (lambda: place.team.submit(document), lambda: place.team.resume(job_id)):
            with pytest.raises(RateLimited) as error:
                refused()
            assert (error.value.status, error.value.code) == (429, "gpu_hours_used_up")
            assert f"{own['used']:.6g} of its {own['quota']:.6g} GPU-hours" in error.value.message
            assert "renew on" in error.value.message
            assert error.value.retry_after_s == pytest.approx(own["renews_at"] - time.time(), abs=10)
        on_cpu = {**document, "resources": {**document["resources"], "device": "cpu"}}
        assert place.team.submit(on_cpu)["status"] == "queued"
        first, *others = on_cpu["objectives"]
        hosted = {**first, "reward": {**first["reward"], "hosting": {"num_gpus": 1}}}
        with pytest.raises(RateLimited):  # its rewards would take one
            place.team.submit({**on_cpu, "objectives": [hosted, *others]})

        with place.operator() as operator:
            operator.set_quota(place.owner, gpu_hours=None)
        place.team.resume(job_id)
        driver = garage.start(job_id, owner=place.owner)
        assert driver.wait() == 0, driver.tail()
    assert place.team.job(job_id)["status"] == "succeeded"
    found = audit(store, job_id, toy, place.directory, every=80)
    assert (found.violations, found.rerun) == ((), 0)


def test_only_the_operator_sets_quotas_and_owners_see_their_own(place: Place) -> None:
    operator = place.operator()
    assert operator.quota(place.owner)["gpu_hours"]["quota"] is None
    assert operator.set_quota(place.owner, gpu_hours=12.5)["gpu_hours"]["quota"] == 12.5
    assert place.team.quota(place.owner)["gpu_hours"]["quota"] == 12.5
    for call, status, code in (
        (lambda: place.team.set_quota(place.owner, gpu_hours=1000), 403, "operator_only"),
        (lambda: place.team.quota("somebody"), 404, "not_found"),
        (lambda: place.team.quota(place.store.owner), 404, "not_found"),
        (lambda: operator.quota("somebody"), 404, "not_found"),
        (lambda: operator.set_quota("somebody", gpu_hours=1), 404, "not_found"),
    ):
        with pytest.raises(ApiError) as refused:
            call()
        assert (refused.value.status, refused.value.code) == (status, code)
    operator.close()
    assert place.team.own_key()["gpu_hours"]["quota"] == 12.5


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "gpu_hours"),
        ({"gpu_hours": 0}, "gpu_hours"),
        ({"gpu_hours": -1}, "gpu_hours"),
        ({"gpu_hours": "5"}, "gpu_hours"),
        ({"gpu_hours": True}, "gpu_hours"),
        ({"gpu_hours": 1e7}, "gpu_hours"),
        ({"gpu_hours": 5, "owner": "me"}, "owner"),
        ([], None),
    ],
)
def test_a_wrong_quota_is_422_and_changes_nothing(place: Place, body: Any, param: str | None) -> None:
    headers = {"authorization": f"Bearer {OPERATOR}"}
    answer = httpx.put(f"{place.url}/v1/quotas/{place.owner}", json=body, headers=headers)
    assert answer.status_code == 422
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == ("invalid_quota", param)
    assert httpx.put(f"{place.url}/v1/quotas/a%20b", json={"gpu_hours": 1}, headers=headers).status_code == 422
    assert gpu_hours.read(place.store.calls, place.owner).quota is None


def test_the_command_sets_and_shows_them(place: Place) -> None:
    write_credentials(place.directory, place.url, OPERATOR)
    run = CliRunner()

    def keys(*words: str) -> tuple[int, str]:
        found = run.invoke(cli, ["--state-dir", str(place.directory), "keys", "quota", *words])
        return found.exit_code, found.output

    code, text = keys(place.owner, "--gpu-hours", "200")
    assert (code, text.startswith(f"{place.owner}: 0 GPU-hours this month, of 200; renews ")) == (0, True)
    code, text = keys(place.owner, "--json")
    assert (code, json.loads(text)["gpu_hours"]["quota"]) == (0, 200)
    code, text = keys(place.owner, "--no-limit")
    assert (code, "of any number" in text) == (0, True)
    code, text = keys()
    assert (code, text.startswith(place.store.owner)) == (0, True)
    assert keys("--gpu-hours", "1", "--no-limit")[0] == 2
    code, text = keys(place.owner, "--gpu-hours", "0")
    assert (code, "--gpu-hours: expected a number above 0" in text) == (2, True)
