"""A policy that a GPU gets block by block: weights, gradients and moments of the host's, or of several ranks.

python -m pytest -c tests/gpu/pytest.ini tests/gpu    with torch, transformers, peft and pytest alone
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from policies.learner import Learner, LearnerSettings
from policies.lora import Lora
from policies.types import ObjectiveAdvantages
from tests.gpu.test_gramian_modes import rollouts
from tests.tiny_policy import make_policy

pytestmark = pytest.mark.gpu
STEPS, LR = 3, 1e-3
ADVANTAGES_BK = torch.randn(16, 2, generator=torch.Generator().manual_seed(1))
ADAPTER = {"lora": Lora(rank=2, alpha=4)}


@contextmanager
def group(folder: Path, rank: int = 0, ranks: int = 1) -> Iterator[None]:
    """As a job's ranks make one: what is the host's goes by gloo."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.cuda.set_device(rank)
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"file://{folder}/group", rank=rank, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def make_settings(policy: str, **changes: object) -> LearnerSettings:
    return replace(LearnerSettings(model=policy, device="cuda", lr=LR, gramian="step_response"), **changes)


def learn(learner: Learner, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """The weights that engines would get afterwards."""
    parts = ObjectiveAdvantages(advantages_BK=ADVANTAGES_BK, weights_K=torch.full((2,), 0.5))
    for _ in range(steps):
        learner.learn(rollouts(), ADVANTAGES_BK.mean(dim=1), parts=parts)
    return {name: tensor.float().cpu() for name, tensor in learner.weights().items()}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], dtype: str) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        if dtype == "bfloat16":  # Adam makes a whole step of a rounded gradient's sign
            assert float((tensor - expected[name]).abs().mean()) < LR * STEPS / 3, name
        else:
            torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [{}, ADAPTER, {"kl_coef": 0.1, "gradient_checkpointing": True, "minibatches": 2}])
def test_an_offloaded_policy_learns_what_one_on_the_gpu_does(changes, dtype, tmp_path):
    policy = str(make_policy(tmp_path / "policy", architecture="qwen3"))
    settings = make_settings(policy, dtype=dtype, **changes)
    expected = learn(Learner(settings))
    with group(tmp_path):
        learner = Learner(replace(settings, cpu_offload=True))
        assert {parameter.device.type for parameter in learner.model.parameters()} == {"cpu"}
        assert_close(learn(learner), expected, dtype)


@pytest.mark.parametrize("changes", [{}, ADAPTER])
def test_a_checkpoint_of_one_is_the_others_as_well(changes, tmp_path):
    """The optimiser on a GPU is fused, on the host it is not."""
    policy = str(make_policy(tmp_path / "policy", architecture="qwen3"))
    settings = make_settings(policy, **changes)
    plain = Learner(settings)
    learn(plain)
    (tmp_path / "plain").mkdir()
    (tmp_path / "offloaded").mkdir()
    plain.save_state(tmp_path / "plain")
    further = learn(plain, 1)
    with group(tmp_path):
        offloaded = Learner(replace(settings, cpu_offload=True))
        offloaded.load_state(tmp_path / "plain")
        assert_close(learn(offloaded, 1), further, "float32")
        offloaded.save_state(tmp_path / "offloaded")
        expected = learn(offloaded, 1)
        again = Learner(replace(settings, cpu_offload=True))
        again.load_state(tmp_path / "offloaded")
        assert_close(learn(again, 1), expected, "float32")
    again = Learner(settings)
    again.load_state(tmp_path / "offloaded")
    assert_close(learn(again, 1), expected, "float32")


def rank_main(rank: int, settings: LearnerSettings, folder: str) -> None:
    with group(Path(folder), rank, 2):
        learner = Learner(settings)
        found = learn(learner)
        if rank == 0:
            torch.save(found, f"{folder}/found.pt")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [{}, {"cpu_offload": True}, ADAPTER, {"kl_coef": 0.1}])
def test_two_ranks_learn_what_one_does(changes, dtype, tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("two ranks need a GPU each")
    policy = str(make_policy(tmp_path / "policy", architecture="qwen3"))
    settings = make_settings(policy, dtype=dtype, **changes)
    expected = learn(Learner(replace(settings, cpu_offload=False)))
    mp.spawn(functools.partial(rank_main, settings=settings, folder=str(tmp_path)), nprocs=2)
    assert_close(torch.load(tmp_path / "found.pt", weights_only=True), expected, dtype)
