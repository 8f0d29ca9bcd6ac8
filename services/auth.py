"""Who may ask: one bearer key, of which the server knows only the SHA-256, and a default of no."""

from __future__ import annotations

import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from services.errors import ApiProblem, problem_response
from services.keys import digest

PUBLIC_PATHS = frozenset({"/livez"})


class RequireKey:
    """Refuses every request without the key, whatever its path: a route that is added later is closed already."""

    def __init__(self, app: ASGIApp, *, key_sha256: str) -> None:
        self._app = app
        self._key_sha256 = key_sha256

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in PUBLIC_PATHS:
            await self._app(scope, receive, send)
        elif self._knows(scope):
            scope.setdefault("state", {})["key_name"] = f"key {self._key_sha256[:8]}"  # for the steering log
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await problem_response(_UNAUTHENTICATED)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _knows(self, scope: Scope) -> bool:
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = header.partition(b" ")
        given = digest(key.strip().decode("utf-8", "surrogateescape"))
        return scheme.lower() == b"bearer" and hmac.compare_digest(given, self._key_sha256)


_UNAUTHENTICATED = ApiProblem(
    401,
    "unauthenticated",
    "this needs the header 'Authorization: Bearer <key>'; `equipoise up` keeps the key in STATE/api.json",
    headers={"www-authenticate": "Bearer"},
)
