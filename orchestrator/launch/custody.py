"""Which of several workers watches a driver that outlives them: by a lock in Redis, that runs out with the worker.

Of two workers that take the same one at once, one gets it.
"""

from __future__ import annotations

import secrets

from orchestrator.state.keys import Keys
from orchestrator.state.reader import JobReader


class Custody:
    """Of one worker. What it takes is its own for `held_s`, and longer where it takes it again before."""

    def __init__(self, store: JobReader, *, held_s: float) -> None:
        self._calls = store.calls
        self._held_ms = round(1000 * held_s)
        self._token = secrets.token_hex(8)

    def take(self, owner: str, job_id: str) -> bool:
        """False where another worker has the job's driver."""
        key = Keys(owner).watcher(job_id)
        holder = self._calls.command("GET", key)
        if holder is None:
            return bool(self._calls.command("SET", key, self._token, "NX", "PX", self._held_ms))
        return holder == self._token and bool(self._calls.command("PEXPIRE", key, self._held_ms))

    def leave(self, owner: str, job_id: str) -> None:
        """Others may have it at once."""
        key = Keys(owner).watcher(job_id)
        if self._calls.command("GET", key) == self._token:
            self._calls.command("DEL", key)
