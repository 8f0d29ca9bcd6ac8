"""What a step and the archive say to people, from the loop's tensors."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from orchestrator.rollouts.batch import Batch
from orchestrator.specs.objectives import ObjectiveSpec
from orchestrator.steering import SAME, Steering, held, unbounded
from policies import statistics
from policies.pareto import Archive, Point
from policies.signal import SPREAD
from policies.types import LearnStats, Rollout, Weights

NOT_RECORDED = {"surviving_B", "gramian_KK", "influence_K"}  # as long as the batch, or recorded averaged
MOST_REASONS = 8  # of a rule's figures for its choice; ours have up to four
LONGEST_NAME = 32  # of such a figure


@dataclass(frozen=True, kw_only=True)
class Update:
    """What a step decided and what came of it."""

    weights: Weights  # the strategy's own
    applied: dict[str, float]  # after the person's steering
    target: dict[str, float]  # what a steering that takes effect gradually comes to; else as applied
    signs: dict[str, float]  # -1 for an objective that is pushed down
    advantages_PG: Tensor  # as learned from
    learned: LearnStats
    because: dict[str, Any] = field(default_factory=dict)  # as weights_because makes it

    def figures(self, names: Sequence[str], rewards_PGK: Tensor) -> dict[str, Any]:
        """For the record: every raw objective, their weighted total, the weights, the learner's own figures.

        The total is the raw means by the weights and signs that were applied: what gates, transforms and the estimator
        make of the rewards is not in it.
        """
        objectives = {name: objective_figures(rewards_PGK[:, :, k]) for k, name in enumerate(names)}
        strategy = dict(zip(names, self.weights.weights_K.tolist(), strict=True))
        return {
            "objectives": objectives,
            "total": sum(
                self.signs[name] * self.applied[name] * mean
                for name in names
                if (mean := objectives[name]["mean"]) is not None
            ),
            "weights": {"strategy": strategy, "applied": dict(self.applied)},
            "weights_because": self.because,
            "falling": [name for name, sign in self.signs.items() if sign < 0],
            "multiplier": self.weights.advantage_scale * self.weights.reward_scale,
            **{key: value for key, value in asdict(self.learned).items() if key not in NOT_RECORDED},
        }


def weights_because(
    steering: Steering,
    names: Sequence[str],
    choice: Weights,
    target: Mapping[str, float],
    *,
    gates: Mapping[str, float | None],
) -> dict[str, Any]:
    """Why a step's weights are what they are: who decides, what the rule was led by, and what the bounds did.

    `target` is what steering makes of the strategy's `choice`; a ramp on the way there has figures of its own. What a
    plug-in gives too much of, or not for every objective, is left out: no figure for people may end a step.
    """
    figures: dict[str, dict[str, float | None]] = {"preference": {name: steering.weights[name] for name in names}}
    for figure, values_K in list(choice.because.items())[:MOST_REASONS]:
        if isinstance(values_K, Tensor) and values_K.shape == (len(names),):
            pairs = zip(names, values_K.double().tolist(), strict=True)
            found = {name: value if math.isfinite(value) else None for name, value in pairs}
            figures.setdefault(figure[:LONGEST_NAME], found)
    because = {"mode": steering.mode, "share": steering.share, "figures": figures, "held": {}, "gates": dict(gates)}
    if all(tuple(ends) == (0.0, 1.0) for ends in steering.bounds.values()):
        return because
    free = unbounded(steering, names, choice)
    moved = any(abs(free[name] - target[name]) > SAME for name in names)
    return because | {"held": held(steering, target, free)} | ({"unbounded": free} if moved else {})


def gates_open(objectives: Sequence[ObjectiveSpec], rewards_PGK: Tensor) -> dict[str, float | None]:
    """Of each objective with a gate, the share of rollouts in which it counts; None where it was not measured."""
    column = {objective.name: k for k, objective in enumerate(objectives)}
    found: dict[str, float | None] = {}
    for objective in objectives:
        if (gate := objective.gate) is not None:
            measured_PG = ~rewards_PGK[:, :, column[objective.name]].isnan()
            shut_PG = rewards_PGK[:, :, column[gate.objective]] < gate.at_least
            count = int(measured_PG.sum())
            found[objective.name] = int((measured_PG & ~shut_PG).sum()) / count if count else None
    return found


def objective_figures(rewards_PG: Tensor) -> dict[str, float | None]:
    """Of one raw reward: mean over prompts of the groups' means, spread over the batch's rollouts and within a group
    (the mean over groups), and the share of groups in which it does not spread.

    A prompt counts once, however many rollouts a budget gave it. Over what was measured; None where the objective
    applied to nothing.
    """
    everywhere = (0, 1)
    measured_P = (~rewards_PG.isnan()).any(dim=1)
    if not bool(measured_P.any()):
        return {"mean": None, "std": None, "group_std": None, "zero_share": None}
    spread_P = statistics.std(rewards_PG[measured_P], 1)
    return {
        "mean": float(statistics.mean(rewards_PG[measured_P], 1).mean()),
        "std": float(statistics.std(rewards_PG, everywhere)),
        "group_std": float(spread_P.mean()),
        "zero_share": float((spread_P < SPREAD).double().mean()),
    }


def batch_figures(batch: Batch, version: int, *, groups_learned: int) -> dict[str, Any]:
    """Of the rollouts that a step sampled: how old and how long they are. `version`: of the policy that learns."""
    tokens = [len(rollout.tokens) for rollout in batch.rollouts]
    return {
        "policy_version": min(rollout.policy_version for rollout in batch.rollouts),
        "staleness": staleness_figures(batch.rollouts, version),
        "groups": len(batch.counts),
        "groups_learned": groups_learned,
        "tokens": sum(tokens),
        "mean_tokens": sum(tokens) / len(tokens),
        "truncated_share": sum(rollout.truncated for rollout in batch.rollouts) / len(batch.rollouts),
        "rollouts_dropped": batch.dropped,
        "prompts_put_off": batch.put_off,
    }


def staleness_figures(rollouts: Sequence[Rollout], version: int) -> dict[str, float]:
    """Of tokens: weight updates between the policy that wrote them and the one that learns from them, `version`."""
    found = [span for rollout in rollouts for span in rollout.staleness(version)]
    tokens = sum(count for _, count in found)
    mean = sum(updates * count for updates, count in found) / max(1, tokens)
    return {"mean": mean, "max": max((updates for updates, count in found if count), default=0)}


def measured(record: Mapping[str, Any]) -> dict[str, Any]:
    """A step's record without the figures of objectives that applied to nothing: these are neither good nor bad."""
    objectives = {
        name: {key: value for key, value in figures.items() if value is not None}
        for name, figures in record["objectives"].items()
    }
    return {**record, "objectives": objectives}


def point_metrics(archive: Archive, step: int) -> dict[str, Any]:
    """What is kept with a step's checkpoint; nothing where the step was not evaluated."""
    found = [point for point in archive.points if point.step == step]
    if not found:
        return {}
    places = dict(zip(archive.scales, archive.normalised(found)[0].tolist(), strict=True))
    return {"objectives": found[0].objectives, "mean_tokens": found[0].mean_tokens, "places": places}


def front_document(archive: Archive, kept: Collection[int]) -> dict[str, Any]:
    """The archive as people see it; `kept`: steps whose checkpoint is on disk."""
    front = {point.step for point in archive.front}
    return {
        "objectives": list(archive.scales),
        "ranges": {name: list(ends) for name, ends in archive.ranges.items()},
        "directions": archive.directions,
        "reference": archive.corner,
        "initial": archive.points[0].objectives,
        "hypervolume": archive.hypervolume,
        "hypervolume_base": archive.hypervolume_base,
        "hypervolume_over_base": archive.hypervolume_over_base,
        "hypervolume_by_step": [list(pair) for pair in archive.hypervolume_by_step()],
        **tested_volumes(archive),
        "points": [_point(point, front, kept) for point in archive.points],
    }


def tested_volumes(archive: Archive) -> dict[str, float | None]:
    """What the front's tested points reach on the test split, which chose none of them, and the initial policy alone.

    None until the end of the run, where the front is tested. Those that the test finds dominated take nothing away.
    """
    tested = {point.step: found for point in archive.points if (found := _tested(point)) is not None}
    if not any(step > 0 for step in tested):
        return {"hypervolume_test": None, "hypervolume_test_base": None}
    on_front = [tested[point.step] for point in archive.front if point.step in tested]
    base = [found for step, found in tested.items() if step == 0]
    return {
        "hypervolume_test": archive.volume(on_front) if on_front else None,
        "hypervolume_test_base": archive.volume(base) if base else None,
    }


def _tested(point: Point) -> Point | None:
    """With the means of the test split in the place of its own."""
    found = (point.extra.get("test") or {}).get("sampled")
    if found is None:
        return None
    return replace(point, objectives=found["objectives"], counted=found.get("counted"))


def _point(point: Point, front: set[int], kept: Collection[int]) -> dict[str, Any]:
    return {
        "step": point.step,
        "objectives": point.objectives,
        **({} if point.counted is None else {"counted": point.counted}),
        "mean_tokens": point.mean_tokens,
        "on_front": point.step in front,
        "collapsed": point.collapsed,
        "checkpoint": point.step in kept,
        "test": None,
        **point.extra,
    }
