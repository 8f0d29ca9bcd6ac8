"""What the job store gives back: frozen records, and how they are read from Redis replies."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from orchestrator.state.gpu_hours import UNITS_PER_HOUR
from orchestrator.state.states import JobStatus

Json = dict[str, Any]
T = TypeVar("T")


class SubmitOutcome(StrEnum):
    """NEW: accepted now. REPLAY: before, same body. CONFLICT: same key or id, another body. QUOTA: one too many."""

    NEW = "NEW"
    REPLAY = "REPLAY"
    CONFLICT = "CONFLICT"
    QUOTA = "QUOTA"


class ClaimOutcome(StrEnum):
    """OK: the lease is ours. HELD: another's is alive. POISON: too many attempts, the job failed just now."""

    OK = "OK"
    HELD = "HELD"
    TERMINAL = "TERMINAL"
    POISON = "POISON"
    NOT_QUEUED = "NOT_QUEUED"


class SteerOutcome(StrEnum):
    """OK: written. STALE: another version is current. STATE: the job is over or being cancelled. LATE: nearly over."""

    OK = "OK"
    STALE = "STALE"
    STATE = "STATE"
    LATE = "LATE"


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """`job_id` is the job that the key belongs to: on REPLAY and CONFLICT, the earlier one.

    `job` as it was when it was made, for as long as its key is kept; of a job without one, as it is. None on QUOTA.
    """

    job_id: str
    outcome: SubmitOutcome
    job: "JobRecord | None"


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """The right to write to a job: `fence` grows with every claim, `nonce` is the claimer's own."""

    job_id: str
    fence: int
    nonce: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """`step`: start after this one. `from_step`: what was committed, so from_step - step are re-run."""

    outcome: ClaimOutcome
    lease: Lease | None
    step: int
    from_step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Signals:
    """What the holder learns when it renews."""

    cancel: bool
    pause: bool
    save: bool = True  # with a checkpoint, if it is to pause
    steering_version: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """The job and the step whose policy a fork starts from. The server's word: no submitted document says it."""

    parent: str
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRecord:
    """A job as people see it. Times are Unix seconds of the Redis clock; `step` is the last committed one."""

    job_id: str
    name: str
    priority: int = 0
    status: JobStatus
    reason: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    step: int
    total_steps: int | None
    fence: int
    attempts: int
    checkpoint_step: int | None
    checkpoint_path: str | None
    progress: Json
    spec_digest: str  # sha256 of the document's text
    origin: Origin | None = None
    gpu_hours: float = 0.0  # so far: of a job at work, up to its last renewal
    submitted_by: str | None = None  # the name of a key; None of a job of an earlier version
    cost: float = 0.0  # so far, of rewards that have a price, as judges have
    phase: Json | None = None  # what the step under way is at, once for some seconds: `at`, `since`


@dataclass(frozen=True, kw_only=True, slots=True)
class Page(Generic[T]):
    """Part of a list; ask again after the last item while `has_more`, or after `last` where that is given.

    `last` holds also where that item is gone by then.
    """

    items: tuple[T, ...]
    has_more: bool
    last: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened to a job. `seq` counts 1, 2, 3, ... per job; `at` is Unix seconds."""

    seq: int
    type: str
    at: float
    level: str
    data: Json


@dataclass(frozen=True, kw_only=True, slots=True)
class Events:
    """Part of a job's events; ask again after the last one while `has_more`.

    From number `oldest` to `newest` all are kept; of those before it only what is told once, a collapse for one.
    """

    items: tuple[Event, ...]
    has_more: bool
    oldest: int
    newest: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A registered checkpoint. `metrics` and `on_front` are the holder's to keep up to date."""

    step: int
    path: str
    digest: str
    metrics: Json
    on_front: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Steer:
    """`version` is the current one; `effective_step` the first step to follow the change (None unless OK)."""

    outcome: SteerOutcome
    version: int
    effective_step: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SteeringHead:
    """The newest steering, without the changes that led to it."""

    version: int
    current: Json


@dataclass(frozen=True, kw_only=True, slots=True)
class SteeringEntry:
    """One change: `state` is the whole steering after it, in force from `effective_step` on."""

    version: int
    effective_step: int
    at: float
    by: str
    change: Json
    state: Json

    @property
    def over(self) -> int:
        """Steps in which it takes effect."""
        return int(self.change.get("over", 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class SteeringState:
    """The newest steering, acknowledged but perhaps not yet in force, and changes that led to it, oldest first.

    `log_has_more`: there are older ones than those that were asked for.
    """

    version: int
    current: Json
    log: tuple[SteeringEntry, ...]
    log_has_more: bool = False

    def at(self, step: int) -> SteeringEntry | None:
        return steering_at(self.log, step)


def steering_at(log: Sequence[SteeringEntry], step: int) -> SteeringEntry | None:
    """The entry that a step follows: the highest version whose effective step is not after it."""
    in_force = (entry for entry in log if entry.effective_step <= step)
    return max(in_force, key=lambda entry: entry.version, default=None)


def dumps(document: Mapping[str, Any], *, limit_bytes: int | None = None) -> str:
    """Strict JSON: NaN and infinities become null. Raises `ValueError` above `limit_bytes`."""
    text = json.dumps(finite(document), allow_nan=False, separators=(",", ":"))
    if limit_bytes is not None and len(text) > limit_bytes:  # ASCII: one byte a character
        raise ValueError(f"{len(text)} bytes of JSON, at most {limit_bytes} are allowed")
    return text


def finite(value: Any) -> Any:
    """A copy of a JSON document with null in place of NaN and infinities, which JSON has no words for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


# What a record needs of the job hash, whose metadata may be large.
JOB_FIELDS = (
    "id", "name", "priority", "status", "reason", "created_at", "started_at", "finished_at", "step", "total_steps",
    "fence", "attempts", "ckpt_step", "ckpt_path", "spec_digest", "progress", "parent", "parent_step", "gpu_used",
    "submitted_by", "cost", "phase",
)  # fmt: skip


def known_job(values: Sequence[str | None]) -> JobRecord | None:
    """From the values of JOB_FIELDS in the job hash; None of a job that is gone."""
    fields = {name: value for name, value in zip(JOB_FIELDS, values, strict=True) if value is not None}
    return job_record(fields) if fields else None


def job_record(fields: Mapping[str, str]) -> JobRecord:
    """From the job hash, where an empty string stands for "none"."""
    return JobRecord(
        job_id=fields["id"],
        name=fields["name"],
        priority=int(fields.get("priority", 0)),
        status=JobStatus(fields["status"]),
        reason=fields["reason"] or None,
        created_at=float(fields["created_at"]),
        started_at=_optional(float, fields["started_at"]),
        finished_at=_optional(float, fields["finished_at"]),
        step=int(fields["step"]),
        total_steps=_optional(int, fields["total_steps"]),
        fence=int(fields["fence"]),
        attempts=int(fields["attempts"]),
        checkpoint_step=_optional(int, fields["ckpt_step"]),
        checkpoint_path=fields["ckpt_path"] or None,
        spec_digest=fields["spec_digest"],
        progress=json.loads(fields["progress"]),
        origin=_origin(fields),
        gpu_hours=int(fields.get("gpu_used", 0)) / UNITS_PER_HOUR,
        submitted_by=fields.get("submitted_by") or None,
        cost=float(fields.get("cost", 0)),
        phase=_phase(fields),
    )


def _phase(fields: Mapping[str, str]) -> Json | None:
    """None where a holder before this one was at it."""
    phase = json.loads(fields.get("phase") or "{}")
    return {"at": phase["at"], "since": phase["since"]} if phase.get("fence") == int(fields["fence"]) else None


def _origin(fields: Mapping[str, str]) -> Origin | None:
    parent, step = fields.get("parent"), fields.get("parent_step")
    return Origin(parent=parent, step=int(step)) if parent and step else None


def event(stream_id: str, fields: Mapping[str, str]) -> Event:
    return Event(
        seq=int(stream_id.split("-")[0]),
        type=fields["type"],
        at=float(fields["at"]),
        level=fields["level"],
        data=json.loads(fields["data"]),
    )


def checkpoint(step: int, entry: str) -> Checkpoint:
    return Checkpoint(step=step, **json.loads(entry))


def steering_entry(stream_id: str, fields: Mapping[str, str]) -> SteeringEntry:
    return SteeringEntry(
        version=int(stream_id.split("-")[0]),
        effective_step=int(fields["eff"]),
        at=float(fields["at"]),
        by=fields["who"],
        change=json.loads(fields["change"]),
        state=json.loads(fields["state"]),
    )


def ledger_step(stream_id: str, fields: Mapping[str, str]) -> tuple[int, int, Json]:
    """(fence, step, record); the record also says its step, fence, digest and time."""
    fence, step = map(int, stream_id.split("-"))
    record = json.loads(fields["record"])
    return (
        fence,
        step,
        {**record, "step": step, "fence": fence, "digest": fields["digest"], "at": float(fields["at"])},
    )


def _optional(kind: type[T], text: str) -> T | None:
    return kind(text) if text else None  # type: ignore[call-arg]  # int, float and str all take a text
