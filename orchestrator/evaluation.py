"""Held-out figures: of the policy as it is, and of the front's checkpoints on the test split at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.build import Parts
from orchestrator.errors import Interrupted
from orchestrator.rollouts.batch import rollout_request, rollout_seed
from orchestrator.rollouts.prompts import Prompt
from orchestrator.rollouts.scoring import roll_out_and_score
from orchestrator.routing import Routes
from orchestrator.spec import JobSpec
from orchestrator.specs.data import SETS
from orchestrator.storage.checkpoints import CheckpointError, Unreadable
from orchestrator.storage.remote import LONG_PAUSES_S
from policies.pareto import Point
from policies.places import Scale
from policies.statistics import standard_error
from policies.types import Rollout
from rewards.base import Scores
from rewards.pool import Scored

if TYPE_CHECKING:
    from orchestrator.loop import Loop

SAMPLES = 10  # completions of the start and the end in the report


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Means over a split, and how well its prompts tell them (None: of one prompt nobody knows).

    `counted`: the means after the gates, and `counted_errors` how well those are told; None where there are none.
    """

    objectives: dict[str, float]
    counted: dict[str, float] | None = None
    standard_errors: dict[str, float | None]
    counted_errors: dict[str, float | None] | None = None
    mean_tokens: float
    truncated_share: float
    described: dict[str, Any]

    def point(self, step: int) -> Point:
        extra = {"standard_errors": self.standard_errors, **self.described}
        return Point(
            step=step,
            objectives=self.objectives,
            counted=self.counted,
            mean_tokens=self.mean_tokens,
            extra=extra,
        )

    def place_errors(self, scales: Mapping[str, Scale], *, is_gated: bool) -> dict[str, float]:
        """Standard errors of the places that the means have, after the gates or before; without what nobody knows."""
        told = self.counted_errors if is_gated and self.counted_errors is not None else self.standard_errors
        return {name: error / scales[name].width for name, error in told.items() if error is not None}

    def figures(self) -> dict[str, Any]:
        return {
            "objectives": self.objectives,
            **({} if self.counted is None else {"counted": self.counted}),
            "standard_errors": self.standard_errors,
            "mean_tokens": self.mean_tokens,
            "truncated_share": self.truncated_share,
            **self.described,
        }


class Evaluator:
    """Samples a split with the engines and scores it. The same seeds every time: policies differ, luck does not."""

    def __init__(self, spec: JobSpec, parts: Parts) -> None:
        self.spec = spec
        self.parts = parts
        self.routes = Routes.of(spec)

    def evaluate(
        self, split: str, *, greedy: bool = False, interrupted: Callable[[], bool] = lambda: False
    ) -> Evaluation:
        prompts = self.prompts(split)
        repeats = 1 if greedy or self.spec.evaluation.temperature == 0 else self.spec.evaluation.rollouts_per_prompt
        seeds = [[rollout_seed(self.spec.seed, split, p, g) for g in range(repeats)] for p in range(len(prompts))]
        rollouts, scored = self.sample(prompts, [[None] * repeats] * len(prompts) if greedy else seeds, interrupted)
        answers = [prompt.answer or "" for prompt in prompts for _ in range(repeats)]
        known = {name: self.applicable(name, split, values) for name, values in scored.scores.items()}
        dropped = set(scored.dropped)
        kept = [row for row in range(len(rollouts)) if row not in dropped]
        rollouts, answers = [rollouts[row] for row in kept], [answers[row] for row in kept]
        gated = self.gated(scored.scores)
        counted = None if gated is None else {n: self.applicable(n, split, values) for n, values in gated.items()}
        return Evaluation(
            objectives={name: fmean(values) for name, values in known.items() if values},
            counted=None if counted is None else {name: fmean(values) for name, values in counted.items() if values},
            standard_errors=_errors(scored.scores, repeats),
            counted_errors=None if gated is None else _errors(gated, repeats),
            mean_tokens=fmean(len(rollout.tokens) for rollout in rollouts),
            truncated_share=fmean(rollout.truncated for rollout in rollouts),
            described=self.parts.describe([rollout.text for rollout in rollouts], answers),
        )

    def gated(self, scores: Mapping[str, Scores]) -> dict[str, list[float | None]] | None:
        """After the gates, as training counts them; None where no objective has one."""
        has_gates = any(objective.gate is not None for objective in self.spec.objectives)
        return self.parts.gates.apply(scores) if has_gates else None

    @staticmethod
    def applicable(name: str, split: str, scores: Scores) -> list[float]:
        """Without rows that it does not apply to, or that could not be scored.

        ValueError where that leaves none, but for a further set, of which nothing depends.
        """
        known = [score for score in scores if score is not None]
        if not known and not split.startswith(SETS):
            raise ValueError(f"objective '{name}' applies to no prompt of the {split} split, so it has no figure there")
        return known

    def prompts(self, split: str) -> list[Prompt]:
        splits = self.parts.splits
        if split == "test":
            return splits.test
        return (splits.sets[split] if split.startswith(SETS) else splits.validation)[: self.spec.evaluation.prompts]

    def sets(self, interrupted: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """The figures of the further sets, by name, for a point's `extra`; without any, nothing. Raises Interrupted."""
        found = {
            split.removeprefix(SETS): self.evaluate(split, interrupted=interrupted).figures()
            for split in self.parts.splits.sets
        }
        return {"sets": found} if found else {}

    def sample(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[Sequence[int | None]],
        interrupted: Callable[[], bool] = lambda: False,
    ) -> tuple[list[Rollout], Scored]:
        """Completions of each prompt, one for each of its seeds, and their scores."""
        sampling = self.spec.evaluation.sampling(self.spec.rollout)
        requests = [
            rollout_request(sampling, prompt, seed, temperature=self.spec.evaluation.temperature)
            for prompt, row in zip(prompts, seeds, strict=True)
            for seed in row
        ]
        rolled = roll_out_and_score(
            self.parts.engines,
            self.parts.rewards,
            requests,
            prompts,
            [len(row) for row in seeds],
            routes=self.routes,
            rollout=self.spec.rollout,
            interrupted=interrupted,
        )
        return rolled.rollouts, rolled.scored

    def samples(self, interrupted: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """Greedy completions of the first held-out prompts, with every reward; of validation without a test split."""
        prompts = (self.parts.splits.test or self.parts.splits.validation)[:SAMPLES]
        rollouts, scored = self.sample(prompts, [[None]] * len(prompts), interrupted)
        return {
            str(i): {
                "prompt": prompt.text,
                "answer": prompt.answer,
                "completion": rollout.text,
                "rewards": {name: values[i] for name, values in scored.scores.items()},
            }
            for i, (prompt, rollout) in enumerate(zip(prompts, rollouts, strict=True))
        }

    def test(self, step: int, interrupted: Callable[[], bool] = lambda: False) -> None:
        """The test split's figures, sampled and greedy, put with the point of the policy that the engines have.

        There are none without a test split: validation's would be taken for them. Raises Interrupted.
        """
        if not self.parts.splits.test:
            return
        figures = {"sampled": self.evaluate("test", interrupted=interrupted).figures()}
        if self.spec.evaluation.greedy:
            figures["greedy"] = self.evaluate("test", greedy=True, interrupted=interrupted).figures()
        archive = self.parts.archive
        archive.points = [
            replace(point, extra={**point.extra, "test": figures}) if point.step == step else point
            for point in archive.points
        ]

    def test_front(self, loop: Loop) -> bool:
        """The test split under the last policy and the front's checkpoints; the initial one had its turn at the start.

        Points are chosen on validation and only reported on test. At most `test_points` of the front, the best by the
        person's weights first. False where the run is to end before all are tested: no checkpoint has these figures, so
        who goes on begins with them anew. Raises Unreadable.
        """
        learner = self.parts.learner
        last = loop.state.step
        end = loop.state.samples and self.samples()
        for step in self.tested(loop):
            if loop.asked():
                return False
            if step != last:
                try:
                    directory = loop.checkpoints.directory(step, pauses_s=LONG_PAUSES_S)
                except Unreadable:  # it may be whole, and the report would lack it for good
                    raise
                except CheckpointError as error:
                    loop.journal.event("checkpoint.damaged", level="error", step=step, message=str(error))
                    continue
                learner.load_policy(directory)
                self.parts.engines.refit(learner, step)
            try:
                self.test(step, loop.is_asked)
            except Interrupted:
                return False
            loop.journal.progress(stage="testing the front", eta_s=None, tested=step)
            loop.journal.front(loop.front_document())
        loop.samples = [
            {"prompt": start["prompt"], "answer": start["answer"], "start": start, "end": end[i]}
            for i, start in loop.state.samples.items()
        ]
        return True

    def tested(self, loop: Loop) -> list[int]:
        """Steps in the order of testing: the last first, whose weights the engines have. None without a test split."""
        if not self.parts.splits.test:
            return []
        kept = [point.step for point in self.ranked(loop) if point.step in loop.kept]
        chosen = {*kept[: self.spec.evaluation.test_points], loop.state.step}
        return sorted((chosen & loop.kept) - {0}, reverse=True)

    def ranked(self, loop: Loop) -> list[Point]:
        """The front, the best by the person's weights first and of equal ones the latest, as `best_of` has them."""
        archive = self.parts.archive
        _, steering = loop.journal.steering(loop.state.step)
        weights_K = np.array([steering.weights[name] for name in archive.ranges])
        front = archive.front
        totals = (archive.normalised(front) @ weights_K).tolist()
        ranked = sorted(zip(totals, front, strict=True), key=lambda pair: (pair[0], pair[1].step), reverse=True)
        return [point for _, point in ranked]


def _errors(scores: Mapping[str, Scores], repeats: int) -> dict[str, float | None]:
    """Standard errors of the means of prompts that have so many rows each."""
    return {
        name: standard_error(values[first : first + repeats] for first in range(0, len(values), repeats))
        for name, values in scores.items()
    }
