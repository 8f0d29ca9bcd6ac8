"""What takes several requests, or time: streaming, waiting, downloading."""

from __future__ import annotations

import functools
import math
import os
import secrets
import time
from collections.abc import AsyncGenerator, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import httpx

from services.client.core import Core
from services.client.errors import ApiError, RateLimited, Unavailable, parsed, unexpected, unreachable
from services.client.requests import LONG_S, Request
from services.client.retry import NO_RETRY
from services.client.sse import EventReader
from services.client.types import Event, JobDetail

FINAL = frozenset({"succeeded", "failed", "cancelled"})
RESTING = FINAL | {"paused"}  # nothing will happen by itself

_SILENCE_S = 60.0  # of a stream; the server says something every 15 s
_SHORTEST_S = 1.0  # for an answer, where less is left


async def stream_events(
    core: Core, job_id: str, *, after: int = 0, patience_s: float = 120.0
) -> AsyncGenerator[Event, None]:
    """A job's events as they happen, until it is over: each once, none that is kept left out, whatever the connection.

    A server that is away is waited for; Unavailable when it stays away for `patience_s`. Of a job that was put back,
    after its Redis was lost or from an older copy of it, all events are told anew.
    """
    away, last = _Away(core, patience_s), str(after)
    while True:
        request: Request[Any] = Request(
            method="GET",
            route="/v1/jobs/{job_id}/events",
            ids={"job_id": job_id},
            headers={"accept": "text/event-stream", "last-event-id": last},
            timeout_s=_SILENCE_S,
            is_repeatable=True,
        )
        try:
            async with core.answer(request, NO_RETRY, streamed=True) as response:
                if response.status_code == 204:  # it is over, and all is told
                    return
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    raise unexpected(response)
                if (cursor := _cursor(response, after)) < after:
                    after, last = cursor, str(cursor)
                reader = EventReader()
                async for chunk in core.io.chunks(response):
                    away.reached()  # only now: what answers and then says nothing is no better than what is away
                    for data in reader.feed(chunk):
                        event: Event = parsed(response, data)
                        if event["seq"] > after:
                            after = event["seq"]
                            last = f"{after}@{event['at']}" if "at" in event else str(after)
                            away.progressed()
                            yield event
        except httpx.TransportError as error:
            await away.wait(unreachable(core.url, error))
        except (Unavailable, RateLimited) as error:
            await away.wait(error)
        else:
            await away.ended()  # as it should: with the job, the server, or the key


def _cursor(response: httpx.Response, asked: int) -> int:
    """Where the server's stream begins: not where it was asked to, if it knows of no such event."""
    text = response.headers.get("event-cursor", "")
    return int(text) if text.isascii() and text.isdigit() else asked


async def wait(
    core: Core,
    job_id: str,
    *,
    until: Collection[str] = RESTING,
    timeout_s: float | None = None,
    poll_s: float = 1.0,
    patience_s: float = 120.0,
) -> JobDetail:
    """The job, once its status is one of `until`, or one that no job ever leaves.

    TimeoutError after `timeout_s`, however long the server says nothing; the status is asked for at least once, for
    which a second is given. A server that is away is waited for; Unavailable when it stays so for `patience_s`.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    away = _Away(core, patience_s)
    request: Request[JobDetail] = Request(
        method="GET", route="/v1/jobs/{job_id}", ids={"job_id": job_id}, is_repeatable=True
    )

    def left_s() -> float:
        return math.inf if deadline is None else max(0.0, deadline - time.monotonic())

    while True:
        try:
            job = await core.call(_within(core, request, left_s()), NO_RETRY)
        except (Unavailable, RateLimited) as error:
            await away.wait(error, longest_s=left_s())
        else:
            away.reached()
            away.progressed()
            if job["status"] in until or job["status"] in FINAL:
                return job
            await core.io.sleep(min(poll_s, left_s()))
        if timeout_s is not None and left_s() == 0:
            raise TimeoutError(f"{job_id} is not {', '.join(sorted(until))} after {timeout_s:g} s")


def _within(core: Core, request: Request[JobDetail], left_s: float) -> Request[JobDetail]:
    """The request with no more patience than is left, but enough to be answered."""
    if left_s == math.inf:
        return request
    own_s, left_s = core.io.http.timeout.read, max(left_s, _SHORTEST_S)
    return replace(request, timeout_s=left_s if own_s is None else min(own_s, left_s))


async def download(core: Core, job_id: str, step: int, to: str | os.PathLike[str]) -> Path:
    """A checkpoint as one file, at `to` when it is whole; what was there before stays until then.

    ValueError where `to` is a directory.
    """
    path = Path(to)
    if not path.name or path.is_dir():
        raise ValueError(f"to: expected the path of a file, such as model.tar, but {str(to)!r} is a directory")
    request: Request[Any] = Request(
        method="GET",
        route="/v1/jobs/{job_id}/checkpoints/{step}/download",
        ids={"job_id": job_id, "step": step},
        timeout_s=LONG_S,  # the server sums every file before the first byte
        is_repeatable=True,
    )
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        async with core.answer(request, streamed=True) as response:
            file: BinaryIO = await core.io.in_thread(lambda: draft.open("xb"))
            with file:
                async for chunk in core.io.chunks(response):
                    await core.io.in_thread(functools.partial(file.write, chunk))
                await core.io.in_thread(lambda: os.fsync(file.fileno()))
        draft.replace(path)
    except httpx.TransportError as error:
        raise unreachable(core.url, error) from None
    finally:
        draft.unlink(missing_ok=True)
    return path


async def ready(core: Core) -> bool:
    """Whether a server answers there, knows the key, and has its Redis."""
    try:
        await core.call(Request(method="GET", route="/readyz"), NO_RETRY)
    except ApiError:
        return False
    return True


class _Away:
    """How long a server is away already, and how long to wait before asking again."""

    def __init__(self, core: Core, patience_s: float) -> None:
        self._core, self._patience_s = core, patience_s
        self._since: float | None = None
        self._tries = 0

    def reached(self) -> None:
        self._since = None

    def progressed(self) -> None:
        self._tries = 0

    async def wait(self, failure: ApiError, longest_s: float = math.inf) -> None:
        """Raises the failure where patience ends; waits `longest_s` at most."""
        self._tries += 1
        retry = self._core.retry
        asked_s = min(failure.retry_after_s or 0.0, retry.longest_wait_s)
        wait_s = min(max(retry.backoff_s(self._tries), asked_s), longest_s)
        self._since = self._since or time.monotonic()
        if failure.code == "untrusted_certificate" or time.monotonic() + wait_s > self._since + self._patience_s:
            raise failure
        await self._core.io.sleep(wait_s)

    async def ended(self) -> None:
        """What brought something is asked again at once, what brought nothing after a while."""
        self.reached()
        if self._tries:
            await self._core.io.sleep(self._core.retry.backoff_s(self._tries))
        self._tries += 1
