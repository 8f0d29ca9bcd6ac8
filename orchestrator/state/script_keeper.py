"""Keeps the store's scripts in a Redis whose users may call scripts by their SHA-1 alone, and load none.

Whoever may load a script may run any, so this is a process of its own with a user of its own. Redis forgets scripts
when it restarts, and until they are back every call of them is StoreUnavailable, which its callers wait out.

After an upgrade, drivers of the version before go on calling its scripts. So each keeper leaves its sources in Redis
for the next one's, under a key that no other user may touch: who could write there could run any script.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Iterable
from pathlib import Path

import redis

from orchestrator.state import scripts

log = logging.getLogger(__name__)
KEPT = "scripts:versions"  # outside of the store's own keys: the newest first, each a list of sources
VERSIONS = 5  # whose scripts are kept


class ScriptKeeper:
    """`run` has one thread; `request_stop` may be called from any.

    waits for: nothing; a Redis that is away is asked again after `poll_s`.
    unblocked by: `request_stop`.
    """

    def __init__(self, client: redis.Redis, *, poll_s: float = 1.0, alive_file: Path | None = None) -> None:
        self._client = client
        self._poll_s = poll_s
        self._alive_file = alive_file
        self._own = sorted(scripts.load().values())
        self._sources = _by_sha(self._own)
        self._shared = False  # whether ours are left in Redis, and those of earlier versions are known
        self._told = ""
        self._stopping = threading.Event()

    def load_missing(self) -> int:
        """How many were not there. Raises redis.RedisError."""
        count = self._load()
        if count or not self._shared:  # a Redis that lost scripts may have lost those that were left there too
            self._shared = self._share()
            count += self._load()
        return count

    def _load(self) -> int:
        known = self._client.script_exists(*self._sources)
        missing = [sha for sha, is_there in zip(self._sources, known, strict=True) if not is_there]
        for sha in missing:
            self._client.script_load(self._sources[sha])
        return len(missing)

    def _share(self) -> bool:
        """Ours are left for the next version's keeper, and those that earlier ones left are ours to keep.

        False where Redis does not let us, whose users are still the last version's, or whose memory is full.
        """
        try:
            kept = [version for text in self._client.lrange(KEPT, 0, -1) if (version := _version(text)) is not None]
            if self._own not in kept:
                self._client.lpush(KEPT, json.dumps(self._own))
                self._client.ltrim(KEPT, 0, VERSIONS - 1)
        except redis.exceptions.ResponseError as error:
            if str(error) != self._told:
                log.warning("scripts are not kept beyond an upgrade until `ACL LOAD`, or room, is there: %s", error)
            self._told = str(error)
            return False
        others = [version for version in kept if version != self._own][: VERSIONS - 1]
        self._sources = _by_sha(source for version in (self._own, *others) for source in version)
        return True

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


def _version(text: str | bytes) -> list[str] | None:
    """A version's sources; None of what is damaged."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, list) and all(isinstance(source, str) for source in found) else None


def _by_sha(sources: Iterable[str]) -> dict[str, str]:
    return {hashlib.sha1(source.encode()).hexdigest(): source for source in sources}
