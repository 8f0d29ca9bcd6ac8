"""Records as the arena's runner writes them, with a planted effect: what an entry gains over fixed equal weights."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Json = dict[str, Any]

OBJECTIVES = ("accuracy", "conciseness", "clarity")
STATICS = {"fixed": (1, 1, 1), "static(4,1,1)": (4, 1, 1), "static(1,4,1)": (1, 4, 1), "static(1,1,4)": (1, 1, 4)}


def record(
    entry: str = "gdpo/gradient", *, task: str = "sums3", seed: int = 0, lift: float = 0.0, noise: float = 0.003,
    steps: int = 20, step_s: float = 1.0, role: str | None = None, objectives: tuple[str, ...] = OBJECTIVES,
    **more: Any,
) -> Json:  # fmt: skip
    """A finished run whose objectives rise from 0.3 to 0.6 + lift, those with heavier weights more.

    The seed moves every entry alike by up to 0.05, as prompts do; `noise` is the run's own, but for the initial policy.
    """
    estimator, rule = entry.split("/", 1)
    common = np.random.default_rng(seed).uniform(-0.05, 0.05)
    own = np.random.default_rng([seed, *entry.encode(), *task.encode()])
    weights_K = np.ones(len(objectives))
    weights_K[:3] = STATICS.get(rule, (1, 1, 1))[: len(objectives)]
    weights_K = weights_K / weights_K.sum()
    lean_K = 0.2 * (weights_K - 1 / len(objectives))

    def values(step: int) -> dict[str, float]:
        level = 0.3 + step / steps * (0.3 + lift) + common + own.normal(0, noise) * (step > 0)
        return dict(zip(objectives, (level + step / steps * lean_K).clip(0, 1).tolist(), strict=True))

    evaluated = list(range(0, steps + 1, 5))
    validation: list[Json] = []
    best = 0.0
    for step in evaluated:
        found = values(step)
        best = max(best, float(np.prod(list(found.values()))))
        validation.append(
            {"step": step, "objectives": found, "mean_tokens": 20.0, "on_front": step == steps, "hypervolume": best}
        )
    test = [{"step": steps, "objectives": values(steps), "stderr": dict.fromkeys(objectives, 0.01),
             "mean_tokens": 20.0, "prompts": 500}]  # fmt: skip
    return {
        "schema": 1, "task": task, "entry": entry, "role": role or role_of(rule), "estimator": estimator,
        "weighting": rule, "preference": dict.fromkeys(objectives, 1 / len(objectives)), "seed": seed, "steps": steps,
        "digest": "d", "status": "done", "reason": None,
        "objectives": {name: {"range": [0.0, 1.0], "reference": 0.0} for name in objectives},
        "started": f"2026-11-28T1{seed % 10}:00:00+00:00", "seconds": {"total": 30.0, "generate": 10.0, "learn": 5.0},
        "step_seconds": [step_s] * steps,
        "workers": 1, "machine": {"processor": "a CPU", "cores": 2}, "versions": {"torch": "2.13"},
        "validation": validation, "test": test, "chosen_step": steps, "weights": [weights_K.tolist()] * steps,
        "train_rewards": [],
    } | more  # fmt: skip


def role_of(rule: str) -> str:
    return {"aggregate": "aggregator", "auto": "auto"}.get(rule, "static" if rule in STATICS else "strategy")


def failed(entry: str, reason: str, **more: Any) -> Json:
    kept = ("schema", "task", "entry", "role", "estimator", "weighting", "seed", "steps")
    whole = record(entry, **more)
    return {key: whole[key] for key in kept} | {"status": "failed", "reason": reason}


def arena(
    lifts: Mapping[str, float], *, seeds: Iterable[int] = range(5), tasks: Iterable[str] = ("sums3",), **more: Any
) -> list[Json]:
    """Static weights under both estimators, and the given entries with what each gains."""
    statics = dict.fromkeys([f"{estimator}/{rule}" for estimator in ("gdpo", "grpo") for rule in STATICS], 0.0)
    return [
        record(entry, task=task, seed=seed, lift=lift, **more)
        for task in tasks for seed in seeds for entry, lift in {**statics, **lifts}.items()
    ]  # fmt: skip


def write(path: Path, records: Iterable[Json]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return path
