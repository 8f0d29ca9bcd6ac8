"""Keeps the store's scripts in a Redis whose users may call scripts by their SHA-1 alone, and load none.

Whoever may load a script may run any, so this is a process of its own with a user of its own. Redis forgets scripts
when it restarts, and until they are back every call of them is StoreUnavailable, which its callers wait out.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from pathlib import Path

import redis

from orchestrator import scripts

log = logging.getLogger(__name__)


class ScriptKeeper:
    """`run` has one thread; `request_stop` may be called from any.

    waits for: nothing; a Redis that is away is asked again after `poll_s`.
    unblocked by: `request_stop`.
    """

    def __init__(self, client: redis.Redis, *, poll_s: float = 1.0, alive_file: Path | None = None) -> None:
        self._client = client
        self._poll_s = poll_s
        self._alive_file = alive_file
        self._sources = {hashlib.sha1(source.encode()).hexdigest(): source for source in scripts.load().values()}
        self._stopping = threading.Event()

    def load_missing(self) -> int:
        """How many were not there. Raises redis.RedisError."""
        known = self._client.script_exists(*self._sources)
        missing = [sha for sha, is_there in zip(self._sources, known, strict=True) if not is_there]
        for sha in missing:
            self._client.script_load(self._sources[sha])
        return len(missing)

    def run(self) -> None:
        reachable = True
        while not self._stopping.is_set():
            try:
                if count := self.load_missing():
                    log.warning("%d scripts were loaded", count)
                reachable = True
            except redis.RedisError as error:
                if reachable:
                    log.warning("Redis: %s; trying again", error)
                reachable = False
            if self._alive_file is not None:
                self._alive_file.touch()
            self._stopping.wait(self._poll_s)

    def request_stop(self) -> None:
        self._stopping.set()
