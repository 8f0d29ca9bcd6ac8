"""Checkpoints beside the steps: registered when they are durable and not before, one at a time, and nothing is lost."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.journal import Wishes
from orchestrator.spec import JobSpec
from orchestrator.storage import checkpoints
from orchestrator.storage.checkpoints import CheckpointError, verify
from tests.fault_figures import tell
from tests.loop_fakes import Killed, Run, make_spec, resume, start

BESIDE = {"every": 2, "asynchronous": True}
WAIT_S = 10.0


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def job(**checkpoint: Any) -> JobSpec:
    return make_spec(steps=7, checkpoints=BESIDE | checkpoint, evaluation={"every": 100})


class Disk:
    """Making a checkpoint whole, with something before it for each time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None]) -> None:
        self.threads: list[str] = []
        make_whole = checkpoints.make_whole

        def slowly(root: Path, *, step: int, fence: int, written: Callable[[], None]) -> Any:
            self.threads.append(threading.current_thread().name)
            before(step)
            return make_whole(root, step=step, fence=fence, written=written)

        monkeypatch.setattr(checkpoints, "make_whole", slowly)


def whole(directory: Path) -> Run:
    """The same job without a fault, which waits for its checkpoints: the oracle."""
    run = start(directory, job(asynchronous=False))
    assert run.loop.run() == "succeeded"
    return run


def test_the_run_is_that_of_one_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = whole(tmp_path / "whole")
    disk = Disk(monkeypatch, lambda _: None)
    run = start(tmp_path / "beside", job())
    assert run.loop.run() == "succeeded"
    assert run.figures() == expected.figures()
    assert run.on_disk() == expected.on_disk() == [6, 7]
    assert sorted(run.journal.registered) == sorted(expected.journal.registered)
    assert [name.startswith("checkpoint") for name in disk.threads] == [False, True, True, True, False]
    for step in run.on_disk():
        verify(run.directory / checkpoints.directory_name(step))


def test_steps_go_on_and_it_is_registered_once_it_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk holds step 2 back until step 3 is committed; nobody hears of it before."""
    run = start(tmp_path, job())
    committed, seen = threading.Event(), []
    commit = run.journal.commit

    def telling(record: Any) -> None:
        commit(record)
        if record["step"] == 3:
            seen.append((2 in run.journal.registered, 2 in run.on_disk()))
            committed.set()

    run.journal.commit = telling  # type: ignore[method-assign]
    Disk(monkeypatch, lambda step: step != 2 or committed.wait(WAIT_S) or pytest.fail("steps waited"))
    assert run.loop.run() == "succeeded"
    assert seen == [(False, False)]


def test_the_next_one_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 2's is held back until the learner has made step 4; step 4's begins after it has been registered."""
    run = start(tmp_path, job())
    made, order = threading.Event(), []
    save, register = run.learner.save, run.journal.checkpoint

    def saving(directory: Path, *, beside: bool) -> None:
        order.append(f"save {directory.name}")
        save(directory, beside=beside)

    run.learner.save = saving  # type: ignore[method-assign]
    run.journal.checkpoint = lambda path, manifest: (order.append(path.name), register(path, manifest))  # type: ignore[method-assign]
    commit = run.journal.commit
    run.journal.commit = lambda record: (commit(record), made.set() if record["step"] == 4 else None)  # type: ignore[method-assign]
    Disk(monkeypatch, lambda step: step != 2 or made.wait(WAIT_S) or pytest.fail("step 4 waited"))
    assert run.loop.run() == "succeeded"
    assert order[2:5] == ["save .step-000002-1", "step-000002", "save .step-000004-1"]


def test_a_disk_that_takes_ten_steps_for_a_checkpoint_holds_no_step_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T18, slow: each checkpoint is durable only once ten more steps are committed, or the last one is."""
    spec = make_spec(steps=25, checkpoints=BESIDE | {"every": 12}, evaluation={"every": 100})
    run = start(tmp_path, spec)
    news, seen = threading.Condition(), {}
    commit = run.journal.commit

    def telling(record: Any) -> None:
        with news:
            commit(record)
            news.notify_all()

    def slow(step: int) -> None:
        if step in (0, 25):  # nothing is beside these
            return
        until = min(step + 10, 25)
        with news:
            assert news.wait_for(lambda: until in run.journal.records, WAIT_S), f"steps waited for checkpoint {step}"
        seen[step] = until

    run.journal.commit = telling  # type: ignore[method-assign]
    Disk(monkeypatch, slow)
    assert run.loop.run() == "succeeded"
    assert seen == {12: 22, 24: 25}
    assert run.journal.named("checkpoint.failed") == []
    assert max(run.journal.registered) == 25
    tell("T18", steps_beside_a_slow_checkpoint=10, failed=0)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_disk_that_is_slower_than_the_checkpoints_come_makes_steps_wait_and_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    """T18, slow: writing one takes some ten steps' time, and one is due every second step."""
    expected = whole(tmp_path / "whole")
    Disk(monkeypatch, lambda _: time.sleep(0.05))
    run = start(tmp_path / "slow", job(asynchronous=asynchronous))
    assert run.loop.run() == "succeeded"
    assert run.figures() == expected.figures()
    assert run.journal.named("checkpoint.failed") == []
    assert run.on_disk() == expected.on_disk()
    assert sorted(run.journal.registered) == sorted(expected.journal.registered)


def test_steps_go_on_while_the_learner_still_writes(tmp_path: Path) -> None:
    """Step 2's files come when step 3 is committed, and what is asked to wait for them does, in the thread."""
    expected = whole(tmp_path / "whole")
    run = start(tmp_path / "beside", job())
    committed, seen = threading.Event(), []
    save, commit = run.learner.save, run.journal.commit

    def saving(directory: Path, *, beside: bool) -> Callable[[], None]:
        seen.append((directory.name, beside))
        if not beside:
            save(directory)
            return lambda: None

        def written() -> None:
            assert threading.current_thread().name.startswith("checkpoint")
            if directory.name.startswith(".step-000002"):
                assert committed.wait(WAIT_S), "the steps waited"
            save(directory)

        return written

    run.learner.save = saving  # type: ignore[assignment, method-assign]
    run.journal.commit = lambda record: (commit(record), committed.set() if record["step"] == 3 else None)  # type: ignore[method-assign]
    assert run.loop.run() == "succeeded"
    assert [beside for _, beside in seen] == [False, True, True, True, False]
    assert run.on_disk() == expected.on_disk()
    for step in run.on_disk():
        assert "learner.json" in verify(run.directory / checkpoints.directory_name(step)).files


def test_a_learner_that_can_not_write_is_told_as_a_full_disk_is(tmp_path: Path) -> None:
    run = start(tmp_path, job())
    save = run.learner.save

    def saving(directory: Path, *, beside: bool) -> Callable[[], None] | None:
        save(directory)

        def refused() -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return refused if beside and directory.name.startswith(".step-000004") else None

    run.learner.save = saving  # type: ignore[assignment, method-assign]
    assert run.loop.run() == "succeeded"
    (event,) = run.journal.named("checkpoint.failed")
    assert event["step"] == 4
    assert "No space left" in event["message"]
    assert not list(run.directory.glob(".step-000004*"))


def full(*steps: int) -> Callable[[int], None]:
    """A disk that is full when these steps' checkpoints are made whole."""

    def before(step: int) -> None:
        if step in steps:
            raise CheckpointError("can't write checkpoint: full") from OSError(errno.ENOSPC, "full")

    return before


def test_a_failure_in_the_thread_is_an_event_and_the_last_good_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Disk(monkeypatch, full(4))
    run = start(tmp_path / "beside", job())
    assert run.loop.run() == "succeeded"
    (event,) = run.journal.named("checkpoint.failed")
    assert event["step"] == 4
    assert run.on_disk() == [6, 7]
    assert 4 not in run.journal.registered


def test_three_failures_in_a_row_end_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(monkeypatch, full(2, 4, 6))
    run = start(tmp_path, job())
    with pytest.raises(CheckpointError, match="full"):
        run.loop.run()
    assert [event["step"] for event in run.journal.named("checkpoint.failed")] == [2, 4, 6]
    assert run.on_disk() == [0]


@pytest.mark.parametrize("wish", [Wishes(pause=True), Wishes(stop=True), Wishes(cancel=True)])
def test_whoever_ends_the_run_finds_it_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: Wishes
) -> None:
    asked = threading.Event()
    Disk(monkeypatch, lambda step: asked.wait(WAIT_S) if step == 2 else None)
    run = start(tmp_path, job())

    def wishes() -> Wishes:
        if len(run.journal.records) < 2:
            return Wishes()
        asked.set()
        return wish

    run.journal.wish = wishes
    assert run.loop.run() in ("paused", "stopped", "cancelled")
    assert max(run.journal.registered) == 2


@pytest.mark.parametrize("died_at", ["before commit", "after commit"])
def test_a_kill_while_it_is_written_goes_back_to_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, died_at: str
) -> None:
    """Step 4's never comes: the run dies at step 5, half a checkpoint lies there, and step 2's is what counts."""
    died = threading.Event()
    with monkeypatch.context() as patch:
        Disk(patch, lambda step: died.wait(WAIT_S) and full(4)(step) if step == 4 else None)
        run = start(tmp_path / "beside", job())
        run.journal.die_at = (died_at, 5)
        with pytest.raises(Killed):
            run.loop.run()
        assert max(run.journal.registered) == 2
        assert list((tmp_path / "beside").glob(".step-000004-*"))
        died.set()
        run.loop.writer._thread.shutdown()
    again = resume(run, job())
    assert again.loop.state.step == 2
    assert again.loop.run() == "succeeded"
    assert again.figures() == whole(tmp_path / "whole").figures()
