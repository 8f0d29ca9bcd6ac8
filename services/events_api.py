"""What happened to a job: a list to page through, or the same events as a stream."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from orchestrator.errors import StoreUnavailable
from orchestrator.states import is_terminal
from orchestrator.store import Event, JobStore
from services.deps import MAX_PAGE, Configuration, Cursor, JobId, Store, page
from services.errors import ApiProblem, StrictJSONResponse

router = APIRouter(prefix="/v1/jobs/{job_id}/events", tags=["events"])

_KEEPALIVE_S = 15.0


@router.get("", responses={204: {"description": "the job is over, and nothing follows the cursor"}})
def get_events(
    request: Request,
    job_id: JobId,
    cursor: Annotated[Cursor, Query()],
    store: Store,
    settings: Configuration,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> Response:
    """`Accept: text/event-stream` streams them, each event's id its seq; Last-Event-ID is the same cursor as `after`.

    The stream ends with the job. Who reconnects after that gets 204, which tells an EventSource to stay away.
    """
    if "text/event-stream" not in request.headers.get("accept", ""):
        found = store.events(job_id, after=cursor.after, limit=cursor.limit)
        return StrictJSONResponse(page([event_document(event) for event in found.items], has_more=found.has_more))
    after = cursor.after if last_event_id is None else _sequence(last_event_id)
    over = is_terminal(store.job(job_id).status)
    if over and not store.events(job_id, after=after, limit=1).items:
        return Response(status_code=204)
    return EventSourceResponse(
        _stream(store, job_id, after, settings.poll_s, request.app.state.stopping),
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


def event_document(event: Event) -> dict[str, Any]:
    return {
        "object": "event",
        "seq": event.seq,
        "type": event.type,
        "at": event.at,
        "level": event.level,
        "data": event.data,
    }


async def _stream(
    store: JobStore, job_id: str, after: int, poll_s: float, stopping: threading.Event
) -> AsyncIterator[bytes]:
    """Consumes the job's events from `after` on, until the job is over or the server stops.

    A Redis that is away is waited for: the reader's connection outlives it, and misses nothing.
    """
    quiet_since = time.monotonic()
    while not stopping.is_set():
        events: list[Event] = []
        try:
            # The status is read before the events: one that ends in between is seen in the next round.
            over = is_terminal((await run_in_threadpool(store.job, job_id)).status)
            events = list((await run_in_threadpool(store.events, job_id, after=after, limit=MAX_PAGE)).items)
        except StoreUnavailable:
            over = False
        for event in events:
            after = event.seq
            data = json.dumps(event_document(event), separators=(",", ":"))
            yield format_sse_event(data_str=data, event=event.type, id=str(event.seq))
        if events:
            quiet_since = time.monotonic()
            continue
        if over:
            return
        if time.monotonic() - quiet_since > _KEEPALIVE_S:
            quiet_since = time.monotonic()
            yield KEEPALIVE_COMMENT
        await asyncio.sleep(poll_s)


def _sequence(last_event_id: str) -> int:
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) <= 15):
        raise ApiProblem(422, "invalid_parameter", "Last-Event-ID: expected an event's seq", param="Last-Event-ID")
    return int(last_event_id)
