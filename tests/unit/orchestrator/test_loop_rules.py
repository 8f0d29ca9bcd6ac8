"""What the rules change in a step, and that a killed run goes on with all of their state."""

import dataclasses
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.journal import Wishes
from orchestrator.spec import JobSpec
from orchestrator.steering import Steering, apply_directions
from orchestrator.why import reasons
from policies.estimators import Estimator, Gdpo, Rloo
from policies.statistics import whiten
from policies.types import Rollout, RolloutRequest, Weights
from tests.loop_fakes import Killed, Run, make_spec, resume, start

ACCURACY: dict[str, Any] = {"name": "accuracy", "reward": {"name": "math"}, "weight": 3.0}
BREVITY: dict[str, Any] = {"name": "brevity", "reward": {"name": "conciseness"}, "weight": 1.0}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def objectives(**changes: Any) -> list[dict[str, Any]]:
    return [ACCURACY | changes.get("accuracy", {}), BREVITY | changes.get("brevity", {})]


CASES: dict[str, dict[str, Any]] = {
    "sketch": {"weighting": {"name": "gradient"}, "gramian": {"mode": "sketch", "average": 0.5}},
    "step_response": {"weighting": {"name": "gradient"}, "gramian": {"mode": "step_response", "average": 0.9}},
    "gramian": {"weighting": {"name": "gramian:upgrad"}, "estimator": {"name": "softmin"}},
    "credit": {"weighting": {"name": "covariance"}},
    "lagrangian": {
        "weighting": {"name": "lagrangian", "form": "equality"},
        "objectives": objectives(brevity={"target": {"op": ">=", "value": 0.4}}),
    },
    "saw": {"weighting": {"name": "saw"}, "estimator": {"name": "dr_grpo"}},
    "hv_gradient": {"weighting": {"name": "hv_gradient"}, "objectives": objectives(accuracy={"reference": 0.2})},
    "knapsack": {"sampling": {"budget": {"name": "knapsack", "objective": "accuracy", "success_at": 0.35}}},
    "refill": {"sampling": {"zero_signal": {"name": "refill", "max_rounds": 2}}},
    "copo": {"sampling": {"zero_signal": {"name": "copo"}}, "weighting": {"name": "gradient"}},
    "transforms": {
        "objectives": objectives(accuracy={"transform": {"name": "zscore"}}, brevity={"transform": {"name": "lsc"}})
    },
}


def whole(directory: Path, spec: JobSpec) -> Run:
    run = start(directory, spec)
    assert run.loop.run() == "succeeded"
    return run


@pytest.mark.parametrize("case", CASES)
def test_killed_the_run_continues_with_the_same_figures(tmp_path: Path, case: str) -> None:
    spec = make_spec(**CASES[case])
    expected = whole(tmp_path / "whole", spec)
    for where, step in (("before commit", 2), ("after commit", 5), ("after register", 3)):
        run = start(tmp_path / where, spec)
        run.journal.die_at = (where, step)
        with pytest.raises(Killed):
            run.loop.run()
        run = resume(run, spec)
        assert run.loop.run() == "succeeded"
        assert run.figures() == expected.figures(), (where, step)
        assert run.journal.fronts[-1] == expected.journal.fronts[-1]


@pytest.mark.parametrize("mode", ["exact", "sketch", "last_block", "step_response"])
def test_what_is_measured_during_an_update_is_used_at_the_next(tmp_path: Path, mode: str) -> None:
    run = whole(tmp_path, make_spec(weighting={"name": "gradient"}, gramian={"mode": mode}, steps=3))
    seen = [(stats.gramian_KK is not None) or (stats.influence_K is not None) for stats in run.strategy.given]
    assert seen == [mode == "exact", True, True]
    assert ("gramian" in run.world.calls) is (mode == "exact")
    assert (run.strategy.given[-1].influence_K is not None) is (mode == "step_response")


def test_measurements_are_averaged(tmp_path: Path) -> None:
    gradient = {"name": "gradient"}
    specs = [
        make_spec(weighting={"name": "saw"}),
        make_spec(weighting=gradient),
        make_spec(weighting=gradient, gramian={"average": 0.5}),
    ]
    runs = [whole(tmp_path / str(i), spec) for i, spec in enumerate(specs)]
    without, plain, averaged = ([record["gramian"] for record in run] for run in runs)
    assert without == [None] * 6
    assert averaged[0] == plain[0]
    first, second = torch.tensor(plain[0]), torch.tensor(runs[2].learner.measured[1])
    torch.testing.assert_close(torch.tensor(averaged[1]), 0.5 * first + 0.5 * second)


def test_an_objective_that_is_to_fall_changes_sign(tmp_path: Path) -> None:
    target = {"op": "<=", "value": 0.1}  # far below where the policy is
    spec = make_spec(
        weighting={"name": "lagrangian", "eta": 1.0}, objectives=objectives(brevity={"target": target}), steps=2
    )
    run = whole(tmp_path, spec)
    record = run.journal.records[2]
    assert record["falling"] == ["brevity"]
    assert record["weights"]["applied"]["brevity"] > 0
    rewards_PGK = run.strategy.given[1].rewards_PGK
    weights_K = torch.tensor([record["weights"]["applied"][name] for name in ("accuracy", "brevity")])
    expected = Gdpo()(rewards_PGK * torch.tensor([1.0, -1.0]), weights_K).flatten()
    torch.testing.assert_close(run.learner.learned[1][0], expected)
    means = {name: record["objectives"][name]["mean"] for name in ("accuracy", "brevity")}
    assert record["total"] == pytest.approx(
        float(weights_K[0]) * means["accuracy"] - float(weights_K[1]) * means["brevity"]
    )


def test_a_knapsack_moves_rollouts_between_prompts_and_keeps_their_sum(tmp_path: Path) -> None:
    budget = {"name": "knapsack", "objective": "accuracy", "success_at": 0.3, "min_rollouts": 2}
    run = whole(tmp_path, make_spec(sampling={"budget": budget}, steps=12))
    trained = [batch for batch in run.engines.batches if len(batch) == 12]
    assert len(trained) == 12  # every step has its 3 x 4 rollouts
    ragged, rewards_PGK = next(
        (i, stats.rewards_PGK) for i, stats in enumerate(run.strategy.given) if stats.rewards_PGK.isnan().any()
    )
    counts = (~rewards_PGK.isnan().all(dim=2)).sum(dim=1).tolist()
    assert sum(counts) == 12
    assert min(counts) >= 2
    expected = Gdpo()(rewards_PGK, torch.tensor([0.75, 0.25]))
    flat = torch.cat([expected[p, :count] for p, count in enumerate(counts)])
    torch.testing.assert_close(run.learner.learned[ragged][0], flat)


def quieten(run: Run, silent: Callable[[int], bool] = lambda row: row % 2 == 0) -> None:
    """Prompts of these rows, whose rollouts are then all worth the same."""
    sample = run.engines.sample

    def quiet(request: RolloutRequest) -> Rollout:
        if request.seed is not None and silent(request.prompt_tokens[1]):
            return dataclasses.replace(sample(request), text="0.5 0.5")
        return sample(request)

    run.engines.sample = quiet  # type: ignore[method-assign]


@pytest.mark.parametrize(("rule", "most_rounds"), [("keep", 1), ("drop", 1), ("refill", 4)])
def test_groups_without_signal(tmp_path: Path, rule: str, most_rounds: int) -> None:
    run = start(tmp_path, make_spec(sampling={"zero_signal": {"name": rule}}))
    quieten(run)
    assert run.loop.run() == "succeeded"
    for record, (advantages_B, _), stats in zip(run, run.learner.learned, run.strategy.given, strict=True):
        assert record["tokens"] > 0
        assert 3 <= record["groups"] <= 3 * most_rounds
        assert len(advantages_B) == 4 * record["groups_learned"]
        assert stats.rewards_PGK.shape[0] == record["groups"]  # figures are of all that was sampled
        if rule == "keep":
            assert record["groups"] == record["groups_learned"] == 3
        else:
            assert (advantages_B.reshape(-1, 4).abs().sum(dim=1) > 0.1).all()
    if rule == "refill":
        assert [record["groups_learned"] for record in run] == [3] * 6
        assert any(record["groups"] > 3 for record in run)
        seeds = [request.seed for batch in run.engines.batches for request in batch if request.max_tokens == 9]
        trained = [seed for seed in seeds if seed is not None]
        assert len(set(trained)) >= 4 * sum(record["groups"] for record in run)


def test_groups_whose_objectives_cancel_have_signal(tmp_path: Path) -> None:
    """Trap 6: 0.75 accuracy + 0.25 brevity is the same in all their rollouts, and each of the two is not."""
    run = start(tmp_path, make_spec(sampling={"zero_signal": {"name": "drop"}}))
    quieten(run, lambda row: row % 3 == 0)
    sample = run.engines.sample

    def cancelling(request: RolloutRequest) -> Rollout:
        rollout = sample(request)
        if request.seed is None or request.prompt_tokens[1] % 3 != 1:
            return rollout
        accuracy = float(rollout.text.split()[0])
        return dataclasses.replace(rollout, text=f"{accuracy!r} {1.5 - 3 * accuracy!r}")

    run.engines.sample = cancelling  # type: ignore[method-assign]
    run.loop.run()
    trained = [batch for batch in run.engines.batches if len(batch) == 12]
    rows = [[request.prompt_tokens[1] for request in batch[::4]] for batch in trained]
    loud = [sum(row % 3 > 0 for row in found) for found in rows]
    assert any(row % 3 == 1 for found in rows for row in found)
    assert [record["groups_learned"] for record in run] == loud
    for advantages_B, _ in run.learner.learned:
        assert (advantages_B.reshape(-1, 4).abs().sum(dim=1) > 0.1).all()


@pytest.mark.parametrize(("faithful", "estimator"), [(False, Gdpo), (True, Gdpo), (True, Rloo)])
def test_the_multiplier_acts_where_no_normalisation_cancels_it(
    tmp_path: Path, faithful: bool, estimator: type[Estimator]
) -> None:
    """Trap 1: on the advantages; as published it is on the rewards, where only rloo feels it."""
    name = estimator.__name__.lower()
    spec = make_spec(weighting={"name": "hypervolume", "faithful": faithful}, estimator={"name": name})
    run = whole(tmp_path, spec)
    multipliers = [record["multiplier"] for record in run]
    assert any(abs(multiplier - 1) > 0.1 for multiplier in multipliers)
    weights_K = torch.tensor([0.75, 0.25])
    for m, stats, (advantages_B, _) in zip(multipliers, run.strategy.given, run.learner.learned, strict=True):
        plain_B = estimator()(stats.rewards_PGK, weights_K).flatten()
        cancelled = faithful and estimator is Gdpo
        torch.testing.assert_close(advantages_B, plain_B if cancelled else m * plain_B, atol=1e-5, rtol=1e-5)


def test_pama_learns_from_the_advantages_of_the_objective_that_has_least_to_gain(tmp_path: Path) -> None:
    """Trap 7: every rollout has its own, not the closed form's one number for all."""
    run = whole(tmp_path, make_spec(weighting={"name": "pama"}))
    for record, stats, (advantages_B, _) in zip(run, run.strategy.given, run.learner.learned, strict=True):
        advantages_PGK = Gdpo().per_objective(stats.rewards_PGK)
        k = int(advantages_PGK.clamp_min(0).mean(dim=(0, 1)).argmin())
        assert list(record["weights"]["applied"].values()) == [float(k == 0), float(k == 1)]
        torch.testing.assert_close(advantages_B, whiten(advantages_PGK[:, :, k]).flatten().float())


@pytest.mark.parametrize(
    ("steering", "ceiling"),
    [({"mode": "blend", "blend": 0.3}, 1.0), ({"mode": "manual"}, 1.0), ({"mode": "auto"}, 0.4)],
)
def test_the_total_is_by_the_weights_that_were_applied(
    tmp_path: Path, steering: dict[str, Any], ceiling: float
) -> None:
    """Trap 9: neither by the strategy's own nor, but in mode manual, by the preference."""
    points = [{"step": 0, "weights": {"accuracy": 0.9, "brevity": 0.1}}]
    run = whole(
        tmp_path,
        make_spec(
            weighting={"name": "schedule", "points": points},
            objectives=objectives(accuracy={"bounds": [0.0, ceiling]}),
            steering=steering,
        ),
    )
    accuracy = {"blend": 0.7 * 0.9 + 0.3 * 0.75, "manual": 0.75, "auto": 0.4}[steering["mode"]]
    for record in run:
        means = [record["objectives"][name]["mean"] for name in ("accuracy", "brevity")]
        assert record["total"] == pytest.approx(accuracy * means[0] + (1 - accuracy) * means[1])
        assert abs(means[0] - means[1]) > 0.1  # other weights, another total


def test_copo_speaks_for_groups_without_signal(tmp_path: Path) -> None:
    found = {}
    for rule in ("keep", "copo"):
        run = start(tmp_path / rule, make_spec(sampling={"zero_signal": {"name": rule}}, steps=1))
        first = run.loop.parts.order.take(1)[0]
        run.loop.parts.order.position = 0
        quieten(run, lambda row, silent=first + 1: row == silent)  # type: ignore[misc]
        run.loop.run()
        found[rule] = run.learner.learned[0][0].reshape(-1, 4)
    quiet = found["keep"].abs().sum(dim=1) < 1e-6
    assert quiet.any()
    assert (found["copo"][quiet].abs() > 0.1).all()
    torch.testing.assert_close(found["copo"][~quiet], found["keep"][~quiet])


def test_a_transform_acts_on_what_is_learned_from_alone(tmp_path: Path) -> None:
    clip = {"transform": {"name": "clip", "lo": 0.3, "hi": 0.32}}
    spec = make_spec(objectives=objectives(accuracy=clip), estimator={"name": "grpo"}, steps=1)
    plain = make_spec(objectives=objectives(), estimator={"name": "grpo"}, steps=1)
    clipped, free = whole(tmp_path / "clipped", spec), whole(tmp_path / "free", plain)
    assert clipped.journal.records[1]["objectives"] == free.journal.records[1]["objectives"]
    assert torch.equal(clipped.strategy.given[0].rewards_PGK, free.strategy.given[0].rewards_PGK)
    assert not torch.allclose(clipped.learner.learned[0][0], free.learner.learned[0][0])


@pytest.mark.parametrize("steps", [2, 6])
def test_references_are_sampled_from_the_initial_policy_once(tmp_path: Path, steps: int) -> None:
    spec = make_spec(
        objectives=objectives(brevity={"transform": {"name": "lsc"}}), sampling={"reference_rollouts": 5}, steps=steps
    )
    run = whole(tmp_path, spec)
    size = min(10, 3 * steps)  # of ten prompts, three a step
    assert {name: found.shape for name, found in run.loop.collector.references.items()} == {"brevity": (size, 5)}
    first = [
        batch for batch in run.engines.batches if len({request.prompt_tokens for request in batch}) * 5 == len(batch)
    ]
    assert sum(len(batch) for batch in first) == 5 * size
    assert any("references" in str(line.get("stage")) for line in run.journal.lines)


def test_estimators_move_with_progress(tmp_path: Path) -> None:
    run = start(tmp_path, make_spec(estimator={"name": "softmin", "kappa_start": 0.5, "kappa_end": 2.0}))
    seen: list[float] = []
    estimator = run.loop.parts.estimator

    class Watching:
        least_spread = estimator.least_spread

        def at(self, progress: float) -> Any:
            seen.append(progress)
            return estimator.at(progress)

    object.__setattr__(run.loop.parts, "estimator", Watching())
    run.loop.run()
    assert seen == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])


def test_references_are_gated_like_the_rewards(tmp_path: Path) -> None:
    gated = {"transform": {"name": "lsc"}, "gate": {"objective": "accuracy", "at_least": 2.0}}
    run = whole(tmp_path, make_spec(objectives=objectives(brevity=gated), steps=1))
    assert not run.loop.collector.references["brevity"].any()


def test_a_person_is_heard_while_references_are_sampled(tmp_path: Path) -> None:
    spec = make_spec(objectives=objectives(brevity={"transform": {"name": "lsc"}}))
    run = start(tmp_path, spec)
    run.journal.wish = lambda: Wishes(pause=True)
    assert run.loop.run() == "paused"
    assert len(run.engines.batches) == 1
    again = resume(run, spec)
    again.journal.wish = Wishes
    assert again.loop.run() == "succeeded"
    assert again.figures() == whole(tmp_path / "whole", spec).figures()


@pytest.mark.parametrize("rule", ["drop", "refill"])
@pytest.mark.parametrize("weighting", ["pama", "covariance"])
def test_what_strategies_see_fits_when_groups_are_dropped(tmp_path: Path, weighting: str, rule: str) -> None:
    """Rewards of everything that was sampled, advantages of what is learned from: laid out alike."""
    budget = {"name": "knapsack", "objective": "accuracy", "success_at": 0.3}
    spec = make_spec(
        weighting={"name": weighting}, sampling={"zero_signal": {"name": rule}, "budget": budget}, steps=10
    )
    run = start(tmp_path, spec)
    quieten(run)
    assert run.loop.run() == "succeeded"
    for stats, (advantages_B, _) in zip(run.strategy.given, run.learner.learned, strict=True):
        assert stats.advantages_PGK.shape == stats.rewards_PGK.shape
        learned_from = ~stats.advantages_PGK.isnan().any(dim=2)
        assert int(learned_from.sum()) == len(advantages_B)
        assert not stats.rewards_PGK[learned_from].isnan().any()


def test_the_spread_that_a_transform_makes_is_signal(tmp_path: Path) -> None:
    """A group that is right throughout still differs in length, which is what the transform teaches."""
    shaped = {"transform": {"name": "soft_overlong", "max_tokens": 9, "buffer_tokens": 8}}
    run = start(tmp_path, make_spec(objectives=objectives(brevity=shaped), sampling={"zero_signal": {"name": "drop"}}))
    quieten(run, lambda _row: True)
    assert run.loop.run() == "succeeded"
    assert all(float(advantages_B.abs().sum()) > 0.1 for advantages_B, _ in run.learner.learned)


def test_an_objective_that_only_a_floor_lifts_is_signal(tmp_path: Path) -> None:
    changes = {"weight": 0.0, "bounds": [0.2, 1.0]}
    run = start(tmp_path, make_spec(objectives=objectives(brevity=changes)))
    _, steering = run.journal.steering(1)
    assert run.loop.may_get_weight(steering).tolist() == [1, 1]
    plain = start(tmp_path / "plain", make_spec(objectives=objectives(brevity={"weight": 0.0})))
    _, steering = plain.journal.steering(1)
    assert plain.loop.may_get_weight(steering).tolist() == [1, 0]


def test_a_weight_of_zero_stays_zero(tmp_path: Path) -> None:
    third = {"name": "clarity", "reward": {"name": "clarity"}, "weight": 0.0}
    for first, second in ((1.0, 2.0), (3.0, 7.0), (0.1, 0.7)):
        spec = make_spec(objectives=[ACCURACY | {"weight": first}, BREVITY | {"weight": second}, third])
        run = start(tmp_path / str(first), spec)
        _, steering = run.journal.steering(1)
        strategy = torch.tensor([steering.weights[name] for name in ("accuracy", "brevity", "clarity")]).float()
        applied, _ = apply_directions(steering, list(spec.objective_names), Weights(weights_K=strategy))
        assert applied["clarity"] == 0


@pytest.mark.parametrize("action", ["alert", "pause"])
def test_a_guardrail_names_what_is_outside(tmp_path: Path, action: str) -> None:
    rail = {"metric": "objectives.accuracy.mean", "min": 0.9, "for_steps": 2, "action": action}
    run = start(tmp_path, make_spec(guardrails=[rail]))
    run.loop.run()
    breaches = run.journal.named("guardrail.breached")
    assert len(breaches) == 1
    assert breaches[0]["step"] == 2
    assert "objectives.accuracy.mean" in breaches[0]["message"]
    assert run.journal.why == ([f"paused: {breaches[0]['message']}"] if action == "pause" else [])
    assert run.loop.reason == (run.journal.why[0] if run.journal.why else None)


@pytest.mark.parametrize(("metric", "most", "step"), [("cost", 5.0, 3), ("gpu_hours", 1.6, 4)])
def test_a_guardrail_stops_at_what_the_job_took(tmp_path: Path, metric: str, most: float, step: int) -> None:
    rail = {"metric": metric, "max": most, "action": "pause"}
    run = start(tmp_path, make_spec(guardrails=[rail]))
    costs = itertools.count(2.0, 2.0)
    run.loop.parts = dataclasses.replace(run.loop.parts, cost=lambda: next(costs))
    run.loop.run()
    assert [breach["step"] for breach in run.journal.named("guardrail.breached")] == [step]
    assert run.journal.pauses == 1
    assert run.journal.costs[-1] == 2.0 * len(run.journal.costs)  # the end's evaluation is counted too


def test_what_a_step_told_before_a_kill_is_not_told_when_it_runs_again(tmp_path: Path) -> None:
    rails = [
        {"metric": "objectives.accuracy.mean", "min": 0.9, "for_steps": 3},
        {"metric": "objectives.accuracy.mean", "min": 0.95, "for_steps": 3},
    ]
    spec = make_spec(guardrails=rails)
    run = start(tmp_path, spec)
    run.journal.die_at = ("after guardrail.breached", 3)
    with pytest.raises(Killed):
        run.loop.run()
    run = resume(run, spec)
    assert run.loop.run() == "succeeded"
    assert [(breach["step"], breach["bound"]) for breach in run.journal.named("guardrail.breached")] == [
        (3, 0.9),
        (3, 0.95),
    ]


def test_a_streak_survives_a_kill(tmp_path: Path) -> None:
    rail = {"metric": "entropy", "max": 0.1, "for_steps": 5}
    spec = make_spec(guardrails=[rail])
    run = start(tmp_path, spec)
    run.journal.die_at = ("before commit", 5)
    with pytest.raises(Killed):
        run.loop.run()
    run = resume(run, spec)
    assert run.loop.run() == "succeeded"
    assert [breach["step"] for breach in run.journal.named("guardrail.breached")] == [5]


@pytest.mark.parametrize("died_at", [None, 3, 4])
def test_guardrails_are_moved_while_the_job_runs(tmp_path: Path, died_at: int | None) -> None:
    """What paused the job is loosened, and a new one counts from its step on, also where a kill comes between."""
    spec = make_spec(guardrails=[{"metric": "objectives.accuracy.mean", "min": 0.9, "action": "pause"}])
    run = start(tmp_path, spec)
    run.journal.wish = lambda: Wishes(pause=run.journal.pauses > 0)
    assert run.loop.run() == "paused"
    assert sorted(run.journal.records) == [1]
    run.journal.wish = Wishes
    moved = [
        {"metric": "objectives.accuracy.mean", "min": 0.0, "action": "pause"},
        {"metric": "entropy", "max": 0.1, "for_steps": 3},
    ]
    rules = {**run.journal.log[0][2].model_dump(), "guardrails": moved}
    run.journal.log.append((2, 2, Steering.model_validate(rules)))
    run = resume(run, spec)
    if died_at is not None:
        run.journal.die_at = ("before commit", died_at)
        with pytest.raises(Killed):
            run.loop.run()
        run = resume(run, spec)
    assert run.loop.run() == "succeeded"
    told = [(breach["step"], breach["metric"]) for breach in run.journal.named("guardrail.breached")]
    assert told == [(1, "objectives.accuracy.mean"), (4, "entropy")]
    assert [rule["metric"] for rule in run.journal.named("steering.applied")[-1]["requested"]["guardrails"]] == [
        "objectives.accuracy.mean",
        "entropy",
    ]


def test_a_spread_that_the_estimator_takes_for_none_is_no_signal(tmp_path: Path) -> None:
    """The fakes' rewards spread by some hundredths."""
    refill = {"zero_signal": {"name": "refill", "max_rounds": 2}}
    groups = {}
    for floor in (1e-6, 0.5):
        estimator = {"name": "gdpo", "std_floor": floor}
        run = whole(tmp_path / str(floor), make_spec(sampling=refill, estimator=estimator, steps=2))
        groups[floor] = [record["groups"] for record in run]
    assert groups == {1e-6: [3, 3], 0.5: [9, 9]}


def test_before_a_transform_that_remembers_the_floor_says_nothing_of_the_spread(tmp_path: Path) -> None:
    """It is in the units of what the estimator sees: of z-scores here, whose spread is about 1."""
    spec = make_spec(
        sampling={"zero_signal": {"name": "refill", "max_rounds": 2}},
        estimator={"name": "gdpo", "std_floor": 0.5},
        objectives=objectives(accuracy={"transform": {"name": "zscore"}}),
        steps=2,
    )
    assert [record["groups"] for record in whole(tmp_path, spec)] == [3, 3]


def test_a_rule_that_is_handed_the_weights_back_begins_with_the_persons(tmp_path: Path) -> None:
    """What a rule would have added up in mode manual never had an effect."""
    spec = make_spec(steps=8, steering={"mode": "manual"}, weighting={"name": "gradient", "step_size": 0.1})
    run = start(tmp_path, spec)
    first = run.journal.log[0][2]
    run.journal.log.append((2, 7, first.model_copy(update={"mode": "auto"})))
    run.loop.run()
    chosen = [record["weights"]["strategy"]["accuracy"] for record in run]
    assert chosen[:6] == pytest.approx([first.weights["accuracy"]] * 6)
    assert [stats.decides for stats in run.strategy.given] == [False] * 6 + [True] * 2
    assert chosen[6] == pytest.approx(first.weights["accuracy"], abs=0.05)


def test_a_step_tells_who_decided_its_weights(tmp_path: Path) -> None:
    """The rule; then a person, gradually; then the rule again, with a ceiling; and so after a kill."""
    spec = make_spec(steps=6, weighting={"name": "hv_gradient"}, checkpoints={"every": 1})
    run = start(tmp_path, spec)
    first = run.journal.log[0][2]
    own = {"mode": "manual", "over": 2, "weights": {"accuracy": 0.1, "brevity": 0.9}}
    run.journal.log += [
        (2, 3, first.model_copy(update=own)),
        (3, 5, first.model_copy(update={"bounds": {"accuracy": (0.0, 0.3), "brevity": (0.1, 1.0)}})),
    ]
    run.journal.die_at = ("before commit", 6)
    with pytest.raises(Killed):
        run.loop.run()
    again = resume(run, spec)
    assert again.loop.run() == "succeeded"
    records = [*again]
    told = [reasons(now, before, "hv_gradient") for before, now in itertools.pairwise([{}, *records])]
    decided = [[reason.decided_by for reason in of_step] for of_step in told]
    assert decided == [["rule"] * 2] * 2 + [["ramp"] * 2, ["person"] * 2] + [["ceiling", "bounds"]] * 2
    for record in records:
        figures, chosen = record["weights_because"]["figures"], record["weights"]["strategy"]
        parts = {name: figures["preference"][name] * figures["slope"][name] for name in chosen}
        assert chosen == pytest.approx({name: part / sum(parts.values()) for name, part in parts.items()}, abs=1e-6)
    assert told[-1][0].applied == pytest.approx(0.3)
    assert told[-1][0].words.startswith("its ceiling holds it, in place of .")
