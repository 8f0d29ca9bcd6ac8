"""A whole job that a learned reward model drives: three heads of one model are the objectives, arithmetic is gold.

    python -m tests.benchmarks.reward_job [--steps 40]

The reward model is trained first (about a minute), on rated completions of the quickstart task's own generator. What
the policy is optimised for is the model's opinion; `gold` is whether the answer is right, which nothing is optimised
for. Figures: the objectives, the front and its hypervolume from start to end, gold beside them, and their correlation.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from tests.benchmarks.machine import machine

JOB = Path(__file__).parents[2] / "deploy" / "jobs" / "quickstart.yaml"
Figures = dict[str, Any]


def measure_job(steps: int = 40) -> Figures:
    """One job by the real driver: vLLM, the learner, one reward process for all three heads, and one for gold."""
    from orchestrator.spec import parse_spec
    from orchestrator.state.embedded_redis import EmbeddedRedis
    from tests.reward_data import QUICKSTART_HEADS, make_quickstart_reward_model
    from tests.support import run_job

    with tempfile.TemporaryDirectory(prefix="equipoise-") as folder, EmbeddedRedis(Path(folder) / "redis") as redis:
        model = make_quickstart_reward_model(Path(folder) / "reward")
        document = yaml.safe_load(JOB.read_text()) | {"name": "learned", "steps": steps}
        document["objectives"] = [
            {"name": head, "reward": {"name": "regression", "options": {"model": str(model), "head": head}}}
            for head in QUICKSTART_HEADS
        ]
        document["gold"] = {"reward": {"name": "math"}, "samples": 256}
        store, job_id = run_job(parse_spec(document), redis.url, Path(folder), timeout_s=3600)
        steps_done, front = store.steps(job_id), store.front(job_id)
        assert len(steps_done[0]["reward_health"]) == 1, "the heads share one process"
    first, last = front["points"][0], front["points"][-1]
    tenth = max(1, steps // 10)
    return {
        "steps": len(steps_done),
        "objectives_start": {name: round(value, 3) for name, value in first["objectives"].items()},
        "objectives_end": {name: round(value, 3) for name, value in last["objectives"].items()},
        "hypervolume_start": round(front["hypervolume_base"], 3),
        "hypervolume_end": round(front["hypervolume"], 3),
        "points_on_front": sum(point["on_front"] for point in front["points"]),
        "gold_start": round(fmean(step["gold"]["mean"] for step in steps_done[:tenth]), 3),
        "gold_end": round(fmean(step["gold"]["mean"] for step in steps_done[-tenth:]), 3),
        "gold_correlation_start": _correlations(steps_done[:tenth]),
        "gold_correlation_end": _correlations(steps_done[-tenth:]),
        "overoptimised": sorted({name for step in steps_done for name in step["gold"]["overoptimised"]}),
        "hidden_share": _hidden_share(steps_done),
        "step_s": round(fmean(step["timings_s"]["step"] for step in steps_done), 2),
    }


def _correlations(steps: list[Figures]) -> dict[str, float | None]:
    """Of each objective with gold over the rollouts of a step, averaged over the steps that have one."""
    found: dict[str, float | None] = {}
    for name in steps[0]["gold"]["correlation"]:
        known = [step["gold"]["correlation"][name] for step in steps]
        known = [value for value in known if value is not None]
        found[name] = round(fmean(known), 3) if known else None
    return found


def _hidden_share(steps: list[Figures]) -> float:
    health = [figures for step in steps for figures in step["reward_health"].values()]
    busy = sum(figures["score_busy_s"] for figures in health)
    return round(sum(figures["score_busy_s"] * figures["hidden_share"] for figures in health) / busy, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    figures = measure_job(parser.parse_args().steps) | {"machine": machine()}
    table = Table("figure", "value")
    for name, value in figures.items():
        table.add_row(name, str(value))
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
