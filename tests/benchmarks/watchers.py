"""Open pages of the dashboard without a screen: what many people's browsers ask of a server, and none of their drawing.

Each signs in for itself, loads the page, opens its websocket and answers as the page's script does (NiceGUI's
protocol over socket.io: connect with the page's own query, acknowledge what came every three seconds).
"""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import httpx
import socketio

_ACK_S = 3.0
_TOGETHER = 4  # that open at a time
_QUERY = re.compile(r"query: (\{.*?\}),\n")


@dataclass
class Page:
    """One open page, and what it was sent since `reset`."""

    url: str
    key: str
    path: str
    messages: int = 0
    text: int = 0
    _query: dict[str, Any] = field(default_factory=dict)
    _socket: socketio.AsyncClient = field(default_factory=lambda: socketio.AsyncClient(reconnection=False))

    async def open(self) -> Self:
        async with httpx.AsyncClient(base_url=self.url, timeout=120) as browser:
            origin = {"origin": self.url}
            answer = await browser.post("/signin", data={"key": self.key}, headers=origin)
            assert answer.status_code == 303, answer.text[:500]
            answer = await browser.get(self.path)
            found = _QUERY.search(answer.text)
            assert found is not None, answer.text[:500]
            cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
        tab = str(uuid.uuid4())
        self._query = {**ast.literal_eval(found[1]), "document_id": str(uuid.uuid4()), "tab_id": tab, "old_tab_id": ""}
        self._socket.on("*", self._take)
        query = httpx.QueryParams({name: str(value) for name, value in self._query.items()})
        await self._socket.connect(
            f"{self.url}/?{query}",
            headers={"origin": self.url, "cookie": cookies},
            transports=["websocket"],
            socketio_path="/_nicegui_ws/socket.io",
        )
        if self._query.get("implicit_handshake") != "true":
            assert await self._socket.call("handshake", self._query), "the page's handshake was refused"
        return self

    def _take(self, _event: str, *arguments: Any) -> None:
        self.messages += 1
        self.text += len(json.dumps(arguments))
        for argument in arguments:
            if isinstance(argument, dict) and "_id" in argument:
                self._query["next_message_id"] = argument["_id"] + 1

    async def acknowledge(self) -> None:
        if not self._socket.connected:  # its server is gone
            return
        client, upto = self._query["client_id"], self._query.get("next_message_id", 0)
        await self._socket.emit("ack", {"client_id": client, "next_message_id": upto})

    async def close(self) -> None:
        await self._socket.disconnect()


class Watchers:
    """Pages in an event loop of their own thread."""

    def __init__(self, pages: list[Page]) -> None:
        self.pages = pages

    def reset(self) -> None:
        for page in self.pages:
            page.messages = page.text = 0

    async def stay(self, ready: threading.Event, gone: asyncio.Event) -> None:
        turns = asyncio.Semaphore(_TOGETHER)

        async def opened(page: Page) -> None:
            async with turns:
                await page.open()

        await asyncio.gather(*map(opened, self.pages))
        ready.set()
        while not gone.is_set():
            for page in self.pages:
                await page.acknowledge()
            try:
                await asyncio.wait_for(gone.wait(), _ACK_S)
            except TimeoutError:
                continue
        for page in self.pages:
            await page.close()


@contextmanager
def watching(url: str, key: str, path: str, pages: int, *, timeout_s: float = 180.0) -> Iterator[Watchers]:
    """`pages` of them, each in a session of its own, open when this returns."""
    watchers = Watchers([Page(url, key, path) for _ in range(pages)])
    ready, loop, gone = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
    problems: list[BaseException] = []

    def run() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # they stand for other people's computers
        try:
            loop.run_until_complete(watchers.stay(ready, gone))
        except BaseException as problem:  # told to whoever waits
            problems.append(problem)
            ready.set()

    thread = threading.Thread(target=run, name="watchers", daemon=True)
    thread.start()
    assert ready.wait(timeout_s), f"{pages} pages did not open within {timeout_s:g} s"
    if problems:
        raise problems[0]
    try:
        yield watchers
    finally:
        loop.call_soon_threadsafe(gone.set)
        thread.join(30)
        loop.close()
    if problems:
        raise problems[0]
