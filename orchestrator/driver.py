"""One job's process: claims it, keeps the lease, runs the loop, ends with a reason.

    python -m orchestrator.driver --job ID --owner NAME --state-dir DIR

The Redis URL is EQUIPOISE_REDIS_URL, or in the file EQUIPOISE_REDIS_URL_FILE, whose password may change; --redis is for
people, as everyone on a machine can read its arguments.
Killing the API or the worker does not stop it. SIGTERM makes it checkpoint at the next step and hand the job back. A
cancel is heard at the next step, or carried out without it.
Exit codes: 0 done with the job (whatever its end), 3 another holder took the job, 4 it was handed back for want of
resources, of its checkpoint store or of a permission in Redis, 1 a crash: its worker takes the job back, or else its
lease runs out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import secrets
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from orchestrator import logs
from orchestrator.actors.threads import WAITING
from orchestrator.clock import Phase
from orchestrator.errors import (
    ActorLost,
    DoesNotFit,
    JobNotFound,
    LearnerOutOfMemory,
    OtherVersion,
    Outage,
    ResourcesBusy,
)
from orchestrator.failpoints import reach
from orchestrator.job_report import all_events, report_so_far, write_report
from orchestrator.journal import StoreJournal, Wishes
from orchestrator.launch.launchers import (
    LOG_NAME,
    NO_RESOURCES,
    NONCE_VARIABLE,
    OTHER_HOLDER,
    REDIS_URL_FILE_VARIABLE,
    REDIS_URL_VARIABLE,
)
from orchestrator.pinning import trained_commit
from orchestrator.software import changes, code, plugins, versions
from orchestrator.spec import JobSpec
from orchestrator.specs.reward_job import RewardJobSpec
from orchestrator.state.embedded_redis import connect
from orchestrator.state.redis_secret import file_url, resolve
from orchestrator.state.states import is_terminal
from orchestrator.state.store import (
    Claim,
    ClaimOutcome,
    Fenced,
    IllegalTransition,
    JobStatus,
    JobStore,
    Lease,
    Signals,
    StepGap,
    StoreUnavailable,
)
from orchestrator.storage.checkpoint_store import CheckpointStore, open_store
from orchestrator.storage.checkpoints import CheckpointError, PolicyAlone, Unreadable, check_room, collect
from orchestrator.storage.recovery import keep_document, keep_ending, register_found
from orchestrator.storage.remote import RemoteAway
from orchestrator.stored_spec import absent_fields, read_stored

os.environ.update(WAITING | os.environ)  # before torch is loaded; what is set stays
LEASE_TTL_S = 30.0
GOING_DOWN = "handed back: the machine is going down"
MAX_OUT_OF_MEMORY = 3  # tries from one checkpoint
RENEW_EVERY_S = 2.0  # also how soon a cancel is heard
FAULTS = (LookupError, TypeError, AttributeError, NameError, AssertionError)  # of code: their own words explain little
CANCEL_GRACE_S = 20.0  # for the loop to come to a place where it hears of it, and to end
log = logging.getLogger("equipoise.driver")


class Heartbeat:
    """Renews the lease beside the loop, and hears what people want.

    unblocked by: `stop`. A lease that is lost ends the process at once: whatever it would write is refused. A cancel
    or a pause at the newest checkpoint that the loop does not come to in CANCEL_GRACE_S is carried out here, by
    `end_at_once`, which is told what was asked.
    """

    def __init__(self, store: JobStore, lease: Lease, *, end_at_once: Callable[[str], None] = lambda _: None) -> None:
        self.store = store
        self.lease = lease
        self._end_at_once = end_at_once
        self.at: Callable[[], Phase | None] = lambda: None  # what the run is at
        self._was_at: Phase | None = None  # at the renewal before
        self._told: Phase | None = None
        self._asked: str | None = None  # for what keeps nothing of its step
        self._asked_at = 0.0  # monotonic seconds
        self._signals = Signals(cancel=False, pause=False, steering_version=0)
        self._stop_asked = False  # on its own: a renewal that is under way must not overwrite it
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask_to_stop(self) -> None:
        self._stop_asked = True

    @property
    def wishes(self) -> Wishes:
        return Wishes(
            cancel=self._signals.cancel, pause=self._signals.pause, save=self._signals.save, stop=self._stop_asked
        )

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(RENEW_EVERY_S):
            try:
                self._signals = self.store.renew(self.lease, LEASE_TTL_S)
                self._look_at_what_is_asked()
                self._tell_phase()
            except Fenced:
                if self._stopping.wait(1.0):  # it was this process itself that ended the job, a moment ago
                    return
                log.error("another holder has job %s; this process ends", self.lease.job_id)
                os._exit(OTHER_HOLDER)
            except Exception as error:  # whatever Redis said: the lease lives as long as this thread tries
                log.warning("the lease could not be renewed: %s", error)

    def _tell_phase(self) -> None:
        """Of what goes on for longer than from one renewal to the next: who looks at a step that hangs sees where."""
        now = self.at()
        lasting = now if now == self._was_at else None
        self._was_at = now
        if lasting != self._told:
            self.store.set_phase(self.lease, lasting)
            self._told = lasting

    def _look_at_what_is_asked(self) -> None:
        told, now = self._signals, time.monotonic()
        asked = "cancelled" if told.cancel else "paused" if told.pause and not told.save else None
        if asked != self._asked:
            self._asked, self._asked_at = asked, now
        if asked is not None and now - self._asked_at >= CANCEL_GRACE_S:
            self._end_at_once(asked)


def drive(
    job_id: str,
    redis_url: str,
    state_dir: Path,
    *,
    owner: str,
    ray_address: str | None,
    nonce: str | None = None,
    wait: bool = True,
) -> int:
    """Run a job to whatever end it has. Returns the process's exit code. `nonce`: of the lease, if it is given one."""
    store = JobStore(connect(redis_url), owner=owner)
    directory = state_dir / "jobs" / job_id
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # prompts and answers lie there
    checkpoints = open_store(directory / "checkpoints", owner, job_id)
    checkpoints.root.mkdir(exist_ok=True)
    try:
        claim = claim_job(store, job_id, checkpoints, nonce=nonce, wait=wait)
    except (Unreadable, StoreUnavailable) as error:  # no fault of the job's
        log.warning("job %s stays in the queue: %s", job_id, error)
        if isinstance(error, Unreadable):
            tell_why_it_waits(store, job_id, str(error))
        return 0
    if claim.lease is None:
        if claim.outcome is ClaimOutcome.POISON:
            keep_ending(directory, JobStatus.FAILED)
            report_so_far(store, job_id, directory, JobStatus.FAILED, lease=None)
        log.info("job %s is not to be run: %s", job_id, claim.outcome)
        return 0
    reach("after_claim")
    lease = claim.lease
    heartbeat = Heartbeat(store, lease, end_at_once=lambda asked: end_at_once(store, lease, directory, asked))
    signal.signal(signal.SIGTERM, lambda *_: heartbeat.ask_to_stop())
    heartbeat.start()
    journal = StoreJournal(store, claim.lease, lambda: heartbeat.wishes)
    heartbeat.at = journal.at
    try:
        try:
            run_job(store, journal, claim, checkpoints, ray_address=ray_address)
        except ResourcesBusy as error:
            log.info("%s", error)
            hand_back(journal, directory, str(error))
            return NO_RESOURCES
    except Fenced:
        log.error("another holder has job %s", job_id)
        return OTHER_HOLDER
    except StoreUnavailable as error:
        if error.outage is not Outage.FORBIDDEN:
            raise
        return leave_forbidden(journal, directory, error)
    finally:
        heartbeat.stop()
    return 0


def leave_forbidden(journal: StoreJournal, directory: Path, error: StoreUnavailable) -> int:
    """Redis has refused this driver something for as long as it waits: its operator reads what, and the job waits.

    Returns the process's exit code; 1 where handing the job back is forbidden too, which its worker then does.
    """
    log.error("%s", error)
    journal.patience_s = 0.0
    reason = f"handed back: Redis forbids its driver {error.asked}, which the operator's list of users has to allow"
    try:
        hand_back(journal, directory, reason)
    except StoreUnavailable:
        return 1
    return NO_RESOURCES


def tell_why_it_waits(store: JobStore, job_id: str, message: str) -> None:
    """For who asks for the job; once until it has been claimed again, however often its worker tries."""
    with contextlib.suppress(StoreUnavailable, JobNotFound):
        fence = store.job(job_id).fence
        store.event(job_id, "job.waits", {"message": message}, level="warning", once=f"waits {fence}")


def hand_back(journal: StoreJournal, directory: Path, reason: str, *, crashed: bool = False) -> None:
    """Back to the queue, or to where a person wanted it meanwhile."""
    status = journal.patiently(lambda: journal.store.release(journal.lease, reason, crashed=crashed))
    if is_terminal(status):
        keep_ending(directory, status)


def end_at_once(store: JobStore, lease: Lease, directory: Path, asked: str) -> None:
    """Ends the job's run, and this process with its actors, wherever the loop is: nothing of its step is kept."""
    log.warning("job %s is %s in the middle of a step, after %g s", lease.job_id, asked, CANCEL_GRACE_S)
    status = store.release(lease, f"{asked} on request")
    try:
        if is_terminal(status):
            keep_ending(directory, status)
        if status != JobStatus.QUEUED:  # another holder writes its own
            # Not before: nobody renews the lease while a long job's report is drawn.
            report_so_far(store, lease.job_id, directory, status, lease=None)
    finally:
        os._exit(0)


def claim_job(
    store: JobStore, job_id: str, checkpoints: CheckpointStore, *, nonce: str | None = None, wait: bool = True
) -> Claim:
    """The lease, its fence above every checkpoint's. With `wait`, once another's lease has run out."""
    fence, known = checkpoints.floor(), store.job(job_id)
    # A holder commits before it checkpoints: one that is ahead means that Redis was emptied, or is an old copy.
    # Under a newer fence it is not: what lies there was never registered, and its steps are undone.
    ahead = checkpoints.newest(after=(known.fence, known.step))
    floor_step = 0 if ahead is None else ahead.step
    nonce = nonce or secrets.token_hex(16)
    deadline = time.monotonic() + 2 * LEASE_TTL_S
    while True:
        claim = store.claim(job_id, nonce=nonce, ttl_s=LEASE_TTL_S, floor_fence=fence, floor_step=floor_step)
        if claim.outcome is not ClaimOutcome.HELD or not wait or time.monotonic() > deadline:
            return claim
        time.sleep(1.0)


def run_job(
    store: JobStore, journal: StoreJournal, claim: Claim, checkpoints: CheckpointStore, *, ray_address: str | None
) -> None:
    """Build the parts, resume, loop, and write down how it ended. A mistake of the user fails the job with a reason."""
    lease, directory = journal.lease, checkpoints.root.parent
    try:
        text = journal.patiently(lambda: store.spec(lease.job_id))
        spec = read_stored(text)
        known = journal.patiently(lambda: store.job(lease.job_id))
        keep_document(directory, owner=store.owner, spec=text, origin=known.origin, by=known.submitted_by)
        if isinstance(spec, RewardJobSpec):
            outcome, why = train_reward_model(spec, store, journal, claim, checkpoints), None
        else:
            outcome, why = align(spec, store, journal, claim, checkpoints, ray_address=ray_address)
    except (StoreUnavailable, Fenced, ResourcesBusy):
        raise
    except (HandedBack, SystemExit) as error:  # SystemExit is how Ray, while it starts, answers SIGTERM
        if isinstance(error, SystemExit) and not journal.wishes().stop:
            raise
        hand_back(journal, directory, str(error) if isinstance(error, HandedBack) and str(error) else GOING_DOWN)
        return
    except (Unreadable, RemoteAway, OtherVersion) as error:  # nothing is lost: another try, or another machine, may do
        raise ResourcesBusy(f"handed back: {error}") from error
    except StepGap as error:  # what it has on disk is whole, and the next claim begins with that
        log.error("%s", error)
        hand_back(journal, directory, f"{error}, as where Redis was put back from an older copy", crashed=True)
        return
    except ActorLost as error:
        log.error("%s", error)
        tries = 1 + journal.patiently(lambda: store.job(lease.job_id)).attempts  # a checkpoint sets these to 0
        if isinstance(error, LearnerOutOfMemory) and tries >= MAX_OUT_OF_MEMORY:
            reason = f"oom: {error}; {tries} tries from the same checkpoint; see optimizer.tokens_per_microbatch"
            report_so_far(store, lease.job_id, directory, JobStatus.FAILED, lease=lease, reason=reason)
            end(journal, directory, JobStatus.FAILED, reason)
            return
        hand_back(journal, directory, str(error), crashed=True)  # three without a new checkpoint between, and it ends
        return
    except Exception as error:  # the job's own end: every reason goes to the person who submitted it
        if isinstance(error, DoesNotFit) and journal.patiently(lambda: store.checkpoints(lease.job_id)):
            raise ResourcesBusy(str(error)) from error  # it did fit: a machine may come back
        log.error("%s", traceback.format_exc())
        reason = str(error) or type(error).__name__
        if isinstance(error, FAULTS):
            reason = f"{type(error).__name__}: {error} (the traceback is in the job's driver.log)"
        report_so_far(store, lease.job_id, directory, JobStatus.FAILED, lease=lease, reason=reason)
        end(journal, directory, JobStatus.FAILED, reason)
        return
    if outcome == "stopped":
        hand_back(journal, directory, GOING_DOWN)
        return
    end(journal, directory, JobStatus(outcome), why)


def align(
    spec: JobSpec,
    store: JobStore,
    journal: StoreJournal,
    claim: Claim,
    checkpoints: CheckpointStore,
    *,
    ray_address: str | None,
) -> tuple[str, str | None]:
    """The loop over its parts, and the report of what came of it. Returns the outcome, and its reason if it has one."""
    lease, directory = journal.lease, checkpoints.root.parent
    journal.patiently(lambda: store.set_total_steps(lease, spec.steps))
    find_registered(store, journal, claim, checkpoints)
    known = journal.patiently(lambda: store.checkpoints(lease.job_id))
    if known and known[-1].step < spec.steps:
        check_room(checkpoints.root)
    commit = trained_commit(checkpoints, known)
    with parts_of(
        spec, directory, journal, ray_address=ray_address, trained_commit=commit, is_resumed=bool(known)
    ) as parts:
        outcome, samples, why = train(spec, parts, store, journal, claim, checkpoints)
    if outcome == "succeeded":
        journal.patiently(lambda: write_report(store, lease.job_id, spec, directory, samples, lease=lease))
    elif outcome != "stopped":
        report_so_far(store, lease.job_id, directory, JobStatus(outcome), lease=lease, reason=why)
    return outcome, why


def train_reward_model(
    spec: RewardJobSpec, store: JobStore, journal: StoreJournal, claim: Claim, checkpoints: CheckpointStore
) -> str:
    """In this process, from the newest checkpoint. Its evaluation is the report."""
    from orchestrator.reward_training import RewardTraining

    lease = journal.lease

    def set_total(steps: int) -> None:
        journal.patiently(lambda: store.set_total_steps(lease, steps))

    training = RewardTraining(spec, journal, checkpoints, fence=lease.fence, set_total=set_total)
    find_registered(store, journal, claim, checkpoints)
    step = usable_checkpoint(store, journal, checkpoints)
    training.resume(step, [checkpoint.step for checkpoint in store.checkpoints(lease.job_id)])
    if step is not None:
        tell_resumed(store, journal, claim, step)
    hold_gpus(journal, float(training.device() == "cuda"))
    start_running(store, journal, {}, is_resumed=step is not None)
    return training.run()


def end(journal: StoreJournal, directory: Path, status: JobStatus, reason: str | None) -> None:
    """A request that came in the last moment wins over success, never over a failure."""
    reach("before_finish")
    try:
        journal.patiently(lambda: journal.store.finish(journal.lease, status, reason))
        if is_terminal(status):
            keep_ending(directory, status)
    except IllegalTransition as error:
        log.info("%s; handing the job back, which carries out the request", error)
        hand_back(journal, directory, reason or "")
    reach("after_finish")


class HandedBack(BaseException):
    """SIGTERM, a cancel or a pause came while the parts were being built. Not for those who catch what goes wrong."""


@contextlib.contextmanager
def parts_of(
    spec: JobSpec,
    directory: Path,
    journal: StoreJournal,
    *,
    ray_address: str | None,
    trained_commit: str | None,
    is_resumed: bool,
) -> Iterator[Any]:
    import ray

    from orchestrator.build import build

    said = ""
    heard = signal.getsignal(signal.SIGTERM)  # it asks for a stop

    def on_stage(stage: str) -> None:
        nonlocal said
        wishes = journal.wishes()
        if wishes.cancel or wishes.pause:
            raise HandedBack("on request")
        if wishes.stop:
            raise HandedBack
        if stage != said:
            log.info("%s", stage)
            journal.progress(stage=stage, eta_s=None)
        said = stage

    def on_sigterm(number: int, frame: Any) -> None:
        """Nothing is trained yet: no step to wait for. Ray's waits would lose what is raised here; `on_stage` hears."""
        if callable(heard):
            heard(number, frame)
        if not ray.is_initialized():
            raise HandedBack

    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        state_dir, owner = directory.parent.parent, journal.store.owner
        parts = build(
            spec,
            state_dir,
            owner=owner,
            ray_address=ray_address,
            on_stage=on_stage,
            on_gpus=lambda gpus: hold_gpus(journal, gpus),
            data_dir=directory / "data",
            trained_commit=trained_commit,
            is_resumed=is_resumed,
        )
    finally:
        signal.signal(signal.SIGTERM, heard)
    try:
        tell_prompts(journal, parts.splits.figures())
        yield parts
    finally:
        parts.close()


def train(
    spec: JobSpec, parts: Any, store: JobStore, journal: StoreJournal, claim: Claim, checkpoints: CheckpointStore
) -> tuple[str, list[dict[str, Any]], str | None]:
    """(outcome, samples of start and end, why it paused where nobody asked for it)."""
    from orchestrator.loop import Loop

    lease = journal.lease
    loop = Loop(spec, parts, journal, checkpoints, fence=lease.fence)
    step = usable_checkpoint(store, journal, checkpoints)
    if step is not None:
        loop.resume(step, [checkpoint.step for checkpoint in store.checkpoints(lease.job_id)])
        tell_resumed(store, journal, claim, step)
    start_running(store, journal, made_of(spec, parts), is_resumed=step is not None)
    journal.clock = loop.clock
    outcome = loop.run()
    return outcome, loop.samples, loop.reason if outcome == "paused" else None


def hold_gpus(journal: StoreJournal, gpus: float) -> None:
    """From now on the job's GPU time counts. A job on CPU has none to tell of."""
    if gpus:
        journal.patiently(lambda: journal.store.hold_gpus(journal.lease, gpus))


def find_registered(store: JobStore, journal: StoreJournal, claim: Claim, checkpoints: CheckpointStore) -> None:
    """All that may be gone on from is registered, and in its place if it is here. Once after a claim."""
    collect(checkpoints.root)
    register_found(store, journal, claim, checkpoints)


def tell_resumed(store: JobStore, journal: StoreJournal, claim: Claim, step: int) -> None:
    """`defaults`: fields that are newer than the job, with what it was accepted with instead of theirs, if any."""
    text = journal.patiently(lambda: store.spec(journal.lease.job_id))
    defaults = absent_fields(json.loads(text))
    more: dict[str, Any] = {"defaults": defaults} if defaults else {}
    journal.event("job.resumed", step=step, rerun=max(0, claim.from_step - step), **more)


def tell_prompts(journal: StoreJournal, splits: dict[str, dict[str, int]]) -> None:
    """How many prompts a split has, and how long they are; once."""
    level = "warning" if any(figures["dropped"] for figures in splits.values()) else "info"
    journal.event("data.loaded", level=level, once="data.loaded", splits=splits)


def made_of(spec: JobSpec, parts: Any) -> dict[str, Any]:
    """What decides a run's figures beside its spec and the software that comes with us."""
    return {
        "plugins": plugins(spec),
        "device": parts.learner.device_name(),
        "policy": {"model": spec.policy.model, "commit": parts.policy_commit},
        "data_sha256": parts.splits.sha256,
    }


def start_running(store: JobStore, journal: StoreJournal, made: Mapping[str, Any], *, is_resumed: bool) -> None:
    """`job.software` of every holder: figures may move where another version of a library takes the job over.

    What is another than at the start before is told as `job.software_changed` too.
    """
    now: dict[str, Any] = {"versions": versions(), "code": code(), **made}
    events = journal.patiently(lambda: list(all_events(store, journal.lease.job_id))) if is_resumed else []
    before: dict[str, Any] = next((event.data for event in reversed(events) if event.type == "job.software"), {})
    journal.event("job.software", once=f"software {journal.lease.fence}", **now)
    if found := changes(before, now):
        message = f"it goes on with other software, so figures may move: {'; '.join(found)}"
        log.warning("%s", message)
        journal.event("job.software_changed", level="warning", once=f"changes {journal.lease.fence}", message=message)
    with contextlib.suppress(IllegalTransition):  # a cancel or a pause came first: the loop hears of it
        journal.patiently(lambda: store.set_status(journal.lease, JobStatus.RUNNING))


def usable_checkpoint(store: JobStore, journal: StoreJournal, checkpoints: CheckpointStore) -> int | None:
    """The newest registered checkpoint, here and whole; a damaged one is named in an event and passed over."""
    known = journal.patiently(lambda: store.checkpoints(journal.lease.job_id))
    registered = {found.step: found.digest for found in known}
    checkpoints.registered = registered
    checkpoints.check_there()
    for step in sorted(registered, reverse=True):
        try:
            if checkpoints.restore(step):
                journal.event("checkpoint.fetched", step=step)
        except Unreadable:  # it may be whole: passing over it would lose its steps
            raise
        except PolicyAlone:  # of no use to a restart
            continue
        except CheckpointError as error:
            journal.event("checkpoint.damaged", level="error", step=step, message=str(error))
            continue
        rewind_to(journal, step)
        return step
    if registered:
        raise CheckpointError(
            "every checkpoint is damaged, or kept for its policy alone; submit the job again, fork it from one of its "
            "front, or restore a backup of its directory"
        )
    return None


def rewind_to(journal: StoreJournal, step: int) -> None:
    journal.patiently(lambda: journal.store.rewind(journal.lease, step=step))


def redis_url_from(environment: MutableMapping[str, str]) -> str | None:
    """Takes it out of the environment; None where it is not there. Exits where its file can't be read."""
    url, file = environment.pop(REDIS_URL_VARIABLE, None), environment.pop(REDIS_URL_FILE_VARIABLE, None)
    if url or not file:
        return url
    try:
        resolve(named := file_url(Path(file)))
    except ValueError as error:
        sys.exit(f"{REDIS_URL_FILE_VARIABLE}: {error}")
    return named


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.driver", description="Runs one job; the worker starts it."
    )
    parser.add_argument("--job", required=True, metavar="ID")
    # Taken out of the environment: Ray's processes and the rewards would inherit it, and its password.
    redis_url = redis_url_from(os.environ)
    parser.add_argument("--redis", required=redis_url is None, default=redis_url, metavar="URL")
    parser.add_argument("--state-dir", required=True, type=Path, metavar="DIR")
    parser.add_argument("--owner", default="local")
    parser.add_argument("--ray-address", default=os.environ.get("EQUIPOISE_RAY_ADDRESS"), metavar="ADDRESS")
    options = parser.parse_args(arguments)
    nonce = os.environ.pop(NONCE_VARIABLE, None)
    logs.hide_password(options.redis)
    logs.setup(level=logging.INFO, job_id=options.job)
    logs.report_crashes()
    if options.ray_address is not None and nonce is None:  # a cluster's job: what Ray keeps goes with its machine
        logs.write_also(options.state_dir / "jobs" / options.job / LOG_NAME)
    sys.exit(
        drive(
            options.job,
            options.redis,
            options.state_dir,
            owner=options.owner,
            ray_address=options.ray_address,
            nonce=nonce,
            wait=redis_url is None,  # a worker has other jobs to give its slot to
        )
    )


if __name__ == "__main__":
    main()
