"""Every second of a step belongs to a stage or to `other`."""

import contextlib
import time

import pytest

from orchestrator.clock import STAGES, Clock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that a test moves: now[0] += seconds."""
    reading = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: reading[0])
    return reading


def test_stages_and_other_make_the_step(now: list[float]) -> None:
    clock = Clock()
    clock.begin()
    for stage, seconds in (("rollout", 3.0), ("score", 1.0), ("learn", 2.0), ("learn", 0.5)):
        now[0] += 0.25
        with clock(stage):
            now[0] += seconds
    read = clock.read()
    assert set(read) == {*STAGES, "other", "step"}
    assert (read["rollout"], read["score"], read["learn"], read["sync"]) == (3.0, 1.0, 2.5, 0.0)
    assert read["other"] == 1.0
    assert read["step"] == 7.5 == sum(read[stage] for stage in STAGES) + read["other"]


def test_what_comes_between_steps_shows_in_the_next(now: list[float]) -> None:
    clock = Clock()
    clock.begin()
    with clock("rollout"):
        now[0] += 1
    assert clock.read()["checkpoint"] == 0
    now[0] += 100  # a commit that waits for the store
    with clock("checkpoint"):
        now[0] += 4
    clock.begin()
    with clock("rollout"):
        now[0] += 1
    read = clock.read()
    assert (read["checkpoint"], read["rollout"], read["other"], read["step"]) == (4, 1, 100, 105)
    assert clock.eta_s(2) == 1 + 105
    clock.begin()
    assert clock.read()["checkpoint"] == 0


def test_the_innermost_of_what_is_under_way_is_told_with_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([5.0, 8.0])
    monkeypatch.setattr(time, "time", lambda: next(times))
    clock = Clock()
    assert clock.at() is None
    with contextlib.suppress(ValueError), clock("evaluate"):
        with clock("score"):
            assert clock.at() == ("score", 8.0)
        assert clock.at() == ("evaluate", 5.0)
        raise ValueError
    assert clock.at() is None


def test_what_comes_before_the_first_step_is_in_none(now: list[float]) -> None:
    clock = Clock()
    for stage in ("rollout", "score", "evaluate", "checkpoint"):
        with clock(stage):
            now[0] += 1500
    for began in (1, 2):  # the second after a wish that was withdrawn
        clock.begin()
        now[0] += began
    read = clock.read()
    assert {stage: seconds for stage, seconds in read.items() if seconds} == {"other": 3, "step": 3}
    assert clock.eta_s(10) == 30


def test_a_stage_that_raises_is_counted(now: list[float]) -> None:
    clock = Clock()
    clock.begin()
    with contextlib.suppress(RuntimeError), clock("score"):
        now[0] += 2
        raise RuntimeError
    assert clock.read()["score"] == 2


def test_the_time_to_go_follows_the_recent_pace(now: list[float]) -> None:
    clock = Clock(window=2)
    assert clock.eta_s(5) is None
    for seconds in (100, 1, 3):
        clock.begin()
        now[0] += seconds
        clock.read()
    assert clock.eta_s(5) == 10
    assert clock.eta_s(0) == 0
