"""A learner of two ranks in Ray, which trains an adapter: what they keep, where they are placed, and that a rank that
dies is a loss. What an engine gets of both is test_rules_job.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from policies.types import Rollout
from tests.support import make_policy, small_spec


@pytest.fixture(scope="module")
def cluster(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:  # noqa: ARG001  # Ray runs
    """Its learner has two ranks; nobody samples from it."""
    from orchestrator.actors import cluster
    from orchestrator.actors.placement import placement
    from policies.learner import LearnerSettings
    from policies.lora import Lora
    from policies.rollout import EngineSettings

    class Idle:
        """In an engine's place."""

        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def ready(self) -> bool:
            return True

        def init_weight_transfer_engine(self, _: Any) -> None:
            pass

        def end_core(self) -> None:
            pass

    policy = make_policy(tmp_path_factory.mktemp("group") / "policy", architecture="qwen3")
    _, engine_options, learner_options = placement(small_spec(policy), "cpu", 0)
    made = cluster.Cluster()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "EngineActor", Idle)
        patch.setattr(cluster, "END_S", 0.1)
        try:
            _, made.learner = made.start(
                EngineSettings(model=str(policy)),
                LearnerSettings(model=str(policy), lr=1e-2, threads=1, lora=Lora(rank=4, alpha=16)),
                engines=1,
                engine_options=engine_options,
                learner_options=learner_options,
                learner_ranks=2,
            )
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def rollouts(cluster: Any) -> list[Rollout]:
    """Whose tokens are not the learner's own; it has made updates by them."""
    import torch

    made = [
        Rollout(
            prompt_tokens=(i, i + 1, 7), tokens=tuple(range(i, i + 16)), logprobs=(-4.6,) * 16, text="",
            truncated=False, policy_version=0,
        )
        for i in range(1, 8)
    ]  # fmt: skip
    first = cluster.learner.logprobs(made)
    for _ in range(3):
        cluster.learner.gramian(made, torch.randn(len(made), 3))
        cluster.learner.learn(made, torch.linspace(-1, 1, len(made)), None)
    assert cluster.learner.logprobs(made) != first  # the updates were felt
    return made


def test_ranks_keep_what_they_have_side_by_side(cluster: Any, rollouts: list[Rollout], tmp_path: Path) -> None:
    import torch

    learner = cluster.learner
    learner.save(tmp_path / "checkpoint")
    assert len([*(tmp_path / "checkpoint" / "learner").glob("*.distcp")]) == 2
    before = learner.logprobs(rollouts)
    written = learner.save(tmp_path / "beside", beside=True)
    learner.learn(rollouts, torch.linspace(-1, 1, len(rollouts)), None)
    written()
    assert learner.logprobs(rollouts) != before
    for name in ("checkpoint", "beside"):
        learner.load(tmp_path / name)
        assert learner.logprobs(rollouts) == before


def test_a_rank_that_dies_is_a_loss(cluster: Any, rollouts: list[Rollout]) -> None:
    """Last, as it ends the group. The rank that is left says only that its neighbour hung up."""
    import ray

    from orchestrator.errors import ActorLost

    ray.kill(cluster.learner.ranks.actors[1])
    with pytest.raises(ActorLost, match="learner"):
        cluster.learner.logprobs(rollouts)


def test_the_ranks_are_placed_with_the_engines(cluster: Any) -> None:
    """An engine and two ranks; whoever comes next gets a place after them."""
    assert len(cluster.gang.places) == 3
