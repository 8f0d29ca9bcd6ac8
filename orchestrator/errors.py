"""What can go wrong between a process and the store.

    StoreError
    ├── StoreUnavailable    Redis did not answer, or refuses writes: try again later (HTTP 503)
    ├── JobNotFound         no such job for this owner (404)
    ├── IllegalTransition   the job's status does not allow it (409)
    ├── QuotaReached        the owner has as many active jobs as it may have (429)
    ├── KeepsTooMany        the owner has as many or as large jobs in all, with those that ended, as it may have (429)
    ├── gpu_hours.GpuQuotaReached  the owner has used its GPU-hours of the month up (429)
    ├── Fenced              another holder has the job: exit, write nothing more
    └── StepGap             a commit or checkpoint that does not continue the ledger

All can be pickled, as they may cross from one process to another.
"""

from enum import StrEnum


class StoreError(Exception):
    """Anything that the job store raises on purpose."""


class Outage(StrEnum):
    """Why Redis does not serve a call."""

    AWAY = "away"
    READ_ONLY = "read-only"  # it answers, and refuses writes: memory full, disk failing, a replica
    FORBIDDEN = "forbidden"  # by its list of users, or the scripts are not loaded yet


class StoreUnavailable(StoreError):
    """Redis could not be reached or refuses writes. Whether the call took effect is unknown."""

    def __init__(self, message: str, outage: Outage = Outage.AWAY, asked: str = "") -> None:
        """`asked`: of what is forbidden, the command or script, with its keys."""
        super().__init__(message, outage, asked)
        self.outage, self.asked = outage, asked

    def __str__(self) -> str:
        return str(self.args[0])


class JobNotFound(StoreError):
    """No job of this owner has this id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"no job {self.job_id!r}"


class IllegalTransition(StoreError):
    """The transition table has no way from the current status to the wanted one."""

    def __init__(self, current: str, wanted: str) -> None:
        super().__init__(current, wanted)
        self.current = current
        self.wanted = wanted

    def __str__(self) -> str:
        return f"a job that is {self.current} cannot become {self.wanted}"


class QuotaReached(StoreError):
    """The owner has as many jobs waiting or at work as it may have."""


class KeepsTooMany(StoreError):
    """The owner has as many jobs, or as large ones, as it may, those that ended among them: one must be deleted."""


class Fenced(StoreError):
    """The lease is no longer valid: the job was claimed by another, swept, released or finished."""


class StepGap(StoreError):
    """The step does not continue what is committed; `expected` is the step that would."""

    def __init__(self, step: int, expected: int) -> None:
        super().__init__(step, expected)
        self.step = step
        self.expected = expected

    def __str__(self) -> str:
        return f"step {self.step} does not fit: the ledger expects step {self.expected}"


class LauncherUnavailable(Exception):
    """What starts drivers does not answer, or refuses; those that run are not touched by that. Worth another try."""


class DoesNotFit(ValueError):
    """The job asks for more than there is, however long it waits."""


class ActorLost(Exception):
    """An engine's or the learner's process, or its machine, is gone; the job can go on from its checkpoint."""


class LearnerOutOfMemory(ActorLost):
    """The learner's memory did not suffice. Another try from the checkpoint may have more, but not for ever."""


class Interrupted(Exception):
    """A person, or the machine, wants the run to end: what is under way is not waited for."""


class OtherVersion(Exception):
    """A job's spec, which was accepted once, is refused here: by another version, or for want of a plug-in."""

    def __init__(self, refused: str) -> None:
        super().__init__(refused)
        self.refused = refused

    def __str__(self) -> str:
        return (
            f"this version refuses its spec: {self.refused}; install the plug-in that it names, or go on with the "
            "version that took the job"
        )


class ResourcesBusy(Exception):
    """The job fits, but not beside what runs now, or once machines come; it holds nothing and waits in the queue."""
