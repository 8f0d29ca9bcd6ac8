"""What happened to a job: a list to page through, or the same events as a stream."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, cast

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.sse import EventSourceResponse
from starlette.responses import Response
from starlette.types import Send

from orchestrator.state.states import is_terminal
from services.deps import Caller, Configuration, Cursor, JobId, Store, page
from services.errors import ApiProblem, StrictJSONResponse
from services.event_feed import Feeds, event_document
from services.query import StrictRoute
from services.slots import held

router = APIRouter(prefix="/v1/jobs/{job_id}/events", tags=["events"], route_class=StrictRoute)

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
    """`Accept: text/event-stream` streams them, each event's id its seq; Last-Event-ID is the same cursor as `after`.

    The stream ends with the job. Who reconnects after that gets 204, which tells an EventSource to stay away. A cursor
    beyond the newest event is from before `equipoise recover` put the job back, whose events count from 1 again: then
    the stream starts over. Its header Event-Cursor is where it really begins.
    """
    if not _wants_stream(request):
        found = store.events(job_id, after=cursor.after, limit=cursor.limit)
        return StrictJSONResponse(page([event_document(event) for event in found.items], has_more=found.has_more))
    after = cursor.after if last_event_id is None else _sequence(last_event_id)
    status, newest, found = store.watch(job_id, after=after, limit=1)
    if after > newest:
        after = 0
        status, newest, found = store.watch(job_id, after=after, limit=1)
    if is_terminal(status) and not found.items:
        return Response(status_code=204)
    feeds: Feeds = request.app.state.feeds
    return _Stream(
        feeds.follow(store, job_id, after, newest),
        headers={"cache-control": "no-store", "x-accel-buffering": "no", "event-cursor": str(after)},
    )


def _wants_stream(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "")


class _Stream(EventSourceResponse):
    """Closes its source with itself: a reader that is gone is forgotten at once."""

    async def stream_response(self, send: Send) -> None:
        async with contextlib.aclosing(cast(AsyncGenerator[bytes], self.body_iterator)):
            await super().stream_response(send)


def _sequence(last_event_id: str) -> int:
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) <= 15):
        raise ApiProblem(422, "invalid_parameter", "Last-Event-ID: expected an event's seq", param="Last-Event-ID")
    return int(last_event_id)
