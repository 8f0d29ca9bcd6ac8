"""Who may ask for what: a key on every request, whose owner and scopes decide, and a default of no."""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Asgi

from orchestrator.errors import StoreUnavailable
from orchestrator.state.keystore import OWNER_KEYS_WORTH, ApiKey, KeyNotFound, KeyStore, Scope
from orchestrator.state.redis_calls import RedisCalls
from services import audit
from services.errors import ApiProblem, problem_response, unavailable
from services.keys import digest, key_id_in
from services.own_key import OwnKey
from services.scopes import CHANGES_NOTHING, STOPS, route_of, scope_needed

T = TypeVar("T")

PUBLIC_PATHS = frozenset({"/livez"})
_PROBED = "/readyz"
_THREADS = 16
_RECENT_KEYS = 10_000
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Whom a request's key speaks for."""

    key_id: str
    key_name: str  # as the steering log has it
    owner: str
    scopes: frozenset[Scope]
    is_operator: bool = False  # the installation's own key, which may act for any owner

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes


class RecentKeys(KeyStore):
    """Keys as they were at most `fresh_s` ago, so that not every request asks Redis.

    One revoked through this object is refused at once; through another process on the same Redis, after `fresh_s` at
    the latest.
    """

    def __init__(self, calls: RedisCalls, *, fresh_s: float = 2.0) -> None:
        super().__init__(calls)
        self._fresh_s = fresh_s
        self._lock = threading.Lock()
        self._found: dict[str, tuple[float, ApiKey, float]] = {}  # when by our clock, the key, when by Redis

    def recent(self, key_id: str) -> tuple[ApiKey, float] | None:
        """What `look_up` found of late, and the time by Redis; waits for nothing."""
        found = self._found.get(key_id)
        if found is None:
            return None
        at_s, key, now = found
        passed_s = time.monotonic() - at_s
        return (key, now + passed_s) if passed_s <= self._fresh_s else None

    def look_up(self, key_id: str) -> tuple[ApiKey, float]:
        """A key and the time by Redis, and both are known for a while. `KeyNotFound`."""
        at_s = time.monotonic()
        key, now = self.find(key_id)
        with self._lock:
            if len(self._found) >= _RECENT_KEYS:
                self._found.clear()
            if key_id not in self._found or self._found[key_id][0] <= at_s:  # else one who asked later is back before
                self._found[key_id] = (at_s, key, now)
        return key, now

    def revoke(self, key_id: str, *, by: str = "") -> ApiKey:
        super().revoke(key_id, by=by)
        return self.look_up(key_id)[0]


class RequireKey:
    """Refuses every request without a valid key, whatever its path, and what the key's scopes do not reach.

    `own` is the installation's own key, an admin of `owner`: it is known without Redis, so that 503 and not 401
    tells of a Redis that is away. `metrics_key_sha256` is one that GET /metrics alone takes, with everyone's figures.
    All others are looked up by id, or were of late (RecentKeys). A stream's key is looked up every `recheck_s`, whoever
    revoked it. The principal goes to the request's state. With `keyless_probes` whoever shows no key may ask /readyz,
    as Kubernetes' probes have none: it says yes or no. A key that is shown is checked.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        own: OwnKey,
        owner: str,
        keys: RecentKeys,
        metrics_key_sha256: str | None = None,
        keyless_probes: bool = False,
        writes_per_minute: int = 0,
        recheck_s: float = 3.0,
    ) -> None:
        self._app = app
        self._own = own
        self._owner = owner
        self._metrics_key_sha256 = metrics_key_sha256
        self._keyless_probes = keyless_probes
        self._keys = keys
        self._writes_per_minute = writes_per_minute
        self._recheck_s = recheck_s
        self._threads: anyio.CapacityLimiter | None = None  # made in the event loop that it belongs to

    async def __call__(self, scope: Asgi, receive: Receive, send: Send) -> None:
        is_open = scope["type"] == "lifespan" or scope["path"] in PUBLIC_PATHS
        if is_open or (self._keyless_probes and _is_probe(scope)):
            await self._app(scope, receive, send)
            return
        try:
            principal, route = await self._admit(scope)
        except ApiProblem as problem:
            await _refuse(problem, scope, receive, send)
            return
        except StoreUnavailable as error:
            await _refuse(unavailable(error), scope, receive, send)
            return
        scope.setdefault("state", {}).update(principal=principal, key_name=principal.key_name)
        if route is not None and audit.concerns(route):
            send = audit.telling(send, scope, route, by=principal.key_name, owner=principal.owner)
        if not _streams(scope) or (principal.is_operator and not self._own.may_change):
            await self._app(scope, receive, send)
        else:
            await self._while_valid(scope, receive, send)

    async def _admit(self, scope: Asgi) -> tuple[Principal, str | None]:
        """With the route. Raises ApiProblem: 401 without a valid key, 403 beyond its scopes, 429 above its rate."""
        principal = await self._principal(scope)
        if principal is None:
            raise _unauthenticated(scope)
        route = route_of(scope["app"].routes, scope)
        if route is not None and not principal.may(needed := scope_needed(route)):
            raise ApiProblem(403, "insufficient_scope", f"this needs a key with the scope '{needed}'")
        if self._writes_per_minute and scope.get("method", "GET") not in _READING and route not in CHANGES_NOTHING:
            most, owner = self._writes_per_minute, None if route in STOPS else principal.owner
            wait_s = await self._in_thread(self._keys.count_write, principal.key_id, owner, most)
            if wait_s:
                message = f"a key may write {most} times a minute, and an owner {OWNER_KEYS_WORTH * most} times; "
                message += f"try again in {wait_s} s"
                raise ApiProblem(429, "rate_limited", message, headers={"retry-after": str(wait_s)})
        return principal, route

    async def _principal(self, scope: Asgi, *, afresh: bool = False) -> Principal | None:
        """Whom the key in the header speaks for; None if it is absent, malformed, unknown, expired or revoked.

        `afresh`: as it is now, not as it was of late.
        """
        shown = _key_shown(scope)
        if shown is None:
            return None
        key = shown.decode("utf-8", "surrogateescape")
        given = digest(key)
        if hmac.compare_digest(given, self._own.sha256):
            return _operator(given, self._owner)
        if self._metrics_key_sha256 and hmac.compare_digest(given, self._metrics_key_sha256):
            is_scrape = (scope.get("method"), scope["path"]) == ("GET", "/metrics")
            return _scraper(given, self._owner) if is_scrape else None
        key_id = key_id_in(key)
        if key_id is None:
            return None
        if not afresh and (recent := self._keys.recent(key_id)):
            return _principal_of(*recent, given)
        return await self._in_thread(self._look_up, key_id, given)

    async def _in_thread(self, call: Callable[..., T], *args: Any) -> T:
        """Threads of our own, so that slow handlers keep nobody from being let in."""
        if self._threads is None:
            self._threads = anyio.CapacityLimiter(_THREADS)
        return await anyio.to_thread.run_sync(call, *args, limiter=self._threads)

    def _look_up(self, key_id: str, given: str) -> Principal | None:
        try:
            key, now = self._keys.look_up(key_id)
        except KeyNotFound:
            return None
        principal = _principal_of(key, now, given)
        if principal is not None:
            with suppress(StoreUnavailable):  # a Redis that takes no writes still serves reads
                self._keys.touch(key, now)
        return principal

    async def _while_valid(self, scope: Asgi, receive: Receive, send: Send) -> None:
        """Serves a stream until it ends or its key does. A Redis that is away ends nothing."""
        started = ended = False
        failure: Exception | None = None

        async def watched_send(message: Message) -> None:
            nonlocal started, ended
            started = started or message["type"] == "http.response.start"
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        async def recheck(serving: anyio.CancelScope) -> None:
            while True:
                await anyio.sleep(self._recheck_s)
                try:
                    valid = await self._principal(scope, afresh=True) is not None
                except StoreUnavailable:
                    continue
                if not valid:
                    serving.cancel()
                    return

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(recheck, tasks.cancel_scope)
            try:
                await self._app(scope, receive, watched_send)
            except Exception as error:  # raised again below: the group would wrap it
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if not started:
            await _refuse(_unauthenticated(scope), scope, receive, send)
        elif not ended:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _operator(sha256: str, owner: str) -> Principal:
    return Principal(
        key_id=sha256[:16],
        key_name=f"key {sha256[:8]}",
        owner=owner,
        scopes=frozenset({Scope.ADMIN}),
        is_operator=True,
    )


def _scraper(sha256: str, owner: str) -> Principal:
    return replace(_operator(sha256, owner), key_name="metrics key", scopes=frozenset({Scope.READ}))


def _principal_of(key: ApiKey, now: float, given: str) -> Principal | None:
    """Whom the key speaks for; None if its secret is another one than was given, or it isn't valid `now`."""
    if not hmac.compare_digest(given, key.sha256) or not key.is_valid_at(now):
        return None
    return Principal(
        key_id=key.key_id,
        key_name=f"key {key.key_id} ({key.name})",
        owner=key.owner,
        scopes=key.scopes,
    )


def _is_probe(scope: Asgi) -> bool:
    shows_key = any(name == b"authorization" for name, _ in scope["headers"])
    return bool(scope["path"] == _PROBED and scope.get("method") in ("GET", "HEAD") and not shows_key)


def _streams(scope: Asgi) -> bool:
    return any(name == b"accept" and b"text/event-stream" in value for name, value in scope["headers"])


async def _refuse(problem: ApiProblem, scope: Asgi, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await problem_response(problem)(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 1008})


def _key_shown(scope: Asgi) -> bytes | None:
    header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, rest = header.partition(b" ")
    return rest.strip() if scheme.lower() == b"bearer" else None


def _unauthenticated(scope: Asgi) -> ApiProblem:
    """Anew each time: an exception keeps the frames it was raised through, and with them what the caller sent.

    Of a key that is shown, one answer for whatever is wrong with it: it tells nobody which keys there were.
    """
    message = "this needs the header 'Authorization: Bearer <key>'; `equipoise up` keeps the key in STATE/api.json"
    if _key_shown(scope):
        message = "this key is unknown, expired or revoked"
    return ApiProblem(401, "unauthenticated", message, headers={"www-authenticate": "Bearer"})
