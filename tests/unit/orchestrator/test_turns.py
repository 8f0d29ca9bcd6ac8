"""Which prompts a step gets: every prompt once, whoever is put off, and whatever is interrupted or taken up again."""

import math
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.rollouts.prompts import PromptOrder
from orchestrator.rollouts.turns import Turn, Turns
from orchestrator.spec import JobSpec
from orchestrator.spec_errors import SpecError
from policies.types import Rollout
from tests.loop_fakes import Killed, Run, make_spec, resume, start

ROLLOUT = {"prompts_per_step": 3, "rollouts_per_prompt": 4, "max_tokens": 9}


def spec_of(mode: str = "sync", over_sampling: float = 0.67, *, steps: int = 12, **sections: Any) -> JobSpec:
    return make_spec(
        steps=steps,
        rollout={**ROLLOUT, "mode": mode},
        sampling={"tail": {"name": "defer", "over_sampling": over_sampling}, **sections.pop("sampling", {})},
        **sections,
    )


def learned_from(run: Run) -> list[int]:
    """Prompts in the order in which steps learned from them, by their place in the train split."""
    return [
        rollout.prompt_tokens[1] - 1
        for rollouts in run.learner.learned_from
        for rollout in rollouts[:: ROLLOUT["rollouts_per_prompt"]]
    ]


# --------------------------------------------------------------------- the order


@settings(deadline=None)
@given(st.integers(1, 6), st.sampled_from([0.0, 0.25, 1.0, 3.0]), st.randoms(use_true_random=False))
def test_every_prompt_has_its_turn_once_whatever_is_put_off_or_comes_to_nothing(
    prompts: int, over_sampling: float, chance: Random
) -> None:
    asked = prompts + math.ceil(prompts * over_sampling)
    turns = Turns(PromptOrder(11, seed=3), prompts=prompts, asked=asked)
    done: list[int] = []
    for _ in range(40):
        taken = [turns.first(), *(turns.further(chance.randint(1, 4)) for _ in range(chance.randint(0, 2)))]
        if chance.random() < 0.3:
            turns.give_back(taken)
            continue
        if chance.random() < 0.3:  # another process goes on
            state = turns.state_dict()
            turns = Turns(PromptOrder(11, seed=3), prompts=prompts, asked=asked)
            turns.load_state_dict(state)
        left = chance.sample(list(taken[0].index), chance.randint(0, len(taken[0].index) - taken[0].enough))
        done += [prompt for turn in taken for prompt in turn.index]
        for prompt in left:
            done.remove(prompt)
        turns.put_off(left)
    state = turns.state_dict()
    assert sorted(done + turns.waiting + state["again"]) == sorted(PromptOrder(11, seed=3).take(state["position"]))


def test_what_was_put_off_gets_a_step_of_its_own_that_waits_for_all() -> None:
    turns = Turns(PromptOrder(100, seed=0), prompts=4, asked=6)
    for _ in range(2):
        turn = turns.first()
        assert (len(turn.index), turn.enough, turn.was_put_off) == (6, 4, False)
        turns.put_off(turn.index[4:])
    waiting = list(turns.waiting)
    assert turns.first() == Turn(index=waiting, enough=4, was_put_off=True)
    assert turns.waiting == []
    assert not turns.first().was_put_off


def test_a_step_that_came_to_nothing_gets_the_same_prompts_again() -> None:
    turns = Turns(PromptOrder(100, seed=0), prompts=3, asked=3)
    taken = [turns.first(), turns.first(), turns.further(2)]
    turns.give_back(taken)
    assert [turns.first(), turns.first(), turns.further(2)] == taken


# ----------------------------------------------------------------------- the loop


@pytest.mark.parametrize("at_once", [1, 9])
@pytest.mark.parametrize("zero_signal", ["keep", "drop"])
@pytest.mark.parametrize("mode", ["sync", "overlapped"])
def test_a_run_learns_from_those_that_end_first_and_from_the_others_later(
    tmp_path: Path, mode: str, zero_signal: str, at_once: int
) -> None:
    """Also from those that end together with the last that is needed."""
    run = start(tmp_path, spec_of(mode, sampling={"zero_signal": {"name": zero_signal}}))
    run.engines.at_once = at_once
    if at_once > 1:
        run.engines.order = range
    assert run.loop.run() == "succeeded"
    put_off = [record["prompts_put_off"] for record in run]
    assert all(record["groups"] >= 3 for record in run)
    assert max(put_off) > 0
    assert 0 in put_off  # a step of those that were put off
    waiting = run.loop.collector.turns.waiting
    assert [record["prompts_waiting"] for record in run][-1] == len(waiting)
    order = PromptOrder(10, seed=run.loop.spec.seed).take(run.loop.parts.order.position)
    assert sorted(learned_from(run) + waiting) == sorted(order)


def test_nobody_is_put_off_unless_the_spec_says_so(tmp_path: Path) -> None:
    run = start(tmp_path, make_spec(steps=4, rollout=ROLLOUT))
    run.loop.run()
    assert [(record["prompts_put_off"], record["prompts_waiting"]) for record in run] == [(0, 0)] * 4


@pytest.mark.parametrize(("where", "step"), [("before commit", 2), ("after commit", 5), ("after register", 3)])
def test_killed_the_run_continues_with_the_same_prompts(tmp_path: Path, where: str, step: int) -> None:
    expected = start(tmp_path / "whole", spec_of())
    expected.loop.run()
    run = start(tmp_path / "killed", spec_of())
    run.journal.die_at = (where, step)
    with pytest.raises(Killed):
        run.loop.run()
    run = resume(run, spec_of())
    assert run.loop.run() == "succeeded"
    assert run.figures() == expected.figures()


def test_prompts_of_refills_are_not_trained_again_after_a_resume(tmp_path: Path) -> None:
    """A refill takes prompts that come after those which were begun ahead: these go first again, and no others."""
    spec = make_spec(
        steps=8,
        rollout={**ROLLOUT, "mode": "overlapped"},
        sampling={"zero_signal": {"name": "refill", "max_rounds": 2}},
        evaluation={"every": 20},
    )

    def dull(run: Run) -> None:
        """Some prompts' rollouts are all worth the same, so that steps are refilled."""
        sample = run.engines.sample

        def same(request: Any) -> Rollout:
            rollout = sample(request)
            return replace(rollout, text="0.5 0.5") if request.prompt_tokens[1] in {2, 5, 7} else rollout

        run.engines.sample = same  # type: ignore[method-assign]

    run = start(tmp_path, spec)
    dull(run)
    run.journal.die_at = ("after commit", 5)
    with pytest.raises(Killed):
        run.loop.run()
    again = resume(run, spec)
    dull(again)
    state = again.loop.collector.turns.state_dict()
    kept = again.loop.state.step
    committed = sum(record["groups"] for step, record in again.journal.records.items() if step <= kept)
    assert state["position"] - len(state["again"]) == committed
    assert again.loop.run() == "succeeded"


# ----------------------------------------------------------------------- the spec


@pytest.mark.parametrize(
    ("tail", "mode", "says"),
    [
        ({"name": "defer"}, "async", "sampling.tail: in the mode 'async' nobody waits"),
        ({"name": "defer", "over_sampling": 0}, "sync", "over_sampling"),
        ({"name": "defer", "over_sampling": 5}, "sync", "over_sampling"),
        ({"name": "deffer"}, "sync", "did you mean 'defer'"),
        ({"name": "wait", "over_sampling": 0.5}, "sync", "over_sampling"),
    ],
)
def test_what_a_spec_may_not_say(tail: dict[str, Any], mode: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        make_spec(sampling={"tail": tail}, rollout={**ROLLOUT, "mode": mode})
