"""Whether Redis answers, asked seldom: /readyz needs no key, so whoever reaches it may ask as often as he likes."""

from __future__ import annotations

import threading
import time

from orchestrator.errors import StoreUnavailable
from orchestrator.state.store import JobStore

FRESH_S = 1.0


class Readiness:
    """What Redis said at most FRESH_S ago. Of many who ask at once one waits for it; others hear what it said last."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._asked_at = float("-inf")  # monotonic seconds
        self._trouble: StoreUnavailable | None = StoreUnavailable("Redis was not asked yet")

    def check(self) -> None:
        """Raises StoreUnavailable."""
        if time.monotonic() - self._asked_at > FRESH_S and self._lock.acquire(blocking=False):
            try:
                self._trouble = self._ask()
                self._asked_at = time.monotonic()
            finally:
                self._lock.release()
        if (trouble := self._trouble) is not None:
            raise StoreUnavailable(str(trouble), trouble.outage)

    def _ask(self) -> StoreUnavailable | None:
        try:
            self._store.next_queued()
        except StoreUnavailable as error:
            return error
        return None
