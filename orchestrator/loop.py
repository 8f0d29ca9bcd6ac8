"""The training loop: read `Loop.step` from top to bottom, it is the algorithm.

P prompts, G rollouts of each, K objectives; B = P * G rollouts in one row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.batch import reward_batch, rollout_seed, stack
from orchestrator.build import Parts
from orchestrator.checkpoints import CheckpointError, directory_name, keep_only, write_checkpoint, write_json
from orchestrator.clock import Clock
from orchestrator.evaluation import Evaluator
from orchestrator.journal import Journal
from orchestrator.prompts import Prompt
from orchestrator.spec import JobSpec
from orchestrator.steering import Steering, apply_steering
from policies.estimators.base import LinearEstimator, whitening_factor
from policies.pareto import Point
from policies.types import FrontStats, LearnStats, Rollout, RolloutRequest, StepStats, Weights

MAX_CHECKPOINT_FAILURES = 3


@dataclass(kw_only=True)
class LoopState:
    """Everything of the loop itself that a step depends on; the parts keep the rest."""

    step: int = 0  # the last step done
    front: FrontStats | None = None  # as the last evaluation left it
    collapsed: bool = False
    steering_version: int = 0
    samples: dict[str, Any] = field(default_factory=dict)  # the initial policy's completions, for the report


class Loop:
    """One job's training, from the initial policy to the front."""

    def __init__(self, spec: JobSpec, parts: Parts, journal: Journal, directory: Path, *, fence: int) -> None:
        self.spec = spec
        self.parts = parts
        self.journal = journal
        self.directory = directory
        self.fence = fence
        self.names = list(spec.objective_names)
        self.state = LoopState()
        self.clock = Clock()
        self.evaluator = Evaluator(spec, parts)
        self.kept: set[int] = set()  # steps whose checkpoint is on disk
        self.samples: list[dict[str, Any]] = []  # start and end side by side, once the run has ended
        self._checkpoint_failures = 0

    # ------------------------------------------------------------------- run

    def run(self) -> str:
        """Train until the last step or until a person wishes otherwise: succeeded, paused, cancelled or stopped."""
        if self.state.step == 0 and self.state.front is None:
            self.start()
        while self.state.step < self.spec.steps:
            wishes = self.journal.wishes()
            if wishes.cancel:
                return "cancelled"
            if wishes.pause or wishes.stop:
                if self.state.step not in self.kept:
                    self.checkpoint()
                return "paused" if wishes.pause else "stopped"
            self.step(self.state.step + 1)
        while self.state.step not in self.kept:  # the last policy is the result: not without it
            self.checkpoint()
        self.journal.progress(stage="testing the front", eta_s=None)
        self.evaluator.test_front(self)
        return "cancelled" if self.journal.wishes().cancel else "succeeded"

    def start(self) -> None:
        """The initial policy is the first point: every later one is measured against it."""
        self.journal.progress(stage="evaluating the initial policy", eta_s=None)
        version, steering = self.journal.steering(1)
        self.state.steering_version = version
        self.evaluate(0, steering)
        self.evaluator.test(0)
        self.checkpoint()

    def step(self, step: int) -> None:
        """Sample, roll out, score, weigh, learn, sync, evaluate when due, commit."""
        self.clock.begin()
        version, steering = self.steer(step)

        prompts = [self.parts.splits.train[i] for i in self.parts.order.take(self.spec.rollout.prompts_per_step)]
        with self.clock("rollout"):
            rollouts = self.parts.engines.generate(self.requests(step, prompts))
        with self.clock("score"):
            rewards_PGK, signal_PGK = self.score(prompts, rollouts)
        with self.clock("learn"):
            weights, applied, learned = self.improve(step, rollouts, rewards_PGK, signal_PGK, steering)
        with self.clock("sync"):
            self.parts.learner.sync(step)

        self.state.step = step
        evaluation = self.evaluate(step, steering) if self.due(step) else None
        record = self.record(step, version, rollouts, rewards_PGK, weights, applied, learned, evaluation)
        self.journal.commit(record | {"timings_s": self.clock.read()})
        self.journal.progress(stage="training", eta_s=self.clock.eta_s(self.spec.steps - step))
        on_front = evaluation is not None and evaluation["on_front"]
        if step % self.spec.checkpoints.every == 0 or step == self.spec.steps or on_front:
            self.checkpoint()

    # ----------------------------------------------------------------- phases

    def steer(self, step: int) -> tuple[int, Steering]:
        """The steering in force at this step; an event when it changed, with the step as the proof."""
        version, steering = self.journal.steering(step)
        if version != self.state.steering_version:
            self.journal.event("steering.applied", step=step, version=version, **steering.model_dump())
            self.state.steering_version = version
        return version, steering

    def requests(self, step: int, prompts: Sequence[Prompt]) -> list[RolloutRequest]:
        """P * G requests, prompt by prompt, each with a seed of its own."""
        rollout = self.spec.rollout
        return [
            RolloutRequest(
                prompt_tokens=prompt.tokens,
                seed=rollout_seed(self.spec.seed, f"step {step}", p, g),
                max_tokens=rollout.max_tokens,
                temperature=rollout.temperature,
                top_p=rollout.top_p,
            )
            for p, prompt in enumerate(prompts)
            for g in range(rollout.rollouts_per_prompt)
        ]

    def score(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> tuple[Tensor, Tensor]:
        """(rewards_PGK raw, signal_PGK after the gates). A reward that fails raises, and names itself."""
        repeats = len(rollouts) // len(prompts)
        scores = self.parts.rewards.score(reward_batch(prompts, rollouts, self.spec.rollout.max_tokens))
        raw_PGK = stack(scores, self.names, repeats)
        return raw_PGK, stack(self.parts.gates.apply(scores), self.names, repeats)

    def improve(
        self, step: int, rollouts: Sequence[Rollout], rewards_PGK: Tensor, signal_PGK: Tensor, steering: Steering
    ) -> tuple[Weights, dict[str, float], LearnStats]:
        """Advantages from rewards, weights from the strategy and then from the person, an update from both."""
        estimator, strategy, learner = self.parts.estimator, self.parts.weighting, self.parts.learner
        gramian_KK = advantages_PGK = None
        if "gramian" in strategy.needs:
            assert isinstance(estimator, LinearEstimator), "the spec refuses other estimators with this strategy"
            advantages_PGK = estimator.per_objective(signal_PGK)
            gramian_KK = learner.gramian(rollouts, advantages_PGK.flatten(0, 1).float())
        weights = strategy.update(
            StepStats(
                step=step,
                rewards_PGK=rewards_PGK,
                preference_K=torch.tensor([steering.weights[name] for name in self.names]),
                gramian_KK=gramian_KK,
                front=self.state.front,
            )
        )
        applied = apply_steering(steering, self.by_name(weights.weights_K))
        applied_K = torch.tensor([applied[name] for name in self.names], dtype=torch.float64)
        advantages_PG = weights.advantage_scale * estimator(weights.reward_scale * signal_PGK, applied_K)
        gradient_weights_K = None
        if advantages_PGK is not None:  # the update is sum_k w_k g_k times the whitening's factor: no second pass
            factor = weights.advantage_scale * whitening_factor(advantages_PGK, applied_K)
            gradient_weights_K = factor * applied_K
        return weights, applied, learner.learn(rollouts, advantages_PG.flatten(), gradient_weights_K)

    def evaluate(self, step: int, steering: Steering) -> dict[str, Any]:
        """Held-out figures -> watch for a collapse -> archive -> hypervolume."""
        with self.clock("evaluate"):
            result = self.evaluator.evaluate("validation")
        if step == 0:
            self.state.samples = self.evaluator.samples()
        archive = self.parts.archive
        normalised = dict(zip(self.names, archive.normalised([result.point(step)])[0].tolist(), strict=True))
        self.watch(step, normalised, steering)
        growth = archive.add(result.point(step, collapsed=self.state.collapsed))
        points_NK = torch.from_numpy(archive.normalised(archive.eligible))
        self.state.front = FrontStats(step=step, growth=growth, points_NK=points_NK)
        on_front = step in {point.step for point in archive.front}
        figures = result.figures() | {"hypervolume": archive.hypervolume, "on_front": on_front}
        self.journal.event("evaluated", step=step, **figures)
        self.journal.front(self.front_document())
        return figures

    def watch(self, step: int, normalised: Mapping[str, float], steering: Steering) -> None:
        """Name a collapse when it begins; its points stay off the front until it is over."""
        if self.spec.collapse.action == "off":
            return
        collapse = self.parts.watch.observe(step, normalised, steering.weights)
        if collapse is not None and not self.state.collapsed:
            self.journal.event("collapse.detected", level="warning", message=collapse.describe(), **asdict(collapse))
            if self.spec.collapse.action == "pause":
                self.journal.request_pause()
        if collapse is None and self.state.collapsed:
            self.journal.event("collapse.over", step=step)
        self.state.collapsed = collapse is not None

    # ------------------------------------------------------------------ state

    def checkpoint(self) -> None:
        """Make the state durable, register it, and drop what neither a restart nor the front needs."""
        step = self.state.step
        with self.clock("checkpoint"):
            try:
                path, manifest = write_checkpoint(self.directory, step=step, fence=self.fence, fill=self.fill)
            except CheckpointError as error:
                self._checkpoint_failures += 1
                self.journal.event("checkpoint.failed", level="error", step=step, message=str(error))
                if self._checkpoint_failures >= MAX_CHECKPOINT_FAILURES:
                    raise
                return
            self._checkpoint_failures = 0
            self.kept.add(step)
            self.journal.checkpoint(path, manifest)
            self.retain()

    def retain(self) -> None:
        """Keep the newest checkpoint and the front's; the others leave the ledger first and then the disk."""
        front = {point.step for point in self.parts.archive.front}
        dropped = self.kept - front - {max(self.kept)}
        self.kept -= dropped
        changes = {step: {"on_front": step in front, "metrics": self.metrics(step)} for step in sorted(self.kept)}
        self.journal.checkpoints(changes, sorted(dropped))
        keep_only(self.directory, self.kept)
        self.journal.front(self.front_document())

    def fill(self, directory: Path) -> None:
        """The files of a checkpoint."""
        (directory / "policy").mkdir()
        self.parts.learner.save(directory)
        self.parts.save_tokenizer(directory / "policy")
        write_json(directory / "state.json", self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        front = self.state.front
        return {
            "step": self.state.step,
            "collapsed": self.state.collapsed,
            "steering_version": self.state.steering_version,
            "samples": self.state.samples,
            "prompt_position": self.parts.order.position,
            "weighting": self.parts.weighting.state_dict(),
            "archive": self.parts.archive.state_dict(),
            "watch": self.parts.watch.state_dict(),
            "front": None if front is None else {"step": front.step, "growth": front.growth},
        }

    def resume(self, step: int, known: Sequence[int]) -> None:
        """Continue after a checkpoint (`known`: all registered ones). Engines get its weights before they serve."""
        directory = self.directory / directory_name(step)
        document = json.loads((directory / "state.json").read_text())
        self.parts.learner.load(directory)
        self.parts.learner.sync(step)
        self.parts.order.position = document["prompt_position"]
        self.parts.weighting.load_state_dict(document["weighting"])
        self.parts.archive.load_state_dict(document["archive"])
        self.parts.watch.load_state_dict(document["watch"])
        self.kept = {other for other in known if other <= step}
        archive = self.parts.archive
        front = document["front"] and FrontStats(
            points_NK=torch.from_numpy(archive.normalised(archive.eligible)), **document["front"]
        )
        self.state = LoopState(
            step=document["step"],
            front=front or None,
            collapsed=document["collapsed"],
            steering_version=document["steering_version"],
            samples=document["samples"],
        )
        self.retain()  # a kill may have come between a checkpoint and this

    # ---------------------------------------------------------------- figures

    def due(self, step: int) -> bool:
        return step % self.spec.evaluation.every == 0 or step == self.spec.steps

    def by_name(self, values_K: Tensor) -> dict[str, float]:
        return dict(zip(self.names, values_K.tolist(), strict=True))

    def metrics(self, step: int) -> dict[str, Any]:
        found = [point for point in self.parts.archive.points if point.step == step]
        return {"objectives": found[0].objectives, "mean_tokens": found[0].mean_tokens} if found else {}

    def record(
        self,
        step: int,
        version: int,
        rollouts: Sequence[Rollout],
        rewards_PGK: Tensor,
        weights: Weights,
        applied: Mapping[str, float],
        learned: LearnStats,
        evaluation: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """What the step decided and saw: every raw objective, and the total that was optimised."""
        flat_BK = rewards_PGK.flatten(0, 1)
        spread_PK = rewards_PGK.std(dim=1, correction=0)
        means = self.by_name(flat_BK.mean(dim=0))
        tokens = [len(rollout.tokens) for rollout in rollouts]
        return {
            "step": step,
            "objectives": {
                name: {
                    "mean": means[name],
                    "std": float(flat_BK[:, k].std(correction=0)),
                    "zero_share": float((spread_PK[:, k] < 1e-6).double().mean()),
                }
                for k, name in enumerate(self.names)
            },
            "total": sum(applied[name] * means[name] for name in self.names),
            "weights": {"strategy": self.by_name(weights.weights_K), "applied": dict(applied)},
            "multiplier": weights.advantage_scale * weights.reward_scale,
            "steering_version": version,
            "policy_version": rollouts[0].policy_version,
            "tokens": sum(tokens),
            "mean_tokens": sum(tokens) / len(tokens),
            "truncated_share": sum(rollout.truncated for rollout in rollouts) / len(rollouts),
            "evaluation": evaluation,
            **{key: value for key, value in asdict(learned).items() if key != "extra"},
        }

    def front_document(self) -> dict[str, Any]:
        """The archive as people see it."""
        archive = self.parts.archive
        front = {point.step for point in archive.front}
        reference = archive.points[0].objectives
        return {
            "objectives": self.names,
            "ranges": {name: list(ends) for name, ends in archive.ranges.items()},
            "reference": reference,
            "hypervolume": archive.hypervolume,
            "hypervolume_base": archive.hypervolume_base,
            "hypervolume_over_base": archive.hypervolume_over_base,
            "hypervolume_by_step": [list(pair) for pair in archive.hypervolume_by_step()],
            "points": [self.point_document(point, front) for point in archive.points],
        }

    def point_document(self, point: Point, front: set[int]) -> dict[str, Any]:
        return {
            "step": point.step,
            "objectives": point.objectives,
            "mean_tokens": point.mean_tokens,
            "on_front": point.step in front,
            "collapsed": point.collapsed,
            "checkpoint": point.step in self.kept,
            "test": None,
            **point.extra,
        }
