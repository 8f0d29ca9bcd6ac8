"""Tells webhooks what happened to jobs: one thread beside the worker, and a few more for the deliveries.

consumes: every owner's job events, from a cursor in Redis for each webhook and job.
waits for: nothing; a Redis that is away is tried again.
unblocked by: `request_stop`.

At least once: the cursor moves after the delivery, so a crash between the two delivers again, under the same id. Of
several workers one dispatches, by a lock that runs out; two at once for a moment would deliver twice, under one id.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.errors import JobNotFound, StoreUnavailable
from orchestrator.state.reader import JobReader
from orchestrator.state.records import Event
from orchestrator.state.redis_calls import Outages
from orchestrator.webhooks.delivery import DeliveryError, post
from orchestrator.webhooks.sentences import chat_body
from orchestrator.webhooks.subscriptions import Seen, Webhook, WebhookNotFound, WebhookStore

log = logging.getLogger(__name__)

LOCK = "mo:webhooks:dispatcher"
_LOCK_MS = 15_000
_PARALLEL = 8  # deliveries at once, one per webhook
_PARALLEL_OF_OWNER = 2  # so that one whose receivers are slow leaves room for the others
_TURN_S = 10.0  # then a webhook with a long backlog goes to the end of the line
_LONGEST_PAUSE_S = 600.0
_PAGE = 500


@dataclass(kw_only=True)
class _Trouble:
    """A webhook whose last delivery was refused."""

    attempts: int = 0
    not_before: float = 0.0  # monotonic seconds


class Dispatcher:
    """`run` has one thread; `request_stop` may be called from any.

    A delivery that fails is tried again after backoff_s, 2 backoff_s, ...; after `max_attempts` in a row the webhook is
    marked as failing. It goes on being tried, every ten minutes at most, and an event is given up at `max_age_s`.
    """

    def __init__(
        self,
        store: JobReader,
        *,
        allow_private: bool,
        poll_s: float = 1.0,
        backoff_s: float = 2.0,
        max_attempts: int = 8,
        max_age_s: float = 24 * 3600.0,
        deliver: Callable[..., int] = post,
    ) -> None:
        self._reader = store
        self._allow_private = allow_private
        self._poll_s = poll_s
        self._backoff_s = backoff_s
        self._max_attempts = max_attempts
        self._max_age_s = max_age_s
        self._deliver = deliver
        self._token = secrets.token_hex(8)
        self._busy: dict[str, tuple[str, Future[None]]] = {}  # by webhook: its owner, and the delivery under way
        self._turns = 0
        self._served: dict[str, int] = {}  # webhook and owner -> turn of the last delivery
        self._troubles: dict[str, _Trouble] = {}
        self._seen: dict[str, Seen] = {}  # by webhook
        self._outages = Outages("webhooks wait")
        self._stopping = threading.Event()

    def run(self) -> None:
        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="webhook") as pool:
            while not self._stopping.wait(self._poll_s):
                try:
                    if self._holds_lock():
                        self._round(pool)
                except StoreUnavailable as error:
                    self._outages.saw(error)
                except Exception:  # one damaged webhook must not silence the others
                    log.exception("webhooks go on")
        with suppress(StoreUnavailable):  # else it runs out
            if self._reader.calls.command("GET", LOCK) == self._token:
                self._reader.calls.command("DEL", LOCK)

    def request_stop(self) -> None:
        """A delivery that is under way is waited for, five seconds at most."""
        self._stopping.set()

    def _holds_lock(self) -> bool:
        calls = self._reader.calls
        if calls.command("SET", LOCK, self._token, "NX", "PX", _LOCK_MS):
            return True
        return calls.command("GET", LOCK) == self._token and bool(calls.command("PEXPIRE", LOCK, _LOCK_MS))

    def _round(self, pool: ThreadPoolExecutor) -> None:
        """Starts what is due, one delivery of a webhook and a few of an owner at a time, until the next poll is."""
        deadline = time.monotonic() + self._poll_s
        due = self._due()
        while due and not self._stopping.is_set():
            self._forget_done()
            place = self._next(due)
            if place is not None:
                self._start(pool, *due.pop(place))
                continue
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return  # those that are left come first in the next round
            wait([future for _, future in self._busy.values()], timeout=left_s, return_when=FIRST_COMPLETED)

    def _forget_done(self) -> None:
        self._busy = {webhook_id: entry for webhook_id, entry in self._busy.items() if not entry[1].done()}

    def _due(self) -> list[tuple[WebhookStore, Webhook, JobReader]]:
        self._forget_done()
        found, there = [], set(self._busy)
        for owner in self._reader.owners():
            reader = self._reader.of_owner(owner)
            webhooks = WebhookStore(reader)
            for webhook in webhooks.all():
                there |= {owner, webhook.webhook_id}
                trouble = self._troubles.get(webhook.webhook_id, _Trouble())
                if webhook.webhook_id not in self._busy and time.monotonic() >= trouble.not_before:
                    found.append((webhooks, webhook, reader))
        remembered: tuple[dict[str, Any], ...] = (self._troubles, self._seen, self._served)
        for of_webhooks in remembered:
            for gone in set(of_webhooks) - there:
                of_webhooks.pop(gone, None)
        return found

    def _next(self, due: list[tuple[WebhookStore, Webhook, JobReader]]) -> int | None:
        """Whose turn it is: the owner with the fewest under way, then who was served longest ago."""
        if len(self._busy) >= _PARALLEL:
            return None
        under_way = Counter(owner for owner, _ in self._busy.values())

        def place(i: int) -> tuple[int, int, int]:
            owner, webhook_id = due[i][0].owner, due[i][1].webhook_id
            return under_way[owner], self._served.get(owner, 0), self._served.get(webhook_id, 0)

        first = min(range(len(due)), key=place)
        return first if under_way[due[first][0].owner] < _PARALLEL_OF_OWNER else None

    def _start(self, pool: ThreadPoolExecutor, webhooks: WebhookStore, webhook: Webhook, reader: JobReader) -> None:
        self._turns += 1
        self._served[webhooks.owner] = self._served[webhook.webhook_id] = self._turns
        self._busy[webhook.webhook_id] = (webhooks.owner, pool.submit(self._serve, reader, webhooks, webhook))

    def _serve(self, reader: JobReader, webhooks: WebhookStore, webhook: Webhook) -> None:
        """Delivers what a webhook has not been told yet, job by job, until one is refused or its turn is over."""
        until = time.monotonic() + _TURN_S
        try:
            seen = self._seen.setdefault(webhook.webhook_id, Seen())
            for job_id, seq in webhooks.behind(webhook.webhook_id, seen):
                with suppress(JobNotFound):
                    if not self._catch_up(reader, webhooks, webhook, (job_id, seq), until):
                        return
        except WebhookNotFound:  # it was removed: nothing of what waited is delivered
            return
        except StoreUnavailable as error:
            self._outages.saw(error)
        except Exception:  # one webhook's damage must not silence the others
            log.exception("webhook %s goes on", webhook.webhook_id)
            self._pause(webhook.webhook_id)

    def _catch_up(
        self, reader: JobReader, webhooks: WebhookStore, webhook: Webhook, behind: tuple[str, int], until: float
    ) -> bool:
        (job_id, seq), more = behind, True
        while more:
            page = reader.events(job_id, after=seq, limit=_PAGE)
            for event in page.items:
                if self._stopping.is_set() or time.monotonic() >= until:
                    webhooks.advance(webhook.webhook_id, job_id, seq)
                    return False
                if event.type in webhook.events:
                    if not self._tell(reader, webhooks, webhook, job_id, event):
                        return False
                    webhooks.advance(webhook.webhook_id, job_id, event.seq)
                seq = event.seq
            more = page.has_more
        webhooks.advance(webhook.webhook_id, job_id, seq)
        return True

    def _tell(self, reader: JobReader, webhooks: WebhookStore, webhook: Webhook, job_id: str, event: Event) -> bool:
        """True once the event is dealt with: taken, or given up. Raises WebhookNotFound.

        The secret is read after the event: one that was replaced before it happened signs it no more.
        """
        webhook_id = webhook.webhook_id
        own_id = delivery_id(webhook_id, job_id, event)
        secret = webhooks.get(webhook_id).secret
        job = reader.job(job_id) if webhook.format == "slack" else None
        try:
            told = body(own_id, job_id, event) if job is None else chat_body(event, job)
            self._deliver(
                webhook.url,
                told,
                secret=secret,
                delivery_id=own_id,
                allow_private=self._allow_private,
            )
        except DeliveryError as error:
            return self._note_failure(webhooks, webhook_id, event, str(error))
        except Exception as error:  # our fault, which would hold up what comes after: it is told and given up as others
            log.exception("webhook %s can't be told of %s", webhook_id, event.type)
            fault = f"a fault of ours with {event.type}: {type(error).__name__}: {error}"
            return self._note_failure(webhooks, webhook_id, event, fault)
        state = webhooks.state(webhook_id)
        webhooks.note(webhook_id, replace(state, failing=False, last_error=None, last_at=time.time()))
        self._troubles.pop(webhook_id, None)
        return True

    def _pause(self, webhook_id: str) -> _Trouble:
        """Until its next try, longer each time."""
        trouble = self._troubles.setdefault(webhook_id, _Trouble())
        trouble.attempts += 1
        pause_s = min(self._backoff_s * 2.0 ** min(trouble.attempts - 1, 30), _LONGEST_PAUSE_S)
        trouble.not_before = time.monotonic() + pause_s
        return trouble

    def _note_failure(self, webhooks: WebhookStore, webhook_id: str, event: Event, error: str) -> bool:
        trouble = self._pause(webhook_id)
        state = webhooks.state(webhook_id)
        failing = state.failing or trouble.attempts >= self._max_attempts
        given_up = time.time() - event.at > self._max_age_s
        webhooks.note(
            webhook_id, replace(state, failing=failing, last_error=error, dropped=state.dropped + int(given_up))
        )
        if failing and not state.failing:
            log.warning("webhook %s is failing: %s", webhook_id, error)
        return given_up


def delivery_id(webhook_id: str, job_id: str, event: Event) -> str:
    """The same for every try, so that a receiver knows what it has had.

    Another for another event of that number: a Redis that is put back from an older copy gives numbers a second time.
    """
    told = f"{webhook_id}/{job_id}/{event.seq}/{event.at}/{event.type}"
    return "whd-" + hashlib.sha256(told.encode()).hexdigest()[:32]


def body(delivery_id: str, job_id: str, event: Event) -> bytes:
    document: dict[str, Any] = {
        "id": delivery_id,
        "type": event.type,
        "at": event.at,
        "job_id": job_id,
        "seq": event.seq,
        "data": event.data,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def send_test(webhook: Webhook, *, allow_private: bool) -> int:
    """A delivery of the type `webhook.test`, now; the status. Raises DeliveryError."""
    fresh = "whd-" + secrets.token_hex(16)
    event = Event(seq=0, type="webhook.test", at=time.time(), level="info", data={})
    told = chat_body(event, None) if webhook.format == "slack" else body(fresh, "", event)
    return post(webhook.url, told, secret=webhook.secret, delivery_id=fresh, allow_private=allow_private)
