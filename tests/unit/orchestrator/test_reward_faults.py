"""What a step makes of rewards that fail: rows are left out for all objectives, or nothing is learned at all."""

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.journal import Wishes
from orchestrator.rollouts.collect import Sampled
from orchestrator.rollouts.turns import Turn
from orchestrator.spec import JobSpec
from rewards.base import RewardBatch, RewardDataError, RewardDeadlineError, RewardError
from tests.loop_fakes import FakeRewards, Run, World, make_spec, real_rewards, resume, start

Troubles = dict[str, dict[str, Any]]
ROWS = 12  # of a step
REFILL = {"zero_signal": {"name": "refill", "max_rounds": 2}}
LASTING = ["nan", "inf", "-inf", "huge", "text", "raise", "length"]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def spec_with(**hosting: Any) -> JobSpec:
    return make_spec(objectives=objectives_with(**hosting))


def objectives_with(**hosting: Any) -> list[dict[str, Any]]:
    hosting = {"backoff_s": 0.001, "deadline_s": 5.0, "batch_size": 4, **hosting}
    return [
        {"name": "accuracy", "reward": {"name": "math"}, "weight": 3.0},
        {"name": "brevity", "reward": {"name": "conciseness", "hosting": hosting}},
    ]


class Runs:
    """Starts loops over real pools, and closes these."""

    def __init__(self) -> None:
        self.pools: list[Any] = []

    def troubled(self, run: Run, spec: JobSpec, troubles: Troubles) -> Run:
        pool = real_rewards(spec, run.world, troubles)
        self.pools.append(pool)
        object.__setattr__(run.loop.parts, "rewards", pool)
        return run

    def start(self, directory: Path, spec: JobSpec, **troubles: dict[str, Any]) -> Run:
        return self.troubled(start(directory, spec), spec, troubles)

    def resume(self, run: Run, spec: JobSpec) -> Run:
        return self.troubled(resume(run, spec), spec, {})


@pytest.fixture
def runs() -> Iterator[Runs]:
    runs = Runs()
    yield runs
    for pool in runs.pools:
        pool.close()


def undisturbed(directory: Path, spec: JobSpec) -> Run:
    run = start(directory, spec)
    assert run.loop.run() == "succeeded"
    return run


# ------------------------------------------------------------------------------------------ rows left out


@pytest.mark.parametrize("how", LASTING)
def test_a_row_that_cannot_be_scored_counts_under_no_objective(tmp_path: Path, runs: Runs, how: str) -> None:
    run = runs.start(tmp_path, spec_with(), brevity={"how": how, "rows": [5], "version": 3})
    assert run.loop.run() == "succeeded"
    assert [record["rollouts_dropped"] for record in run] == [0, 0, 0, 1, 0, 0]
    (told,) = run.journal.named("reward.rows_dropped")
    assert (told["step"], told["reward"], told["objectives"]) == (4, "conciseness", ["brevity"])
    assert (told["rows"], told["count"], told["of"], told["attempts"]) == ([5], 1, ROWS, 2)
    rewards_PGK = run.strategy.given[3].rewards_PGK
    assert rewards_PGK.isnan().all(dim=2).nonzero().tolist() == [[1, 3]]  # row 5 was the second of its four
    assert [len(advantages_B) for advantages_B, _ in run.learner.learned] == [12, 12, 12, 11, 12, 12]
    assert [set(record["objectives"]) for record in run] == [{"accuracy", "brevity"}] * 6
    assert run.journal.records[4]["reward_health"]["conciseness"]["dropped"] == 1
    assert "0." not in json.dumps(told["problems"])  # a completion of this world is made of numbers below 1


def test_a_prompt_none_of_whose_rollouts_can_be_scored_is_left_out(tmp_path: Path, runs: Runs) -> None:
    spec = spec_with(max_bad_share=0.34)
    run = runs.start(tmp_path, spec, brevity={"how": "raise", "rows": [4, 5, 6, 7], "version": 3})
    assert run.loop.run() == "succeeded"
    assert (run.journal.records[4]["rollouts_dropped"], run.journal.records[4]["groups"]) == (4, 2)
    assert run.journal.named("reward.rows_dropped")[0]["rows"] == [4, 5, 6, 7]


def test_a_further_round_without_a_row_that_can_be_scored_does_not_stop_the_job(
    tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three rounds are asked for, as no spread is enough."""
    trouble: dict[str, Any] = {"how": "nan", "version": -1}
    rules = {"sampling": REFILL, "estimator": {"name": "gdpo", "std_floor": 0.5}, "steps": 1}
    spec = make_spec(objectives=objectives_with(max_bad_share=0.5), **rules)
    run = runs.start(tmp_path, spec, brevity=trouble)
    sample = run.loop.collector.sample

    def second_is_bad(step: int, turn: Turn, sampled: Sampled, *rest: Any) -> None:
        trouble["version"] = run.world.version if len(sampled.rounds) == 1 else -1
        sample(step, turn, sampled, *rest)

    monkeypatch.setattr(run.loop.collector, "sample", second_is_bad)
    assert run.loop.run() == "succeeded"
    (record,) = run
    assert (record["rollouts_dropped"], record["groups"]) == (ROWS, 6)
    assert run.journal.named("reward.rows_dropped")[0]["rows"] == list(range(ROWS, 2 * ROWS))


def test_a_stop_is_heard_while_a_reward_does_not_answer(tmp_path: Path, runs: Runs) -> None:
    spec = spec_with(deadline_s=600.0)
    expected = runs.start(tmp_path / "whole", spec)
    assert expected.loop.run() == "succeeded"
    run = runs.start(tmp_path / "run", spec, brevity={"how": "hang", "version": 1})  # in step 2
    asked: list[float] = []

    def wish() -> Wishes:
        asked.extend([time.monotonic()] * (len(run.journal.records) == 1))
        return Wishes(stop=bool(asked) and time.monotonic() > asked[0] + 0.3)  # it has begun

    run.journal.wish = wish
    assert run.loop.run() == "stopped"
    assert time.monotonic() - asked[0] < 60
    assert max(run.journal.registered) == 1
    run.journal.wish = Wishes
    again = runs.resume(run, spec)
    assert again.loop.run() == "succeeded"
    assert again.figures() == expected.figures()


@pytest.mark.parametrize("seed", range(3))
def test_the_order_in_which_rollouts_end_changes_no_figure(tmp_path: Path, runs: Runs, seed: int) -> None:
    troubles = {"how": "raise", "rows": [2], "version": 1}
    spec = spec_with(batch_size=1 + 3 * seed, replicas=1 + seed)
    found = []
    for name, order in (("in order", range), ("at random", lambda n: random.Random(seed).sample(range(n), n))):
        run = runs.start(tmp_path / name, spec, brevity=dict(troubles))
        run.engines.order = order
        assert run.loop.run() == "succeeded"
        found.append(run.figures())
    assert found[0] == found[1]


def test_rewards_in_a_pool_give_the_figures_of_rewards_at_the_end(tmp_path: Path, runs: Runs) -> None:
    spec = spec_with(batch_size=4)
    run = runs.start(tmp_path / "pool", spec)
    assert run.loop.run() == "succeeded"
    assert run.figures() == undisturbed(tmp_path / "end", spec).figures()
    health = run.journal.records[1]["reward_health"]
    assert set(health) == {"math", "conciseness"}
    assert health["math"]["calls"] in (1, 2)  # 12 rows, 8 together as they are small; what waits goes with the others
    assert health["conciseness"]["calls"] == 3
    assert 0 <= health["math"]["hidden_share"] <= 1


@pytest.mark.parametrize("rollout", [{"mode": "sync"}, {"mode": "overlapped"}, {"mode": "async", "max_staleness": 2}])
def test_a_step_has_the_calls_of_its_own_rewards(tmp_path: Path, runs: Runs, rollout: dict[str, Any]) -> None:
    """Its rounds may have ended before it began; an evaluation's are no step's."""
    spec = spec_with(batch_size=4)
    sizes = spec.rollout.model_dump(include={"prompts_per_step", "rollouts_per_prompt", "max_tokens"})
    spec = make_spec(objectives=objectives_with(batch_size=4), rollout={**sizes, **rollout})
    run = runs.start(tmp_path, spec)
    learn = run.learner.learn

    def slowly(*arguments: Any) -> Any:
        for begun in run.loop.collector.ahead._begun.values():  # these end meanwhile
            begun.result.result()
        return learn(*arguments)

    run.learner.learn = slowly  # type: ignore[method-assign]
    assert run.loop.run() == "succeeded"
    calls = [run.journal.records[step]["reward_health"]["conciseness"]["calls"] for step in run.journal.records]
    assert calls == [ROWS // 4] * spec.steps


# ----------------------------------------------------------------------------------- nothing is learned


@pytest.mark.parametrize("how", [*LASTING, "hang", "memory", "connection"])
def test_a_reward_that_fails_pauses_the_job_before_anything_is_learned(tmp_path: Path, runs: Runs, how: str) -> None:
    spec = spec_with(attempts=2, **({"deadline_s": 0.05} if how == "hang" else {}))
    run = runs.start(tmp_path / "run", spec, brevity={"how": how, "version": 3})
    assert run.loop.run() == "paused"
    assert run.journal.pauses == 1
    assert run.loop.reason is not None
    assert run.loop.reason.startswith("paused: objective 'brevity': ")
    assert sorted(run.journal.records) == [1, 2, 3]
    assert run.world.calls.count("learn") == 3
    assert json.loads((run.directory / "step-000003" / "learner.json").read_text()) == run.learner.skills
    (told,) = run.journal.named("reward.failed")
    assert (told["step"], told["reward"], told["objectives"]) == (4, "conciseness", ["brevity"])
    if how in LASTING:
        assert (told["of"], told["count"]) == (ROWS, len(told["rows"]))
        assert (told["retries"], told["failures"]) == (0, {})
    else:
        assert told["retries"] == 1
    again = runs.resume(run, spec)
    assert again.loop.run() == "succeeded"
    assert again.figures() == undisturbed(tmp_path / "whole", spec).figures()  # as if nothing had happened


def test_a_job_may_rather_fail(tmp_path: Path, runs: Runs) -> None:
    run = runs.start(tmp_path, spec_with(on_failure="fail"), brevity={"how": "nan", "version": 3})
    with pytest.raises(RewardDataError, match="objective 'brevity': 4 of 12 rows could not be scored"):
        run.loop.run()
    assert (sorted(run.journal.records), run.journal.pauses) == ([1, 2, 3], 0)
    assert len(run.journal.named("reward.failed")) == 1


@pytest.mark.parametrize("how", ["hang", "memory", "connection"])
def test_what_comes_back_in_time_costs_only_time(tmp_path: Path, runs: Runs, how: str) -> None:
    spec = spec_with(deadline_s=0.1 if how == "hang" else 5.0)
    run = runs.start(tmp_path / "run", spec, brevity={"how": how, "version": 3, "times": 2})
    assert run.loop.run() == "succeeded"
    assert run.figures() == undisturbed(tmp_path / "whole", spec).figures()
    (told,) = run.journal.named("reward.recovered")
    kind = "deadline" if how == "hang" else how
    assert (told["step"], told["failures"], told["retries"]) == (4, {kind: 2}, 2)


@pytest.mark.parametrize(("version", "committed"), [(0, []), (2, [1]), (6, [1, 2, 3, 4, 5])])
def test_a_step_whose_evaluation_fails_is_made_again(
    tmp_path: Path, runs: Runs, version: int, committed: list[int]
) -> None:
    """It was learned from and not committed: the job goes on from its checkpoint, not from a half-made step."""
    spec = spec_with()
    run = runs.start(tmp_path / "run", spec, brevity={"how": "raise", "version": version})
    assert run.loop.run() == "paused"
    assert sorted(run.journal.records) == committed
    assert set(run.journal.registered) <= {0, *committed}
    again = runs.resume(run, spec)
    assert again.loop.run() == "succeeded"
    assert again.figures() == undisturbed(tmp_path / "whole", spec).figures()


def test_the_prompts_of_a_step_that_was_not_made_come_again(tmp_path: Path, runs: Runs) -> None:
    run = runs.start(tmp_path, spec_with(), brevity={"how": "raise", "version": 1})
    run.loop.start()
    run.loop.step(1)
    before = run.loop.collector.state_dict()
    with pytest.raises(RewardError):
        run.loop.step(2)
    assert run.loop.collector.state_dict() == before


def test_a_deadline_is_of_one_call(tmp_path: Path, runs: Runs) -> None:
    spec = spec_with(deadline_s=0.1, attempts=1, on_failure="fail")
    run = runs.start(tmp_path, spec, brevity={"how": "hang", "version": 1})
    with pytest.raises(RewardDeadlineError, match=r"objective 'brevity': no scores within 0\.1 s"):
        run.loop.run()


# ------------------------------------------------------------------------------------- missing on purpose

RULES: dict[str, dict[str, Any]] = {
    "gradient": {"weighting": {"name": "gradient"}, "gramian": {"mode": "sketch", "average": 0.5}},
    "upgrad": {"weighting": {"name": "gramian:upgrad"}, "estimator": {"name": "softmin"}},
    "covariance": {"weighting": {"name": "covariance"}, "estimator": {"name": "grpo"}},
    "saw": {"weighting": {"name": "saw"}, "estimator": {"name": "hvo"}},
    "hypervolume": {
        "weighting": {"name": "hypervolume"},
        "estimator": {"name": "cond_gdpo", "condition": "accuracy", "at_least": 0.3},
    },
    "knapsack": {"sampling": {"budget": {"name": "knapsack", "objective": "accuracy", "success_at": 0.35}}},
    "refill": {"sampling": REFILL},
    "copo": {"sampling": {"zero_signal": {"name": "copo"}}},
    "gated": {"estimator": {"name": "reinforce"}},
}  # fmt: skip
TRANSFORMS: dict[str, dict[str, Any]] = {
    "gradient": {"name": "zscore"},
    "upgrad": {"name": "lsc"},
    "saw": {"name": "calibrate"},
    "refill": {"name": "clip", "hi": 0.5},
}


@pytest.mark.parametrize("nth", [1, 2], ids=["to no prompt", "to half"])
@pytest.mark.parametrize("name", RULES)
def test_an_objective_that_does_not_apply_never_reaches_the_learner(
    tmp_path: Path, runs: Runs, name: str, nth: int
) -> None:
    """The fake learner refuses what is not finite, and the fake journal NaN in a record."""
    brevity: dict[str, Any] = {"name": "brevity", "reward": {"name": "conciseness"}}
    if name in TRANSFORMS:
        brevity["transform"] = TRANSFORMS[name]
    if name == "gated":
        brevity["gate"] = {"objective": "accuracy", "at_least": 0.3}
    accuracy = {"name": "accuracy", "reward": {"name": "math"}, "weight": 3.0}
    spec = make_spec(steps=4, objectives=[accuracy, brevity], **RULES[name])
    run = runs.start(tmp_path, spec, brevity={"how": "none", "nth": nth})
    assert run.loop.run() == "succeeded"
    means = [record["objectives"]["brevity"]["mean"] for record in run]
    assert all((mean is None) is (nth == 1) for mean in means)
    assert all(record["rollouts_dropped"] == 0 for record in run)
    assert all(sum(record["weights"]["applied"].values()) == pytest.approx(1) for record in run)
    if nth == 1:  # the objective has no part in what is learned
        for step, (_, parts) in enumerate(run.learner.learned):
            assert parts is None or torch.equal(parts.advantages_BK[:, 1], torch.zeros(12)), step


def test_guardrails_do_not_judge_an_objective_that_applies_to_nothing(tmp_path: Path, runs: Runs) -> None:
    spec = make_spec(guardrails=[{"metric": "objectives.brevity.mean", "min": 0.01, "action": "alert"}], steps=2)
    run = runs.start(tmp_path, spec, brevity={"how": "none", "nth": 1})
    assert run.loop.run() == "succeeded"
    assert run.journal.named("guardrail.breached") == []


def test_a_fake_world_is_scored_as_a_real_pool_scores_it() -> None:
    """The seam of the other tests."""
    spec, world = make_spec(), World()
    pool = real_rewards(spec, world, {})
    batch = RewardBatch(
        prompts=("p",) * 2, completions=("0.5 0.25", "0.125 1.0"), answers=(None,) * 2, completion_tokens=(1,) * 2,
        truncated=(False,) * 2, max_tokens=9,
    )  # fmt: skip
    assert pool.score(batch).scores == FakeRewards(world).score(batch)
    pool.close()
