"""vLLM's own transports on a GPU: after a sync the engine is the learner. Skipped where vLLM and Ray are not there."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.tiny_policy import make_policy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(find_spec("vllm") is None or find_spec("ray") is None, reason="needs vLLM and Ray"),
]


@pytest.mark.parametrize(("transport", "sleep"), [("ipc", False), ("ipc", True), ("nccl", False)])
@pytest.mark.usefixtures("ray_cluster")
def test_the_engine_has_the_learners_weights(transport, sleep, tmp_path):
    """An engine that sleeps gives its cache's memory back meanwhile."""
    import torch

    from orchestrator.actors.cluster import Cluster
    from policies.learner import LearnerSettings
    from policies.models import encode_prompt, load_tokenizer
    from policies.rollout import EngineSettings
    from policies.types import RolloutRequest

    if transport == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip("nccl needs a GPU for the learner and one for the engine")
    policy = make_policy(tmp_path / "policy", architecture="qwen3")
    tokenizer = load_tokenizer(str(policy))
    requests = [
        RolloutRequest(prompt_tokens=tuple(encode_prompt(tokenizer, f"{i}+1=")), seed=i, max_tokens=24)
        for i in range(10, 18)
    ]
    share = 0.5 if transport == "ipc" else 1
    cluster = Cluster()
    engines, learner = cluster.start(
        EngineSettings(model=str(policy), device="cuda", transport=transport, sleep=sleep, enforce_eager=True),
        LearnerSettings(model=str(policy), device="cuda", lr=1e-2),
        engines=1,
        engine_options={"num_gpus": share},
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
            assert rollout.logprobs == pytest.approx(scores, abs=1e-2)
    finally:
        cluster.close()
