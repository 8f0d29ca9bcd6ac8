"""What stands before the pages: which requests are theirs, who is signed in, and what a browser may do with them.

Nothing here changes a job: the pages ask the API under the session's key, and the API decides; whole files pass through
as it sends them. The gate keeps other sites' pages from using a browser's session, and text from becoming script:

- a session is a cookie that scripts can't read and other sites can't send (HttpOnly, SameSite=Strict, and Secure with
  the prefix __Host- under TLS);
- what changes something, and every websocket, comes from a page of this very origin;
- names that lead here but aren't ours (DNS rebinding) are refused;
- scripts run from this origin's files, or carry a nonce of this one answer. 'unsafe-eval' is there because NiceGUI's
  pages compile Vue templates and evaluate what its server sends; inline handlers and injected scripts never run.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from contextlib import AsyncExitStack
from http.cookies import CookieError, SimpleCookie
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httpx
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.body_deadline import JSON_PACE, paced
from services.client import ApiError, AsyncClient, PermissionDenied, Unavailable
from services.client.retry import NO_RETRY, Retry
from services.dashboard.sessions import LIFETIME_S, Session, Sessions, TooManySessions
from services.dashboard.signin import POLICY, next_path, signin_page, way_in
from services.dashboard.through import goes_through, page_of, pass_through
from services.errors import ApiProblem, problem_response

if TYPE_CHECKING:
    from starlette.applications import Starlette

log = logging.getLogger(__name__)

SESSION = "equipoise.session"  # of a request's scope
_PAGES = re.compile(r"/(?:signin|signout|submit|compare|jobs(?:/[A-Za-z0-9_-]{1,255})?|favicon\.ico)?")
_BELOW = ("/assets/", "/_nicegui/", "/_nicegui_ws/")
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_MAX_FORM_BYTES = 4096
_MAX_PAGE_BYTES = 16 << 20
_ASSETS = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval' 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)


class Gate:
    """ASGI middleware: the dashboard's paths end here, all others go on to the API."""

    def __init__(self, app: ASGIApp, *, api: Starlette, hosts: tuple[str, ...] | None = None) -> None:
        """`hosts`: names (without a port) that requests may be for; None is any."""
        self._app, self._api, self._hosts = app, api, hosts
        self._sessions = Sessions()
        self._pages: ASGIApp | None = None
        self._loading = asyncio.Lock()
        self._stack = AsyncExitStack()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or not (_is_ours(scope["path"]) or goes_through(scope)):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._http(scope, receive, _guarded(send))

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, path, method = Headers(scope=scope), scope["path"], scope["method"]
        if not self._is_known_host(headers):
            answer: Response = PlainTextResponse("this server goes by another name", 421)
        elif method not in _SAFE and not _is_same_origin(headers):
            answer = PlainTextResponse("this must come from a page of this server", 403)
        elif path.startswith("/assets/") or path == "/favicon.ico":
            answer = _asset("mark.svg" if path == "/favicon.ico" else path.removeprefix("/assets/"))
        elif path == "/signin":
            answer = await (self._sign_in if method == "POST" else self._ask_key)(scope, receive)
        elif path == "/signout":
            answer = await self._sign_out(scope)
        else:
            session = self._session(scope)
            if session is not None:
                scope[SESSION] = session
                if goes_through(scope):
                    await pass_through(self._app, session, scope, receive, send)
                else:
                    await (await self.pages())(_without_prefix(scope), receive, send)
                return
            answer = self._to_sign_in(scope)
        await answer(scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, session = Headers(scope=scope), self._session(scope)
        asked = parse_qs(scope["query_string"].decode("latin-1")).get("client_id", [""])[0]
        allowed = self._is_known_host(headers) and _is_same_origin(headers) and session is not None
        if not allowed or session is None or self._belongs_to_another(asked, session):
            await receive()  # websocket.connect, which has to come first
            await send({"type": "websocket.close", "code": 1008})
            return
        scope[SESSION] = session
        await (await self.pages())(_without_prefix(scope), receive, send)

    def _belongs_to_another(self, page: str, session: Session) -> bool:
        return page not in session.pages and self._sessions.has_page(page)

    # -- sessions --------------------------------------------------------------------------------------------

    def _session(self, scope: Scope) -> Session | None:
        return self._sessions.find(_cookie(scope))

    async def _ask_key(self, scope: Scope, _: Receive) -> Response:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        then = next_path(query.get("next", ["/"])[0])
        if self._session(scope) is not None:
            return RedirectResponse(then, 303)
        return _page(signin_page(then=then, ended=query.get("ended", [""])[0]))

    async def _sign_in(self, scope: Scope, receive: Receive) -> Response:
        try:
            form = await _form(paced(receive, JSON_PACE))
        except ApiProblem as late:
            return problem_response(late)
        key, then = form.get("key", "").strip(), next_path(form.get("next", "/"))
        problem, status, client = "", 401, None
        try:
            client = self._client(key)
            own = await client.own_key()
        except ValueError:
            problem = "A key is plain text, such as eqp_ and what follows it."
        except PermissionDenied:
            problem, status = "This key may not read, so there is nothing to show: it lacks the scope read.", 403
        except Unavailable:
            problem, status = "The server's Redis does not answer now. Try again shortly.", 503
        except ApiError as error:
            problem = "No such key: it is wrong, expired or revoked." if error.status == 401 else str(error)
        if problem or client is None:
            if client is not None:
                await client.aclose()
            return _page(signin_page(then=then, problem=problem), status)
        await client.aclose()
        await self._sessions.end(_cookie(scope))
        client = self._client(key, retry=Retry(attempts=2, deadline_s=5.0))
        try:
            token = await self._sessions.begin(own, client, key)
        except TooManySessions:
            await client.aclose()
            return _page(signin_page(then=then, problem="Too many are signed in now. Try again later."), 503)
        answer = RedirectResponse(then, 303)
        _set_cookie(answer, scope, token, int(LIFETIME_S))
        return answer

    async def _sign_out(self, scope: Scope) -> Response:
        if scope["method"] != "POST":
            return PlainTextResponse("sign out with POST", 405, headers={"allow": "POST"})
        await self._sessions.end(_cookie(scope))
        answer = RedirectResponse(way_in("signed_out"), 303)
        _set_cookie(answer, scope, "", 0)
        return answer

    def _to_sign_in(self, scope: Scope) -> Response:
        if scope["path"].startswith("/_nicegui") or scope["method"] not in _SAFE:
            return PlainTextResponse("sign in first", 401)
        query = scope["query_string"].decode("latin-1")
        wanted = next_path(page_of(scope["path"]) + (f"?{query}" if query else ""))
        return RedirectResponse(way_in(then=wanted), 303)

    def _client(self, key: str, retry: Retry = NO_RETRY) -> AsyncClient:
        """The API in this process, through every one of its checks."""
        transport = httpx.ASGITransport(app=self._api, raise_app_exceptions=False)
        return AsyncClient("http://dashboard", key, transport=transport, retry=retry)

    def _is_known_host(self, headers: Headers) -> bool:
        return self._hosts is None or _name_of(headers.get("host", "")) in self._hosts

    # -- NiceGUI, when it is first needed --------------------------------------------------------------------

    async def pages(self) -> ASGIApp:
        async with self._loading:
            if self._pages is None:
                module = await asyncio.to_thread(_import_pages)
                shell = module.create_shell()
                await self._stack.enter_async_context(shell.router.lifespan_context(shell))
                self._pages = Nonce(shell)
        return self._pages


def _import_pages() -> Any:
    from services.dashboard import app

    return app


class Nonce:
    """Gives NiceGUI's own inline scripts a nonce, and the page the policy that names it.

    NiceGUI writes `<` of everything that it shows as an entity, so `<script` in its answer is its template's or ours.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        body = b""

        async def rewriting(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                if dict(message["headers"]).get(b"content-type", b"").startswith(b"text/html"):
                    start = message
                else:
                    await send(message)
                return
            if start is None:
                await send(message)
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                assert len(body) < _MAX_PAGE_BYTES
                return
            nonce = secrets.token_urlsafe(18)
            shown = body.replace(b"<script", f'<script nonce="{nonce}"'.encode())
            dropped = (b"content-length", b"content-security-policy")
            headers = [(name, value) for name, value in start["headers"] if name not in dropped]
            headers.append((b"content-length", str(len(shown)).encode()))
            headers.append((b"content-security-policy", _PAGE_POLICY.format(nonce=nonce).encode()))
            await send({**start, "headers": headers})
            await send({"type": "http.response.body", "body": shown})

        await self._app(scope, receive, rewriting)


def _is_ours(path: str) -> bool:
    return path.startswith(_BELOW) or _PAGES.fullmatch(path) is not None


def _guarded(send: Send) -> Send:
    """Every answer with the headers that keep a browser careful."""

    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {name for name, _ in message["headers"]}
            added = [(n.encode(), v.encode()) for n, v in _SECURITY.items() if n.encode() not in there]
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return guarded


def _is_same_origin(headers: Headers) -> bool:
    """By Origin, which a browser sends with every websocket and every post, and scripts can't forge."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin, host = headers.get("origin", ""), headers.get("host", "")
    return bool(host) and urlsplit(origin).netloc == host and urlsplit(origin).scheme in ("http", "https")


def _name_of(host: str) -> str:
    return re.sub(r":\d+$", "", host).lower()


def _without_prefix(scope: Scope) -> Scope:
    """NiceGUI writes X-Forwarded-Prefix, which anybody may send, into its pages."""
    return {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"x-forwarded-prefix"]}


def _cookie_name(scope: Scope) -> str:
    """Cookies know no ports, so that two servers of one machine would share one; under TLS the prefix binds it."""
    if scope["scheme"] in ("https", "wss"):
        return "__Host-equipoise"
    return f"equipoise-{(scope.get('server') or ('', 0))[1] or 0}"


def _cookie(scope: Scope) -> str | None:
    try:
        found = SimpleCookie(Headers(scope=scope).get("cookie", "")).get(_cookie_name(scope))
    except CookieError:
        return None
    return found.value if found else None


def _set_cookie(answer: Response, scope: Scope, value: str, max_age_s: int) -> None:
    answer.set_cookie(
        _cookie_name(scope),
        value,
        max_age=max_age_s,
        path="/",
        secure=scope["scheme"] == "https",
        httponly=True,
        samesite="strict",
    )


def _page(html: str, status: int = 200) -> Response:
    return HTMLResponse(html, status, headers={"content-security-policy": POLICY, "cache-control": "no-store"})


def _asset(name: str) -> Response:
    """A file of static/: nothing else has such a name."""
    kind = _ASSETS.get(name.rpartition(".")[2])
    found = resources.files("services.dashboard") / "static" / name
    if kind is None or not re.fullmatch(r"[a-z_]+\.[a-z]+", name) or not found.is_file():
        return PlainTextResponse("no such file", 404)
    return Response(found.read_bytes(), media_type=kind, headers={"cache-control": "no-cache"})


async def _form(receive: Receive) -> dict[str, str]:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _MAX_FORM_BYTES:
            return {}
        if not message.get("more_body"):
            break
    return {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
