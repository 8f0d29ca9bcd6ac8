"""What happened to a job: a list to page through, or the same events as a stream."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Annotated, cast

from fastapi import APIRouter, Header, Query, Request
from fastapi.sse import EventSourceResponse
from starlette.responses import Response
from starlette.types import Send

from orchestrator.states import is_terminal
from services.deps import Cursor, JobId, Store, page
from services.errors import ApiProblem, StrictJSONResponse
from services.event_feed import Feeds, event_document

router = APIRouter(prefix="/v1/jobs/{job_id}/events", tags=["events"])


@router.get("", responses={204: {"description": "the job is over, and nothing follows the cursor"}})
def get_events(
    request: Request,
    job_id: JobId,
    cursor: Annotated[Cursor, Query()],
    store: Store,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> Response:
    """`Accept: text/event-stream` streams them, each event's id its seq; Last-Event-ID is the same cursor as `after`.

    The stream ends with the job. Who reconnects after that gets 204, which tells an EventSource to stay away.
    """
    if "text/event-stream" not in request.headers.get("accept", ""):
        found = store.events(job_id, after=cursor.after, limit=cursor.limit)
        return StrictJSONResponse(page([event_document(event) for event in found.items], has_more=found.has_more))
    after = cursor.after if last_event_id is None else _sequence(last_event_id)
    status, newest, found = store.watch(job_id, after=after, limit=1)
    if is_terminal(status) and not found.items:
        return Response(status_code=204)
    feeds: Feeds = request.app.state.feeds
    return _Stream(
        feeds.follow(store, job_id, after, newest),
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


class _Stream(EventSourceResponse):
    """Closes its source with itself: a reader that is gone is forgotten at once."""

    async def stream_response(self, send: Send) -> None:
        async with contextlib.aclosing(cast(AsyncGenerator[bytes], self.body_iterator)):
            await super().stream_response(send)


def _sequence(last_event_id: str) -> int:
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) <= 15):
        raise ApiProblem(422, "invalid_parameter", "Last-Event-ID: expected an event's seq", param="Last-Event-ID")
    return int(last_event_id)
