"""Rollouts that a job keeps: which, what a row says, and what a crash or a full disk makes of them."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.rollouts.samples import kept_steps, read_samples, shard
from policies.types import LearnStats, Rollout, RolloutRequest
from rewards.base import RewardBatch
from tests.loop_fakes import Killed, Run, make_spec, resume, start


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def rows_of(run: Run, step: int) -> list[dict[str, Any]]:
    return read_samples(run.loop.keeper.directory, step)


def without_fence(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "fence"} for row in rows]


def test_a_row_says_what_was_asked_answered_and_learned(tmp_path: Path) -> None:
    run = start(tmp_path, make_spec(samples={"prompts": 2}))
    run.loop.run()
    assert kept_steps(run.loop.keeper.directory, up_to=6) == [1, 2, 3, 4, 5, 6]
    rows = rows_of(run, 3)
    assert [row["group"] for row in rows] == [0] * 4 + [1] * 4
    learned_B, _ = run.learner.learned[2]
    torch.testing.assert_close(torch.tensor([row["advantage"] for row in rows]), learned_B[:8])
    for row in rows:
        assert row["prompt"] == f"train {row['prompt_index'] + 1}"
        values = dict(zip(("accuracy", "brevity"), map(float, row["completion"].split()), strict=True))
        assert row["rewards"] == row["signal"] == pytest.approx(values)
        assert (row["step"], row["fence"], row["policy_version"], row["steering_version"]) == (3, 1, 2, 1)
        assert row["truncated"] is (row["tokens"] == 9)
        assert row["scales"] == {"accuracy": 1.0, "brevity": 1.0}
        assert row["choice"]["preference"] == [0.75, 0.25]


def test_the_signal_is_gated_and_the_reward_raw(tmp_path: Path) -> None:
    gate = {"objective": "accuracy", "at_least": 2.0}
    objectives = [
        {"name": "accuracy", "reward": {"name": "math"}},
        {"name": "brevity", "reward": {"name": "conciseness"}, "gate": gate},
    ]
    run = start(tmp_path, make_spec(steps=1, objectives=objectives))
    run.loop.run()
    assert {row["signal"]["brevity"] for row in rows_of(run, 1)} == {0.0}
    assert all(row["rewards"]["brevity"] > 0 for row in rows_of(run, 1))


def test_thoughts_are_kept_and_change_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gold = {"reward": {"name": "math"}, "every": 1, "samples": 4}
    rollout = {"prompts_per_step": 3, "rollouts_per_prompt": 4, "max_tokens": 9}
    sections: dict[str, Any] = {"steps": 2, "gold": gold}

    def watched(batch: RewardBatch) -> list[float | None]:
        return [float(text.split()[0]) for text in batch.completions]

    plain = start(tmp_path / "plain", make_spec(**sections), gold=watched)
    plain.loop.run()
    run = start(tmp_path / "thinks", make_spec(**sections, rollout={**rollout, "reasoning": {}}), gold=watched)
    sample, learn = run.engines.sample, run.learner.learn

    def thinks(request: RolloutRequest) -> Rollout:
        rollout = sample(request)
        return replace(rollout, text=f"9 9</think>\n\n{rollout.text}")

    def learns(rollouts: list[Rollout], *further: Any) -> LearnStats:
        return learn([replace(rollout, text=rollout.text.partition("\n\n")[2]) for rollout in rollouts], *further)

    monkeypatch.setattr(run.engines, "sample", thinks)
    monkeypatch.setattr(run.learner, "learn", learns)
    run.loop.run()
    assert run.figures() == plain.figures()
    for row, before in zip(rows_of(run, 2), rows_of(plain, 2), strict=True):
        assert row == before | {"completion": f"9 9</think>\n\n{before['completion']}"}


@pytest.mark.parametrize(("every", "steps"), [(0, []), (2, [2, 4, 6]), (4, [4])])
def test_which_steps_are_kept(tmp_path: Path, every: int, steps: list[int]) -> None:
    run = start(tmp_path, make_spec(samples={"every": every}))
    run.loop.run()
    assert kept_steps(run.loop.keeper.directory, up_to=6) == steps


def test_more_prompts_than_the_batch_has_keeps_the_batch(tmp_path: Path) -> None:
    run = start(tmp_path, make_spec(steps=1, samples={"prompts": 64}))
    run.loop.run()
    assert len(rows_of(run, 1)) == 12


def test_keeping_rollouts_changes_no_figure(tmp_path: Path) -> None:
    runs = [start(tmp_path / str(every), make_spec(samples={"every": every})) for every in (0, 1)]
    for run in runs:
        run.loop.run()
    assert runs[0].figures() == runs[1].figures()


def test_steps_that_are_run_again_write_the_same_rows(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole")
    whole.loop.run()
    run = start(tmp_path / "killed")
    run.journal.die_at = ("after commit", 5)
    with pytest.raises(Killed):
        run.loop.run()
    assert kept_steps(run.loop.keeper.directory, up_to=6) == [1, 2, 3, 4]  # the kill came before the rows of step 5
    again = resume(run)
    again.loop.run()
    assert kept_steps(again.loop.keeper.directory, up_to=6) == [1, 2, 3, 4, 5, 6]
    for step in range(1, 7):
        assert without_fence(rows_of(again, step)) == without_fence(rows_of(whole, step))
    assert {row["fence"] for row in rows_of(again, 6)} == {2}
    assert not [path for path in again.loop.keeper.directory.iterdir() if path.name.startswith(".")]


def test_a_holder_that_lost_its_lease_replaces_nothing(tmp_path: Path) -> None:
    run = start(tmp_path, fence=7)
    run.loop.run()
    rows = rows_of(run, 2)
    run.loop.keeper.fence = 6
    run.loop.keeper.write(2, [{**row, "fence": 6} for row in rows])
    assert rows_of(run, 2) == rows


def test_a_disk_that_takes_no_rollouts_costs_an_event(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.loop.keeper.directory = tmp_path / "a file"
    run.loop.keeper.directory.write_text("")
    assert run.loop.run() == "succeeded"
    assert [event["step"] for event in run.journal.named("rollouts.failed")] == [1]  # once


def test_what_a_crash_undid_or_damaged_is_not_shown(tmp_path: Path) -> None:
    shard(tmp_path, 1).write_text(json.dumps({"step": 1}) + "\n")
    shard(tmp_path, 2).write_text('{"step": 2}\n{"ste')
    shard(tmp_path, 3).write_text(json.dumps({"step": 3}) + "\n")
    (tmp_path / ".000004.jsonl-1").write_text("{}\n")
    assert kept_steps(tmp_path, up_to=2) == [1, 2]
    assert read_samples(tmp_path, 1) == [{"step": 1}]
    assert read_samples(tmp_path, 2) == read_samples(tmp_path, 9) == []
    assert kept_steps(tmp_path / "none", up_to=2) == []


# ---------------------------------------------------------------- what a steer became


def steered(tmp_path: Path, **spec: Any) -> Run:
    run = start(tmp_path, make_spec(**spec))
    first = run.journal.log[0][2]
    bounds = {"accuracy": (0.3, 1.0), "brevity": (0.0, 1.0)}
    change = {"mode": "manual", "weights": {"accuracy": 0.1, "brevity": 0.9}, "bounds": bounds}
    run.journal.log.append((2, 4, first.model_copy(update=change)))
    return run


def test_the_event_says_what_the_bounds_held_back(tmp_path: Path) -> None:
    run = steered(tmp_path)
    run.loop.run()
    (event,) = run.journal.named("steering.applied")
    assert event["requested"]["weights"] == {"accuracy": 0.1, "brevity": 0.9}
    assert event["applied"] == pytest.approx({"accuracy": 0.3, "brevity": 0.7})
    assert event["applied"] == run.journal.records[4]["weights"]["applied"]
    assert event["clamped"] == {"accuracy": True, "brevity": False}


@pytest.mark.parametrize(
    "where", [("before commit", 4), ("after commit", 4), ("after steered", 2), ("after commit", 5)]
)
def test_a_crash_neither_loses_nor_repeats_the_event(tmp_path: Path, where: tuple[str, int]) -> None:
    run = steered(tmp_path)
    run.journal.die_at = where
    with pytest.raises(Killed):
        run.loop.run()
    again = resume(run)
    again.loop.run()
    (event,) = again.journal.named("steering.applied")
    assert (event["step"], event["version"]) == (4, 2)
    assert event["applied"] == again.journal.records[4]["weights"]["applied"]


def test_only_the_newest_steps_are_kept(tmp_path: Path) -> None:
    run = start(tmp_path, make_spec(samples={"every": 2, "keep": 2}))
    run.loop.run()
    assert sorted(path.name for path in run.loop.keeper.directory.iterdir()) == ["000004.jsonl", "000006.jsonl"]
