"""The events of the jobs that someone watches: one poller for each job, whatever the number of its readers."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from itertools import takewhile
from typing import Any

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool

from orchestrator.errors import JobNotFound, StoreUnavailable
from orchestrator.state.states import is_terminal
from orchestrator.state.store import Event, JobStore

_PAGE = 100
_RECENT = 1000  # events of a job kept for its readers; who is further behind reads them from Redis
_KEEPALIVE_S = 15.0


def event_document(event: Event) -> dict[str, Any]:
    return {
        "object": "event",
        "seq": event.seq,
        "type": event.type,
        "at": event.at,
        "level": event.level,
        "data": event.data,
    }


def is_another(store: JobStore, job_id: str, seq: int, at: float) -> bool:
    """Whether the event of this number is not the one of that time: the job was put back, and told of other things."""
    found = store.events(job_id, after=seq - 1, limit=1).items if seq else ()
    return bool(found) and found[0].seq == seq and found[0].at != at


class Feeds:
    """The feeds of one server; all of it runs in one event loop."""

    def __init__(self, poll_s: float, stopping: threading.Event) -> None:
        self._poll_s = poll_s
        self._stopping = stopping
        self._feeds: dict[tuple[str, str], Feed] = {}

    async def follow(self, store: JobStore, job_id: str, after: int, newest: int) -> AsyncIterator[bytes]:
        """The events numbered above `after` as text/event-stream, until the job is over or the server stops.

        `newest` is one that there is: a cursor beyond it says nothing of what the job's other readers lack.
        A Redis that is away is waited for: the reader's connection outlives it, and misses nothing. A slow reader
        holds up nobody and keeps nothing in memory: it gets what is next after what it took, from Redis if need be.
        """
        key = (store.owner, job_id)
        feed = self._feeds.get(key)
        if feed is None or feed.poller.done():
            feed = self._feeds[key] = Feed(store, job_id, min(after, newest), self._poll_s, self._stopping)
        feed.readers += 1
        try:
            async for chunk in feed.read(after):
                yield chunk
        finally:
            feed.readers -= 1
            if feed.readers == 0:
                feed.poller.cancel()
                if self._feeds.get(key) is feed:
                    del self._feeds[key]


class Feed:
    """What is numbered above `floor` and was read from Redis, for those who read on from there or later.

    Consumes the job's events; its readers wait for `_news`, which is set, and replaced, with every page.
    """

    def __init__(self, store: JobStore, job_id: str, after: int, poll_s: float, stopping: threading.Event) -> None:
        self._store = store
        self._job_id = job_id
        self._floor = after
        self._newest = after
        self._last: Event | None = None
        self._recent: deque[tuple[int, bytes]] = deque()
        self._news = asyncio.Event()
        self.readers = 0
        self.poller = asyncio.create_task(self._poll(poll_s, stopping))
        self.poller.add_done_callback(lambda _: self._tell())

    async def read(self, after: int) -> AsyncIterator[bytes]:
        """Chunks of whole events, and a comment where nothing comes for long."""
        quiet_since = time.monotonic()
        while True:
            news, over = self._news, self.poller.done()
            if after >= self._floor:
                found = self._since(after)
            else:
                found = await self._older(after)
                if not found:  # they are no longer kept
                    after = max(after, self._floor)
                    continue
            if found:
                after = found[-1][0]
                quiet_since = time.monotonic()
                yield b"".join(text for _, text in found)
                continue
            if over:
                self.poller.result()  # raises what broke it
                return
            try:
                await asyncio.wait_for(news.wait(), quiet_since + _KEEPALIVE_S - time.monotonic())
            except TimeoutError:
                quiet_since = time.monotonic()
                yield KEEPALIVE_COMMENT

    def _since(self, after: int) -> list[tuple[int, bytes]]:
        return list(takewhile(lambda kept: kept[0] > after, reversed(self._recent)))[::-1]

    async def _older(self, after: int) -> list[tuple[int, bytes]]:
        """A page from Redis, up to the floor or beyond; empty if nothing follows."""
        while True:
            try:
                page = await run_in_threadpool(self._store.events, self._job_id, after=after, limit=_PAGE)
            except JobNotFound:
                return []
            except StoreUnavailable:
                await asyncio.sleep(1)
                continue
            return [(event.seq, _text(event)) for event in page.items]

    async def _poll(self, poll_s: float, stopping: threading.Event) -> None:
        was_away = False
        while not stopping.is_set():
            events: tuple[Event, ...] = ()
            over = False
            try:
                if was_away and self._last is not None:  # it may be another Redis: an older copy
                    seq, at = self._last.seq, self._last.at
                    if await run_in_threadpool(is_another, self._store, self._job_id, seq, at):
                        return
                was_away = False
                status, page = await run_in_threadpool(self._store.watch, self._job_id, after=self._newest, limit=_PAGE)
                if page.newest < self._newest:  # the job was put back, and counts from 1: who reconnects starts over
                    return
                events, over = page.items, is_terminal(status)
            except JobNotFound:
                return
            except StoreUnavailable:
                was_away = True
            if events:
                self._keep(events)
            elif over:  # the status is from before the events, so there are no more
                return
            else:
                await asyncio.sleep(poll_s)

    def _keep(self, events: tuple[Event, ...]) -> None:
        self._recent.extend((event.seq, _text(event)) for event in events)
        self._last, self._newest = events[-1], events[-1].seq
        while len(self._recent) > _RECENT:
            self._floor, _ = self._recent.popleft()
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


def _text(event: Event) -> bytes:
    data = json.dumps(event_document(event), separators=(",", ":"))
    return format_sse_event(data_str=data, event=event.type, id=f"{event.seq}@{event.at}")
