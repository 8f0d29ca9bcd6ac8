"""What a dry run says of the calls of judges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator import evaluation
from orchestrator.checks.judge_calls import SAMPLES, judge_calls
from orchestrator.rollouts.prompts import Contents
from orchestrator.spec import JobSpec, parse_spec
from rewards.judges import profiles
from tests.judge_server import write_profiles

URL = "https://judges.example.com/v1"
PRICES = {"price_per_million_input_tokens": 2.0, "price_per_million_output_tokens": 10.0}
GOOD = {"name": "judge", "options": {"profile": "paid", "rubric": "style", "max_tokens": 100}}
VALIDATION, TEST = 200, 500
# 0, 10, 20, 25; the start, the last policy and the front's two others; completions of the report
HELD_OUT = 4 * VALIDATION + 4 * TEST * 2 + 20


@pytest.fixture(autouse=True)
def _profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_profiles(tmp_path, paid={"base_url": URL, **PRICES}, free={"base_url": URL})
    monkeypatch.setenv(profiles.VARIABLE, str(written))


def spec_with(*rewards: dict[str, Any], **changes: Any) -> JobSpec:
    return parse_spec(
        {
            "name": "a job", "steps": 25, "policy": {"model": "quickstart"},
            "data": {"type": "quickstart", "validation": VALIDATION, "test": TEST},
            "objectives": [
                {"name": "right", "reward": {"name": "math"}},
                *({"name": f"o{i}", "reward": reward} for i, reward in enumerate(rewards)),
            ],
            "rollout": {"prompts_per_step": 4, "rollouts_per_prompt": 8, "max_tokens": 50}, **changes,
        }
    )  # fmt: skip


def told(spec: JobSpec, contents: dict[str, Contents] | None = None) -> list[tuple[str, int, int | None]]:
    return [(calls.param, calls.training, calls.evaluation) for calls in judge_calls(spec, contents or {})]


def judge(name: str = "judge", **options: Any) -> dict[str, Any]:
    return {"name": name, "options": {"profile": "free", **options}}


@pytest.mark.parametrize(
    ("reward", "asks"),
    [
        (judge(rubric="style"), 1),
        (judge(rubric="style", votes=3, temperature=0.7), 3),
        (judge("judge_pairwise"), 2),
    ],
)
def test_every_vote_and_order_is_a_call(reward: dict[str, Any], asks: int) -> None:
    assert told(spec_with(reward)) == [("objectives.1.reward", asks * 25 * 32, asks * HELD_OUT)]


def test_what_is_no_judge_is_not_asked() -> None:
    assert told(spec_with()) == []


@pytest.mark.parametrize(("steps", "reached"), [(25, 25 * 4), (10_000, 3000)])
def test_what_the_initial_policy_is_compared_by_is_asked_too(steps: int, reached: int) -> None:
    """Of the prompts that the steps may reach, whichever objective's transform compares: all rewards score them."""
    data = {"type": "quickstart", "train": 3000, "validation": VALIDATION, "test": TEST}
    document = spec_with(judge(rubric="style"), data=data, steps=steps).model_dump(mode="json")
    ((_, without, _),) = told(parse_spec(document))
    document["objectives"][0]["transform"] = {"name": "lsc"}
    ((_, asked, _),) = told(parse_spec(document))
    assert asked == without + 8 * reached


def test_heads_of_one_judge_share_their_calls() -> None:
    rubrics = {"kind": "Is it kind?", "short": "Is it short?"}
    found = told(spec_with(judge(rubric=rubrics, head="kind"), judge(rubric=rubrics, head="short")))
    assert found == [("objectives.1.reward", 800, HELD_OUT)]


@pytest.mark.parametrize(
    ("evaluation", "rows"),
    [
        ({"prompts": 10}, 4 * 10 + 4 * TEST * 2 + 20),
        ({"rollouts_per_prompt": 3, "greedy": False}, 4 * VALIDATION * 3 + 4 * TEST * 3 + 20),
        ({"rollouts_per_prompt": 3, "temperature": 0}, HELD_OUT),
        ({"test_points": 1}, 4 * VALIDATION + 3 * TEST * 2 + 20),
        ({"every": 100}, 2 * VALIDATION + 2 * TEST * 2 + 20),
    ],
)
def test_what_is_held_out_is_scored_as_the_spec_says(evaluation: dict[str, Any], rows: int) -> None:
    assert told(spec_with(judge(rubric="style"), evaluation=evaluation))[0][2] == rows


def test_the_reports_completions_are_those_that_are_scored() -> None:
    assert SAMPLES == evaluation.SAMPLES


def test_gold_is_asked_in_training_alone() -> None:
    gold = {"reward": GOOD, "every": 2, "samples": 10}
    assert told(spec_with(gold=gold)) == [("gold.reward", 12 * 10, 0)]


def test_splits_of_files_count_as_far_as_they_were_read() -> None:
    data = {"type": "files", "train": "t.jsonl", "validation": "v.jsonl"}
    spec = spec_with(judge(rubric="style"), data=data, policy={"model": "someone/model"})
    assert told(spec)[0][2] is None
    assert told(spec, {"validation": Contents(rows=6)})[0][2] == 4 * 6 + 2 * 6
    data["sets"] = {"more": "m.jsonl"}
    spec = spec_with(judge(rubric="style"), data=data, policy={"model": "someone/model"}, evaluation={"prompts": 5})
    assert told(spec, {"validation": Contents(rows=6)})[0][2] is None
    assert told(spec, {"validation": Contents(rows=6), "sets.more": Contents(rows=3)})[0][2] == 4 * (5 + 3) + 2 * 6


def test_calls_cost_what_the_profile_says() -> None:
    each = (50 * 2.0 + 100 * 10.0) / 1e6
    (paid, free) = [calls.document() for calls in judge_calls(spec_with(GOOD, judge(rubric="style")), {})]
    assert paid == {
        "param": "objectives.1.reward",
        "profile": "paid",
        "training": {"calls": 800, "cost": pytest.approx(800 * each)},
        "evaluation": {"calls": HELD_OUT, "cost": pytest.approx(HELD_OUT * each)},
    }
    assert (free["training"], free["evaluation"]["cost"]) == ({"calls": 800, "cost": None}, None)
