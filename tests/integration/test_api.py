"""The API on a real Redis behind a real socket."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import tarfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.checkpoints import write_checkpoint
from orchestrator.embedded_redis import EmbeddedRedis, connect
from orchestrator.states import JobStatus
from orchestrator.store import JobStore, Lease
from services import rules_api
from services.auth import PUBLIC_PATHS
from services.client import ApiError, Client
from services.keys import digest
from services.server import ApiServer, ServerError
from services.settings import Settings

KEY = "eqp_test"
SECRET = "hunter2-do-not-repeat"
SPEC: dict[str, Any] = {
    "name": "a job",
    "steps": 4,
    "policy": {"model": "quickstart"},
    "data": {"type": "quickstart"},
    "objectives": [
        {"name": "accuracy", "reward": {"name": "math"}, "weight": 0.6},
        {"name": "conciseness", "reward": {"name": "conciseness"}, "weight": 0.4},
    ],
}


@contextmanager
def serving(store: JobStore, state_dir: Path, **settings: Any) -> Iterator[ApiServer]:
    server = ApiServer("127.0.0.1", 0)
    options = {"poll_s": 0.05, "local_exports": True, **settings}
    server.start(store, Settings(state_dir=state_dir, key_sha256=digest(KEY), **options))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def store(redis_url: str) -> Iterator[JobStore]:
    client = connect(redis_url)
    yield JobStore(client, owner=f"api-{uuid.uuid4().hex}")
    client.close()


@pytest.fixture(scope="module")
def server(store: JobStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with serving(store, tmp_path_factory.mktemp("api"), gpu_gib=48) as server:
        yield server


@pytest.fixture(scope="module")
def http(server: ApiServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=20) as http:
        yield http


@pytest.fixture(scope="module")
def client(server: ApiServer) -> Iterator[Client]:
    with Client(server.url, KEY) as client:
        yield client


@pytest.fixture
def job_id(client: Client) -> str:
    return str(client.submit(SPEC)["id"])


def claim(store: JobStore, job_id: str) -> Lease:
    """The lease of a driver that runs the job."""
    lease = store.claim(job_id, nonce=uuid.uuid4().hex, ttl_s=60).lease
    assert lease is not None
    store.set_status(lease, JobStatus.RUNNING)
    return lease


def step_record(mean: float = 0.5) -> dict[str, Any]:
    return {
        "objectives": {"accuracy": {"mean": mean, "std": 0.1, "zero_share": 0.0}},
        "weights": {
            "strategy": {"accuracy": 0.7, "conciseness": 0.3},
            "applied": {"accuracy": 0.6, "conciseness": 0.4},
        },
        "loss": float("nan"),
    }


def assert_error(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    document = response.json()
    assert document.keys() == {"error"}
    assert document["error"].keys() == {"type", "code", "message", "param"}
    assert response.headers["x-request-id"]
    assert SECRET not in response.text
    return dict(document["error"])


# -- who may ask --------------------------------------------------------------------------------------------


def routes_of(server: ApiServer) -> list[tuple[str, str]]:
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}) as http:
        paths = http.get("/openapi.json").json()["paths"]
    found = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    return [*found, ("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/no/such/path"), ("OPTIONS", "/v1/jobs")]


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", f"Basic {KEY}", "Bearer", "\xff\xfe"])
def test_every_route_but_livez_needs_the_key(server: ApiServer, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization.encode("latin-1")}
    routes = routes_of(server)
    assert len(routes) > 15
    with httpx.Client(base_url=server.url, headers=headers) as http:
        for method, path in routes:
            if path in PUBLIC_PATHS:
                assert http.request(method, path).status_code == 200
                continue
            filled = re.sub(r"\{\w+\}", "1", path)
            response = http.request(method, filled, headers={"accept": "text/event-stream"}, content=b"x" * 100)
            assert assert_error(response, 401)["type"] == "authentication_error", (method, path)


def test_a_path_that_only_looks_public_is_not(server: ApiServer) -> None:
    with httpx.Client(base_url=server.url) as http:
        for path in ("/livez/", "//livez", "/livez/../v1/jobs", "/v1/jobs?/livez", "/livez%2f"):
            assert http.get(path).status_code == 401, path


def test_unknown_paths_and_methods_have_the_common_shape(http: httpx.Client) -> None:
    assert assert_error(http.get("/nope"), 404)["code"] == "not_found"
    response = http.delete("/v1/jobs")
    assert assert_error(response, 405)["code"] == "method_not_allowed"
    assert "GET" in response.headers["allow"] or "POST" in response.headers["allow"]


@pytest.mark.parametrize("sent", [b"GET /v1/jobs?x=" + b"a" * 70_000, b"\x00\x01\x02", b"GET  HTTP/9"])
def test_what_is_no_http_has_the_common_shape(server: ApiServer, sent: bytes) -> None:
    with socket.create_connection((server.host, server.port), 20) as sender:
        sender.sendall(sent + b" HTTP/1.1\r\nhost: x\r\n\r\n")
        head, _, content = b"".join(iter(lambda: sender.recv(65536), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"x-request-id: " in head
    error = json.loads(content)["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_http")


def answered(sender: socket.socket) -> tuple[bytes, bytes]:
    """Status line and headers, and the rest, once the server has closed the connection."""
    head, _, content = b"".join(iter(lambda: sender.recv(65536), b"")).partition(b"\r\n\r\n")
    return head, content


def test_a_head_that_is_too_large_is_431(server: ApiServer) -> None:
    with socket.create_connection((server.host, server.port), 20) as sender:
        headers = b"".join(b"x-%d: %s\r\n" % (i, b"a" * 1000) for i in range(133))
        sender.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n" + headers)
        found, content = answered(sender)
    assert found.startswith(b"HTTP/1.1 431 ")
    assert b"x-request-id: " in found
    assert json.loads(content)["error"]["code"] == "head_too_large"


def test_a_header_without_end_is_cut_off(server: ApiServer) -> None:
    sent = 0
    with socket.create_connection((server.host, server.port), 20) as sender, suppress(ConnectionError):
        sender.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nx: ")
        while sent < 1 << 30:
            sender.sendall(b"a" * 65536)
            sent += 65536
    assert sent < 64 << 20  # what the kernel holds for both ends is more than what the server took


def test_a_large_head_is_no_matter_however_it_comes(server: ApiServer) -> None:
    head = b"GET /livez HTTP/1.1\r\nhost: x\r\n" + b"".join(b"x-%d: %s\r\n" % (i, b"a" * 1000) for i in range(100))
    with socket.create_connection((server.host, server.port), 20) as sender:
        for step in (len(head), 30_001):  # the size of each head counts, not theirs together
            for start in range(0, len(head), step):
                sender.sendall(head[start : start + step])
            sender.sendall(b"\r\n")
            assert sender.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_connection_has_so_long_to_send_a_head(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.server._HEAD_S", 0.3)
    for sent in (b"", b"\r\n", b"GET /livez HTTP/1.1\r\nhost:"):
        with socket.create_connection((server.host, server.port), 20) as sender:
            sender.sendall(sent)
            head, content = answered(sender)  # which waits until the server closes
        if sent.startswith(b"GET"):
            assert head.startswith(b"HTTP/1.1 408 ")
            assert json.loads(content)["error"]["code"] == "head_timeout"
        else:
            assert head == b""
    for left in (b"\r\n", b"GET /livez HTTP/1.1\r\n"):  # after an answer, which uvicorn's own limit no longer ends
        with socket.create_connection((server.host, server.port), 20) as sender:
            sender.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            assert sender.recv(65536).startswith(b"HTTP/1.1 200 ")
            sender.sendall(left)
            answered(sender)


def test_bodies_and_streams_take_their_time(
    server: ApiServer, job_id: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.server._HEAD_S", 0.2)
    start = f"host: x\r\nauthorization: Bearer {KEY}\r\n"
    body = json.dumps(SPEC).encode()
    with socket.create_connection((server.host, server.port), 20) as sender:
        sender.sendall(f"POST /v1/jobs?validate_only=1 HTTP/1.1\r\n{start}".encode())
        sender.sendall(b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body))
        time.sleep(0.5)
        sender.sendall(body)
        assert sender.recv(65536).startswith(b"HTTP/1.1 200 ")
    with socket.create_connection((server.host, server.port), 20) as sender:
        sender.sendall(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\naccept: text/event-stream\r\n{start}\r\n".encode())
        assert sender.recv(65536).startswith(b"HTTP/1.1 200 ")
        time.sleep(0.5)
        client.cancel(job_id)
        content = b""
        while b"event: job.cancelled" not in content:
            content += (more := sender.recv(65536))
            assert more, "the stream was cut off"


@pytest.mark.parametrize("job", ["job-0", "%7Bx%7D", "a" * 300, "..", "%00", "é"])
def test_an_id_that_names_no_job_is_404(http: httpx.Client, job: str) -> None:
    for path in ("events", "steering", "front", "checkpoints", "metrics"):
        assert_error(http.get(f"/v1/jobs/{job}/{path}"), 404)


# -- bodies -------------------------------------------------------------------------------------------------


def body(**changes: Any) -> bytes:
    return json.dumps({**SPEC, **changes}).encode()


def with_weight(text: str) -> bytes:
    return json.dumps(SPEC).replace("0.6", text).encode()


MALFORMED = {
    "NaN": (with_weight("NaN"), 422),
    "Infinity": (with_weight("-Infinity"), 422),
    "overflowing exponent": (with_weight("1e999"), 422),
    "negative": (with_weight("-5"), 422),
    "object for a number": (with_weight("{}"), 422),
    "weights too large to add": (json.dumps(SPEC).replace("0.6", "1e308").replace("0.4", "1e308").encode(), 422),
    "huge integer": (with_weight("1" * 400), 422),
    "5,000-digit integer": (with_weight("1" * 5000), 400),
    "lone surrogate": (body(name="x").replace(b'"x"', b'"\\ud800"'), 422),
    "lone surrogate in a key": (body(x=1).replace(b'"x"', b'"\\ud800"'), 422),
    "NaN in a free field": (body(metadata={"a": 1}).replace(b'{"a": 1}', b'{"a": NaN}'), 422),
    "duplicate key": (body().replace(b'"steps": 4', b'"steps": 4, "steps": 5'), 422),
    "unknown field": (body(state="running"), 422),
    "server field": (body(fence=7), 422),
    "wrong type": (body(steps=SECRET), 422),
    "control character in the name": (body(name="a\x1b[31m"), 422),
    "33 objectives": (
        body(objectives=[{"name": f"o{i}", "reward": {"name": "math"}} for i in range(32)]),
        422,
    ),
    "5,000-deep nesting": (b"[" * 5000 + b"]" * 5000, 400),
    "100-deep nesting": (body(metadata=1).replace(b": 1}", b": " + b"[" * 100 + b"]" * 100 + b"}"), 400),
    "bad UTF-8": (b'{"name": "\xff"}', 400),
    "not JSON": (b"{" + SECRET.encode(), 400),
    "empty": (b"", 400),
    "an array": (b"[]", 422),
    "null": (b"null", 422),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_bodies_are_refused_and_nothing_is_stored(http: httpx.Client, client: Client, case: str) -> None:
    content, status = MALFORMED[case]
    before = len(list(client.iter_jobs()))
    response = http.post("/v1/jobs", content=content, headers={"content-type": "application/json"})
    assert assert_error(response, status)["type"] == "invalid_request_error"
    assert len(list(client.iter_jobs())) == before


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_of_another_media_type_is_refused(http: httpx.Client, content_type: str) -> None:
    assert_error(http.post("/v1/jobs", content=body(), headers={"content-type": content_type}), 422)


def test_a_spec_error_names_the_field_and_the_nearest_name(http: httpx.Client) -> None:
    wrong = {**SPEC, "rollout": {"promts_per_step": 8}}
    error = assert_error(http.post("/v1/jobs", json=wrong), 422)
    assert error["param"] == "rollout.promts_per_step"
    assert error["message"] == "rollout.promts_per_step: unknown field, did you mean 'prompts_per_step'?"


def test_all_that_is_wrong_with_a_spec_is_in_one_answer(http: httpx.Client) -> None:
    error = assert_error(http.post("/v1/jobs", json={**SPEC, "steps": 0, "seed": -1}), 422)
    assert "steps: " in error["message"]
    assert "seed: " in error["message"]


def test_files_that_are_not_there_are_found_at_submission(http: httpx.Client) -> None:
    missing = {**SPEC, "init_checkpoint": "/no/such/checkpoint"}
    assert assert_error(http.post("/v1/jobs", json=missing), 422)["param"] == "init_checkpoint"


@pytest.mark.parametrize("declared", [True, False])
def test_a_large_body_is_413_also_without_a_length(http: httpx.Client, declared: bool) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * 65536

    content = b" " * (40 * 65536) if declared else chunks()
    response = http.post("/v1/jobs", content=content, headers={"content-type": "application/json"})
    assert assert_error(response, 413)["code"] == "body_too_large"


def test_unknown_and_wrong_query_parameters_are_refused(http: httpx.Client) -> None:
    assert assert_error(http.get("/v1/jobs?limt=3"), 422)["param"] == "limt"
    for query in ("limit=0", "limit=101", f"limit={SECRET}", "status=asleep", "after=job-0", "after=..%2F"):
        assert_error(http.get(f"/v1/jobs?{query}"), 422)


# -- jobs ---------------------------------------------------------------------------------------------------


def test_a_job_is_accepted_and_found_again(http: httpx.Client, client: Client) -> None:
    response = http.post("/v1/jobs", json=SPEC)
    assert response.status_code == 201
    job = client.job(response.json()["id"])
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["status"], job["step"], job["total_steps"]) == ("queued", 0, 4)
    assert job["spec"]["estimator"] == {"name": "gdpo", "std_floor": job["spec"]["estimator"]["std_floor"]}
    assert "fence" not in job
    assert next(client.iter_jobs())["id"] == job["id"]


def test_validate_only_says_what_would_run_and_stores_nothing(client: Client) -> None:
    before = len(list(client.iter_jobs()))
    plan = client.plan(SPEC)
    assert plan["valid"] is True
    assert plan["rollouts"] == 4 * plan["rollouts_per_step"]
    assert plan["spec"]["optimizer"]["lr"] > 0
    assert len(list(client.iter_jobs())) == before


def test_validate_only_says_what_it_would_take(http: httpx.Client, client: Client) -> None:
    estimate = client.plan(SPEC)["estimate"]
    assert estimate["parameters"] == 656_064
    on_gpus, on_cpu = estimate["layouts"]
    assert [(layout["device"], layout["gpus"], layout["fits"]) for layout in (on_gpus, on_cpu)] == [
        ("cuda", 2, True), ("cpu", 0, None),
    ]  # fmt: skip
    assert on_gpus["gpu_bytes"] == 48 * 2**30  # as this server is told
    for layout in (on_gpus, on_cpu):
        assert layout["bytes"] == sum(found["count"] * found["bytes"] for found in layout["processes"])
        assert all(sum(found["parts"].values()) == found["bytes"] for found in layout["processes"])

    (shared,) = client.plan(SPEC, gpus=1, gpu_gib=24)["estimate"]["layouts"]
    assert (shared["gpus"], shared["shared"], shared["gpu_bytes"]) == (1, True, 24 * 2**30)
    for wrong in ({"gpus": "-1"}, {"gpu_gib": "nan"}, {"gpu_gib": "0"}, {"gpu_gib": "1e999"}):
        refused = http.post("/v1/jobs", json=SPEC, params={"validate_only": "true", **wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, next(iter(wrong)))


def test_one_idempotency_key_makes_one_job(client: Client) -> None:
    key = uuid.uuid4().hex
    with ThreadPoolExecutor(8) as threads:
        ids = {job["id"] for job in threads.map(lambda _: submit_once(client.url, key), range(8))}
    assert len(ids) == 1
    with pytest.raises(ApiError) as caught:
        client.submit({**SPEC, "steps": 5}, idempotency_key=key)
    assert (caught.value.status, caught.value.code) == (409, "idempotency_conflict")


def submit_once(url: str, key: str) -> dict[str, Any]:
    with Client(url, KEY) as client:
        return client.submit(SPEC, idempotency_key=key)


def test_a_replay_says_so(http: httpx.Client) -> None:
    headers = {"idempotency-key": uuid.uuid4().hex}
    replayed = [http.post("/v1/jobs", json=SPEC, headers=headers).headers["idempotent-replayed"] for _ in range(2)]
    assert replayed == ["false", "true"]


def test_a_replay_is_the_first_answer_to_the_byte(http: httpx.Client, client: Client, tmp_path: Path) -> None:
    """Although the job has gone on, and its files are gone."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "p", "answer": "1"}\n')
    data = {"type": "files", "train": str(rows), "validation": str(rows)}
    spec = {**SPEC, "data": data, "policy": {"model": "some/model"}}
    headers = {"idempotency-key": uuid.uuid4().hex}
    first = http.post("/v1/jobs", json=spec, headers=headers)
    assert first.status_code == 201
    client.cancel(first.json()["id"])
    rows.unlink()
    again = http.post("/v1/jobs", json=spec, headers=headers)
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["location"] == first.headers["location"]
    assert client.job(first.json()["id"])["status"] == "cancelled"
    changed = http.post("/v1/jobs", json={**spec, "steps": 5}, headers=headers)
    assert assert_error(changed, 409)["code"] == "idempotency_conflict"
    assert http.post("/v1/jobs", json=spec).status_code == 422


@pytest.mark.parametrize("key", ["", "x" * 256, "with space"])
def test_a_bad_idempotency_key_is_refused(http: httpx.Client, key: str) -> None:
    assert_error(http.post("/v1/jobs", json=SPEC, headers={"idempotency-key": key}), 422)


def test_jobs_are_paged_newest_first(client: Client) -> None:
    made = [client.submit(SPEC)["id"] for _ in range(5)]
    first = client.jobs(limit=2)
    second = client.jobs(limit=2, after=first["data"][-1]["id"])
    assert [job["id"] for job in first["data"] + second["data"]] == made[:0:-1]
    assert first["has_more"] is True


def test_a_priority_puts_a_job_before_its_owners_others(http: httpx.Client, client: Client, store: JobStore) -> None:
    first, urgent = client.submit(SPEC), client.submit({**SPEC, "priority": 3})
    assert (first["priority"], urgent["priority"]) == (0, 3)
    waiting = store.queued()
    assert waiting.index(urgent["id"]) < waiting.index(first["id"])
    client.pause(urgent["id"])
    client.resume(urgent["id"])
    assert store.queued() == waiting
    for wrong in (6, -6, 0.5, "3", True):
        error = assert_error(http.post("/v1/jobs", json={**SPEC, "priority": wrong}), 422)
        assert error["param"] == "priority"
    for job in (first, urgent):
        client.cancel(job["id"])


def test_pause_resume_cancel_follow_the_table(client: Client, job_id: str) -> None:
    assert client.pause(job_id)["status"] == "paused"
    assert client.resume(job_id)["status"] == "queued"
    assert client.cancel(job_id)["status"] == "cancelled"
    assert client.cancel(job_id)["status"] == "cancelled"
    with pytest.raises(ApiError) as caught:
        client.resume(job_id)
    assert (caught.value.status, caught.value.code) == (409, "illegal_transition")


def test_a_pause_says_at_which_checkpoint(http: httpx.Client, client: Client, store: JobStore, job_id: str) -> None:
    lease = claim(store, job_id)
    for body, save in (({"checkpoint": "latest"}, False), ({"checkpoint": "save"}, True), ({}, True)):
        assert http.post(f"/v1/jobs/{job_id}/pause", json=body).json()["status"] == "pausing"
        assert store.renew(lease, 30).save is save
    client.pause(job_id, checkpoint="latest")
    assert store.renew(lease, 30).save is False
    for body in ({"checkpoint": "now"}, {"checkpoint": None}, {"save": True}, [], "latest", 1):
        assert_error(http.post(f"/v1/jobs/{job_id}/pause", json=body), 422)


# -- events -------------------------------------------------------------------------------------------------


def read_stream(http: httpx.Client, job_id: str, **headers: str) -> list[dict[str, Any]]:
    with http.stream(
        "GET", f"/v1/jobs/{job_id}/events", headers={"accept": "text/event-stream", **headers}
    ) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = list(response.iter_lines())
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    ids = [int(line.removeprefix("id: ")) for line in lines if line.startswith("id: ")]
    assert [event["seq"] for event in data] == ids
    return data


def test_events_page_without_gap(client: Client, store: JobStore, job_id: str) -> None:
    for i in range(7):
        store.event(job_id, "test", {"i": i})
    first = client.events(job_id, limit=5)
    rest = client.events(job_id, after=first["data"][-1]["seq"], limit=5)
    assert [event["seq"] for event in first["data"] + rest["data"]] == list(range(1, 9))
    assert (first["has_more"], rest["has_more"]) == (True, False)


def test_the_stream_follows_a_job_to_its_end(http: httpx.Client, store: JobStore, job_id: str) -> None:
    def live() -> None:
        time.sleep(0.3)
        for i in range(150):
            store.event(job_id, "test", {"i": i})
        store.request_cancel(job_id)

    thread = threading.Thread(target=live)
    thread.start()
    events = read_stream(http, job_id)
    thread.join()
    assert [event["seq"] for event in events] == list(range(1, 153))
    assert events[-1]["type"] == "job.cancelled"


def test_last_event_id_is_the_cursor(http: httpx.Client, store: JobStore, job_id: str) -> None:
    for i in range(5):
        store.event(job_id, "test", {"i": i})
    store.request_cancel(job_id)
    assert [event["seq"] for event in read_stream(http, job_id, **{"last-event-id": "4"})] == [5, 6, 7]
    done = http.get(f"/v1/jobs/{job_id}/events", headers={"accept": "text/event-stream", "last-event-id": "7"})
    assert done.status_code == 204
    for wrong in ("x", "-1", "1" * 40, "٣"):
        headers = {"accept": "text/event-stream", "last-event-id": wrong.encode()}
        assert_error(http.get(f"/v1/jobs/{job_id}/events", headers=headers), 422)


def test_a_stream_ends_when_the_server_stops(store: JobStore, tmp_path: Path) -> None:
    job_id = f"job-{uuid.uuid4().hex}"
    store.submit(json.dumps(SPEC), name="x", job_id=job_id)
    headers = {"authorization": f"Bearer {KEY}", "accept": "text/event-stream"}
    with serving(store, tmp_path) as server, httpx.Client(base_url=server.url, headers=headers) as http:
        stopper = threading.Timer(0.5, server.stop)
        with http.stream("GET", f"/v1/jobs/{job_id}/events") as response:
            stopper.start()
            started = time.monotonic()
            assert any(line.startswith("data") for line in response.iter_lines())
        stopper.join()
    assert time.monotonic() - started < 20


# -- steering -----------------------------------------------------------------------------------------------


def test_a_steer_names_the_step_at_which_it_takes_effect(client: Client, store: JobStore, job_id: str) -> None:
    lease = claim(store, job_id)
    for step in (1, 2, 3):
        store.commit(lease, step=step, digest=str(step), record=step_record())
    done = client.steer(job_id, weights={"accuracy": 3, "conciseness": 1}, mode="manual")
    assert done == {"version": 2, "effective_step": 5}  # step 4 is in flight
    steering = client.steering(job_id)
    assert steering["weights"] == {"accuracy": 0.75, "conciseness": 0.25}
    assert (steering["mode"], steering["blend"], steering["version"]) == ("manual", 0.5, 2)
    assert steering["strategy"] == {"accuracy": 0.7, "conciseness": 0.3}
    assert [entry["version"] for entry in steering["log"]] == [1, 2]
    assert steering["log"][1]["by"].startswith("key ")


def test_the_log_of_the_steering_comes_in_pages(http: httpx.Client, client: Client, job_id: str) -> None:
    for i in range(6):
        client.steer(job_id, blend=i / 10)
    newest = client.steering(job_id, log_limit=3)
    assert ([entry["version"] for entry in newest["log"]], newest["log_has_more"]) == ([5, 6, 7], True)
    older = client.steering(job_id, log_before=newest["log"][0]["version"])
    assert ([entry["version"] for entry in older["log"]], older["log_has_more"]) == ([1, 2, 3, 4], False)
    assert (older["version"], older["blend"]) == (7, 0.5)
    assert client.steering(job_id, log_limit=0)["log"] == []
    for query in ("log_limit=101", "log_before=0", "log_before=x", "log=1"):
        assert_error(http.get(f"/v1/jobs/{job_id}/steering?{query}"), 422)


def test_a_steer_in_the_last_step_is_too_late(client: Client, store: JobStore, job_id: str) -> None:
    lease = claim(store, job_id)
    store.set_total_steps(lease, 2)
    store.commit(lease, step=1, digest="1", record=step_record())
    with pytest.raises(ApiError, match="in flight") as caught:
        client.steer(job_id, blend=0.1)
    assert (caught.value.status, caught.value.code) == (409, "too_late")
    assert client.steering(job_id)["version"] == 1


def test_a_stale_version_is_412(http: httpx.Client, client: Client, job_id: str) -> None:
    path = f"/v1/jobs/{job_id}/steering"
    etag = http.get(path).headers["etag"]
    first = http.put(path, json={"mode": "manual"}, headers={"if-match": etag})
    assert (first.status_code, first.headers["etag"]) == (202, '"2"')
    error = assert_error(http.put(path, json={"mode": "auto"}, headers={"if-match": etag}), 412)
    assert (error["code"], error["param"]) == ("stale_version", "If-Match")
    assert http.put(path, json={"mode": "auto"}, headers={"if-match": "*"}).status_code == 202
    assert_error(http.put(path, json={"mode": "auto"}, headers={"if-match": "soon"}), 422)
    assert client.steering(job_id)["version"] == 3


def test_of_many_writers_to_one_version_one_wins(client: Client, job_id: str) -> None:
    def write(i: int) -> int:
        with Client(client.url, KEY) as mine:
            try:
                return int(mine.steer(job_id, if_match=1, blend=i / 100)["version"])
            except ApiError as error:
                return error.status

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(write, range(12)))
    assert sorted(answers) == [2] + [412] * 11


def test_writers_without_a_version_all_get_one_of_their_own(client: Client, job_id: str) -> None:
    def write(i: int) -> int:
        with Client(client.url, KEY) as mine:
            return int(mine.steer(job_id, bounds={"accuracy" if i % 2 else "conciseness": [0.1, 0.9]})["version"])

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(write, range(8))) == list(range(2, 10))
    assert client.steering(job_id)["bounds"] == {"accuracy": [0.1, 0.9], "conciseness": [0.1, 0.9]}


BAD_STEERS = {
    "unknown objective": {"weights": {"acuracy": 1, "conciseness": 1}},
    "missing objective": {"weights": {"accuracy": 1}},
    "negative": {"weights": {"accuracy": -1, "conciseness": 1}},
    "all zero": {"weights": {"accuracy": 0, "conciseness": 0}},
    "true": {"weights": {"accuracy": True, "conciseness": 1}},
    "text": {"weights": {"accuracy": "0.5", "conciseness": 1}},
    "huge": {"weights": {"accuracy": 1e308, "conciseness": 1e308}},
    "huge integer": {"weights": {"accuracy": 10**400, "conciseness": 1}},
    "weights in a list": {"weights": [1, 2]},
    "no weights": {"weights": {}},
    "null": {"mode": None},
    "unknown mode": {"mode": SECRET},
    "unknown field": {"wieghts": {"accuracy": 1}},
    "blend above 1": {"blend": 1.5},
    "floor above ceiling": {"bounds": {"accuracy": [0.9, 0.1]}},
    "infeasible floors": {"bounds": {"accuracy": [0.7, 1], "conciseness": [0.7, 1]}},
    "infeasible ceilings": {"bounds": {"accuracy": [0, 0.2], "conciseness": [0, 0.2]}},
    "three bounds": {"bounds": {"accuracy": [0, 0.5, 1]}},
    "bounds in a list": {"bounds": [[0, 1]]},
    "nothing": {},
    "a list": [],
}


@pytest.mark.parametrize("case", BAD_STEERS)
def test_bad_steers_are_refused_and_leave_no_version(
    http: httpx.Client, client: Client, job_id: str, case: str
) -> None:
    response = http.put(f"/v1/jobs/{job_id}/steering", json=BAD_STEERS[case])
    assert assert_error(response, 422)["code"] == "invalid_steering"
    assert client.steering(job_id)["version"] == 1


def test_a_job_that_is_over_is_not_steered(client: Client, job_id: str) -> None:
    client.cancel(job_id)
    with pytest.raises(ApiError) as caught:
        client.steer(job_id, mode="auto")
    assert (caught.value.status, caught.value.code) == (409, "job_over")


# -- results ------------------------------------------------------------------------------------------------


def test_metrics_page_and_what_is_not_finite_is_null(client: Client, store: JobStore, job_id: str) -> None:
    lease = claim(store, job_id)
    for step in (1, 2, 3):
        store.commit(lease, step=step, digest=str(step), record=step_record(step / 10))
    first = client.metrics(job_id, limit=2)
    assert [record["step"] for record in first["data"]] == [1, 2]
    assert first["has_more"] is True
    assert first["data"][0]["loss"] is None
    assert "fence" not in first["data"][0]
    assert [record["step"] for record in client.metrics(job_id, after=2)["data"]] == [3]
    some = list(client.iter_metrics(job_id, after=1, names=["loss", "objectives", "fence", "no such field"]))
    objectives = {"accuracy": {"mean": 0.2, "std": 0.1, "zero_share": 0.0}}
    assert some[0] == {"step": 2, "loss": None, "objectives": objectives}
    assert client.metrics(job_id, names=[])["data"] == [{"step": step} for step in (1, 2, 3)]


def test_the_front_is_empty_and_then_what_the_driver_wrote(client: Client, store: JobStore, job_id: str) -> None:
    assert client.front(job_id)["points"] == []
    store.set_front(claim(store, job_id), {"points": [{"step": 0}], "hypervolume": 0.5})
    assert client.front(job_id)["hypervolume"] == 0.5


def test_a_checkpoint_is_verified_and_exported(client: Client, store: JobStore, job_id: str, tmp_path: Path) -> None:
    def fill(directory: Path) -> None:
        (directory / "policy").mkdir()
        (directory / "policy" / "config.json").write_text("{}")

    lease = claim(store, job_id)
    store.commit(lease, step=1, digest="1", record=step_record())
    path, manifest = write_checkpoint(tmp_path / "checkpoints", step=1, fence=lease.fence, fill=fill)
    store.register_checkpoint(lease, step=1, path=str(path), digest=manifest.digest)
    assert [found["step"] for found in client.checkpoints(job_id)["data"]] == [1]

    target = tmp_path / "exported" / "model"
    assert client.export(job_id, 1, str(target))["path"] == str(target)
    assert (target / "config.json").read_text() == "{}"

    (path / "policy" / "config.json").write_text("{ }")
    for step, directory, status in ((1, target, 409), (1, tmp_path / "other", 409), (2, tmp_path / "other", 425)):
        with pytest.raises(ApiError) as caught:
            client.export(job_id, step, str(directory))
        assert caught.value.status == status
    assert not (tmp_path / "other").exists()
    store.finish(lease, JobStatus.FAILED, "broke")
    with pytest.raises(ApiError, match="no checkpoint") as caught:  # and there never will be
        client.export(job_id, 2, str(tmp_path / "other"))
    assert caught.value.status == 404


def test_a_checkpoint_is_downloaded_as_it_was_made(
    client: Client, http: httpx.Client, store: JobStore, job_id: str, tmp_path: Path
) -> None:
    weights = secrets.token_bytes(3 * 2**20 + 17)  # neither a whole number of chunks nor of blocks

    def fill(directory: Path) -> None:
        (directory / "policy" / "nested").mkdir(parents=True)
        (directory / "policy" / "config.json").write_text("{}")
        (directory / "policy" / "model.safetensors").write_bytes(weights)
        (directory / "policy" / "nested" / ("n" * 150)).write_bytes(b"")
        (directory / "learner.safetensors").write_bytes(b"not for others")

    lease = claim(store, job_id)
    store.commit(lease, step=1, digest="1", record=step_record())
    path, manifest = write_checkpoint(tmp_path / "checkpoints", step=1, fence=lease.fence, fill=fill)
    store.register_checkpoint(lease, step=1, path=str(path), digest=manifest.digest)

    with tarfile.open(client.download(job_id, 1, tmp_path / "one.tar")) as archive:
        archive.extractall(tmp_path / "here", filter="data")
    folder = tmp_path / "here" / f"{job_id}-step-1"
    found = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert found == {"config.json": b"{}", "model.safetensors": weights, f"nested/{'n' * 150}": b""}
    client.download(job_id, 1, tmp_path / "two.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()

    with http.stream("GET", f"/v1/jobs/{job_id}/checkpoints/1/download") as answer:  # begun, then retired
        shutil.rmtree(path)
        assert len(answer.read()) == int(answer.headers["content-length"]) == (tmp_path / "one.tar").stat().st_size
    error = assert_error(http.get(f"/v1/jobs/{job_id}/checkpoints/1/download"), 409)
    assert str(tmp_path) not in error["message"]
    assert_error(http.get(f"/v1/jobs/{job_id}/checkpoints/2/download"), 425)
    assert_error(http.get(f"/v1/jobs/{job_id}/checkpoints/0/download"), 404)


@pytest.mark.parametrize("to", ["relative/path", "", 5, None, "/nul\x00"])
def test_an_export_needs_an_absolute_path(http: httpx.Client, job_id: str, to: Any) -> None:
    assert_error(http.post(f"/v1/jobs/{job_id}/checkpoints/1/export", json={"to": to}), 422)


def test_exports_are_the_operators_choice(store: JobStore, tmp_path: Path) -> None:
    with serving(store, tmp_path, local_exports=False) as server, Client(server.url, KEY) as client:
        job_id = client.submit(SPEC)["id"]
        with pytest.raises(ApiError) as caught:
            client.export(job_id, 1, str(tmp_path / "x"))
        assert (caught.value.status, caught.value.code) == (403, "exports_disabled")


def test_rewards_are_listed_with_their_options(client: Client) -> None:
    rewards = {reward["name"]: reward for reward in client.rewards()["data"]}
    assert {"math", "conciseness", "clarity"} <= rewards.keys()
    assert rewards["clarity"]["options"]["type"] == "object"


def test_rules_are_listed_by_kind(http: httpx.Client) -> None:
    everything = http.get("/v1/rules").json()
    assert (everything["object"], everything["has_more"]) == ("list", False)
    assert {"gdpo", "gramian:upgrad", "clip", "refill", "knapsack", "sketch"} <= {r["name"] for r in everything["data"]}
    budgets = http.get("/v1/rules", params={"kind": "budget"}).json()["data"]
    assert [rule["name"] for rule in budgets] == ["uniform", "knapsack"]
    assert assert_error(http.get("/v1/rules", params={"kind": "x"}), 422)["param"] == "kind"
    assert assert_error(http.get("/v1/rules", params={"kin": "x"}), 422)["code"] == "unknown_parameter"


def test_a_rule_is_shown_with_its_options(http: httpx.Client) -> None:
    (rule,) = http.get("/v1/rules/gramian:cagrad").json()["data"]
    assert (rule["kind"], rule["needs"]) == ("weighting", ["gramian"])
    assert rule["options"][0].keys() == {"name", "required", "default", "allowed", "description"}
    assert rule["example"].startswith("weighting:")


@pytest.mark.parametrize("name", ["gradent", "%00", "é", "a" * 300])
def test_an_unknown_rule_is_404(http: httpx.Client, name: str) -> None:
    message = assert_error(http.get(f"/v1/rules/{name}"), 404)["message"]
    assert name != "gradent" or "did you mean 'gradient'" in message


def test_a_rule_whose_plugin_is_broken_is_named(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_name: str) -> None:
        raise RuntimeError("the plug-in for weighting 'absent' (no_such_module:Rule) does not load")

    monkeypatch.setattr(rules_api, "find_rules", broken)
    error = assert_error(http.get("/v1/rules/absent"), 500)
    assert error["code"] == "plugin_broken"
    assert "no_such_module" in error["message"]


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/fine_tuning/jobs"])
@pytest.mark.parametrize("action", ["cancel", "resume"])
def test_a_body_that_says_something_is_not_swallowed(http: httpx.Client, job_id: str, path: str, action: str) -> None:
    http.post(f"{path}/{job_id}/pause").raise_for_status()
    url = f"{path}/{job_id}/{action}"
    for body in ({"checkpoint": "latest"}, [], False, 0, "now"):
        error = assert_error(http.post(url, json=body), 422)
    assert_error(http.post(url, content=b"{", headers={"content-type": "application/json"}), 400)
    assert http.get(f"/v1/jobs/{job_id}").json()["status"] == "paused"
    error = assert_error(http.post(url, json={"checkpoint": "latest"}), 422)
    assert error["param"] == "checkpoint"
    assert http.post(url, json={}).status_code == 200


def test_a_pause_of_the_other_api_takes_no_body_either(http: httpx.Client, job_id: str) -> None:
    url = f"/v1/fine_tuning/jobs/{job_id}/pause"
    assert_error(http.post(url, json={"checkpoint": "latest"}), 422)
    assert http.get(f"/v1/jobs/{job_id}").json()["status"] == "queued"
    empty = http.post(url, content=b"", headers={"content-type": "application/json"})  # as the openai package does
    assert (empty.status_code, empty.json()["status"]) == (200, "paused")


def test_the_docs_are_a_page_that_loads_nothing(http: httpx.Client, server: ApiServer) -> None:
    page = http.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    for word in ("<script", "<link", "src=", 'href="http', "href='http", 'href="//', "url(", "@import"):
        assert word not in page.text
    for path, methods in http.get("/openapi.json").json()["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in page.text
    assert httpx.get(f"{server.url}/docs").status_code == 401


def test_openapi_documents_the_spec(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert "objectives" in schemas["JobSpec"]["properties"]
    text = json.dumps(document)
    references = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert references <= schemas.keys()
    assert "#/$defs/" not in text


# -- when Redis is away -------------------------------------------------------------------------------------


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[tuple[EmbeddedRedis, ApiServer]]:
    with EmbeddedRedis(tmp_path / "redis") as redis:
        connection = connect(redis.url)
        with serving(JobStore(connection), tmp_path) as server:
            yield redis, server
        connection.close()


def assert_unavailable(server: ApiServer, job_id: str) -> None:
    calls = [
        ("GET", "/readyz", None),
        ("GET", "/v1/jobs", None),
        ("GET", f"/v1/jobs/{job_id}/steering", None),
        ("POST", "/v1/jobs", SPEC),
        ("PUT", f"/v1/jobs/{job_id}/steering", {"mode": "manual"}),
    ]
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=10) as http, ThreadPoolExecutor(5) as threads:
        started = time.monotonic()
        responses = list(threads.map(lambda call: http.request(call[0], call[1], json=call[2]), calls))
        assert time.monotonic() - started < 8
        for response in responses:
            assert assert_error(response, 503)["code"] == "store_unavailable"
            assert int(response.headers["retry-after"]) > 0
        assert http.get("/livez").status_code == 200


def test_a_redis_that_is_gone_is_503_in_time(fragile: tuple[EmbeddedRedis, ApiServer]) -> None:
    redis, server = fragile
    with Client(server.url, KEY) as client:
        job_id = client.submit(SPEC)["id"]
        redis.stop()
        assert_unavailable(server, job_id)
        with EmbeddedRedis(redis.directory):
            assert client.job(job_id)["status"] == "queued"  # what was acknowledged is still there


def test_a_redis_that_is_frozen_is_503_in_time_and_streams_outlive_it(
    fragile: tuple[EmbeddedRedis, ApiServer],
) -> None:
    redis, server = fragile
    assert redis.pid is not None
    headers = {"authorization": f"Bearer {KEY}", "accept": "text/event-stream"}
    with Client(server.url, KEY) as client, httpx.Client(base_url=server.url, headers=headers, timeout=30) as http:
        job_id = client.submit(SPEC)["id"]
        with http.stream("GET", f"/v1/jobs/{job_id}/events") as response:
            lines = response.iter_lines()
            assert next(lines) == "event: job.queued"
            os.kill(redis.pid, signal.SIGSTOP)
            try:
                assert_unavailable(server, job_id)
            finally:
                os.kill(redis.pid, signal.SIGCONT)
            client.cancel(job_id)
            assert "event: job.cancelled" in list(lines)


def test_a_port_that_is_taken_is_one_clear_line(server: ApiServer) -> None:
    with pytest.raises(ServerError, match=f"can't listen on 127.0.0.1:{server.port}: Address already in use"):
        ApiServer("127.0.0.1", server.port)
