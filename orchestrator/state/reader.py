"""Everything that may be looked at in the job store; nothing here writes."""

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import redis

from orchestrator.errors import JobNotFound
from orchestrator.state.fronts import until
from orchestrator.state.keys import OWN_OWNER, OWNERS, Keys
from orchestrator.state.records import (
    JOB_FIELDS,
    Checkpoint,
    Events,
    JobRecord,
    Json,
    Page,
    SteeringEntry,
    SteeringHead,
    SteeringState,
    checkpoint,
    event,
    known_job,
    ledger_step,
    steering_entry,
)
from orchestrator.state.redis_calls import Arg, RedisCalls
from orchestrator.state.states import JobStatus

MAX_SCANNED = 10_000  # jobs that a filtered list looks at
_CHUNK = 500  # stream entries and jobs read per round trip
_STEERS = 16  # changes of the steering read at once
_ORDER = re.compile(r"[0-9]{1,20}")


class JobReader:
    """The jobs of one owner, to be read. All raise `StoreUnavailable`; those taking a job `JobNotFound`."""

    def __init__(self, client: redis.Redis, owner: str = OWN_OWNER) -> None:
        self._calls = RedisCalls(client)
        self._keys = Keys(owner)
        self._owner = owner

    @property
    def owner(self) -> str:
        return self._owner

    @property
    def calls(self) -> RedisCalls:
        """The connection, for what is kept beside the jobs."""
        return self._calls

    def failing_fast(self) -> Self:
        """The same, for a server: while Redis is away, most calls raise `StoreUnavailable` without waiting for it."""
        other = copy.copy(self)
        other._calls = self._calls.failing_fast()
        return other

    def of_owner(self, owner: str) -> Self:
        """The same for another owner, over the same connection."""
        other = copy.copy(self)
        other._keys = Keys(owner)
        other._owner = owner
        return other

    def owners(self) -> list[str]:
        """Everyone who ever submitted a job, and this one's own owner, whose jobs may be older than that record."""
        return sorted({self._owner, *self._calls.command("SMEMBERS", OWNERS)})

    def job(self, job_id: str) -> JobRecord:
        record = known_job(self._calls.command(*self._record(job_id)))
        if record is None:
            raise JobNotFound(job_id)
        return record

    def job_and_spec(self, job_id: str) -> tuple[JobRecord, str]:
        """Both in one round trip."""
        values, spec = self._calls.reads([self._record(job_id), ("GET", self._keys.spec(job_id))])
        record = known_job(values)
        if record is None or spec is None:
            raise JobNotFound(job_id)
        return record, str(spec)

    def spec(self, job_id: str) -> str:
        """The document as it was submitted."""
        spec = self._calls.command("GET", self._keys.spec(job_id))
        if spec is None:
            raise JobNotFound(job_id)
        return str(spec)

    def specs(self, job_ids: Sequence[str]) -> dict[str, str]:
        """The documents of those of the jobs that exist."""
        found = self._calls.reads([("GET", self._keys.spec(job_id)) for job_id in job_ids]) if job_ids else []
        return {job_id: str(spec) for job_id, spec in zip(job_ids, found, strict=True) if spec is not None}

    def jobs(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        status: JobStatus | None = None,
        submitted_by: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Page[JobRecord]:
        """Newest first, those created before the job `after`; with this status, submitter and all of this metadata.

        `after` is a job's id, or a page's `last`, which holds where that job was deleted meanwhile. Filters look at
        MAX_SCANNED jobs at most. Where there are older ones, the page says so with `has_more` even if it is short or
        empty.
        """
        fields = {"status": status, "submitted_by": submitted_by}
        wanted = {name: str(value) for name, value in fields.items() if value is not None}
        filtered = bool(wanted or metadata)
        below = "+inf" if after is None else f"({self._order(after)}"
        found: list[str] = []
        orders: dict[str, str] = {}
        scanned, older, last, chunk = 0, True, after, _CHUNK if filtered else limit + 1
        while older and len(found) <= limit and scanned < MAX_SCANNED:
            ids, scores = self._older_than(below, chunk)
            orders.update(zip(ids, scores, strict=True))
            found += self._matching(ids, wanted, metadata or {}) if filtered else ids
            scanned += len(ids)
            older = len(ids) == chunk
            if older:
                last, below = f"{ids[-1]}.{scores[-1]}", f"({scores[-1]}"
        if len(found) <= limit:
            return self._page(found, has_more=older and bool(self._older_than(below, 1)[0]), last=last)
        oldest = found[limit - 1]
        return self._page(found[:limit], has_more=True, last=f"{oldest}.{orders[oldest]}")

    def _order(self, after: str) -> str:
        """Where a job stands among all, from its id or a page's `last`. Raises JobNotFound."""
        order = after.partition(".")[2]
        return order if _ORDER.fullmatch(order) else self._job_field(after, "order")

    def _older_than(self, below: str, count: int) -> tuple[list[str], list[str]]:
        """Ids of jobs, newest first, and when they were made."""
        reply = self._calls.command("ZREVRANGEBYSCORE", self._keys.jobs, below, "-inf", "WITHSCORES", "LIMIT", 0, count)
        return reply[::2], reply[1::2]

    def _matching(self, ids: Sequence[str], wanted: Mapping[str, str], metadata: Mapping[str, str]) -> list[str]:
        """Those of the jobs that have these fields and the metadata."""
        if wanted and ids:
            found = self._calls.reads([("HMGET", self._keys.job(job_id), *wanted) for job_id in ids])
            ids = [job_id for job_id, its in zip(ids, found, strict=True) if its == [*wanted.values()]]
        if metadata:
            known = self._metadata_of(ids)
            ids = [job_id for job_id in ids if job_id in known and metadata.items() <= known[job_id].items()]
        return list(ids)

    def _metadata_of(self, ids: Sequence[str]) -> dict[str, Json]:
        """Of those of the jobs that exist. Specs, which may be large, are read of jobs of earlier versions alone."""
        found = self._calls.reads([("HGET", self._keys.job(job_id), "metadata") for job_id in ids]) if ids else []
        known: dict[str, Json] = {job_id: json.loads(text) for job_id, text in zip(ids, found, strict=True) if text}
        specs = self.specs([job_id for job_id in ids if job_id not in known])
        return known | {job_id: json.loads(spec).get("metadata", {}) for job_id, spec in specs.items()}

    def _page(self, ids: Sequence[str], *, has_more: bool, last: str | None) -> Page[JobRecord]:
        found = self._calls.reads([self._record(job_id) for job_id in ids]) if ids else []
        items = tuple(record for values in found if (record := known_job(values)))
        return Page(items=items, has_more=has_more, last=last)

    def _record(self, job_id: str) -> Sequence[Arg]:
        return "HMGET", self._keys.job(job_id), *JOB_FIELDS

    def next_queued(self) -> str | None:
        """The first of `queued`; a claim decides who gets it."""
        return next(iter(self._calls.command("ZRANGE", self._keys.queue, 0, 0)), None)

    def queued(self) -> list[str]:
        """Waiting jobs in the order in which they go: by priority, then oldest first."""
        return list(self._calls.command("ZRANGE", self._keys.queue, 0, -1))

    def held(self) -> set[str]:
        """Jobs that a driver has, or had until its lease ran out."""
        return set(self._calls.command("ZRANGE", self._keys.leases, 0, -1))

    def front(self, job_id: str) -> Json | None:
        """The Pareto front's document, up to the committed step."""
        commands = [("HGET", self._keys.front(job_id), "doc"), ("HGET", self._keys.job(job_id), "step")]
        document, step = self._calls.reads(commands)  # in this order: a point that is committed meanwhile stays
        if step is None:
            raise JobNotFound(job_id)
        return None if document is None else until(json.loads(document), int(step))

    def steps(self, job_id: str, *, after_step: int = 0, limit: int | None = None) -> list[Json]:
        """The final lineage in order, each step once: what a crash undid is left out.

        Each is the record as committed, with its step, fence, digest and at (Unix seconds).
        """
        found: list[Json] = []
        for fence, last in self._lineage(job_id, after_step):
            after = after_step
            while limit is None or len(found) < limit:
                count = _CHUNK if limit is None else min(_CHUNK, limit - len(found))
                ids = (f"{fence}-{after + 1}", f"{fence}-{last}")
                entries = self._calls.command("XRANGE", self._keys.steps(job_id), *ids, "COUNT", count)
                records = [ledger_step(*entry)[2] for entry in entries]
                found += records
                if len(records) < count:
                    break
                after = records[-1]["step"]
        return found

    def _lineage(self, job_id: str, after_step: int) -> list[tuple[int, int]]:
        """(fence, the last step that is left of it), oldest first, down to the fence that went on from `after_step`.

        A fence undid, of those before it, the steps from its own first one on. So each is read at its two ends alone.
        """
        key, below, before = self._keys.steps(job_id), int(self._job_field(job_id, "step")) + 1, "+"
        parts: list[tuple[int, int]] = []
        while below > after_step + 1:
            newest = self._calls.command("XREVRANGE", key, before, "-", "COUNT", 1)
            if not newest:
                break
            fence = int(newest[0][0].split("-")[0])
            oldest = self._calls.command("XRANGE", key, f"{fence}-0", "+", "COUNT", 1)
            first = int(oldest[0][0].split("-")[1])
            if first < below:
                parts.append((fence, below - 1))
                below = first
            before = f"({fence}-0"
        return parts[::-1]

    def raw_steps(self, job_id: str) -> list[tuple[int, int, Json]]:
        """Everything ever committed as (fence, step, record), in the order of commitment."""
        self._job_field(job_id, "step")
        return list(self._ledger_backwards(job_id))[::-1]

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """All that are registered and not removed, by step."""
        return _by_step(self._of_job(job_id, ("HGETALL", self._keys.checkpoints(job_id))))

    def checkpoint(self, job_id: str, step: int) -> Checkpoint | None:
        """The one of a step, if it is registered and not removed."""
        entry = self._of_job(job_id, ("HGET", self._keys.checkpoints(job_id), step))
        return None if entry is None else checkpoint(step, entry)

    def weighed_checkpoints(self, job_ids: Sequence[str]) -> dict[str, tuple[list[Checkpoint], dict[str, float]]]:
        """(checkpoints, the weights that are steered with) of those of the jobs that exist, in one round trip."""
        reads: list[Sequence[Arg]] = []
        for job_id in job_ids:
            reads += [("HGETALL", self._keys.checkpoints(job_id)), ("HGET", self._keys.steering(job_id), "current")]
        found = self._calls.reads(reads) if reads else []
        return {
            job_id: (_by_step(entries), json.loads(current)["weights"])
            for job_id, entries, current in zip(job_ids, found[::2], found[1::2], strict=True)
            if current is not None
        }

    def events(self, job_id: str, *, after: int = 0, limit: int = 100) -> Events:
        """Events numbered above `after`, oldest first; about the last 10,000 of a job are kept."""
        return self.watch(job_id, after=after, limit=limit)[1]

    def watch(self, job_id: str, *, after: int, limit: int) -> tuple[JobStatus, Events]:
        """The status and the events, in one round trip.

        The events are read last, so that of a job that is over none are left out.
        """
        key, above = self._keys.events(job_id), (f"{after + 1}-0", "+", "COUNT", limit + 1)
        (status, newest), kept, first, marks = self._calls.reads(
            [
                ("HMGET", self._keys.job(job_id), "status", "seq"),
                ("XRANGE", key, *above),
                ("XRANGE", key, "-", "+", "COUNT", 1),
                ("XRANGE", self._keys.marks(job_id), *above),
            ]
        )
        if status is None:
            raise JobNotFound(job_id)
        found = {one.seq: one for one in (event(stream_id, fields) for stream_id, fields in [*marks, *kept])}
        ordered = sorted(found.values(), key=lambda one: one.seq)[: limit + 1]
        oldest = event(*first[0]).seq if first else int(newest) + 1
        page = Events(items=tuple(ordered[:limit]), has_more=len(ordered) > limit, oldest=oldest, newest=int(newest))
        return JobStatus(status), page

    def steering(self, job_id: str, *, before: int | None = None, limit: int | None = None) -> SteeringState:
        """The newest steering, and the changes that led to it: all, or the newest `limit` before a version."""
        newest = "+" if before is None else f"({before}-0"
        count: tuple[Arg, ...] = () if limit is None else ("COUNT", limit + 1)
        (version, current), entries = self._calls.reads(
            [
                ("HMGET", self._keys.steering(job_id), "ver", "current"),
                ("XREVRANGE", self._keys.steering_log(job_id), newest, "-", *count),
            ]
        )
        if version is None:
            raise JobNotFound(job_id)
        log = [steering_entry(stream_id, fields) for stream_id, fields in entries]
        known = [entry for entry in log[:limit] if entry.version <= int(version)]  # others may steer between two reads
        return SteeringState(
            version=int(version),
            current=json.loads(current),
            log=tuple(known[::-1]),
            log_has_more=limit is not None and len(log) > limit,
        )

    def steering_head(self, job_id: str) -> SteeringHead:
        """The newest steering alone, which costs the same however often the job was steered."""
        return self.spec_and_steering(job_id)[1]

    def spec_and_steering(self, job_id: str) -> tuple[str, SteeringHead]:
        """Both in one round trip."""
        (version, current), spec = self._calls.reads(
            [("HMGET", self._keys.steering(job_id), "ver", "current"), ("GET", self._keys.spec(job_id))]
        )
        if version is None or spec is None:
            raise JobNotFound(job_id)
        return str(spec), SteeringHead(version=int(version), current=json.loads(current))

    def steering_at(self, job_id: str, step: int) -> SteeringEntry | None:
        """What `step` follows. Final for every step up to the committed one, and for the next while the job is held.

        Read from the newest change backwards: a step in flight costs the same however often the job was steered.
        """
        key, before = self._keys.steering_log(job_id), "+"
        while True:
            entries = self._of_job(job_id, ("XREVRANGE", key, before, "-", "COUNT", _STEERS))
            for stream_id, fields in entries:
                if (entry := steering_entry(stream_id, fields)).effective_step <= step:
                    return entry
            if len(entries) < _STEERS:
                return None
            before = f"({entries[-1][0]}"

    def steering_by(self, job_id: str, version: int) -> str | None:
        """Who asked for a version."""
        entries = self._of_job(job_id, ("XRANGE", self._keys.steering_log(job_id), f"{version}-1", f"{version}-1"))
        return steering_entry(*entries[0]).by if entries else None

    def _of_job(self, job_id: str, command: Sequence[Arg]) -> Any:
        """The reply to a read beside the job hash, once it is sure that the job exists."""
        # In this order: what a job that still exists has is whole.
        reply, exists = self._calls.reads([command, ("EXISTS", self._keys.job(job_id))])
        if not exists:
            raise JobNotFound(job_id)
        return reply

    def _job_field(self, job_id: str, field: str) -> str:
        value = self._calls.command("HGET", self._keys.job(job_id), field)
        if value is None:
            raise JobNotFound(job_id)
        return str(value)

    def _ledger_backwards(self, job_id: str) -> Iterator[tuple[int, int, Json]]:
        before = "+"
        while True:
            entries = self._calls.command("XREVRANGE", self._keys.steps(job_id), before, "-", "COUNT", _CHUNK)
            yield from (ledger_step(stream_id, fields) for stream_id, fields in entries)
            if len(entries) < _CHUNK:
                return
            before = f"({entries[-1][0]}"


def _by_step(entries: Mapping[str, str]) -> list[Checkpoint]:
    return sorted((checkpoint(int(step), entry) for step, entry in entries.items()), key=lambda found: found.step)
