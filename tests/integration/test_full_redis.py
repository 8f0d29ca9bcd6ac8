"""A Redis whose memory is full: what it still serves, and what people are told meanwhile."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from orchestrator.launch.launchers import SubprocessLauncher
from orchestrator.launch.worker import Worker
from orchestrator.state.census import Census
from orchestrator.state.embedded_redis import EmbeddedRedis
from orchestrator.state.keystore import KeyStore
from orchestrator.state.redis_calls import connect
from orchestrator.state.store import JobStore
from orchestrator.webhooks.dispatcher import Dispatcher
from orchestrator.webhooks.subscriptions import WebhookStore
from tests.deploy_support import wait_for
from tests.keys_support import SPEC, Place, error_of, serving
from tests.store_support import event_types, running, submit


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with EmbeddedRedis(tmp_path / "redis") as server, connect(server.url) as client, serving(client, tmp_path) as place:
        yield place


@contextmanager
def full(client: redis.Redis) -> Iterator[None]:
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


@contextmanager
def in_threads(*parts: Worker | Dispatcher) -> Iterator[None]:
    threads = [threading.Thread(target=part.run) for part in parts]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for part in parts:
            part.request_stop()
        for thread in threads:
            thread.join(10)


def test_reads_are_served(place: Place) -> None:
    store = JobStore(place.client)
    submit(store, "waits")
    running(store, "runs")
    webhook = WebhookStore(store).add("https://hooks.example.com/x", ["job.succeeded"])
    store.event("runs", "job.succeeded", {})
    key_id = place.make("read")["id"]
    with full(place.client):
        assert (Census(store).counts().held, Census(store).active()) == (("runs",), 2)
        assert Census(store).pulses(["runs"])["runs"].step == 0
        assert [job_id for job_id, _ in WebhookStore(store).behind(webhook.webhook_id)] == ["runs"]
        assert [key.key_id for key in KeyStore(store.calls).page(owner="acme").items] == [key_id]
        with place.http() as http:
            assert [key["id"] for key in http.get("/v1/keys").json()["data"]] == [key_id]
            metrics = http.get("/metrics").text
    assert "equipoise_redis_up 1" in metrics
    assert "equipoise_redis_writes 0" in metrics
    assert 'equipoise_jobs{owner="local",status="running"} 1' in metrics


def test_who_writes_is_told_why_not_and_the_log_once(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with place.http() as http, full(place.client), caplog.at_level(logging.WARNING):
        for path, body in (("/v1/jobs", SPEC), ("/v1/keys", {"name": "x", "scopes": ["read"]})) * 2:
            error = error_of(http.post(path, json=body), 503)
            assert error["code"] == "store_unavailable"
            assert error["message"].startswith("Redis refuses writes (its memory is full")
    assert [record.message.count("OOM") for record in caplog.records] == [1]
    assert "requests that need it are answered 503" in caplog.text


def test_who_fills_it_can_be_stopped(tmp_path: Path) -> None:
    with (
        EmbeddedRedis(tmp_path / "redis") as server,
        connect(server.url) as client,
        serving(client, tmp_path, writes_per_minute=10) as place,
    ):
        for job_id in ("waits", "gone"):
            submit(JobStore(client), job_id)
        running(JobStore(client), "runs")
        JobStore(client).request_cancel("gone")
        webhook = WebhookStore(JobStore(client)).add("https://hooks.example.com/x", ["job.succeeded"])
        made = place.make("submit", "read")
        with full(client), place.http() as http, place.http(made["key"]) as filling:
            answers = [filling.post("/v1/jobs", json=SPEC) for _ in range(11)]
            assert [answer.status_code for answer in answers] == [503] * 10 + [429]
            assert http.delete(f"/v1/keys/{made['id']}").json()["revoked_at"]
            assert filling.get("/v1/jobs").status_code == 401
            assert http.post("/v1/jobs/waits/cancel").json()["status"] == "cancelled"
            assert http.delete("/v1/jobs/gone").json()["deleted"]
            assert http.post("/v1/jobs/runs/cancel").json()["status"] == "cancelling"
            assert http.delete(f"/v1/webhooks/{webhook.webhook_id}").status_code == 204
            error_of(http.post("/v1/jobs", json=SPEC), 503)
        assert event_types(JobStore(client), "waits") == ["job.queued", "job.cancelled"]


def test_no_driver_is_started_and_worker_and_webhooks_say_why_once(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A driver could not claim the job, and would end without a word."""
    url, store = f"unix://{tmp_path / 'redis' / 'redis.sock'}", JobStore(place.client)
    started: list[str] = []

    def command(job_id: str, *_: object) -> list[str]:
        started.append(job_id)
        return ["true"]

    worker = Worker(store, SubprocessLauncher(url, tmp_path, command=command), poll_s=0.02)
    dispatcher = Dispatcher(store, allow_private=True, poll_s=0.02)
    submit(store, "waits")
    with full(place.client), caplog.at_level(logging.WARNING), in_threads(worker, dispatcher):
        wait_for(lambda: len(caplog.records) >= 2)
        time.sleep(0.3)
        assert not started
        assert sorted(record.message.rpartition("; ")[2] for record in caplog.records) == [
            "waiting for it, drivers go on",
            "webhooks wait",
        ]
        assert caplog.text.count("refuses writes") == 2
        place.client.config_set("maxmemory", 0)
        wait_for(lambda: started)
