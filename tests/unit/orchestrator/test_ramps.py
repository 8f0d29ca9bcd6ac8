"""A steer over several steps: a straight line within the bounds, the same whatever interrupts it."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.journal import Wishes
from orchestrator.ramps import Ramp
from orchestrator.spec import JobSpec
from orchestrator.steering import Steering
from tests.loop_fakes import Killed, Run, make_spec, resume, start

NAMES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def manual(over: int, accuracy: float, **fields: Any) -> Steering:
    weights = {"accuracy": accuracy, "brevity": 1 - accuracy}
    return Steering.model_validate(
        {"mode": "manual", "blend": 0.5, "weights": weights, "bounds": {}, "over": over, **fields}
    )


def applied(run: Run) -> list[float]:
    return [record["weights"]["applied"]["accuracy"] for record in run]


def long_spec(**fields: Any) -> JobSpec:
    return make_spec(steps=12, **fields)


# ---------------------------------------------------------------------- a line


@given(
    start_K=st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    end_K=st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    floor=st.floats(0, 0.3),
    over=st.integers(2, 20),
)
def test_a_ramp_is_a_straight_line_within_the_bounds(
    start_K: list[float], end_K: list[float], floor: float, over: int
) -> None:
    begun, target = (
        {name: value / math.fsum(values) for name, value in zip(NAMES, values, strict=True)}
        for values in (start_K, end_K)
    )
    steering = Steering.model_validate(
        {"mode": "manual", "blend": 0, "weights": target, "bounds": {"a": (floor, 1.0)}, "over": over}
    )
    held = {name: max(target[name], floor) if name == "a" else target[name] for name in NAMES}
    target = {name: value / math.fsum(held.values()) for name, value in held.items()} if target["a"] < floor else target
    steering = steering.model_copy(update={"bounds": {"a": (min(floor, target["a"]), 1.0)}})
    ramp = Ramp.begin(5, 2, steering, begun)
    path = [ramp.weights(step, steering, target, dict.fromkeys(NAMES, 1.0))[0] for step in range(5, 5 + over)]
    assert path[-1] == target
    for i, weights in enumerate(path, start=1):
        line = {name: ramp.start[name] + i / over * (target[name] - ramp.start[name]) for name in NAMES}
        assert weights == pytest.approx(line, abs=1e-9)
        assert math.fsum(weights.values()) == pytest.approx(1)
        assert weights["a"] >= steering.bounds["a"][0] - 1e-9


def test_a_ramp_crosses_zero_where_an_objective_turns() -> None:
    steering = Steering(mode="auto", blend=0, weights={"a": 0.5, "b": 0.5}, bounds={}, over=4)
    ramp = Ramp.begin(1, 2, steering, {"a": 0.5, "b": -0.5})
    path = [ramp.weights(step, steering, {"a": 0.5, "b": 0.5}, {"a": 1.0, "b": 1.0}) for step in range(1, 5)]
    assert [signs["b"] for _, signs in path] == [-1, 1, 1, 1]
    assert [weights["b"] for weights, _ in path] == pytest.approx([1 / 3, 0, 1 / 3, 0.5])


# ------------------------------------------------------------------- in the loop


def test_the_weights_go_to_their_target_in_as_many_steps_and_the_record_and_the_event_say_so(tmp_path: Path) -> None:
    run = start(tmp_path, long_spec(steering={"mode": "manual"}))
    run.journal.log.append((2, 4, manual(5, 0.25)))
    run.loop.run()
    assert applied(run) == pytest.approx([0.75] * 3 + [0.65, 0.55, 0.45, 0.35, 0.25] + [0.25] * 4)
    assert applied(run)[7:] == [0.25] * 5
    ramps = [record.get("ramp") for record in run]
    target = {"accuracy": 0.25, "brevity": 0.75}
    assert ramps == [None] * 3 + [{"step": i, "of": 5, "target": target} for i in range(1, 6)] + [None] * 4
    (event,) = run.journal.named("steering.applied")
    assert event["ramp"] == {"step": 1, "of": 5, "target": target, "until": 8}
    assert event["applied"]["accuracy"] == pytest.approx(0.65)
    assert event["clamped"] == {"accuracy": False, "brevity": False}


def test_without_a_ramp_nothing_is_recorded_or_told_of_one(tmp_path: Path) -> None:
    run = start(tmp_path, long_spec())
    run.journal.log.append((2, 4, manual(1, 0.25)))
    run.loop.run()
    assert applied(run)[3:] == [0.25] * 9
    assert not any("ramp" in record for record in run)
    assert "ramp" not in run.journal.named("steering.applied")[0]


def test_a_steer_during_a_ramp_begins_where_it_stands(tmp_path: Path) -> None:
    run = start(tmp_path, long_spec(steering={"mode": "manual"}))
    run.journal.log += [(2, 2, manual(10, 0.25)), (3, 4, manual(4, 0.05)), (4, 9, manual(1, 0.5))]
    run.loop.run()
    stood = 0.65
    down = [stood + i / 4 * (0.05 - stood) for i in range(1, 5)]
    assert applied(run) == pytest.approx([0.75, 0.7, stood, *down, 0.05] + [0.5] * 4)


def test_guardrails_that_change_leave_a_ramp_as_it_is(tmp_path: Path) -> None:
    run = start(tmp_path, long_spec(steering={"mode": "manual"}))
    rules = [{"metric": "entropy", "min": 0.0}]
    run.journal.log += [(2, 2, manual(10, 0.25)), (3, 4, manual(1, 0.25, guardrails=rules))]
    run.loop.run()
    assert applied(run) == pytest.approx([0.75 - 0.05 * i for i in range(11)] + [0.25])
    assert [event["ramp"]["until"] for event in run.journal.named("steering.applied")] == [11, 11]


def test_guardrails_that_change_begin_no_ramp_once_it_has_ended(tmp_path: Path) -> None:
    run = start(tmp_path, long_spec(weighting={"name": "gradient"}))
    rules = [{"metric": "entropy", "min": 0.0}]
    run.journal.log += [(2, 2, manual(3, 0.25, mode="auto")), (3, 7, manual(3, 0.25, mode="auto", guardrails=rules))]
    run.loop.run()
    assert [record["step"] for record in run if "ramp" in record] == [2, 3, 4]


def test_handing_back_during_a_ramp(tmp_path: Path) -> None:
    """Over steps too: what the strategy chooses comes in gradually, and then is all."""
    run = start(tmp_path, long_spec(weighting={"name": "gradient"}))
    run.journal.log += [(2, 2, manual(6, 0.1)), (3, 5, manual(4, 0.75, mode="auto"))]
    run.loop.run()
    records = run.journal.records
    start_at = records[4]["weights"]["applied"]["accuracy"]
    for i in range(1, 5):
        choice = records[4 + i]["weights"]["strategy"]["accuracy"]
        assert applied(run)[3 + i] == pytest.approx((1 - i / 4) * start_at + i / 4 * choice)
    assert applied(run)[7:] == [records[step]["weights"]["strategy"]["accuracy"] for step in range(8, 13)]


def test_bounds_hold_from_the_first_step_of_a_ramp(tmp_path: Path) -> None:
    run = start(tmp_path, long_spec(steering={"mode": "manual"}))
    run.journal.log.append((2, 2, manual(4, 0.2, bounds={"accuracy": (0.0, 0.6)})))
    run.loop.run()
    assert applied(run)[:6] == pytest.approx([0.75, 0.5, 0.4, 0.3, 0.2, 0.2])


def test_an_objective_that_loses_its_weight_is_scored_until_the_ramp_ends(tmp_path: Path) -> None:
    run = start(tmp_path, long_spec(steering={"mode": "manual"}, weighting={"name": "fixed"}))
    steering = manual(3, 0.0)
    ramp = Ramp.begin(2, 2, steering, {"accuracy": 0.75, "brevity": 0.25})
    assert run.loop.may_get_weight(steering).tolist() == [0, 1]
    assert run.loop.may_get_weight(steering, ramp).tolist() == [1, 1]


def test_before_the_first_step_there_is_nothing_to_begin_at(tmp_path: Path) -> None:
    run = start(tmp_path, long_spec(steering={"mode": "manual"}))
    run.journal.log.append((2, 1, manual(5, 0.25)))
    run.loop.run()
    assert applied(run) == [0.25] * 12


# ------------------------------------------------------------ whatever interrupts


def ramped(directory: Path) -> Run:
    spec = long_spec(weighting={"name": "gradient"}, checkpoints={"every": 3})
    run = start(directory, spec)
    run.journal.log += [(2, 3, manual(6, 0.1, mode="blend")), (3, 6, manual(5, 0.9))]
    return run


@pytest.mark.parametrize("step", range(3, 12))
def test_a_kill_during_a_ramp_commits_the_same_weights(tmp_path: Path, step: int) -> None:
    whole, killed = ramped(tmp_path / "whole"), ramped(tmp_path / "killed")
    whole.loop.run()
    killed.journal.die_at = ("after commit", step)
    with pytest.raises(Killed):
        killed.loop.run()
    again = resume(killed, killed.loop.spec)
    again.loop.run()
    assert again.figures() == whole.figures()
    assert again.journal.named("steering.applied") == whole.journal.named("steering.applied")


def test_a_pause_during_a_ramp_commits_the_same_weights(tmp_path: Path) -> None:
    whole, paused = ramped(tmp_path / "whole"), ramped(tmp_path / "paused")
    whole.loop.run()
    paused.journal.wish = lambda: Wishes(pause=len(paused.journal.records) == 7)
    assert paused.loop.run() == "paused"
    paused.journal.wish = Wishes
    again = resume(paused, paused.loop.spec)
    again.loop.run()
    assert again.figures() == whole.figures()


def test_a_ramp_goes_on_where_the_log_began_anew(tmp_path: Path) -> None:
    """As in a fork that goes on, or after Redis was lost: the steering that was followed is version 1."""
    whole, paused = ramped(tmp_path / "whole"), ramped(tmp_path / "paused")
    whole.loop.run()
    paused.journal.wish = lambda: Wishes(pause=len(paused.journal.records) == 7)
    paused.loop.run()
    paused.journal.wish = Wishes
    paused.journal.log = [(1, 0, paused.journal.log[-1][2].model_copy(update={"over": 1}))]
    again = resume(paused, paused.loop.spec)
    again.loop.run()
    assert applied(again) == applied(whole)
    assert again.journal.records[10]["ramp"]["step"] == 5


def test_a_log_that_began_anew_may_come_to_the_version_that_was_followed_before(tmp_path: Path) -> None:
    run = start(tmp_path, long_spec(steering={"mode": "manual"}))
    run.journal.log.append((2, 3, manual(8, 0.5)))
    run.journal.wish = lambda: Wishes(pause=len(run.journal.records) == 7)
    run.loop.run()
    run.journal.wish = Wishes
    stood = applied(run)[-1]
    run.journal.log = [(1, 0, manual(1, 0.5)), (2, 8, manual(4, 0.1))]
    run.journal.events.clear()
    again = resume(run, run.loop.spec)
    again.loop.run()
    assert applied(again)[7:] == pytest.approx([stood + i / 4 * (0.1 - stood) for i in range(1, 5)] + [0.1])
    (event,) = again.journal.named("steering.applied")
    assert (event["step"], event["version"], event["replaced"]) == (8, 2, None)


def test_a_checkpoint_of_before_ramps_is_gone_on_from(tmp_path: Path) -> None:
    run = start(tmp_path, long_spec(steering={"mode": "manual"}))
    run.journal.wish = lambda: Wishes(pause=len(run.journal.records) == 4)
    run.loop.run()
    run.journal.wish = Wishes
    (state,) = (path for path in run.directory.glob("*4/state.json"))
    document = json.loads(state.read_text())
    assert document["ramp"] is None
    run.journal.log.append((2, 6, manual(4, 0.35)))
    loop = resume(run, run.loop.spec)
    loop.loop.state.applied = loop.loop.state.ramp = None
    loop.loop.run()
    assert applied(loop)[4:] == pytest.approx([0.75, 0.65, 0.55, 0.45, 0.35, 0.35, 0.35, 0.35])
