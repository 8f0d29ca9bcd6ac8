"""Webhooks in Redis: where an owner wants to be told, of what, and how far each has been told.

    mo:<owner>:webhooks                hash  id -> JSON of the webhook
    mo:<owner>:webhook:<id>:cursors    hash  job id -> seq of the last event that is dealt with
    mo:<owner>:webhook:<id>:state      hash  failing, last_error, last_at, failures, dropped

A secret stands there as it is, since it has to sign; who can read the Redis can sign too.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from orchestrator.errors import StoreError
from orchestrator.state.keys import Keys, is_name
from orchestrator.state.reader import JobReader
from orchestrator.state.states import JobStatus, is_terminal

EVENTS = (
    "job.succeeded", "job.failed", "job.cancelled", "job.paused", "steering.applied", "steering.rejected",
    "guardrail.breached", "overoptimisation.detected", "reward.failed", "reward.rows_dropped", "reward.recovered",
    "engine.failing", "engine.retired", "engine.back", "collapse.detected", "checkpoint.failed", "gold.failed",
    "update.skipped",
)  # fmt: skip
MAX_WEBHOOKS = 20  # of an owner
_CHUNK = 500


class WebhookNotFound(StoreError):
    """No webhook of this owner has this id."""


class TooManyWebhooks(StoreError):
    """The owner has `MAX_WEBHOOKS` already."""


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """What is kept of one; `secret` is shown once, when it is made or set."""

    webhook_id: str
    url: str
    events: tuple[str, ...]
    secret: str
    created_at: float
    format: str = "json"  # or slack, for people in a chat


@dataclass(frozen=True, kw_only=True)
class WebhookState:
    """How its deliveries go. `failing`: the newest event was refused so often that somebody should look."""

    failing: bool = False
    last_error: str | None = None
    last_at: float | None = None  # of the last delivery that was taken
    dropped: int = 0  # events given up


@dataclass(kw_only=True)
class Seen:
    """What a dispatcher knows of an owner's jobs, so that it does not read all of them each time."""

    unsettled: list[str] = field(default_factory=list)  # not over, or not told to the end; oldest first
    newest: str = "0"  # score of the newest job that was looked at


class WebhookStore:
    """The webhooks of one owner. Holds no state: safe to share between threads."""

    def __init__(self, reader: JobReader) -> None:
        self._calls = reader.calls
        self._keys = Keys(reader.owner)
        self._prefix = f"mo:{reader.owner}:webhook"
        self.owner = reader.owner

    def add(self, url: str, events: Sequence[str], secret: str | None = None, format: str = "json") -> Webhook:
        """From now on: what happened to jobs before is not delivered. Raises TooManyWebhooks."""
        seconds, microseconds = self._calls.command("TIME")
        webhook = Webhook(
            webhook_id=f"wh-{secrets.token_hex(12)}",
            url=url,
            events=tuple(event for event in EVENTS if event in events),
            secret=secret or _new_secret(),
            created_at=int(seconds) + int(microseconds) / 1e6,
            format=format,
        )
        known = Seen()
        self._look_for_new(known)
        pairs: list[str | int] = []
        for start in range(0, len(known.unsettled), _CHUNK):
            found = self._last_events(known.unsettled[start : start + _CHUNK])
            pairs += [word for job_id, (seq, _) in found.items() for word in (job_id, seq)]
        keys = [f"{self._prefix}s", self._cursors(webhook.webhook_id)]
        words = [webhook.webhook_id, _document(webhook), MAX_WEBHOOKS, *pairs]
        if self._calls.script("webhook_add", keys, words)[0] == "FULL":
            raise TooManyWebhooks
        return webhook

    def all(self) -> list[Webhook]:
        """Oldest first."""
        found = self._calls.command("HGETALL", f"{self._prefix}s")
        return sorted((_webhook(*item) for item in found.items()), key=lambda webhook: webhook.created_at)

    def get(self, webhook_id: str) -> Webhook:
        document = self._calls.command("HGET", f"{self._prefix}s", webhook_id) if is_name(webhook_id) else None
        if document is None:
            raise WebhookNotFound(webhook_id)
        return _webhook(webhook_id, document)

    def set_secret(self, webhook_id: str, secret: str | None = None) -> Webhook:
        """Deliveries that begin from now on are signed with another one. Raises WebhookNotFound."""
        webhook = replace(self.get(webhook_id), secret=secret or _new_secret())
        if self._calls.script("webhook_secret", [f"{self._prefix}s"], [webhook_id, _document(webhook)])[0] == "GONE":
            raise WebhookNotFound(webhook_id)
        return webhook

    def remove(self, webhook_id: str) -> None:
        """Nothing is delivered any more, what waited included. A second call is WebhookNotFound."""
        self.get(webhook_id)
        # Two commands, no transaction: see KeyStore.find. A cursor that is left is deleted by the next to advance it.
        self._calls.command("HDEL", f"{self._prefix}s", webhook_id)
        self._calls.command("DEL", self._cursors(webhook_id), self._state(webhook_id))

    def state(self, webhook_id: str) -> WebhookState:
        fields = self._calls.command("HGETALL", self._state(webhook_id))
        return WebhookState(
            failing=fields.get("failing") == "1",
            last_error=fields.get("last_error") or None,
            last_at=float(fields["last_at"]) if fields.get("last_at") else None,
            dropped=int(fields.get("dropped", 0)),
        )

    # -- for who delivers ------------------------------------------------------------------------------------

    def behind(self, webhook_id: str, seen: Seen | None = None) -> list[tuple[str, int]]:
        """(job, seq of the last event dealt with) of the jobs that have newer ones, oldest job first.

        With the same `seen` each time, those that are over and told to the end are not looked at again.
        """
        seen = Seen() if seen is None else seen
        self._look_for_new(seen)
        behind: list[tuple[str, int]] = []
        unsettled: list[str] = []
        for start in range(0, len(seen.unsettled), _CHUNK):
            found = self._last_events(seen.unsettled[start : start + _CHUNK])
            cursors = self._calls.command("HMGET", self._cursors(webhook_id), *found) if found else []
            for (job_id, (seq, status)), cursor in zip(found.items(), cursors, strict=True):
                told = int(cursor or 0)
                if seq > told:
                    behind.append((job_id, told))
                if seq > told or not is_terminal(JobStatus(status)):
                    unsettled.append(job_id)
        seen.unsettled = unsettled
        return behind

    def advance(self, webhook_id: str, job_id: str, seq: int) -> None:
        """That event and all before it are dealt with. An older seq than the one that stands there changes nothing."""
        keys = [f"{self._prefix}s", self._cursors(webhook_id)]
        self._calls.script("webhook_advance", keys, [webhook_id, job_id, seq])

    def forget(self, job_id: str) -> None:
        """Of a job that was deleted; what was not delivered yet never is."""
        for webhook in self.all():
            self._calls.command("HDEL", self._cursors(webhook.webhook_id), job_id)

    def note(self, webhook_id: str, state: WebhookState) -> None:
        key = self._state(webhook_id)
        pairs: list[str | int | float] = [
            "failing", int(state.failing), "last_error", state.last_error or "",
            "last_at", "" if state.last_at is None else state.last_at, "dropped", state.dropped,
        ]  # fmt: skip
        _, exists = self._calls.together([("HSET", key, *pairs), ("HEXISTS", f"{self._prefix}s", webhook_id)])
        if not exists:  # removed while it was served: leave nothing behind
            self._calls.command("DEL", key)

    def _look_for_new(self, seen: Seen) -> None:
        """Adds the jobs that were made since; each has a higher score than all before it."""
        jobs = self._keys.jobs
        newest = self._calls.command("ZREVRANGE", jobs, 0, 0, "WITHSCORES")
        if not newest or float(newest[1]) < float(seen.newest):  # deleted, or another Redis than before
            seen.unsettled, seen.newest = [], "0"
        more = bool(newest)
        while more:
            page = self._calls.command(
                "ZRANGEBYSCORE", jobs, f"({seen.newest}", "+inf", "WITHSCORES", "LIMIT", 0, _CHUNK
            )
            if page:
                seen.unsettled += page[::2]
                seen.newest = page[-1]
            more = len(page) == 2 * _CHUNK

    def _last_events(self, job_ids: Sequence[str]) -> dict[str, tuple[int, str]]:
        """(seq of the last event, status) of those of the jobs that exist."""
        replies = self._calls.reads([("HMGET", self._keys.job(job_id), "seq", "status") for job_id in job_ids])
        found = zip(job_ids, replies, strict=True)
        return {job_id: (int(seq), status) for job_id, (seq, status) in found if seq is not None}

    def _cursors(self, webhook_id: str) -> str:
        return f"{self._prefix}:{webhook_id}:cursors"

    def _state(self, webhook_id: str) -> str:
        return f"{self._prefix}:{webhook_id}:state"


def _new_secret() -> str:
    return f"whsec_{secrets.token_urlsafe(32)}"


def _document(webhook: Webhook) -> str:
    names = ("url", "events", "secret", "created_at", "format")
    return json.dumps({name: getattr(webhook, name) for name in names})


def _webhook(webhook_id: str, document: str) -> Webhook:
    fields = json.loads(document)
    return Webhook(
        webhook_id=webhook_id,
        url=fields["url"],
        events=tuple(fields["events"]),
        secret=fields["secret"],
        created_at=fields["created_at"],
        format=fields.get("format", "json"),  # one of an older version has none
    )
