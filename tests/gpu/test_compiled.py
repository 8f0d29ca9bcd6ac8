"""Compiled blocks and the fused optimiser on a GPU: the updates of plain ones, also after a checkpoint.

python -m pytest -c tests/gpu/pytest.ini tests/gpu    with torch, transformers, peft and pytest alone
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from policies.learner import Learner, LearnerSettings
from policies.lora import Lora
from policies.types import ObjectiveAdvantages
from tests.gpu.test_gramian_modes import rollouts
from tests.tiny_policy import make_policy

pytestmark = pytest.mark.gpu
ADVANTAGES_BK = torch.randn(16, 2, generator=torch.Generator().manual_seed(1))


def learn(learner, batch):
    parts = (
        None
        if learner.settings.gramian is None
        else ObjectiveAdvantages(advantages_BK=ADVANTAGES_BK, weights_K=torch.full((2,), 0.5))
    )
    learner.learn(batch, ADVANTAGES_BK.mean(dim=1), parts=parts)


@pytest.mark.parametrize(
    "changes",
    [
        {"gramian": None},
        {"gramian": None, "packing": True, "tokens_per_microbatch": 40},
        {"gramian": "step_response", "minibatches": 2},
        {"gramian": "step_response", "response_share": 1.0},
        {"gramian": "last_block", "kl_coef": 0.1},
        {"gramian": None, "lora": Lora(rank=2, alpha=4), "kl_coef": 0.1},
        {"gramian": None, "gradient_checkpointing": True},
    ],
)
def test_compiled_blocks_learn_the_same(changes, tmp_path):
    policy = str(make_policy(tmp_path / "policy", architecture="qwen3"))
    settings = replace(
        LearnerSettings(model=policy, device="cuda", lr=1e-3, max_grad_norm=1e9, share_prompts=False), **changes
    )
    plain, compiled = Learner(settings), Learner(replace(settings, compile=True))
    batch = rollouts()
    for _ in range(3):
        for learner in (plain, compiled):
            learn(learner, batch)
    for one, other in zip(plain.parameters, compiled.parameters, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)


def test_it_goes_on_where_it_was_saved(tmp_path):
    policy = str(make_policy(tmp_path / "policy", architecture="qwen3"))
    settings = LearnerSettings(model=policy, device="cuda", lr=1e-3, gramian=None, compile=True)
    learner, batch = Learner(settings), rollouts()
    learn(learner, batch)
    learner.save_state(tmp_path)
    again = Learner(settings)
    again.load_state(tmp_path)
    for one in (learner, again):
        learn(one, batch)
    for one, other in zip(learner.parameters, again.parameters, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
