"""API keys on a real Redis behind a real socket: who may do what, to whose jobs, how often, and until when."""

import gc
import json
import logging
import re
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import redis
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Send
from starlette.types import Scope as Asgi
from starlette.websockets import WebSocket, WebSocketDisconnect
from typer.testing import CliRunner

from orchestrator import keys as names
from orchestrator.embedded_redis import EmbeddedRedis, connect
from orchestrator.keystore import KeyStore, Scope
from orchestrator.redis_calls import RedisCalls
from orchestrator.store import JobStore, SubmitOutcome
from services import keys_api
from services.app import create_app
from services.auth import PUBLIC_PATHS, RecentKeys, RequireKey
from services.cli import app as cli
from services.keys import digest, new_key, new_stored_key
from services.own_key import OwnKey
from services.scopes import SCOPES
from services.server import ApiServer
from services.settings import Limits, Settings

OPERATOR = new_key()
SECRET = "hunter2-do-not-repeat"
SPEC: dict[str, Any] = {
    "name": "a job",
    "steps": 4,
    "policy": {"model": "quickstart"},
    "data": {"type": "quickstart"},
    "objectives": [
        {"name": "accuracy", "reward": {"name": "math"}},
        {"name": "short", "reward": {"name": "conciseness"}},
    ],
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A server, and its Redis."""

    url: str
    client: redis.Redis
    directory: Path

    def http(self, key: str | None = OPERATOR, **headers: str) -> httpx.Client:
        given = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers={**given, **headers}, timeout=20)

    def make(self, *scopes: str, owner: str = "acme", **more: Any) -> dict[str, Any]:
        with self.http() as http:
            answer = http.post("/v1/keys", json={"name": "made", "scopes": scopes, "owner": owner, **more})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def key(self, *scopes: str, owner: str = "acme") -> str:
        return str(self.make(*scopes, owner=owner)["key"])

    def status(self, key: str | None, method: str = "GET", path: str = "/v1/jobs") -> int:
        with self.http(key) as http:
            return http.request(method, path).status_code


def settings(directory: Path, **limits: int) -> Settings:
    chosen = Limits(**{"writes_per_minute": 0, "active_jobs": 0, **limits})
    return Settings(state_dir=directory, key_sha256=digest(OPERATOR), poll_s=0.05, local_exports=True, limits=chosen)


@contextmanager
def serving(client: redis.Redis, directory: Path, **limits: int) -> Iterator[Place]:
    server = ApiServer("127.0.0.1", 0)
    server.start(JobStore(client), settings(directory, **limits))
    try:
        yield Place(url=server.url, client=client, directory=directory)
    finally:
        server.stop()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("keys")
    with EmbeddedRedis(directory) as server, connect(server.url) as client, serving(client, directory) as place:
        yield place


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"]
    assert SECRET not in answer.text
    document = dict(answer.json()["error"])
    assert document.keys() == {"type", "code", "message", "param"}
    return document


def declared(tmp_path: Path, client: redis.Redis) -> list[tuple[str, str]]:
    """Every route of the app as (method, path template)."""
    found = []
    for route in create_app(JobStore(client), settings(tmp_path)).routes:
        methods = getattr(route, "methods", None) or {"WEBSOCKET"}
        found += [(method, str(getattr(route, "path", ""))) for method in methods if method != "HEAD"]
    assert len(found) > 20
    return sorted(found)


def fill(path: str, job_id: str = "job-0") -> str:
    return re.sub(r"\{\w+\}", "1", path.replace("{job_id}", job_id))


BODIES: dict[str, dict[str, Any]] = {
    "fork": {"checkpoint": "latest"},
    "export": {"to": "/nowhere"},
    **{key: {} for key in ("cancel", "pause", "resume")},
}  # others: a change of the steering


def ask(http: httpx.Client, method: str, path: str) -> httpx.Response:
    """A request that reaches the route's own code, with a body that it takes."""
    if method in ("GET", "DELETE"):
        return http.request(method, path)
    return http.request(method, path, json=BODIES.get(path.rpartition("/")[2], {"mode": "manual"}))


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


def test_probes_of_readiness_ask_redis_once_a_second(place: Place, tmp_path: Path) -> None:
    """Where the operator says so, whoever reaches it may call it without a key, however often."""
    store = JobStore(place.client)
    assert TestClient(create_app(store, settings(tmp_path))).get("/readyz").status_code == 401
    app = create_app(store, settings(tmp_path).model_copy(update={"keyless_probes": True}))
    asked = []
    app.state.readiness._ask = lambda: asked.append(time.monotonic())
    client = TestClient(app)
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        assert client.get("/readyz").status_code == 200
    assert len(asked) == 2
    assert client.get("/readyz", headers={"authorization": "Bearer eqp_wrong"}).status_code == 401
    assert client.post("/readyz").status_code == 401


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
    key = place.make("read", expires_in_s=1)["key"]
    assert place.status(key) == 200
    time.sleep(1.1)
    assert place.status(key) == 401


def test_a_revoked_key_is_401_at_once_and_for_good(place: Place) -> None:
    made = place.make("read")
    assert place.status(made["key"]) == 200
    with place.http() as http:
        first = http.delete(f"/v1/keys/{made['id']}").json()
        assert first["revoked_at"] is not None
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


# -- scopes -------------------------------------------------------------------------------------------------


def test_every_route_declares_its_scope(place: Place, tmp_path: Path) -> None:
    routes = {f"{method} {path}" for method, path in declared(tmp_path, place.client) if path not in PUBLIC_PATHS}
    assert routes <= SCOPES.keys(), "services/scopes.py names every route with its scope; others need admin"


@pytest.mark.parametrize("scope", list(Scope))
def test_a_key_reaches_what_its_scope_says_and_no_more(place: Place, tmp_path: Path, scope: Scope) -> None:
    with place.http(place.key(scope, owner="matrix")) as http:
        for method, path in declared(tmp_path, place.client):
            if path in PUBLIC_PATHS:
                continue
            answer = ask(http, method, fill(path))
            needed = SCOPES[f"{method} {path}"]
            if scope in (needed, Scope.ADMIN):
                assert answer.status_code not in (401, 403), (method, path)
            else:
                error = error_of(answer, 403)
                assert (error["type"], error["code"]) == ("permission_error", "insufficient_scope")
                assert f"'{needed}'" in error["message"]


def test_a_key_may_ask_whom_it_speaks_for(place: Place) -> None:
    made = place.make("read", "steer")
    with place.http(made["key"]) as http:
        own = http.get("/v1/key").json()
    hours = own.pop("gpu_hours")
    assert (hours["quota"], hours["used"]) == (None, 0)
    assert hours["renews_at"] > time.time()
    assert own == {
        "object": "own_key",
        "id": made["id"],
        "name": f"key {made['id']} (made)",
        "owner": "acme",
        "scopes": ["read", "steer"],
    }
    with place.http(place.key("admin")) as http:
        assert set(http.get("/v1/key").json()["scopes"]) == {"read", "submit", "steer", "admin"}
    assert place.status(place.key("submit"), path="/v1/key") == 403
    assert place.status(None, path="/v1/key") == 401


def test_a_report_is_its_owners_alone(place: Place) -> None:
    job = JobStore(place.client, owner="acme")
    job.submit("{}", name="r", job_id="job-report", steering={"mode": "auto"})
    with place.http(place.key("read")) as http:
        error_of(http.get("/v1/jobs/job-report/report"), 425)
        job.request_cancel("job-report")
        error_of(http.get("/v1/jobs/job-report/report"), 404)
        folder = place.directory / "jobs" / "job-report"
        folder.mkdir(parents=True)
        (folder / "report.html").write_text("<!doctype html><p>it</p>")
        answer = http.get("/v1/jobs/job-report/report")
        assert answer.text == "<!doctype html><p>it</p>"
        assert answer.headers["content-disposition"].startswith("attachment")
        assert answer.headers["content-security-policy"] == "sandbox allow-scripts"
    with place.http(place.key("read", owner="other")) as http:
        error_of(http.get("/v1/jobs/job-report/report"), 404)


def test_what_changes_a_job_is_never_open_to_readers() -> None:
    for route, scope in SCOPES.items():
        if scope is Scope.READ:
            assert route.startswith("GET ") or route.endswith("/preview"), route
    assert SCOPES["PUT /v1/jobs/{job_id}/steering"] is Scope.STEER


def test_several_scopes_add_up(place: Place) -> None:
    with place.http(place.key("read", "steer")) as http:
        assert http.get("/v1/jobs").status_code == 200
        assert ask(http, "PUT", "/v1/jobs/job-0/steering").status_code == 404
        assert http.post("/v1/jobs", json=SPEC).status_code == 403


def test_a_route_that_nobody_declared_needs_admin(place: Place, tmp_path: Path) -> None:
    from fastapi.responses import PlainTextResponse
    from starlette.routing import Mount, Route

    app = create_app(JobStore(place.client), settings(tmp_path))
    app.add_api_route("/v1/later", lambda: {"later": True}, methods=["GET"])
    app.router.routes.append(Mount("/files", routes=[Route("/x", lambda _: PlainTextResponse("x"))]))
    client = TestClient(app)
    for path, (key, status) in product(
        ("/v1/later", "/files/x"), ((place.key("read", "submit", "steer"), 403), (place.key("admin"), 200))
    ):
        assert client.get(path, headers={"authorization": f"Bearer {key}"}).status_code == status


def test_paths_that_no_route_takes_are_404_and_405_for_any_key(place: Place) -> None:
    key = place.key("read")
    assert place.status(key, "GET", "/nope") == 404
    assert place.status(key, "PATCH", "/v1/jobs") == 405


# -- owners -------------------------------------------------------------------------------------------------


def test_another_owners_job_does_not_exist(place: Place, tmp_path: Path) -> None:
    ours, theirs = (place.http(place.key("admin", owner=owner)) for owner in ("ours", "theirs"))
    with ours, theirs:
        job_id = ours.post("/v1/jobs", json=SPEC).json()["id"]
        routes = [(m, p) for m, p in declared(tmp_path, place.client) if "{job_id}" in p]
        assert len(routes) >= 10
        for method, path in routes:
            foreign, absent = ask(theirs, method, fill(path, job_id)), ask(theirs, method, fill(path, "job-0"))
            assert foreign.status_code == 404, (method, path)
            assert foreign.content == absent.content
        assert theirs.get("/v1/jobs").json()["data"] == []
        error_of(theirs.get("/v1/jobs/compare", params={"ids": job_id}), 404)
        error_of(theirs.get("/v1/jobs", params={"after": job_id}), 422)
        assert ours.get(f"/v1/jobs/{job_id}").json()["status"] == "queued"
        assert len(ours.get(f"/v1/jobs/{job_id}/steering").json()["log"]) == 1
    with place.http() as operator:  # its own owner is `local`: it manages keys of others, not their jobs
        assert operator.get(f"/v1/jobs/{job_id}").status_code == 404


def test_an_idempotency_key_is_the_owners(place: Place) -> None:
    word = uuid.uuid4().hex
    made = []
    for owner in ("ours", "theirs", "ours"):
        with place.http(place.key("submit", owner=owner)) as http:
            made.append(http.post("/v1/jobs", json=SPEC, headers={"idempotency-key": word}).json()["id"])
    assert made[0] == made[2] != made[1]


def test_owners_are_known_once_they_submit(place: Place) -> None:
    store = JobStore(place.client)
    owner = f"owner-{uuid.uuid4().hex[:8]}"
    key = place.key("submit", owner=owner)
    assert owner not in store.owners()
    with place.http(key) as http:
        job_id = http.post("/v1/jobs", json=SPEC).json()["id"]
    assert {owner, "local"} <= set(store.owners())
    assert store.of_owner(owner).queued() == [job_id]
    assert store.owner == "local"


def test_a_steering_change_names_the_key(place: Place) -> None:
    made = place.make("read", "submit", "steer", name="night shift")
    with place.http(made["key"]) as http:
        job_id = http.post("/v1/jobs", json=SPEC).json()["id"]
        assert http.put(f"/v1/jobs/{job_id}/steering", json={"mode": "manual"}).status_code == 202
        assert http.get(f"/v1/jobs/{job_id}/steering").json()["log"][-1]["by"] == f"key {made['id']} (night shift)"


# -- managing keys ------------------------------------------------------------------------------------------


def test_a_key_is_shown_once(place: Place) -> None:
    with place.http() as http:
        answer = http.post("/v1/keys", json={"name": "ci", "scopes": ["submit", "read"], "expires_in_s": 3600})
        made = answer.json()
        assert answer.headers["cache-control"] == "no-store"
        assert re.fullmatch(rf"eqp_{made['id']}_[A-Za-z0-9_-]{{43}}", made["key"])
        assert (made["owner"], made["scopes"]) == ("local", ["read", "submit"])
        assert made["expires_at"] - made["created_at"] == pytest.approx(3600, abs=0.01)
        listed = http.get("/v1/keys", params={"limit": 1}).json()
        assert listed["has_more"]
        assert listed["data"] == [{name: value for name, value in made.items() if name != "key"}]
        assert "sha256" not in listed["data"][0]


def test_keys_are_listed_page_by_page_newest_first(place: Place) -> None:
    owner = f"owner-{uuid.uuid4().hex[:8]}"
    made = [place.make("read", owner=owner)["id"] for _ in range(5)]
    with place.http() as http:
        found: list[str] = []
        while True:
            params = {"owner": owner, "limit": 2, **({"after": found[-1]} if found else {})}
            page = http.get("/v1/keys", params=params).json()
            found += [key["id"] for key in page["data"]]
            if not page["has_more"]:
                break
        assert found == made[::-1]
        assert {key["owner"] for key in http.get("/v1/keys", params={"limit": 100}).json()["data"]} > {owner}
        error_of(http.get("/v1/keys", params={"after": "0123456789abcdef"}), 422)
        error_of(http.get("/v1/keys", params={"owner": "a:b"}), 422)


def test_an_owner_has_so_many_keys_and_dead_ones_make_room(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_api, "MAX_KEYS", 3)
    owner = f"many-{uuid.uuid4().hex[:8]}"
    with place.http(place.key("admin", owner=owner)) as http:
        made = [http.post("/v1/keys", json={"name": f"{i}", "scopes": ["read"]}) for i in range(3)]
        assert [answer.status_code for answer in made] == [201, 201, 409]
        assert error_of(made[-1], 409)["code"] == "too_many_keys"
        dead = made[0].json()["id"]
        assert http.delete(f"/v1/keys/{dead}").status_code == 200
        assert http.post("/v1/keys", json={"name": "new", "scopes": ["read"]}).status_code == 201
        kept = [key["id"] for key in http.get("/v1/keys").json()["data"]]
        assert dead not in kept
        assert made[1].json()["id"] in kept
        assert http.post("/v1/keys", json={"name": "more", "scopes": ["read"]}).status_code == 409


def test_an_admin_manages_the_keys_of_its_owner_alone(place: Place) -> None:
    stranger = place.make("read", owner="theirs")
    with place.http(place.key("admin", owner="ours")) as http:
        assert http.post("/v1/keys", json={"name": "x", "scopes": ["admin"]}).json()["owner"] == "ours"
        assert http.post("/v1/keys", json={"name": "x", "scopes": ["read"], "owner": "ours"}).status_code == 201
        for owner in ("theirs", "local"):
            denied = error_of(http.post("/v1/keys", json={"name": "x", "scopes": ["read"], "owner": owner}), 403)
            assert denied["code"] == "other_owner"
            error_of(http.get("/v1/keys", params={"owner": owner}), 403)
        assert {key["owner"] for key in http.get("/v1/keys").json()["data"]} == {"ours"}
        foreign = http.delete(f"/v1/keys/{stranger['id']}")
        assert foreign.content == http.delete("/v1/keys/0123456789abcdef").content
        error_of(foreign, 404)
    assert place.status(stranger["key"]) == 200


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "0" * 64}, {"key": SECRET}, {"id": "0123456789abcdef"}, {"revoked_at": 1}, {"created_at": 1},
        {"expires_at": 1}, {"last_used_at": 1}, {"is_operator": True}, {"tenant": "x"}, {"scopes": ["root"]},
        {"scopes": []}, {"scopes": "read"}, {"scopes": ["read"] * 5}, {"scopes": [SECRET]}, {"owner": "a:b"},
        {"owner": ""}, {"owner": "x" * 65}, {"owner": 1}, {"name": ""}, {"name": "x" * 65}, {"name": "a\nb"},
        {"name": "a\x1b[31m"}, {"name": "a\u2028b"}, {"name": 1}, {"expires_in_s": 0}, {"expires_in_s": -1},
        {"expires_in_s": True}, {"expires_in_s": 1.5}, {"expires_in_s": "60"}, {"expires_in_s": 10**12},
    ],
)  # fmt: skip
def test_fields_that_are_not_the_callers_are_refused(place: Place, change: dict[str, Any]) -> None:
    with place.http() as http:
        before = place.client.zcard(names.API_KEYS)
        error = error_of(http.post("/v1/keys", json={"name": "x", "scopes": ["read"], **change}), 422)
        assert error["code"] == "invalid_key"
        assert error["param"].split(".")[0] in change
        assert place.client.zcard(names.API_KEYS) == before


@pytest.mark.parametrize("field", ["owner", "tenant", "scopes", "state", "fence", "max_active", "status"])
def test_a_job_cannot_name_its_owner_or_state(place: Place, field: str) -> None:
    with place.http() as http:
        error_of(http.post("/v1/jobs", json={**SPEC, field: "x"}), 422)
        error_of(http.post("/v1/jobs", json=SPEC, params={field: "x"}), 422)


# -- what is kept -------------------------------------------------------------------------------------------


def test_no_key_is_ever_written_anywhere(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = place.make("admin")
    assert place.status(made["key"]) == 200
    assert place.status(made["key"][:-1] + "!") == 401
    secrets = [made["key"], made["key"].rpartition(made["id"])[2][1:], OPERATOR]
    kept = [json.dumps(dump(place.client, name)) for name in place.client.scan_iter()]
    assert any(made["id"] in value for value in kept)
    written = [path.read_bytes() for path in place.directory.rglob("*") if path.is_file()]
    assert any(made["id"].encode() in content for content in written)
    for secret in secrets:
        assert not any(secret in value for value in kept)
        assert not any(secret.encode() in content for content in written)
        assert secret not in caplog.text


def dump(client: redis.Redis, name: str) -> Any:
    match client.type(name):
        case "string":
            return [name, client.get(name)]
        case "hash":
            return [name, client.hgetall(name)]
        case "list":
            return [name, client.lrange(name, 0, -1)]
        case "set":
            return [name, sorted(client.smembers(name))]
        case "zset":
            return [name, client.zrange(name, 0, -1, withscores=True)]
        case "stream":
            return [name, client.xrange(name)]
        case other:
            raise AssertionError(other)


def test_last_use_is_noted_at_most_once_a_minute(place: Place) -> None:
    made = place.make("read")
    assert made["last_used_at"] is None
    name = names.api_key(made["id"])
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(place.status, [made["key"]] * 16)) == {200}
    first = place.client.hget(name, "last_used_at")
    assert first is not None
    assert place.status(made["key"]) == 200
    assert place.client.hget(name, "last_used_at") == first
    place.client.hset(name, "last_used_at", str(float(first) - 61))
    time.sleep(2.1)  # until the key is looked up again
    assert place.status(made["key"]) == 200
    assert float(place.client.hget(name, "last_used_at")) >= float(first)


def test_a_key_that_is_refused_is_not_used(place: Place) -> None:
    made = place.make("read")
    place.status(made["key"][:-1] + "-" * (made["key"][-1] != "-") + "_" * (made["key"][-1] == "-"))
    assert place.client.hget(names.api_key(made["id"]), "last_used_at") is None


# -- limits -------------------------------------------------------------------------------------------------


def test_the_quota_of_jobs_is_exact_under_concurrent_submits(place: Place, tmp_path: Path) -> None:
    with serving(place.client, tmp_path, active_jobs=7) as limited:
        owner = f"owner-{uuid.uuid4().hex[:8]}"
        key = limited.key("read", "submit", owner=owner)

        def submit(number: int) -> httpx.Response:
            with limited.http(key) as http:
                return http.post("/v1/jobs", json=SPEC, headers={"idempotency-key": f"k-{number}"})

        with ThreadPoolExecutor(50) as threads:
            answers = list(threads.map(submit, range(50)))
        accepted = [number for number, answer in enumerate(answers) if answer.status_code == 201]
        assert len(accepted) == 7
        refused = next(answer for answer in answers if answer.status_code != 201)
        error = error_of(refused, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "too_many_jobs")
        assert int(refused.headers["retry-after"]) > 0
        store = JobStore(limited.client, owner=owner)
        assert len(store.queued()) == len(store.jobs(limit=100).items) == 7
        # A replay is no new job, and what was refused left nothing behind: its key may be used again.
        assert submit(accepted[0]).status_code == 201
        lost = next(number for number in range(50) if number not in accepted)
        assert submit(lost).status_code == 429
        store.request_cancel(store.queued()[0])
        assert submit(lost).headers["idempotent-replayed"] == "false"
        with limited.http() as operator:  # of owner `local`, which has no limit here
            assert {operator.post("/v1/jobs", json=SPEC).status_code for _ in range(9)} == {201}


def test_jobs_that_run_count_and_those_that_paused_do_not(place: Place) -> None:
    store = JobStore(place.client, owner=f"owner-{uuid.uuid4().hex[:8]}")

    def submit(job_id: str) -> SubmitOutcome:
        return store.submit("{}", name="x", job_id=job_id, max_active=1).outcome

    assert submit("a") is SubmitOutcome.NEW
    lease = store.claim("a", nonce="n", ttl_s=60).lease
    assert lease is not None
    assert submit("b") is SubmitOutcome.QUOTA
    assert submit("a") is SubmitOutcome.REPLAY
    assert store.release(lease) == "queued"
    assert submit("b") is SubmitOutcome.QUOTA
    store.request_pause("a")
    assert submit("b") is SubmitOutcome.NEW


def test_a_key_writes_so_often_a_minute_and_reads_on(place: Place, tmp_path: Path) -> None:
    with serving(place.client, tmp_path, writes_per_minute=5) as limited:
        made = place.make("submit", "read")
        with limited.http(made["key"]) as http:

            def submit(_: int) -> httpx.Response:
                return http.post("/v1/jobs", params={"validate_only": True}, json=SPEC)

            with ThreadPoolExecutor(12) as threads:
                answers = list(threads.map(submit, range(12)))
            assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 7
            refused = next(answer for answer in answers if answer.status_code == 429)
            assert error_of(refused, 429)["code"] == "rate_limited"
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert http.get("/v1/jobs").status_code == 200
            assert place.client.pttl(names.rate(made["id"])) > 0
            place.client.delete(names.rate(made["id"]))  # the minute is over
            assert submit(0).status_code == 200
        with limited.http(place.key("submit")) as other:  # each key has its own minute
            assert other.post("/v1/jobs", params={"validate_only": True}, json=SPEC).status_code == 200


def test_an_owner_writes_no_more_with_more_keys(place: Place) -> None:
    keys, owner = KeyStore(RedisCalls(place.client)), f"owner-{uuid.uuid4().hex[:8]}"
    ids = [new_stored_key()[0] for _ in range(9)]
    waits = [keys.count_write(key_id, owner, 1) for key_id in ids]
    assert waits[:4] == [0] * 4
    assert all(1 <= wait <= 60 for wait in waits[4:])
    assert place.client.get(names.rate(ids[-1])) is None  # what was refused counts nowhere
    assert keys.count_write(ids[-1], f"{owner}-2", 1) == 0


def test_limits_come_from_the_environment() -> None:
    assert Limits.from_environment({}) == Limits(writes_per_minute=600, active_jobs=100, active_jobs_local=0)
    given = {"EQUIPOISE_MAX_WRITES_PER_MINUTE": "0", "EQUIPOISE_MAX_ACTIVE_JOBS": "3"}
    assert Limits.from_environment({**given, "EQUIPOISE_MAX_ACTIVE_JOBS_LOCAL": "9"}) == Limits(
        writes_per_minute=0, active_jobs=3, active_jobs_local=9
    )
    for wrong in ("-1", "many", "1.5", "1" * 10):
        with pytest.raises(ValueError, match="EQUIPOISE_MAX_ACTIVE_JOBS: expected a whole number"):
            Limits.from_environment({"EQUIPOISE_MAX_ACTIVE_JOBS": wrong})


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


# -- the command line ---------------------------------------------------------------------------------------


def test_keys_from_the_command_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_URL", place.url)
    monkeypatch.setenv("EQUIPOISE_API_KEY", OPERATOR)
    owner = f"owner-{uuid.uuid4().hex[:8]}"

    def run(*words: str) -> Any:
        return CliRunner().invoke(cli, ["keys", *words])

    made = run("create", "--name", "ci", "--scope", "read", "--scope", "submit", "--owner", owner, "--expires", "90d")
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    assert place.status(key) == 200
    (listed,) = json.loads(run("list", "--owner", owner, "--json").stdout)
    assert listed["scopes"] == ["read", "submit"]
    assert listed["expires_at"] - listed["created_at"] == pytest.approx(90 * 86400, abs=1)
    monkeypatch.setenv("COLUMNS", "200")
    shown = run("list", "--owner", owner).stdout
    assert listed["id"] in shown
    assert "until 2" in shown
    assert key.rpartition("_")[2] not in shown
    assert run("revoke", listed["id"]).stdout == f"{listed['id']} revoked\n"
    assert "revoked 2" in run("list", "--owner", owner).stdout
    assert place.status(key) == 401
    assert run("create", "--name", "x", "--scope", "read", "--expires", "soon").exit_code == 2
    assert run("create", "--name", "x", "--scope", "everything").exit_code == 2
    assert run("revoke", "../jobs").exit_code == 2


# -- the store of keys --------------------------------------------------------------------------------------


def test_the_key_store_refuses_malformed_ids_and_owners(place: Place) -> None:
    keys = KeyStore(JobStore(place.client).calls)
    made = {"sha256": "0" * 64, "name": "x", "scopes": {Scope.READ}}
    for key_id, owner in (("short", "acme"), ("0123456789ABCDEF", "acme"), ("0123456789abcdef", "a:b")):
        with pytest.raises(ValueError, match=r"key id|owner"):
            keys.add(key_id=key_id, owner=owner, **made)
    assert not place.client.exists(names.api_key("0123456789abcdef"))


def test_refused_requests_leave_nothing_behind(place: Place) -> None:
    """An exception that is raised again and again would keep every frame, and the headers in it."""
    app = create_app(JobStore(place.client), settings(place.directory))
    with TestClient(app) as http:
        for i in range(30):
            assert http.get("/v1/jobs", headers={"authorization": f"Bearer left-behind-{i}"}).status_code == 401
    gc.collect()
    left = [found for found in gc.get_objects() if type(found) is dict and found.get("type") == "http"]
    assert sum("left-behind" in str(scope.get("headers")) for scope in left) <= 2


def test_only_the_installations_key_writes_to_the_servers_machine(place: Place, tmp_path: Path) -> None:
    with place.http(place.key("admin")) as http:
        job_id = http.post("/v1/jobs", json=SPEC).json()["id"]
        answer = http.post(f"/v1/jobs/{job_id}/checkpoints/0/export", json={"to": str(tmp_path / "out")})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "exports_disabled"


def test_resuming_counts_against_the_quota(tmp_path: Path, place: Place) -> None:
    with serving(place.client, tmp_path, active_jobs=2) as limited:
        owner = f"quota-{uuid.uuid4().hex[:8]}"
        with limited.http(limited.key("submit", "read", owner=owner)) as http:
            first, second = (http.post("/v1/jobs", json=SPEC).json()["id"] for _ in range(2))
            assert http.post(f"/v1/jobs/{first}/pause").status_code == 200
            assert http.post("/v1/jobs", json=SPEC).status_code == 201
            refused = http.post(f"/v1/jobs/{first}/resume")
            assert refused.status_code == 429
            assert refused.headers["retry-after"]
            assert http.get(f"/v1/jobs/{first}").json()["status"] == "paused"
            assert http.post(f"/v1/jobs/{second}/cancel").status_code == 200
            assert http.post(f"/v1/jobs/{first}/resume").json()["status"] == "queued"
