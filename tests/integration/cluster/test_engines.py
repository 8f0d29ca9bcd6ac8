"""Engines and weights: after a sync an engine is the learner, and a fresh engine on the exported checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support import make_policy, small_spec

PROMPTS = [f"{start}-1+6-9+1=" for start in range(30, 38)]


def _engine_options(policy: Path) -> dict[str, Any]:
    """What a job asks of Ray for its engines."""
    from orchestrator.build import placement

    return placement(small_spec(policy), "cpu", 0)[1]


@pytest.fixture(scope="module", params=[("llama", True), ("qwen3", False)], ids=["llama-tied", "qwen3-untied"])
def synced(request, tmp_path_factory):
    """(engine pool after three updates and syncs, learner, its exported directory, requests)."""
    import torch

    request.getfixturevalue("ray_cluster")
    from orchestrator.cluster import Cluster
    from policies.learner import LearnerSettings
    from policies.models import encode_prompt, load_tokenizer
    from policies.rollout import EngineSettings
    from policies.types import RolloutRequest

    architecture, tied = request.param
    folder = tmp_path_factory.mktemp(architecture)
    policy = make_policy(folder / "policy", architecture=architecture, tied=tied)
    tokenizer = load_tokenizer(str(policy))
    requests = [
        RolloutRequest(prompt_tokens=tuple(encode_prompt(tokenizer, prompt)), seed=seed, max_tokens=24)
        for seed, prompt in enumerate(PROMPTS)
    ]
    cluster = Cluster()
    engines, learner = cluster.start(
        EngineSettings(model=str(policy), kv_cache_gib=0.1),
        LearnerSettings(model=str(policy), lr=1e-2, threads=1),
        engines=2 if tied else 1,
        engine_options=_engine_options(policy),
        learner_options={"num_cpus": 1},
    )
    first = engines.generate(requests)
    for version in (1, 2, 3):
        rollouts = engines.generate(requests)
        learner.learn(rollouts, torch.linspace(-1, 1, len(rollouts)), None)
        learner.sync(version)
    exported = folder / "exported"
    exported.mkdir()
    learner.save(exported)
    tokenizer.save_pretrained(exported / "policy")
    yield first, engines, learner, exported / "policy", requests, cluster
    cluster.close()


def test_the_engine_has_the_learners_weights(synced):
    first, engines, learner, _, requests, _ = synced
    rollouts = engines.generate(requests)
    assert [rollout.tokens for rollout in rollouts] != [rollout.tokens for rollout in first]  # the updates were felt
    assert {rollout.policy_version for rollout in rollouts} == {3}
    for rollout, scores in zip(rollouts, learner.logprobs(rollouts), strict=True):
        assert rollout.logprobs == pytest.approx(scores, abs=1e-4)


def test_the_same_requests_give_the_same_rollouts(synced):
    _, engines, _, _, requests, _ = synced
    assert engines.generate(requests) == engines.generate(requests)


def test_equals_a_fresh_engine_on_the_exported_checkpoint(synced):
    """Same greedy tokens, log-probabilities within 1e-3."""
    from dataclasses import replace

    from orchestrator.cluster import Cluster
    from policies.learner import LearnerSettings
    from policies.rollout import EngineSettings

    _, engines, _, exported, requests, _ = synced
    greedy = [replace(request, seed=None) for request in requests]
    expected = engines.generate(greedy)
    fresh = Cluster()
    others, _ = fresh.start(
        EngineSettings(model=str(exported), kv_cache_gib=0.1),
        LearnerSettings(model=str(exported), threads=1),
        engines=1,
        engine_options=_engine_options(exported),
        learner_options={"num_cpus": 1},
    )
    try:
        for rollout, other in zip(expected, others.generate(greedy), strict=True):
            assert rollout.tokens == other.tokens
            assert rollout.logprobs == pytest.approx(other.logprobs, abs=1e-3)
    finally:
        fresh.close()


def test_an_engine_that_saw_half_an_update_refuses_to_serve(synced):
    """Last in this file: the engine is stale until it gets a whole update, and then serves again."""
    import ray

    from orchestrator.cluster import EngineError

    _, engines, _, _, requests, cluster = synced
    ray.get(cluster.actors[0].start_weight_update.remote())
    with pytest.raises(EngineError, match="send it the weights again"):
        engines.generate(requests)


def test_an_engine_whose_process_is_killed_is_lost_to_everyone(synced):
    """After the others of this file: nothing is left of the engine. A job restarts from its checkpoint then."""
    import ray

    from orchestrator.errors import ActorLost
    from tests.support import one_of

    _, engines, learner, _, requests, cluster = synced
    ray.get(cluster.actors[0].finish_weight_update.remote("3"))  # so that it serves again
    pid = ray.get(cluster.actors[0].__ray_call__.remote(lambda _: os.getpid()))
    one_of(pid, "VLLM::EngineCore").kill()
    with pytest.raises(ActorLost, match="a rollout engine is gone"):
        engines.generate(requests)
    with pytest.raises(ActorLost, match="the learner or an engine is gone"):
        learner.sync(4)


def test_two_steps_on_competition_mathematics(math500: Path, tmp_path, redis_url, state_dir):
    """deploy/jobs/math.yaml with a tiny policy: Parquet, chat prompts, ground truth inside a struct."""
    import yaml

    from tests.support import parse_spec, run_job

    spec = yaml.safe_load((Path(__file__).parents[3] / "deploy" / "jobs" / "math.yaml").read_text())
    policy = make_policy(tmp_path / "policy", architecture="qwen3", context=2048)
    spec |= {"steps": 2, "policy": {"model": str(policy), "dtype": "float32"}}
    spec["data"] |= {"train": str(math500 / "train.parquet"), "validation": str(math500 / "val.parquet")}
    spec["data"] |= {"test": str(math500 / "test.parquet"), "limit": 12}
    spec["rollout"] = {"prompts_per_step": 4, "rollouts_per_prompt": 4, "max_tokens": 64, "kv_cache_gib": 0.2}
    spec["objectives"][1]["reward"]["options"] = {"free_tokens": 8}
    spec["optimizer"]["minibatches"] = 2
    spec["evaluation"] = {"every": 2, "test_points": 1}
    store, job_id = run_job(parse_spec(spec), redis_url, state_dir)
    assert len(store.steps(job_id)) == 2
    assert store.steps(job_id)[-1]["updates"] == 2
