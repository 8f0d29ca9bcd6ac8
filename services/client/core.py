"""One call: send, read, try again. Written once, as coroutines.

The asynchronous client awaits them. The blocking one runs them with I/O that never suspends, so that each is over at
its first step (`finish`); nothing below knows which of the two it serves.
"""

from __future__ import annotations

import io
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager, closing
from typing import Any, BinaryIO, Protocol, TypeVar

import anyio
import anyio.to_thread
import httpx

from services.client.errors import ApiError, NotSendable, problem, unreachable
from services.client.requests import Request
from services.client.retry import Retry
from services.version import HEADER, difference

T = TypeVar("T")
log = logging.getLogger("equipoise.client")

_CHUNK_BYTES = 1 << 16
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_AWAY = frozenset({502, 503, 504})


class Io(Protocol):
    """Where the two clients differ."""

    @property
    def http(self) -> httpx.Client | httpx.AsyncClient: ...

    async def send(self, request: httpx.Request) -> httpx.Response:
        """With its body still to be read."""
        ...

    async def read(self, response: httpx.Response) -> None: ...

    def chunks(self, response: httpx.Response) -> AsyncIterator[bytes]: ...

    async def close(self, response: httpx.Response) -> None: ...

    async def sleep(self, seconds: float) -> None: ...

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Runs what blocks (a file) where it holds nobody up."""
        ...

    def content(self, file: BinaryIO, length: int | None) -> Any:
        """A body that is read as it is sent: so many bytes of a file, or all. Raises NotSendable."""
        ...


class Core:
    """A server, a key (inside `io`) and a patience."""

    def __init__(self, io: Io, url: str, retry: Retry) -> None:
        self.io, self.url, self.retry = io, url, retry
        self._knows_version = False

    async def call(self, request: Request[T], retry: Retry | None = None) -> T:
        """Raises ApiError."""
        async with self.answer(request, retry) as response:
            return request.parse(response)

    @asynccontextmanager
    async def answer(
        self, request: Request[Any], retry: Retry | None = None, *, streamed: bool = False
    ) -> AsyncIterator[httpx.Response]:
        """A successful answer. What isn't `streamed` is read here, so that a body that breaks off is asked for again.

        A request that is not repeatable is sent again only where it can't have been carried out: when no connection was
        made, or on 429, which is said before anything is done.
        """
        retry = retry or self.retry
        start = request.content.tell() if request.content is not None and request.content.seekable() else None
        began, attempts = time.monotonic(), 0
        while True:
            attempts += 1
            response: httpx.Response | None = None
            failure: ApiError
            try:
                if request.content is not None and start is not None:
                    request.content.seek(start)
                response = await self.io.send(self._built(request))
                if not (streamed and response.is_success):
                    await self.io.read(response)
            except httpx.RequestError as error:
                if response is not None:
                    await self.io.close(response)
                failure = unreachable(self.url, error, request.headers.get("idempotency-key"))
                may_repeat = request.is_repeatable or isinstance(error, _NEVER_SENT)
                may_repeat = may_repeat and failure.code != "untrusted_certificate"
            else:
                self._compare_versions(response)
                if response.is_success:
                    break
                failure = problem(response)
                may_repeat = response.status_code == 429 or (request.is_repeatable and response.status_code in _AWAY)
            wait_s = retry.wait_s(attempts, time.monotonic() - began, failure.retry_after_s)
            if not may_repeat or wait_s is None or (request.content is not None and start is None):
                failure.idempotency_key = request.headers.get("idempotency-key")
                raise failure
            await self.io.sleep(wait_s)
        try:
            yield response
        finally:
            await self.io.close(response)

    def _compare_versions(self, response: httpx.Response) -> None:
        """Warns once."""
        if self._knows_version or HEADER not in response.headers:
            return
        self._knows_version = True
        if told := difference(response.headers[HEADER]):
            log.warning("%s", told)

    def _built(self, request: Request[Any]) -> httpx.Request:
        path, headers, content = request.path, dict(request.headers), None
        if request.content is not None:
            length = _left(request.content)
            headers["content-length"] = None if length is None else str(length)
            content = self.io.content(request.content, length)
        try:
            return self.io.http.build_request(
                request.method,
                path,
                params={name: value for name, value in request.params.items() if value is not None},
                headers={name: value for name, value in headers.items() if value is not None},
                json=request.body,
                content=content,
                timeout=self._patience(request.timeout_s),
            )
        except ValueError as error:  # NaN and the infinities, which JSON has not; half of a surrogate pair
            raise NotSendable(f"what is asked can't be sent: {error}") from None

    def _patience(self, timeout_s: float | None) -> httpx.Timeout:
        """Of a request: what takes the server long to answer takes it no longer to be reached."""
        own = self.io.http.timeout
        if timeout_s is None:
            return own
        connect, pool = (timeout_s if limit is None else min(limit, timeout_s) for limit in (own.connect, own.pool))
        return httpx.Timeout(timeout_s, connect=connect, pool=pool)


class BlockingIo:
    """Nothing here suspends."""

    def __init__(self, http: httpx.Client) -> None:
        self.http: httpx.Client = http

    async def send(self, request: httpx.Request) -> httpx.Response:
        return self.http.send(request, stream=True)

    async def read(self, response: httpx.Response) -> None:
        response.read()

    async def chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        for chunk in response.iter_bytes():
            yield chunk

    async def close(self, response: httpx.Response) -> None:
        response.close()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def in_thread(self, work: Callable[[], T]) -> T:
        return work()

    def content(self, file: BinaryIO, length: int | None) -> Iterator[bytes]:
        sent = 0
        while chunk := file.read(_next_bytes(sent, length)):
            sent += len(chunk)
            yield chunk
        _check_whole(sent, length)


class AsyncIo:
    """For asyncio and trio."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http: httpx.AsyncClient = http

    async def send(self, request: httpx.Request) -> httpx.Response:
        return await self.http.send(request, stream=True)

    async def read(self, response: httpx.Response) -> None:
        await response.aread()

    def chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        return response.aiter_bytes()

    async def close(self, response: httpx.Response) -> None:
        await response.aclose()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def in_thread(self, work: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(work)

    async def content(self, file: BinaryIO, length: int | None) -> AsyncIterator[bytes]:
        sent = 0
        while chunk := await anyio.to_thread.run_sync(file.read, _next_bytes(sent, length)):
            sent += len(chunk)
            yield chunk
        _check_whole(sent, length)


def _left(file: BinaryIO) -> int | None:
    """Bytes from where the file stands to its end; None where that can't be told. Raises NotSendable."""
    if isinstance(file, io.TextIOBase):
        raise NotSendable("content: expected a file that is opened in binary mode, as by open(path, 'rb')")
    if not file.seekable():
        return None
    at = file.tell()
    length = file.seek(0, os.SEEK_END) - at
    file.seek(at)
    return max(0, length)


def _next_bytes(sent: int, length: int | None) -> int:
    return _CHUNK_BYTES if length is None else min(_CHUNK_BYTES, length - sent)


def _check_whole(sent: int, length: int | None) -> None:
    if length is not None and sent < length:
        raise NotSendable(f"content: the file ended {length - sent} bytes early: it was cut while it was sent")


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine whose I/O blocks."""
    with closing(coroutine):
        try:
            coroutine.send(None)
        except StopIteration as done:
            result: T = done.value
            return result
    raise AssertionError("I/O of the blocking client was suspended")


def each(stream: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    """The items of an asynchronous generator whose I/O blocks."""
    try:
        while True:
            try:
                yield finish(_next(stream))
            except StopAsyncIteration:
                return
    finally:
        finish(stream.aclose())


async def _next(stream: AsyncIterator[T]) -> T:
    return await anext(stream)
