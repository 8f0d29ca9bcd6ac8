"""What a dry run asks about: settings that are valid and were probably not meant."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checks.doubts import doubts
from orchestrator.spec import parse_spec
from rewards.judges import profiles
from tests.judge_server import write_profiles

URL = "https://judges.example.com/v1"


def asked(gpus: int | None = None, **changes: Any) -> dict[str, str]:
    document = {
        "name": "a job", "steps": 40, "policy": {"model": "quickstart"}, "data": {"type": "quickstart"},
        "objectives": [
            {"name": "accuracy", "reward": {"name": "math"}},
            {"name": "brevity", "reward": {"name": "conciseness"}},
        ],
        "rollout": {"max_tokens": 64},
        **changes,
    }  # fmt: skip
    return dict(doubts(parse_spec(document), gpus=gpus))


def objectives(*widths: float, **second: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": f"o{number}", "reward": {"name": "conciseness"}, "range": [-width, 0]}
        for number, width in enumerate(widths)
    ]
    found[1] |= second
    return found


STEPS = {"model": "someone/steps", "revision": "0" * 40}


def scored_by(
    name: str, options: dict[str, Any] | None = None, *, gpus: float = 0, **fields: Any
) -> list[dict[str, Any]]:
    """An objective beside an ordinary one."""
    reward = {"name": name, "options": options or {}, "hosting": {"num_gpus": gpus}}
    return [{"name": "right", "reward": {"name": "math"}}, {"name": "other", "reward": reward, **fields}]


def rating_model(folder: Path) -> str:
    """As far as it is read here."""
    (folder / "reward_heads.json").write_text(
        json.dumps(
            {"heads": [{"name": "polite", "range": [0, 4]}, {"name": "calm", "range": [0, 1]}, {"name": "free"}]}
        )
    )
    return str(folder)


def test_an_ordinary_job_raises_none() -> None:
    assert asked() == {}


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        (
            {"optimizer": {"warmup_steps": 80}},
            "optimizer.warmup_steps",
            "after 40 updates.*at most 50% of optimizer.lr",
        ),
        ({"objectives": scored_by("length")}, "objectives.1.range", r"^\[0, 1\], and 'length' has no bounds: .*; give"),
        ({"objectives": scored_by("worded", range=[0, 1])}, "objectives.1.range", "goes from -10 to 20"),
        (
            {"objectives": scored_by("process", STEPS)},
            "objectives.1.reward.hosting.num_gpus",
            "'process' scores on CPU even where the policy has GPUs; give it 1, or a share of one",
        ),
        (
            {"objectives": scored_by("process", STEPS, gpus=0.5)},
            "objectives.1.reward.options.dtype",
            "'process' is float32 on a GPU: twice the memory of bfloat16.*; give bfloat16",
        ),
        (
            {"policy": {"model": "m", "lora": {}}},
            "optimizer.lr",
            "^1e-06 is for whole.*rounded to bfloat16; use",
        ),
        (
            {"policy": {"model": "quickstart", "lora": {}, "dtype": "float32"}, "optimizer": {"lr": 9e-6}},
            "optimizer.lr",
            "next to nothing at it; use 1e-5 to 1e-4",
        ),
        ({"gold": {"reward": {"name": "length"}}}, "gold.range", "'length' has no bounds"),
        ({"optimizer": {"min_lr_ratio": 0.1}}, "optimizer.min_lr_ratio", "nothing with the schedule constant"),
        ({"evaluation": {"every": 40}}, "evaluation.every", "first and last policy"),
        ({"checkpoints": {"every": 50}}, "checkpoints.every", "begins anew"),
        (
            {"data": {"type": "quickstart", "validation": 50}},
            "data.validation",
            r"^50 prompts: a mean of a 0/1 reward is known to about ±\.07, and .* use more of them$",
        ),
        ({"evaluation": {"prompts": 25}}, "evaluation.prompts", r"^25 prompts: .* about ±\.10, and"),
        ({"evaluation": {"prompts": 1}}, "evaluation.prompts", "^one prompt tells no mean, and"),
        ({"estimator": {"name": "dr_grpo"}}, "loss.aggregation", "token_mean brings the bias by length back.*constant"),
        ({"loss": {"form": "cispo"}}, "loss.form", "every ratio is 1 .* raise optimizer.minibatches"),
        ({"loss": {"ratio": "sequence"}}, "loss.ratio", "every ratio is 1 .* raise optimizer.minibatches"),
        (
            {"loss": {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4}, "optimizer": {"minibatches": 2}},
            "loss.aggregation",
            "token_mean counts a completion's ratio once for each of its tokens; use sequence_mean",
        ),
        (
            {"loss": {"ratio": "sequence", "aggregation": "sequence_mean"}, "optimizer": {"minibatches": 2}},
            "loss.clip_low",
            "^0.2 is for ratios of tokens.*use clip_low: 3e-4 and",
        ),
        ({"rollout": {"max_tokens": 64, "engines": 40}}, "rollout.engines", "32 prompts at a time for 40 engines"),
        (
            {"rollout": {"max_tokens": 64, "mode": "async", "max_staleness": 0}},
            "rollout.max_staleness",
            "as mode: sync does",
        ),
        (
            {
                "policy": {"model": "quickstart", "chat": {"template_kwargs": {"enable_thinking": False}}},
                "rollout": {"max_tokens": 64, "reasoning": {}},
            },
            "rollout.reasoning",
            "an empty text where a completion has no '</think>'",
        ),
        (
            {"estimator": {"name": "grpo"}, "objectives": objectives(64, 1)},
            "estimator.name",
            "'o0' can move the sum 64 times as far as 'o1'; use gdpo",
        ),
        (
            {"estimator": {"name": "rloo"}, "objectives": objectives(1, 1, weight=20)},
            "estimator.name",
            "'o1' can move the sum 20 times as far as 'o0'",
        ),
    ],
)
def test_it_names_the_field_and_what_to_do(changes: dict[str, Any], field: str, message: str) -> None:
    found = asked(**changes)
    assert list(found) == [field]
    assert re.search(message, found[field])


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"warmup_steps": 79, "minibatches": 2}},
        {"evaluation": {"every": 39}, "checkpoints": {"every": 39}},
        {"objectives": scored_by("length", range=[-500, 0])},
        {"objectives": scored_by("worded")},  # its own
        {"objectives": scored_by("worded", range=[0, 10])},  # what a person sees to be reached
        {"objectives": scored_by("process", STEPS), "resources": {"device": "cpu"}},  # probabilities
        {"objectives": scored_by("process", STEPS | {"dtype": "bfloat16"}, gpus=0.5)},
        {"objectives": scored_by("process", STEPS | {"dtype": "float32"}, gpus=0.5)},  # somebody's own choice
        {"policy": {"model": "quickstart", "lora": {}}, "optimizer": {"lr": 1e-5}},
        {"objectives": scored_by("process", STEPS | {"device": "cpu"})},
        {"rollout": {"max_tokens": 64, "reasoning": {}}},
        {"steps": 3},  # a trial, with a real job's rhythm
        {"steps": 10, "evaluation": {"prompts": 10}},
        {"evaluation": {"prompts": 100}},
        {"estimator": {"name": "dr_grpo"}, "loss": {"aggregation": "constant"}},
        {
            "loss": {"ratio": "sequence", "aggregation": "sequence_mean", "clip_low": 3e-4, "clip_high": 4e-4},
            "optimizer": {"minibatches": 2},
        },
        {"rollout": {"max_tokens": 64, "engines": 40, "mode": "overlapped"}},  # two steps' prompts
        {"estimator": {"name": "gdpo"}, "objectives": objectives(64, 1)},
        {"estimator": {"name": "grpo"}, "objectives": objectives(64, 1, weight=40)},  # a person's own remedy
        {"estimator": {"name": "grpo"}, "objectives": objectives(64, 1, weight=0)},
        {"estimator": {"name": "grpo"}, "objectives": objectives(1, 64, transform={"name": "zscore"})},
    ],
)
def test_what_may_well_be_meant_is_not_asked_about(changes: dict[str, Any]) -> None:
    assert asked(**changes) == {}


@pytest.mark.parametrize(
    ("reward", "options", "has"),
    [
        ("regression", {"head": "polite"}, "goes from 0 to 4"),
        ("regression", {"head": "free"}, "has no bounds"),
        ("regression", {"head": "calm"}, None),
        ("regression", {}, None),  # the mix, of heads that are scaled to [0, 1]
        ("process", {}, "goes from 0 to 4"),
    ],
)
def test_a_models_own_ranges_are_looked_up(
    tmp_path: Path, reward: str, options: dict[str, str], has: str | None
) -> None:
    found = asked(
        objectives=scored_by(reward, {"model": rating_model(tmp_path), "dtype": "bfloat16", **options}, gpus=1)
    )
    assert found.keys() == ({"objectives.1.range"} if has else set())
    assert has is None or f"and '{reward}' {has}" in found["objectives.1.range"]


@pytest.mark.parametrize("name", ["judge", "judge_pairwise"])
def test_a_call_that_ends_before_its_judge_does_is_asked_about(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        profiles.VARIABLE,
        str(write_profiles(tmp_path, slow={"base_url": URL, "deadline_s": 90.0}, quick={"base_url": URL})),
    )

    def found(profile: str, **hosting: float) -> dict[str, str]:
        rubric = {"rubric": "style"} if name == "judge" else {}
        reward = {"name": name, "options": {"profile": profile, **rubric}, "hosting": hosting}
        gold = {"reward": {**reward, "hosting": {"deadline_s": 91}}}
        return asked(
            objectives=[{"name": "right", "reward": {"name": "math"}}, {"name": "good", "reward": reward}], gold=gold
        )

    ((field, message),) = found("slow").items()  # resources.reward_timeout_s
    assert field == "objectives.1.reward.hosting.deadline_s"
    assert message.startswith("a call is given up after 60 s, and 'slow' may take 90 s with its retries")
    assert found("slow", deadline_s=91) == found("quick") == found("nobody") == {}
    assert "after 20 s, and 'quick' may take 20 s" in found("quick", deadline_s=20)[field]


@pytest.mark.parametrize(
    ("gpus", "changes", "told"),
    [
        (None, {}, None),
        (0, {}, None),
        (1, {}, None),  # all share it
        (2, {}, None),
        (8, {}, "6 of 8 GPUs would be idle; use rollout.engines: 7, or more resources.learner_ranks"),
        (8, {"rollout": {"engines": 7}}, None),
        (
            8,
            {"rollout": {"engines": 2, "tensor_parallel": 2}},
            "2 of 8 GPUs would be idle; use rollout.engines: 3, or more",
        ),
        (
            8,
            {"rollout": {"engines": 4, "prompts_per_step": 4}},
            "3 of 8 GPUs would be idle; use resources.learner_ranks",
        ),
        (8, {"rollout": {"transport": "ipc"}}, None),
        (8, {"resources": {"device": "cpu"}}, None),
    ],
)
def test_gpus_that_the_job_leaves_idle_are_asked_about(
    gpus: int | None, changes: dict[str, Any], told: str | None
) -> None:
    found = asked(gpus, **changes)
    assert found.keys() == ({"rollout.engines"} if told else set())
    assert told is None or found["rollout.engines"].startswith(told)


@pytest.mark.parametrize(
    ("gpus", "changes", "is_asked"),
    [
        (None, {}, False),  # there may be one GPU for all
        (1, {}, False),
        (2, {}, True),
        (2, {"rollout": {"transport": "ipc"}}, False),
        (None, {"rollout": {"transport": "nccl"}}, True),
        (None, {"resources": {"learner_ranks": 4}}, True),
        (None, {"resources": {"device": "cpu"}}, True),
    ],
)
def test_engines_that_would_sleep_on_gpus_of_their_own_are_asked_about(
    gpus: int | None, changes: dict[str, Any], is_asked: bool
) -> None:
    rollout = {"max_tokens": 64, "sleep": True, **changes.get("rollout", {})}
    assert ("rollout.sleep" in asked(gpus, **{**changes, "rollout": rollout})) is is_asked


@pytest.mark.parametrize(
    ("changes", "is_asked"),
    [({}, False), ({"evaluation": {"every": 1}}, True), ({"steps": 10, "evaluation": {"every": 1}}, False),
     ({"evaluation": {"every": 1, "prompts": 100}}, False)],
)  # fmt: skip
def test_more_calls_of_a_judge_for_evaluations_than_for_training_are_asked_about(
    changes: dict[str, Any], is_asked: bool
) -> None:
    judged = scored_by("judge", {"profile": "nobody", "rubric": "style"})
    data = {"type": "quickstart", "test": 10}
    found = asked(objectives=judged, data=data, rollout={"prompts_per_step": 16}, **changes)
    assert found.keys() == ({"evaluation.prompts"} if is_asked else set())
    for message in found.values():
        assert message.startswith("evaluations call judge 'nobody' up to 8,420 times")
        assert "training 5,120 times" in message
