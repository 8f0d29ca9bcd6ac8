"""The life of a job: its statuses and the one table of legal transitions."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from orchestrator.errors import IllegalTransition

MAX_PRIORITY = 5  # of a job, either way; the prelude of the scripts relies on it


class JobStatus(StrEnum):
    """Where a job is in its life; transitional states (-ing) are visible to people."""

    VALIDATING = "validating"
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


_S = JobStatus

# A holder that is lost or hands back: starting and running go to queued, pausing to paused, cancelling to
# cancelled. A run may end (succeed or fail) before it notices a request: what happened counts.
TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = MappingProxyType(
    {
        _S.VALIDATING: frozenset({_S.QUEUED, _S.CANCELLED, _S.FAILED}),
        _S.QUEUED: frozenset({_S.STARTING, _S.PAUSED, _S.CANCELLED, _S.FAILED}),
        _S.STARTING: frozenset({_S.RUNNING, _S.QUEUED, _S.PAUSING, _S.CANCELLING, _S.FAILED}),
        _S.RUNNING: frozenset({_S.QUEUED, _S.PAUSING, _S.CANCELLING, _S.SUCCEEDED, _S.FAILED}),
        _S.PAUSING: frozenset({_S.PAUSED, _S.CANCELLING, _S.SUCCEEDED, _S.FAILED}),
        _S.PAUSED: frozenset({_S.QUEUED, _S.CANCELLED}),
        _S.CANCELLING: frozenset({_S.CANCELLED, _S.SUCCEEDED, _S.FAILED}),
        _S.CANCELLED: frozenset(),
        _S.SUCCEEDED: frozenset(),
        _S.FAILED: frozenset(),
    }
)

# What a person's request does in each status; absent means refused. A request that is already being
# followed changes nothing (two clicks are one).
CANCEL: Mapping[JobStatus, JobStatus] = MappingProxyType(
    {
        _S.VALIDATING: _S.CANCELLED,
        _S.QUEUED: _S.CANCELLED,
        _S.PAUSED: _S.CANCELLED,
        _S.STARTING: _S.CANCELLING,
        _S.RUNNING: _S.CANCELLING,
        _S.PAUSING: _S.CANCELLING,
        _S.CANCELLING: _S.CANCELLING,
        _S.CANCELLED: _S.CANCELLED,
    }
)
PAUSE: Mapping[JobStatus, JobStatus] = MappingProxyType(
    {
        _S.QUEUED: _S.PAUSED,
        _S.STARTING: _S.PAUSING,
        _S.RUNNING: _S.PAUSING,
        _S.PAUSING: _S.PAUSING,
        _S.PAUSED: _S.PAUSED,
    }
)
RESUME: Mapping[JobStatus, JobStatus] = MappingProxyType({_S.PAUSED: _S.QUEUED, _S.QUEUED: _S.QUEUED})


def is_terminal(status: JobStatus) -> bool:
    """True for a status that no job ever leaves."""
    return not TRANSITIONS[status]


def check_transition(current: JobStatus, wanted: JobStatus) -> None:
    """Raise `IllegalTransition` unless the table allows it. Staying where one is is not a transition."""
    if wanted not in TRANSITIONS[current]:
        raise IllegalTransition(current, wanted)


def sources(wanted: JobStatus) -> list[JobStatus]:
    """The statuses from which `wanted` can be reached in one transition."""
    return [status for status, targets in TRANSITIONS.items() if wanted in targets]
