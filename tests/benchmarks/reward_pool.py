"""Hosting of rewards, measured: what hides behind generation, what the pool costs, what a second replica gives.

    python -m tests.benchmarks.reward_pool [PART ...] [--steps 25] [--policy DIR]

Parts: hidden (the quickstart job by the real driver), overhead, replicas. The last line is JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from rewards import registry
from rewards.base import RewardBatch
from rewards.host import Host
from rewards.hosting import SINGLE, Hosting, RewardFactory, actor_replica
from rewards.pool import RewardPool, local_pool
from tests.benchmarks.machine import machine

JOB = Path(__file__).parents[2] / "deploy" / "jobs" / "quickstart.yaml"
REWARDS = ("math", "conciseness", "clarity")
ROWS = 256  # of a step of the quickstart
Figures = dict[str, Any]


def measure_hidden(options: argparse.Namespace) -> Figures:
    """Scoring that was done while rollouts were still being written, over the steps of a quickstart job."""
    from orchestrator.spec import parse_spec
    from orchestrator.state.embedded_redis import EmbeddedRedis
    from tests.support import run_job

    document = yaml.safe_load(JOB.read_text()) | {"steps": options.steps}
    if options.policy is not None:
        document["init_checkpoint"] = str(options.policy)
    with tempfile.TemporaryDirectory(prefix="equipoise-") as state, EmbeddedRedis(Path(state) / "redis") as redis:
        store, job_id = run_job(parse_spec(document), redis.url, Path(state), timeout_s=3600)
        return hidden_figures(store.steps(job_id))


def hidden_figures(steps: list[Figures]) -> Figures:
    """Of committed steps: shares of busy seconds, per reward and of all, and what of a step was left to wait for."""
    health = {name: [step["reward_health"][name] for step in steps] for name in steps[0]["reward_health"]}
    busy = {name: sum(figures["score_busy_s"] for figures in found) for name, found in health.items()}
    hidden = {
        name: sum(figures["score_busy_s"] * figures["hidden_share"] for figures in found)
        for name, found in health.items()
    }
    timings = [step["timings_s"] for step in steps]
    by_step = [
        sum(f["score_busy_s"] * f["hidden_share"] for f in step["reward_health"].values())
        / sum(f["score_busy_s"] for f in step["reward_health"].values())
        for step in steps
    ]
    return {
        "hidden_share": round(sum(hidden.values()) / sum(busy.values()), 4),
        "hidden_share_median_step": round(median(by_step), 4),
        "hidden_share_by_reward": {name: round(hidden[name] / busy[name], 4) for name in busy},
        "busy_s_per_step": {name: round(busy[name] / len(steps), 4) for name in busy},
        "latency_s_p95": {name: round(median(f["latency_s_p95"] for f in found), 4) for name, found in health.items()},
        "score_s_median": round(median(timing["score"] for timing in timings), 4),
        "score_share_of_step": round(sum(t["score"] for t in timings) / sum(t["step"] for t in timings), 4),
        "rollout_s_median": round(median(timing["rollout"] for timing in timings), 3),
        "retries": sum(figures["retries"] for found in health.values() for figures in found),
        "steps": len(steps),
    }


def measure_overhead(_options: argparse.Namespace) -> Figures:
    """A step's batch through actors, through threads, and by plain calls one after another."""
    batch = arithmetic(ROWS)
    factories = {name: functools.partial(registry.build, name, {}) for name in REWARDS}
    plain = [factory() for factory in factories.values()]
    actors, threads = actor_pool(factories, Hosting()), local_pool(factories)
    try:
        ways: dict[str, Callable[[], object]] = {
            "plain": lambda: [reward.score(batch) for reward in plain],
            "threads": lambda: threads.score(batch),
            "actors": lambda: actors.score(batch),
        }
        seconds = interleaved(ways, repeats=15)
    finally:
        actors.close()
        threads.close()
    figures: Figures = {f"{name}_s": round(found, 4) for name, found in seconds.items()}
    return {**figures, "overhead_s_per_step": round(seconds["actors"] - seconds["plain"], 4), "rows": ROWS}


def measure_replicas(_options: argparse.Namespace) -> Figures:
    """Rows a second of the math verifier in one process and in two, in turn."""
    batch = arithmetic(4 * ROWS, distinct=True)
    math = {"math": functools.partial(registry.build, "math", {})}
    pools = {count: actor_pool(math, Hosting(replicas=count)) for count in (1, 2)}
    try:
        ways: dict[str, Callable[[], object]] = {
            str(count): functools.partial(pool.score, batch) for count, pool in pools.items()
        }
        seconds = interleaved(ways, repeats=7)
    finally:
        for pool in pools.values():
            pool.close()
    return {
        "rows_per_s": {count: round(len(batch) / found) for count, found in seconds.items()},
        "speed_up_of_2": round(seconds["1"] / seconds["2"], 2),
    }


def interleaved(ways: dict[str, Callable[[], object]], *, repeats: int) -> dict[str, float]:
    """Median seconds of each, in turn, so that a busy machine harms all alike; the first round is not counted."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, act in ways.items():
            began = time.perf_counter()
            act()
            found[name].append(time.perf_counter() - began)
    return {name: median(seconds[1:]) for name, seconds in found.items()}


def actor_pool(factories: dict[str, RewardFactory], hosting: Hosting) -> RewardPool:
    hosts = [
        Host(name, {name: SINGLE}, [actor_replica(factory) for _ in range(hosting.replicas)], hosting)
        for name, factory in factories.items()
    ]
    pool = RewardPool(hosts)
    pool.wait_ready()
    return pool


def arithmetic(size: int, *, distinct: bool = False) -> RewardBatch:
    """Completions as the quickstart policy writes them."""
    totals = [20 + (i if distinct else i % 40) for i in range(size)]
    return RewardBatch(
        prompts=tuple(f"{total - 9}+9=" for total in totals),
        completions=tuple(f"+4={total - 5}\n+5={total}\n\\boxed{{{total}}}" for total in totals),
        answers=tuple(str(total) for total in totals),
        completion_tokens=(24,) * size,
        truncated=(False,) * size,
        max_tokens=64,
    )


PARTS = {"hidden": measure_hidden, "overhead": measure_overhead, "replicas": measure_replicas}


def on_ray(parts: list[str], options: argparse.Namespace) -> Figures:
    """What needs actors, and no job."""
    if not parts:
        return {}
    import ray

    ray.init(address="local", num_cpus=8, include_dashboard=False, logging_level="error")
    figures = {part: PARTS[part](options) for part in parts}
    ray.shutdown()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.reward_pool", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--policy", type=Path, help="a trained quickstart policy, which else takes a minute or two")
    options = parser.parse_args()
    parts = options.parts or list(PARTS)
    figures: Figures = {"machine": machine()}
    if "hidden" in parts:  # first: the driver starts a Ray of its own
        figures["hidden"] = measure_hidden(options)
    figures |= on_ray([part for part in parts if part != "hidden"], options)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
