"""A gold reward in the loop: scored on samples, never optimised, watched, recorded, kept over a kill."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.gold import error_of, spread_out
from orchestrator.report import render_report
from orchestrator.spec import SpecError
from policies.overoptimisation import rank_correlation
from rewards.base import RewardBatch, RewardFailedError
from tests.loop_fakes import Killed, Run, make_spec, resume, start

GOLD = {"reward": {"name": "math"}, "every": 2, "samples": 5, "window": 1, "drop": 0.01, "rise": 0.01}


class FallingGold:
    """Worth less at every call, and in one call more for what is more accurate."""

    def __init__(self) -> None:
        self.batches: list[RewardBatch] = []
        self.fails = False

    def __call__(self, batch: RewardBatch) -> list[float | None]:
        self.batches.append(batch)
        if self.fails:
            raise RewardFailedError("gold", "no answer")
        accuracy = [float(text.split()[0]) for text in batch.completions]
        return [value - 0.5 * sum(accuracy) / len(accuracy) * len(self.batches) for value in accuracy]


def gold_run(directory: Path, gold: Any = None, **changes: Any) -> Run:
    sections = {"steps": 8, **changes}
    return start(directory, make_spec(gold=GOLD | sections.pop("watch", {}), **sections), gold=gold or FallingGold())


@given(counts=st.lists(st.integers(0, 5), max_size=6), most=st.integers(0, 20))
def test_rows_are_spread_over_the_prompts(counts: list[int], most: int) -> None:
    rows = spread_out(counts, most)
    assert rows == sorted(set(rows))
    assert len(rows) == min(most, sum(counts))
    owners = [p for p, count in enumerate(counts) for _ in range(count)]
    taken = [sum(owners[row] == p for row in rows) for p in range(len(counts))]
    for p, count in enumerate(counts):  # nobody has two more than another that has more to give
        assert all(taken[p] <= taken[q] + 1 or taken[q] == counts[q] for q in range(len(counts)))
        assert taken[p] <= count


def test_rollouts_of_a_prompt_tell_less_than_prompts() -> None:
    values = [1.0, 1.0, 0.0, 0.0]
    assert error_of(values, [0, 0, 1, 1], (0.0, 2.0)) == pytest.approx(0.5 / 2)  # the means 1 and 0
    assert error_of([*values, None], [0, 1, 2, 3, 4], (0.0, 1.0)) == pytest.approx(0.57735 / 2, rel=1e-4)
    assert error_of(values, [7] * 4, (0.0, 1.0)) == pytest.approx(0.57735 / 2, rel=1e-4)  # no more is known
    assert error_of([0.5], [7], (0.0, 1.0)) is None


def test_gold_is_recorded_and_changes_nothing_else(tmp_path: Path) -> None:
    gold = FallingGold()
    run = gold_run(tmp_path / "gold", gold)
    assert run.loop.run() == "succeeded"
    plain = start(tmp_path / "plain", make_spec(steps=8))
    plain.loop.run()
    for step, record in run.journal.records.items():
        read = record.pop("gold", None)
        assert (read is None) == (step % 2 == 1)
        for one in (record, plain.journal.records[step]):
            one.pop("timings_s", None)
        assert record == plain.journal.records[step]
        if read is None:
            continue
        batch = gold.batches[step // 2 - 1]
        values = [[float(word) for word in text.split()] for text in batch.completions]
        assert read["rollouts"] == len(values) == 5
        if step == 2:  # whose three prompts differ
            assert len(set(batch.prompts)) == 3
        scores = [a - 0.5 * sum(v[0] for v in values) / 5 * (step // 2) for a, _ in values]
        assert read["mean"] == pytest.approx(sum(scores) / 5)
        assert read["objectives"]["brevity"] == pytest.approx(sum(b for _, b in values) / 5)
        assert read["correlation"]["accuracy"] == pytest.approx(1.0)
        assert read["correlation"]["brevity"] == pytest.approx(rank_correlation([b for _, b in values], scores))
    assert len(gold.batches) == 4


def test_an_objective_that_rises_while_gold_falls_is_told_once(tmp_path: Path) -> None:
    run = gold_run(
        tmp_path / "job", watch={"every": 1, "action": "pause"}, guardrails=[{"metric": "gold.mean", "min": 0.0}]
    )
    run.loop.run()
    told = run.journal.named("overoptimisation.detected")
    assert told
    assert len({(one["objective"], one["step"]) for one in told}) == len(told)
    assert told[0]["message"].startswith(f"{told[0]['objective']} rose from ")
    assert told[0]["fall_error"] > 0
    assert told[0]["rise_error"] > 0
    record = run.journal.records[told[0]["step"]]
    assert told[0]["objective"] in record["gold"]["overoptimised"]
    assert run.journal.pauses >= len(told)
    assert run.journal.why[0] == f"paused: {told[0]['message']}"
    (breach,) = run.journal.named("guardrail.breached")
    assert breach["metric"] == "gold.mean"


def test_a_killed_run_goes_on_watching_where_it_was(tmp_path: Path) -> None:
    class Timeless:
        """The same for the same rollouts, whoever asked before."""

        def __call__(self, batch: RewardBatch) -> list[float | None]:
            return [1.0 - float(text.split()[0]) + 0.1 * len(text) for text in batch.completions]

    watch = {"every": 1, "window": 2}
    whole = gold_run(tmp_path / "whole", Timeless(), watch=watch)
    whole.loop.run()
    cut = gold_run(tmp_path / "cut", Timeless(), watch=watch)
    cut.journal.die_at = ("after commit", 5)
    with pytest.raises(Killed):
        cut.loop.run()
    again = resume(cut, cut.loop.spec, gold=Timeless())
    assert again.loop.state.step == 4
    again.loop.run()
    assert again.figures() == whole.figures()
    assert again.journal.named("overoptimisation.detected") == whole.journal.named("overoptimisation.detected")
    assert again.loop.watches.gold_watch.state_dict() == whole.loop.watches.gold_watch.state_dict()


def test_gold_that_fails_costs_an_event_and_no_step(tmp_path: Path) -> None:
    gold = FallingGold()
    gold.fails = True
    run = gold_run(tmp_path / "job", gold)
    assert run.loop.run() == "succeeded"
    (told,) = run.journal.named("gold.failed")
    assert told == {"step": 2, "message": "no answer"}
    assert not any("gold" in record for record in run.journal.records.values())


def test_rows_that_gold_does_not_apply_to_are_left_out(tmp_path: Path) -> None:
    run = gold_run(tmp_path / "job", lambda batch: [None] * len(batch))
    run.loop.run()
    read = run.journal.records[2]["gold"]
    assert (read["mean"], read["rollouts"], read["correlation"]) == (None, 0, {"accuracy": None, "brevity": None})
    json.dumps(read, allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"range": [1, 0]}, "gold.range: expected [lo, hi] with lo < hi"),
        ({"reward": {"name": "maths"}}, "gold.reward.name: unknown reward 'maths'; did you mean 'math'"),
        ({"samples": 1}, "gold.samples"),
        ({"weight": 1}, "gold.weight: unknown field"),
    ],
)
def test_a_gold_that_cannot_be_meant_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as error:
        make_spec(gold=GOLD | changes)
    assert str(error.value).startswith(field)


def test_a_guardrail_on_gold_needs_gold() -> None:
    rail = {"metric": "gold.correlation.brevity", "min": 0.2}
    assert make_spec(gold=GOLD, guardrails=[rail])
    with pytest.raises(SpecError, match=r"guardrails.0.metric: no figure 'gold.correlation.brevity'"):
        make_spec(guardrails=[rail])


def test_the_report_shows_gold_beside_the_objectives(tmp_path: Path) -> None:
    run = gold_run(tmp_path / "job", watch={"every": 1})
    run.loop.run()
    (first, *_) = run.journal.named("overoptimisation.detected")
    events = [{"seq": 1, "type": "overoptimisation.detected", "at": 1.0, "level": "warning", "data": first}]
    parts: dict[str, Any] = {"front": run.journal.fronts[-1], "samples": [], "events": events}
    spec = run.loop.spec.model_dump(mode="json")
    html = render_report(job={"id": "j", "status": "succeeded"}, spec=spec, steps=list(run), **parts)
    assert "Against the gold reward" in html
    assert f"seen at step {first['step']}" in html
    assert "Rank correlation with the gold reward" in html
    without = [{key: value for key, value in step.items() if key != "gold"} for step in run]
    assert "gold reward</h2>" not in render_report(job={"id": "j"}, spec=spec, steps=without, **parts)
