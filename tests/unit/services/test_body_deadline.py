"""A body that trickles in is given up, whoever reads it; one that comes at its pace is not."""

import math
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from starlette.types import Message, Receive, Scope, Send

from services.body_deadline import JSON_PACE, UPLOAD_PACE, BodyDeadline, Pace
from services.errors import ApiProblem

NEVER = Pace(grace_s=3600, bytes_per_s=1, longest_s=3600)
NOW = Pace(grace_s=0.05, bytes_per_s=math.inf, longest_s=0.05)


async def read(_: Scope, receive: Receive, send: Send) -> None:
    """What an app does with a body, and then with a stream: it waits for the disconnect."""
    while (message := await receive()).get("more_body"):
        pass
    await send(message)
    await send(await receive())


def ask(path: str, receive: Callable[[], Any], *, pace: Pace, upload_pace: Pace) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    app = BodyDeadline(read, uploads=[("POST", "/files")], pace=pace, upload_pace=upload_pace)
    anyio.run(app, {"type": "http", "method": "POST", "path": path}, receive, send)
    return sent


def part(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.mark.parametrize("path", ["/v1/jobs", "/files"])
def test_a_body_that_stops_coming_is_408(path: str) -> None:
    parts = [part(b"x")]

    async def receive() -> Message:
        if not parts:
            await anyio.sleep_forever()
        return parts.pop()

    paces = {"pace": NOW, "upload_pace": NEVER} if path != "/files" else {"pace": NEVER, "upload_pace": NOW}
    with pytest.raises(ApiProblem) as caught:
        ask(path, receive, **paces)
    assert (caught.value.status, caught.value.code) == (408, "body_timeout")
    assert caught.value.headers == {"connection": "close"}


def test_a_byte_now_and_then_is_no_progress() -> None:
    came = 0

    async def receive() -> Message:
        nonlocal came
        came += 1
        await anyio.sleep(0.01)
        return part(b"x")

    slow = Pace(grace_s=0.1, bytes_per_s=1e6, longest_s=3600)
    with pytest.raises(ApiProblem, match="too slowly"):
        ask("/v1/jobs", receive, pace=slow, upload_pace=NEVER)
    assert came > 1


def test_after_the_body_nothing_is_hurried() -> None:
    parts = [part(b"x"), part(b"y", more=False), {"type": "http.disconnect"}]

    async def receive() -> Message:
        if len(parts) == 1:
            await anyio.sleep(0.2)  # longer than the pace allows for a body
        return parts.pop(0)

    quick = Pace(grace_s=0.1, bytes_per_s=math.inf, longest_s=0.1)
    assert [message["type"] for message in ask("/", receive, pace=quick, upload_pace=NEVER)] == [
        "http.request",
        "http.disconnect",
    ]


def test_the_largest_bodies_have_time_at_an_ordinary_pace() -> None:
    assert JSON_PACE.allowed_s(1 << 20) > 60
    assert UPLOAD_PACE.allowed_s(256 << 20) == UPLOAD_PACE.longest_s
    assert JSON_PACE.allowed_s(0) < UPLOAD_PACE.allowed_s(0) < 60
