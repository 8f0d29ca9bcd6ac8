"""Updates that the learner did not make: what a step without one leaves, tells, and when it is the last."""

import dataclasses
import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch

from policies.types import LearnStats
from tests.loop_fakes import Killed, Run, make_spec, resume, start


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def skipping(run: Run, steps: Collection[int], **figures: Any) -> Run:
    """At these steps the learner makes no update, and says so."""
    learner: Any = run.learner
    learn = learner.learn

    def at_others(*arguments: Any) -> LearnStats:
        before = list(learner.skills)
        learned: LearnStats = learn(*arguments)
        if run.world.version + 1 not in steps:
            return learned
        learner.skills = before
        skipped = {"updates": 0, "updates_not_finite": 1, **figures}
        return dataclasses.replace(learned, **skipped)

    learner.learn = at_others
    return run


def test_a_skipped_update_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    """As often in a row as the spec allows, and again once a step was whole."""
    run = skipping(start(tmp_path, make_spec(steps=8)), {1, 2, 3, 5, 6, 7})
    assert run.loop.run() == "succeeded"
    assert [record["updates_not_finite"] for record in run] == [1, 1, 1, 0, 1, 1, 1, 0]
    told = run.journal.named("update.skipped")
    assert [event["step"] for event in told] == [1, 2, 3, 5, 6, 7]
    message = "1 of 1 updates skipped: the gradient or the loss was not finite"
    assert told[0] == {"step": 1, "message": message, "skipped": 1, "updates": 0}
    assert {level for type, level, _ in run.journal.events if type == "update.skipped"} == {"warning"}


@pytest.mark.parametrize(
    ("most", "last", "message"),
    [
        (2, 5, r"^step 5: .* not finite, and optimizer\.max_skipped_steps lets 2 such steps in a row go on; lower"),
        (0, 3, r"^step 3: .* lets 0 such steps in a row go on"),
    ],
)
def test_too_many_in_a_row_end_the_job(tmp_path: Path, most: int, last: int, message: str) -> None:
    """With every step before it committed, and the weights of the last update."""
    run = skipping(start(tmp_path, make_spec(optimizer={"max_skipped_steps": most})), {3, 4, 5})
    with pytest.raises(ValueError, match=message):
        run.loop.run()
    assert max(run.journal.records) == last - 1
    assert run.journal.named("update.skipped")[-1]["step"] == last
    assert run.world.calls[-1] == "learn"  # engines and ledger have nothing of it


def test_a_row_of_skipped_steps_survives_a_kill(tmp_path: Path) -> None:
    spec, steps = make_spec(steps=9, optimizer={"max_skipped_steps": 3}), {3, 4, 5, 6}
    run = skipping(start(tmp_path, spec), steps)
    run.journal.die_at = ("after commit", 4)
    with pytest.raises(Killed):
        run.loop.run()
    run = skipping(resume(run, spec), steps)
    assert run.loop.watches.not_finite == 1  # as the checkpoint of step 3 has it
    with pytest.raises(ValueError, match=r"^step 6: .* lets 3 such steps"):
        run.loop.run()
    assert [event["step"] for event in run.journal.named("update.skipped")] == [3, 4, 5, 6]


def test_a_checkpoint_of_a_version_that_counted_none_is_gone_on_from(tmp_path: Path) -> None:
    run = skipping(start(tmp_path), {1, 2, 3})
    whole = run.loop.state_dict
    run.loop.state_dict = lambda: {k: v for k, v in whole().items() if k != "not_finite"}  # type: ignore[method-assign]
    run.journal.die_at = ("after register", 3)
    with pytest.raises(Killed):
        run.loop.run()
    assert resume(run).loop.watches.not_finite == 0


def test_a_step_whose_completions_are_all_masked_is_told(tmp_path: Path) -> None:
    """It is no sign of trouble with the numbers: neither a step of such a row, nor its end."""
    nothing, masked = {"updates_not_finite": 0}, {"updates_masked": 2}
    run = skipping(start(tmp_path, make_spec(optimizer={"max_skipped_steps": 1})), {1, 2, 3}, **nothing, **masked)
    run.loop.watches.not_finite = 1
    for step in (1, 2, 3):
        run.loop.step(step)
        assert run.loop.watches.not_finite == 1
    told = run.journal.named("update.skipped")
    assert [event["step"] for event in told] == [1, 2, 3]
    message = "2 of 2 updates skipped: every completion was cut at rollout.max_tokens (loss.mask_truncated)"
    assert told[0] == {"step": 1, "message": message, "skipped": 2, "updates": 0}
    run.loop.step(4)
    assert run.loop.watches.not_finite == 0


def test_masked_completions_count_in_their_groups(tmp_path: Path) -> None:
    """As in TRL: advantages, weights and figures are those of a job without the mask."""
    plain, masked = (
        start(tmp_path / str(mask), make_spec(loss={"mask_truncated": mask}, steps=2)) for mask in (False, True)
    )
    for run in (plain, masked):
        assert run.loop.run() == "succeeded"
    assert any(rollout.truncated for rollout in masked.learner.learned_from[0])
    for (one, _), (other, _) in zip(plain.learner.learned, masked.learner.learned, strict=True):
        assert torch.equal(one, other)
    assert plain.figures() == masked.figures()


def test_strategies_learn_nothing_of_an_update_that_was_not_made(tmp_path: Path) -> None:
    """The credit that it would have given, and gradients that are no numbers, would stay in every average."""
    run = skipping(start(tmp_path / "credit", make_spec(weighting={"name": "covariance"}, steps=3)), {1, 2})
    run.loop.step(1)
    run.loop.step(2)
    assert run.strategy.part.state_dict()["covariance"] is None
    run.loop.step(3)
    assert run.strategy.part.state_dict()["covariance"] is not None

    spec = make_spec(weighting={"name": "gradient"}, gramian={"mode": "exact", "average": 0.9}, steps=2)
    run = skipping(start(tmp_path / "gradients", spec), {1})
    measured = run.learner.gramian
    run.learner.gramian = lambda *arguments: measured(*arguments) * math.nan  # type: ignore[method-assign]
    run.loop.step(1)
    assert run.loop.state.gramian is None
    run.learner.gramian = measured  # type: ignore[method-assign]
    run.loop.step(2)
    assert bool(torch.isfinite(torch.tensor(run.loop.state.gramian)).all())
