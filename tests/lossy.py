"""Replies that get lost on their way from Redis, and all that is stored, to be compared."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis

from orchestrator.state.embedded_redis import EmbeddedRedis


class LossyProxy:
    """Between a client and the server's socket; loses replies to script calls when it is armed."""

    def __init__(self, upstream: str, path: Path) -> None:
        self.url, self.lost = f"unix://{path}", 0
        self._upstream, self._open = upstream, True
        self._on_loss: Callable[[], Any] | None = None
        self._left = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def arm(self, on_loss: Callable[[], Any] = lambda: None, *, times: int = 1) -> None:
        """Lose the next replies, and do `on_loss` before the client can try again."""
        self._on_loss, self._left = on_loss, times

    def close(self) -> None:
        self._open = False
        with socket.socket(socket.AF_UNIX) as wake:
            wake.connect(self.url.removeprefix("unix://"))
        self._threads[0].join()  # before its listener goes: it may not have come back to accept yet
        self._listener.close()
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self) -> None:
        while True:
            downstream, _ = self._listener.accept()
            if not self._open:
                downstream.close()
                return
            thread = threading.Thread(target=self._serve, args=(downstream,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, downstream: socket.socket) -> None:
        with downstream, socket.socket(socket.AF_UNIX) as upstream:
            upstream.connect(self._upstream)
            while request := downstream.recv(1 << 20):
                upstream.sendall(request)
                reply = upstream.recv(1 << 20)
                if self._on_loss and b"EVALSHA" in request and not reply.startswith(b"-NOSCRIPT"):
                    act = self._on_loss
                    self.lost += 1
                    self._left -= 1
                    if not self._left:
                        self._on_loss = None
                    act()
                    return
                downstream.sendall(reply)


def dump(client: redis.Redis, owner: str) -> dict[str, Any]:
    """All that is stored for an owner, but for times and random tokens."""
    found: dict[str, Any] = {}
    timed = {"created_at", "started_at", "finished_at", "order", "at"}
    for key in client.scan_iter(match=f"mo:{owner}:*", count=1000):
        kind = client.type(key)
        value: Any
        if kind == "hash":
            value = {field: text for field, text in client.hgetall(key).items() if field not in timed}
            value = list(value) if key.endswith(":stalled") else value
        elif kind == "stream":
            value = [(i, {f: t for f, t in e.items() if f not in timed}) for i, e in client.xrange(key)]
        elif kind == "zset":
            value = client.zrange(key, 0, -1)
        elif kind == "list":
            value = [entry.split(" ", 1)[1] for entry in client.lrange(key, 0, -1)]
        else:
            value = client.get(key)
            if ":idem:" in key:  # id and digest; the rest is an answer, with its times
                value = value.split("|")[:2]
        found[key.removeprefix(f"mo:{owner}:")] = value
    return found


@contextlib.contextmanager
def frozen(server: EmbeddedRedis) -> Iterator[None]:
    """A server that is there and does not answer."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)
