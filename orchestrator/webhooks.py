"""Webhooks in Redis: where an owner wants to be told, of what, and how far each has been told.

    mo:<owner>:webhooks                hash  id -> JSON of the webhook
    mo:<owner>:webhook:<id>:cursors    hash  job id -> seq of the last event that is dealt with
    mo:<owner>:webhook:<id>:state      hash  failing, last_error, last_at, failures, dropped

A secret stands there as it is, since it has to sign; who can read the Redis can sign too.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from orchestrator.errors import StoreError
from orchestrator.keys import Keys, is_name
from orchestrator.reader import JobReader
from orchestrator.states import JobStatus, is_terminal

EVENTS = (
    "job.succeeded", "job.failed", "job.cancelled", "job.paused", "steering.applied", "steering.rejected",
    "guardrail.breached", "overoptimisation.detected", "reward.failed", "reward.rows_dropped", "reward.recovered",
    "engine.retired", "engine.back",
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


@dataclass(frozen=True, kw_only=True)
class WebhookState:
    """How its deliveries go. `failing`: the newest event was refused so often that somebody should look."""

    failing: bool = False
    last_error: str | None = None
    last_at: float | None = None  # of the last delivery that was taken
    dropped: int = 0  # events given up


class WebhookStore:
    """The webhooks of one owner. Holds no state: safe to share between threads."""

    def __init__(self, reader: JobReader) -> None:
        self._calls = reader.calls
        self._keys = Keys(reader.owner)
        self._prefix = f"mo:{reader.owner}:webhook"
        self.owner = reader.owner

    def add(self, url: str, events: Sequence[str], secret: str | None = None) -> Webhook:
        """From now on: what happened to jobs before is not delivered. Raises TooManyWebhooks."""
        seconds, microseconds = self._calls.command("TIME")
        webhook = Webhook(
            webhook_id=f"wh-{secrets.token_hex(12)}",
            url=url,
            events=tuple(event for event in EVENTS if event in events),
            secret=secret or _new_secret(),
            created_at=int(seconds) + int(microseconds) / 1e6,
        )
        told = {job_id: seq for job_id, (seq, _) in self._last_events().items()}
        pairs = [word for pair in told.items() for word in pair]
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

    def behind(self, webhook_id: str, settled: set[str] | None = None) -> list[tuple[str, int]]:
        """(job, seq of the last event dealt with) of the jobs that have newer ones, oldest job first.

        Jobs in `settled` are not looked at; those that are over, and told to the end, are added to it.
        """
        settled = set() if settled is None else settled
        found = self._last_events(settled)
        if not found:
            return []
        cursors = self._calls.command("HMGET", self._cursors(webhook_id), *found)
        told = {job_id: int(cursor or 0) for job_id, cursor in zip(found, cursors, strict=True)}
        settled |= {
            job_id for job_id, (seq, status) in found.items() if seq <= told[job_id] and is_terminal(JobStatus(status))
        }
        return [(job_id, told[job_id]) for job_id, (seq, _) in found.items() if seq > told[job_id]]

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

    def _last_events(self, without: Collection[str] = frozenset()) -> dict[str, tuple[int, str]]:
        """(seq of the last event, status) of every other job, oldest first."""
        job_ids = [job_id for job_id in self._calls.command("ZRANGE", self._keys.jobs, 0, -1) if job_id not in without]
        found: dict[str, tuple[int, str]] = {}
        for start in range(0, len(job_ids), _CHUNK):
            chunk = job_ids[start : start + _CHUNK]
            replies = self._calls.reads([("HMGET", self._keys.job(job_id), "seq", "status") for job_id in chunk])
            for job_id, (seq, status) in zip(chunk, replies, strict=True):
                if seq is not None:
                    found[job_id] = (int(seq), status)
        return found

    def _cursors(self, webhook_id: str) -> str:
        return f"{self._prefix}:{webhook_id}:cursors"

    def _state(self, webhook_id: str) -> str:
        return f"{self._prefix}:{webhook_id}:state"


def _new_secret() -> str:
    return f"whsec_{secrets.token_urlsafe(32)}"


def _document(webhook: Webhook) -> str:
    names = ("url", "events", "secret", "created_at")
    return json.dumps({name: getattr(webhook, name) for name in names})


def _webhook(webhook_id: str, document: str) -> Webhook:
    fields = json.loads(document)
    return Webhook(
        webhook_id=webhook_id,
        url=fields["url"],
        events=tuple(fields["events"]),
        secret=fields["secret"],
        created_at=fields["created_at"],
    )
