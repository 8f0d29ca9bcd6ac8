"""Steps that are sampled ahead: how stale rollouts get, what a step's steering decides, and what a resume does."""

import copy
import threading
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.figures import staleness_figures
from orchestrator.journal import Wishes
from orchestrator.rollouts.ahead import Ahead, FirstRound
from orchestrator.rollouts.collect import Sampled
from orchestrator.rollouts.prompts import PromptOrder
from orchestrator.rollouts.scoring import Rolled, Stage
from orchestrator.rollouts.turns import Turn
from orchestrator.spec import JobSpec
from orchestrator.spec_errors import SpecError
from orchestrator.steering import Steering
from policies.types import Rollout
from rewards.base import RewardFailedError
from tests.loop_fakes import FakeEngines, Run, make_spec, resume, start

ROLLOUT = {"prompts_per_step": 3, "rollouts_per_prompt": 4, "max_tokens": 9}


def spec_of(mode: str, max_staleness: int = 1, *, steps: int = 8, **sections: Any) -> JobSpec:
    return make_spec(steps=steps, rollout={**ROLLOUT, "mode": mode, "max_staleness": max_staleness}, **sections)


def next_prompts(run: Run) -> int:
    """How many prompts come before those that the next step gets."""
    turns = copy.deepcopy(run.loop.collector.turns)
    order = PromptOrder(turns.order.size, seed=turns.order.seed).take(100)
    first = list(turns.first().index)
    return next(i for i in range(100) if order[i : i + len(first)] == first)


def trained(directory: Path, spec: JobSpec) -> Run:
    run = start(directory, spec)
    assert run.loop.run() == "succeeded"
    return run


def staleness(run: Run) -> list[tuple[float, float]]:
    return [(record["staleness"]["mean"], record["staleness"]["max"]) for record in run]


# -------------------------------------------------------------------- the bound


@given(st.integers(0, 6), st.integers(1, 12), st.randoms(use_true_random=False))
def test_no_step_begins_before_its_rollouts_would_be_fresh_enough(most: int, last: int, chance: Random) -> None:
    """Whatever the order of syncs and takes; every step begins once, and in order."""
    ahead, begun, served, taken = Ahead(most, last), [], 0, 0
    while taken < last:
        for step in ahead.due(served, taken):
            assert step - 1 - served <= most
            begun.append(step)
            ahead.put(step, FirstRound(turn=Turn(index=(step,), enough=1), counts=(1,)))
        if taken == served and chance.random() < 0.5:
            taken += 1
            found = ahead.take(taken)
            assert found is None or found.turn.index == (taken,)
        elif served < taken:
            served += 1
    assert begun == sorted(set(begun))
    assert max(begun, default=0) <= last
    assert ahead.turns == []


@pytest.mark.parametrize(("mode", "most"), [("overlapped", 1), ("async", 1), ("async", 3)])
def test_rollouts_are_as_stale_as_the_mode_allows_and_no_staler(tmp_path: Path, mode: str, most: int) -> None:
    run = trained(tmp_path, spec_of(mode, most))
    found = staleness(run)
    assert found[0] == (0, 0)
    assert max(worst for _, worst in found) <= most
    if mode == "overlapped":
        assert found[1:] == [(1, 1)] * 7
    assert [record["step"] for record in run] == list(range(1, 9))


def test_staleness_is_counted_token_by_token() -> None:
    rollout = Rollout(
        prompt_tokens=(1,), tokens=(2, 3, 4), logprobs=(0.0,) * 3, text="", truncated=False, policy_version=4,
        version_spans=((4, 1), (6, 2)),
    )  # fmt: skip
    assert rollout.staleness(6) == [(2, 1), (0, 2)]
    whole = replace(rollout, version_spans=())
    assert whole.staleness(6) == [(2, 3)]
    assert staleness_figures([rollout, whole], 6) == {"mean": 8 / 6, "max": 2}
    assert staleness_figures([replace(whole, tokens=(), logprobs=())], 6) == {"mean": 0, "max": 0}


def test_a_mode_that_there_is_not() -> None:
    with pytest.raises(SpecError, match="overlapped"):
        spec_of("overlaped")
    with pytest.raises(SpecError, match="max_staleness"):
        spec_of("async", -1)


# ------------------------------------------------------------------- the figures


def test_a_slow_judge_is_told_as_scoring_and_not_as_rollouts(tmp_path: Path) -> None:
    """Of a round that was begun ahead, as of any other."""
    loop = start(tmp_path, spec_of("overlapped")).loop

    def roll_out(stage: Stage) -> Rolled:
        with stage("rollout"):
            time.sleep(0.1)
        with stage("score"):
            time.sleep(0.3)
            raise RewardFailedError("accuracy", "no answer")

    begun = FirstRound(turn=Turn(index=(0,), enough=1), counts=(1,))
    loop.clock.begin()
    with pytest.raises(RewardFailedError):
        loop.collector.take(begun.begin(roll_out), Sampled(), lambda: False)
    timings = loop.clock.read()
    assert timings["rollout"] > 0.05
    assert timings["score"] > 0.1


def test_with_nothing_ahead_async_is_sync(tmp_path: Path) -> None:
    assert trained(tmp_path / "a", spec_of("async", 0)).figures() == trained(tmp_path / "s", spec_of("sync")).figures()


def test_overlapped_runs_give_the_same_figures_each_time(tmp_path: Path) -> None:
    """A batch is rolled out as a whole under one policy, so that no clock decides what is in it."""
    one, other = (trained(tmp_path / name, spec_of("overlapped")).figures() for name in "ab")
    assert one == other
    assert one != trained(tmp_path / "sync", spec_of("sync")).figures()


def test_every_prompt_is_sampled_in_the_order_of_the_sync_mode(tmp_path: Path) -> None:
    def seeds(run: Run) -> list[list[int | None]]:
        batches = [
            sorted(r.seed for r in batch if r.seed is not None) for batch in run.engines.batches if len(batch) == 12
        ]
        return sorted(batches)

    assert seeds(trained(tmp_path / "a", spec_of("async", 2))) == seeds(trained(tmp_path / "s", spec_of("sync")))


def test_the_next_step_is_rolled_out_while_one_is_learned_from(tmp_path: Path) -> None:
    """The learner's update does not end before the next step's rollouts have begun."""
    run = start(tmp_path, spec_of("overlapped", steps=3))
    begun = {step: threading.Event() for step in range(1, 4)}
    gather, learn = run.engines.gather, run.learner.learn
    seen = []

    def noticed(requests: Any, *rest: Any) -> Any:
        if len(requests) == 12:
            next(event for event in begun.values() if not event.is_set()).set()
        return gather(requests, *rest)

    def waiting(*args: Any) -> Any:
        seen.append(begun[min(len(seen) + 2, 3)].wait(5))
        return learn(*args)

    run.engines.gather, run.learner.learn = noticed, waiting  # type: ignore[method-assign]
    assert run.loop.run() == "succeeded"
    assert seen == [True] * 3


# ---------------------------------------------------------------- steering, faults


@pytest.mark.parametrize("mode", ["overlapped", "async"])
def test_a_steer_takes_effect_at_exactly_its_step(tmp_path: Path, mode: str) -> None:
    """Though that step's rollouts were begun before it: rewards are kept apart, and weighed at the step's own turn."""
    run = start(tmp_path, spec_of(mode, 3, sampling={"zero_signal": {"name": "drop"}}))
    steered = Steering(mode="manual", blend=0.5, bounds={}, weights={"accuracy": 0.0, "brevity": 1.0})
    commit = run.journal.commit

    def steer_at_commit(record: Any) -> None:
        commit(record)
        if record["step"] == 3:
            run.journal.log.append((2, 5, steered))

    run.journal.commit = steer_at_commit  # type: ignore[method-assign]
    run.loop.run()
    applied = [record["weights"]["applied"]["brevity"] for record in run]
    assert applied[:4] == pytest.approx([0.25] * 4)
    assert applied[4:] == pytest.approx([1.0] * 4)


@pytest.mark.parametrize("mode", ["overlapped", "async"])
def test_a_resume_repeats_no_committed_step_and_loses_no_prompt(tmp_path: Path, mode: str) -> None:
    """What was begun ahead is begun again, from the same prompts with the same seeds, under the newest weights."""
    spec = spec_of(mode, 2, evaluation={"every": 20})
    run = start(tmp_path, spec)
    run.journal.die_at = ("after commit", 5)
    with pytest.raises(BaseException, match="after commit"):
        run.loop.run()
    before = dict(run.journal.records)
    again = resume(run, spec)
    assert again.loop.state.step == 3
    assert next_prompts(again) == 3 * 3  # of three steps with three prompts each
    assert again.loop.run() == "succeeded"
    assert again.journal.records[4]["staleness"] == {"mean": 0, "max": 0}
    assert {step: before[step] for step in (1, 2, 3)} == {step: again.journal.records[step] for step in (1, 2, 3)}
    assert list(again.journal.records) == list(range(1, 9))


def test_what_an_engine_says_in_a_round_ahead_is_heard_at_its_step(tmp_path: Path) -> None:
    run = start(tmp_path, spec_of("overlapped"))
    gather = run.engines.gather

    def failing(requests: Any, *rest: Any) -> Any:
        if len(requests) == 12 and len([b for b in run.engines.batches if len(b) == 12]) == 3:
            raise RuntimeError("the engines are gone")
        return gather(requests, *rest)

    run.engines.gather = failing  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the engines are gone"):
        run.loop.run()
    assert max(run.journal.records) == 3


def test_a_reward_that_fails_ahead_pauses_before_its_step_and_goes_on_with_its_prompts(tmp_path: Path) -> None:
    spec = spec_of("async", 2)
    run = start(tmp_path, spec)
    score, calls = run.rewards.score, [0]

    def failing(batch: Any) -> Any:
        if len(batch) == 12:
            calls[0] += 1
            if calls[0] >= 4:
                raise RewardFailedError("accuracy", "no answer")
        return score(batch)

    run.rewards.score = failing  # type: ignore[method-assign]
    assert run.loop.run() == "paused"
    done = run.loop.state.step
    assert done == 3
    assert next_prompts(run) == 3 * done
    again = resume(run, spec)
    assert again.loop.run() == "succeeded"
    assert list(again.journal.records) == list(range(1, 9))


def test_a_stop_is_heard_while_a_round_ahead_is_waited_for(tmp_path: Path) -> None:
    spec = spec_of("overlapped", steps=5)
    run = start(tmp_path, spec)
    score, calls, goes_on = run.rewards.score, [0], threading.Event()

    def slow(batch: Any) -> Any:
        calls[0] += len(batch) == 12
        if calls[0] == 4 and len(batch) == 12:
            goes_on.wait(60)
        return score(batch)

    asked: list[float] = []

    def wish() -> Wishes:
        asked.extend([time.monotonic()] * (len(run.journal.records) == 3))
        return Wishes(stop=bool(asked) and time.monotonic() > asked[0] + 0.3)  # step 4 has begun

    run.rewards.score, run.journal.wish = slow, wish  # type: ignore[method-assign]
    try:
        assert run.loop.run() == "stopped"
        assert not goes_on.is_set()
        assert (run.loop.state.step, max(run.journal.registered), next_prompts(run)) == (3, 3, 3 * 3)
    finally:
        goes_on.set()
    run.journal.wish = Wishes
    again = resume(run, spec)
    assert again.loop.run() == "succeeded"
    assert list(again.journal.records) == [1, 2, 3, 4, 5]


def test_a_refill_takes_further_rounds_at_the_steps_own_turn(tmp_path: Path) -> None:
    spec = spec_of("overlapped", sampling={"zero_signal": {"name": "refill", "max_rounds": 2}})
    run = start(tmp_path, spec)
    sample = FakeEngines.sample
    flat = {1, 4}

    def same(request: Any) -> Rollout:
        rollout = sample(run.engines, request)
        return rollout if request.prompt_tokens[1] not in flat else Rollout(
            prompt_tokens=rollout.prompt_tokens, tokens=(1,), logprobs=(0.0,), text="0.5 0.5", truncated=False,
            policy_version=rollout.policy_version,
        )  # fmt: skip

    run.engines.sample = same  # type: ignore[method-assign]
    assert run.loop.run() == "succeeded"
    assert all(record["groups_learned"] == 3 for record in run)
    assert any(record["groups"] > 3 for record in run)
