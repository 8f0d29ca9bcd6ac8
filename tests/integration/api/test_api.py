"""The API on a real Redis behind a real socket: who may ask, what is no request, and what it says without Redis."""

import gzip
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.state.embedded_redis import EmbeddedRedis, connect
from orchestrator.state.store import JobStore
from services.auth import PUBLIC_PATHS
from services.client import Client
from services.server import ApiServer, ServerError
from services.version import version
from tests.api_support import KEY, SECRET, SPEC, assert_error, serving

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
    assert response.headers["allow"] == "GET, HEAD, POST"
    assert http.put("/v1/jobs/job-1").headers["allow"] == "DELETE, GET, HEAD"
    assert http.delete("/livez").headers["allow"] == "GET, HEAD"


def test_head_is_get_without_a_body(http: httpx.Client, job_id: str, server: ApiServer) -> None:
    for path in (
        "/livez",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/v1/jobs",
        f"/v1/jobs/{job_id}",
        "/nope",
        "/v1/keys?x",
    ):
        told, head = http.get(path), http.head(path)
        assert (head.status_code, head.content) == (told.status_code, b""), path
        for name in ("content-type", "etag"):
            assert head.headers.get(name) == told.headers.get(name)
        assert (told.headers["content-length"] == head.headers["content-length"]) or path == "/metrics"
    assert assert_error(http.post("/livez"), 405)
    assert http.head("/v1/jobs/job-1/cancel").status_code == 405
    assert httpx.head(f"{server.url}/v1/jobs").status_code == 401
    began = time.monotonic()
    stream = http.head(f"/v1/jobs/{job_id}/events", headers={"accept": "text/event-stream"})
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.content == b""
    assert time.monotonic() - began < 5
    assert http.get("/livez").status_code == 200


def test_the_version_is_for_those_who_show_a_key(http: httpx.Client) -> None:
    for path, status in (("/readyz", 200), ("/v1/jobs/none", 404)):
        answer = http.get(path)
        assert (answer.status_code, answer.headers["equipoise-version"]) == (status, version())
    for path in ("/livez", "/v1/jobs"):
        assert "equipoise-version" not in http.get(path, headers={"authorization": "Bearer eqp_wrong"}).headers


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


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/datasets?name=x&format=jsonl"])
def test_a_compressed_body_is_named_as_such(http: httpx.Client, path: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    error = assert_error(http.post(path, content=gzip.compress(body()), headers=headers), 415)
    assert (error["code"], error["param"]) == ("unsupported_encoding", "Content-Encoding")


def test_a_byte_order_mark_is_named_as_such(http: httpx.Client) -> None:
    content = b"\xef\xbb\xbf" + json.dumps(SPEC).encode()
    error = assert_error(http.post("/v1/jobs", content=content, headers={"content-type": "application/json"}), 400)
    assert "byte order mark" in error["message"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_of_another_media_type_is_refused(http: httpx.Client, content_type: str) -> None:
    assert_error(http.post("/v1/jobs", content=body(), headers={"content-type": content_type}), 422)


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


@pytest.mark.parametrize(
    ("path", "param", "message"),
    [
        ("/v1/jobs?limt=3", "limt", "limt: unknown parameter, did you mean 'limit'?"),
        ("/v1/jobs/{job}?x=1", "x", "x: unknown parameter; this takes none"),
        ("/v1/jobs/{job}/checkpoints?x=1", "x", "x: unknown parameter; this takes none"),
        ("/v1/jobs/{job}/checkpoints?limit=1", "limit", "limit: unknown parameter; this takes none"),
        ("/v1/jobs/{job}/events?limit=1&steps=1", "steps", "steps: unknown parameter; there are after, limit"),
        (
            "/v1/jobs/{job}/metrics?metadata[a]=1",
            "metadata[a]",
            "metadata[a]: unknown parameter; there are after, limit, names",
        ),
        ("/v1/models?limit=1", "limit", "limit: unknown parameter; this takes none"),
        ("/v1/jobs?limit=1&limit=2", "limit", "limit: given twice; give it once"),
        ("/v1/jobs?metadata[a]=1&metadata[a]=2", "metadata[a]", "metadata[a]: given twice; give it once"),
    ],
)
def test_what_a_route_would_pass_over_is_refused(
    http: httpx.Client, job_id: str, path: str, param: str, message: str
) -> None:
    error = assert_error(http.get(path.replace("{job}", job_id)), 422)
    assert error["code"] == ("invalid_parameter" if "twice" in message else "unknown_parameter")
    assert error["param"] == param
    assert error["message"].startswith(message)


def test_parameters_that_are_known_are_taken(http: httpx.Client) -> None:
    """Clients of the fine-tuning API may send what it does not have."""
    for query in ("limit=1&metadata[a]=1&metadata[b]=2", ""):
        assert http.get(f"/v1/jobs?{query}").status_code == 200
    assert http.get("/v1/fine_tuning/jobs?limit=1&order=desc").status_code == 200


# -- what it says of itself ---------------------------------------------------------------------------------


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
    for path in ("/v1/jobs", "/v1/fine_tuning/jobs"):  # by metadata they take a place
        assert "429" in document["paths"][path]["get"]["responses"]


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
