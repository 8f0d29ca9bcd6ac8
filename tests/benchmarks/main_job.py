"""The main job, measured: how long, how much better, how faithful after a kill, a steer and a sync.

    python -m tests.benchmarks.main_job [PART ...] [--seeds 3] [--steps N]

Parts: demo (a fresh clone, `make demo`), runs (seeds x weightings), collapse, steer, resume, sync. Every part's figures
are written to tests/benchmarks/results/main_job.json as soon as it ends, so that a part can be measured again alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from orchestrator.actors.threads import WAITING
from orchestrator.spec import JobSpec, parse_spec
from orchestrator.state.embedded_redis import EmbeddedRedis
from orchestrator.state.redis_calls import connect
from orchestrator.state.store import JobStatus, JobStore
from orchestrator.storage.checkpoints import directory_name
from policies.pareto import hypervolume
from tests.benchmarks.machine import PeakMemory, machine
from tests.support import Drive, largest_difference, submit

PROJECT = Path(__file__).parents[2]
RESULTS = PROJECT / "tests" / "benchmarks" / "results" / "main_job.json"
LEANING = {"accuracy": 0.6, "conciseness": 0.2, "clarity": 0.2}
EQUAL = {"accuracy": 1 / 3, "conciseness": 1 / 3, "clarity": 1 / 3}
Figures = dict[str, Any]


class Bench:
    """A state directory with a Redis of its own, and the jobs run in it."""

    def __init__(self, state: Path, url: str, *, seeds: int, steps: int | None) -> None:
        self.state = state
        self.url = url
        self.seeds = list(range(seeds))
        self.steps = steps
        self.results: Figures = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        self.done: list[Figures] = []  # runs of an earlier call that are not made again

    def save(self, figures: Figures) -> None:
        self.results |= {**figures, "machine": machine()}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(self.results, indent=1) + "\n")

    def spec(self, *, weights: dict[str, float] = LEANING, **changes: Any) -> JobSpec:
        document = yaml.safe_load((PROJECT / "deploy" / "jobs" / "quickstart.yaml").read_text())
        for objective in document["objectives"]:
            objective["weight"] = weights[objective["name"]]
        if self.steps is not None:
            document["steps"] = self.steps
        return parse_spec(document | changes)

    def run(
        self, spec: JobSpec, *, during: Callable[[JobStore, str, Drive], None] | None = None
    ) -> tuple[JobStore, str, float]:
        """(store, job, peak GiB) of a job that succeeded."""
        store = JobStore(connect(self.url))
        job_id = submit(store, spec)
        drive = Drive(job_id, self.url, self.state)
        memory = PeakMemory(drive.process.pid)
        if during is not None:
            during(store, job_id, drive)
        while drive.process.poll() is None:
            memory.sample()
            time.sleep(1.0)
        record = store.job(job_id)
        assert record.status is JobStatus.SUCCEEDED, f"{spec.name}: {record.reason}; see {drive.log}"
        return store, job_id, memory.peak_gib


# ------------------------------------------------------------------------------------------------------------ parts


def measure_demo(_bench: Bench) -> Figures:
    """From `make demo` typed in a fresh clone to the report."""
    clone = Path(tempfile.mkdtemp(prefix="equipoise-clone-"))
    try:
        subprocess.run(["git", "clone", "--quiet", str(PROJECT), str(clone / "equipoise")], check=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("EQUIPOISE")}
        started = time.monotonic()
        subprocess.run(["make", "demo"], cwd=clone / "equipoise", env=environment, check=True)
        demo_s = time.monotonic() - started
        state = clone / "equipoise" / ".equipoise"
        reports = list(state.glob("jobs/*/report.html"))
        with EmbeddedRedis(state / "redis") as redis:
            record = JobStore(connect(redis.url)).job(reports[0].parent.name)
        assert record.finished_at is not None
        return {"demo_s": round(demo_s), "job_s": round(record.finished_at - record.created_at)}
    finally:
        shutil.rmtree(clone, ignore_errors=True)


def measure_runs(bench: Bench) -> Figures:
    """Three weightings over the seeds: gain in accuracy, hypervolume, styles, and where the time goes."""
    runs = bench.done
    for seed in bench.seeds:
        for name, weights in (("gradient", LEANING), ("hypervolume", LEANING), ("fixed", EQUAL)):
            if (name, seed) in {(run["weighting"], run["seed"]) for run in runs}:
                continue
            spec = bench.spec(weights=weights, name=f"{name}-{seed}", seed=seed, weighting={"name": name})
            store, job_id, peak_gib = bench.run(spec)
            runs.append(
                {"weighting": name, "seed": seed, "peak_gib": round(peak_gib, 2), **figures_of(store, job_id, spec)}
            )
            print(json.dumps(runs[-1]), flush=True)
            bench.save({"runs": runs})
    return {"runs": runs, **totals(runs)}


def measure_collapse(bench: Bench) -> Figures:
    """Little weight on accuracy, for far too long: what the run itself sees, and what it keeps.

    Once clarity is constant in a group, normalisation gives a token of length its full weight, so that lines are merged
    and accuracy falls: the weighted total that was asked for gets worse. With equal weights this base did not collapse
    in 100 steps, not even at a learning rate of 6e-4.
    """
    spec = bench.spec(
        weights={"accuracy": 0.2, "conciseness": 0.4, "clarity": 0.4},
        name="collapse",
        steps=80,
        weighting={"name": "fixed"},
        optimizer={"lr": 2e-4, "warmup_steps": 5, "tokens_per_microbatch": 2048},
    )
    store, job_id, _ = bench.run(spec)
    events = [event for event in every_event(store, job_id) if event.type == "collapse.detected"]
    front = store.front(job_id)
    assert front is not None
    curve = [[p["step"], *(round(value, 3) for value in p["objectives"].values())] for p in front["points"]]
    seen = events[0].data if events else None
    kept = [p["step"] for p in front["points"] if p["on_front"]]
    return {
        "collapse_seen": bool(events),
        "collapse_step": seen and seen["step"],
        "collapse_message": seen and seen["message"],
        "collapse_best_step": seen and seen["best_step"],
        "collapse_front_steps": kept,
        "collapse_curve": curve,
    }


def measure_steer(bench: Bench) -> Figures:
    """From one checkpoint, steered to accuracy and to conciseness at once, 30 steps each."""
    start = bench.spec(weights=EQUAL, name="steer-start", steps=10)
    _, job_id, _ = bench.run(start)
    checkpoint = bench.state / "jobs" / job_id / "checkpoints" / directory_name(10) / "policy"
    ends = {}
    for towards in ("accuracy", "conciseness"):
        weights = {name: 0.8 if name == towards else 0.1 for name in EQUAL}

        def steer(store: JobStore, job: str, _drive: Drive, weights: dict[str, float] = weights) -> None:
            store.steer(job, change={"mode": "manual", "weights": weights}, if_match=1, by="benchmark")

        spec = bench.spec(weights=EQUAL, name=f"steer-{towards}", steps=30, init_checkpoint=str(checkpoint))
        store, job, _ = bench.run(spec, during=steer)
        front = store.front(job)
        assert front is not None
        ends[towards] = front["points"][-1]["test"]["sampled"]
    first, second = ends["accuracy"], ends["conciseness"]
    return {
        "steer_gap_accuracy": round(first["objectives"]["accuracy"] - second["objectives"]["accuracy"], 3),
        "steer_gap_tokens": round(first["mean_tokens"] - second["mean_tokens"], 2),
        "steer_ends": {name: {**end["objectives"], "tokens": end["mean_tokens"]} for name, end in ends.items()},
    }


def measure_resume(bench: Bench) -> Figures:
    """SIGKILL at a random step, then resume: the committed figures beside an undisturbed run's."""
    spec = bench.spec(name="resume", steps=20, checkpoints={"every": 5}, evaluation={"every": 10})
    whole, undisturbed, _ = bench.run(spec)
    store = JobStore(connect(bench.url))
    job_id = submit(store, spec)
    step = random.randint(6, 18)
    first = Drive(job_id, bench.url, bench.state)
    first.wait_for_step(step)
    first.kill()
    Drive(job_id, bench.url, bench.state).wait()
    expected, resumed = whole.steps(undisturbed), store.steps(job_id)
    assert [record["step"] for record in resumed] == list(range(1, 21))
    claims = [event.data for event in every_event(store, job_id) if event.type == "job.claimed"]
    return {
        "resume_max_diff": max(map(largest_difference, expected, resumed)),
        "rerun_steps": claims[-1]["from"] - claims[-1]["to"],
        "resume_killed_at": step,
    }


def measure_sync(bench: Bench) -> Figures:
    """An engine after twenty updates and syncs beside a fresh engine on the exported checkpoint."""
    import torch

    from orchestrator.actors.cluster import Cluster
    from policies.learner import LearnerSettings
    from policies.models import encode_prompt, load_tokenizer
    from policies.quickstart import ensure_policy, sample_problems
    from policies.rollout import EngineSettings
    from policies.types import RolloutRequest

    policy = ensure_policy(bench.state / "policies")
    tokenizer = load_tokenizer(str(policy))
    source = sample_problems(random.Random(0), held_out=True)
    prompts = [tuple(encode_prompt(tokenizer, next(source).prompt)) for _ in range(64)]
    sampled = [RolloutRequest(prompt_tokens=tokens, seed=i, max_tokens=64) for i, tokens in enumerate(prompts)]
    greedy = [RolloutRequest(prompt_tokens=tokens, seed=None, max_tokens=64) for tokens in prompts]
    options: dict[str, Any] = {"num_cpus": 1, "runtime_env": {"env_vars": dict(WAITING)}}

    def start(model: Path) -> tuple[Cluster, Any, Any]:
        cluster = Cluster()
        engines, learner = cluster.start(
            EngineSettings(model=str(model), kv_cache_gib=0.5),
            LearnerSettings(model=str(model), lr=1e-3, threads=2),
            engines=1,
            engine_options=options,
            learner_options=options,
        )
        return cluster, engines, learner

    cluster, engines, learner = start(policy)
    times = []
    for version in range(1, 21):
        rollouts = engines.generate(sampled)
        learner.learn(rollouts, torch.randn(len(rollouts)), None)
        began = time.perf_counter()
        learner.sync(version)
        times.append(1000 * (time.perf_counter() - began))
    expected = engines.generate(greedy)
    exported = Path(tempfile.mkdtemp(prefix="equipoise-export-"))
    learner.save(exported)
    tokenizer.save_pretrained(exported / "policy")
    cluster.close()
    cluster, engines, _ = start(exported / "policy")
    fresh = engines.generate(greedy)
    cluster.close()
    shutil.rmtree(exported)
    pairs = list(zip(expected, fresh, strict=True))
    return {
        "sync_same_tokens": all(one.tokens == other.tokens for one, other in pairs),
        "sync_max_diff": max(
            abs(a - b) for one, other in pairs for a, b in zip(one.logprobs, other.logprobs, strict=False)
        ),
        "sync_ms": round(median(times), 1),
    }


# ---------------------------------------------------------------------------------------------------------- figures


def figures_of(store: JobStore, job_id: str, spec: JobSpec) -> Figures:
    """Of one run: on the test split, the initial policy beside the point that validation would choose."""
    front, record, steps = store.front(job_id), store.job(job_id), store.steps(job_id)
    assert front is not None
    assert record.finished_at is not None
    tested = [point for point in front["points"] if point["test"]]
    base = tested[0]
    chosen = max(tested, key=lambda p: sum(spec.preference[name] * value for name, value in p["objectives"].items()))
    volumes = {}
    for decoding in ("sampled", "greedy"):
        points = np.array([[p["test"][decoding]["objectives"][name] for name in front["objectives"]] for p in tested])
        volumes[f"hv_base_{decoding}"] = round(hypervolume(points[:1]), 4)
        volumes[f"hv_final_{decoding}"] = round(hypervolume(points), 4)
    timings = [step["timings_s"] for step in steps]
    return {
        **volumes,
        "hv_base": round(front["hypervolume_base"], 4),
        "hv_final": round(front["hypervolume"], 4),
        "accuracy_gain": gain(base, chosen, "sampled"),
        "accuracy_gain_greedy": gain(base, chosen, "greedy"),
        "chosen_step": chosen["step"],
        "before": {decoding: short(base["test"][decoding]) for decoding in ("sampled", "greedy")},
        "after": {decoding: short(chosen["test"][decoding]) for decoding in ("sampled", "greedy")},
        "weights_end": {name: round(value, 3) for name, value in steps[-1]["weights"]["applied"].items()},
        "job_s": round(record.finished_at - record.created_at),
        "step_s": round(median(timing["step"] for timing in timings), 3),
        "overhead_share": round(sum(t["other"] for t in timings) / sum(t["step"] for t in timings), 4),
        "sync_ms": round(1000 * median(timing["sync"] for timing in timings), 1),
        "tokens_per_s": round(median(step["tokens"] / step["timings_s"]["rollout"] for step in steps)),
    }


def gain(base: Figures, chosen: Figures, decoding: str) -> float:
    before, after = (point["test"][decoding]["objectives"]["accuracy"] for point in (base, chosen))
    return round(after - before, 3)


def short(test: Figures) -> Figures:
    styles = {name: [round(f["share"], 2), round(f["accuracy"], 2)] for name, f in test["styles"].items()}
    objectives = {name: round(value, 3) for name, value in test["objectives"].items()}
    return {**objectives, "tokens": round(test["mean_tokens"], 1), "styles": styles}


def totals(runs: list[Figures]) -> Figures:
    """The figures that the targets are stated in: the worst seed where a target holds for every seed."""
    leaning = [run for run in runs if run["weighting"] != "fixed"]
    return {
        "hv_base": [run["hv_base_sampled"] for run in runs],
        "hv_final": [run["hv_final_sampled"] for run in runs],
        "accuracy_gain": min(run["accuracy_gain"] for run in leaning),
        "accuracy_gain_greedy": min(run["accuracy_gain_greedy"] for run in leaning),
        "overhead_share": max(run["overhead_share"] for run in runs),
        "peak_gib": max(run["peak_gib"] for run in runs),
    }


def every_event(store: JobStore, job_id: str) -> list[Any]:
    events: list[Any] = []
    while True:
        page = store.events(job_id, after=events[-1].seq if events else 0, limit=1000)
        events += page.items
        if not page.has_more:
            return events


def print_table(results: Figures) -> None:
    console = Console(width=160)
    table = Table(title="Main job: test split of 500 prompts", title_justify="left")
    for heading in (
        "run",
        "sampled before",
        "after",
        "greedy before",
        "after",
        "hv base",
        "hv front",
        "job s",
        "step s",
    ):
        table.add_column(heading)
    for run in results.get("runs", []):
        cells = [
            " / ".join(f"{run[when][decoding][name]:.2f}" for name in LEANING)
            for decoding in ("sampled", "greedy")
            for when in ("before", "after")
        ]
        volumes = [f"{run['hv_base_sampled']:.3f}", f"{run['hv_final_sampled']:.3f}"]
        table.add_row(f"{run['weighting']} {run['seed']}", *cells, *volumes, str(run["job_s"]), f"{run['step_s']:.2f}")
    console.print(table)
    rest = Table(title="accuracy / conciseness / clarity above; the rest below", title_justify="left")
    rest.add_column("figure")
    rest.add_column("value")
    for name, value in results.items():
        if name not in ("runs", "machine", "collapse_curve"):
            rest.add_row(name, json.dumps(value))
    console.print(rest)


PARTS: dict[str, Callable[[Bench], Figures]] = {
    "demo": measure_demo,
    "runs": measure_runs,
    "collapse": measure_collapse,
    "steer": measure_steer,
    "resume": measure_resume,
    "sync": measure_sync,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.main_job", description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all when absent")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="instead of the quickstart job's own")
    parser.add_argument("--resume", action="store_true", help="keep the runs that are in the results already")
    parser.add_argument("--state-dir", type=Path, default=PROJECT / ".equipoise" / "bench")
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]}; parts are {', '.join(PARTS)}")
    options.state_dir.mkdir(parents=True, exist_ok=True)
    with EmbeddedRedis(options.state_dir / "redis") as redis:
        bench = Bench(options.state_dir, redis.url, seeds=options.seeds, steps=options.steps)
        if options.resume:
            bench.done = bench.results.get("runs", [])
        for part in options.parts or PARTS:
            print(f"== {part}: {(PARTS[part].__doc__ or '').splitlines()[0]}", flush=True)
            bench.save(PARTS[part](bench))
    print_table(bench.results)
    print(json.dumps(bench.results))


if __name__ == "__main__":
    main()
