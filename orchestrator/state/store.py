"""Jobs in Redis: the one place where the life of a job is recorded.

Every change is one Lua script (orchestrator/state/scripts): it checks everything before its first write, takes the
time from Redis, and may be repeated after a lost reply without a second effect. Whoever works on a job holds
a lease; each write under it carries the lease's fence and nonce, and is refused with `Fenced` once another
has claimed the job. Any method may raise `StoreUnavailable`, and `JobNotFound` where it takes a job.
"""

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256
from typing import Any

from orchestrator.clock import Phase
from orchestrator.errors import (
    Fenced,
    IllegalTransition,
    JobNotFound,
    KeepsTooMany,
    QuotaReached,
    StepGap,
    StoreError,
    StoreUnavailable,
)
from orchestrator.state.gpu_hours import GpuQuotaReached
from orchestrator.state.gpu_hours import read as read_gpu_hours
from orchestrator.state.keys import OWNERS, is_name
from orchestrator.state.reader import JobReader
from orchestrator.state.records import (
    Checkpoint,
    Claim,
    ClaimOutcome,
    Event,
    JobRecord,
    Lease,
    Origin,
    Page,
    Signals,
    Steer,
    SteeringEntry,
    SteeringHead,
    SteeringState,
    SteerOutcome,
    Submission,
    SubmitOutcome,
    dumps,
    job_record,
    steering_at,
)
from orchestrator.state.redis_calls import Arg
from orchestrator.state.states import CANCEL, MAX_PRIORITY, PAUSE, RESUME, JobStatus, sources

__all__ = [
    "Checkpoint", "Claim", "ClaimOutcome", "Event", "Fenced", "GpuQuotaReached", "IllegalTransition", "JobNotFound",
    "JobRecord", "JobStatus", "JobStore", "KeepsTooMany", "Lease", "Origin", "Page", "QuotaReached", "Signals", "Steer",
    "SteerOutcome", "SteeringEntry", "SteeringState", "StepGap", "StoreError", "StoreUnavailable", "Submission",
    "SubmitOutcome", "steering_at", "too_many_bytes",
]  # fmt: skip

IDEMPOTENCY_TTL_MS = 24 * 3600 * 1000
MAX_ATTEMPTS = 3  # claims without a new checkpoint between them
PROGRESS_LIMIT_BYTES = 16 * 1024
EVENT_LIMIT_BYTES = 64 * 1024
REASON_LIMIT_CHARS = 2000
_HELD = frozenset({JobStatus.RUNNING, JobStatus.PAUSING, JobStatus.CANCELLING})
_ENDINGS = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.PAUSED})


class JobStore(JobReader):
    """The jobs of one owner, to be changed and read. Holds no state: safe to share between threads."""

    # -- jobs ------------------------------------------------------------------------------------------------

    def submit(
        self,
        spec_json: str,
        *,
        name: str,
        job_id: str,
        steering: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        body: str | None = None,
        max_active: int | None = None,
        max_kept: int | None = None,
        max_kept_bytes: int | None = None,
        origin: Origin | None = None,
        priority: int = 0,
        by: str = "submit",
        may_take_gpus: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> Submission:
        """Queue a job; `steering` is its first version, `by` whoever gave it.

        A job id seen before gives REPLAY for the same `spec_json`, byte for byte, CONFLICT for another one. A key (kept
        24 h) does so by the `body` that asked for the job, if one is given: what it resolves to may change with the
        version. With a key, the job comes as the first answer had it.
        So does a call whose first reply was lost: REPLAY, one job. QUOTA, and nothing stored, where it is new
        and the owner has `max_active` jobs that wait or are worked on (None: no limit); `KeepsTooMany` where it has
        `max_kept` in all or so many answers to keys, or more than `max_kept_bytes` would be kept of its jobs. `origin`:
        where it was forked.
        `priority`, as in a spec, is for good: it decides among the owner's own jobs whenever this one waits.
        A job that `may_take_gpus` is `GpuQuotaReached`, and nothing stored, where its owner's GPU-hours are used up.
        `metadata`, as in the spec, stands beside it, so that lists which filter by it read no specs.
        """
        if abs(priority) > MAX_PRIORITY:
            raise ValueError(f"priority: {-MAX_PRIORITY} to {MAX_PRIORITY} are allowed")
        if not is_name(job_id):
            raise ValueError("job id: 1 to 255 letters, digits, _ or - are allowed")
        keys = self._keys
        outcome, accepted_id, fields = self._run(
            "submit",
            job_id,
            _digest(spec_json),
            0 if idempotency_key is None else IDEMPOTENCY_TTL_MS,
            name,
            spec_json,
            dumps(steering or {}),
            self.owner,
            "" if max_active is None else max_active,
            "" if origin is None else origin.parent,
            "" if origin is None else origin.step,
            priority,
            by,
            int(may_take_gpus),
            _digest(spec_json if body is None else body),
            "" if max_kept is None else max_kept,
            "" if max_kept_bytes is None else max_kept_bytes,
            "" if metadata is None else dumps(metadata),
            more=[
                keys.idempotency(idempotency_key or ""), keys.jobs, keys.spec(job_id),
                keys.steering(job_id), OWNERS, keys.kept, keys.answers,
            ],
        )  # fmt: skip
        if outcome == "GPU_QUOTA":
            raise GpuQuotaReached(read_gpu_hours(self._calls, self.owner))
        if outcome == "KEPT":
            raise KeepsTooMany(
                f"{max_kept} jobs of this owner are kept, and no more may be: delete some that have ended"
            )
        if outcome == "KEPT_ANSWERS":
            raise KeepsTooMany(
                f"{max_kept} answers are kept for this owner's Idempotency-Keys, each for a day: send none"
            )
        if outcome == "KEPT_BYTES":
            raise too_many_bytes(max_kept_bytes)
        return _submission(outcome, accepted_id, fields)

    def submitted(self, body: str, *, idempotency_key: str) -> Submission | None:
        """What `submit` answers a key that it knows: REPLAY or CONFLICT."""
        kept = self._calls.command("GET", self._keys.idempotency(idempotency_key))
        if kept is None:
            return None
        job_id, digest, fields = kept.split("|", 2)
        return _submission("REPLAY" if digest == _digest(body) else "CONFLICT", job_id, fields)

    # -- what people ask for ---------------------------------------------------------------------------------

    def request_cancel(self, job_id: str, *, by: str = "") -> JobStatus:
        """Cancelled at once if nobody works on it, else cancelling until the holder lets go.

        Of this and the next two, the events and the reason say `by` whom.
        """
        return self._request(job_id, CANCEL, JobStatus.CANCELLED, "cancelled on request", by=by)

    def request_pause(self, job_id: str, *, save: bool = True, by: str = "", why: str = "") -> JobStatus:
        """Paused at once if nobody works on it, else pausing until the holder lets go.

        Without `save` it writes no checkpoint: the steps since the newest one run again after a resume. A rule of the
        job's own says `why`: the reason now, and once it is paused.
        """
        how, why = "save" if save else "latest", _text(why)
        return self._request(job_id, PAUSE, JobStatus.PAUSED, why or "paused on request", how=how, by=by, why=why)

    def resume(self, job_id: str, *, max_active: int | None = None, by: str = "") -> JobStatus:
        """Back to the queue, with all its attempts again. `QuotaReached` and `GpuQuotaReached` as `submit` has them."""
        return self._request(job_id, RESUME, JobStatus.QUEUED, "", fresh_attempts=True, max_active=max_active, by=by)

    def delete(self, job_id: str) -> None:
        """Forget a job that has ended, with all that is kept of it here; `IllegalTransition` for another.

        A full Redis takes it. What is on disk stays, and so do the GPU time of its owner and a key's stored answer.
        """
        keys = self._keys
        more = [
            keys.stalled, keys.jobs, keys.kept, keys.spec(job_id), keys.told(job_id), keys.steps(job_id),
            keys.checkpoints(job_id), keys.front(job_id), keys.steering(job_id), keys.marks(job_id),
        ]  # fmt: skip
        code, *current = self._run("delete", job_id, more=more)
        if code == "ILLEGAL":
            raise IllegalTransition(current[0], "deleted")

    def check_writes(self) -> None:
        """Raises `StoreUnavailable` while Redis takes no writes; changes nothing."""
        self._calls.command("ZADD", self._keys.queue, "XX", 0, "-")  # only what is in the queue already: no job's id

    # -- the lease -------------------------------------------------------------------------------------------

    def claim(self, job_id: str, *, nonce: str, ttl_s: float, floor_fence: int = 0, floor_step: int = 0) -> Claim:
        """Take a queued job, or one whose holder's lease has expired; repeat with the same nonce if unsure.

        The job restarts at its newest registered checkpoint. The floors are the fence and step of the newest
        checkpoint manifest on disk, for a Redis restored from an older backup: a fence never repeats.
        The fourth claim without a new checkpoint between fails the job, with how the last ended as its reason. One that
        may take GPUs is paused instead of claimed where its owner's GPU-hours are used up.
        """
        code, fence, step, from_step = self._run(
            "claim", job_id, nonce, _ms(ttl_s), floor_fence, floor_step, MAX_ATTEMPTS
        )
        won = code == ClaimOutcome.OK
        return Claim(
            outcome=ClaimOutcome(code),
            lease=Lease(job_id=job_id, fence=fence, nonce=nonce) if won else None,
            step=step,
            from_step=from_step,
        )

    def renew(self, lease: Lease, ttl_s: float) -> Signals:
        """Keep the lease for `ttl_s` from now, and learn what people asked for meanwhile."""
        _, status, version, how = self._write("renew", lease, _ms(ttl_s), more=[self._keys.steering(lease.job_id)])
        return Signals(
            cancel=status == JobStatus.CANCELLING,
            pause=status == JobStatus.PAUSING,
            save=how == "save",
            steering_version=version,
        )

    def finish(self, lease: Lease, status: JobStatus, reason: str | None = None) -> None:
        """End work and lease: succeeded or failed; cancelled when cancelling, paused when pausing."""
        if status not in _ENDINGS:
            raise ValueError(f"a job cannot finish as {status}")
        self._change("finish", lease, status, reason)

    def release(self, lease: Lease, reason: str | None = None, *, crashed: bool = False) -> JobStatus:
        """Hand the job back unfinished; no attempt is counted unless it crashed, and the next claim need not wait.

        Queued again, or paused or cancelled if that was asked for.
        """
        return JobStatus(self._write("release", lease, _text(reason), int(crashed))[1])

    def sweep(self, *, grace_s: float = 0.0) -> list[str]:
        """Take back the jobs (at most 100) whose lease has expired, and return them.

        Two passes, at least `grace_s` apart: the first marks, the next takes back what was not renewed between. They
        go to the queue, or become paused or cancelled if that was asked for.
        """
        seconds, _ = self._calls.command("TIME")
        expired = self._calls.command(
            "ZRANGEBYSCORE", self._keys.leases, "-inf", (seconds + 1) * 1000, "LIMIT", 0, 100
        )  # a superset: the script decides by its own time
        token, grace_ms, keys = _token(), round(1000 * grace_s), [self._keys.stalled]
        return [job_id for job_id in expired if self._run("sweep", job_id, token, grace_ms, more=keys)[0] == "TAKEN"]

    # -- what the holder writes ------------------------------------------------------------------------------

    def set_status(self, lease: Lease, status: JobStatus, reason: str | None = None) -> None:
        """Running, pausing or cancelling; the rest belongs to `claim`, `finish` and `release`.

        `IllegalTransition` for running means that a request came first: `renew` tells which.
        """
        if status not in _HELD:
            raise ValueError(f"{status} is not set under a lease: use claim, finish or release")
        self._change("set_status", lease, status, reason)

    def hold_gpus(self, lease: Lease, gpus: float) -> None:
        """So many are reserved for the job from now on, until its lease ends: they count as its owner's GPU time."""
        self._write("gpus", lease, round(1000 * gpus))

    def set_progress(self, lease: Lease, progress: Mapping[str, Any]) -> None:
        """The live line that people see, at most 16 KiB; `ValueError` above."""
        line = dumps(progress, limit_bytes=PROGRESS_LIMIT_BYTES)
        self._write("put", lease, "progress", line, more=[self._keys.job(lease.job_id)])

    def set_phase(self, lease: Lease, phase: Phase | None) -> None:
        """What the step under way is at, and since when."""
        document = {} if phase is None else {"at": phase[0], "since": phase[1], "fence": lease.fence}
        self._write("put", lease, "phase", dumps(document), more=[self._keys.job(lease.job_id)])

    def set_cost(self, lease: Lease, cost: float) -> None:
        """What rewards cost so far, in all runs of the job."""
        self._write("put", lease, "cost", repr(cost), more=[self._keys.job(lease.job_id)])

    def set_total_steps(self, lease: Lease, total_steps: int) -> None:
        self._write("put", lease, "total_steps", total_steps, more=[self._keys.job(lease.job_id)])

    def set_front(self, lease: Lease, front: Mapping[str, Any]) -> None:
        """Replace the Pareto front's document; who wants its volume alone need not read the whole of it."""
        newest = max((point["step"] for point in front.get("points", ())), default=0)
        volume = dumps({"step": newest, "hypervolume": front.get("hypervolume")})
        self._write("put", lease, "doc", dumps(front), "volume", volume, more=[self._keys.front(lease.job_id)])

    # -- steps -----------------------------------------------------------------------------------------------

    def commit(self, lease: Lease, *, step: int, digest: str, record: Mapping[str, Any]) -> None:
        """Record a step and extend the lease by its last TTL. The same step and digest again is no error.

        `StepGap` unless `step` is the committed one + 1.
        """
        keys = [self._keys.steps(lease.job_id), self._keys.kept]
        code, *expected = self._write("commit", lease, step, digest, dumps(record), more=keys)
        if code == "GAP":
            raise StepGap(step, expected[0])

    # -- checkpoints -----------------------------------------------------------------------------------------

    def register_checkpoint(self, lease: Lease, *, step: int, path: str, digest: str) -> None:
        """Make a checkpoint that is already durable the place to restart from; attempts count from 0 again.

        `StepGap` for a step that is not committed, or older than the newest checkpoint.
        """
        entry = dumps({"path": path, "digest": digest, "metrics": {}, "on_front": False})
        keys = [self._keys.checkpoints(lease.job_id)]
        code, *newest = self._write("checkpoint", lease, step, path, digest, entry, more=keys)
        if code == "GAP":
            raise StepGap(step, newest[0])

    def update_checkpoints(
        self,
        lease: Lease,
        changes: Mapping[int, Mapping[str, Any]] | None = None,
        *,
        removals: Collection[int] = (),
    ) -> None:
        """Set `metrics` and `on_front` by step, and forget `removals` (files are the caller's).

        `StepGap` for an unknown step; `ValueError` for an unknown field or the newest's removal: a restart needs it.
        """
        entries = {found.step: found for found in self.checkpoints(lease.job_id)}
        pairs: list[Arg] = []
        for step, change in (changes or {}).items():
            if step not in entries:
                raise StepGap(step, max(entries, default=0))
            if not change.keys() <= {"metrics", "on_front"}:
                raise ValueError(f"checkpoint {step}: a field other than metrics and on_front")
            known = entries[step]
            entry = {"path": known.path, "digest": known.digest, "metrics": known.metrics,
                     "on_front": known.on_front}  # fmt: skip
            if (now := dumps({**entry, **change})) != dumps(entry):  # of a long front's points mostly none changes
                pairs += [step, now]
        keys = [self._keys.checkpoints(lease.job_id)]
        if self._write("checkpoints", lease, len(removals), *removals, *pairs, more=keys)[0] == "NEWEST":
            raise ValueError("the newest checkpoint cannot be removed: the job restarts from it")

    def rewind(self, lease: Lease, *, step: int) -> None:
        """Fall back to an older registered checkpoint, as the newer ones proved damaged; they are forgotten.

        Only between a claim and its first commit: `StepGap` later, `ValueError` for an unregistered step.
        """
        code, *expected = self._write("rewind", lease, step, more=[self._keys.checkpoints(lease.job_id)])
        if code == "ABSENT":
            raise ValueError(f"no checkpoint is registered at step {step}")
        if code == "GAP":
            raise StepGap(step, expected[0])

    # -- events ----------------------------------------------------------------------------------------------

    def event(
        self,
        job_id: str,
        type: str,
        data: Mapping[str, Any],
        lease: Lease | None = None,
        *,
        level: str = "info",
        token: str | None = None,
        once: str | None = None,
    ) -> int:
        """Append an event (data at most 64 KiB), only while `lease` is valid if one is given; its number.

        Who repeats the call after `StoreUnavailable` gives the same `token`: then it is written once. `once` names what
        is told, for as long as the job lives: a step that runs again after a crash tells it no second time.
        """
        fence, nonce = ("", "") if lease is None else (str(lease.fence), lease.nonce)
        document = dumps(data, limit_bytes=EVENT_LIMIT_BYTES)
        words = [token or _token(), fence, nonce, type, level, document, once or ""]
        return int(self._run("event", job_id, *words, more=[self._keys.told(job_id), self._keys.marks(job_id)])[1])

    # -- steering --------------------------------------------------------------------------------------------

    def steer(
        self,
        job_id: str,
        *,
        change: Mapping[str, Any],
        if_match: int | None,
        by: str,
        head: SteeringHead | None = None,
        max_kept_bytes: int | None = None,
        over: int = 1,
    ) -> Steer:
        """Replace the top-level keys in `change` if version `if_match` is current (None: whichever is).

        Takes effect two steps after the committed one, as the next may be in flight, and at the next of a job that is
        paused or queued; never earlier than a change acknowledged before. LATE where the job ends before that. Who has
        just read the `head` saves reading it again. `over`: steps in which it takes effect, which the log alone keeps.
        `KeepsTooMany` above `max_kept_bytes`, as `submit` has it.
        """
        token = _token()
        told = dict(change) if over == 1 else {**change, "over": over}
        while True:
            head = head or self.steering_head(job_id)
            state = {**head.current, **change}
            # The state stands on the head, so no other version may be what it is written over: 0 is never current.
            expected = head.version if if_match in (None, head.version) else 0
            code, *rest = self._run(
                "steer", job_id, token, expected, dumps(told), dumps(state), by,
                "" if max_kept_bytes is None else max_kept_bytes,
                more=[self._keys.steering(job_id), self._keys.kept],
            )  # fmt: skip
            if code == "KEPT_BYTES":
                raise too_many_bytes(max_kept_bytes)
            outcome, (version, effective_step) = SteerOutcome(code), rest
            if outcome is not SteerOutcome.STALE or if_match is not None:
                break
            head = None
        return Steer(
            outcome=outcome,
            version=version,
            effective_step=effective_step if outcome is SteerOutcome.OK else None,
        )

    # -- below the surface -----------------------------------------------------------------------------------

    def _run(self, script: str, job_id: str, *args: Arg, more: Sequence[str] = ()) -> list[Any]:
        keys = self._keys
        common = [
            keys.job(job_id), keys.events(job_id), keys.replies(job_id), keys.queue, keys.leases,
            keys.steering_log(job_id), keys.gpu_time,
        ]  # fmt: skip
        reply = self._calls.script(script, [*common, *more], [job_id, *args])
        if reply[0] == "NOTFOUND":
            raise JobNotFound(job_id)
        if reply[0] == "FENCED":
            raise Fenced(f"the lease on {job_id} is no longer valid")
        return reply

    def _write(self, script: str, lease: Lease, *args: Arg, more: Sequence[str] = ()) -> list[Any]:
        return self._run(script, lease.job_id, lease.fence, lease.nonce, *args, more=more)

    def _change(self, script: str, lease: Lease, status: JobStatus, reason: str | None) -> None:
        code, *current = self._write(script, lease, status, _text(reason), *sources(status))
        if code == "ILLEGAL":
            raise IllegalTransition(current[0], status)

    def _request(
        self,
        job_id: str,
        moves: Mapping[JobStatus, JobStatus],
        wanted: JobStatus,
        reason: str,
        *,
        fresh_attempts: bool = False,
        max_active: int | None = None,
        how: str = "",
        by: str = "",
        why: str = "",
    ) -> JobStatus:
        words: list[Arg] = [reason, int(fresh_attempts), max_active or 0, how, by, why]
        pairs = [status for move in moves.items() for status in move]
        code, status = self._run("request", job_id, _token(), *words, *pairs)
        if code == "QUOTA":
            raise QuotaReached("too many active jobs")
        if code == "GPU_QUOTA":
            raise GpuQuotaReached(read_gpu_hours(self._calls, self.owner))
        if code == "ILLEGAL":
            raise IllegalTransition(status, wanted)
        return JobStatus(status)


def too_many_bytes(most: int | None, so: str = "") -> KeepsTooMany:
    what = f"{so}specs, metadata, steps and steering of this owner's jobs"
    return KeepsTooMany(f"{what} may have {most} bytes in all: delete some that have ended")


def _submission(outcome: str, job_id: str, fields: str) -> Submission:
    """`fields`: names and values in turns, as JSON."""
    flat = json.loads(fields)
    job = job_record(dict(zip(flat[::2], flat[1::2], strict=True))) if flat else None
    return Submission(job_id=job_id, outcome=SubmitOutcome(outcome), job=job)


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _ms(ttl_s: float) -> int:
    if ttl_s <= 0:
        raise ValueError("a lease lasts longer than 0 s")
    return max(1, round(ttl_s * 1000))


def _text(reason: str | None) -> str:
    """A reason may quote any exception: cut, and without characters that UTF-8 cannot carry."""
    return (reason or "")[:REASON_LIMIT_CHARS].encode("utf-8", "replace").decode()


def _token() -> str:
    """Names one call, so that the library's own retry of it is recognised."""
    return secrets.token_hex(8)
