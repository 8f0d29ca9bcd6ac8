"""Engines and weights: after a sync an engine is the learner, and a fresh engine on the exported checkpoint."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fault_figures import REPEATS, tell
from tests.support import make_policy, small_spec

STALL_S = 10.0  # more than an engine that is well shows no token for on a busy machine
DETECT_S = 15.0  # at most, from an engine's end until it is retired
PROMPTS = [f"{start}-1+6-9+1=" for start in range(30, 38)]


def _engine_options(policy: Path) -> dict[str, Any]:
    """What a job asks of Ray for its engines."""
    from orchestrator.actors.placement import placement

    return placement(small_spec(policy), "cpu", 0)[1]


@pytest.fixture(scope="module", params=[("llama", True), ("qwen3_moe", False)], ids=["llama-tied", "experts-untied"])
def synced(request, tmp_path_factory):
    """(engine pool after three updates and syncs, learner, its exported directory, requests)."""
    import torch

    request.getfixturevalue("ray_cluster")
    from orchestrator.actors.cluster import Cluster
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
        engines.refit(learner, version)
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


def test_a_rollouts_text_is_what_its_tokens_say_without_the_end_of_the_sequence(synced):
    from policies.models import load_tokenizer

    _, engines, _, exported, requests, _ = synced
    tokenizer = load_tokenizer(str(exported))
    # Many short ones, so that some end by themselves and others are cut off.
    rollouts = engines.generate([replace(requests[seed % len(requests)], seed=seed) for seed in range(256)])
    assert {rollout.truncated for rollout in rollouts} == {True, False}
    for rollout in rollouts:
        assert rollout.truncated or rollout.tokens[-1] == tokenizer.eos_token_id
        written = rollout.tokens if rollout.truncated else rollout.tokens[:-1]
        assert rollout.text == tokenizer.decode(written, skip_special_tokens=True)
        assert len(rollout.logprobs) == len(rollout.tokens)


def test_a_stop_text_ends_a_rollout_whose_tokens_have_it_and_whose_text_does_not(synced):
    _, engines, learner, _, requests, _ = synced
    plain = engines.generate(requests)
    stop = next(r.text[1:3] for r in plain if len(r.text) >= 4)
    asked = [replace(request, stop=(stop,)) for request in requests]
    stopped, included = engines.generate(asked), engines.generate([replace(r, include_stop=True) for r in asked])
    for whole, cut, ended in zip(plain, stopped, included, strict=True):
        before, found, _ = whole.text.partition(stop)
        assert (cut.text, ended.text) == (before, before + found)
        assert cut.tokens == whole.tokens[: len(cut.tokens)]
        assert len(cut.logprobs) == len(cut.tokens)
        assert cut.truncated == (whole.truncated and not found)
    assert any(len(cut.tokens) < len(whole.tokens) for whole, cut in zip(plain, stopped, strict=True))
    for rollout, scores in zip(stopped, learner.logprobs(stopped), strict=True):
        assert rollout.logprobs == pytest.approx(scores, abs=1e-4)


def test_the_norm_of_an_engine_on_cpu_is_vllms_own(synced):
    """Strided as a head's part is, without a weight, narrow, of another dtype: always what vLLM's own calls say.

    In an engine's process, as any other would have to import vLLM first.
    """
    import ray

    def gaps() -> dict[str, float]:
        import torch
        from vllm.config import CompilationConfig, CompilationMode, VllmConfig, set_current_vllm_config
        from vllm.model_executor.layers.layernorm import RMSNorm

        from policies.weight_sync import prepare_vllm

        prepare_vllm()
        prepare_vllm()
        torch.manual_seed(0)
        eager = VllmConfig(compilation_config=CompilationConfig(mode=CompilationMode.NONE, custom_ops=["all"]))
        dtypes = (torch.float32, torch.bfloat16)
        found = {}
        for width, dtype, of_weight in itertools.product((60, 64), dtypes, (*dtypes, None)):
            with set_current_vllm_config(eager):
                norm = RMSNorm(width, eps=1e-5, has_weight=of_weight is not None, dtype=of_weight)
            assert type(norm).__name__ == "CpuRMSNorm"
            assert norm._forward_method == norm.forward_cpu
            norm.weight.data.normal_()

            def numbers(columns: slice, width: int = width, dtype: Any = dtype) -> Any:
                return torch.randn(7, 3, 2 * width).to(dtype)[..., columns]

            for columns in (slice(width), slice(width // 2, width // 2 + width)):
                x, residual = numbers(columns), numbers(columns)
                theirs = [norm.forward_native(x), *norm.forward_native(x.clone(), residual.clone())]
                mine = [norm(x), *norm(x, residual)]
                for name, a, b in zip("xyz", mine, theirs, strict=True):
                    case = f"{width} {dtype} {of_weight} {columns.start} {name}"
                    found[case] = float(((a - b).abs() / (1 + b.abs())).max())
        return found

    _, engines, *_ = synced
    found = ray.get(engines.places[0].engine.actor.__ray_call__.remote(lambda _: gaps()))
    assert len(found) == 72
    for case, gap in found.items():
        assert gap < (2**-6 if "bfloat16" in case else 1e-6), case


def test_engines_that_slept_sample_what_they_would_have(synced):
    """On CPU they keep their memory. What shows is that vLLM goes through it, and that weights find them awake."""
    _, engines, learner, _, requests, _ = synced
    expected = engines.generate(requests)
    engines.rest()
    engines.refit(learner, 3)
    assert engines.generate(requests) == expected
    assert not [incident for incident in engines.told() if incident.type == "engine.retired"]


def test_equals_a_fresh_engine_on_the_exported_checkpoint(synced):
    """Same greedy tokens, log-probabilities within 1e-3.

    Tied weights are written in the form of those that the engines here have started with, so a learner looks at them:
    an engine takes half a minute of a processor to start.
    """
    import ray

    from orchestrator.actors.engine_actors import EngineActor
    from policies.learner import Learner, LearnerSettings
    from policies.rollout import EngineSettings

    _, engines, _, exported, requests, _ = synced
    greedy = [replace(request, seed=None) for request in requests]
    rollouts = engines.generate(greedy)
    if len(engines.places) > 1:
        found = Learner(LearnerSettings(model=str(exported), threads=1)).logprobs(rollouts)
        for rollout, scores in zip(rollouts, found, strict=True):
            assert rollout.logprobs == pytest.approx(scores, abs=1e-3)
        return
    settings = EngineSettings(model=str(exported), kv_cache_gib=0.1)
    fresh = ray.remote(EngineActor).options(**_engine_options(exported)).remote(settings)
    try:
        for rollout, other in zip(rollouts, ray.get(fresh.generate.remote(greedy)), strict=True):
            assert rollout.tokens == other.tokens
            assert rollout.logprobs == pytest.approx(other.logprobs, abs=1e-3)
        ray.get(fresh.end_core.remote())
    finally:
        ray.kill(fresh)


def test_an_engine_that_saw_half_an_update_serves_after_a_whole_one(synced):
    """The others make its rollouts meanwhile; where there is none, the job goes back to its checkpoint."""
    import ray

    from orchestrator.errors import ActorLost

    _, engines, learner, _, requests, cluster = synced
    ray.get(cluster.actors[0].start_weight_update.remote())
    if len(engines.places) == 1:
        with pytest.raises(ActorLost, match=r"engine 0 is stale: .*weights are mixed"):
            engines.generate(requests)
    else:
        assert len(engines.generate(requests)) == len(requests)
    assert engines.health()["0"]["health"] == "stale"
    ray.get(cluster.actors[0].finish_weight_update.remote(None))
    engines.refit(learner, 3)
    assert {figures["health"] for figures in engines.health().values()} == {"healthy"}


def test_weights_change_under_rollouts_that_go_on(synced):
    """They say which policy wrote which of their tokens, each with that policy's own probability."""
    _, engines, learner, _, requests, _ = synced
    many = [replace(request, seed=seed, max_tokens=90) for seed, request in enumerate(requests * 8)]
    ended, found = threading.Event(), []
    thread = threading.Thread(target=lambda: found.extend(engines.generate(many, lambda *_: ended.set())))
    thread.start()
    ended.wait(60)
    engines.refit(learner, 4)  # the same weights under another name, so that the learner can check every token
    thread.join(60)
    assert all(sum(count for _, count in rollout.version_spans) == len(rollout.tokens) for rollout in found)
    carried = [rollout for rollout in found if [version for version, _ in rollout.version_spans] == [3, 4]]
    assert carried
    assert [updates for updates, _ in carried[0].staleness(4)] == [1, 0]
    for rollout, scores in zip(carried, learner.logprobs(carried), strict=True):
        assert rollout.logprobs == pytest.approx(scores, abs=1e-4)
    engines.refit(learner, 3)


def test_what_nobody_waits_for_is_forgotten_by_vllm(synced):
    """And what is asked for next is what it would have been."""
    import ray

    _, engines, _, _, requests, _ = synced
    expected = engines.generate(requests)
    long = [replace(request, seed=seed, max_tokens=100) for seed, request in enumerate(requests * 8)]
    begun, ended = time.monotonic(), []
    engines.generate(long)
    whole_s = time.monotonic() - begun
    found = engines.gather(long, lambda place, _: ended.append(place), lambda: len(ended) >= 4)
    assert 4 <= len(found) < len(long)

    def under_way() -> list[tuple[int, int]]:
        """Requests that vLLM has, and streams that are open, of each engine."""
        asked = [
            place.engine.actor.__ray_call__.remote(
                lambda engine: (engine.llm.output_processor.get_num_unfinished_requests(), len(engine._calls))
            )
            for place in engines.places
        ]
        return ray.get(asked)

    deadline = time.monotonic() + max(1, whole_s / 3)  # all but four of them go on for most of it
    while any(sum(counts) for counts in under_way()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert under_way() == [(0, 0)] * len(engines.places)
    assert engines.generate(requests) == expected


def _at_first_end(act: Callable[[], Any]) -> Callable[[int, Any], None]:
    """Does something once, when the first rollout of a batch has ended."""
    return _at_end(1, act)


def _at_end(number: int, act: Callable[[], Any]) -> Callable[[int, Any], None]:
    """When so many have ended."""
    ends = iter(range(1, 10**6))

    def ended(_place: int, _rollout: Any) -> None:
        if next(ends) == number:
            act()

    return ended


def _retired_s_after(moment: float, caplog: pytest.LogCaptureFixture) -> float:
    """From this time of the clock until the pool gave an engine up, as its log says."""
    (at,) = (record.created for record in caplog.records if "is retired" in record.getMessage())
    return round(at - moment, 2)


def test_an_engine_killed_in_the_middle_of_a_batch_costs_its_own_rollouts_alone(synced, caplog):
    """T8: the others make them, and the engine in its place serves once it has the current weights, not before.

    Killed at the first rollout's end; with EQUIPOISE_FAULT_REPEATS again and again, when 30, 60 and 90 % have ended.
    """
    import ray

    from orchestrator.errors import ActorLost

    _, engines, learner, _, requests, cluster = synced
    many = [replace(request, seed=seed, max_tokens=27 + seed) for seed, request in enumerate(requests * 8)]
    killed: list[tuple[float, int]] = []

    def killer() -> Callable[[], None]:
        pids = [ray.get(place.engine.actor.__ray_call__.remote(lambda _: os.getpid())) for place in engines.places]

        def kill() -> None:
            place = max(engines.places, key=lambda place: place.held)  # near the end of a batch one may have none left
            killed.append((time.time(), place.number))
            os.kill(pids[place.number], signal.SIGKILL)

        return kill

    if len(engines.places) == 1:  # T10
        with pytest.raises(ActorLost, match="no rollout engine is left"):
            engines.generate(many, _at_first_end(killer()))
        with pytest.raises(ActorLost, match="no rollout engine is left"):
            engines.refit(learner, 4)
        tell("T10", steps_with_no_samples=0)
        return
    engines.health(), engines.told()
    ends = [1] if REPEATS == 1 else [int(share * len(many)) for _ in range(2) for share in (0.3, 0.6, 0.9)]
    detect_s, resent, others = [], [], 0
    for version, end in enumerate(ends, start=3):
        caplog.clear()
        rollouts = engines.generate(many, _at_end(end, killer()))
        assert [rollout.prompt_tokens for rollout in rollouts] == [request.prompt_tokens for request in many]
        (retired,) = engines.told()
        at, number = killed[-1]
        assert (retired.type, retired.data["engine"], retired.data["given_up"]) == ("engine.retired", number, False)
        detect_s.append(_retired_s_after(at, caplog))
        resent.append(retired.data["resent"])
        assert 0 <= detect_s[-1] <= DETECT_S
        assert 0 < resent[-1] <= len(many) - end
        assert engines.health()[str(number)]["health"] == "starting"

        _await_start(engines.places[number])
        assert engines.health()[str(number)]["health"] == "stale"
        assert ray.get(cluster.actors[-1].version.remote()) is None  # it has the initial policy, and says nothing of it
        rollouts += engines.generate(requests)
        others += sum(rollout.policy_version != version for rollout in rollouts)
        assert engines.health()[str(number)]["rollouts"] == 0
        engines.refit(learner, version + 1)
        assert [incident.type for incident in engines.told()] == ["engine.restarted", "engine.back"]
        rollouts = engines.generate(requests)
        assert engines.health()[str(number)]["rollouts"] > 0
        others += sum(rollout.policy_version != version + 1 for rollout in rollouts)
        for rollout, scores in zip(rollouts, learner.logprobs(rollouts), strict=True):
            assert rollout.logprobs == pytest.approx(scores, abs=1e-4)
    figures = {"samples_of_another_version": others, "resent": resent, "of": len(many)}
    tell("T8", actors_killed=len(ends), detect_s_max=max(detect_s), **figures)
    assert others == 0


def _await_start(place: Any) -> None:
    deadline = time.monotonic() + 120
    while not place.engine.started():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_an_engine_whose_core_stands_still_is_retired(synced, caplog, monkeypatch):
    """T9: its actor answers, its core does not; in a batch, then in a sync that finds no other. Last: all are lost."""
    from orchestrator.actors import cluster
    from orchestrator.errors import ActorLost
    from policies.rollout import EngineSettings
    from tests.support import one_of

    _, engines, learner, exported, requests, _ = synced
    if len(engines.places) == 1:
        pytest.skip("its engine is gone")
    import ray

    many = [replace(request, seed=seed, max_tokens=90) for seed, request in enumerate(requests * 8)]
    pids = [ray.get(place.engine.actor.__ray_call__.remote(lambda _: os.getpid())) for place in engines.places]
    core = one_of(pids[0], "VLLM::EngineCore")
    engines.stall_s = STALL_S
    stopped = [0.0]

    def stop() -> None:
        stopped[0] = time.time()
        core.suspend()

    rollouts = engines.generate(many, _at_first_end(stop))
    assert len(rollouts) == len(many)
    (retired,) = (incident for incident in engines.told() if incident.type == "engine.retired")
    assert retired.data["engine"] == 0
    assert f"no new token for {STALL_S:g} s" in retired.data["message"]
    batch_s, detect_s = round(time.time() - stopped[0], 2), _retired_s_after(stopped[0], caplog)
    # Signs of life come once a second: the last one may be that much older than the stop.
    assert engines.stall_s - 1 <= detect_s <= STALL_S + DETECT_S
    tell("T9", stall_s=STALL_S, detect_s=detect_s, batch_after_stop_s=batch_s, resent=retired.data["resent"])
    core.wait(30)  # stopped as it was, it is ended all the same

    monkeypatch.setattr(cluster, "PATIENCE_S", 3.0)
    settings = EngineSettings(model=str(exported), stall_s=1.0)
    cluster.connect_engines(learner.ranks, [engines.places[1].engine.actor], settings, ())
    one_of(pids[1], "VLLM::EngineCore").suspend()
    with pytest.raises(ActorLost, match=r"no engine answered within 3 s"):
        learner.sync(5)
    with pytest.raises(ActorLost, match=r"no engine answered within 3 s"):
        cluster.connect_engines(learner.ranks, [engines.places[1].engine.actor], settings, ())

    for process in (pid for pid in pids if psutil.pid_exists(pid)):
        os.kill(process, signal.SIGKILL)
    with pytest.raises(ActorLost, match="no rollout engine is left"):
        engines.generate(many)


def test_four_steps_on_competition_mathematics(math500: Path, tmp_path, redis_url, state_dir):
    """deploy/jobs/math.yaml with a tiny policy: Parquet, chat prompts, ground truth inside a struct.

    Rolled out ahead: a step's rollouts begin while the one before is learned from, and go on under its weights. Whether
    the second step's have a token before those weights come is a race on a busy machine; that none of three steps' has
    one is no accident.
    """
    import yaml

    from tests.support import parse_spec, run_job

    spec = yaml.safe_load((Path(__file__).parents[3] / "deploy" / "jobs" / "math.yaml").read_text())
    policy = make_policy(tmp_path / "policy", architecture="qwen3", context=2048)
    spec |= {"steps": 4, "policy": {"model": str(policy), "dtype": "float32"}}
    spec["data"] |= {"train": str(math500 / "train.parquet"), "validation": str(math500 / "val.parquet")}
    spec["data"] |= {"test": str(math500 / "test.parquet"), "limit": 12}
    spec["data"]["columns"] = {"prompt": "prompt", "answer": "reward_model.ground_truth"}
    spec["rollout"] = {
        "mode": "async",
        "prompts_per_step": 4,
        "rollouts_per_prompt": 4,
        "max_tokens": 64,
        "kv_cache_gib": 0.2,
    }
    spec["objectives"][1]["reward"]["options"] = {"free_tokens": 8}
    spec["optimizer"]["minibatches"] = 2
    spec["evaluation"] = {"every": 4, "test_points": 1}
    store, job_id = run_job(parse_spec(spec), redis_url, state_dir)
    steps = store.steps(job_id)
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert steps[-1]["updates"] == 2
    stalest = [step["staleness"]["max"] for step in steps]
    assert stalest[0] == 0
    assert max(stalest) == 1
    assert [(step["engines"], step["engine_health"]) for step in steps] == [({"healthy": 1}, {})] * 4
