"""The figures of one run: how much it reached, how fast, how evenly, and whether it gave what was asked for."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from orchestrator.arena.results import Run
from policies.pareto import Archive, Point, hypervolume, nondominated

Array = NDArray[np.float64]
NOISE_DRAWS = 32


@dataclass(frozen=True)
class RunFigures:
    """Figures of a finished run, each in [0, 1] where it has no unit."""

    run: Run

    @functools.cached_property
    def archive(self) -> Archive:
        """Ranges and references alone; points are normalised by it."""
        references = {name: o.reference for name, o in self.run.objectives.items() if o.reference is not None}
        return Archive({name: o.range for name, o in self.run.objectives.items()}, references)

    def normalised(self, objectives: dict[str, float]) -> Array:
        values_1K = self.archive.normalised([Point(step=0, objectives=objectives, mean_tokens=0.0)])
        first: Array = values_1K[0]
        return first

    @functools.cached_property
    def initial_K(self) -> Array:
        """Validation values, normalised, of the first evaluation."""
        return self.normalised(min(self.run.validation, key=lambda point: point.step).objectives)

    @functools.cached_property
    def chosen(self) -> list[tuple[Array, Array]]:
        """(validation_K, test_K), normalised, of each tested checkpoint that validation kept on the front."""
        tested = {point.step: point for point in self.run.test}
        return [
            (self.normalised(point.objectives), self.normalised(tested[point.step].objectives))
            for point in self.run.validation
            if point.on_front and point.step in tested
        ]

    @functools.cached_property
    def front_NK(self) -> Array:
        """Test values of the checkpoints that validation chose; those that the test finds dominated stay."""
        return np.array([test_K for _, test_K in self.chosen]).reshape(len(self.chosen), len(self.run.objectives))

    @functools.cached_property
    def hypervolume(self) -> float:
        """Of the test front, from the references, as a share of the box above them."""
        return hypervolume(self.front_NK, self.archive.reference_K)

    @functools.cached_property
    def hypervolume_error(self) -> float | None:
        """Standard error that `hypervolume` has from its test prompts alone; None where the run does not tell it.

        sqrt(sum_k d_k^2), d_k = (HV(front + s_k) - HV(front - s_k)) / 2 with s_k the standard error of objective k at
        each checkpoint. Within an objective the checkpoints move together, as they answer the same prompts; the
        objectives' errors are taken as independent.
        """
        if self.front_errors_NK is None:
            return None
        squares = 0.0
        for k in range(len(self.run.objectives)):
            errors_NK = np.zeros_like(self.front_NK)
            errors_NK[:, k] = self.front_errors_NK[:, k]
            squares += ((self._moved(errors_NK) - self._moved(-errors_NK)) / 2) ** 2
        return float(np.sqrt(squares))

    @functools.cached_property
    def noise_gain(self) -> float | None:
        """What the test prompts' noise adds to `hypervolume`, as the luckier of the tested points make the front.

        The mean over fronts with as much noise again, minus the front's: each checkpoint's errors are drawn by
        themselves, and once with each sign. None where the run does not tell its errors.
        """
        if self.front_errors_NK is None:
            return None
        draws_RNK = np.random.default_rng(0).standard_normal((NOISE_DRAWS, *self.front_NK.shape)) * self.front_errors_NK
        volumes = [self._moved(sign * noise_NK) for noise_NK in draws_RNK for sign in (1, -1)]
        return float(np.mean(volumes)) - self.hypervolume

    @functools.cached_property
    def front_errors_NK(self) -> Array | None:
        """Standard errors of `front_NK`; None where not all are told."""
        told = {point.step: point.stderr for point in self.run.test if point.stderr}
        kept = [point.step for point in self.run.validation if point.on_front and point.step in told]
        if not kept or len(kept) < len(self.chosen):
            return None
        spans = {name: objective.range[1] - objective.range[0] for name, objective in self.run.objectives.items()}
        return np.array([[told[step].get(name, 0.0) / span for name, span in spans.items()] for step in kept])

    def _moved(self, by_NK: Array) -> float:
        """Hypervolume of the front with its points moved."""
        return hypervolume(np.clip(self.front_NK + by_NK, 0.0, 1.0), self.archive.reference_K)

    @property
    def validation_hypervolume(self) -> float:
        """What choices between entries are made by, never reported as a result."""
        return max(point.hypervolume for point in self.run.validation)

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(step, validation hypervolume by then), in the order of the steps."""
        return sorted((point.step, point.hypervolume) for point in self.run.validation)

    @property
    def best_at_last(self) -> bool:
        """The last evaluated policy covers by itself more than any before it. The curve, which is that of all policies
        together, never falls, and would hide that a run has settled."""
        points = sorted(self.run.validation, key=lambda point: point.step)
        volumes = [hypervolume(self.normalised(p.objectives)[None], self.archive.reference_K) for p in points]
        return len(volumes) > 1 and volumes[-1] > max(volumes[:-1])

    @property
    def area(self) -> float:
        """Mean over the run's steps of the validation hypervolume, where a step has what the last evaluation found."""
        curve = [*self.curve, (self.run.steps, 0.0)]
        spans = itertools.pairwise(curve)
        return sum((after - step) * volume for (step, volume), (after, _) in spans) / self.run.steps

    @functools.cached_property
    def outcome_K(self) -> Array:
        """Test values, normalised, at the step that the preference chose on validation."""
        return self.normalised(next(p.objectives for p in self.run.test if p.step == self.run.chosen_step))

    @property
    def worst(self) -> float:
        return float(self.outcome_K.min())

    @property
    def preference_K(self) -> Array:
        weights_K = np.array([self.run.preference[name] for name in self.run.objectives])
        shares_K: Array = weights_K / weights_K.sum()
        return shares_K

    @property
    def outcome_calibration(self) -> float | None:
        """Cosine of the angle between the preference and the improvement from the first evaluation to the chosen step.

        Both on validation and normalised: 1 where the policy moved exactly as was asked, 0 across, below 0 where it
        moved away. None where nothing moved. Among runs of other preferences see `comparison.grid_calibration`.
        """
        by_step = {point.step: self.normalised(point.objectives) for point in self.run.validation}
        start_K, end_K = by_step[min(by_step)], by_step.get(self.run.chosen_step or 0)
        if end_K is None or np.linalg.norm(end_K - start_K) < 1e-9:
            return None
        moved_K = end_K - start_K
        return float(moved_K @ self.preference_K / np.linalg.norm(moved_K) / np.linalg.norm(self.preference_K))

    @property
    def weight_calibration(self) -> float | None:
        """1 minus the total variation distance of the mean applied weights from the preference, if there are any."""
        if not self.run.weights:
            return None
        mean_K = np.mean(self.run.weights, axis=0)
        if mean_K.sum() <= 0:
            return None
        return float(1 - np.abs(mean_K / mean_K.sum() - self.preference_K).sum() / 2)

    @property
    def step_s(self) -> float:
        """Median seconds from generation to weights, evaluation left out."""
        return median(self.run.step_seconds)

    @property
    def relative_cost(self) -> float | None:
        """Rolling out, weighing and learning, in units of rolling out: a cost that long texts do not raise."""
        rollout_s = self.run.seconds.get("generate", 0.0)
        if rollout_s <= 0:
            return None
        return 1 + (self.run.seconds.get("learn", 0.0) + self.run.seconds.get("weigh", 0.0)) / rollout_s

    def reached(self, volume: float) -> int | None:
        """The first evaluated step whose validation hypervolume is at least that; None where the run ended before."""
        return next((step for step, found in self.curve if found >= volume - 1e-12), None)

    def reached_between(self, volume: float) -> float | None:
        """The step at which it reaches that, on a line between evaluations; None where the run ended before."""
        before = self.curve[0]
        for step, found in self.curve:
            if found >= volume - 1e-12:
                rise = found - before[1]
                share = (volume - before[1]) / rise if rise > 0 else 1.0
                return before[0] + min(1.0, max(0.0, share)) * (step - before[0])
            before = (step, found)
        return None

    @property
    def untested(self) -> int:
        """Points of the validated front without test figures: with them the test hypervolume might be higher."""
        return sum(point.on_front for point in self.run.validation) - len(self.chosen)

    def timed_like(self, other: RunFigures) -> bool:
        """Their times can be compared: on the same kind of machine, beside as many others."""
        mine, its = ((r.workers, r.machine.get("processor"), r.machine.get("cores")) for r in (self.run, other.run))
        return mine == its

    def seconds_until(self, step: int) -> float:
        return sum(self.run.step_seconds[:step])


def union_hypervolume(runs: list[RunFigures]) -> float:
    """Of the front that several runs make together: chosen on validation among all of them, test values."""
    pairs = [pair for run in runs for pair in run.chosen]
    if not pairs:
        return 0.0
    kept_N = nondominated(np.array([validation_K for validation_K, _ in pairs]))
    return hypervolume(np.array([test_K for _, test_K in pairs])[kept_N], runs[0].archive.reference_K)
