"""A prompt that goes through the policy once for all its rollouts, on a GPU: the update of rows of their own.

python -m pytest -c tests/gpu/pytest.ini tests/gpu    with torch, transformers, peft and pytest alone
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from policies.learner import Learner, LearnerSettings
from tests.gpu.test_gramian_modes import rollouts
from tests.tiny_policy import make_policy

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-3), ("bfloat16", 0.05)])
def test_the_gradient_is_the_same(dtype, error, tmp_path):
    policy = str(make_policy(tmp_path / "policy", architecture="qwen3"))
    prompts = [one.prompt_tokens for one in rollouts()[:2]]
    batch = [replace(one, prompt_tokens=prompts[i % 2]) for i, one in enumerate(rollouts())]
    advantages_B = torch.linspace(-1, 1, len(batch))
    seen = []
    for share in (False, True):
        settings = LearnerSettings(model=policy, device="cuda", dtype=dtype, gramian=None, share_prompts=share)
        learner = Learner(settings)
        assert learner.scorer.shares_prompts == share
        learner.optimizer.register_step_pre_hook(
            lambda *_, learner=learner: seen.append(torch.cat([p.grad.flatten() for p in learner.parameters]))
        )
        learner.learn(batch, advantages_B)
    assert float((seen[1] - seen[0]).norm() / seen[0].norm()) < error
