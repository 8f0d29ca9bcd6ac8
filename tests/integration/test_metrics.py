"""What a Prometheus gets, on a real Redis behind a real socket."""

import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.state import gpu_hours
from orchestrator.state.census import Census
from orchestrator.state.embedded_redis import EmbeddedRedis, connect
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore
from services.api import metrics
from services.api.metrics import MAX_JOBS, MAX_OWNERS, JobFigures, Scrapes
from services.keys import digest
from services.server import ApiServer
from services.settings import Settings

KEY = "eqp_test"
LABELS = ("owner", "job", "objective", "reward", "quantile", "method", "route", "status", "health")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    with EmbeddedRedis(tmp_path / "redis") as redis, connect(redis.url) as client:
        yield JobStore(client, owner="ann")


@pytest.fixture
def http(store: JobStore, tmp_path: Path) -> Iterator[httpx.Client]:
    server = ApiServer("127.0.0.1", 0)
    server.start(store, Settings(state_dir=tmp_path, key_sha256=digest(KEY)))
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=20) as http:
        yield http
    server.stop()


def record(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "objectives": {"accuracy": {"mean": 0.5, "std": 0.1}, "brevity": {"mean": float("nan")}},
        "weights": {"applied": {"accuracy": 0.6, "brevity": 0.4}},
        "tokens": 300,
        "timings_s": {"step": 2.0},
        "reward_health": {
            "judge:helpful": {
                "calls": 8,
                "failures": 2,
                "retries": 2,
                "restarts": 1,
                "dropped": 1,
                "cost": 0.25,
                "latency_s_p50": 0.5,
                "latency_s_p95": 1.5,
                "latency_s_max": 2.0,
            },
            "math": {"calls": 4, "latency_s_p50": 0.01, "cost": 0.0},
        },
        "staleness": {"mean": 0.5, "max": 1},
        "engines": {"healthy": 2, "starting": 1},
        "engine_health": {"0": {"health": "healthy", "failures": 3}, "1": {"health": "starting"}},
    }


def submit(store: JobStore, status: JobStatus = JobStatus.QUEUED) -> str:
    job_id = f"job-{uuid.uuid4().hex[:12]}"
    store.submit("{}", name="x", job_id=job_id, steering={})
    if status is JobStatus.RUNNING:
        lease = store.claim(job_id, nonce="n", ttl_s=60).lease
        assert lease is not None
        store.set_status(lease, JobStatus.RUNNING)
        store.commit(lease, step=1, digest="d", record=record(1))
        store.set_front(lease, {"hypervolume": 0.25})
    return job_id


def samples(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """By name, then by the labels' values in the order of `LABELS`."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[
                tuple(sample.labels[name] for name in LABELS if name in sample.labels)
            ] = sample.value
    return found


def scrape(http: httpx.Client) -> dict[str, dict[tuple[str, ...], float]]:
    response = http.get("/metrics")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain")
    return samples(response.text)


def test_jobs_are_counted_by_owner_and_running_ones_shown(http: httpx.Client, store: JobStore) -> None:
    running = submit(store, JobStatus.RUNNING)
    submit(store)
    other = store.of_owner("bob")
    submit(other)
    submit(other)
    found = scrape(http)
    assert found["equipoise_redis_up"] == found["equipoise_redis_writes"] == {(): 1}
    assert "equipoise_redis_certificate_end_timestamp_seconds" not in found  # it speaks no TLS
    assert found["equipoise_jobs"][("ann", "running")] == 1
    assert found["equipoise_jobs"][("ann", "queued")] == 1
    assert found["equipoise_jobs"][("bob", "queued")] == 2
    assert found["equipoise_jobs"][("bob", "failed")] == 0
    assert found["equipoise_queue_length"] == {("ann",): 1, ("bob",): 2}
    assert found["equipoise_leases"] == {("ann",): 1, ("bob",): 0}
    assert found["equipoise_job_step"] == {("ann", running): 1}
    assert found["equipoise_job_objective"] == {("ann", running, "accuracy"): 0.5}  # no sample for what is no number
    assert found["equipoise_job_weight"] == {("ann", running, "accuracy"): 0.6, ("ann", running, "brevity"): 0.4}
    assert found["equipoise_job_hypervolume"] == {("ann", running): 0.25}
    assert found["equipoise_job_tokens_per_second"] == {("ann", running): 150}
    assert found["equipoise_job_staleness"] == {("ann", running): 0.5}
    engines = {"starting": 1, "stale": 0, "healthy": 2, "retired": 0}
    assert found["equipoise_job_engines"] == {("ann", running, state): count for state, count in engines.items()}
    assert found["equipoise_job_engine_failures"] == {("ann", running): 3}
    judge, math = ("ann", running, "judge:helpful"), ("ann", running, "math")
    assert found["equipoise_job_reward_calls"] == {judge: 8, math: 4}
    assert found["equipoise_job_reward_cost"] == {judge: 0.25, math: 0}
    for name, value in (("failures", 2), ("retries", 2), ("restarts", 1), ("dropped", 1)):
        assert found[f"equipoise_job_reward_{name}"] == {judge: value}
    assert found["equipoise_job_reward_latency_seconds"] == {
        (*judge, "0.5"): 0.5, (*judge, "0.95"): 1.5, (*judge, "1"): 2.0, (*math, "0.5"): 0.01,
    }  # fmt: skip


def test_checkpoints_that_failed_are_counted_once_each_and_past_a_takeover(http: httpx.Client, store: JobStore) -> None:
    sound, failing = submit(store, JobStatus.RUNNING), f"job-{uuid.uuid4().hex[:12]}"
    store.submit("{}", name="x", job_id=failing, steering={})
    for nonce in ("first", "second"):
        lease = store.claim(failing, nonce=nonce, ttl_s=60).lease
        assert lease is not None
        store.set_status(lease, JobStatus.RUNNING)
        store.event(failing, "checkpoint.damaged", {"step": 0}, lease)  # another matter
        for _ in range(2):  # as after a lost reply
            store.event(failing, "checkpoint.failed", {"step": 3}, lease, level="error", token=nonce)
        if nonce == "first":
            store.release(lease)
    found = scrape(http)["equipoise_job_checkpoint_failures_total"]
    assert found == {("ann", sound): 0, ("ann", failing): 2}


def test_gpu_hours_of_owners_are_shown(http: httpx.Client, store: JobStore) -> None:
    submit(store)
    submit(store.of_owner("bob"))
    gpu_hours.set_quota(store.calls, "ann", 12)
    found = scrape(http)
    assert found["equipoise_gpu_hours_used"] == {("ann",): 0, ("bob",): 0}
    assert found["equipoise_gpu_hours_quota"] == {("ann",): 12}


def test_requests_are_labelled_by_route_template(http: httpx.Client, store: JobStore) -> None:
    job_id = submit(store)
    for path in (f"/v1/jobs/{job_id}/events", "/v1/jobs/job-none/events", "/v1/jobs/job-none2/events", "/livez"):
        http.get(path)
    for i in range(20):
        http.get(f"/secret-{i}/../../{i}")
    for method in ("PROPFIND", "SEARCH", "MKCOL"):
        http.request(method, "/v1/jobs")
    http.get("/v1/jobs", headers={"authorization": "Bearer wrong"})
    found = scrape(http)
    requests = found["equipoise_requests_total"]
    assert requests[("GET", "/v1/jobs/{job_id}/events", "200")] == 1
    assert requests[("GET", "/v1/jobs/{job_id}/events", "404")] == 2
    assert requests[("GET", "/livez", "200")] == 1
    assert requests[("GET", "none", "401")] == 1
    assert requests[("GET", "none", "404")] == 20
    assert sum(value for labels, value in requests.items() if labels[0] == "other") == 3
    routes = {labels[1] for labels in requests}
    assert not any(re.search(r"job-|secret|PROPFIND", text) for labels in requests for text in labels)
    assert routes <= {"/v1/jobs", "/v1/jobs/{job_id}/events", "/livez", "/metrics", "none"}
    assert found["equipoise_request_seconds_count"][("GET", "/v1/jobs/{job_id}/events")] == 3


def test_running_jobs_are_capped(store: JobStore) -> None:
    for _ in range(MAX_JOBS + 3):
        submit(store, JobStatus.RUNNING)
    families = {family.name: family for family in JobFigures(lambda: [store]).collect()}
    assert len(families["equipoise_job_step"].samples) == MAX_JOBS
    assert Census(store).counts().by_status == {JobStatus.RUNNING: MAX_JOBS + 3}


def test_no_owner_is_unseen_for_its_name_or_for_anothers_many_jobs(
    store: JobStore, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MAX_OWNERS", 3)
    monkeypatch.setattr(metrics, "MAX_JOBS", 4)
    for name in "bcde":
        of = store.of_owner(name)
        of.request_cancel(submit(of))
    for _ in range(6):
        submit(store, JobStatus.RUNNING)
    late = [submit(store.of_owner("zeta"), JobStatus.RUNNING) for _ in range(2)]
    found = scrape(http)
    assert {owner for owner, _ in found["equipoise_jobs"]} == {"ann", "e", "zeta"}  # those at work, and the newest
    assert found["equipoise_owners_left_out"] == {(): 3}
    steps = found["equipoise_job_step"]
    assert (len(steps), {job for owner, job in steps if owner == "zeta"}) == (4, set(late))
    assert found["equipoise_running_jobs_left_out"] == {(): 4}


def test_scrapes_at_once_or_soon_after_each_other_read_the_jobs_once(store: JobStore) -> None:
    read: list[str] = []

    class Counted(JobFigures):
        def collect(self) -> Iterator[Metric]:
            read.append("")
            yield from super().collect()

    figures, scrapes = Counted(lambda: [store]), Scrapes(max_age_s=3600)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: scrapes.of("ann", figures), range(20)))
    assert len(read) == 1
    assert all(metrics is found[0] for metrics in found)
    scrapes.of("bob", figures)
    assert len(read) == 2
    for i in range(200):
        scrapes.of(f"owner-{i}", figures)
    assert len(scrapes._kept) == MAX_OWNERS
    Scrapes(max_age_s=0).of("ann", figures)
    assert len(read) == 203


def test_old_jobs_are_not_counted_but_those_that_wait_or_run_are(store: JobStore) -> None:
    old, running = submit(store), submit(store, JobStatus.RUNNING)
    ended = submit(store)
    store.request_cancel(ended)
    for _ in range(3):
        store.request_cancel(submit(store))
    counts = Census(store).counts(at_most=2)
    assert counts.by_status == {JobStatus.CANCELLED: 2, JobStatus.QUEUED: 1, JobStatus.RUNNING: 1}
    assert (counts.queued, counts.leases, counts.held) == (1, 1, (running,))
    assert old not in counts.held


def test_failures_count_on_where_older_ones_are_no_longer_counted(http: httpx.Client, store: JobStore) -> None:
    def fail() -> None:
        lease = store.claim(submit(store), nonce="n", ttl_s=60).lease
        assert lease is not None
        for _ in range(2):  # as after a lost reply
            store.finish(lease, JobStatus.FAILED, "x")

    for _ in range(4):
        fail()
    before = Census(store).counts(at_most=3)
    fail()
    after = Census(store).counts(at_most=3)
    assert before.by_status == after.by_status == {JobStatus.FAILED: 3}
    assert (before.failed, after.failed) == (4, 5)
    store.delete(next(iter(store.jobs().items)).job_id)
    assert scrape(http)["equipoise_jobs_failed_total"] == {("ann",): 5}


def test_a_step_that_a_crash_undid_is_not_shown(store: JobStore) -> None:
    job_id = submit(store, JobStatus.RUNNING)
    lease = store.claim(job_id, nonce="n", ttl_s=60).lease
    assert lease is not None
    store.release(lease)
    store.claim(job_id, nonce="second", ttl_s=60)
    assert store.job(job_id).step == 0
    pulse = Census(store).pulses([job_id, "job-none"])[job_id]
    assert (pulse.step, pulse.record, pulse.tokens_per_s) == (0, None, None)


def test_without_redis_the_scrape_says_so(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "other") as redis, connect(redis.url) as client:
        away = JobStore(client)
    found = {family.name: family for family in JobFigures(lambda: [away]).collect()}
    assert found.keys() == {"equipoise_redis_up"}
    assert found["equipoise_redis_up"].samples[0].value == 0


def test_metrics_need_a_key_and_show_none(http: httpx.Client) -> None:
    assert http.get("/metrics", headers={"authorization": ""}).status_code == 401
    assert KEY not in http.get("/metrics").text
    assert digest(KEY) not in http.get("/metrics").text
