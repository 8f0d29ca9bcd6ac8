"""One run: the ordinary loop over warm parts, and what came of it as a record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import numpy as np

from orchestrator.actors.remote_learner import RemoteLearner
from orchestrator.build import Parts
from orchestrator.evaluation import Evaluation, Evaluator
from orchestrator.journal import Wishes
from orchestrator.loop import Loop
from orchestrator.spec import JobSpec
from orchestrator.steering import Steering, initial_steering
from orchestrator.storage.checkpoint_store import CheckpointStore
from orchestrator.storage.checkpoints import Manifest
from policies.pareto import Archive, Point, hypervolume
from policies.types import LearnStats, ObjectiveAdvantages, Rollout

Json = dict[str, Any]
STAGES = {"rollout": "generate", "score": "score", "learn": "learn", "sync": "sync", "evaluate": "evaluate",
          "checkpoint": "checkpoint", "other": "other"}  # fmt: skip
MOST_GAP = 1e-3
"""Between sampler's and learner's log-probabilities, which round apart by 1e-6 in float32; more where engines round
otherwise, or sample from a part of the distribution."""


class RunFailed(RuntimeError):
    """The run came to another end than its last step; the message says why."""


class Notes:
    """A Journal in memory: nobody steers, and nobody but the record reads."""

    def __init__(self, spec: JobSpec) -> None:
        self._steering = initial_steering(spec)
        self.steps: list[Mapping[str, Any]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []

    def steering(self, step: int) -> tuple[int, Steering]:
        del step
        return 1, self._steering

    def commit(self, record: Mapping[str, Any]) -> None:
        self.steps.append(record)

    def event(self, type: str, *, level: str = "info", once: str | None = None, **data: Any) -> None:
        del once
        if level != "info":
            self.events.append((type, data))

    def steered(self, *, version: int, **data: Any) -> None: ...
    def progress(self, **line: Any) -> None: ...
    def front(self, document: Mapping[str, Any]) -> None: ...
    def checkpoint(self, path: Path, manifest: Manifest) -> None: ...
    def checkpoints(self, changes: Mapping[int, Mapping[str, Any]], removals: list[int]) -> None: ...
    def request_pause(self, why: str) -> None: ...

    def spent(self, cost: float) -> dict[str, float]:
        return {"cost": cost, "gpu_hours": 0.0}

    def wishes(self) -> Wishes:
        return Wishes()


class TimedLearner:
    """The learner, and the seconds of its updates: what else of a step's learning there is, the rule costs."""

    def __init__(self, learner: Any) -> None:
        self._learner = learner
        self.learn_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learner, name)

    def learn(self, rollouts: Sequence[Rollout], advantages_B: Any, parts: ObjectiveAdvantages | None) -> LearnStats:
        started = time.perf_counter()
        stats: LearnStats = self._learner.learn(rollouts, advantages_B, parts)
        self.learn_s += time.perf_counter() - started
        return stats


class FrontTester(Evaluator):
    """Tests those of the validated front that cover most of it together, the chosen policy and the last.

    `initial`: figures of the initial policy by split, which are the same in every run of a task and a seed; a loop
    begins with them.
    """

    def __init__(self, spec: JobSpec, parts: Parts, initial: dict[str, Evaluation]) -> None:
        super().__init__(spec, parts)
        self._initial = initial
        self._begun: set[str] = set()

    def evaluate(
        self, split: str, *, greedy: bool = False, interrupted: Callable[[], bool] = lambda: False
    ) -> Evaluation:
        if split in self._begun or greedy:
            return super().evaluate(split, greedy=greedy, interrupted=interrupted)
        self._begun.add(split)
        if split not in self._initial:
            self._initial[split] = super().evaluate(split, interrupted=interrupted)
        return self._initial[split]

    def tested(self, loop: Loop) -> list[int]:
        """Steps, the last first. One point after another, each the one that adds most to the hypervolume."""
        archive = self.parts.archive
        left = list(archive.front)
        covering: list[Point] = []
        while left and len(covering) < self.spec.evaluation.test_points:
            volumes = [hypervolume(archive.normalised([*covering, point]), archive.reference_K) for point in left]
            covering.append(left.pop(int(np.argmax(volumes))))
        chosen = {point.step for point in covering} | {chosen_step(archive, self.spec.preference), loop.state.step}
        return sorted((chosen & loop.kept) - {0}, reverse=True)


def run_job(spec: JobSpec, parts: Parts, scratch: Path, initial: dict[str, Evaluation]) -> Json:
    """Train, evaluate and test as any job; the figures of the record. Raises RunFailed, or what the loop raises.

    `initial` is filled by the first run of a task and a seed, and read by the others.
    """
    started = time.perf_counter()
    notes, learner = Notes(spec), TimedLearner(parts.learner)
    parts = replace(parts, learner=cast(RemoteLearner, learner))
    loop = Loop(spec, parts, notes, CheckpointStore(scratch / "checkpoints"), fence=1)
    loop.evaluator = FrontTester(spec, parts, initial)
    outcome = loop.run()
    if outcome != "succeeded":
        raise RunFailed(loop.reason or f"it ended as {outcome}")
    if lost := [data for type, data in notes.events if type == "checkpoint.failed"]:
        raise RunFailed(  # the loop goes on without it, but what it can't load it can't test
            f"the checkpoint of step {', '.join(str(data['step']) for data in lost)} was not written, so that the "
            f"test front may lack points ({lost[-1]['message']}); --retry-failed makes the run again"
        )
    gap = max((record["sampler_gap"] for record in notes.steps if record["updates"]), default=0.0)
    if gap > MOST_GAP and spec.policy.dtype == "float32" and spec.rollout.samples_all:
        raise RunFailed(f"the engine did not sample from the learner's weights: log-probabilities {gap:.2g} apart")
    names = spec.objective_names
    points = parts.archive.points
    front = {point.step for point in parts.archive.front}
    return {
        "seconds": _seconds(notes.steps, learner.learn_s, time.perf_counter() - started),
        "step_seconds": [_training_s(record["timings_s"]) for record in notes.steps],
        "validation": [
            {
                "step": point.step,
                "objectives": point.objectives,
                "mean_tokens": point.mean_tokens,
                "on_front": point.step in front,
                "hypervolume": volume,
            }
            for point, (_, volume) in zip(points, parts.archive.hypervolume_by_step(), strict=True)
        ],
        "test": [_tested(point, len(parts.splits.test)) for point in points if "test" in point.extra],
        "chosen_step": chosen_step(parts.archive, spec.preference),
        "weights": [[record["weights"]["applied"][name] for name in names] for record in notes.steps],
        "train_rewards": [[record["objectives"][name]["mean"] for name in names] for record in notes.steps],
        "sampler_gap": gap,
        "warnings": [type for type, _ in notes.events],
    }


def chosen_step(archive: Archive, preference: Mapping[str, float]) -> int:
    """Of the validated policy of highest preference-weighted sum of normalised objectives; of equals the first."""
    totals_N = archive.normalised(archive.points) @ [preference[name] for name in archive.ranges]
    return archive.points[int(totals_N.argmax())].step


def _tested(point: Point, prompts: int) -> Json:
    figures = point.extra["test"]["sampled"]
    return {
        "step": point.step,
        "objectives": figures["objectives"],
        "stderr": {name: error for name, error in figures["standard_errors"].items() if error is not None},
        "mean_tokens": figures["mean_tokens"],
        "prompts": prompts,
    }


def _training_s(timings_s: Mapping[str, float]) -> float:
    return timings_s["step"] - timings_s["evaluate"] - timings_s["checkpoint"]


def _seconds(steps: Sequence[Mapping[str, Any]], learn_s: float, total_s: float) -> dict[str, float]:
    """By part, over all steps. `weigh`: what the rule needs beside the update, the Gramian's pass included.

    `ends`: evaluating and testing the initial policy, and testing the front.
    """
    timings = [record["timings_s"] for record in steps]
    seconds = {label: sum(timing[stage] for timing in timings) for stage, label in STAGES.items()}
    seconds["weigh"] = seconds["learn"] - learn_s
    seconds["learn"] = learn_s
    seconds["ends"] = total_s - sum(timing["step"] for timing in timings)
    return {"total": total_s, "step_mean": fmean(_training_s(timing) for timing in timings), **seconds}
