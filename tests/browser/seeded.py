"""Jobs written straight into Redis: long ones, ones with many objectives, and ones whose every word is hostile."""

from __future__ import annotations

import json
import math
import random
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis

from orchestrator.state.keys import Keys
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore, Lease
from tests.toy_jobs import toy_spec


def names_of(count: int) -> list[str]:
    known = ["accuracy", "conciseness", "clarity", "safety", "style", "format"]
    return known[:count] if count <= len(known) else [f"objective_{i}" for i in range(count)]


def spec_of(names: Sequence[str], *, name: str, steps: int, **sections: Any) -> dict[str, Any]:
    """A resolved spec with these objectives, whatever their names are."""
    document: dict[str, Any] = toy_spec(steps=steps).model_dump(mode="json")
    one = document["objectives"][0]
    document["objectives"] = [{**one, "name": objective, "weight": 1.0} for objective in names]
    return document | {"name": name} | sections


def record_of(names: Sequence[str], step: int, chance: random.Random, weights: dict[str, float]) -> dict[str, Any]:
    """A step as the loop commits it; the objectives rise at their own pace."""
    objectives = {}
    for i, name in enumerate(names):
        rise = 1 - math.exp(-step / (40.0 + 90 * i))
        mean = min(
            0.98,
            0.25 + 0.06 * i + (0.55 - 0.07 * i) * rise + 0.02 * math.sin(step / (9 + 5 * i)) + chance.gauss(0, 0.012),
        )
        objectives[name] = {
            "mean": mean,
            "std": 0.12 + 0.05 * (1 - rise),
            "group_std": 0.08 + 0.04 * (1 - rise),
            "zero_share": max(0.0, 0.3 * rise + chance.gauss(0, 0.03)),
        }
    drift = {name: weight * (1 + 0.3 * math.sin(step / 60 + i)) for i, (name, weight) in enumerate(weights.items())}
    strategy = {name: value / sum(drift.values()) for name, value in drift.items()}
    timings = {
        "rollout": 0.9 + chance.random() * 0.2,
        "score": 0.05,
        "learn": 0.5 + chance.random() * 0.1,
        "sync": 0.04,
        "evaluate": 0.0,
        "checkpoint": 0.02,
        "other": 0.03,
    }
    timings["step"] = sum(timings.values())
    tokens = 25 + 12 * math.exp(-step / 80) + chance.gauss(0, 0.6)
    return {
        "step": step,
        "objectives": objectives,
        "total": sum(weights[n] * objectives[n]["mean"] for n in names),
        "weights": {"strategy": strategy, "applied": weights if step % 2 else strategy},
        "weights_because": {
            "mode": "auto",
            "share": 0.0,
            "figures": {"preference": weights, "influence": {n: strategy[n] / weights[n] for n in names}},
            "held": {},
            "gates": {},
        },
        "loss": 0.4 * math.exp(-step / 100) + chance.gauss(0, 0.01),
        "grad_norm": 0.8 + chance.random() * 0.3,
        "lr": 1e-4,
        "entropy": 0.4 + math.exp(-step / 60),
        "kl": 0.02 * math.log1p(step),
        "clip_share": 0.01,
        "steering_version": 1,
        "policy_version": step - 1,
        "groups": 32,
        "groups_learned": 30,
        "tokens": round(256 * tokens),
        "mean_tokens": tokens,
        "truncated_share": max(0.0, 0.08 * math.exp(-step / 50) + chance.gauss(0, 0.004)),
        "evaluation": None,
        "timings_s": timings,
    }


def front_of(names: Sequence[str], steps: int, every: int, chance: random.Random) -> dict[str, Any]:
    """Some fifty evaluations that trade the first objective against the others as the weights wander."""
    points = []
    growth = []
    for step in range(0, steps + 1, every):
        rise = 1 - math.exp(-step / (steps / 4))
        lean = math.sin(step / (3.3 * every))
        values = {
            name: 0.3
            + 0.4 * rise
            + (0.16 if i == 0 else -0.13 / max(1, len(names) - 1)) * lean
            + chance.gauss(0, 0.015)
            for i, name in enumerate(names)
        }
        points.append(
            {
                "step": step,
                "objectives": values,
                "mean_tokens": 30 - 6 * rise,
                "standard_errors": dict.fromkeys(names, 0.012),
            }
        )
        growth.append([step, 0.08 + 0.42 * rise])
    for point in points:
        better = [
            other
            for other in points
            if all(other["objectives"][n] >= point["objectives"][n] for n in names) and other is not point
        ]
        point |= {"on_front": not better, "collapsed": False, "checkpoint": not better, "test": None}
    return {
        "objectives": list(names),
        "ranges": {name: [0.0, 1.0] for name in names},
        "reference": dict.fromkeys(names, 0.0),
        "initial": points[0]["objectives"],
        "hypervolume": growth[-1][1],
        "hypervolume_base": growth[0][1],
        "hypervolume_by_step": growth,
        "points": points,
    }


def seed_job(
    store: JobStore,
    raw: redis.Redis,
    names: Sequence[str],
    *,
    steps: int,
    name: str = "seeded",
    every: int = 0,
    status: str = "running",
    spec: dict[str, Any] | None = None,
    total: int | None = None,
) -> str:
    """A job of `steps` committed steps that some driver seems to hold; in pipelines, as there may be thousands."""
    job_id = f"job-{secrets.token_hex(6)}"
    document = spec or spec_of(names, name=name, steps=total or steps)
    weights = {objective: 1 / len(names) for objective in names}
    steering = {"mode": "auto", "blend": 0.5, "weights": weights, "bounds": {n: [0.0, 1.0] for n in names}}
    store.submit(json.dumps(document), name=document["name"], job_id=job_id, steering=steering)
    lease = store.claim(job_id, nonce="seed", ttl_s=3600.0).lease
    assert lease is not None
    store.set_total_steps(lease, document["steps"])
    store.set_status(lease, JobStatus.RUNNING)
    chance = random.Random(name)
    keys = Keys(store.owner)
    with raw.pipeline(transaction=False) as pipe:
        for step in range(1, steps + 1):
            record = record_of(names, step, chance, weights)
            if every and step % every == 0:
                record["evaluation"] = {"objectives": {n: record["objectives"][n]["mean"] for n in names}}
            fields = {"digest": "0", "at": f"{lease.fence}.0", "record": json.dumps(record)}
            pipe.xadd(keys.steps(job_id), fields, id=f"{lease.fence}-{step}")
            if step % 2000 == 0:
                pipe.execute()
        pipe.hset(keys.job(job_id), mapping={"step": steps, "digest": "0"})
        pipe.execute()
    if every:
        front = front_of(names, steps, every, chance)
        store.set_front(lease, front)
        for point in front["points"]:
            if point["on_front"]:
                store.register_checkpoint(
                    lease,
                    step=point["step"],
                    path=f"/state/jobs/{job_id}/checkpoints/step-{point['step']:06d}",
                    digest="0",
                )
    store.set_progress(lease, {"stage": "training", "eta_s": 95.0})
    if status != "running":
        store.finish(lease, JobStatus(status), "the learner's loss was not finite" if status == "failed" else None)
    return job_id


def lease_of(store: JobStore, job_id: str) -> Lease:
    return Lease(job_id=job_id, fence=store.job(job_id).fence, nonce="seed")


def write_rollouts(state_dir: Path, job_id: str, step: int, rows: Sequence[dict[str, Any]]) -> None:
    folder = state_dir / "jobs" / job_id / "rollouts"
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{step:06d}.jsonl").write_text(text, encoding="utf-8")
