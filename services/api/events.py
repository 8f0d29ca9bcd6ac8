"""What happened to a job: a list to page through, or the same events as a stream."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, cast

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.sse import EventSourceResponse
from starlette.responses import Response
from starlette.types import Send

from orchestrator.state.states import is_terminal
from services.deps import Caller, Configuration, Cursor, JobId, Store, page
from services.errors import ApiProblem, StrictJSONResponse
from services.event_feed import Feeds, event_document, is_another
from services.query import StrictRoute
from services.slots import held

router = APIRouter(prefix="/v1/jobs/{job_id}/events", tags=["events"], route_class=StrictRoute)

_EVENT_ID = re.compile(r"([0-9]{1,15})(?:@([0-9]{1,12}(?:\.[0-9]{1,9})?))?")
_STREAMS = 1000  # at once, of all owners, and more where one may have more


async def _place(request: Request, caller: Caller, config: Configuration) -> AsyncIterator[None]:
    """A stream holds a place until it ends or its reader is gone; a page of the list needs none."""
    of_owner = config.limits.streams
    if not (_wants_stream(request) and of_owner):
        yield
        return
    with held(request.app, "streams of events", caller.owner, at_once=max(_STREAMS, of_owner), of_owner=of_owner):
        yield


@router.get("", responses={204: {"description": "the job is over, and nothing follows the cursor"}})
def get_events(
    request: Request,
    job_id: JobId,
    cursor: Annotated[Cursor, Query()],
    store: Store,
    _place: Annotated[None, Depends(_place)],
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> Response:
    """`Accept: text/event-stream` streams them; Last-Event-ID is a cursor as `after` is, or the id of an event, SEQ@AT.

    All from `oldest` (Event-Oldest) to `newest` are kept; of those before, what is told once, such as a collapse. The
    stream ends with the job. Who reconnects after that gets 204, which tells an EventSource to stay away. A cursor
    beyond the newest event, or at another time than the event of its number, is from before the job was put back, by
    `equipoise recover` or from a copy of Redis: then the stream starts over. Event-Cursor is where it really begins.
    """
    if not _wants_stream(request):
        found = store.events(job_id, after=cursor.after, limit=cursor.limit)
        told = page([event_document(event) for event in found.items], has_more=found.has_more)
        return StrictJSONResponse(told | {"oldest": found.oldest, "newest": found.newest})
    after, at = (cursor.after, None) if last_event_id is None else _place_of(last_event_id)
    status, found = store.watch(job_id, after=after, limit=1)
    if after > found.newest or (at is not None and is_another(store, job_id, after, at)):
        after = 0
        status, found = store.watch(job_id, after=after, limit=1)
    if is_terminal(status) and not found.items:
        return Response(status_code=204)
    feeds: Feeds = request.app.state.feeds
    return _Stream(
        feeds.follow(store, job_id, after, found.newest),
        headers={
            "cache-control": "no-store",
            "x-accel-buffering": "no",
            "event-cursor": str(after),
            "event-oldest": str(found.oldest),
        },
    )


def _wants_stream(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "")


class _Stream(EventSourceResponse):
    """Closes its source with itself: a reader that is gone is forgotten at once."""

    async def stream_response(self, send: Send) -> None:
        async with contextlib.aclosing(cast(AsyncGenerator[bytes], self.body_iterator)):
            await super().stream_response(send)


def _place_of(last_event_id: str) -> tuple[int, float | None]:
    """(number, when it was) of the event that a reader had last."""
    found = _EVENT_ID.fullmatch(last_event_id)
    if found is None:
        raise ApiProblem(422, "invalid_parameter", "Last-Event-ID: expected an event's seq", param="Last-Event-ID")
    return int(found[1]), None if found[2] is None else float(found[2])
