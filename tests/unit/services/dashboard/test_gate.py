"""What stands before the pages: sessions, origins, names, and the policy that each answer carries."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI, Request, WebSocket
from starlette.responses import HTMLResponse, JSONResponse

from services.body_deadline import Pace
from services.dashboard import gate as module
from services.dashboard.gate import Gate
from services.dashboard.sessions import Session
from services.dashboard.signin import way_in

pytestmark = pytest.mark.anyio
GOOD, READER, BLIND = "eqp_good", "eqp_reader", "eqp_blind"
ORIGIN = "http://testserver"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def _api() -> FastAPI:
    """The part of the API that a sign-in asks."""
    app = FastAPI()

    @app.get("/v1/key")
    async def own(request: Request) -> JSONResponse:
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        if key == BLIND:
            problem = {"type": "t", "code": "insufficient_scope", "message": "no", "param": None}
            return JSONResponse({"error": problem}, 403)
        if key not in (GOOD, READER):
            problem = {"type": "t", "code": "unauthenticated", "message": "no", "param": None}
            return JSONResponse({"error": problem}, 401)
        scopes = ["read", "submit", "steer", "admin"] if key == GOOD else ["read"]
        return JSONResponse({"id": "1", "name": "k", "owner": "o", "scopes": scopes})

    return app


class Pages:
    """In the place of NiceGUI."""

    def __init__(self) -> None:
        self.seen: list[Session] = []
        self.sockets: list[Any] = []

    def create_shell(self) -> FastAPI:
        shell = FastAPI(openapi_url=None)

        @shell.get("/{path:path}")
        async def page(request: Request) -> HTMLResponse:
            self.seen.append(request.scope[module.SESSION])
            prefix = request.headers.get("x-forwarded-prefix", "none")
            policy = {"content-security-policy": "default-src *"}
            return HTMLResponse(f"<html><script>1</script><p>&lt;script&gt;</p>{prefix}</html>", headers=policy)

        seen = self.sockets

        @shell.websocket("/{path:path}")
        async def socket(websocket: WebSocket) -> None:
            seen.append(websocket.scope[module.SESSION])
            await websocket.accept()

        return shell


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Pages:
    found = Pages()
    monkeypatch.setattr(module, "_import_pages", lambda: found)
    return found


async def _rest(scope: Any, receive: Any, send: Any) -> None:
    """The API; it has one checkpoint, at step 40."""
    headers = {name.decode(): value.decode() for name, value in scope.get("headers", ())}
    if (scope["method"], scope["path"]) == ("POST", "/v1/datasets"):
        status = 201 if headers.get("authorization") == f"Bearer {GOOD}" else 401
        told = {"error": {"message": "no"}} if status == 401 else {"rows": (await receive())["body"].decode()}
        await JSONResponse(told | {"query": scope["query_string"].decode()}, status)(scope, receive, send)
    elif not scope["path"].startswith("/v1/jobs/job-1/checkpoints/"):
        await JSONResponse({"of": "the API"}, 418)(scope, receive, send)
    elif headers.get("authorization") != f"Bearer {GOOD}" or "cookie" in headers:
        await JSONResponse({"error": {"message": "no"}}, 401)(scope, receive, send)
    elif scope["raw_path"] != b"/v1/jobs/job-1/checkpoints/40/download":
        await JSONResponse({"error": {"message": "no checkpoint is kept at step 41"}}, 404)(scope, receive, send)
    else:
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/x-tar")]}
        await send(start)
        for part in (b"one", b"two"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def gate(pages: Pages) -> Gate:
    assert not pages.seen
    return Gate(_rest, api=_api(), hosts=("testserver",))


@pytest.fixture
async def browser(gate: Gate) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=gate), base_url=ORIGIN) as client:
        yield client


async def _sign_in(browser: httpx.AsyncClient, key: str = GOOD, **options: Any) -> httpx.Response:
    form = {"key": key, "next": options.pop("next", "/jobs/job-1")}
    return await browser.post("/signin", data=form, headers={"origin": ORIGIN, **options})


async def test_only_the_dashboards_paths_end_here(browser: httpx.AsyncClient) -> None:
    for path in ("/v1/jobs", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json", "/nonsense", "/jobs/a/b"):
        assert (await browser.get(path)).status_code == 418, path
    for path in ("/", "/jobs/job-1", "/submit", "/compare", "/_nicegui/x", "/signin", "/assets/theme.css"):
        assert (await browser.get(path)).status_code != 418, path


async def test_pages_lead_to_the_sign_in_and_back(browser: httpx.AsyncClient, pages: Pages) -> None:
    asked = await browser.get("/jobs/job-1?x=1")
    assert (asked.status_code, asked.headers["location"]) == (303, "/signin?next=%2Fjobs%2Fjob-1%3Fx%3D1")
    assert (await browser.get("/_nicegui/lib.js")).status_code == 401
    form = await browser.get(asked.headers["location"])
    assert 'name="next" value="/jobs/job-1?x=1"' in form.text
    signed = await _sign_in(browser)
    assert (signed.status_code, signed.headers["location"]) == (303, "/jobs/job-1")
    assert (await browser.get("/jobs/job-1")).status_code == 200
    assert pages.seen[0].key["owner"] == "o"
    assert (await browser.get("/signin")).headers["location"] == "/"


async def test_a_checkpoint_comes_from_the_api_under_the_sessions_key(
    gate: Gate, browser: httpx.AsyncClient, pages: Pages
) -> None:
    asked = await browser.get("/jobs/job-1/checkpoints/40/download", headers={"authorization": f"Bearer {GOOD}"})
    assert asked.headers["location"] == "/signin?next=%2Fjobs%2Fjob-1"
    await _sign_in(browser)
    sent = await browser.get("/jobs/job-1/checkpoints/40/download", headers={"authorization": "Bearer another"})
    assert (sent.status_code, sent.content, sent.headers["content-type"]) == (200, b"onetwo", "application/x-tar")
    assert sent.headers["x-content-type-options"] == "nosniff"
    parts = await _parts(gate, "/jobs/job-1/checkpoints/40/download", _cookies(browser))
    assert parts == [b"one", b"two", b""], "as they come: none waits for the whole"
    refused = await browser.get("/jobs/job-1/checkpoints/41/download")
    assert (refused.status_code, refused.text) == (
        404, "This can't be downloaded: no checkpoint is kept at step 41\n",
    )  # fmt: skip
    assert refused.headers["content-type"].startswith("text/plain")
    assert pages.seen == []


async def test_a_download_with_a_key_that_is_no_longer_taken_leads_to_the_sign_in(browser: httpx.AsyncClient) -> None:
    await _sign_in(browser, READER)
    answer = await browser.get("/jobs/job-1/checkpoints/40/download")
    assert (answer.status_code, answer.headers["location"]) == (303, "/signin?ended=key&next=%2Fjobs%2Fjob-1")
    assert (await browser.get("/jobs/job-1")).status_code == 303, "the session is over"


@pytest.mark.parametrize("key", [GOOD, READER])
async def test_a_file_of_prompts_goes_to_the_api_as_it_is(browser: httpx.AsyncClient, key: str) -> None:
    path = "/datasets?name=a.csv&format=csv"
    asked: dict[str, Any] = {"url": path, "content": b"prompt", "headers": {"origin": ORIGIN}}
    assert (await browser.post(**asked)).status_code == 401
    await _sign_in(browser, key)
    assert (await browser.post(**{**asked, "headers": {"origin": "https://evil.example"}})).status_code == 403
    answer = await browser.post(**asked)
    assert answer.json()["query"] == "name=a.csv&format=csv"
    assert answer.json().get("rows") == ("prompt" if key == GOOD else None)
    assert (await browser.get("/")).status_code == (200 if key == GOOD else 303), (
        "a key that isn't taken is told as JSON"
    )
    assert (await browser.get("/datasets")).status_code == 418


async def _parts(gate: Gate, path: str, cookie: str) -> list[bytes]:
    """The parts of a body as they are sent."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "scheme": "http", "method": "GET", "path": path, "query_string": b"",
             "headers": [(b"host", b"testserver"), (b"cookie", cookie.encode())], "server": None}  # fmt: skip
    await gate(scope, receive, send)
    return [message["body"] for message in sent[1:]]


async def test_a_sign_in_that_trickles_in_is_given_up(
    browser: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has shown a key yet: it would hold its connection for nothing."""
    monkeypatch.setattr(module, "JSON_PACE", Pace(grace_s=0.05, bytes_per_s=1000, longest_s=0.05))

    async def slow() -> AsyncIterator[bytes]:
        yield b"key="
        await anyio.sleep_forever()

    with anyio.fail_after(20):
        answer = await browser.post("/signin", content=slow(), headers={"origin": ORIGIN})
    assert (answer.status_code, answer.headers["connection"]) == (408, "close")
    assert answer.json()["error"]["code"] == "body_timeout"


async def test_too_many_that_are_signed_in_keep_a_new_one_out(
    browser: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.dashboard.sessions._MOST", 0)
    answer = await _sign_in(browser)
    assert answer.status_code == 503
    assert "Too many are signed in now" in answer.text


async def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(browser: httpx.AsyncClient) -> None:
    cookie = (await _sign_in(browser)).headers["set-cookie"]
    assert re.fullmatch(r"equipoise-\d+=[\w-]{43}; HttpOnly; Max-Age=43200; Path=/; SameSite=strict", cookie)
    assert GOOD not in cookie


async def test_under_tls_the_cookie_is_secure_and_bound_to_the_host(gate: Gate) -> None:
    transport = httpx.ASGITransport(app=gate)
    async with httpx.AsyncClient(transport=transport, base_url="https://testserver") as browser:
        headers = {"origin": "https://testserver"}
        answer = await browser.post("/signin", data={"key": GOOD}, headers=headers)
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-equipoise=")
        assert {"Secure", "HttpOnly", "Path=/", "SameSite=strict"} <= set(cookie.split("; "))
        assert "Domain" not in cookie
        assert (await browser.get("/")).status_code == 200


@pytest.mark.parametrize(
    ("key", "status", "words"),
    [
        ("eqp_wrong", 401, "No such key"),
        ("", 401, "plain text"),
        ("a\x00b", 401, "plain text"),
        ("schlüssel", 401, "plain text"),
        (BLIND, 403, "may not read"),
        ("x" * 9000, 401, "plain text"),
    ],
)
async def test_a_key_that_is_not_taken(browser: httpx.AsyncClient, key: str, status: int, words: str) -> None:
    answer = await _sign_in(browser, key)
    assert answer.status_code == status
    assert words in answer.text
    assert "set-cookie" not in answer.headers
    assert len(key) < 4 or key not in answer.text
    assert (await browser.get("/")).status_code == 303


@pytest.mark.parametrize(
    "then",
    ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:alert(1)", "/jobs\r\nx: y", "/%0d",
     "/jobs/../../x", '/"><script>alert(1)</script>', "", "jobs", "/" * 3, "/jobs?next=//evil#x"],
)  # fmt: skip
async def test_signing_in_leads_nowhere_else(browser: httpx.AsyncClient, then: str) -> None:
    assert (await _sign_in(browser, next=then)).headers["location"] == "/"
    page = await browser.get("/signin", params={"next": then}, headers={"cookie": ""})
    assert "evil" not in page.text
    assert "<script" not in page.text


async def test_what_changes_something_comes_from_a_page_of_this_origin(browser: httpx.AsyncClient) -> None:
    await _sign_in(browser)
    forged = (
        {},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://testserver:81"},
        {"origin": "http://testserver.evil.example"},
        {"origin": "file://testserver"},
        {"origin": ORIGIN, "sec-fetch-site": "cross-site"},
        {"origin": ORIGIN, "sec-fetch-site": "same-site"},
    )
    for headers in forged:
        for method, path in (("POST", "/signin"), ("POST", "/signout"), ("DELETE", "/"), ("PUT", "/jobs/job-1")):
            answer = await browser.request(method, path, headers=headers, data={"key": GOOD})
            assert answer.status_code == 403, (headers, method, path)
            assert "set-cookie" not in answer.headers
    assert (await browser.get("/")).status_code == 200, "still signed in"
    assert (await browser.get("/signout")).status_code == 405


async def test_another_name_that_leads_here_is_refused(browser: httpx.AsyncClient, pages: Pages) -> None:
    await _sign_in(browser)
    for host in ("evil.example", "testserver.evil.example", "evil.example:80", ""):
        answer = await browser.get("/", headers={"host": host})
        assert answer.status_code == 421, host
    assert pages.seen == []
    assert (await browser.get("/", headers={"host": "testserver:8740"})).status_code == 200


@pytest.mark.parametrize(
    ("ended", "said"),
    [("signed_out", "You are signed out."), ("over", "it lasts 12 hours"), ("key", "expired or revoked"),
     ("others", "made room"), ("<b>", "")],
)  # fmt: skip
async def test_the_sign_in_page_says_how_the_session_ended(browser: httpx.AsyncClient, ended: str, said: str) -> None:
    assert way_in("signed_out", "/jobs/job-1") == "/signin?ended=signed_out"
    page = await browser.get(way_in(ended, "/jobs/job-1?x=1"))
    assert said in page.text
    assert ('role="status"' in page.text) is bool(said)
    assert "<b>" not in page.text
    assert ('name="next" value="/jobs/job-1?x=1"' in page.text) is (ended != "signed_out")


async def test_signing_out_ends_the_session_for_good(browser: httpx.AsyncClient, pages: Pages) -> None:
    await _sign_in(browser)
    kept = _cookies(browser)
    await browser.get("/")
    told: list[str] = []

    async def tell() -> None:
        told.append("left")

    pages.seen[0].ending.append(tell)
    answer = await browser.post("/signout", headers={"origin": ORIGIN})
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert told == ["left"]
    browser.cookies.clear()
    assert (await browser.get("/", headers={"cookie": kept})).status_code == 303


async def test_a_session_has_its_time(
    browser: httpx.AsyncClient, pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _sign_in(browser)
    assert (await browser.get("/")).status_code == 200
    monkeypatch.setattr(pages.seen[0], "until", 0.0)
    assert (await browser.get("/")).status_code == 303


@pytest.mark.parametrize("cookie", ["equipoise-0=", "equipoise-0=../../etc", "garbage", "=;=;", "a" * 5000])
async def test_cookies_that_nobody_was_given(browser: httpx.AsyncClient, cookie: str) -> None:
    assert (await browser.get("/", headers={"cookie": cookie})).status_code == 303


async def test_a_page_carries_a_policy_whose_nonce_is_its_own(browser: httpx.AsyncClient) -> None:
    await _sign_in(browser)
    nonces = []
    for _ in range(2):
        answer = await browser.get("/", headers={"x-forwarded-prefix": '"><script>alert(1)</script>'})
        policy = answer.headers["content-security-policy"]
        assert answer.headers.get_list("content-security-policy") == [policy], "the page's own is replaced"
        directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
        assert "'unsafe-inline'" not in directives["script-src"]
        assert "*" not in policy
        for name in ("default-src", "connect-src", "form-action"):
            assert directives[name] == "'self'"
        for name in ("object-src", "base-uri", "frame-ancestors"):
            assert directives[name] == "'none'"
        nonce = re.search(r"'nonce-([\w-]{20,})'", policy)
        assert nonce
        assert f'<script nonce="{nonce[1]}">1</script>' in answer.text
        assert "<p>&lt;script&gt;</p>none" in answer.text, "what is shown is left alone, the prefix is dropped"
        assert int(answer.headers["content-length"]) == len(answer.content)
        nonces.append(nonce[1])
        for name, value in module._SECURITY.items():
            assert answer.headers[name] == value
    assert nonces[0] != nonces[1]
    signin = await browser.get("/signin", headers={"cookie": ""})
    assert "script-src" not in signin.headers["content-security-policy"]
    assert signin.headers["content-security-policy"].startswith("default-src 'none'")


async def test_files_beside_the_pages_alone_are_served(browser: httpx.AsyncClient) -> None:
    assert (await browser.get("/assets/format.js")).headers["content-type"].startswith("text/javascript")
    for path in ("/assets/../gate.py", "/assets/%2e%2e/gate.py", "/assets/gate.py", "/assets/", "/assets/x.css"):
        assert (await browser.get(path)).status_code in (404, 418), path


def _cookies(browser: httpx.AsyncClient) -> str:
    return "; ".join(f"{name}={value}" for name, value in browser.cookies.items())


async def _socket(gate: Gate, *, headers: dict[str, str], query: str = "client_id=page-1") -> str:
    """accept or the code it is closed with."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "websocket", "scheme": "ws", "path": "/_nicegui_ws/socket.io/", "query_string": query.encode(),
             "headers": raw, "server": None}  # fmt: skip
    await gate(scope, receive, send)
    return "accept" if sent[0]["type"] == "websocket.accept" else str(sent[0]["code"])


async def test_websockets_need_a_session_the_origin_and_a_page_of_their_own(
    gate: Gate, browser: httpx.AsyncClient, pages: Pages
) -> None:
    await _sign_in(browser)
    await browser.get("/")
    pages.seen[0].pages.add("page-1")
    cookie = _cookies(browser)
    good = {"host": "testserver", "origin": ORIGIN, "cookie": cookie}
    assert await _socket(gate, headers=good) == "accept"
    for change in (
        {"cookie": ""},
        {"cookie": "equipoise-0=x"},
        {"origin": "https://evil.example"},
        {"origin": ""},
        {"host": "evil.example", "origin": "http://evil.example"},
    ):
        assert await _socket(gate, headers={**good, **change}) == "1008", change
    other = httpx.AsyncClient(transport=httpx.ASGITransport(app=gate), base_url=ORIGIN)
    await _sign_in(other, READER)
    theirs = _cookies(other)
    assert await _socket(gate, headers={**good, "cookie": theirs}) == "1008", "another session's page"
    assert await _socket(gate, headers={**good, "cookie": theirs}, query="client_id=new") == "accept"
    await other.aclose()
