"""What a browser takes or gives as a whole file: the API's own route under the session's key, as it comes.

The client of this process would hold an answer in memory, and a checkpoint is as large as its policy; a file of prompts
needs no second copy here.
"""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.dashboard.sessions import Session
from services.dashboard.signin import way_in

_ROUTES = re.compile(r"GET (?P<job>/jobs/[A-Za-z0-9_-]{1,255})/checkpoints/\d{1,9}/download|POST /datasets")
_OURS = frozenset({b"authorization", b"cookie"})  # headers that are not the browser's to say to the API


def download_path(job_id: str, step: int) -> str:
    """Of a checkpoint's policy, as a tar file."""
    return f"/jobs/{job_id}/checkpoints/{step}/download"


def page_of(path: str) -> str:
    """Where whoever asked for this is: after signing in, a file to be saved would leave the browser at the form."""
    found = _ROUTES.fullmatch(f"GET {path}")
    return found["job"] if found else path


def goes_through(scope: Scope) -> bool:
    return scope["type"] == "http" and _ROUTES.fullmatch(f"{scope['method']} {scope['path']}") is not None


async def pass_through(app: ASGIApp, session: Session, scope: Scope, receive: Receive, send: Send) -> None:
    """`app` is the API behind the dashboard. A download that it refuses is told as a line for a person."""
    refused: Message | None = None
    body = bytearray()
    asked = _for_api(scope, session)

    async def answering(message: Message) -> None:
        nonlocal refused
        scope["route"] = asked.get("route")  # for whoever counts requests outside of the gate
        if message["type"] == "http.response.start" and message["status"] == 401:
            await session.end("key")
        if message["type"] == "http.response.start" and message["status"] >= 400 and scope["method"] == "GET":
            refused = message
        elif refused is None:
            await send(message)
        else:
            body.extend(message.get("body", b""))

    await app(asked, receive, answering)
    if refused is not None:
        answer = _refusal(scope, refused["status"], bytes(body))
        await answer(scope, receive, send)


def _for_api(scope: Scope, session: Session) -> Scope:
    path = f"/v1{scope['path']}"
    headers = [pair for pair in scope["headers"] if pair[0] not in _OURS]
    headers.append((b"authorization", f"Bearer {session.secret}".encode()))
    return {**scope, "path": path, "raw_path": path.encode(), "headers": headers}


def _refusal(scope: Scope, status: int, body: bytes) -> Response:
    """A key that is no longer taken leads to the sign-in page, and from there back to the job."""
    if status == 401:
        return RedirectResponse(way_in("key", page_of(scope["path"])), 303)
    return PlainTextResponse(f"This can't be downloaded: {_message(body)}\n", status)


def _message(body: bytes) -> str:
    try:
        told: Any = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return "the server's log says why"
    return str(told)
