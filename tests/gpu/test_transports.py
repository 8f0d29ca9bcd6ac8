"""vLLM's own transports on a GPU: after a sync the engine is the learner. Skipped where vLLM and Ray are not there."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.tiny_policy import make_policy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(find_spec("vllm") is None or find_spec("ray") is None, reason="needs vLLM and Ray"),
]


@pytest.mark.parametrize(
    ("transport", "changes"),
    [
        ("ipc", {}),
        ("ipc", {"sleep": True}),
        ("ipc", {"dtype": "bfloat16"}),
        ("ipc", {"dtype": "bfloat16", "lora": True}),  # merged on the way
        ("ipc", {"engines": 2}),
        ("nccl", {}),
        ("nccl", {"dtype": "bfloat16", "lora": True}),
        ("nccl", {"engines": 2}),  # each with ranks of its own in the group
        ("nccl", {"tensor_parallel": 2}),
        ("nccl", {"offload": True}),
    ],
)
@pytest.mark.usefixtures("ray_cluster")
def test_engines_have_the_learners_weights(transport, changes, tmp_path):
    """An engine that sleeps gives its cache's memory back meanwhile."""
    import torch

    from orchestrator.actors.cluster import Cluster
    from policies.learner import LearnerSettings
    from policies.lora import Lora
    from policies.models import encode_prompt, load_tokenizer
    from policies.rollout import EngineSettings
    from policies.types import RolloutRequest

    sleep, dtype = changes.get("sleep", False), changes.get("dtype", "float32")
    engines_wanted, size = changes.get("engines", 1), changes.get("tensor_parallel", 1)
    needed = 1 if transport == "ipc" else 1 + engines_wanted * size
    if torch.cuda.device_count() < needed:
        pytest.skip(f"it needs {needed} GPUs: the learner's and those of the engines")
    policy = make_policy(tmp_path / "policy", architecture="qwen3")
    tokenizer = load_tokenizer(str(policy))
    requests = [
        RolloutRequest(prompt_tokens=tuple(encode_prompt(tokenizer, f"{i}+1=")), seed=i, max_tokens=24)
        for i in range(10, 18)
    ]
    share = round(1 / (1 + engines_wanted) - 0.001, 3) if transport == "ipc" else 1
    cluster = Cluster()
    engines, learner = cluster.start(
        EngineSettings(
            model=str(policy),
            device="cuda",
            dtype=dtype,
            transport=transport,
            sleep=sleep,
            tensor_parallel=size,
            enforce_eager=True,
            gpu_memory_utilization=0.4 / engines_wanted,
        ),
        LearnerSettings(
            model=str(policy),
            device="cuda",
            dtype=dtype,
            lr=1e-2,
            gramian=None,
            cpu_offload=changes.get("offload", False),
            lora=Lora(rank=4, alpha=8) if changes.get("lora") else None,
        ),
        engines=engines_wanted,
        engine_options={"num_gpus": share if transport == "ipc" else size},
        learner_options={"num_gpus": share},
    )
    try:
        for version in (1, 2):
            rollouts = engines.generate(requests)
            if sleep:
                before, total = torch.cuda.mem_get_info()
                engines.rest()
                assert torch.cuda.mem_get_info()[0] - before > 0.2 * total  # of the 0.4 that it has
            learner.learn(rollouts, torch.linspace(-1, 1, len(rollouts)), None)
            engines.refit(learner, version)
        rollouts = engines.generate(requests)
        assert {rollout.policy_version for rollout in rollouts} == {2}
        for rollout, scores in zip(rollouts, learner.logprobs(rollouts), strict=True):
            assert rollout.logprobs == pytest.approx(scores, abs=1e-2 if dtype == "float32" else 0.1)
    finally:
        cluster.close()
