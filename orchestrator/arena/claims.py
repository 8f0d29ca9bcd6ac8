"""What papers say of their rules, put to the test on the arena's runs by one stated rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from orchestrator.arena.comparison import FIXED, BySeed, Entry, Task, best
from orchestrator.arena.run_figures import RunFigures
from orchestrator.arena.statistics import Paired, paired

Verdict = Literal["reproduced", "not reproduced", "not testable here"]
ENOUGH_SEEDS = 3
RULE = (
    "Reproduced: with at least 3 paired seeds, the 95 % intervals of the difference (bootstrap and t) both lie "
    "above 0, on every task where both sides have these. Not reproduced: on at least one such task they do not. Not "
    "testable here: no task has both sides with 3 seeds; the figures say what they have. Each claim is judged by "
    "itself, without a correction for their number."
)
DRW = "Dynamic reward weighting, arXiv 2509.11452"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement, how it was tested, and `on`: for each task the two sides' difference, or what is missing."""

    source: str
    text: str
    test: str
    difference: Callable[[Task], Paired | None]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim's verdict, with the figures that decided it."""

    claim: Claim
    verdict: Verdict
    numbers: list[str]


def judge(claim: Claim, tasks: Iterable[Task]) -> Judged:
    """The verdict by RULE."""
    differences = {task.name: claim.difference(task) for task in tasks}
    enough = {name: d for name, d in differences.items() if d is not None and len(d.seeds) >= ENOUGH_SEEDS}
    verdict: Verdict = "not testable here"
    if enough:
        verdict = "reproduced" if all(d.above for d in enough.values()) else "not reproduced"
    return Judged(claim=claim, verdict=verdict, numbers=[_told(name, d) for name, d in differences.items()])


def _told(task: str, difference: Paired | None) -> str:
    if difference is None:
        return f"{task}: not run"
    text = f"{task}: {difference.mean:+.3f}"
    if difference.interval and difference.t_interval:
        low, high = difference.interval
        text += f" [{low:+.3f}, {high:+.3f}], t [{difference.t_interval[0]:+.3f}, {difference.t_interval[1]:+.3f}]"
    words = ", the opposite holds" if difference.below else ""
    return f"{text}, {len(difference.seeds)} seed{'s' if len(difference.seeds) > 1 else ''}{words}"


def _between(task: Task, one: str, other: str, figure: Callable[[RunFigures], float]) -> Paired | None:
    if one not in task.entries or other not in task.entries:
        return None
    first, second = ({s: figure(run) for s, run in task.entries[name].runs.items()} for name in (one, other))
    return paired(first, second)


def _hypervolume(run: RunFigures) -> float:
    return run.hypervolume


def _static(task: Task, estimator: str) -> Entry | None:
    return best(entry for entry in task.entries.values() if entry.static and entry.estimator == estimator)


def over_static(entry: str, estimator: str) -> Callable[[Task], Paired | None]:
    """An entry's hypervolume minus that of the best static weights under an estimator, chosen on validation."""

    def difference(task: Task) -> Paired | None:
        static = _static(task, estimator)
        return None if static is None else _between(task, entry, static.name, _hypervolume)

    return difference


def over(entry: str, other: str) -> Callable[[Task], Paired | None]:
    """An entry's hypervolume minus another's."""
    return lambda task: _between(task, entry, other, _hypervolume)


def steps_saved(entry: str, estimator: str) -> Callable[[Task], Paired | None]:
    """Steps that the best static weights need for their own validation hypervolume, minus those of the entry.

    A run that ends before counts its last step, which favours the entry.
    """

    def difference(task: Task) -> Paired | None:
        static = _static(task, estimator)
        if static is None or entry not in task.entries:
            return None
        goals = {seed: run.validation_hypervolume for seed, run in static.runs.items()}

        def steps(runs: dict[int, RunFigures]) -> BySeed:
            found = {s: (run, run.reached(goals[s])) for s, run in runs.items() if s in goals}
            return {s: float(run.run.steps if at is None else at) for s, (run, at) in found.items()}

        return paired(steps(static.runs), steps(task.entries[entry].runs))

    return difference


def costlier(entry: str, other: str) -> Callable[[Task], Paired | None]:
    """What a step costs more than another's, at equal rollouts, as a share of the other's."""

    def difference(task: Task) -> Paired | None:
        if entry not in task.entries or other not in task.entries:
            return None
        costs = {s: run.relative_cost for s, run in task.entries[entry].runs.items()}
        bases = {s: run.relative_cost for s, run in task.entries[other].runs.items()}
        shares = {s: cost / base for s, cost in costs.items() if cost and (base := bases.get(s))}
        return paired(shares, dict.fromkeys(shares, 1.0))

    return difference


def over_the_grid(one: str, other: str) -> Callable[[Task], Paired | None]:
    """Mean hypervolume of an estimator's static runs minus that of another's with the same weights."""

    def difference(task: Task) -> Paired | None:
        means: list[BySeed] = [{}, {}]
        weights = [{n.split("/", 1)[1]: e for n, e in task.entries.items() if e.static and e.estimator == estimator}
                   for estimator in (one, other)]  # fmt: skip
        shared = sorted(set(weights[0]) & set(weights[1]))
        for seed in task.seeds:
            pairs = [[side[w].runs[seed].hypervolume for side in weights] for w in shared
                     if all(seed in side[w].runs for side in weights)]  # fmt: skip
            if pairs:
                for side, mean in zip(means, np.mean(pairs, axis=0), strict=True):
                    side[seed] = float(mean)
        return paired(*means)

    return difference


def _rule(source: str, entry: str, other: str = FIXED) -> Claim:
    return Claim(source=source, text=f"{entry} is better than {other}",
                 test="difference in test hypervolume", difference=over(entry, other))  # fmt: skip


CLAIMS: tuple[Claim, ...] = (
    Claim(
        source=DRW, text="Gradient weighting beats the best static weights under GRPO",
        test="grpo/gradient minus the best static grpo entry, test hypervolume",
        difference=over_static("grpo/gradient", "grpo"),
    ),
    Claim(
        source=DRW, text="The same with advantages that are normalised for each objective",
        test="gdpo/gradient minus the best static gdpo entry, test hypervolume",
        difference=over_static("gdpo/gradient", "gdpo"),
    ),
    Claim(
        source=DRW, text="Hypervolume weighting, as published, beats the best static weights under GRPO",
        test="grpo/hypervolume(faithful) minus the best static grpo entry, test hypervolume",
        difference=over_static("grpo/hypervolume(faithful)", "grpo"),
    ),
    Claim(
        source=DRW, text="Hypervolume weighting, as published, helps under RLOO, which feels its factor",
        test="rloo/hypervolume(faithful) minus rloo/aggregate (equal weights: no grid is run there), test hypervolume",
        difference=over("rloo/hypervolume(faithful)", "rloo/aggregate"),
    ),
    Claim(
        source=DRW, text="Gradient weighting needs fewer steps (6.1 on average)",
        test="steps of the best static grpo entry to its own validation hypervolume minus grpo/gradient's; a run that "
             "never gets there counts its last step",
        difference=steps_saved("grpo/gradient", "grpo"),
    ),
    Claim(
        source=DRW, text="Gradient weighting costs more than hypervolume weighting (24 h to 14 h on 8 H200)",
        test="a step of grpo/gradient at equal rollouts over that of grpo/hypervolume(faithful), minus 1",
        difference=costlier("grpo/gradient", "grpo/hypervolume(faithful)"),
    ),
    Claim(
        source="GDPO, arXiv 2601.05242",
        text="Normalising each objective before combining (gdpo) beats combining first (grpo)",
        test="mean test hypervolume over the static grid, gdpo minus grpo with the same weights",
        difference=over_the_grid("gdpo", "grpo"),
    ),
    _rule("RVPO, arXiv 2605.05750", "softmin/aggregate"),
    _rule("SAW, arXiv 2606.07705", "gdpo/saw"),
    _rule("DARA, 2026", "gdpo/dara"),
    _rule("SA-MRPO, 2026", "gdpo/saturation"),
    _rule("CTWA, arXiv 2602.06869", "gdpo/covariance"),
    _rule("PAMA, arXiv 2508.07768", "gdpo/pama"),
    _rule("GD2PO, arXiv 2606.16771", "gd2po/aggregate"),
    _rule("MO-GRPO, arXiv 2509.22047", "mo_grpo/aggregate", "grpo/fixed"),
    _rule("DVAO, arXiv 2605.25604", "dvao/aggregate", "grpo/fixed"),
    _rule("CorrGRPO, arXiv 2609.36820", "corr_grpo/aggregate", "grpo/fixed"),
    Claim(
        source=DRW, text="The published sizes of the effect, with Qwen3-8B on Math500",
        test="needs that model and those prompts: the arena's policy has 0.66 million parameters",
        difference=lambda _task: None,
    ),
)  # fmt: skip
