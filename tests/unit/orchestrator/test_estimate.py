"""What a dry run reckons: GPUs, bytes by process, what does not fit, and settings that really help."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from orchestrator.actors.gang import gpus_reserved, members
from orchestrator.actors.placement import placement
from orchestrator.checks import estimate as estimate_module
from orchestrator.checks.disk import disk_doubts
from orchestrator.checks.doubts import estimated_doubts
from orchestrator.checks.estimate import estimate, model_size
from orchestrator.checks.layout import GIB, Layout, Machine, readable
from orchestrator.hosting import hosted_rewards
from orchestrator.launch.launchers import hub_environment
from orchestrator.spec import JobSpec, parse_spec
from policies.batching import microbatches
from policies.models import ModelError
from policies.sizes import Dimensions, ModelSize, adapter_size, size_of
from services.tables import disk_line, layout_line
from tests.support import make_policy

# Qwen3-1.7B, by its published configuration.
BLOCK = {
    "q": (2048, 2048), "k": (1024, 2048), "v": (1024, 2048), "o": (2048, 2048),
    "gate": (6144, 2048), "up": (6144, 2048), "down": (2048, 6144),
    "before": (2048,), "after": (2048,), "q_norm": (128,), "k_norm": (128,),
}  # fmt: skip
QWEN = ModelSize(
    shapes={"embed_tokens": (151_936, 2048), "norm": (2048,)}
    | {f"layers.{layer}.{name}": shape for layer in range(28) for name, shape in BLOCK.items()},
    dimensions=Dimensions(
        layers=28, hidden=2048, query=2048, key_value=1024, intermediate=6144, vocabulary=151_936, normed_heads=True
    ),
    context=40_960,
)  # fmt: skip


def spec(**changes: Any) -> JobSpec:
    """Branch by branch over a job whose learner and engine each fill much of a GPU."""
    document: dict[str, Any] = {
        "name": "x",
        "steps": 1,
        "policy": {"model": "some/model", "max_model_len": 4096},
        "data": {"type": "files", "train": "a", "validation": "b"},
        "objectives": [
            {"name": "accuracy", "reward": {"name": "math"}},
            {"name": "conciseness", "reward": {"name": "conciseness"}},
        ],
        "rollout": {"max_tokens": 2048, "gpu_memory_utilization": 0.6},
        "optimizer": {"tokens_per_microbatch": 4096},
        "resources": {"device": "cuda"},
    }
    for branch, change in changes.items():
        document[branch] = document.get(branch, {}) | change
    return parse_spec(document)


@pytest.fixture(autouse=True)
def real_size(monkeypatch: pytest.MonkeyPatch) -> Callable[[JobSpec], ModelSize]:
    """`model_size` itself, in whose place every policy is the one above."""
    monkeypatch.setattr(estimate_module, "model_size", lambda _, **__: QWEN)
    return model_size


def only(job: JobSpec, **machine: Any) -> dict[str, Any]:
    """The one layout."""
    (layout,) = estimate(job, Machine(**machine))["layouts"]
    assert isinstance(layout, dict)
    return layout


def process(layout: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(found for found in layout["processes"] if found["name"] == name)
    return found


# -- where it runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpus", [None, 1, 2, 3, 8])
@pytest.mark.parametrize("rollout", [
    {}, {"engines": 2}, {"engines": 2, "transport": "ipc"}, {"engines": 2, "tensor_parallel": 2}, {"transport": "nccl"},
])  # fmt: skip
def test_gpus_are_those_that_the_job_will_ask_for(rollout: dict[str, Any], gpus: int | None) -> None:
    job = spec(rollout=rollout)
    layout = only(job, gpus=gpus)
    assert layout["gpus"] == reserved(job, "cuda", gpus)
    _, engine, _ = placement(job, "cuda", gpus)
    assert layout["shared"] is (engine["num_gpus"] < 1)
    assert layout["transport"] == placement(job, "cuda", gpus)[0]
    assert any(problem["about"] == "gpus" for problem in layout["problems"]) is (
        gpus is not None and layout["gpus"] > gpus
    )


def reserved(job: JobSpec, device: str, gpus: int | None) -> float:
    """What nobody else gets while the job runs."""
    _, engine, learner = placement(job, device, gpus)
    replicas = [options for reward in hosted_rewards(job) for options in reward.reserved]
    return gpus_reserved(members(engine, job.rollout.engines, learner, 1, replicas))


def hosting(*gpus: float) -> dict[str, Any]:
    """Objectives whose rewards have so many GPUs, the last of them two replicas."""
    made = [
        {
            "name": f"reward_{i}",
            "reward": {
                "name": "conciseness",
                "options": {"free_tokens": i + 1},
                "hosting": {"num_gpus": share, "replicas": 1 + (i == len(gpus) - 1)},
            },
        }
        for i, share in enumerate(gpus)
    ]
    return {"objectives": made}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("gpus", [None, 1, 2, 3, 8])
@pytest.mark.parametrize("rewards", [(0.25,), (0.5,), (0.25, 0.2), (1,), (2, 0.5)])
@pytest.mark.parametrize("rollout", [{}, {"engines": 2}, {"engines": 2, "transport": "ipc"}, {"tensor_parallel": 2}])
def test_gpus_of_rewards_are_among_them(
    rollout: dict[str, Any], rewards: tuple[float, ...], gpus: int | None, device: str
) -> None:
    job = parse_spec(spec(rollout=rollout, resources={"device": device}).model_dump(mode="json") | hosting(*rewards))
    layout = only(job, gpus=gpus)
    assert layout["reward_gpus"] == math.fsum([*rewards, rewards[-1]])
    assert layout["gpus"] == pytest.approx(reserved(job, device, gpus), abs=0.001)  # shares of one are rounded down
    said = [problem["message"] for problem in layout["problems"] if problem["about"] == "gpus"]
    assert bool(said) is (gpus is not None and layout["gpus"] > gpus)
    assert all("for its rewards" in message for message in said)


def test_a_gpu_that_rewards_take_is_missed_by_the_engines() -> None:
    job = parse_spec(spec(rollout={"engines": 3}).model_dump(mode="json") | hosting(0.5))
    layout = only(job, gpus=4)  # enough without the rewards; on a shared one, two of the four would be idle
    assert (layout["gpus"], layout["reward_gpus"], layout["shared"]) == (5, 1, False)
    assert [problem["remedies"] for problem in layout["problems"]] == [["rollout.engines: 2"]]
    apart = only(parse_spec(job.model_dump(mode="json") | {"rollout": {"engines": 2, "tensor_parallel": 2}}), gpus=5)
    (problem,) = [problem for problem in apart["problems"] if problem["about"] == "gpus"]
    assert problem["message"] == "the job needs 6 GPUs at once, 1 of them for its rewards, and there are 5"
    assert "rollout.engines: 1" in problem["remedies"]


@pytest.mark.parametrize(("device", "gpus", "expected"), [
    ("auto", None, ["cuda", "cpu"]), ("auto", 0, ["cpu"]), ("auto", 2, ["cuda"]), ("cpu", 2, ["cpu"]),
    ("cuda", 0, ["cuda"]),
])  # fmt: skip
def test_a_layout_for_each_device_that_may_be_meant(device: str, gpus: int | None, expected: list[str]) -> None:
    found = estimate(spec(resources={"device": device}), Machine(gpus=gpus))
    assert [layout["device"] for layout in found["layouts"]] == expected


@pytest.mark.parametrize("changes", [
    {"rollout": {"kv_cache_gib": 200}}, {"rollout": {"engines": 12}}, {"rollout": {"engines": 4, "kv_cache_gib": 10}},
    {"rollout": {"max_tokens": 256}, "optimizer": {"tokens_per_microbatch": 65_536}},
    {"checkpoints": {"asynchronous": True}, "loss": {"kl_coef": 0.1}},
], ids=json.dumps)  # fmt: skip
def test_memory_that_a_job_on_cpu_has_not_and_what_helps(changes: dict[str, Any]) -> None:
    job = spec(**changes, resources={"device": "cpu"})
    layout = only(job, memory_gib=1024)
    assert (layout["fits"], layout["memory_bytes"]) == (True, 1024 * GIB)
    enough = layout["bytes"] / GIB
    assert only(job, memory_gib=enough)["fits"] is True
    short = only(job, memory_gib=enough * 0.97)
    (problem,) = short["problems"]
    assert (short["fits"], problem["about"]) == (False, "memory")
    assert readable(layout["bytes"]) in problem["message"]
    assert problem["remedies"]
    for remedy in problem["remedies"]:
        branch, name, value = re.fullmatch(r"(\w+)\.(\w+): (.*)", remedy).groups()  # type: ignore[union-attr]
        document = job.model_dump(mode="json", exclude_unset=True)
        document.setdefault(branch, {})[name] = {"rank": 16} if name == "lora" else json.loads(value)
        assert only(parse_spec(document), memory_gib=enough * 0.97)["fits"] is True, remedy


def test_a_job_that_no_setting_fits_into_a_machine_needs_another() -> None:
    job = spec(resources={"device": "cpu"}, rollout={"kv_cache_gib": 0.5})
    (problem,) = only(job, memory_gib=2)["problems"]
    (remedy,) = problem["remedies"]
    needed = float(re.fullmatch(r"a machine with ([\d.]+) GiB of memory at the least", remedy)[1])  # type: ignore[index]
    assert 2 < needed < only(job, memory_gib=2)["bytes"] / GIB


def test_a_jobs_memory_on_gpus_is_not_the_machines() -> None:
    layout = only(spec(), memory_gib=1)
    assert (layout["memory_bytes"], layout["fits"]) == (None, True)


@pytest.mark.parametrize(
    ("changes", "gpus", "of_each"),
    [
        ({}, 2, 4),  # loaded in float32
        ({"resources": {"learner_ranks": 3}}, 4, 12),
        ({"policy": {"cpu_offload": True}}, 2, 16),  # weights, moments and gradients
        ({"policy": {"cpu_offload": True}, "loss": {"kl_coef": 0.1}}, 2, 20),
        ({"policy": {"cpu_offload": True}, "resources": {"learner_ranks": 8}}, 9, 32),
        ({"rollout": {"sleep": True, "gpu_memory_utilization": 0.4}}, 1, 6),
        ({"checkpoints": {"asynchronous": True}}, 2, 4 + 12 + 2),  # weights and moments, and the policy's files
    ],
)
def test_a_job_on_gpus_says_what_the_host_has_of_it(changes: dict[str, Any], gpus: int, of_each: int) -> None:
    layout = only(spec(**changes), gpus=gpus)
    assert layout["host_bytes"] == of_each * QWEN.parameters
    assert layout_line(layout).endswith(f", and {readable(layout['host_bytes'])} of the machine's memory")


def test_a_job_on_cpu_has_no_other_host() -> None:
    layout = only(spec(resources={"device": "cpu"}))
    assert layout["host_bytes"] is None
    assert layout_line(layout).endswith(" in all")


# -- bytes ----------------------------------------------------------------------------------------------------


def test_parts_of_a_job_on_gpus() -> None:
    found = estimate(spec(loss={"kl_coef": 0.1}))
    assert found["parameters"] == 1_720_574_976  # as the model's own page says: 1.7B
    assert found["unknown"] is None
    (layout,) = found["layouts"]
    engine, learner = process(layout, "engine"), process(layout, "learner")
    weights = 2 * found["parameters"]
    assert engine["parts"] == {
        "weights": weights, "kv_cache": int(0.6 * 80 * GIB) - weights - 2 * GIB, "overhead": 2 * GIB,
    }  # fmt: skip
    assert {name: size / found["parameters"] for name, size in learner["parts"].items() if name != "working"} == {
        "weights": 4, "moments": 8, "gradients": 4, "reference": 4,
    }  # fmt: skip
    cache = layout["kv_cache"]
    assert cache["token_bytes"] == 2 * 28 * 1024 * 2
    assert cache["sequences"] == engine["parts"]["kv_cache"] // (cache["token_bytes"] * 4096)
    assert layout["bytes"] == engine["bytes"] + learner["bytes"]


@pytest.mark.parametrize(
    ("asked", "gpus", "limit", "overhead"),
    [(None, 2, 0.9 * 80 * GIB, 2 * GIB), (None, 1, 0.4 * 80 * GIB, 2 * GIB), (0.2, 2, 16 * GIB, 1.6 * GIB)],
)
def test_an_engine_has_most_of_its_own_gpu_and_less_of_a_common_one(
    asked: float | None, gpus: int, limit: float, overhead: float
) -> None:
    engine = process(only(spec(rollout={"gpu_memory_utilization": asked}), gpus=gpus), "engine")
    assert engine["bytes"] == int(limit)
    assert engine["parts"]["overhead"] == int(overhead)
    assert engine["parts"]["kv_cache"] == int(limit) - 2 * QWEN.parameters - int(overhead)


@pytest.mark.parametrize(
    ("changes", "field", "held"),
    [
        ({}, None, 0),
        ({"policy": {"max_model_len": None}}, "policy.max_model_len", 15),  # of 40,960 tokens
        ({"rollout": {"gpu_memory_utilization": 0.15}}, "rollout.gpu_memory_utilization", 17),
        ({"rollout": {"gpu_memory_utilization": 0.15, "engines": 4}}, None, 0),  # each has 64 of the 256
        ({"rollout": {"gpu_memory_utilization": 0.03}}, None, 0),  # it does not fit at all
        ({"policy": {"max_model_len": None}, "resources": {"device": "cpu"}}, None, 0),
    ],
)
def test_a_cache_for_few_of_the_sequences_is_asked_about(changes: dict[str, Any], field: str | None, held: int) -> None:
    job = spec(**{"rollout": {"gpu_memory_utilization": None}, **changes})
    found = estimated_doubts(job, estimate(job))
    assert [asked for asked, _ in found] == ([] if field is None else [field])
    for _, message in found:
        assert message.startswith(f"an engine's cache holds {held} sequences of ")
        assert ", of 256 to decode together" in message


def test_parts_of_a_job_on_cpu() -> None:
    layout = only(
        spec(resources={"device": "cpu"}, rollout={"engines": 3, "kv_cache_gib": 1.5}, policy={"dtype": "float32"})
    )
    assert (layout["gpus"], layout["gpu_bytes"], layout["fits"]) == (0, None, None)  # this machine may not be that one
    engine = process(layout, "engine")
    assert engine["count"] == 3
    assert engine["parts"]["kv_cache"] == 1.5 * GIB
    assert engine["parts"]["weights"] == engine["parts"]["arriving"] == 4 * QWEN.parameters
    assert layout["bytes"] == sum(found["count"] * found["bytes"] for found in layout["processes"])


def test_an_engines_ranks_on_cpu_share_weights_and_cache_and_each_reads_a_whole_policy() -> None:
    def parts(ranks: int) -> dict[str, int]:
        rollout = {"tensor_parallel": ranks, "kv_cache_gib": 1.5}
        return process(only(spec(resources={"device": "cpu"}, rollout=rollout)), "engine")["parts"]

    alone, of_two, of_four = parts(1), parts(2), parts(4)
    assert {(found["weights"], found["kv_cache"]) for found in (alone, of_two, of_four)} == {
        (alone["weights"], 1.5 * GIB)
    }
    assert [found["arriving"] // alone["arriving"] for found in (of_two, of_four)] == [2, 4]
    assert alone["runtime"] < of_two["runtime"] < of_four["runtime"]


def test_a_checkpoint_that_is_written_beside_the_steps_takes_its_copy() -> None:
    """float32 weights and both moments, and the policy in its own type; of a GPU's learner the host has it."""
    beside = {"checkpoints": {"asynchronous": True}}
    small = {"resources": {"device": "cpu"}, "policy": {"dtype": "float32"}}
    parts = process(only(spec(**beside, **small)), "learner")["parts"]
    assert parts["checkpoint"] == (12 + 4) * QWEN.parameters
    assert "checkpoint" not in process(only(spec(**small)), "learner")["parts"]
    assert "checkpoint" not in process(only(spec(**beside)), "learner")["parts"]


def test_a_checkpoint_of_an_adapter_alone_is_small() -> None:
    """16 bytes of each parameter that learns; the merged policy on top where a checkpoint has it."""
    small = {"resources": {"device": "cpu"}, "checkpoints": {"asynchronous": True}}
    learns = adapter_size(QWEN, rank=16).parameters
    for merge, saved in ((None, learns), (False, learns), (True, QWEN.parameters)):
        job = spec(**small, policy={"dtype": "float32", "lora": {"merge": merge}})
        assert process(only(job), "learner")["parts"]["checkpoint"] == 12 * learns + 4 * saved


@pytest.mark.parametrize(("gramian", "factor"), [("exact", 2), ("last_block", None), ("sketch", 0)])
def test_objectives_gradients_count_where_they_are_compared(gramian: str, factor: int | None) -> None:
    job = spec(weighting={"name": "gradient"}, gramian={"mode": gramian})
    parts = process(only(job), "learner")["parts"]
    expected = 4 * 2 * QWEN.last_block if factor is None else 4 * factor * QWEN.parameters
    assert parts.get("objective_gradients", 0) == expected
    assert "objective_gradients" not in process(only(spec(gramian={"mode": gramian})), "learner")["parts"]


@settings(max_examples=200, deadline=None)
@given(
    prompts=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    completions=st.integers(1, 60),
    budget=st.integers(16, 400),
    context=st.integers(100, 120),
    minibatches=st.integers(1, 3),
)
def test_no_microbatch_is_larger_than_reckoned(
    prompts: list[int], completions: int, budget: int, context: int, minibatches: int
) -> None:
    """Of any prompts that leave a completion its room in the budget, or that are short."""
    prompts = [min(prompt, max(1, budget - completions)) for prompt in prompts]
    groups = 2
    minibatches = min(minibatches, groups * len(prompts))
    job = spec(
        policy={"max_model_len": context},
        rollout={"prompts_per_step": len(prompts), "rollouts_per_prompt": groups, "max_tokens": completions},
        optimizer={"tokens_per_microbatch": budget, "minibatches": minibatches},
    )
    tokens, row = Layout(spec=job, size=QWEN, device="cuda", machine=Machine()).microbatch
    lengths = [prompt + completions for prompt in prompts for _ in range(groups)]
    part = lengths[: math.ceil(len(lengths) / minibatches)]
    for group in microbatches(part, token_budget=budget):
        longest = max(part[i] for i in group)
        assert longest <= row
        assert len(group) * longest <= tokens


# -- what does not fit ----------------------------------------------------------------------------------------


CROWDED: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "the learner's logits": ({"optimizer": {"tokens_per_microbatch": 32_768}}, {}, {"learner"}),
    "a shared GPU": ({}, {"gpus": 1}, {"learner"}),
    "engines on a shared GPU": ({"rollout": {"engines": 2}}, {"gpus": 1}, {"sharing"}),
    "a shared GPU that engines leave while the learner learns": (
        {"rollout": {"sleep": True, "gpu_memory_utilization": 0.9}}, {"gpus": 1}, {"sharing"}
    ),
    "objectives' gradients": (
        {"weighting": {"name": "gradient"}, "rollout": {"gpu_memory_utilization": 0.9}}, {"gpu_gib": 50}, {"learner"}
    ),
    "an engine's weights": ({"rollout": {"gpu_memory_utilization": 0.03}}, {}, {"engine"}),
    "an engine's cache": ({"rollout": {"gpu_memory_utilization": 0.045}}, {}, {"kv_cache"}),
    "too few GPUs": ({"rollout": {"engines": 4, "tensor_parallel": 2}}, {"gpus": 4}, {"gpus"}),
    "GPUs that would be idle beside a shared one": (
        {"rollout": {"engines": 4, "gpu_memory_utilization": 0.055}}, {"gpus": 4}, {"gpus"}
    ),
    "NCCL on one GPU": (
        {"rollout": {"transport": "nccl", "gpu_memory_utilization": 0.2}}, {"gpus": 1}, {"gpus"}
    ),
    "files for engines on GPUs": ({"rollout": {"transport": "shared_memory"}}, {}, {"transport"}),
    "NCCL on CPU": ({"resources": {"device": "cpu"}, "rollout": {"transport": "nccl"}}, {}, {"transport"}),
    "a cache on CPU": ({"resources": {"device": "cpu"}, "rollout": {"kv_cache_gib": 0.3}}, {}, {"kv_cache"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CROWDED)
def test_each_setting_that_is_named_helps(case: str) -> None:
    """Tried as a person would: written into the spec, and asked again."""
    changes, machine, about = CROWDED[case]
    crowded = only(spec(**changes), **machine)
    assert crowded["fits"] is False
    assert {problem["about"] for problem in crowded["problems"]} == about
    remedies = [remedy for problem in crowded["problems"] for remedy in problem["remedies"]]
    assert remedies
    for remedy in remedies:
        path, value = remedy.split(": ")
        branch, name = path.split(".")
        better = only(
            spec(**{**changes, branch: changes.get(branch, {}) | {name: json.loads(_quoted(value))}}), **machine
        )
        assert better["fits"] is not False, remedy


def _quoted(value: str) -> str:
    return value if value in ("true", "false") or value[0].isdigit() else json.dumps(value)


def test_engines_that_sleep_leave_a_shared_gpu_to_the_learner() -> None:
    """An update and what engines have, never both: each alone fits, and together they would not."""
    job = {"gpu_memory_utilization": 0.5}
    (problem,) = only(spec(rollout=job), gpus=1)["problems"]
    assert "rollout.sleep: true" in problem["remedies"]
    assert only(spec(rollout=job | {"sleep": True}), gpus=1)["fits"] is True


def test_settings_that_help_only_together_are_named_together() -> None:
    changes: dict[str, Any] = {"loss": {"kl_coef": 0.1}, "optimizer": {"tokens_per_microbatch": 16_384}}
    (problem,) = only(spec(**changes), gpu_gib=36)["problems"]
    (remedy,) = problem["remedies"]
    assert " together with " in remedy
    for part in remedy.split(" together with "):
        path, value = part.split(": ")
        branch, name = path.split(".")
        changes[branch] = changes.get(branch, {}) | {name: json.loads(value)}
    assert only(spec(**changes), gpu_gib=36)["fits"] is True


def test_a_learner_that_no_setting_shrinks_says_what_it_needs() -> None:
    found = only(spec(policy={"lora": {}}), gpu_gib=1, gpus=2)["problems"]
    ((remedy,),) = [problem["remedies"] for problem in found if problem["about"] == "learner"]
    assert remedy.startswith("a larger GPU, or a smaller policy")
    needed = float(remedy.split("needs ")[1].split(" GiB")[0])
    embedding = math.prod(QWEN.shapes["embed_tokens"])  # whole while it is used, as two blocks are
    assert 2 * (embedding + 2 * QWEN.last_block) / GIB < needed < 3


def test_an_adapter_or_the_hosts_memory_is_left_where_no_other_setting_helps() -> None:
    """In full, weights, moments and gradients alone take 16 bytes a parameter, which is more than there are."""
    assert 16 * QWEN.parameters > 24 * GIB
    (problem,) = only(spec(), gpu_gib=24, gpus=2)["problems"]
    assert problem["remedies"] == ["policy.cpu_offload: true", "policy.lora: {rank: 16}"]
    offloaded = only(spec(policy={"cpu_offload": True}), gpu_gib=24, gpus=2)
    assert offloaded["fits"] is True
    assert only(spec(policy={"cpu_offload": True}, resources={"device": "cpu"}))["problems"] == []
    assert only(spec(policy={"lora": {"rank": 16}}), gpu_gib=24, gpus=2)["fits"] is True


LARGE = ModelSize(
    shapes={"embed_tokens": (128_256, 8192), "norm": (8192,)}
    | {
        f"layers.{layer}.{name}": shape
        for layer in range(80)
        for name, shape in {
            "q": (8192, 8192), "k": (1024, 8192), "v": (1024, 8192), "o": (8192, 8192), "gate": (28_672, 8192),
            "up": (28_672, 8192), "down": (8192, 28_672), "before": (8192,), "after": (8192,),
        }.items()
    },
    dimensions=Dimensions(
        layers=80, hidden=8192, query=8192, key_value=1024, intermediate=28_672, vocabulary=128_256, normed_heads=False
    ),
    context=8192,
)  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "ranks", "message"),
    [
        ({"cpu_offload": True}, 1, None),
        ({"cpu_offload": True}, 2, None),  # collected on the host
        ({"cpu_offload": True, "lora": {}}, 2, None),
        ({"lora": {}}, 4, "of its first rank, while it gives the engines the policy, do not fit on a GPU of 80.0 GiB"),
        ({"lora": {}}, 1, "do not fit on a GPU of 80.0 GiB"),
    ],
)
def test_a_copy_of_the_policy_counts_where_a_gpu_has_one(
    policy: dict[str, Any], ranks: int, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a policy that is larger than a GPU, in the engines' dtype."""
    assert 2 * LARGE.parameters > 80 * GIB
    monkeypatch.setattr(estimate_module, "model_size", lambda _, **__: LARGE)
    job = spec(
        policy=policy | {"gradient_checkpointing": True},
        rollout={"tensor_parallel": 4, "gpu_memory_utilization": 0.9},
        resources={"learner_ranks": ranks},
    )
    found = only(job, gpus=16)
    assert found["fits"] is (message is None)
    if message is not None:
        (problem,) = found["problems"]
        assert problem["about"] == "learner"
        assert message in problem["message"]
        assert problem["remedies"] == ["policy.cpu_offload: true"]


def test_an_adapter_keeps_its_base_once_and_learns_little() -> None:
    """Rank 16 on all seven layers of a block: r (m + n) parameters each, by hand."""
    job = {"loss": {"kl_coef": 0.1}, "weighting": {"name": "gradient"}}
    lora = {"policy": {"lora": {"targets": list(BLOCK)[:7]}}}
    small = 28 * 16 * sum(sum(BLOCK[name]) for name in list(BLOCK)[:7])
    found = process(only(spec(**job, **lora)), "learner")["parts"]
    assert found["weights"] == 2 * QWEN.parameters + 4 * small
    assert (found["moments"], found["gradients"]) == (8 * small, 4 * small)
    assert "reference" not in found
    assert found["objective_gradients"] == 3 * 4 * small  # two objectives and the penalty
    whole = process(only(spec(**job)), "learner")
    assert sum(found.values()) < whole["bytes"] / 3
    every = only(spec(**job, policy={"lora": {}}))
    assert process(every, "learner")["parts"] == found


def test_ranks_share_what_a_learner_keeps_and_each_has_its_gpu() -> None:
    job = {"weighting": {"name": "gradient"}}
    one, four = (only(spec(**job, resources={"learner_ranks": n}), gpu_gib=32) for n in (1, 4))
    assert (one["fits"], four["fits"]) == (False, True)
    assert "resources.learner_ranks: 4" in one["problems"][0]["remedies"]
    assert four["gpus"] == one["gpus"] + 3
    alone, rank = process(one, "learner"), process(four, "learner")
    assert (alone["count"], rank["count"], rank["gpus"]) == (1, 4, 1)
    for part in ("weights", "moments", "gradients", "objective_gradients"):
        assert rank["parts"][part] == pytest.approx(alone["parts"][part] / 4, abs=32)


# -- models of rewards ----------------------------------------------------------------------------------------

COMMIT = "0" * 40


def with_model(*, hosting: dict[str, Any] | None = None, heads: int = 1, **options: Any) -> dict[str, Any]:
    """A branch of `spec`'s: objectives of which `heads` share a reward model of seven billion parameters."""
    reward = {
        "name": "bradley_terry",
        "options": {"model": "org/reward", "revision": COMMIT, **options},
        "hosting": hosting or {},
    }
    heads_of = [{"name": f"head_{i}", "reward": reward} for i in range(heads)]
    return {"objectives": [*heads_of, {"name": "conciseness", "reward": {"name": "conciseness"}}]}


def parsed(branch: dict[str, Any], **changes: Any) -> JobSpec:
    return parse_spec(spec(**changes).model_dump(mode="json") | branch)


@pytest.fixture
def seven_billion(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {("org/reward", COMMIT): 7_000_000_000}
    monkeypatch.setattr(estimate_module, "reward_model_sizes", lambda _, **__: (sizes, ""))


@pytest.mark.usefixtures("seven_billion")
@pytest.mark.parametrize(
    ("options", "hosting", "of_each", "count"),
    [
        ({}, {"num_gpus": 1}, 28_000_000_000, 1),
        ({"dtype": "bfloat16"}, {"num_gpus": 0.5, "replicas": 2}, 14_000_000_000, 2),
        ({"runner": "vllm", "gpu_memory_utilization": 0.4}, {"num_gpus": 1}, 32 * GIB, 1),
        ({"runner": "vllm", "gpu_memory_utilization": 0.4, "tensor_parallel": 2}, {"num_gpus": 2}, 64 * GIB, 1),
    ],
)
def test_a_rewards_model_is_a_process_of_its_own(
    options: dict[str, Any], hosting: dict[str, Any], of_each: int, count: int
) -> None:
    layout = only(parsed(with_model(hosting=hosting, **options)))
    found = process(layout, "reward bradley_terry (head_0)")
    assert (found["bytes"], found["count"], found["gpus"]) == (of_each, count, hosting["num_gpus"])
    assert layout["fits"] is True
    assert layout["bytes"] == sum(found["count"] * found["bytes"] for found in layout["processes"])


@pytest.mark.usefixtures("seven_billion")
def test_a_rewards_model_without_a_gpu_is_the_machines() -> None:
    layout = only(parsed(with_model(hosting={"replicas": 3})))
    assert [found["name"] for found in layout["processes"]] == ["engine", "learner"]
    assert layout["host_bytes"] == 4 * QWEN.parameters + 3 * 28_000_000_000
    on_cpu = only(parsed(with_model(hosting={"replicas": 3}), resources={"device": "cpu"}), memory_gib=64)
    assert process(on_cpu, "reward bradley_terry (head_0)")["count"] == 3
    assert [problem["about"] for problem in on_cpu["problems"]] == ["memory"]


@pytest.mark.usefixtures("seven_billion")
@pytest.mark.parametrize(
    ("hosting", "machine", "about", "message"),
    [
        # 28 of 25.8 GB
        ({"num_gpus": 1}, {"gpu_gib": 24}, "rewards", "26.0 GiB of reward bradley_terry (head_0, head_1) do not fit"),
        ({"num_gpus": 2}, {"gpu_gib": 24}, "rewards", "26.0 GiB of reward"),  # it is on one of them
        # 56 of 51.5 GB
        ({"num_gpus": 0.5, "replicas": 2}, {"gpu_gib": 48}, "rewards", "52.1 GiB of reward"),
        # 28 beside the engine's 14.4 and the learner's
        ({"num_gpus": 0.2}, {"gpu_gib": 48, "gpus": 1}, "learner", "and reward models with 26.0 GiB do not fit"),
        ({"num_gpus": 0.2}, {"gpu_gib": 30, "gpus": 1}, "sharing", "and reward models with 26.0 GiB do not fit on one"),
    ],
)  # fmt: skip
def test_a_rewards_model_that_does_not_fit(
    hosting: dict[str, Any], machine: dict[str, Any], about: str, message: str
) -> None:
    rollout = {"gpu_memory_utilization": 0.3}
    layout = only(parsed(with_model(heads=2, hosting=hosting), rollout=rollout), **machine)
    (problem,) = [problem for problem in layout["problems"] if problem["about"] == about]
    assert message in problem["message"]
    if about == "rewards":
        both = "objectives.0.reward.options.dtype and objectives.1.reward.options.dtype"
        assert problem["remedies"] == [f"{both}: bfloat16"]
        halved = with_model(heads=2, hosting=hosting, dtype="bfloat16")
        left = only(parsed(halved, rollout=rollout), **machine)["problems"]
        assert "rewards" not in {problem["about"] for problem in left}


@pytest.mark.usefixtures("seven_billion")
def test_a_shared_gpu_with_a_smaller_reward_model_has_room() -> None:
    """28 GB of float32 beside an engine's and the learner's, or half of it."""
    machine, rollout = {"gpus": 1, "gpu_gib": 72}, {"gpu_memory_utilization": 0.15}
    whole = parsed(with_model(hosting={"num_gpus": 0.2}), rollout=rollout)
    (problem,) = only(whole, **machine)["problems"]
    assert "objectives.0.reward.options.dtype: bfloat16" in problem["remedies"]
    halved = parsed(with_model(hosting={"num_gpus": 0.2}, dtype="bfloat16"), rollout=rollout)
    assert only(halved, **machine)["fits"] is True


def test_sizes_of_reward_models_are_those_of_their_files(tmp_path: Path) -> None:
    save_file({"score.weight": torch.zeros(3, 5), "model.norm.weight": torch.zeros(7)}, tmp_path / "model.safetensors")
    job = parsed(with_model(model=str(tmp_path), revision=None, hosting={"num_gpus": 1}))
    assert estimate_module.reward_model_sizes(job) == ({(str(tmp_path), None): 22}, "")
    assert process(only(job), "reward bradley_terry (head_0)")["parts"] == {"weights": 88}


def test_a_reward_model_that_is_not_known_leaves_open_what_fits() -> None:
    found = estimate(parsed(with_model()))
    assert found["unknown"].startswith("objectives.0.reward.options.model: the model is not on this machine")
    assert found["layouts"][0]["fits"] is None


# -- on disk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "policy", "state", "policies"),
    [
        ({"policy": {"dtype": "float32"}}, 4, 12, 2),
        ({"policy": {"dtype": "bfloat16"}, "evaluation": {"every": 1}}, 2, 12, 2),
        ({"policy": {"dtype": "bfloat16"}, "checkpoints": {"front": 1}}, 2, 12, 1),
    ],
)
def test_checkpoints_on_disk(changes: dict[str, Any], policy: int, state: int, policies: int) -> None:
    """Float32 weights and two moments, and the policy as it is exported; three whole ones while one is written."""
    size = QWEN.parameters
    found = estimate(spec(**changes), Machine(disk_bytes=5))["disk"]
    assert found == {
        "checkpoint_bytes": (policy + state) * size,
        "policy_bytes": policy * size,
        "policies": policies,
        "bytes": (3 * (policy + state) + policies * policy) * size,
        "free_bytes": 5,
    }
    ((field, message),) = disk_doubts(found)
    assert field == "checkpoints.front"
    assert message.startswith(f"its checkpoints take up to {readable(found['bytes'])} (3 of ")
    assert "the state directory has 5 B free" in message
    assert disk_line(found).endswith("; 5 B free")
    assert disk_doubts(found | {"free_bytes": found["bytes"]}) == disk_doubts(found | {"free_bytes": None}) == []


def test_an_adapters_checkpoints_are_small_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    learns = adapter_size(QWEN, rank=16, targets=None).parameters
    for merge in (False, True):
        found = estimate(spec(policy={"lora": {"rank": 16, "merge": merge}}))["disk"]
        assert found["policy_bytes"] == 2 * (learns + merge * QWEN.parameters)
        assert found["checkpoint_bytes"] == found["policy_bytes"] + 12 * learns
    monkeypatch.setattr(
        estimate_module, "model_size", lambda _, **__: (_ for _ in ()).throw(ModelError("nobody knows"))
    )
    assert estimate(spec())["disk"] is None
    assert disk_doubts(None) == []


# -- what is not known ----------------------------------------------------------------------------------------


def test_a_model_that_is_elsewhere_is_said_to_be_and_gpus_are_told_all_the_same(
    real_size: Callable[[JobSpec], ModelSize], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate_module, "model_size", real_size)
    found = estimate(spec(rollout={"engines": 2, "gpu_memory_utilization": 0.2}), Machine(gpus=1))
    assert found["parameters"] is None
    assert "not on this machine" in found["unknown"]
    (layout,) = found["layouts"]
    assert (layout["gpus"], layout["shared"]) == (1, True)
    assert (layout["processes"], layout["bytes"], layout["kv_cache"], layout["fits"]) == ([], None, None, None)


def test_another_architecture_has_weights_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    experts = ModelSize(shapes={"a": (1000, 1000)}, dimensions=None, no_dimensions="a mixture of experts")
    monkeypatch.setattr(estimate_module, "model_size", lambda _, **__: experts)
    found = estimate(spec())
    assert (found["parameters"], found["unknown"]) == (1_000_000, "a mixture of experts")
    (layout,) = found["layouts"]
    assert (layout["fits"], layout["kv_cache"]["sequences"]) == (None, None)
    routed = ModelSize(
        shapes={"model.layers.0.mlp.experts.0.w1.weight": (9, 9)}, dimensions=None, no_dimensions="experts"
    )
    monkeypatch.setattr(estimate_module, "model_size", lambda _, **__: routed)
    found = estimate(spec(policy={"lora": {}}))
    assert found["unknown"] == "experts; policy.lora adapts none of its experts"


def test_a_policys_files_are_read_wherever_the_spec_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    policy = make_policy(tmp_path / "policy")
    size = model_size(spec(policy={"model": str(policy)}))
    assert size.parameters > 0
    assert model_size(parse_spec({**spec().model_dump(), "init_checkpoint": str(policy)})) == size

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    with pytest.raises(ModelError, match="not on this machine"):
        model_size(spec())
    policy.rename(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    assert model_size(spec()) == size
    assert model_size(spec(policy={"revision": "0" * 40})) == size
    for revision in ("other", f"../snapshots/{'0' * 40}", "a" * 300):
        with pytest.raises(ModelError, match="not on this machine"):
            model_size(spec(policy={"revision": revision}))
    with pytest.raises(ModelError, match="not on this machine"):
        model_size(spec(policy={"model": "no hub id: at all"}))


def test_an_api_server_without_the_hubs_package_says_that_it_knows_none(
    real_size: Callable[[JobSpec], ModelSize], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate_module, "model_size", real_size)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    found = estimate(spec())
    assert found["unknown"] == "hub ids can't be looked up here; name the model's directory for an estimate"


class Hub(BaseHTTPRequestHandler):
    """A hub's files, as its real client asks for them: below `folder`, ORG/NAME/FILE."""

    protocol_version = "HTTP/1.1"
    folder = Path()

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        organisation, name, _, revision, file = self.path.lstrip("/").split("/", 4)
        repository = self.folder / organisation / name
        if name == "slow":
            time.sleep(60)
        status, body, headers = 200, b"", {"X-Repo-Commit": "1" * 40, "ETag": f'"{file}"'}
        if not repository.is_dir():
            status, headers = 404, {"X-Error-Code": "RepoNotFound"}
        elif revision not in ("main", "1" * 40):
            status, headers = 404, {"X-Error-Code": "RevisionNotFound"}
        elif name == "private" and self.headers.get("authorization") != "Bearer hf_operators":
            status, headers = 404, {"X-Error-Code": "RepoNotFound"}
        elif name == "gated":
            status, headers = 403, {"X-Error-Code": "GatedRepo"}
        elif not (repository / file).is_file():
            status, headers = 404, {"X-Error-Code": "EntryNotFound"}
        else:
            body = (repository / file).read_bytes()
        if self.command == "GET":
            with (self.folder / "fetched").open("a") as fetched:
                fetched.write(f"{name}/{file}\n")
        if found := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", "")):
            body = body[int(found[1]) : int(found[2]) + 1]
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """The address of a stand-in for the hub, whose repositories are below tmp_path / "repositories"."""
    handler = type("TheHub", (Hub,), {"folder": tmp_path / "repositories"})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def asked(code: str, hub: str, cache: Path, **environment: str) -> Any:
    """What a process says that has the hub at this address, which is read once; its cache is empty."""
    code = "import json; from orchestrator.checks import hub; from orchestrator.checks.estimate import *\n" + code
    variables = {"HF_ENDPOINT": hub, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ | variables
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


LOOK = """
def look(name, **changes):
    try:
        size = model_size(JobSpec.model_validate({**SPEC, "policy": {"model": name, **changes}}))
        return [size.parameters, size.context, size.no_dimensions]
    except ModelError as error:
        return str(error)
"""


def test_the_size_of_a_hub_id_is_asked_of_the_hub_and_no_weights_are_fetched(hub: str, tmp_path: Path) -> None:
    repositories = tmp_path / "repositories"
    whole = make_policy(repositories / "some" / "model")
    shards = repositories / "some" / "shards"
    shutil.copytree(whole, shards)
    state = load_file(shards / "model.safetensors")
    (shards / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, shards / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("gated", "slow"):
        shutil.copytree(whole, repositories / "some" / name)
    code = repositories / "some" / "code"
    shutil.copytree(whole, code)
    config = json.loads((code / "config.json").read_text())
    (code / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "model.Model"}}))
    (repositories / "some" / "empty").mkdir()

    size = size_of(whole)
    found = asked(
        f"SPEC = {spec().model_dump()!r}\n"
        + LOOK
        + "told = {name: look(f'some/{name}') for name in ('model', 'shards', 'gated', 'none', 'empty', 'code')}\n"
        + "told['revision'] = look('some/model', revision='other')\n"
        + "told['again'] = look('some/model')\n"
        + "hub.ANSWER_S = 0.2\n"
        + "told['slow'] = look('some/slow')\n"
        + "print(json.dumps(told))",
        hub,
        tmp_path / "cache",
    )
    told = [size.parameters, size.context, size.no_dimensions]
    assert (found["model"], found["shards"], found["again"]) == (told, told, told)
    assert "accepted its terms" in found["gated"]
    assert "knows no such model" in found["none"]
    assert "no config.json" in found["empty"]
    assert "code of its own" in found["code"]
    assert "no such revision" in found["revision"]
    assert found["slow"] == "the hub did not say within 0.2 s how large the model is"
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    offline = f"SPEC = {spec().model_dump()!r}\n" + LOOK + "print(json.dumps(look('some/model')))"
    said = asked(offline, hub, tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert said == "the model is not on this machine, and HF_HUB_OFFLINE is set"


def test_the_operators_private_models_are_its_own(hub: str, tmp_path: Path) -> None:
    """A dry run of another owner is told of none, and its job can't fetch one, nor what the operator's fetched."""
    size = size_of(make_policy(tmp_path / "repositories" / "some" / "private"))
    code = (
        f"SPEC = {spec().model_dump()!r}\n"
        + """
def told(**options):
    try:
        return model_size(JobSpec.model_validate({**SPEC, "policy": {"model": "some/private"}}), **options).parameters
    except ModelError as error:
        return str(error)
from orchestrator.pinning import _commit
print(json.dumps([_commit("some/private", None), told(), told(hub_token=False)]))
"""
    )
    states = {}
    for owner in ("local", "acme"):  # in this order: its own has filled a cache
        variables = {"HF_TOKEN": "hf_operators"} | hub_environment(owner, tmp_path / "state", {})
        states[owner] = asked(code, hub, tmp_path / "cache", **variables)
    assert states["local"][:2] == ["1" * 40, size.parameters]
    assert states["acme"][0] is None
    for said in (states["local"][2], *states["acme"][1:]):
        assert "knows no such model" in said
    assert hub_environment("acme", tmp_path, {"HF_HUB_OFFLINE": "1"}).keys() == {"HF_HUB_DISABLE_IMPLICIT_TOKEN"}


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("config.json", "config.json has more than 1 MiB"),
        ("model.safetensors.index.json", "model.safetensors.index.json has more than 16 MiB"),
    ],
)
def test_a_strangers_large_file_on_the_hub_is_not_fetched(hub: str, tmp_path: Path, file: str, says: str) -> None:
    folder = make_policy(tmp_path / "repositories" / "some" / "model")
    (folder / "model.safetensors").unlink()
    with (folder / file).open("wb") as large:
        large.truncate((16 << 20) + 1)
    code = f"SPEC = {spec().model_dump()!r}\n" + LOOK + "print(json.dumps(look('some/model')))"
    assert says in asked(code, hub, tmp_path / "cache")
    fetched = tmp_path / "repositories" / "fetched"
    assert not fetched.exists() or f"model/{file}" not in fetched.read_text()


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ([f"model-{i}.safetensors" for i in range(257)], "in more than 256 files"),
        (["../../other/model.safetensors"], "does not name its files"),
        ([], "does not name its files"),
    ],
)
def test_a_strangers_index_on_the_hub_is_not_followed_anywhere(
    hub: str, tmp_path: Path, places: list[str], says: str
) -> None:
    folder = make_policy(tmp_path / "repositories" / "some" / "model")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {str(i): place for i, place in enumerate(places)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    code = f"SPEC = {spec().model_dump()!r}\n" + LOOK + "print(json.dumps(look('some/model')))"
    assert says in asked(code, hub, tmp_path / "cache")
    assert ".safetensors\n" not in (tmp_path / "repositories" / "fetched").read_text()


def test_what_the_hub_refused_is_not_asked_again_at_once_and_without_a_way_to_it_nothing_is(
    hub: str, tmp_path: Path
) -> None:
    (tmp_path / "repositories" / "some").mkdir(parents=True)
    count = "looks = []\nreal = hub._look\nhub._look = lambda *model: looks.append(model) or real(*model)\n"
    looked = (
        f"SPEC = {spec().model_dump()!r}\n"
        + LOOK
        + count
        + "told = [look(f'some/{name}') for name in ('none', 'none', 'other')]\n"
        + "print(json.dumps([told, len(looks)]))"
    )
    told, looks = asked(looked, hub, tmp_path / "cache")
    assert looks == 2
    assert all("knows no such model" in each for each in told)
    told, looks = asked(looked, "http://127.0.0.1:9", tmp_path / "cache")
    assert looks == 1
    assert set(told) == {"the hub can't be reached from here; set HF_HUB_OFFLINE=1 where it never can"}


# -- of any spec ----------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    size=st.sampled_from([10**3, 10**9, 10**400]),
    device=st.sampled_from(["auto", "cpu", "cuda"]),
    gpus=st.sampled_from([None, 0, 1, 65_536]),
    bounded=st.booleans(),
)
def test_numbers_without_end_are_reckoned_with(size: int, device: str, gpus: int | None, bounded: bool) -> None:
    job = spec(
        policy={"max_model_len": size if bounded else None},
        rollout={"max_tokens": size, "kv_cache_gib": 1e308, "engines": 256},
        optimizer={"tokens_per_microbatch": size},
        loss={"kl_coef": 1},
        resources={"device": device},
    )
    unbounded = ModelSize(shapes=QWEN.shapes, dimensions=QWEN.dimensions, context=None)
    for found in (QWEN, unbounded):
        for name in ("cuda", "cpu"):
            layout = Layout(spec=job, size=found, device=name, machine=Machine(gpus=gpus))
            assert all(readable(process.bytes) for process in layout.processes)
    json.dumps(estimate(job, Machine(gpus=gpus)), allow_nan=False)


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1.5 * GIB, "1.5 GiB")])
def test_bytes_for_people(size: int, text: str) -> None:
    assert readable(int(size)) == text


def test_it_needs_nothing_heavy() -> None:
    code = "import sys; from orchestrator.checks.estimate import estimate; from orchestrator.spec import parse_spec\n"
    code += f"estimate(parse_spec({spec().model_dump()!r}))\n"
    code += "print(*sorted({'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
