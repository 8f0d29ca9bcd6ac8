"""API keys on a real Redis behind a real socket: none, wrong, expired and revoked ones, and those of streams."""

import threading
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Send
from starlette.types import Scope as Asgi
from starlette.websockets import WebSocket, WebSocketDisconnect

from orchestrator.state.embedded_redis import EmbeddedRedis, connect
from orchestrator.state.keystore import KeyStore, Scope
from orchestrator.state.redis_calls import RedisCalls
from orchestrator.state.store import JobStore
from services.app import create_app
from services.auth import PUBLIC_PATHS, RecentKeys, RequireKey
from services.keys import digest, new_key, new_stored_key
from services.own_key import OwnKey
from services.settings import Settings
from tests.keys_support import OPERATOR, SPEC, Place, declared, error_of, fill, serving, settings

# -- without a key, and with one that does not count ---------------------------------------------------------


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_every_route_but_livez_is_401_without_a_key(place: Place, tmp_path: Path, accept: str) -> None:
    with place.http(None, accept=accept) as http:
        for method, path in [*declared(tmp_path, place.client), ("GET", "/docs"), ("GET", "/redoc"), ("PATCH", "/x")]:
            answer = http.request(method, fill(path))
            if path in PUBLIC_PATHS:
                assert answer.status_code == 200
            else:
                assert error_of(answer, 401)["type"] == "authentication_error", (method, path)
                assert answer.headers["www-authenticate"] == "Bearer"


def test_a_websocket_without_a_key_that_may_is_closed(place: Place, tmp_path: Path) -> None:
    app = create_app(JobStore(place.client), settings(tmp_path))

    @app.websocket("/v1/socket")
    async def socket(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("reached")

    client = TestClient(app)
    for key in ("eqp_wrong", place.key("read", "submit", "steer")):  # nobody declared the scope: it needs admin
        headers = {"authorization": f"Bearer {key}"}
        with pytest.raises(WebSocketDisconnect) as caught, client.websocket_connect("/v1/socket", headers=headers):
            pass
        assert caught.value.code == 1008
    headers = {"authorization": f"Bearer {place.key('admin')}"}
    with client.websocket_connect("/v1/socket", headers=headers) as connection:
        assert connection.receive_text() == "reached"


def test_the_metrics_key_is_good_for_metrics_alone(place: Place, tmp_path: Path) -> None:
    key = new_key()
    app = create_app(JobStore(place.client), settings(tmp_path).model_copy(update={"metrics_key_sha256": digest(key)}))
    client = TestClient(app, headers={"authorization": f"Bearer {key}"})
    figures = client.get("/metrics")
    assert figures.status_code == 200
    assert "equipoise_requests_total" in figures.text  # what the installation's own key sees
    for method, path in declared(tmp_path, place.client):
        if path not in (*PUBLIC_PATHS, "/metrics"):
            assert client.request(method, fill(path)).status_code == 401, (method, path)
    assert client.post("/metrics").status_code == 401


def test_probes_of_readiness_ask_redis_once_a_second(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the operator says so, whoever reaches it may call it without a key, however often."""
    store = JobStore(place.client)
    assert TestClient(create_app(store, settings(tmp_path))).get("/readyz").status_code == 401
    app = create_app(store, settings(tmp_path).model_copy(update={"keyless_probes": True}))
    clock, asked = SimpleNamespace(now_s=0.0), []
    monkeypatch.setattr("services.readiness.time", SimpleNamespace(monotonic=lambda: clock.now_s))
    app.state.readiness._ask = lambda: asked.append(clock.now_s)
    client = TestClient(app)
    for moment_s in (0.0, 0.0, 0.9, 1.1, 1.2, 2.0, 2.2):
        clock.now_s = moment_s
        assert client.get("/readyz").status_code == 200
    assert asked == [0.0, 1.1, 2.2]
    assert client.get("/readyz", headers={"authorization": "Bearer eqp_wrong"}).status_code == 401
    assert client.post("/readyz").status_code == 401


def test_a_401_says_whether_a_key_was_shown_and_no_more(place: Place) -> None:
    """What was wrong with it would tell which keys there are, or were."""
    expired, revoked = place.make("read", expires_in_s=1), place.make("read")
    with place.http() as http:
        http.delete(f"/v1/keys/{revoked['id']}")
    time.sleep(1.1)
    shown = [f"Bearer {key}" for key in (expired["key"], revoked["key"], new_stored_key()[1], "eqp_", "x")]
    said = {}
    with place.http(None) as http:
        for header in (*shown, "", "Bearer", "Basic eA=="):
            answer = http.get("/v1/jobs", headers={"authorization": header})
            said[header] = error_of(answer, 401)["message"].partition("; ")[0]
    assert {said.pop(header) for header in shown} == {"this key is unknown, expired or revoked"}
    assert set(said.values()) == {"this needs the header 'Authorization: Bearer <key>'"}


def test_malformed_and_unknown_keys_are_401(place: Place) -> None:
    made = place.make("read")
    key_id, text = made["id"], made["key"]
    unknown_id, unknown = new_stored_key()
    assert unknown_id != key_id
    cases = [
        "eqp_", "eqp__", f"eqp_{key_id}", f"eqp_{key_id}_", f"eqp_{key_id}_short", text[:-1], text + "x", text[4:],
        text.upper(), f"EQP{text[3:]}", text.replace(key_id, unknown_id), unknown, f"{text} {text}", "eqp_*_*",
        f"eqp_{key_id}_{'*' * 43}", f"eqp_{'g' * 16}_{'a' * 43}", digest(text), OPERATOR[:-1], "x" * 4000, new_key(),
    ]  # fmt: skip
    for case in cases:
        assert place.status(case) == 401, case
    last = "a" if text[-1] != "a" else "b"
    assert place.status(text[:-1] + last) == 401
    assert place.status(text) == 200


def test_an_expired_key_is_401(place: Place) -> None:
    """Where it was good a moment before; that one who is known of late expires is asserted below."""
    made = place.make("read", expires_in_s=3600)
    assert place.status(made["key"]) == 200
    place.client.hset(f"mo:key:{made['id']}", "expires_at", f"{time.time() - 1:.6f}")
    deadline = time.monotonic() + 30
    while place.status(made["key"]) == 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert place.status(made["key"]) == 401


def test_a_revoked_key_is_401_at_once_and_for_good(place: Place) -> None:
    made = place.make("read")
    assert place.status(made["key"]) == 200
    with place.http() as http:
        first = http.delete(f"/v1/keys/{made['id']}").json()
        assert first["revoked_at"] is not None
        assert first["created_by"] == first["revoked_by"] == http.get("/v1/key").json()["name"]
        assert place.status(made["key"]) == 401
        assert http.delete(f"/v1/keys/{made['id']}").json()["revoked_at"] == first["revoked_at"]
        assert error_of(http.delete("/v1/keys/0123456789abcdef"), 404)["message"] == "no such key"
        assert error_of(http.delete("/v1/keys/..%2a"), 404)


def test_a_key_that_another_process_revokes_is_401_soon(place: Place) -> None:
    made = place.make("read")
    assert place.status(made["key"]) == 200
    began = time.monotonic()
    KeyStore(RedisCalls(place.client)).revoke(made["id"])
    while place.status(made["key"]) != 401:
        assert time.monotonic() - began < 20
        time.sleep(0.1)


def test_recent_keys_are_known_without_redis_for_a_while(place: Place) -> None:
    key_id, text = new_stored_key()
    calls = RedisCalls(place.client)
    known = RecentKeys(calls, fresh_s=60)
    assert known.recent(key_id) is None
    known.add(key_id=key_id, sha256=digest(text), owner="acme", name="x", scopes={Scope.READ}, expires_in_s=30)
    assert known.look_up(key_id) is not None
    recent = known.recent(key_id)
    assert recent is not None
    assert recent[0].is_valid_at(recent[1])
    assert not recent[0].is_valid_at(recent[1] + 31)  # that it expires is seen without Redis
    assert RecentKeys(calls, fresh_s=0).find(key_id)[0] == recent[0]
    known.revoke(key_id)
    revoked = known.recent(key_id)
    assert revoked is not None
    assert not revoked[0].is_valid_at(revoked[1])
    stale = RecentKeys(calls, fresh_s=0)
    stale.look_up(key_id)
    time.sleep(0.01)
    assert stale.recent(key_id) is None


def test_revoking_ends_a_stream(place: Place) -> None:
    made = place.make("read", "submit")
    with place.http(made["key"], accept="text/event-stream") as http:
        job_id = http.post("/v1/jobs", json=SPEC).json()["id"]
        with http.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
            assert stream.status_code == 200
            lines = stream.iter_lines()
            assert next(lines).startswith("event: job.")
            with place.http() as operator:
                operator.delete(f"/v1/keys/{made['id']}")
            began = time.monotonic()
            for _ in lines:
                assert time.monotonic() - began < 20
    assert time.monotonic() - began < 20


def test_a_stream_asks_for_its_key_afresh(place: Place) -> None:
    """What was known of late would let a key that another process revoked read on."""
    keys = RecentKeys(RedisCalls(place.client), fresh_s=3600)
    key_id, text = new_stored_key()
    keys.add(key_id=key_id, sha256=digest(text), owner="acme", name="x", scopes={Scope.READ})
    app = create_app(JobStore(place.client), settings(place.directory))
    sent: list[Message] = []

    async def stream(_: Asgi, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        KeyStore(RedisCalls(place.client)).revoke(key_id)
        await anyio.sleep_forever()

    async def send(message: Message) -> None:
        sent.append(message)

    async def ask() -> None:
        headers = [(b"authorization", f"Bearer {text}".encode()), (b"accept", b"text/event-stream")]
        scope = {"type": "http", "method": "GET", "path": "/v1/jobs", "headers": headers, "app": app}
        with anyio.fail_after(20):
            await guarded(scope, anyio.sleep_forever, send)

    own = OwnKey(Settings(state_dir=Path("unused"), key_sha256=digest(OPERATOR)))
    guarded = RequireKey(stream, own=own, owner="local", keys=keys, recheck_s=0.05)
    anyio.run(ask)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert keys.recent(key_id) is not None


def test_an_owner_has_so_many_streams_and_each_is_given_back(place: Place, tmp_path: Path) -> None:
    with serving(place.client, tmp_path, streams=1) as limited:
        owner = f"owner-{uuid.uuid4().hex[:8]}"
        with limited.http(limited.key("read", "submit", owner=owner)) as http:
            path = f"/v1/jobs/{http.post('/v1/jobs', json=SPEC).json()['id']}/events"
            accept = {"accept": "text/event-stream"}
            with http.stream("GET", path, headers=accept) as stream:
                assert stream.status_code == 200
                lines = stream.iter_lines()  # kept, as the stream is closed with it
                assert next(lines).startswith("event: job.")
                with http.stream("GET", path, headers=accept) as refused:
                    assert refused.status_code == 429  # a stream would have no end to read to
                    refused.read()
                assert error_of(refused, 429)["code"] == "busy"
                assert int(refused.headers["retry-after"]) > 0
                assert http.get(path).status_code == 200  # a page of the list is no stream
                with limited.http(limited.key("read", owner=f"{owner}-2")) as other:
                    assert other.get(path, headers=accept).status_code == 404  # not busy
            deadline = time.monotonic() + 20
            while True:  # the server sees in its own time that the reader is gone
                with http.stream("GET", path, headers=accept) as stream:
                    if stream.status_code == 200:
                        return
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_a_stream_of_a_valid_key_outlives_the_checks(place: Place) -> None:
    with place.http(place.key("read", "submit"), accept="text/event-stream") as http:
        job_id = http.post("/v1/jobs", json=SPEC).json()["id"]
        with http.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
            threading.Timer(4, JobStore(place.client, owner="acme").request_cancel, [job_id]).start()
            began, lines = time.monotonic(), []
            for line in stream.iter_lines():
                lines.append(line)
                assert time.monotonic() - began < 40
    assert "event: job.cancelled" in lines
    assert time.monotonic() - began > 3.5  # past the first check


# -- without Redis ------------------------------------------------------------------------------------------


def test_without_redis_the_servers_own_key_is_still_known(tmp_path: Path) -> None:
    directory = tmp_path / "redis"
    with (
        EmbeddedRedis(directory) as server,
        connect(server.url) as client,
        serving(client, tmp_path, writes_per_minute=600) as place,
    ):
        key_id, stored = new_stored_key()  # by another process, so that this one has not seen it
        KeyStore(RedisCalls(client)).add(
            key_id=key_id, sha256=digest(stored), owner="acme", name="x", scopes={Scope.ADMIN}
        )
        server.stop()
        for key, path, status in (
            (OPERATOR, "/openapi.json", 200),
            (OPERATOR, "/v1/rules", 200),
            (OPERATOR, "/v1/jobs", 503),
            (OPERATOR, "/readyz", 503),
            (stored, "/openapi.json", 503),
            (stored, "/v1/jobs", 503),
            ("eqp_malformed", "/v1/jobs", 401),
            (None, "/v1/jobs", 401),
            (None, "/livez", 200),
        ):
            began = time.monotonic()
            with place.http(key) as http:
                answer = http.get(path)
            assert answer.status_code == status, (path, answer.text)
            assert time.monotonic() - began < 8
            if status == 503:
                assert int(answer.headers["retry-after"]) > 0
                assert error_of(answer, 503)["code"] == "store_unavailable"
        with place.http() as http:
            error_of(http.post("/v1/jobs", json=SPEC), 503)
            error_of(http.post("/v1/keys", json={"name": "x", "scopes": ["read"]}), 503)


def test_a_redis_that_takes_no_writes_still_lets_readers_in(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "redis") as server, connect(server.url) as client, serving(client, tmp_path) as place:
        key = place.key("read")
        client.config_set("maxmemory", "1")
        assert place.status(key) == 200
        client.config_set("maxmemory", "0")
