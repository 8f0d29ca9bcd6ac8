"""An end to bodies that trickle in: a connection that sends a byte now and then would hold what its request holds."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.errors import ApiProblem


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How slowly a body may come: `grace_s` and what `bytes_per_s` makes of its size so far, `longest_s` in all."""

    grace_s: float
    bytes_per_s: float
    longest_s: float

    def allowed_s(self, seen: int) -> float:
        return min(self.grace_s + seen / self.bytes_per_s, self.longest_s)


JSON_PACE = Pace(grace_s=20.0, bytes_per_s=16 * 1024, longest_s=90.0)
UPLOAD_PACE = Pace(grace_s=30.0, bytes_per_s=32 * 1024, longest_s=1800.0)


def paced(receive: Receive, pace: Pace) -> Receive:
    """The same for who reads a body: ApiProblem (408) where it is late."""
    began, seen, whole = time.monotonic(), 0, False

    async def receive_in_time() -> Message:
        nonlocal seen, whole
        if whole:  # what comes now is a disconnect, whenever it likes
            return await receive()
        with anyio.move_on_after(began + pace.allowed_s(seen) - time.monotonic()):
            message = await receive()
            seen += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            return message
        raise ApiProblem(408, "body_timeout", "the body came too slowly", headers={"connection": "close"})

    return receive_in_time


class BodyDeadline:
    """ASGI middleware: 408 where a body is later than its pace allows, whoever reads it."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        uploads: Collection[tuple[str, str]] = (),
        pace: Pace = JSON_PACE,
        upload_pace: Pace = UPLOAD_PACE,
    ) -> None:
        """`uploads`: (method, path) of the routes that take whole files."""
        self._app = app
        self._uploads = frozenset(uploads)
        self._pace, self._upload_pace = pace, upload_pace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        pace = self._upload_pace if (scope["method"], scope["path"]) in self._uploads else self._pace
        await self._app(scope, paced(receive, pace), send)
