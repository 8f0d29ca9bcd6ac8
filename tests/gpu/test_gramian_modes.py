"""The objectives' gradients on a GPU, in both precisions: one captured pass gives what K passes give.

python -m pytest -c tests/gpu/pytest.ini tests/gpu    with torch, transformers, peft and pytest alone
"""

from __future__ import annotations

import pytest
import torch

from policies.learner import Learner, LearnerSettings
from policies.types import ObjectiveAdvantages, Rollout
from tests.tiny_policy import make_policy

pytestmark = pytest.mark.gpu


def rollouts() -> list[Rollout]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for length in range(8, 24):
        ids = tuple(torch.randint(0, 90, (length,), generator=generator).tolist())
        found.append(
            Rollout(
                prompt_tokens=ids[:4],
                tokens=ids[4:],
                logprobs=(-4.6,) * (length - 4),
                text="",
                truncated=False,
                policy_version=0,
            )
        )
    return found


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-3), ("bfloat16", 0.1)])
@pytest.mark.parametrize("mode", ["exact", "sketch", "last_block", "step_response"])
def test_every_mode_runs_and_agrees_with_the_cpu(mode, dtype, error, tmp_path):
    policy = str(make_policy(tmp_path / "policy", architecture="qwen3"))
    batch = rollouts()
    advantages_BK = torch.randn(len(batch), 3, generator=torch.Generator().manual_seed(1))
    weights_K = torch.full((3,), 1 / 3, dtype=torch.float64)
    parts = ObjectiveAdvantages(advantages_BK=advantages_BK, weights_K=weights_K)
    found = {}
    for device in ("cpu", "cuda"):
        settings = LearnerSettings(
            model=policy, device=device, dtype=dtype if device == "cuda" else "float32", gramian=mode, sketch_width=64
        )
        learner = Learner(settings)
        gramian_KK = learner.gramian(batch, advantages_BK) if mode == "exact" else None
        stats = learner.learn(batch, advantages_BK.mean(dim=1), parts=parts)
        found[device] = gramian_KK if gramian_KK is not None else torch.tensor(stats.gramian_KK or stats.influence_K)
    expected, seen = found["cpu"].double(), found["cuda"].double()
    if mode == "sketch":
        error = 0.3  # the devices draw other signs
    assert float((seen - expected).norm() / expected.norm()) < error
