"""API processes that are killed, told to go, or asked many times at once: T1, T6 and T27 of the reliability table."""

import contextlib
import json
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from orchestrator.state.redis_calls import connect
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore
from services.client import ApiError, Client
from services.keys import digest
from services.server import ApiServer
from services.settings import Limits, Settings
from tests.fault_figures import BUSY_S, REPEATS, all_at_once, tell
from tests.toy_api import KEY, Api
from tests.toy_driver import Forks, Garage
from tests.toy_jobs import audit, events_of, submit, toy_spec
from tests.toy_mutants import store_with


@pytest.fixture
def store(redis_url: str) -> Iterator[JobStore]:
    with connect(redis_url, timeout_s=5) as client:
        yield JobStore(client)


def test_a_killed_api_stops_no_training(forks: Forks, redis_url: str, store: JobStore, tmp_path: Path) -> None:
    """Two replicas, one killed at a random step, again and again: the driver does not notice, the other answers."""
    chance = random.Random(1)
    steps = 20 + 60 * (REPEATS - 1)
    spec = toy_spec(steps=steps, step_s=0.1)
    fragile, other = (Api(redis_url, tmp_path, waits=False) for _ in range(2))
    errors, ready, acknowledged = 0, list[float](), list[int]()
    try:
        for api in (fragile, other):
            api.wait_until_ready()
        with Garage(forks, redis_url, tmp_path, ttl_s=30.0) as garage, Client(other.url, KEY) as client:
            job_id = client.submit(json.loads(spec.to_json()))["id"]
            driver = garage.start(job_id)
            for _ in range(2 * REPEATS if REPEATS > 1 else 1):
                if (step := client.job(job_id)["step"]) > steps - 15:  # the API starts slowly here: fewer kills
                    break
                until = step + chance.randint(1, 3)
                while client.job(job_id)["step"] < until and driver.poll() is None:
                    time.sleep(0.02)
                with socket.create_connection(("127.0.0.1", fragile.port), timeout=30) as cut_off:
                    cut_off.sendall(head(9))
                    acknowledged.append(steer_and_kill(fragile, job_id))
                    with contextlib.suppress(ConnectionResetError):  # what T6 must not see
                        assert cut_off.recv(65536) == b""
                try:
                    client.events(job_id)
                    acknowledged.append(client.steer(job_id, weights={"accuracy": 0.5, "brevity": 0.5})["version"])
                except ApiError as error:
                    errors += error.status != 409
                ready.append(fragile.start())
            assert driver.wait(300) == 0, driver.tail()
            listed = [event["seq"] for event in client.events(job_id, limit=100)["data"]]
        found = audit(store, job_id, spec, tmp_path)
        assert (store.job(job_id).status, found.violations, found.claims) == (JobStatus.SUCCEEDED, (), 1)
        assert listed == list(range(1, len(listed) + 1))
        lost = lost_steers(store, job_id, acknowledged)
        figures = {"steps_delayed": found.rerun, "errors_of_the_other": errors, "ready_s_max": round(max(ready), 2)}
        tell("T1", kills=len(ready), acknowledged=len(acknowledged), lost_acks=lost, **figures)
        assert (errors, lost) == (0, 0)
        assert len(ready) >= max(1, REPEATS // 2)
    finally:
        for api in (fragile, other):
            api.kill()


def steer_and_kill(api: Api, job_id: str) -> int:
    """The version that its last answer before the end acknowledged."""
    with Client(api.url, KEY) as client:
        version = client.steer(job_id, weights={"accuracy": 0.6, "brevity": 0.4})["version"]
    api.kill()
    return version


def lost_steers(store: JobStore, job_id: str, acknowledged: list[int]) -> int:
    known = {entry.version for entry in store.steering(job_id).log}
    return sum(version not in known for version in acknowledged)


def test_a_driver_that_needs_the_api_and_an_api_that_writes_behind_are_seen(
    forks: Forks, redis_url: str, store: JobStore, tmp_path: Path
) -> None:
    """The mistakes of T1: training ends with the API, and an answer that it gave is worth nothing."""
    spec = toy_spec(steps=200, step_s=0.05)
    api = Api(redis_url, tmp_path, mutant="write_behind")
    try:
        with Garage(forks, redis_url, tmp_path, ttl_s=30.0) as garage:
            job_id = submit(store, spec)
            driver = garage.start(job_id, mutants=["needs_api"], api=api.url)
            deadline = time.monotonic() + 60
            while store.job(job_id).step < 2:
                assert time.monotonic() < deadline, driver.tail()
                time.sleep(0.01)
            acknowledged = steer_and_kill(api, job_id)
            assert lost_steers(store, job_id, [acknowledged]) == 1
            driver.wait()
            assert store.job(job_id).status is JobStatus.FAILED
            assert store.job(job_id).step < spec.steps
    finally:
        api.kill()


def head(length: int) -> bytes:
    """Of a submission, whose body is still to come."""
    return (
        f"POST /v1/jobs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
        f"content-length: {length}\r\nconnection: close\r\n\r\n"
    ).encode()


def test_requests_in_flight_end_well_when_the_api_is_told_to_stop(redis_url: str, tmp_path: Path) -> None:
    api = Api(redis_url, tmp_path)
    body = toy_spec().to_json().encode()
    connections = [socket.create_connection(("127.0.0.1", api.port), timeout=30) for _ in range(8)]
    try:
        for connection in connections:
            connection.sendall(head(len(body)) + body[: len(body) // 2])
        with Client(api.url, KEY) as client:
            assert client.ready()  # by now it reads the eight
        api.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        answers = []
        for connection in connections:
            connection.sendall(body[len(body) // 2 :])
        for connection in connections:
            answers.append(b"".join(iter(lambda connection=connection: connection.recv(65536), b"")))
        failed = [answer for answer in answers if not answer.startswith(b"HTTP/1.1 201")]
        tell("T6", requests_in_flight=len(answers), failed=len(failed))
        assert failed == []
        assert api.process.wait(30) == 0
    finally:
        for connection in connections:
            connection.close()
        api.kill()


def test_a_driver_that_is_told_to_stop_hands_over_at_once(
    forks: Forks, redis_url: str, store: JobStore, tmp_path: Path
) -> None:
    takeovers = []
    with Garage(forks, redis_url, tmp_path, ttl_s=30.0) as garage:
        for _ in range(REPEATS):
            spec = toy_spec(step_s=0.05)
            job_id = submit(store, spec)
            driver = garage.start(job_id)
            deadline = time.monotonic() + 60
            while store.job(job_id).step < 2:
                assert time.monotonic() < deadline, driver.tail()
                time.sleep(0.01)
            driver.send(signal.SIGTERM)
            assert driver.wait() == 0
            ended = time.time()
            assert store.job(job_id).status is JobStatus.QUEUED
            heir = garage.start(job_id)  # no lease to wait for
            assert heir.wait() == 0, heir.tail()
            claims = [event.at for event in events_of(store, job_id) if event.type == "job.claimed"]
            takeovers.append(claims[1] - ended)
            found = audit(store, job_id, spec, tmp_path)
            assert (store.job(job_id).status, found.violations, found.rerun) == (JobStatus.SUCCEEDED, (), 0)
    tell("T6", handovers=len(takeovers), takeover_s_max=round(max(takeovers), 2), steps_rerun=0)
    assert max(takeovers) < BUSY_S  # the lease has 30


# ------------------------------------------------------------------------------------------- T27: one key, one job

PER_KEY = 10


def submit_all(store: JobStore, directory: Path, keys: list[str]) -> list[httpx.Response]:
    """Every key ten times, all at once; answers in the order of the keys."""
    api = ApiServer("127.0.0.1", 0)
    limits = Limits(writes_per_minute=0, active_jobs_local=0)
    api.start(store, Settings(state_dir=directory, key_sha256=digest(KEY), limits=limits))
    body = toy_spec().to_json()
    try:
        with httpx.Client(
            base_url=api.url,
            headers={"authorization": f"Bearer {KEY}", "content-type": "application/json"},
            limits=httpx.Limits(max_connections=100),
            timeout=60,
        ) as http:

            def submit(i: int) -> httpx.Response:
                headers = {"idempotency-key": keys[i // PER_KEY]}
                return http.post("/v1/jobs", content=body, headers=headers)

            answers: list[httpx.Response] = all_at_once(len(keys) * PER_KEY, submit)
            changed = http.post("/v1/jobs", content=toy_spec(steps=8).to_json(), headers={"idempotency-key": keys[0]})
            assert changed.status_code == 409
        return answers
    finally:
        api.stop()


def test_of_many_submits_with_one_key_one_makes_a_job(redis_url: str, tmp_path: Path) -> None:
    """The others get its answer, to the byte."""
    keys = [f"key-{i}" for i in range(10 * REPEATS)]
    with connect(redis_url) as client:
        store = JobStore(client, owner=f"once-{tmp_path.name}")
        answers = submit_all(store, tmp_path, keys)
        statuses = Counter(answer.status_code for answer in answers)
        jobs = store.jobs(limit=10_000).items
        tell(
            "T27",
            submits=len(answers),
            keys=len(keys),
            jobs_created=len(jobs),
            other_statuses=len(answers) - statuses[201],
        )
        assert (statuses, len(jobs)) == ({201: len(answers)}, len(keys))
        for i in range(len(keys)):
            mine = answers[PER_KEY * i : PER_KEY * (i + 1)]
            assert len({answer.content for answer in mine}) == 1
            assert Counter(answer.headers["idempotent-replayed"] for answer in mine) == {
                "false": 1,
                "true": PER_KEY - 1,
            }

        wrong = store_with(JobStore(client, owner=f"twice-{tmp_path.name}"), "key_forgotten")
        for job_id in ("a", "b"):
            wrong.submit("{}", name="x", job_id=job_id, idempotency_key="k")
        assert len(wrong.jobs().items) == 2  # the mistake is seen
