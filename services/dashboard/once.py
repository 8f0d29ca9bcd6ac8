"""What is asked for twice is made once."""

from __future__ import annotations

from typing import Any

from services.client.requests import new_idempotency_key


class Once:
    """The Idempotency-Key of what a form asks for: the same while the same is asked for, whatever became of it."""

    def __init__(self) -> None:
        self._asked: Any = None
        self._key = ""

    def key(self, asked: Any) -> str:
        if not self._key or asked != self._asked:
            self._asked, self._key = asked, new_idempotency_key()
        return self._key
