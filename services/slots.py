"""Places for work that costs much: so many at once in this process, fewer for one owner, and nobody waits in line."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request

from services.deps import Caller
from services.errors import ApiProblem

_RETRY_AFTER_S = 5


def place(work: str, *, at_once: int, of_owner: int) -> Any:
    """A dependency that holds a place until the answer is out; 429 with Retry-After where there is none.

    Last among a handler's parameters, so that a body is read before the place is taken.
    """

    async def take(request: Request, caller: Caller) -> AsyncIterator[None]:
        with held(request.app, work, caller.owner, at_once=at_once, of_owner=of_owner):
            yield

    return Depends(take)


@contextmanager
def held(app: FastAPI, work: str, owner: str, *, at_once: int, of_owner: int) -> Iterator[None]:
    """A place for as long as the context lasts. Raises ApiProblem (429) where there is none."""
    taken: Counter[str] = app.state.places.setdefault(work, Counter())  # of the event loop's thread alone
    if taken[owner] >= of_owner or taken.total() >= at_once:
        message = f"enough at once: {work}; try again shortly"
        raise ApiProblem(429, "busy", message, headers={"retry-after": str(_RETRY_AFTER_S)})
    taken[owner] += 1
    try:
        yield
    finally:
        taken[owner] -= 1
        if taken[owner] == 0:
            del taken[owner]
