"""What orchestration costs as engines grow in number, and what rolling out ahead or putting long completions off gains.

    python -m tests.benchmarks.growth [--engines 1 8 64 256] [--steps 5]

Real: loop, collector, pool of engines and its dispatch, estimators, records. Stand-ins with a clock: engines, learner,
rewards and journal, all in this process; so neither Ray's own cost nor a token's way through it is in the figures.

overhead_ms_N: a step's time less what its stand-ins sleep; each engine ends 64 rollouts at sixteen moments in the later
half of 10 s. The stand-in rewards' own arithmetic is in it (score_ms_N). driver_mib_N: the process's memory with the
rollouts of a step.
async_gain: seconds of a sync step over those of an async one, both throttled: each engine writes 16 completions at a
time, whose lengths spread evenly, so that a batch takes three times what the learner takes, and engines are idle in
its tail for a quarter of that. `async_ideal` is what an endless queue would give.
tail_gain: completions a second with sampling.tail `defer` over those with `wait`, in sync mode. Lengths are log-normal,
most of their spread (log sd .6 of .7) between prompts, none above eight times the median; an update takes a third of
the median's time. `tail_thrown`: share of the prompts asked for that were put off, whose rollouts were withdrawn.
Figures go to tests/benchmarks/results/growth.json; the last line is them as JSON.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import psutil
import torch

from orchestrator.inputs import Splits
from orchestrator.loop import Loop
from orchestrator.rollouts.engines import Engine, EnginePool
from orchestrator.rollouts.prompts import PromptOrder
from orchestrator.spec import JobSpec
from orchestrator.storage.checkpoint_store import CheckpointStore
from policies.types import LearnStats, Rollout, RolloutRequest
from tests.benchmarks.machine import machine
from tests.loop_fakes import FakeLearner, MemoryJournal, World, make_parts, make_spec, prompts

RESULTS = Path(__file__).parent / "results" / "growth.json"
ENGINES = (1, 8, 64, 256)
GROUPS, REPEATS = 8, 8  # of each engine in a step
ROLL_OUT_S, LEARN_S = 10.0, 0.5  # of a step of the overhead's
STEP_S = 20.0  # that the overhead is compared with
TARGETS = {"overhead_share_256": ("<=", 0.05), "async_gain": (">=", 1.6)}
THROTTLED = {"engines": 8, "slots": 16, "learn_s": 0.4, "longest_s": 1.2, "shortest_s": 0.629}  # 24 % is the tail
AHEAD = 2
TAIL = {"engines": 4, "slots": 32, "median_s": 0.3, "longest": 8.0, "between": 0.6, "within": 0.36, "learn_s": 0.1}
Figures = dict[str, Any]


class Clockwork:
    """An engine of so many slots. A rollout holds one for the seconds that its seed says, or waits for one."""

    def __init__(self, world: World, seconds: Callable[[RolloutRequest], float], slots: int) -> None:
        self.world = world
        self.seconds = seconds
        self.free = [0.0] * slots  # since when each is, or from when on it will be
        self.lock = threading.Lock()
        self.withdrawn: set[str] = set()

    def started(self) -> bool:
        return True

    def stream(self, requests: Sequence[RolloutRequest], call: str) -> Iterator[list[tuple[int, Rollout]]]:
        began, version = time.perf_counter(), self.world.version
        ends = []
        with self.lock:
            for place, request in enumerate(requests):
                ends.append((max(began, self.free[0]) + self.seconds(request), place))
                heapq.heapreplace(self.free, ends[-1][0])
        for end, together in itertools.groupby(sorted(ends), key=lambda pair: round(pair[0], 3)):
            time.sleep(max(0.0, end - time.perf_counter()))
            if call in self.withdrawn:
                return
            yield [(place, sample(requests[place], version)) for _, place in together]

    def withdraw(self, call: str) -> None:
        """Of one call at a time, as in sync mode: all slots are free again."""
        with self.lock:
            self.withdrawn.add(call)
            now = time.perf_counter()
            self.free = [min(free, now) for free in self.free]

    def version(self) -> Callable[[float], int | None]:
        return lambda _: self.world.version

    def kill(self) -> None:
        """Nothing to end."""


def sample(request: RolloutRequest, version: int) -> Rollout:
    chance = random.Random(request.seed)
    return Rollout(
        prompt_tokens=request.prompt_tokens,
        tokens=tuple(range(request.max_tokens)),
        logprobs=(-0.5,) * request.max_tokens,
        text=f"{chance.random():.3f} {chance.random():.3f}",
        truncated=True,
        policy_version=version,
    )


def trains(request: RolloutRequest) -> bool:
    """Whether it is of a step, and not of an evaluation, which costs nothing here."""
    return request.prompt_tokens[0] == prompts("train", 1)[0].tokens[0]


class TimedLearner(FakeLearner):
    """An update takes as long as it is told."""

    def __init__(self, world: World, seconds: float) -> None:
        super().__init__(world, "exact")
        self.seconds = seconds

    def learn(self, rollouts: Sequence[Rollout], advantages_B: Any, parts: Any) -> LearnStats:  # noqa: ARG002  as the learner has it
        time.sleep(self.seconds)
        figures = dict.fromkeys(("loss", "grad_norm", "lr", "entropy", "kl", "clip_share", "padding_share"), 0.1)
        return LearnStats(**figures, importance_mean=1.0, sampler_gap=0.0, surviving_B=(1.0,) * len(rollouts))

    def save(self, directory: Path, *, beside: bool = False) -> None:  # noqa: ARG002
        (directory / "learner.json").write_text("[]")


def run(spec: JobSpec, seconds: Callable[[RolloutRequest], float], *, slots: int, learn_s: float) -> list[Figures]:
    """The records of a job over stand-ins."""
    world = World()
    journal = MemoryJournal(spec, world)
    engines: list[Engine] = [Clockwork(world, seconds, slots) for _ in range(spec.rollout.engines)]
    pool = EnginePool(engines, timeout_s=600, room=slots)
    pool.open()
    held_out = prompts("validation", 4)
    parts: Any = replace(
        make_parts(spec, world),
        splits=Splits(train=prompts("train", 4 * spec.rollout.prompts_per_step), validation=held_out, test=[]),
        order=PromptOrder(4 * spec.rollout.prompts_per_step, seed=spec.seed),
        engines=pool,
        learner=TimedLearner(world, learn_s),
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "checkpoints"
        root.mkdir()
        outcome = Loop(spec, parts, journal, CheckpointStore(root), fence=1).run()
    assert outcome == "succeeded", outcome
    return list(journal.records.values())


def overhead(engines: int, steps: int) -> Figures:
    """One size, in this process."""
    rollout = {
        "engines": engines, "prompts_per_step": GROUPS * engines, "rollouts_per_prompt": REPEATS, "max_tokens": 256,
    }  # fmt: skip
    spec = make_spec(steps=steps, rollout=rollout, evaluation={"every": steps}, checkpoints={"every": steps})

    def seconds(request: RolloutRequest) -> float:
        return ROLL_OUT_S * (0.5 + (request.seed or 0) % 16 / 30) if trains(request) else 0.0

    before = psutil.Process().memory_info().rss
    records = run(spec, seconds, slots=10_000, learn_s=LEARN_S)
    others = ("evaluate", "checkpoint")
    spent = [r["timings_s"]["step"] - sum(r["timings_s"][name] for name in others) for r in records[1:]]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # of this process, which has run nothing else
    over_s = median(spent) - ROLL_OUT_S - LEARN_S
    score_s = median(record["timings_s"]["score"] for record in records[1:])
    return {
        "overhead_ms": 1e3 * over_s,
        "score_ms": 1e3 * score_s,
        "driver_mib": peak / 2**20,
        "grown_mib": (peak - before) / 2**20,
    }


def throttled(mode: str, steps: int) -> float:
    """Seconds of a step, from the second on."""
    slots, engines = int(THROTTLED["slots"]), int(THROTTLED["engines"])
    rollout = {
        "engines": engines, "prompts_per_step": engines * slots // 4, "rollouts_per_prompt": 4, "max_tokens": 32,
        "max_num_seqs": slots, "mode": mode, "max_staleness": AHEAD,
    }  # fmt: skip
    spec = make_spec(steps=steps, rollout=rollout, evaluation={"every": steps}, checkpoints={"every": steps})
    spread = THROTTLED["longest_s"] - THROTTLED["shortest_s"]

    def seconds(request: RolloutRequest) -> float:
        return THROTTLED["shortest_s"] + spread * ((request.seed or 0) % 1009 / 1008) if trains(request) else 0.0

    records = run(spec, seconds, slots=slots, learn_s=THROTTLED["learn_s"])
    assert max(record["staleness"]["max"] for record in records) <= AHEAD
    middle = records[2:-1]  # without the first, which has nothing to hide behind, and the evaluation of the last
    return fmean(record["timings_s"]["step"] - record["timings_s"]["evaluate"] for record in middle)


def long_tailed(tail: str, steps: int) -> tuple[float, float]:
    """(completions learned from a second, share of rollouts that was withdrawn), from the second step on."""
    slots, engines = int(TAIL["slots"]), int(TAIL["engines"])
    rollout = {
        "engines": engines, "prompts_per_step": engines * slots // 8, "rollouts_per_prompt": 8, "max_tokens": 32,
        "max_num_seqs": slots,
    }  # fmt: skip
    spec = make_spec(
        steps=steps, rollout=rollout, sampling={"tail": {"name": tail}}, evaluation={"every": steps},
        checkpoints={"every": steps},
    )  # fmt: skip

    def seconds(request: RolloutRequest) -> float:
        if not trains(request):
            return 0.0
        between = random.Random(f"{request.prompt_tokens}").gauss(0, TAIL["between"])
        within = random.Random(request.seed).gauss(0, TAIL["within"])
        return TAIL["median_s"] * min(math.exp(between + within), TAIL["longest"])

    middle = run(spec, seconds, slots=slots, learn_s=TAIL["learn_s"])[1:-1]
    spent = sum(record["timings_s"]["step"] - record["timings_s"]["evaluate"] for record in middle)
    groups, put_off = (sum(record[name] for record in middle) for name in ("groups", "prompts_put_off"))
    return 8 * groups / spent, put_off / (groups + put_off)


def measure(sizes: Sequence[int], steps: int) -> Figures:
    figures: Figures = {}
    for engines in sizes:
        command = [sys.executable, "-m", "tests.benchmarks.growth", "--one", str(engines), "--steps", str(steps)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        figures[f"overhead_ms_{engines}"] = round(found["overhead_ms"], 1)
        figures[f"score_ms_{engines}"] = round(found["score_ms"], 1)
        figures[f"driver_mib_{engines}"] = round(found["driver_mib"])
        figures[f"overhead_share_{engines}"] = round(found["overhead_ms"] / 1e3 / STEP_S, 4)
        print(f"{engines:4} engines: {found['overhead_ms']:8.1f} ms, {found['driver_mib']:6.0f} MiB", flush=True)
    step_s = {mode: throttled(mode, 15) for mode in ("sync", "overlapped", "async")}
    mean_s = (THROTTLED["longest_s"] + THROTTLED["shortest_s"]) / 2
    ideal = (THROTTLED["longest_s"] + THROTTLED["learn_s"]) / max(mean_s, THROTTLED["learn_s"])
    for mode, spent in step_s.items():
        figures[f"step_s_{mode}"] = round(spent, 3)
        print(f"{mode:>12}: {spent:.3f} s a step, {step_s['sync'] / spent:.2f} times sync", flush=True)
    figures["overlapped_gain"] = round(step_s["sync"] / step_s["overlapped"], 3)
    figures["async_gain"] = round(step_s["sync"] / step_s["async"], 3)
    figures["async_ideal"] = round(ideal, 3)
    rates = {tail: long_tailed(tail, 42) for tail in ("wait", "defer")}
    for tail, (rate, thrown) in rates.items():
        print(f"{tail:>12}: {rate:.1f} completions/s, {thrown:.0%} of the prompts put off", flush=True)
    figures["tail_gain"] = round(rates["defer"][0] / rates["wait"][0], 3)
    figures["tail_thrown"] = round(rates["defer"][1], 3)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=int, nargs="+", default=list(ENGINES))
    parser.add_argument("--steps", type=int, default=3, help="of a size, the first of which is not counted")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # a size, in a process of its own
    parser.add_argument("--note", help="kept with the figures, such as what else the machine did")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one is not None:
        print(json.dumps(overhead(options.one, options.steps)))
        return
    figures = measure(options.engines, options.steps)
    kept = {
        "figures": figures,
        "targets": TARGETS,
        "machine": machine(),
        **({"note": options.note} if options.note else {}),
    }
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
