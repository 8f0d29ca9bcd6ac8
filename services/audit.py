"""Who changed what, and who took weights away: one line of the log for each such request that a handler answered.

The message is a JSON object, under the logger `equipoise.audit`; `serve` writes it, and whoever collects logs keeps it.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from starlette.types import Message, Scope, Send

from orchestrator import logs
from services.scopes import CHANGES_NOTHING, DOWNLOADS

log = logging.getLogger("equipoise.audit")
_PATH_CHARS = 500


def concerns(route: str) -> bool:
    """Of routes as services/scopes.py names them."""
    if route in CHANGES_NOTHING:
        return False
    return route in DOWNLOADS or not route.startswith(("GET ", "HEAD ", "OPTIONS ", "WEBSOCKET "))


def telling(send: Send, scope: Scope, route: str, *, by: str, owner: str) -> Send:
    """Sends the same, and logs the request once its answer's status is known."""

    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            tell(**_line(scope, route, message), by=by, owner=owner)
        await send(message)

    return told


def tell(*, by: str, owner: str, **more: Any) -> None:
    line = {"by": by, "owner": owner, **more, "request_id": logs.request_id()}
    log.info("%s", json.dumps({name: value for name, value in line.items() if value is not None}))


def _line(scope: Scope, route: str, start: Message) -> dict[str, Any]:
    client = scope.get("client")
    made = next((value.decode("latin-1") for name, value in start["headers"] if name == b"location"), None)
    return {
        "route": route,
        "path": scope["path"][:_PATH_CHARS],
        "made": made,
        "status": start["status"],
        "client": client[0] if client else None,
    }
