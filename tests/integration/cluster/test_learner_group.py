"""A learner of two ranks in Ray, which trains an adapter: an engine gets what both have; a rank that dies is a loss."""

from __future__ import annotations

import pytest

from tests.support import make_policy, small_spec


@pytest.fixture(scope="module")
def group(ray_cluster, tmp_path_factory):  # noqa: ARG001  # Ray runs
    """(first rollouts, engines, learner of two ranks after updates and their syncs, the cluster, requests, folder)."""
    import torch

    from orchestrator.actors.cluster import Cluster
    from orchestrator.build import placement
    from policies.learner import LearnerSettings
    from policies.lora import Lora
    from policies.models import encode_prompt, load_tokenizer
    from policies.rollout import EngineSettings
    from policies.types import RolloutRequest

    folder = tmp_path_factory.mktemp("group")
    policy = make_policy(folder / "policy", architecture="qwen3")
    tokenizer = load_tokenizer(str(policy))
    requests = [
        RolloutRequest(prompt_tokens=tuple(encode_prompt(tokenizer, f"{i}-1+6=")), seed=i, max_tokens=16)
        for i in range(30, 37)
    ]
    _, engine_options, learner_options = placement(small_spec(policy), "cpu", 0)
    cluster = Cluster()
    engines, learner = cluster.start(
        EngineSettings(model=str(policy), kv_cache_gib=0.1),
        LearnerSettings(model=str(policy), lr=1e-2, threads=1, lora=Lora(rank=4, alpha=16)),
        engines=1,
        engine_options=engine_options,
        learner_options=learner_options,
        learner_ranks=2,
    )
    first = engines.generate(requests)
    for version in (1, 2, 3):  # merged into the base each time, never into what was merged before
        rollouts = engines.generate(requests)
        learner.gramian(rollouts, torch.randn(len(rollouts), 3))
        learner.learn(rollouts, torch.linspace(-1, 1, len(rollouts)), None)
        engines.refit(learner, version)
    yield first, engines, learner, cluster, requests, folder
    cluster.close()


def test_an_engine_samples_from_what_the_ranks_have_together(group):
    first, engines, learner, _, requests, _ = group
    rollouts = engines.generate(requests)
    assert {rollout.policy_version for rollout in rollouts} == {3}
    assert [rollout.tokens for rollout in rollouts] != [rollout.tokens for rollout in first]  # the updates were felt
    for rollout, scores in zip(rollouts, learner.logprobs(rollouts), strict=True):
        assert rollout.logprobs == pytest.approx(scores, abs=1e-4)


def test_ranks_keep_what_they_have_side_by_side(group):
    import torch

    _, engines, learner, _, requests, folder = group
    learner.save(folder / "checkpoint")
    assert len([*(folder / "checkpoint" / "learner").glob("*.distcp")]) == 2
    rollouts = engines.generate(requests)
    before = learner.logprobs(rollouts)
    written = learner.save(folder / "beside", beside=True)
    learner.learn(rollouts, torch.linspace(-1, 1, len(rollouts)), None)
    written()
    assert learner.logprobs(rollouts) != before
    for name in ("checkpoint", "beside"):
        learner.load(folder / name)
        assert learner.logprobs(rollouts) == before


def test_a_rank_that_dies_is_a_loss(group):
    """Last, as it ends the group. The rank that is left says only that its neighbour hung up."""
    import ray

    from orchestrator.errors import ActorLost

    _, engines, learner, _, requests, _ = group
    rollouts = engines.generate(requests)
    ray.kill(learner.ranks.actors[1])
    with pytest.raises(ActorLost, match="learner"):
        learner.logprobs(rollouts)


def test_the_ranks_are_placed_with_the_engines(group):
    """An engine and two ranks; whoever comes next gets a place after them."""
    _, _, _, cluster, _, _ = group
    assert len(cluster.gang.places) == 3
