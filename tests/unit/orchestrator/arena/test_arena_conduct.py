"""The arena over a stand-in for its workers: nothing runs twice, nothing stops the rest, nothing finished is lost."""

import importlib.metadata
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.arena.conduct import Arena, ArenaStopped, RunFailed, surroundings
from orchestrator.arena.ledger import Ledger, LedgerError
from orchestrator.arena.plan import Planned, plan
from orchestrator.arena.protocol import PRESETS
from orchestrator.spec import JobSpec

PROJECT = Path(__file__).parents[4]
FULL = PRESETS["full"]
RULES = ["gdpo/fixed", "gdpo/saw", "gdpo/dara"]
Make = Callable[[Planned, JobSpec], dict[str, Any]]


def figures(planned: Planned, spec: JobSpec) -> dict[str, Any]:
    del planned
    point = {"step": 0, "objectives": {o.name: o.range[1] for o in spec.objectives}}
    return {"seconds": {"total": 60.0}, "validation": [point]}


class Crew:
    """Workers that note what they were asked for."""

    def __init__(self, make: Make = figures) -> None:
        self.make_one = make
        self.asked: list[tuple[int, str, int]] = []
        self.closed: list[int] = []
        self.killed = threading.Event()

    def hire(self, number: int) -> "Hand":
        return Hand(self, number)

    @property
    def entries(self) -> list[str]:
        return [entry for _, entry, _ in self.asked]


class Hand:
    def __init__(self, crew: Crew, number: int) -> None:
        self.crew, self.number = crew, number

    def make(self, planned: Planned, spec: JobSpec) -> dict[str, Any]:
        self.crew.asked.append((self.number, planned.entry.name, planned.seed))
        return self.crew.make_one(planned, spec)

    def kill(self) -> None:
        self.crew.killed.set()

    def close(self) -> None:
        self.crew.closed.append(self.number)


def arena(directory: Path, crew: Crew, *, rules: list[str] | None = None, seeds: int = 2, **options: Any) -> Arena:
    """Run, and hand over as it ended."""
    with Ledger(directory) as ledger:
        runs = plan(FULL, tasks=["sums3"], rules=rules or RULES, seeds=seeds)
        made = Arena(runs=runs, ledger=ledger, hire=crew.hire, **options)
        made.run()
        return made


def test_runs_are_made_in_order_and_told_of(tmp_path: Path) -> None:
    crew, seen = Crew(), []
    arena(tmp_path, crew, on_change=lambda changed: seen.append([state for _, state in changed.states()]))
    assert crew.asked == [(0, entry, seed) for seed in (0, 1) for entry in RULES]
    assert crew.closed == [0]
    assert seen[0] == ["left"] * 6
    assert ["done", "running", "left", "left", "left", "left"] in seen
    assert seen[-1] == ["done"] * 6
    (first, *_) = Ledger.peek(tmp_path).runs
    assert first["objectives"]["accuracy"] == {"range": [0.0, 1.0], "reference": 0.0}
    assert (first["entry"], first["role"], first["status"], first["workers"]) == ("gdpo/fixed", "static", "done", 1)
    assert first["preference"] == dict.fromkeys(("accuracy", "conciseness", "clarity"), pytest.approx(1 / 3))


def test_a_limit_stops_it_and_the_next_call_never_makes_a_run_twice(tmp_path: Path) -> None:
    crew = Crew()
    assert arena(tmp_path, crew, limit=4).left == 2
    ended = arena(tmp_path, crew)
    assert (ended.left, len(ended.made)) == (0, 2)
    arena(tmp_path, crew, seeds=3)
    assert len(crew.asked) == len(set(crew.asked)) == 9


def test_another_number_of_steps_is_another_run(tmp_path: Path) -> None:
    crew = Crew()
    arena(tmp_path, crew, seeds=1)
    with Ledger(tmp_path) as ledger:
        runs = plan(FULL, tasks=["sums3"], rules=RULES, seeds=1, steps=7)
        Arena(runs=runs, ledger=ledger, hire=crew.hire).run()
    assert [run["steps"] for run in Ledger.peek(tmp_path).runs] == [40] * 3 + [7] * 3


def test_a_rule_that_fails_stops_nobody_and_is_tried_again_only_when_asked(tmp_path: Path) -> None:
    def fails(planned: Planned, spec: JobSpec) -> dict[str, Any]:
        if planned.entry.name == "gdpo/saw":
            raise RunFailed("advantages are not finite")
        return figures(planned, spec)

    ended = arena(tmp_path, Crew(fails), seeds=1)
    assert [(run["entry"], run["status"], run["reason"]) for run in ended.made] == [
        ("gdpo/fixed", "done", None),
        ("gdpo/saw", "failed", "advantages are not finite"),
        ("gdpo/dara", "done", None),
    ]
    again = Crew()
    assert [state for _, state in arena(tmp_path, again, seeds=1).states()] == ["done", "failed", "done"]
    assert not again.asked
    assert [state for _, state in arena(tmp_path, again, seeds=1, retry_failed=True).states()] == ["done"] * 3
    assert again.entries == ["gdpo/saw"]
    arena(tmp_path, again, seeds=1, retry_failed=True)  # it is done now
    assert again.entries == ["gdpo/saw"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_is_full_ends_it_with_a_reason(tmp_path: Path, workers: int) -> None:
    def stops(planned: Planned, spec: JobSpec) -> dict[str, Any]:
        if planned.entry.name != "gdpo/fixed":
            raise ArenaStopped("No space left on device")
        return figures(planned, spec)

    crew = Crew(stops)
    with pytest.raises(ArenaStopped, match="No space left"):
        arena(tmp_path, crew, workers=workers)
    assert [run["entry"] for run in Ledger.peek(tmp_path).runs if run["seed"] == 0] == ["gdpo/fixed"]
    assert sorted(crew.closed) == sorted({number for number, _, _ in crew.asked})


def test_an_interrupt_kills_the_runs_under_way_and_records_none_of_them(tmp_path: Path) -> None:
    def until_killed(planned: Planned, spec: JobSpec) -> dict[str, Any]:
        if planned.entry.name == "gdpo/fixed":
            return figures(planned, spec)
        os.kill(os.getpid(), signal.SIGINT)
        assert crew.killed.wait(10)
        raise RunFailed("its process ended with code -9")

    crew = Crew(until_killed)
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            arena(tmp_path, crew)
    finally:
        signal.signal(signal.SIGINT, heard)
    assert [(run["entry"], run["status"]) for run in Ledger.peek(tmp_path).runs] == [("gdpo/fixed", "done")]
    assert crew.closed == [0]


def test_an_interrupt_while_a_worker_is_hired_begins_no_run(tmp_path: Path) -> None:
    crew = Crew()

    def within_10_s(met: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not met() and time.monotonic() < deadline:
            time.sleep(0.01)

    def hire(number: int) -> Hand:
        os.kill(os.getpid(), signal.SIGINT)
        within_10_s(lambda: interrupted._interrupted)
        return crew.hire(number)

    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Ledger(tmp_path) as ledger:
            interrupted = Arena(runs=plan(FULL, tasks=["sums3"], rules=RULES, seeds=1), ledger=ledger, hire=hire)
            with pytest.raises(KeyboardInterrupt):
                interrupted.run()
            within_10_s(lambda: crew.closed)  # a pool that is interrupted as it starts a thread does not wait for it
    finally:
        signal.signal(signal.SIGINT, heard)
    assert (crew.asked, crew.closed, Ledger.peek(tmp_path).runs) == ([], [0], [])


def test_a_record_that_can_not_be_written_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise LedgerError("can't write")

    monkeypatch.setattr(Ledger, "add", full)
    crew = Crew()
    with pytest.raises(LedgerError):
        arena(tmp_path, crew)
    assert len(crew.asked) == 1


def test_workers_share_the_runs_and_targets_wait_for_the_statics(tmp_path: Path) -> None:
    statics = ["gdpo/fixed", "gdpo/static*", "gdpo/lagrangian"]
    meet = threading.Barrier(2, timeout=10)

    def together(planned: Planned, spec: JobSpec) -> dict[str, Any]:
        if planned.entry.name in ("gdpo/fixed", "gdpo/static(1,1,4)"):
            meet.wait()  # both are under way at once
        return figures(planned, spec)

    crew = Crew(together)
    ended = arena(tmp_path, crew, rules=statics, seeds=1, workers=2)
    assert ended.left == 0
    assert len(set(crew.entries)) == len(crew.entries) == 11
    assert crew.entries[-1] == "gdpo/lagrangian"
    assert ended.made[-1]["targets"] == {"conciseness": 1.0, "clarity": 1.0}
    again = Crew()
    arena(tmp_path, again, rules=statics, seeds=1)
    assert not again.asked


def test_a_limit_counts_runs_under_way(tmp_path: Path) -> None:
    crew = Crew()
    assert len(arena(tmp_path, crew, workers=4, limit=3).made) == 3


def test_targets_without_statics_are_left_and_said_to_wait(tmp_path: Path) -> None:
    crew = Crew()
    ended = arena(tmp_path, crew, rules=["gdpo/lagrangian", "gdpo/saw"], seeds=1)
    assert crew.entries == ["gdpo/saw"]
    assert {planned.entry.name: state for planned, state in ended.states()} == {
        "gdpo/saw": "done",
        "gdpo/lagrangian": "waiting",
    }


def test_the_time_left_is_that_of_the_runs_so_far(tmp_path: Path) -> None:
    """For what this call makes: nothing at its limit, all that is left without one."""
    ended = arena(tmp_path, Crew(), limit=2, workers=2)
    assert (ended.coming, ended.coming_s) == (0, 0.0)
    ended.limit = None
    assert (ended.coming, ended.coming_s) == (4, pytest.approx(4 * 60.0 / 2))


def test_a_record_says_which_code_made_it() -> None:
    """The project's version, and of a checkout the commit."""
    made = surroundings()["code"]
    assert made["version"] == importlib.metadata.version("equipoise")
    said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=False)
    if said.returncode != 0:
        pytest.skip("the project is no checkout here")
    assert said.stdout.startswith(made["commit"].rstrip("+"))
    assert len(made["commit"].rstrip("+")) >= 12
