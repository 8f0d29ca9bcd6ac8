"""Who is signed in: a random token in a cookie stands for a key, which stays here, in memory."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal

from services.client import AsyncClient
from services.client.types import OwnKey

LIFETIME_S = 12 * 3600.0
_OF_KEY, _OF_OWNER, _MOST = 100, 500, 10_000
Why = Literal["signed_out", "over", "key", "others"]  # by hand, with its time, with its key, for others of the key


class TooManySessions(RuntimeError):
    """Nobody else's session makes room for a new one."""


@dataclass(eq=False)
class Session:
    """Ends with `end`: by a sign-out, with its time, for newer ones, or when the API no longer takes its key."""

    key: OwnKey
    client: AsyncClient
    until: float  # by time.monotonic
    secret: str = field(default="", repr=False)  # the key itself, for what does not go by the client
    pages: set[str] = field(default_factory=set)  # ids of NiceGUI's clients that it opened
    shared: dict[Any, Any] = field(default_factory=dict)  # what its pages share, such as the watch of a job
    ending: list[Callable[[], Coroutine[Any, Any, None]]] = field(default_factory=list)
    is_over: bool = False
    why: Why = "signed_out"
    timer: asyncio.TimerHandle | None = None

    def may(self, scope: str) -> bool:
        return scope in self.key["scopes"]

    async def end(self, why: Why = "signed_out") -> None:
        if self.is_over:
            return
        self.is_over, self.why = True, why
        if self.timer is not None:
            self.timer.cancel()
        for callback in self.ending:
            with contextlib.suppress(Exception):  # one page that can't be told keeps no other signed in
                await callback()
        await self.client.aclose()


class Sessions:
    """Of this process; others on the same Redis have their own, so a balancer in front keeps a browser with one."""

    def __init__(self) -> None:
        self._found: dict[str, Session] = {}  # by the token's SHA-256
        self._ending: set[asyncio.Task[None]] = set()

    async def begin(self, key: OwnKey, client: AsyncClient, secret: str = "") -> str:
        """The token of a new session. The oldest of the same key, or of its owner, makes room where there are too many.

        TooManySessions where there are too many in all: signing in again and again must end no other owner's session.
        """
        await self._sweep()
        of_owner = [digest for digest, session in self._found.items() if session.key["owner"] == key["owner"]]
        of_key = [digest for digest in of_owner if self._found[digest].key["id"] == key["id"]]
        for mine, most in ((of_key, _OF_KEY), (of_owner, _OF_OWNER)):
            if len(mine) >= most:
                await self._found.pop(mine[0]).end("others")
                break
        if len(self._found) >= _MOST:
            raise TooManySessions
        token = secrets.token_urlsafe(32)
        session = self._found[_digest(token)] = Session(key, client, time.monotonic() + LIFETIME_S, secret)
        session.timer = asyncio.get_running_loop().call_later(LIFETIME_S, self._run_out, session)
        return token

    def _run_out(self, session: Session) -> None:
        """Its open pages are left too."""
        ending = asyncio.get_running_loop().create_task(session.end("over"))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    def find(self, token: str | None) -> Session | None:
        session = self._found.get(_digest(token)) if token else None
        if session is None or session.is_over or session.until <= time.monotonic():
            return None
        return session

    def has_page(self, page: str) -> bool:
        """True if any session opened it."""
        return any(page in session.pages for session in self._found.values())

    async def end(self, token: str | None) -> None:
        if token and (session := self._found.pop(_digest(token), None)):
            await session.end()

    async def _sweep(self) -> None:
        now = time.monotonic()
        for digest, session in list(self._found.items()):
            if session.is_over or session.until <= now:
                del self._found[digest]
                await session.end("over")


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
