"""The loop over fakes at its seams: engines that sample from seeds, a learner of two numbers, a journal in memory.

Everything between them is real: prompts, gates, estimators, strategies, steering, archive, watch and checkpoints.
"""

import errno
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.build import make_archive
from orchestrator.journal import Wishes
from orchestrator.spec import JobSpec
from orchestrator.storage.checkpoints import (
    STATE_FORMAT,
    CheckpointError,
    Unreadable,
    directory_name,
    parse_state,
    verify,
)
from policies.collapse import CollapseWatch
from policies.estimators import Gdpo
from policies.pareto import Archive, hypervolume
from rewards.pool import Scored
from tests.loop_fakes import FakeEngines, Killed, Run, World, make_spec, prompts, resume, start


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


# ------------------------------------------------------------------------ a step


@pytest.mark.parametrize("weighting", ["fixed", "hypervolume", "gradient"])
def test_the_order_of_a_step(tmp_path: Path, weighting: str) -> None:
    run = start(tmp_path, make_spec(steps=1, evaluation={"every": 5}, weighting={"name": weighting}))
    run.loop.start()
    run.world.calls.clear()
    run.loop.step(1)
    gramian = ["gramian"] if weighting == "gradient" else []
    expected = ["steering", "generate", "score", *gramian, "strategy", "learn", "sync", "generate", "score", "commit"]
    assert run.world.calls == expected


def test_a_whole_run(tmp_path: Path) -> None:
    run = start(tmp_path)
    assert run.loop.run() == "succeeded"
    assert [record["step"] for record in run] == [1, 2, 3, 4, 5, 6]
    assert [record["policy_version"] for record in run] == [0, 1, 2, 3, 4, 5]
    for record in run:
        stages = [seconds for stage, seconds in record["timings_s"].items() if stage != "step"]
        assert sum(stages) == pytest.approx(record["timings_s"]["step"])
        assert "extra" not in record


def test_a_step_has_its_own_time_and_that_of_the_commit_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(tmp_path, make_spec(steps=3, evaluation={"every": 3}))
    commit = run.journal.commit
    monkeypatch.setattr(run.journal, "commit", lambda record: (time.sleep(0.05), commit(record)))
    run.loop.run()
    first, *later = [record["timings_s"] for record in run]
    assert (first["evaluate"], first["checkpoint"]) == (0, 0)  # those of the initial policy are no step's
    assert all(timings["other"] >= 0.05 for timings in later)


def test_what_a_record_says(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.loop.run()
    batch = next(batch for batch in run.engines.batches if len(batch) == 12)
    world = World()
    rollouts = [FakeEngines(world, None).sample(request) for request in batch]
    values_BK = torch.tensor([[float(word) for word in rollout.text.split()] for rollout in rollouts])
    record = run.journal.records[1]
    assert len(rollouts) == 12
    for k, name in enumerate(["accuracy", "brevity"]):
        figures = record["objectives"][name]
        assert figures["mean"] == pytest.approx(float(values_BK[:, k].mean()), abs=1e-6)
        assert figures["std"] == pytest.approx(float(values_BK[:, k].std(correction=0)), abs=1e-6)
        spreads_P = values_BK[:, k].view(3, 4).std(dim=1, correction=0)
        assert figures["group_std"] == pytest.approx(float(spreads_P.mean()), abs=1e-6)
        assert figures["zero_share"] == 0
    assert record["weights"]["applied"] == pytest.approx({"accuracy": 0.75, "brevity": 0.25})
    assert record["weights_because"] == {
        "mode": "auto", "share": 0.0, "held": {}, "gates": {},
        "figures": {"preference": {"accuracy": 0.75, "brevity": 0.25}},
    }  # fmt: skip
    assert record["total"] == pytest.approx(float(values_BK.mean(dim=0) @ torch.tensor([0.75, 0.25])), abs=1e-6)
    assert record["tokens"] == sum(len(rollout.tokens) for rollout in rollouts)
    assert record["mean_tokens"] == record["tokens"] / 12
    assert record["truncated_share"] == sum(rollout.truncated for rollout in rollouts) / 12
    assert (record["steering_version"], record["multiplier"], record["evaluation"]) == (1, 1.0, None)


def test_the_same_spec_and_seed_give_the_same_records(tmp_path: Path) -> None:
    runs = [start(tmp_path / str(i)) for i in range(2)]
    other = start(tmp_path / "other", make_spec(seed=8))
    for run in (*runs, other):
        run.loop.run()
    assert runs[0].figures() == runs[1].figures()
    assert not set(other.figures().values()) & set(runs[0].figures().values())


def test_every_rollout_of_the_training_has_a_seed_of_its_own(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.loop.run()
    trained = [batch for batch in run.engines.batches if len(batch) == 12]
    seeds = [request.seed for batch in trained for request in batch]
    assert len(seeds) == len(set(seeds)) == 6 * 12
    held_out = {request.seed for batch in run.engines.batches if len(batch) != 12 for request in batch} - {None}
    assert not held_out & set(seeds)
    for batch in trained:  # the rollouts of a prompt stand together
        tokens = [request.prompt_tokens for request in batch]
        assert tokens == [tokens[4 * p] for p in range(3) for _ in range(4)]


def test_held_out_seeds_are_the_same_at_every_evaluation(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.loop.run()
    held_out = [batch for batch in run.engines.batches if len(batch) == 4]
    assert len(held_out) == 4  # steps 0, 2, 4 and 6
    assert all(batch == held_out[0] for batch in held_out)


def test_held_out_completions_may_be_cut_otherwise_than_the_trainings(tmp_path: Path) -> None:
    rollout = {"prompts_per_step": 3, "rollouts_per_prompt": 4, "max_tokens": 9, "top_p": 0.9, "min_p": 0.1}
    evaluation = {"every": 6, "temperature": 0.6, "top_p": 0.7, "top_k": 20, "greedy": False}
    run = start(tmp_path, make_spec(rollout=rollout, evaluation=evaluation))
    run.loop.run()
    drawn = {(r.temperature, r.top_p, r.top_k, r.min_p, len(b) == 12) for b in run.engines.batches for r in b}
    assert drawn == {(1.0, 0.9, 0, 0.1, True), (0.6, 0.7, 20, 0.1, False)}


def test_what_is_learned_from_is_gated_and_what_is_recorded_is_raw(tmp_path: Path) -> None:
    gated = [
        {"name": "accuracy", "reward": {"name": "math"}},
        {"name": "brevity", "reward": {"name": "conciseness"}, "gate": {"objective": "accuracy", "at_least": 2.0}},
    ]
    open_gate = [gated[0], {key: value for key, value in gated[1].items() if key != "gate"}]
    shut = start(tmp_path / "shut", make_spec(steps=1, objectives=gated))
    wide = start(tmp_path / "wide", make_spec(steps=1, objectives=open_gate))
    for run in (shut, wide):
        run.loop.run()
    assert shut.journal.records[1]["objectives"] == wide.journal.records[1]["objectives"]
    assert shut.journal.records[1]["weights_because"]["gates"] == {"brevity": 0.0}
    assert torch.equal(shut.strategy.given[0].rewards_PGK, wide.strategy.given[0].rewards_PGK)
    raw_PGK = shut.strategy.given[0].rewards_PGK
    signal_PGK = raw_PGK * torch.tensor([1.0, 0.0])
    estimate = Gdpo()
    learned_from, _ = shut.learner.learned[0]
    torch.testing.assert_close(learned_from, estimate(signal_PGK, torch.tensor([0.5, 0.5])).flatten())
    assert not torch.allclose(learned_from, wide.learner.learned[0][0])


def test_the_gradient_strategy_learns_the_same_thing_either_way(tmp_path: Path) -> None:
    """sum_k w_k A_k with the weights that go to the learner is the advantage that goes with them."""
    run = start(tmp_path, make_spec(steps=1, weighting={"name": "gradient"}))
    run.loop.run()
    advantages_B, parts = run.learner.learned[0]
    assert parts is not None
    assert parts.weights_K is not None
    rewards_PGK = run.strategy.given[0].rewards_PGK
    advantages_BK = Gdpo().per_objective(rewards_PGK).flatten(0, 1)
    torch.testing.assert_close((advantages_BK @ parts.weights_K).float(), advantages_B)


def test_a_reward_that_fails_stops_the_step_before_anything_is_learned(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.loop.start()
    run.loop.step(1)
    learned, calls = len(run.learner.learned), len(run.world.calls)
    run.rewards.error = RuntimeError("reward 'accuracy' is away")
    with pytest.raises(RuntimeError, match="'accuracy' is away"):
        run.loop.run()
    assert len(run.learner.learned) == learned
    assert list(run.journal.records) == [1]
    assert run.world.calls[calls:] == ["steering", "generate", "score"]


# ---------------------------------------------------------------------- steering


def test_steering_is_in_force_from_exactly_its_step(tmp_path: Path) -> None:
    run = start(tmp_path)
    first = run.journal.log[0][2]
    manual = first.model_copy(update={"mode": "manual", "weights": {"accuracy": 0.1, "brevity": 0.9}})
    run.journal.log.append((2, 4, manual))
    run.loop.run()
    assert [record["steering_version"] for record in run] == [1, 1, 1, 2, 2, 2]
    applied = [record["weights"]["applied"]["accuracy"] for record in run]
    assert applied == pytest.approx([0.75, 0.75, 0.75, 0.1, 0.1, 0.1])
    preferences = [float(stats.preference_K[0]) for stats in run.strategy.given]
    assert preferences == pytest.approx([0.75, 0.75, 0.75, 0.1, 0.1, 0.1])
    (event,) = run.journal.named("steering.applied")
    assert (event["step"], event["version"], event["by"]) == (4, 2, "author of 2")
    assert event["requested"] == manual.model_dump(mode="json")
    assert event["applied"] == run.journal.records[4]["weights"]["applied"]
    assert event["clamped"] == {"accuracy": False, "brevity": False}


def test_changes_that_another_overtook_are_named_by_it(tmp_path: Path) -> None:
    run = start(tmp_path)
    first = run.journal.log[0][2]
    run.journal.log += [
        (
            version,
            step,
            first.model_copy(update={"mode": "manual", "weights": {"accuracy": share, "brevity": 1 - share}}),
        )
        for version, step, share in ((2, 3, 0.1), (3, 3, 0.2), (4, 3, 0.3), (5, 5, 0.4))
    ]
    run.loop.run()
    told = [(event["step"], event["version"], event["replaced"]) for event in run.journal.named("steering.applied")]
    assert told == [(3, 4, {"from": 2, "to": 3}), (5, 5, None)]


def test_bounds_hold_whatever_the_strategy_says(tmp_path: Path) -> None:
    objectives = [
        {"name": "accuracy", "reward": {"name": "math"}, "weight": 3.0, "bounds": [0, 0.6]},
        {"name": "brevity", "reward": {"name": "conciseness"}},
    ]
    run = start(tmp_path, make_spec(objectives=objectives, weighting={"name": "gradient"}))
    run.loop.run()
    for record in run:
        assert record["weights"]["applied"]["accuracy"] <= 0.6 + 1e-9
        assert sum(record["weights"]["applied"].values()) == pytest.approx(1)


# -------------------------------------------------------------------- evaluation


def test_when_it_is_evaluated(tmp_path: Path) -> None:
    run = start(tmp_path, make_spec(steps=5))
    run.loop.run()
    assert [event["step"] for event in run.journal.named("evaluated")] == [0, 2, 4, 5]
    assert [record["evaluation"] is not None for record in run] == [False, True, False, True, True]
    assert run.journal.records[2]["evaluation"]["described"] == 4


def test_more_completions_tell_the_means_better(tmp_path: Path) -> None:
    """The toy's prompts are alike, so that all of the spread is of their completions."""
    errors = {}
    for repeats in (1, 64):
        run = start(tmp_path / str(repeats), make_spec(steps=1, evaluation={"rollouts_per_prompt": repeats}))
        run.loop.run()
        point = run.journal.fronts[-1]["points"][-1]
        errors[repeats] = [*point["standard_errors"].values(), *point["test"]["sampled"]["standard_errors"].values()]
    assert sum(errors[64]) < 0.4 * sum(errors[1])


def test_the_front_is_kept_and_the_rest_is_not(tmp_path: Path) -> None:
    values = {0: (0.2, 0.5), 2: (0.5, 0.4), 4: (0.4, 0.3), 6: (0.1, 0.6), 8: (0.6, 0.4)}
    spec = make_spec(steps=9, checkpoints={"every": 3}, evaluation={"every": 2, "test_points": 1})
    run = start(tmp_path, spec, profile=lambda version: values.get(version, (0.0, 0.0)))
    kept = {}
    commit = run.journal.commit

    def noted(record: Mapping[str, Any]) -> None:
        commit(record)
        kept[record["step"]] = sorted(run.loop.kept)

    run.journal.commit = noted  # type: ignore[method-assign]
    run.loop.run()
    # before its own checkpoint, each step sees the ones before it: the two newest, and what is on the front
    assert kept == {
        1: [0], 2: [0], 3: [0, 2], 4: [0, 2, 3], 5: [0, 2, 3], 6: [0, 2, 3],
        7: [0, 2, 3, 6], 8: [0, 2, 3, 6], 9: [0, 6, 8],
    }  # fmt: skip
    assert run.on_disk() == sorted(run.journal.registered) == [0, 6, 8, 9]
    assert {step for step, entry in run.journal.registered.items() if entry["on_front"]} == {0, 6, 8}
    assert run.journal.registered[8]["metrics"]["objectives"] == {"accuracy": 0.6, "brevity": 0.4}
    front = run.journal.fronts[-1]
    assert [point["step"] for point in front["points"]] == [0, 2, 4, 6, 8, 9]
    assert {point["step"] for point in front["points"] if point["checkpoint"]} == {0, 6, 8, 9}
    assert front["initial"] == {"accuracy": 0.2, "brevity": 0.5}
    assert front["reference"] == {"accuracy": 0.0, "brevity": 0.0}  # the volume's corner
    volumes = [volume for _, volume in front["hypervolume_by_step"]]
    assert volumes == sorted(volumes)
    # 0.2 x 0.5 of the start; then 0.5 x 0.4 + 0.2 x 0.1 and so on
    assert volumes[0] == pytest.approx(0.1)
    assert volumes[1] == pytest.approx(0.22)
    # the test split: the last, the first, and the best of the front by the person's weights
    tested = {point["step"] for point in front["points"] if point["test"]}
    assert tested == {0, 8, 9}
    assert set(front["points"][0]["test"]) == {"sampled", "greedy"}


def test_an_objective_that_is_to_stay_below_its_target_is_better_the_smaller_it_is(tmp_path: Path) -> None:
    values = {0: (0.6, 0.9), 2: (0.6, 0.7), 4: (0.59, 0.39), 6: (0.595, 0.3)}
    objectives = [
        {"name": "accuracy", "reward": {"name": "math"}},
        {"name": "brevity", "reward": {"name": "conciseness"}, "target": {"op": "<=", "value": 0.4}},
    ]
    spec = make_spec(objectives=objectives, weighting={"name": "lagrangian"}, collapse={"action": "pause"})
    run = start(tmp_path, spec, profile=lambda version: values.get(version, (0.6, 0.6)))
    run.loop.run()
    front = run.journal.fronts[-1]
    assert [point["step"] for point in front["points"] if point["on_front"]] == [2, 6]
    assert [point["objectives"]["brevity"] for point in front["points"]] == [0.9, 0.7, 0.39, 0.3]
    assert front["directions"] == {
        "accuracy": {"better": "larger", "target": None}, "brevity": {"better": "smaller", "target": None},
    }  # fmt: skip
    assert front["reference"] == {"accuracy": 0.0, "brevity": 1.0}
    assert run.on_disk() == [2, 4, 6]  # the newest two, and the front
    assert run.journal.registered[6]["metrics"]["places"] == pytest.approx({"accuracy": 0.595, "brevity": 0.7})
    assert [point["step"] for point in front["points"] if point["test"]] == [0, 2, 6]
    assert not run.journal.named("collapse.detected")


@pytest.mark.parametrize(
    ("weighting", "direction"),
    [
        ({"name": "lagrangian", "form": "equality"}, {"better": "nearer", "target": 0.4}),
        ({"name": "fixed"}, {"better": "larger", "target": None}),  # it raises whatever has a target
    ],
)
def test_what_is_better_is_what_the_rule_trains_towards(weighting: dict[str, Any], direction: dict[str, Any]) -> None:
    objectives = [
        {"name": "accuracy", "reward": {"name": "math"}},
        {"name": "brevity", "reward": {"name": "conciseness"}, "target": {"op": "<=", "value": 0.4}},
    ]
    archive = make_archive(make_spec(objectives=objectives, weighting=weighting))
    assert archive.directions == {"accuracy": {"better": "larger", "target": None}, "brevity": direction}


def test_what_is_gated_counts_gated_on_the_front_and_is_shown_raw(tmp_path: Path) -> None:
    """A start that is short and wrong is no better than what training made of it."""
    objectives = [
        {"name": "accuracy", "reward": {"name": "math"}},
        {"name": "brevity", "reward": {"name": "conciseness"}, "gate": {"objective": "accuracy", "at_least": 0.4}},
    ]
    run = start(
        tmp_path,
        make_spec(objectives=objectives, collapse={"action": "alert"}),
        profile=lambda version: (0.22, 0.95) if version < 2 else (0.44, 0.24),
    )
    run.loop.run()
    points = {point["step"]: point for point in run.journal.fronts[-1]["points"]}
    assert points[0]["objectives"] == {"accuracy": 0.22, "brevity": 0.95}
    assert points[0]["counted"] == {"accuracy": 0.22, "brevity": 0.0}
    assert [step for step, point in points.items() if point["on_front"]] == [2]
    assert run.journal.registered[6]["metrics"]["places"]["brevity"] == pytest.approx(0.24)
    assert points[6]["test"]["sampled"]["counted"] == {"accuracy": 0.44, "brevity": 0.24}
    assert not run.journal.named("collapse.detected")


def test_a_fall_after_a_gate_is_told_beyond_the_noise_after_it(tmp_path: Path) -> None:
    """Half of the prompts fail the gate: what counts spreads more than what is shown."""
    objectives = [
        {"name": "accuracy", "reward": {"name": "math"}},
        {"name": "brevity", "reward": {"name": "conciseness"}, "gate": {"objective": "accuracy", "at_least": 0.4}},
    ]
    evaluation = {"every": 2, "rollouts_per_prompt": 1}
    run = start(tmp_path, make_spec(objectives=objectives, collapse={"action": "alert"}, evaluation=evaluation))
    evaluator = run.loop.evaluator
    rolled, _ = evaluator.sample(evaluator.prompts("validation"), [[1]] * len(evaluator.prompts("validation")))
    scores: dict[str, list[float | None]] = {"accuracy": [0.0, 0.0, 1.0, 1.0], "brevity": [0.5] * 4}
    evaluator.sample = lambda *_: (rolled, Scored(scores=scores, dropped=()))  # type: ignore[method-assign]
    seen: list[Any] = []
    run.loop.parts.watch.observe = lambda *told: seen.append(told)  # type: ignore[method-assign]
    run.loop.evaluate(1, run.journal.steering(1)[1])
    _, places, _, errors = seen[0]
    assert places["brevity"] == 0.25
    assert errors["brevity"] > 0.1


def test_further_sets_are_reported_and_decide_nothing(tmp_path: Path) -> None:
    spec = make_spec(evaluation={"every": 2, "prompts": 2})
    alone = start(tmp_path / "alone", spec)
    alone.loop.run()
    run = start(tmp_path / "sets", spec)
    run.loop.parts.splits.sets["sets.more"] = prompts("more", 3)
    run.loop.run()
    (found,) = {tuple(point["sets"]) for point in run.journal.fronts[-1]["points"]}
    assert found == ("more",)
    for before, after in zip(alone.journal.fronts[-1]["points"], run.journal.fronts[-1]["points"], strict=True):
        more = after.pop("sets")["more"]
        assert more["objectives"].keys() == after["objectives"].keys()
        assert more["described"] == 2 * spec.evaluation.rollouts_per_prompt, "as many prompts as of validation"
        assert after == before
    assert run.journal.records[2]["evaluation"].pop("sets")["more"].keys() >= {"objectives", "standard_errors"}
    assert run.journal.records[2]["evaluation"] == alone.journal.records[2]["evaluation"]
    assert run.journal.named("evaluated")[-1]["sets"]["more"]["mean_tokens"] > 0

    evaluator = run.loop.evaluator
    rolled, _ = evaluator.sample(evaluator.prompts("sets.more"), [[1]] * 2)
    scores: dict[str, list[float | None]] = {"accuracy": [0.5, 1.0], "brevity": [None, None]}
    evaluator.sample = lambda *_: (rolled, Scored(scores=scores, dropped=()))  # type: ignore[method-assign]
    assert evaluator.sets()["sets"]["more"]["objectives"] == {"accuracy": 0.75}
    with pytest.raises(ValueError, match="applies to no prompt of the validation split"):
        evaluator.evaluate("validation")


def test_the_tested_points_of_the_front_have_a_volume_on_the_test_split(tmp_path: Path) -> None:
    values = {0: (0.2, 0.5), 2: (0.5, 0.4), 4: (0.4, 0.3), 6: (0.1, 0.6)}
    spec = make_spec(evaluation={"every": 2, "test_points": 1})
    run = start(tmp_path, spec, profile=lambda version: values.get(version, (0.0, 0.0)))
    run.loop.run()
    assert [front["hypervolume_test"] for front in run.journal.fronts[:4]] == [None] * 4
    front = run.journal.fronts[-1]
    assert [point["step"] for point in front["points"] if point["on_front"] and point["test"]] == [0, 2, 6]
    assert front["hypervolume_test"] == pytest.approx(0.5 * 0.4 + 0.2 * 0.1 + 0.1 * 0.1)
    assert front["hypervolume_test_base"] == pytest.approx(0.1)


def test_of_the_front_the_policies_are_kept_and_tested(tmp_path: Path) -> None:
    """A point whose learner's state is gone has the figures that it would have with it."""
    spec = make_spec(steps=8, checkpoints={"every": 1}, evaluation={"every": 1})
    fronts = []
    for whole_ones in (True, False):
        run = start(tmp_path / str(whole_ones), spec)
        if whole_ones:
            run.loop.checkpoints.keep_policies = lambda *_, **__: None  # type: ignore[method-assign]
        learn = run.learner.learn

        def trading(*batch: Any, run: Run = run, learn: Any = learn) -> Any:
            run.learner.skills = [run.learner.skills[0] + 0.05, run.learner.skills[1] - 0.05]
            return learn(*batch)

        run.learner.learn = trading  # type: ignore[method-assign]
        assert run.loop.run() == "succeeded"
        kept = run.on_disk()
        assert len(kept) > 4
        with_state = [step for step in kept if (run.directory / directory_name(step) / "learner.json").exists()]
        assert with_state == (kept if whole_ones else [7, 8])
        for step, entry in run.journal.registered.items():
            assert verify(run.directory / directory_name(step)).digest == entry["digest"]
        tested = {point["step"] for point in run.journal.fronts[-1]["points"] if point["test"]}
        assert set(kept) - {7} <= tested
        fronts.append(run.journal.fronts[-1])
    assert fronts[0] == fronts[1]


def test_the_front_has_no_more_checkpoints_than_asked_for(tmp_path: Path) -> None:
    """30 points that none dominates; the start, and the best by the weights, are not where most volume is."""
    spec = make_spec(steps=30, checkpoints={"every": 500, "front": 6}, evaluation={"every": 1, "test_points": 2})
    angles = [math.pi / 2 * (0.02 + 0.96 * i / 30) for i in range(31)]
    run = start(tmp_path, spec, profile=lambda step: (math.sin(angles[step]), math.cos(angles[step])))
    most = 0
    retain = run.loop.retain

    def noted() -> None:
        nonlocal most
        retain()
        most = max(most, len(run.on_disk()))

    run.loop.retain = noted  # type: ignore[method-assign]
    assert run.loop.run() == "succeeded"
    assert most == 6 + 2
    kept = run.on_disk()
    assert sorted(run.journal.registered) == kept
    assert kept[0] == 0
    assert {29, 30} <= set(kept)
    front = run.journal.fronts[-1]
    values = np.array([list(point["objectives"].values()) for point in front["points"]])
    assert int(np.argmax(values @ [0.75, 0.25])) in kept
    volume = hypervolume(values[kept])
    assert volume > 0.9 * front["hypervolume"]
    assert len({point["step"] for point in front["points"] if point["test"]} - {0, 30}) == 2


def test_the_best_that_is_kept_stays_after_a_steer(tmp_path: Path) -> None:
    """By the new weights the best checkpoint was dropped before: then it is the best of those that are there."""
    spec = make_spec(steps=30, checkpoints={"every": 500, "front": 1}, evaluation={"every": 1, "test_points": 2})
    angles = [math.pi / 2 * (0.02 + 0.96 * i / 30) for i in range(31)]
    run = start(tmp_path, spec, profile=lambda step: (math.sin(angles[step]), math.cos(angles[step])))
    by_new = [0.5 * math.sin(angle) + 0.5 * math.cos(angle) for angle in angles]
    retain, best = run.loop.retain, []

    def noted() -> None:
        if run.loop.state.step == 25:
            steering = run.journal.log[-1][2]
            run.journal.log.append((2, 25, steering.model_copy(update={"weights": {"accuracy": 0.5, "brevity": 0.5}})))
        retain()
        if run.loop.state.step >= 25:
            best.append(max(run.on_disk(), key=lambda step: by_new[step]))

    run.loop.retain = noted  # type: ignore[method-assign]
    assert run.loop.run() == "succeeded"
    assert len(set(best)) == 1
    assert best[0] != int(np.argmax(by_new))


def test_the_strategy_sees_the_front_as_the_last_evaluation_left_it(tmp_path: Path) -> None:
    values = {0: (0.5, 0.5), 2: (0.6, 0.5), 4: (0.6, 0.5)}  # grows by 0.05, then not at all
    spec = make_spec(weighting={"name": "hypervolume"})
    run = start(tmp_path, spec, profile=lambda version: values.get(version, (0.0, 0.0)))
    run.loop.run()
    assert [stats.front.step for stats in run.strategy.given] == [0, 0, 2, 2, 4, 4]
    assert [stats.front.growth for stats in run.strategy.given[2:]] == pytest.approx([0.05, 0.05, 0, 0])
    multipliers = [record["multiplier"] for record in run]
    grown = 0.5 + 1.5 * math.tanh(1)  # the first growth is its own median
    assert multipliers == pytest.approx([1, 1, grown, grown, 0.5, 0.5])


def test_the_samples_stand_side_by_side(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.loop.run()
    assert [row["prompt"] for row in run.loop.samples] == ["test 1", "test 2", "test 3"]
    learned = json.loads((run.directory / directory_name(6) / "learner.json").read_text())
    for row in run.loop.samples:
        assert row["start"]["rewards"]["accuracy"] == pytest.approx(0.3)
        assert row["end"]["rewards"]["accuracy"] == pytest.approx(learned[0])


def test_without_a_test_split_no_figures_are_said_to_be_of_one(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.loop.parts.splits.test.clear()
    assert run.loop.run() == "succeeded"
    assert not any(point["test"] for point in run.journal.fronts[-1]["points"])
    assert [row["prompt"] for row in run.loop.samples] == [f"validation {n}" for n in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("wish", "outcome"),
    [(Wishes(cancel=True), "cancelled"), (Wishes(pause=True), "paused"), (Wishes(stop=True), "stopped")],
)
def test_a_wish_is_heard_while_the_front_is_tested(tmp_path: Path, wish: Wishes, outcome: str) -> None:
    run = start(tmp_path / "one")
    run.journal.wish = lambda: wish if len(run.journal.records) == 6 else Wishes()
    assert run.loop.run() == outcome
    assert {point["step"] for point in run.journal.fronts[-1]["points"] if point["test"]} == {0}
    run.journal.wish = Wishes
    again = resume(run)
    assert again.loop.run() == "succeeded"
    assert run.journal.fronts[-1] == whole(tmp_path / "whole").journal.fronts[-1]


@pytest.mark.parametrize(
    ("wish", "outcome"),
    [(Wishes(cancel=True), "cancelled"), (Wishes(pause=True), "paused"), (Wishes(stop=True), "stopped")],
)
@pytest.mark.parametrize("batches", [0, 1, 2, 3])  # validation, the samples for the report, the test split
def test_a_wish_is_heard_while_the_initial_policy_is_evaluated(
    tmp_path: Path, wish: Wishes, outcome: str, batches: int
) -> None:
    run = start(tmp_path / "one")
    run.journal.wish = lambda: wish if len(run.engines.batches) >= batches else Wishes()
    assert run.loop.run() == outcome
    assert len(run.engines.batches) == batches
    assert not run.journal.registered
    run.journal.wish = Wishes
    again = start(tmp_path / "one")
    assert again.loop.run() == "succeeded"
    assert again.journal.fronts[-1] == whole(tmp_path / "whole").journal.fronts[-1]


@pytest.mark.parametrize("batches", [1, 3])
def test_a_wish_that_is_withdrawn_changes_nothing_of_the_initial_evaluation(tmp_path: Path, batches: int) -> None:
    run, wishes = start(tmp_path / "one"), iter([Wishes(pause=True)])
    run.journal.wish = lambda: next(wishes, Wishes()) if len(run.engines.batches) >= batches else Wishes()
    assert run.loop.run() == "succeeded"
    assert next(wishes, None) is None
    assert run.journal.fronts[-1] == whole(tmp_path / "whole").journal.fronts[-1]


def test_a_stop_is_heard_in_the_middle_of_a_test(tmp_path: Path) -> None:
    run = start(tmp_path)
    batches = run.engines.batches

    def wish() -> Wishes:
        tested = len(run.journal.records) == 6 and batches[-1][0].prompt_tokens[0] == len("test")
        return Wishes(stop=tested and batches[-1][0].seed is not None)  # not the samples for the report

    run.journal.wish = wish
    assert run.loop.run() == "stopped"
    assert {point["step"] for point in run.journal.fronts[-1]["points"] if point["test"]} == {0}


@pytest.mark.parametrize(("wish", "outcome"), [(Wishes(cancel=True), "cancelled"), (Wishes(stop=True), "succeeded")])
def test_once_all_is_tested_a_stop_has_nothing_to_hand_back(tmp_path: Path, wish: Wishes, outcome: str) -> None:
    run = start(tmp_path)
    run.journal.wish = lambda: wish if run.loop.samples else Wishes()
    assert run.loop.run() == outcome
    assert {point["step"] for point in run.journal.fronts[-1]["points"] if point["test"]} == {0, 6}


@pytest.mark.parametrize("again", [False, True])
def test_a_first_step_that_lasts_is_told_as_training(tmp_path: Path, again: bool) -> None:
    spec = make_spec(steps=2)
    run = start(tmp_path, spec)
    if again:
        run.journal.wish = lambda: Wishes(pause=1 in run.journal.records)
        assert run.loop.run() == "paused"
        run.journal.wish = Wishes
        run = resume(run, spec)
        run.journal.progress(stage="starting engines and learner", eta_s=None)
    told: list[str] = []
    step = run.loop.step

    def noted(number: int) -> None:
        told.append(run.journal.lines[-1]["stage"])
        step(number)

    run.loop.step = noted  # type: ignore[method-assign]
    assert run.loop.run() == "succeeded"
    assert told == ["training"] * (1 if again else 2)


# ---------------------------------------------------------------------- collapse


def falling(version: int) -> tuple[float, float]:
    """One objective collapses at steps 4 and 6, and recovers."""
    return {0: (0.5, 0.5), 4: (0.1, 0.9), 6: (0.1, 0.95), 8: (0.7, 0.5)}.get(version, (0.6, 0.5))


@pytest.mark.parametrize("action", ["off", "alert", "pause"])
def test_a_collapse_is_named_once_and_stays_off_the_front(tmp_path: Path, action: str) -> None:
    run = start(tmp_path, make_spec(steps=8, collapse={"action": action}), profile=falling)
    run.loop.run()
    points = {point["step"]: point for point in run.journal.fronts[-1]["points"]}
    front = {step for step, point in points.items() if point["on_front"]}
    if action == "off":
        assert front == {6, 8}
        assert not run.journal.named("collapse.detected")
        assert run.journal.pauses == 0
        return
    assert {step for step, point in points.items() if point["collapsed"]} == {4, 6}
    assert front == {8}
    (event,) = run.journal.named("collapse.detected")
    assert ("collapse.detected", "warning", event) in run.journal.events
    assert (event["step"], event["best_step"], event["objective"], event["held_up"]) == (4, 2, "accuracy", ["brevity"])
    assert "accuracy fell from 0.60 to 0.10 while brevity held up" in event["message"]
    assert [event["step"] for event in run.journal.named("collapse.over")] == [8]
    assert run.journal.why == ([f"paused: {event['message']}"] if action == "pause" else [])
    assert run.journal.records[4]["evaluation"]["on_front"] is False
    assert 4 not in run.on_disk()


def test_a_fall_that_four_prompts_cannot_tell_from_noise_is_no_collapse(tmp_path: Path) -> None:
    ways = itertools.cycle((0.4, -0.4))

    def noisy(version: int) -> tuple[float, float]:
        accuracy, brevity = falling(version)
        return accuracy + next(ways), brevity

    run = start(tmp_path, make_spec(steps=8), profile=noisy)
    run.loop.run()
    points = {point["step"]: point for point in run.journal.fronts[-1]["points"]}
    assert [points[step]["objectives"]["accuracy"] for step in (2, 4)] == pytest.approx([0.6, 0.1])
    assert points[2]["standard_errors"]["accuracy"] > 0.2
    assert not run.journal.named("collapse.detected")


def test_a_steer_does_not_end_a_collapse(tmp_path: Path) -> None:
    run = start(tmp_path, make_spec(steps=8, collapse={"action": "alert"}), profile=falling)
    first = run.journal.log[0][2]
    run.journal.log.append((2, 5, first.model_copy(update={"weights": {"accuracy": 0.8, "brevity": 0.2}})))
    run.loop.run()
    assert [event["step"] for event in run.journal.named("collapse.over")] == [8]
    assert {point["step"] for point in run.journal.fronts[-1]["points"] if point["collapsed"]} == {4, 6}


def test_a_collapse_that_pauses_goes_on_from_where_it_was(tmp_path: Path) -> None:
    spec = make_spec(steps=8, collapse={"action": "pause"})
    run = start(tmp_path, spec, profile=falling)
    run.journal.wish = lambda: Wishes(pause=run.journal.pauses > 0)
    assert run.loop.run() == "paused"
    assert list(run.journal.records) == [1, 2, 3, 4]
    run.journal.wish = Wishes
    again = resume(run, spec, profile=falling)
    assert again.loop.watches.collapsed
    assert again.loop.run() == "succeeded"
    assert len(run.journal.named("collapse.detected")) == 1
    assert [event["step"] for event in run.journal.named("collapse.over")] == [8]
    assert {point["step"] for point in run.journal.fronts[-1]["points"] if point["collapsed"]} == {4, 6}


# -------------------------------------------------------------------- checkpoints


def test_when_a_checkpoint_is_written(tmp_path: Path) -> None:
    run = start(tmp_path, make_spec(steps=8, evaluation={"every": 100}), profile=lambda _: (0.5, 0.5))
    written = []
    checkpoint = run.journal.checkpoint
    run.journal.checkpoint = lambda path, manifest: (written.append(manifest.step), checkpoint(path, manifest))  # type: ignore[method-assign]
    run.loop.run()
    assert written == [0, 3, 6, 8]
    assert run.on_disk() == [0, 6, 8]


def full_disk(run: Run, *failures: int) -> None:
    """Makes the given attempts to save fail, counted from 1."""
    attempts = 0
    save = run.learner.save

    def saving(directory: Path, *, beside: bool) -> None:
        nonlocal attempts
        attempts += 1
        if attempts in failures:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(directory, beside=beside)

    run.learner.save = saving  # type: ignore[method-assign]


def test_one_failed_checkpoint_is_an_event(tmp_path: Path) -> None:
    run = start(tmp_path)
    full_disk(run, 2)
    assert run.loop.run() == "succeeded"
    (event,) = run.journal.named("checkpoint.failed")
    assert ("checkpoint.failed", "error", event) in run.journal.events
    assert event["message"].endswith("No space left on device; free space or fix the directory")
    assert run.figures() == whole(tmp_path / "whole").figures()


def test_failures_count_only_in_a_row(tmp_path: Path) -> None:
    run = start(tmp_path, make_spec(steps=8, checkpoints={"every": 1}))
    full_disk(run, 2, 3, 5, 6)
    assert run.loop.run() == "succeeded"
    assert len(run.journal.named("checkpoint.failed")) == 4


def test_three_failures_end_the_run_and_keep_the_last_good_one(tmp_path: Path) -> None:
    """Of a full disk as something that may be had later, so that the driver hands the job back."""
    run = start(tmp_path, make_spec(steps=8, checkpoints={"every": 1}))
    full_disk(run, 3, 4, 5)
    with pytest.raises(Unreadable, match="No space left on device"):
        run.loop.run()
    assert len(run.journal.named("checkpoint.failed")) == 3
    assert max(run.journal.registered) == 1
    assert list(run.journal.records) == [1, 2, 3, 4]
    assert 1 in run.on_disk()


def test_the_last_checkpoint_is_tried_again(tmp_path: Path) -> None:
    run = start(tmp_path, make_spec(steps=1))
    full_disk(run, 2)
    assert run.loop.run() == "succeeded"
    assert 1 in run.on_disk()
    run = start(tmp_path / "full", make_spec(steps=1))
    full_disk(run, 2, 3, 4)
    with pytest.raises(CheckpointError):
        run.loop.run()


# ------------------------------------------------------------------------ wishes


@pytest.mark.parametrize(
    ("wish", "outcome", "kept"),
    [
        (Wishes(cancel=True), "cancelled", 0),
        (Wishes(pause=True), "paused", 1),
        (Wishes(pause=True, save=False), "paused", 0),  # the step runs again
        (Wishes(stop=True), "stopped", 1),
        (Wishes(stop=True, save=False), "stopped", 1),
        (Wishes(pause=True, stop=True), "paused", 1),
        (Wishes(cancel=True, pause=True, stop=True), "cancelled", 0),
    ],
)
def test_what_people_ask_for(tmp_path: Path, wish: Wishes, outcome: str, kept: int) -> None:
    run = start(tmp_path)
    run.journal.wish = lambda: wish if len(run.journal.records) == 1 else Wishes()
    assert run.loop.run() == outcome
    assert list(run.journal.records) == [1]
    assert max(run.journal.registered) == kept


def test_a_paused_job_continues_as_if_it_had_not_been(tmp_path: Path) -> None:
    run = start(tmp_path / "paused")
    run.journal.wish = lambda: Wishes(pause=len(run.journal.records) == 4)
    assert run.loop.run() == "paused"
    before = run.journal.registered[4].copy()
    again = resume(run)  # and paused at once: a checkpoint that is registered is never written again
    assert again.loop.run() == "paused"
    assert run.journal.registered[4] == before
    run.journal.wish = Wishes
    last = resume(again)
    assert last.loop.run() == "succeeded"
    assert last.figures() == whole(tmp_path / "whole").figures()


def test_a_job_of_before_directions_goes_on_without_what_it_saw_the_wrong_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {0: (0.6, 0.9), 2: (0.6, 0.5), 4: (0.6, 0.4), 6: (0.6, 0.3)}
    objectives = [
        {"name": "accuracy", "reward": {"name": "math"}},
        {"name": "brevity", "reward": {"name": "conciseness"}, "target": {"op": "<=", "value": 0.4}},
    ]
    spec = make_spec(objectives=objectives, weighting={"name": "lagrangian"}, collapse={"action": "alert"})

    def profile(version: int) -> tuple[float, float]:
        return values.get(version, (0.6, 0.6))

    run = start(tmp_path, spec, profile=profile)
    run.journal.wish = lambda: Wishes(pause=len(run.journal.records) == 4)
    state = Archive.state_dict
    with monkeypatch.context() as older:
        older.setattr(Archive, "state_dict", lambda self: {k: v for k, v in state(self).items() if k != "directions"})
        best = {"step": 0, "total": 0.75, "objectives": {"accuracy": 0.6, "brevity": 0.9}}
        seen = {"weights": {"accuracy": 0.5, "brevity": 0.5}, "best": best, "collapsed": True}
        older.setattr(CollapseWatch, "state_dict", lambda _: seen)
        assert run.loop.run() == "paused"
    run.journal.wish = Wishes
    again = resume(run, spec, profile=profile)
    assert again.loop.run() == "succeeded"
    assert not run.journal.named("collapse.detected")
    assert [point["step"] for point in run.journal.fronts[-1]["points"] if point["on_front"]] == [6]


# ------------------------------------------------------------------ kill and resume


def whole(directory: Path, spec: JobSpec | None = None, change: Callable[[Run], None] = lambda _: None) -> Run:
    """The same job without a fault: the oracle."""
    run = start(directory, spec)
    change(run)
    assert run.loop.run() == "succeeded"
    return run


def steer_at_four(run: Run) -> None:
    first = run.journal.log[0][2]
    changed = {"mode": "blend", "weights": {"accuracy": 0.4, "brevity": 0.6}, "bounds": {"accuracy": (0.0, 0.45)}}
    run.journal.log.append((2, 4, first.model_copy(update=changed)))


@pytest.mark.parametrize("weighting", ["fixed", "hypervolume", "gradient"])
def test_killed_anywhere_the_run_continues_with_the_same_figures(tmp_path: Path, weighting: str) -> None:
    spec = make_spec(weighting={"name": weighting}, collapse={"action": "alert"})
    expected = whole(tmp_path / "whole", spec, steer_at_four)
    for where in ("before commit", "after commit", "before register", "after register", "before removal"):
        for step in range(7):
            run = start(tmp_path / where / str(step), spec)
            steer_at_four(run)
            run.journal.die_at = (where, step)
            try:
                run.loop.run()
            except Killed:
                run = resume(run, spec)
                assert run.loop.run() == "succeeded"
            assert run.figures() == expected.figures(), (where, step)
            assert run.journal.fronts[-1] == expected.journal.fronts[-1], (where, step)
            assert run.loop.samples == expected.loop.samples
            assert run.journal.registered.keys() == expected.journal.registered.keys(), (where, step)
            assert run.on_disk() == expected.on_disk(), (where, step)
            for kept, entry in run.journal.registered.items():
                for fact in ("on_front", "metrics"):
                    assert entry[fact] == expected.journal.registered[kept][fact], (where, step)


def test_engines_have_the_checkpoint_before_they_serve(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.journal.die_at = ("before commit", 5)
    with pytest.raises(Killed):
        run.loop.run()
    again = resume(run)
    assert again.world.calls[:2] in (["load step-000004", "sync"], ["load step-000003", "sync"])
    assert again.world.version == max(run.journal.registered)
    assert again.world.skills == again.learner.skills


def test_the_state_is_json_and_round_trips(tmp_path: Path) -> None:
    run = start(tmp_path, make_spec(weighting={"name": "gradient"}))
    run.loop.start()
    for step in (1, 2, 3):
        run.loop.step(step)
    again = resume(run, make_spec(weighting={"name": "gradient"}))
    assert again.loop.state_dict() == json.loads(json.dumps(run.loop.state_dict()))
    assert run.loop.state.front is not None
    assert again.loop.state.front is not None
    assert torch.equal(again.loop.state.front.points_NK, run.loop.state.front.points_NK)


# ------------------------------------------------------------------ state of other versions

ACCEPTED = Path(__file__).parents[2] / "data" / "accepted"
OF_20_NOV = {
    "weighting": {"name": "hv_gradient"},
    "sampling": {"budget": {"name": "knapsack", "objective": "accuracy"}},
    "guardrails": [{"metric": "kl", "max": 9.0}],
}


def resumed_with(state: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A job after three steps, whose newest checkpoint says this."""
    run = start(tmp_path, make_spec(**OF_20_NOV))
    run.loop.start()
    for step in (1, 2, 3):
        run.loop.step(step)
    monkeypatch.setattr("orchestrator.loop.parse_state", lambda _: parse_state(json.dumps(state)))
    return resume(run, make_spec(**OF_20_NOV))


def of_20_nov() -> dict[str, Any]:
    state: dict[str, Any] = json.loads((ACCEPTED / "state-20-nov.json").read_text())
    return state


def test_a_checkpoint_of_an_older_version_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = resumed_with(of_20_nov(), tmp_path, monkeypatch)
    assert [point.step for point in again.loop.parts.archive.points] == [0, 2]
    assert again.loop.state_dict()["weighting"] == of_20_nov()["weighting"]
    assert again.loop.parts.order.position == 9
    assert again.loop.parts.budget.rate(0) == (0 + 0.5 * 2) / (4 + 2)  # type: ignore[attr-defined]
    assert again.loop.run() == "succeeded"


def test_what_a_later_version_says_more_of_a_point_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it mattered, that version would have raised the format."""
    state = of_20_nov() | {"format": STATE_FORMAT, "invented": 1}
    state["archive"]["points"][1]["invented"] = 1
    again = resumed_with(state, tmp_path, monkeypatch)
    assert [point.step for point in again.loop.parts.archive.points] == [0, 2]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": STATE_FORMAT + 1}, f"is of format {STATE_FORMAT + 1}, and this version reads up to {STATE_FORMAT}"),
        ({"archive": {"invented": 1}}, r"state.json of step 3 is not as this version writes it \(KeyError: 'ranges'\)"),
        ({"collapsed": None, "front": 7}, "not as this version writes it .TypeError"),
    ],
)
def test_a_checkpoint_that_this_version_can_not_read_waits_for_one_that_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(Unreadable, match=told):
        resumed_with(of_20_nov() | changes, tmp_path, monkeypatch)
