"""One run over stand-ins for engines and learner: what is tested, what is chosen, and what the record says."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from orchestrator.arena.run import RunFailed, run_job
from orchestrator.build import Parts
from orchestrator.evaluation import Evaluation
from orchestrator.spec import JobSpec
from orchestrator.storage.checkpoint_store import CheckpointStore
from orchestrator.storage.checkpoints import CheckpointError
from rewards.base import RewardFailedError
from tests.loop_fakes import World, make_parts, make_spec

# By version of the policy: accuracy and brevity of every held-out completion.
REACHED = [(0.1, 0.9), (0.3, 0.8), (0.5, 0.6), (0.7, 0.5), (0.8, 0.3), (0.2, 0.2), (0.85, 0.05)]


def spec_of(**sections: Any) -> JobSpec:
    evaluation = {"every": 1, "test_points": 2, "greedy": False}
    return make_spec(evaluation=evaluation, samples={"every": 0}, **sections)


def parts_of(spec: JobSpec, world: World | None = None) -> Parts:
    return make_parts(spec, world or World(), lambda version: REACHED[version])


def test_tested_are_the_policies_that_cover_most_the_chosen_one_and_both_ends(tmp_path: Path) -> None:
    spec = spec_of()
    figures = run_job(spec, parts_of(spec), tmp_path, {})
    # 3 covers .35, and of the others 1 adds most to it; 4 has the highest sum weighted 3 to 1
    assert [point["step"] for point in figures["test"]] == [0, 1, 3, 4, 6]
    assert figures["chosen_step"] == 4
    assert [point["on_front"] for point in figures["validation"]] == [True] * 5 + [False, True]
    for point in figures["test"]:
        assert tuple(point["objectives"].values()) == pytest.approx(REACHED[point["step"]])
        assert point["prompts"] == 3


def test_the_hypervolume_is_that_of_the_archive_by_then(tmp_path: Path) -> None:
    spec = spec_of()
    found = [point["hypervolume"] for point in run_job(spec, parts_of(spec), tmp_path, {})["validation"]]
    assert found[0] == pytest.approx(0.1 * 0.9)
    assert found[1] == pytest.approx(0.3 * 0.8 + 0.1 * 0.1)
    assert found[5] == found[4] < found[6]  # a point that is dominated adds nothing


def test_weights_and_rewards_are_told_for_every_step(tmp_path: Path) -> None:
    spec = spec_of()
    figures = run_job(spec, parts_of(spec), tmp_path, {})
    assert figures["weights"] == [pytest.approx([0.75, 0.25])] * 6
    assert [len(row) for row in figures["train_rewards"]] == [2] * 6
    seconds = figures["seconds"]
    assert len(figures["step_seconds"]) == 6
    assert min(seconds.values()) >= 0
    parts = ("generate", "score", "learn", "weigh", "sync", "evaluate", "checkpoint", "other", "ends")
    assert sum(seconds[part] for part in parts) == pytest.approx(seconds["total"])


def test_the_initial_policy_is_evaluated_once_for_all_runs(tmp_path: Path) -> None:
    spec, initial = spec_of(), dict[str, Evaluation]()
    first_world, second_world = World(), World()
    first = run_job(spec, parts_of(spec, first_world), tmp_path / "a", initial)
    assert set(initial) == {"validation", "test"}
    second = run_job(spec, parts_of(spec, second_world), tmp_path / "b", initial)
    assert first_world.calls.count("generate") - second_world.calls.count("generate") == 2
    timed = {"seconds", "step_seconds"}
    assert {k: v for k, v in first.items() if k not in timed} == {k: v for k, v in second.items() if k not in timed}


def test_a_reward_that_fails_is_the_runs_reason(tmp_path: Path) -> None:
    spec, world = spec_of(), World()
    parts = parts_of(spec, world)
    parts.rewards.error = RewardFailedError("brevity", "its process ended")  # type: ignore[attr-defined]  # a stand-in
    with pytest.raises(RunFailed, match="paused: objective 'brevity': its process ended"):
        run_job(spec, parts, tmp_path, {})


@pytest.mark.parametrize(
    ("dtype", "cut", "fails"),
    [
        ("float32", {}, True),
        ("bfloat16", {}, False),
        ("float32", {"top_p": 0.9}, False),
        ("float32", {"top_k": 50}, False),
        ("float32", {"min_p": 0.1}, False),
    ],
)
def test_a_run_whose_engine_had_other_weights_fails(
    tmp_path: Path, dtype: str, cut: dict[str, float], fails: bool
) -> None:
    """Where rounding, or what is cut off, would not say so as well."""
    rollout = {"prompts_per_step": 3, "rollouts_per_prompt": 4, "max_tokens": 9, **cut}
    spec = spec_of(policy={"model": "quickstart", "dtype": dtype}, rollout=rollout)
    parts = parts_of(spec)
    learn = parts.learner.learn

    def learn_apart(*arguments: Any) -> Any:
        return dataclasses.replace(learn(*arguments), sampler_gap=0.02)

    parts.learner.learn = learn_apart  # type: ignore[method-assign]
    said = pytest.raises(RunFailed, match=r"did not sample from the learner's weights: .* 0\.02 apart")
    with said if fails else contextlib.nullcontext():
        run_job(spec, parts, tmp_path, {})


def test_a_run_whose_front_lacks_a_checkpoint_fails_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full for a moment: the loop goes on without the checkpoint, and its policy can't be tested."""
    begin = CheckpointStore.begin

    def full_once(self: CheckpointStore, *, step: int, **options: Any) -> Any:
        if step == 3:
            raise CheckpointError("can't write checkpoint: No space left on device")
        return begin(self, step=step, **options)

    monkeypatch.setattr(CheckpointStore, "begin", full_once)
    spec = spec_of()
    with pytest.raises(RunFailed, match=r"checkpoint of step 3 was not written, .*No space left.*--retry-failed"):
        run_job(spec, parts_of(spec), tmp_path, {})
