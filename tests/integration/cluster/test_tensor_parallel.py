"""An engine of two ranks on CPU: before and after weights changed it is the learner, as one of one rank is.

That one is test_engines.py's; a job with one of two is test_deploy_kind.py's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import make_policy, one_of, small_spec

# Two ranks add up in another order than one, in float32, whose last bit at log-probabilities of about -5 is 5e-7: that
# is what they were apart. Weights that are an update behind are off by more than MOVED.
ROUNDING, MOVED = 1e-5, 1e-2
PROMPTS = [f"{start}-1+6-9+1=" for start in range(30, 38)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two attention heads, one for each rank, and one head of keys and values, which both have."""
    return make_policy(tmp_path_factory.mktemp("tensor-parallel") / "policy")


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest, policy: Path) -> Iterator[Any]:
    """Its actor, as a job starts it."""
    request.getfixturevalue("ray_cluster")
    import ray

    from orchestrator.actors.engine_actors import EngineActor
    from orchestrator.actors.placement import placement
    from orchestrator.process_settings import engine_settings

    spec = small_spec(policy, rollout={"tensor_parallel": 2, "max_tokens": 8, "kv_cache_gib": 0.1})
    transport, options, _ = placement(spec, "cpu", 0)
    settings = engine_settings(spec, str(policy), "cpu", transport)
    actor = ray.remote(EngineActor).options(**options).remote(settings)
    ray.get(actor.ready.remote())
    yield actor
    ray.kill(actor)


@pytest.fixture(scope="module")
def requests(policy: Path) -> list[Any]:
    from policies.models import encode_prompt, load_tokenizer
    from policies.types import RolloutRequest

    tokenizer = load_tokenizer(str(policy))
    return [
        RolloutRequest(prompt_tokens=tuple(encode_prompt(tokenizer, prompt)), seed=seed, max_tokens=8)
        for seed, prompt in enumerate(PROMPTS)
    ]


def make_learner(policy: Path, **changes: Any) -> Any:
    from policies.learner import Learner, LearnerSettings

    return Learner(LearnerSettings(model=str(policy), lr=1e-2, threads=1, **changes))


def elsewhere(actor: Any) -> Any:
    """An engine's actor as one on another machine: that is what it answers, and the file's name means nothing to it."""
    import ray

    def updated(_: Any, contents: Any) -> Any:
        return actor.update_weights.remote({"path": "/not/here"}, contents)

    return SimpleNamespace(
        init_weight_transfer_engine=actor.init_weight_transfer_engine,
        start_weight_update=actor.start_weight_update,
        finish_weight_update=actor.finish_weight_update,
        machine=SimpleNamespace(remote=lambda: ray.put("another")),
        update_weights=SimpleNamespace(remote=updated),
    )


def update(learner: Any, engine: Any, rollouts: list[Any], version: int) -> None:
    """The learner learns from the rollouts, and then sends what it has to the engine, as its actor does."""
    import torch

    from orchestrator.actors.engine_actors import EngineFanout
    from policies.weight_sync import Collected, SharedMemorySender

    before = learner.logprobs(rollouts)
    learner.learn(rollouts, torch.linspace(-1, 1, len(rollouts)))
    assert apart(before, learner.logprobs(rollouts)) > MOVED
    SharedMemorySender(Collected(learner, "shared_memory"), EngineFanout([engine], patience_s=60)).send(version)


def rolled_out(learner: Any, engine: Any, requests: list[Any], version: int) -> list[Any]:
    """Of the engine, whose tokens have the probabilities that the learner gives them."""
    import ray

    rollouts = ray.get(engine.generate.remote(requests))
    assert {rollout.policy_version for rollout in rollouts} == {version}
    gap = apart([rollout.logprobs for rollout in rollouts], learner.logprobs(rollouts))
    again = ray.get(engine.generate.remote(requests))
    assert [rollout.tokens for rollout in again] == [rollout.tokens for rollout in rollouts]
    print(f"apart from the learner: {gap:.1e}")
    assert gap < ROUNDING
    return rollouts


def apart(some: Any, others: Any) -> float:
    """The largest difference of two log-probabilities of a token."""
    pairs = ((a, b) for row, other in zip(some, others, strict=True) for a, b in zip(row, other, strict=True))
    return max(abs(a - b) for a, b in pairs)


def test_two_ranks_are_the_learner_before_and_after_the_weights_changed(policy, engine, requests):
    """A whole policy, and an adapter alone; the second as to another machine."""
    from policies.lora import Lora

    learner = make_learner(policy)
    rollouts = rolled_out(learner, engine, requests, 0)
    update(learner, engine, rollouts, 1)
    rollouts = rolled_out(learner, engine, requests, 1)
    adapted = make_learner(policy, lora=Lora(rank=4, alpha=8))  # on the weights that the engine started with
    update(adapted, elsewhere(engine), rollouts, 2)
    rolled_out(adapted, engine, requests, 2)


def test_an_engine_that_lost_a_rank_says_that_it_is_gone(engine):
    """Last in this file: it is. Its actor lives, so the pool hears it by the answer."""
    import ray

    from policies.rollout import EngineDied

    assert ray.get(engine.version.remote()) == 2
    pid = ray.get(engine.__ray_call__.remote(lambda _: os.getpid()))
    one_of(pid, "VLLM::Worker_TP1").kill()
    with pytest.raises(EngineDied):
        ray.get(engine.lasts.remote(), timeout=60)
