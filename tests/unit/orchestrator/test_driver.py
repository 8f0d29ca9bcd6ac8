"""How a job's process claims, resumes and ends, over a store in memory and without a loop."""

import contextlib
import dataclasses
import errno
import importlib.metadata
import json
import logging
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import ray

from orchestrator import driver, job_report
from orchestrator.actors.cluster import Cluster
from orchestrator.errors import ActorLost, DoesNotFit, Outage
from orchestrator.inputs import Splits
from orchestrator.journal import StoreJournal, Wishes
from orchestrator.launch.launchers import NO_RESOURCES
from orchestrator.rollouts.prompts import Prompt
from orchestrator.spec import parse_spec
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
    SteeringHead,
)
from orchestrator.state.states import JobStatus
from orchestrator.state.store import Fenced, IllegalTransition, StepGap, StoreUnavailable
from orchestrator.storage import remote
from orchestrator.storage.checkpoint_store import CheckpointStore
from orchestrator.storage.checkpoints import CheckpointError, directory_name, keep_policy, write_checkpoint
from orchestrator.storage.recovery import keep_document

LEASE = Lease(job_id="job", fence=5, nonce="n")
CLAIM = Claim(outcome=ClaimOutcome.OK, lease=LEASE, step=0, from_step=0)
NO_PARTS = SimpleNamespace(  # but for what the job's record says of them
    learner=SimpleNamespace(device_name=lambda: "a CPU"),
    splits=SimpleNamespace(sha256={"train": "a" * 64}),
    policy_commit=None,
)
SPEC = parse_spec(
    {
        "name": "driver",
        "steps": 4,
        "policy": {"model": "quickstart"},
        "data": {"type": "quickstart"},
        "objectives": [{"name": "accuracy", "reward": {"name": "math"}}],
    }
)


class FakeStore:
    """The part of a JobStore that a driver uses."""

    owner = "local"

    def __init__(self) -> None:
        self.claims: list[Claim | Exception] = [CLAIM]
        self.claimed: list[dict[str, Any]] = []
        self.text = SPEC.to_json()
        self.registered: list[Checkpoint] = []
        self.events_written: list[tuple[str, str, dict[str, Any]]] = []
        self.told: set[str | None] = set()
        self.did: list[tuple[Any, ...]] = []
        self.refuse: dict[str, Exception] = {}
        self.reported: list[tuple[str, str | None]] = []
        self.ends_before_reports: list[list[tuple[Any, ...]]] = []
        self.step, self.fence = 4, 5
        self.held = False
        self.reason: str | None = None
        self.origin: Origin | None = None

    def claim(self, job_id: str, **options: Any) -> Claim:
        self.claimed.append({"job_id": job_id, **options})
        claim = self.claims.pop(0) if len(self.claims) > 1 else self.claims[0]
        if isinstance(claim, Exception):
            raise claim
        self.held = claim.lease is not None
        return claim

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Anything else is noted, without the lease."""

        def call(*args: Any, **options: Any) -> None:
            self.did.append((name, *(a for a in args if a is not LEASE), *options.values()))
            if name in self.refuse:
                raise self.refuse[name]

        return call

    def release(self, lease: Lease, reason: str | None = None, *, crashed: bool = False) -> JobStatus:
        assert lease is LEASE
        self.did.append(("release", reason, *(["crashed"] if crashed else [])))
        if "release" in self.refuse:
            raise self.refuse["release"]
        return JobStatus.QUEUED

    def renew(self, *_: Any) -> Signals:
        return Signals(cancel=False, pause=False, steering_version=1)

    def spec(self, _: str) -> str:
        return self.text

    def checkpoints(self, _: str) -> list[Checkpoint]:
        return list(self.registered)

    def event(
        self,
        _: str,
        type: str,
        data: dict[str, Any],
        lease: Lease | None = None,
        *,
        level: str = "info",
        once: str | None = None,
        **_kw: Any,
    ) -> None:
        assert lease is (LEASE if self.held and not self.ends() else None) or not self.claimed
        if once is None or once not in self.told:
            self.events_written.append((type, level, dict(data)))
        self.told.add(once)

    def steps(self, _: str) -> list[Any]:
        return []

    def front(self, _: str) -> dict[str, Any]:
        return {}

    def steering_head(self, _: str) -> SteeringHead:
        return SteeringHead(version=2, current={"weights": {"accuracy": 0.9, "brevity": 0.1}})

    def events(self, _: str, *, after: int, limit: int) -> Page[Event]:
        assert limit == 1000
        items = [Event(seq=seq, type="x", at=0.0, level="info", data={}) for seq in (1, 2, 3) if seq > after][:2]
        return Page(items=tuple(items), has_more=after == 0)

    def job(self, job_id: str) -> JobRecord:
        return JobRecord(
            job_id=job_id, name="driver", status=JobStatus.RUNNING, reason=self.reason, created_at=1.0, started_at=2.0,
            finished_at=None, step=self.step, total_steps=4, fence=self.fence, attempts=1, checkpoint_step=4,
            checkpoint_path="p", spec_digest="s", progress={}, origin=self.origin,
        )  # fmt: skip

    def ends(self) -> list[tuple[Any, ...]]:
        return [call for call in self.did if call[0] in ("finish", "release")]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> FakeStore:
    made = FakeStore()
    monkeypatch.setattr(driver, "connect", lambda _: None)
    monkeypatch.setattr(driver, "JobStore", lambda *_, **__: made)

    def render(**parts: Any) -> str:
        assert parts["weights"] == made.steering_head("job").current["weights"]
        made.reported.append((parts["job"]["status"], parts["job"]["reason"]))
        made.ends_before_reports.append(made.ends())
        return f"<html>{len(list(parts['events']))}</html>"

    monkeypatch.setattr(job_report, "render_report", render)
    return made


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Replaces parts and loop: what the training does is the test's to say."""

    def stands(training: Callable[[], Any]) -> None:
        monkeypatch.setattr(driver, "parts_of", lambda *_, **__: contextlib.nullcontext(NO_PARTS))
        monkeypatch.setattr(driver, "train", lambda *_: (training(), [{"prompt": "1+1"}], None))

    return stands


def drive(tmp_path: Path) -> int:
    return driver.drive("job", "redis://", tmp_path, owner="local", ray_address=None)


def raising(error: BaseException) -> Callable[[], Any]:
    def training() -> Any:
        raise error

    return training


# ------------------------------------------------------------------------- claim


@pytest.mark.parametrize("outcome", [ClaimOutcome.TERMINAL, ClaimOutcome.POISON, ClaimOutcome.NOT_QUEUED])
def test_a_job_that_is_not_to_be_run(store: FakeStore, tmp_path: Path, outcome: ClaimOutcome) -> None:
    store.claims = [Claim(outcome=outcome, lease=None, step=0, from_step=0)]
    assert drive(tmp_path) == 0
    assert store.did == []
    assert store.reported == ([("failed", None)] if outcome is ClaimOutcome.POISON else [])


@pytest.mark.parametrize("step", [0, 4])
def test_a_job_that_is_given_up_has_a_report_of_its_steps_and_an_ending(
    store: FakeStore, tmp_path: Path, step: int
) -> None:
    store.claims = [Claim(outcome=ClaimOutcome.POISON, lease=None, step=step, from_step=step)]
    store.step, store.reason = step, "3 starts came to no new checkpoint"
    directory = tmp_path / "jobs" / "job"
    directory.mkdir(parents=True)
    keep_document(directory, owner="local", spec=SPEC.to_json(), origin=None)
    assert drive(tmp_path) == 0
    assert store.reported == ([("failed", "3 starts came to no new checkpoint")] if step else [])
    assert (directory / "report.html").exists() == bool(step)
    assert json.loads((directory / "job.json").read_text())["ended"] == "failed"


def test_the_fence_is_above_what_is_on_disk(store: FakeStore, tmp_path: Path, job: Any) -> None:
    root = tmp_path / "jobs" / "job" / "checkpoints"
    write_checkpoint(root, step=3, fence=9, fill=lambda folder: (folder / "x").write_text("x") and None)
    job(lambda: "succeeded")
    assert drive(tmp_path) == 0
    assert store.claimed[0]["floor_fence"] == 9


@pytest.mark.parametrize("freed", [True, False])
def test_a_lease_of_another_is_waited_for(store: FakeStore, monkeypatch: Any, tmp_path: Path, freed: bool) -> None:
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)
    monkeypatch.setattr(time, "monotonic", lambda: sum(naps))
    held = Claim(outcome=ClaimOutcome.HELD, lease=None, step=0, from_step=0)
    store.claims = [held, held, CLAIM] if freed else [held]
    claim = driver.claim_job(store, "job", CheckpointStore(tmp_path))  # type: ignore[arg-type]
    assert claim.outcome is (ClaimOutcome.OK if freed else ClaimOutcome.HELD)
    assert len(naps) == 2 if freed else sum(naps) >= 2 * driver.LEASE_TTL_S
    assert len({call["nonce"] for call in store.claimed}) == 1  # one claim, repeated


def test_a_workers_driver_gives_its_slot_back_instead_of_waiting(
    store: FakeStore, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _s: pytest.fail("it waited"))
    store.claims = [Claim(outcome=ClaimOutcome.HELD, lease=None, step=0, from_step=0)]
    claim = driver.claim_job(store, "job", CheckpointStore(tmp_path), wait=False)  # type: ignore[arg-type]
    assert claim.outcome is ClaimOutcome.HELD


# --------------------------------------------------------------------------- ends


def test_success_is_reported_and_finished(store: FakeStore, tmp_path: Path, job: Any) -> None:
    job(lambda: "succeeded")
    assert drive(tmp_path) == 0
    assert ("set_total_steps", 4) in store.did
    assert store.ends() == [("finish", JobStatus.SUCCEEDED, None)]
    folder = tmp_path / "jobs" / "job"
    assert (folder / "report.html").read_text() == "<html>3</html>"  # every page of events
    assert "1+1" in (folder / "samples.json").read_text()
    assert ("report.written", "info", {"path": str(folder / "report.html")}) in store.events_written
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "job.json", "report.html", "samples.json"]


@pytest.mark.parametrize("origin", [None, Origin(parent="job-parent", step=6)])
def test_the_directory_says_what_the_job_is(store: FakeStore, tmp_path: Path, job: Any, origin: Origin | None) -> None:
    store.origin = origin
    job(lambda: "succeeded")
    assert drive(tmp_path) == 0
    document = json.loads((tmp_path / "jobs" / "job" / "job.json").read_text())
    forked = {} if origin is None else {"origin": {"parent": "job-parent", "step": 6}}
    assert document == {"owner": "local", "spec": store.text, "ended": "succeeded", **forked}


@pytest.mark.parametrize("outcome", ["paused", "cancelled"])
def test_other_outcomes(store: FakeStore, tmp_path: Path, job: Any, outcome: str) -> None:
    job(lambda: outcome)
    assert drive(tmp_path) == 0
    assert store.ends() == [("finish", JobStatus(outcome), None)]
    assert (tmp_path / "jobs" / "job" / "report.html").is_file()
    assert store.reported == [(outcome, None)]


@pytest.mark.parametrize("step", [0, 2])
def test_a_failed_job_has_a_report_of_what_it_did(store: FakeStore, tmp_path: Path, job: Any, step: int) -> None:
    store.step = step
    job(raising(ValueError("the disk")))
    assert drive(tmp_path) == 0
    assert store.ends() == [("finish", JobStatus.FAILED, "the disk")]
    assert (tmp_path / "jobs" / "job" / "report.html").exists() == (step > 0)
    assert store.reported == ([("failed", "the disk")] if step else [])


@pytest.mark.parametrize("outcome", ["paused", "failed"])
def test_a_report_of_what_was_done_never_decides_how_a_job_ends(
    store: FakeStore, tmp_path: Path, job: Any, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    monkeypatch.setattr(job_report, "render_report", lambda **_: raising(KeyError("points"))())
    job((lambda: outcome) if outcome == "paused" else raising(ValueError("why")))
    assert drive(tmp_path) == 0
    assert store.ends() == [("finish", JobStatus(outcome), None if outcome == "paused" else "why")]
    assert [type for type, _, _ in store.events_written] == ["report.failed"]


def test_a_machine_that_goes_down_hands_the_job_back(store: FakeStore, tmp_path: Path, job: Any) -> None:
    job(lambda: "stopped")
    assert drive(tmp_path) == 0
    assert store.ends() == [("release", "handed back: the machine is going down")]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            ValueError("train.jsonl: row 3: no 'prompt'; found question"),
            "train.jsonl: row 3: no 'prompt'; found question",
        ),
        (RuntimeError("the reward 'accuracy' failed"), "the reward 'accuracy' failed"),
        (MemoryError(), "MemoryError"),
        (KeyError("seen"), "KeyError: 'seen' (the traceback is in the job's driver.log)"),
    ],
)
def test_a_mistake_fails_the_job_with_its_reason(
    store: FakeStore, tmp_path: Path, job: Any, error: Any, reason: str
) -> None:
    job(raising(error))
    assert drive(tmp_path) == 0
    assert store.ends() == [("finish", JobStatus.FAILED, reason)]


def test_a_lost_lease_ends_the_process_and_writes_nothing(store: FakeStore, tmp_path: Path, job: Any) -> None:
    job(raising(Fenced("another")))
    assert drive(tmp_path) == 3
    assert store.ends() == []


def test_a_lost_lease_at_the_end(store: FakeStore, tmp_path: Path, job: Any) -> None:
    job(raising(ValueError("x")))
    store.refuse["finish"] = Fenced("another")
    assert drive(tmp_path) == 3


def test_a_store_that_stays_away_is_a_crash(store: FakeStore, tmp_path: Path, job: Any) -> None:
    job(raising(StoreUnavailable("away")))
    with pytest.raises(StoreUnavailable):
        drive(tmp_path)
    assert store.ends() == []  # the lease runs out, and the job goes back to the queue


@pytest.mark.parametrize("may_release", [True, False])
def test_a_store_that_forbids_something_is_told_with_what_it_is(
    store: FakeStore, tmp_path: Path, job: Any, may_release: bool
) -> None:
    error = StoreUnavailable("Redis at h:1 forbids this", Outage.FORBIDDEN, "SET eq:x")
    job(raising(error))
    if not may_release:
        store.refuse["release"] = error
    assert drive(tmp_path) == (NO_RESOURCES if may_release else 1)
    told = "handed back: Redis forbids its driver SET eq:x, which the operator's list of users has to allow"
    assert store.ends() == [("release", told)]


def test_a_process_that_is_gone_is_a_crash_of_the_job_and_not_its_end(
    store: FakeStore, tmp_path: Path, job: Any
) -> None:
    job(raising(ActorLost("a rollout engine is gone")))
    assert drive(tmp_path) == 0
    assert store.ends() == [("release", "a rollout engine is gone", "crashed")]


def test_a_ledger_that_lacks_its_last_steps_is_a_crash_of_the_job_and_not_its_end(
    store: FakeStore, tmp_path: Path, job: Any
) -> None:
    job(raising(StepGap(8, 5)))
    assert drive(tmp_path) == 0
    ((_, reason, crashed),) = store.ends()
    assert crashed == "crashed"
    assert reason.startswith("step 8 does not fit: the ledger expects step 5, as where Redis was put back")
    assert "ended" not in json.loads((tmp_path / "jobs" / "job" / "job.json").read_text())


def test_a_cluster_that_shrank_is_waited_for(store: FakeStore, tmp_path: Path, job: Any) -> None:
    """A job that asks for too much fails at once; one that has run asked for what there was."""
    job(raising(DoesNotFit("needs 2 GPUs, the cluster has 0")))
    assert drive(tmp_path) == 0
    assert store.ends() == [("finish", JobStatus.FAILED, "needs 2 GPUs, the cluster has 0")]
    store.did.clear()
    store.registered = [Checkpoint(step=4, path="p", digest="d", metrics={}, on_front=False)]
    assert drive(tmp_path) == NO_RESOURCES
    assert store.ends() == [("release", "needs 2 GPUs, the cluster has 0")]


def test_a_redis_that_is_away_at_the_claim_is_no_fault_of_the_job(store: FakeStore, tmp_path: Path) -> None:
    store.claims = [StoreUnavailable("away")]
    assert drive(tmp_path) == 0
    assert store.did == []


def test_going_down_is_not_swallowed_by_what_tries_again() -> None:
    def call() -> None:
        raise driver.HandedBack

    with pytest.raises(driver.HandedBack):
        remote.patiently(call, "fetch x", (0.0, 0.0))


def test_a_request_of_the_last_moment_is_carried_out(store: FakeStore, tmp_path: Path, job: Any) -> None:
    job(lambda: "paused")
    store.refuse["finish"] = IllegalTransition(JobStatus.CANCELLING, JobStatus.PAUSED)
    assert drive(tmp_path) == 0
    assert [call[0] for call in store.ends()] == ["finish", "release"]


def test_a_report_that_the_disk_does_not_take_costs_an_event(store: FakeStore, tmp_path: Path, job: Any) -> None:
    (tmp_path / "jobs" / "job" / "report.html").mkdir(parents=True)
    job(lambda: "succeeded")
    assert drive(tmp_path) == 0
    assert store.ends() == [("finish", JobStatus.SUCCEEDED, None)]
    assert [(type, level) for type, level, _ in store.events_written] == [("report.failed", "error")]


def test_a_report_that_can_not_be_drawn_fails_with_its_reason(
    store: FakeStore, tmp_path: Path, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_report, "render_report", lambda **_: raising(KeyError("points"))())
    job(lambda: "succeeded")
    assert drive(tmp_path) == 0
    ((_, status, reason),) = store.ends()
    assert status is JobStatus.FAILED
    assert reason.startswith("KeyError: 'points' (")


# ----------------------------------------------------------------------- heartbeat


def test_a_stop_survives_the_renewals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "RENEW_EVERY_S", 0.005)

    class Store:
        renewals = 0

        def renew(self, *_: Any) -> Signals:
            self.renewals += 1
            if self.renewals == 1:
                heartbeat.ask_to_stop()  # in the middle of a renewal
            if self.renewals == 2:
                raise StoreUnavailable("away")
            return Signals(cancel=self.renewals > 3, pause=True, steering_version=1)

    fake = Store()
    heartbeat = driver.Heartbeat(fake, LEASE)  # type: ignore[arg-type]
    assert heartbeat.wishes == Wishes()
    heartbeat.start()
    deadline = time.monotonic() + 60
    while fake.renewals < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    heartbeat.stop()
    assert heartbeat.wishes == Wishes(cancel=True, pause=True, stop=True)


def test_what_the_run_is_at_is_told_once_it_lasts(store: FakeStore) -> None:
    heartbeat = driver.Heartbeat(store, LEASE)  # type: ignore[arg-type]
    learning = ("learn", 9.0)
    for now in [None, ("rollout", 1.0), ("rollout", 2.0), learning, learning, learning, None, None]:
        heartbeat.at = lambda now=now: now  # type: ignore[misc]
        heartbeat._tell_phase()
    assert store.did == [("set_phase", learning), ("set_phase", None)]


@pytest.mark.parametrize("meanwhile", [None, "away", "done"])
@pytest.mark.parametrize("asked", ["cancelled", "paused"])
def test_a_request_that_the_loop_does_not_come_to_is_carried_out_beside_it(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: str | None, asked: str
) -> None:
    """Redis may be away just then, or the loop may end the job itself. A pause that saves waits for its step."""
    over, codes = threading.Event(), []
    troubles = {"away": [StoreUnavailable("away")], "done": [Fenced("done")] * 1000}.get(meanwhile or "", [])
    signals = Signals(cancel=False, pause=asked == "paused", steering_version=1)

    def renew(*_: Any) -> Signals:
        return signals

    def release(lease: Lease, reason: str) -> JobStatus:
        if troubles:
            raise troubles.pop()
        assert lease is LEASE
        store.did.append(("release", reason))
        return JobStatus(asked)

    def ends(code: int) -> None:
        codes.append(code)
        over.set()
        heartbeat._stopping.set()

    monkeypatch.setattr(driver, "RENEW_EVERY_S", 0.01)
    monkeypatch.setattr(driver, "CANCEL_GRACE_S", 0.1)
    monkeypatch.setattr(driver.os, "_exit", ends)
    monkeypatch.setattr(store, "renew", renew)
    monkeypatch.setattr(store, "release", release)
    keep_document(tmp_path, owner="local", spec=store.text, origin=None)
    heartbeat = driver.Heartbeat(
        store,  # type: ignore[arg-type]
        LEASE,
        end_at_once=lambda asked: driver.end_at_once(store, LEASE, tmp_path, asked),  # type: ignore[arg-type]
    )
    heartbeat.start()
    assert not over.wait(0.3)  # as nobody asks for it
    signals = Signals(cancel=asked == "cancelled", pause=asked == "paused", save=False, steering_version=1)
    if meanwhile == "done":
        time.sleep(0.3)
        heartbeat.stop()  # within a second: it was this process itself
        assert codes == []
        return
    assert over.wait(10)
    heartbeat.stop()
    assert codes == [0]
    assert store.ends() == [("release", f"{asked} on request")]
    assert store.reported == [(asked, None)]
    assert store.ends_before_reports == [store.ends()]  # nobody renews the lease while it is drawn
    assert [type for type, _, _ in store.events_written] == ["report.written"]
    assert json.loads((tmp_path / "job.json").read_text()).get("ended") == (asked if asked == "cancelled" else None)


@pytest.mark.parametrize(
    ("words", "nonce", "is_kept"),
    [(["--ray-address", "auto"], None, True), ([], None, False), (["--ray-address", "auto"], "n", False)],
)
def test_on_a_cluster_its_log_outlives_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], nonce: str | None, is_kept: bool
) -> None:
    """A child of a worker has its output there already."""

    def failing(*_: Any, **__: Any) -> int:
        driver.log.error("a traceback")
        return 1

    root = logging.getLogger()
    handlers, level, hook = list(root.handlers), root.level, sys.excepthook
    monkeypatch.setattr(driver, "drive", failing)
    monkeypatch.delenv("EQUIPOISE_LOG_FORMAT", raising=False)
    if nonce is not None:
        monkeypatch.setenv("EQUIPOISE_LEASE_NONCE", nonce)
    try:
        with pytest.raises(SystemExit):
            driver.main(["--job", "job-1", "--redis", "redis://", "--state-dir", str(tmp_path), *words])
        for handler in set(root.handlers) - set(handlers):
            handler.close()
    finally:
        root.handlers[:], sys.excepthook = handlers, hook
        root.setLevel(level)
    file = tmp_path / "jobs" / "job-1" / "driver.log"
    assert file.exists() is is_kept
    assert not is_kept or "ERROR equipoise.driver: a traceback" in file.read_text()


def test_sigterm_asks_the_loop_to_stop(store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(_spec: Any, _parts: Any, _store: Any, journal: StoreJournal, *_: Any) -> Any:
        assert journal.wishes() == Wishes()
        signal.raise_signal(signal.SIGTERM)
        return "stopped" if journal.wishes() == Wishes(stop=True) else "succeeded", [], None

    monkeypatch.setattr(driver, "parts_of", lambda *_, **__: contextlib.nullcontext(NO_PARTS))
    monkeypatch.setattr(driver, "train", train)
    assert drive(tmp_path) == 0
    assert [call[0] for call in store.ends()] == ["release"]


@pytest.mark.parametrize("when", ["before Ray", "in Ray's start", "at its very end", "in Ray"])
def test_sigterm_while_the_parts_are_built_hands_the_job_back(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    runs = False
    reached: list[str] = []

    def at(here: str) -> None:
        if here == when:
            signal.raise_signal(signal.SIGTERM)
        reached.append(here)

    def init(**_: Any) -> None:
        nonlocal runs
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))  # as Ray's does
        at("in Ray's start")
        runs = True
        at("at its very end")

    def build(*_: Any, on_stage: Callable[[str], None], **__: Any) -> None:
        at("before Ray")
        on_stage("starting Ray")
        Cluster()
        at("in Ray")
        reached.append("Ray's wait has come to its end")
        on_stage("starting engines and learner")
        pytest.fail("it went on")

    monkeypatch.setattr(ray, "is_initialized", lambda: runs)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr("orchestrator.build.build", build)
    assert drive(tmp_path) == 0
    assert store.ends() == [("release", "handed back: the machine is going down")]
    assert (reached[-1:] == ["Ray's wait has come to its end"]) == (when == "in Ray")


def test_what_became_of_the_prompts_is_told(store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prompts(count: int) -> list[Prompt]:
        return [Prompt(content="x", text="x", answer=None, row=row, tokens=(1,) * row) for row in range(1, count + 1)]

    splits = Splits(train=prompts(4), validation=prompts(1), test=[], dropped={"train": 2})
    parts = Mock(splits=splits)
    monkeypatch.setattr("orchestrator.build.build", lambda *_, **__: parts)
    monkeypatch.setattr(driver, "train", lambda *_: ("succeeded", [], None))
    assert drive(tmp_path) == 0
    (told,) = [event for event in store.events_written if event[0] == "data.loaded"]
    figures = {"prompts": 4, "dropped": 2, "median_tokens": 3, "longest_tokens": 4}
    assert told[1:] == ("warning", {"splits": splits.figures()})
    assert splits.figures()["train"] == figures
    parts.close.assert_called_once_with()


def test_a_library_that_ends_the_process_is_no_sigterm(store: FakeStore, tmp_path: Path, job: Any) -> None:
    job(raising(SystemExit(2)))
    with pytest.raises(SystemExit):
        drive(tmp_path)
    assert store.ends() == []


# --------------------------------------------------------------------- checkpoints


def journal_of(store: FakeStore) -> StoreJournal:
    return StoreJournal(store, LEASE, Wishes)  # type: ignore[arg-type]


def registered(store: FakeStore, root: Path, *steps: int) -> None:
    for step in steps:
        path, manifest = write_checkpoint(
            root, step=step, fence=1, fill=lambda folder: (folder / "weights").write_text("w") and None
        )
        store.registered.append(
            Checkpoint(step=step, path=str(path), digest=manifest.digest, metrics={}, on_front=False)
        )


def usable(store: FakeStore, root: Path) -> int | None:
    return driver.usable_checkpoint(store, journal_of(store), CheckpointStore(root))  # type: ignore[arg-type]


def test_no_checkpoint_is_a_fresh_start(store: FakeStore, tmp_path: Path) -> None:
    assert usable(store, tmp_path) is None
    assert store.did == []


def test_the_newest_checkpoint_is_used(store: FakeStore, tmp_path: Path) -> None:
    registered(store, tmp_path, 10, 30, 20)
    assert usable(store, tmp_path) == 30
    assert store.did == [("rewind", 30)]
    assert store.events_written == []


def test_a_damaged_checkpoint_is_named_and_passed_over(store: FakeStore, tmp_path: Path) -> None:
    registered(store, tmp_path, 10, 20, 30)
    (tmp_path / directory_name(30) / "weights").write_text("v")
    write_checkpoint(tmp_path, step=20, fence=2, fill=lambda folder: (folder / "weights").write_text("w") and None)
    assert usable(store, tmp_path) == 10
    assert store.did == [("rewind", 10)]
    (first, second) = store.events_written
    assert first[:2] == second[:2] == ("checkpoint.damaged", "error")
    assert first[2]["step"] == 30
    assert "weights does not match its sha256" in first[2]["message"]
    assert second[2] == {"step": 20, "message": "step 20 is not the checkpoint that was registered"}


def test_a_restart_does_not_take_a_policy_alone(store: FakeStore, tmp_path: Path) -> None:
    """It is not damaged either; where nothing else is left, the job says what it has."""
    registered(store, tmp_path, 10, 20, 30)
    keep_policy(tmp_path / directory_name(30))
    assert usable(store, tmp_path) == 20
    assert store.events_written == []
    for step in (10, 20):
        keep_policy(tmp_path / directory_name(step))
    with pytest.raises(CheckpointError, match="kept for its policy alone; submit the job again, fork it"):
        usable(store, tmp_path)


@pytest.mark.parametrize("file", ["weights", "manifest.json"])
def test_a_checkpoint_that_can_not_be_read_now_hands_the_job_back(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """It is whole: passing over it would lose its steps, and then the directory itself."""
    root = tmp_path / "jobs" / "job" / "checkpoints"
    registered(store, root, 10, 20)
    real = Path.open

    def stale(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == root / directory_name(20) / file:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", stale)
    monkeypatch.setattr(driver, "parts_of", lambda *_, **__: contextlib.nullcontext(NO_PARTS))
    monkeypatch.setattr("orchestrator.loop.Loop", lambda *_, **__: None)
    why = (
        f"can't read {root / directory_name(20) / file}: Stale file handle; "
        "mend its disk, or remove its directory to do without it"
    )
    for _try in range(2):
        assert drive(tmp_path) == (NO_RESOURCES if file == "weights" else 0)  # 0: it was not claimed at all
    assert [call for call in store.did if call[0] == "rewind"] == []
    if file == "weights":
        assert store.ends() == [("release", f"handed back: {why}")] * 2
        assert store.events_written == []
    else:
        assert store.ends() == []
        assert store.events_written == [("job.waits", "warning", {"message": why})]  # once


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rollout": {"invented": 32}}, "rollout.invented: unknown field; fields are "),
        ({"weighting": {"name": "of_a_plug_in_that_is_gone"}}, "weighting.name: expected one of "),
    ],
)
def test_a_spec_that_was_accepted_waits_for_who_takes_it(
    store: FakeStore, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    """After a step back, or without a package that was there: the job is as good as it was."""
    store.text = json.dumps(json.loads(store.text) | change)
    assert drive(tmp_path) == NO_RESOURCES
    ((kind, reason),) = store.ends()
    assert kind == "release"  # uncounted
    assert reason.startswith(f"handed back: this version refuses its spec: {told}")
    assert reason.endswith("install the plug-in that it names, or go on with the version that took the job")


def test_without_room_for_a_checkpoint_the_job_waits_before_anything_is_built(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "jobs" / "job" / "checkpoints"
    registered(store, root, 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=10))
    monkeypatch.setattr(driver, "parts_of", lambda *_, **__: pytest.fail("it was built"))
    assert drive(tmp_path) == NO_RESOURCES
    ((kind, reason),) = store.ends()
    assert kind == "release"
    assert reason == f"handed back: a checkpoint takes 0.0 GiB, and {root} has room for 0.0; free space"


def test_a_disk_that_has_none_of_the_checkpoints_hands_the_job_back(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume that is not mounted: as terminal an end as "damaged" can't be taken back."""
    registered(store, tmp_path / "elsewhere", 10, 20)
    monkeypatch.setattr(driver, "parts_of", lambda *_, **__: contextlib.nullcontext(NO_PARTS))
    monkeypatch.setattr("orchestrator.loop.Loop", lambda *_, **__: None)
    assert drive(tmp_path) == NO_RESOURCES
    ((kind, reason),) = store.ends()
    assert kind == "release"
    assert reason == (
        f"handed back: none of the job's checkpoints is in {tmp_path}/jobs/job/checkpoints: "
        "see that its volume is mounted on this machine"
    )
    assert store.events_written == []


def test_nothing_but_damaged_checkpoints_fails_the_job(store: FakeStore, tmp_path: Path, monkeypatch: Any) -> None:
    root = tmp_path / "jobs" / "job" / "checkpoints"
    registered(store, root, 10)
    (root / directory_name(10) / "weights").unlink()
    monkeypatch.setattr(driver, "parts_of", lambda *_, **__: contextlib.nullcontext(NO_PARTS))
    monkeypatch.setattr("orchestrator.loop.Loop", lambda *_, **__: None)
    assert drive(tmp_path) == 0
    ((_, status, reason),) = store.ends()
    assert status is JobStatus.FAILED
    assert "every checkpoint is damaged" in reason


class FakeLoop:
    made: "list[FakeLoop]" = []  # noqa: RUF012

    def __init__(self, _spec: Any, _parts: Any, _journal: Any, checkpoints: CheckpointStore, *, fence: int) -> None:
        self.directory, self.fence = checkpoints.root, fence
        self.resumed: tuple[int, list[int]] | None = None
        self.samples: list[Any] = []
        self.reason = self.clock = None
        FakeLoop.made.append(self)

    def resume(self, step: int, known: list[int]) -> None:
        self.resumed = (step, known)

    def run(self) -> str:
        return "succeeded"


@pytest.mark.parametrize("defaults", [{}, {"checkpoints.front": 256}])
def test_a_resumed_job_says_from_where_and_by_which_older_rules(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defaults: dict[str, Any]
) -> None:
    document = json.loads(store.text)
    if defaults:
        del document["checkpoints"]["front"]
    store.text = json.dumps(document)
    root = tmp_path / "jobs" / "job" / "checkpoints"
    registered(store, root, 10, 20)
    torn = root / ".step-000030-4"
    torn.mkdir()
    store.claims = [dataclasses.replace(CLAIM, step=20, from_step=23)]
    store.refuse["set_status"] = IllegalTransition(JobStatus.CANCELLING, JobStatus.RUNNING)  # the loop hears of it
    monkeypatch.setattr(driver, "parts_of", lambda *_, **__: contextlib.nullcontext(NO_PARTS))
    monkeypatch.setattr("orchestrator.loop.Loop", FakeLoop)
    assert drive(tmp_path) == 0
    loop = FakeLoop.made.pop()
    assert (loop.directory, loop.fence, loop.resumed) == (root, 5, (20, [10, 20]))
    more = {"defaults": defaults} if defaults else {}
    assert ("job.resumed", "info", {"step": 20, "rerun": 3, **more}) in store.events_written
    (made_by,) = [data for type, _, data in store.events_written if type == "job.software"]
    assert made_by["versions"]["torch"] == importlib.metadata.version("torch")
    assert (made_by["device"], made_by["data_sha256"], made_by["plugins"]) == ("a CPU", {"train": "a" * 64}, {})
    assert made_by["policy"] == {"model": "quickstart", "commit": None}
    assert store.ends() == [("finish", JobStatus.SUCCEEDED, None)]
    assert not torn.exists()


def test_what_changed_of_its_software_is_told_to_who_resumes(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registered(store, tmp_path / "jobs" / "job" / "checkpoints", 10)
    monkeypatch.setattr(driver, "parts_of", lambda *_, **__: contextlib.nullcontext(NO_PARTS))
    monkeypatch.setattr("orchestrator.loop.Loop", FakeLoop)
    monkeypatch.setattr(driver, "plugins", lambda _: {"weighting mine": "mine 1.0, code b"})
    monkeypatch.setattr(driver, "versions", lambda: {"torch": "2.1", "vllm": "0.3"})
    before = {"versions": {"torch": "2.0", "vllm": "0.3"}, "plugins": {"weighting mine": "mine 1.0, code a"}}
    told = [Event(seq=i, type="job.software", at=0.0, level="info", data=data) for i, data in enumerate([{}, before])]
    monkeypatch.setattr(store, "events", lambda *_, **__: Page(items=tuple(told), has_more=False))
    assert drive(tmp_path) == 0
    (now,) = [data for type, _, data in store.events_written if type == "job.software"]
    assert now["plugins"] == {"weighting mine": "mine 1.0, code b"}
    message = (
        "it goes on with other software, so figures may move: torch is 2.1, was 2.0; "
        "weighting mine is mine 1.0, code b, was mine 1.0, code a"
    )
    assert ("job.software_changed", "warning", {"message": message}) in store.events_written
    assert message in caplog.text


@pytest.mark.parametrize("claimed", [8, 10])
def test_what_a_claim_found_is_registered_and_told_once(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claimed: int
) -> None:
    """Up to step 8 here; the claim may be of a holder on a machine whose disk had more."""
    root = tmp_path / "jobs" / "job" / "checkpoints"
    for step in (5, 8):
        write_checkpoint(
            root, step=step, fence=3, fill=lambda folder: (folder / "state.json").write_text("{}") and None
        )
    store.claims = [dataclasses.replace(CLAIM, step=claimed)]

    def register(_: Lease, step: int, path: str, digest: str, **_options: Any) -> None:
        store.registered.append(Checkpoint(step=step, path=path, digest=digest, metrics={}, on_front=False))

    monkeypatch.setattr(store, "register_checkpoint", register, raising=False)
    monkeypatch.setattr(driver, "parts_of", lambda *_, **__: contextlib.nullcontext(NO_PARTS))
    monkeypatch.setattr("orchestrator.loop.Loop", FakeLoop)
    assert drive(tmp_path) == 0
    assert FakeLoop.made.pop().resumed == (8, [5, 8])
    told = [data for type, _, data in store.events_written if type == "job.recovered"]
    assert told == [{"step": 8, "fence": 5} | ({"elsewhere": 10} if claimed == 10 else {})]


def test_a_checkpoint_that_was_half_replaced_is_found_again(store: FakeStore, tmp_path: Path, monkeypatch: Any) -> None:
    root = tmp_path / "jobs" / "job" / "checkpoints"
    registered(store, root, 10)
    (root / directory_name(10)).rename(root / f".{directory_name(10)}-replaced")
    monkeypatch.setattr(driver, "parts_of", lambda *_, **__: contextlib.nullcontext(NO_PARTS))
    monkeypatch.setattr("orchestrator.loop.Loop", FakeLoop)
    assert drive(tmp_path) == 0
    assert FakeLoop.made.pop().resumed == (10, [10])
