"""What papers say of their rules, put to the test on the arena's runs by one stated rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from orchestrator.arena.comparison import FIXED, BySeed, Entry, Task, best
from orchestrator.arena.run_figures import RunFigures
from orchestrator.arena.statistics import ENOUGH_SEEDS, Paired, paired

Verdict = Literal["reproduced", "not reproduced", "not testable here"]
Finding = Literal["holds", "no effect that counts", "the opposite holds", "undecided", "too few seeds", "not run"]
FINDINGS: tuple[Finding, ...] = (
    "the opposite holds",
    "no effect that counts",
    "holds",
    "undecided",
    "too few seeds",
    "not run",
)
NO_EFFECT = 0.02  # of the hypervolume of fixed equal weights; of a step's cost
NO_EFFECT_STEPS = 0.05  # of a run's
SHARE = 0.95  # of the static weights' final hypervolume, which is the goal of claims about steps
RULE = (
    f"On each task where both sides have at least {ENOUGH_SEEDS} seeds in common, the 95 % bootstrap and t intervals "
    "of the difference decide. Both above 0: it holds. Both below 0: the opposite holds. Else, both below the smallest "
    f"effect that counts: no effect that counts; that is {NO_EFFECT:.0%} of the hypervolume of fixed equal weights "
    "(the smallest published gain called significant, 52.57 to 53.66), as much of a step's cost, and "
    f"{NO_EFFECT_STEPS:.0%} of a run's steps. Else, as the intervals are wide: undecided. "
    "Reproduced: it holds on every such task. Not reproduced: on at least one of them there is no effect that "
    "counts, or the opposite. Not testable here: there is no such task, or none speaks against it and some are "
    "undecided. Each claim is judged by itself, without a correction for their number."
)
DRW = "Dynamic reward weighting, arXiv 2509.11452"
GDPO = "GDPO, arXiv 2601.05242"


def _of_fixed(task: Task) -> float | None:
    fixed = task.entries.get(FIXED)
    return None if fixed is None else NO_EFFECT * float(np.mean(list(fixed.hypervolumes.values())))


def _of_steps(task: Task) -> float:
    return NO_EFFECT_STEPS * max(run.run.steps for entry in task.entries.values() for run in entry.runs.values())


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement, how it is tested, the two sides' difference on a task, and the smallest one that counts there."""

    source: str
    text: str
    test: str
    difference: Callable[[Task], Paired | None]
    smallest: Callable[[Task], float | None] = _of_fixed


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim's verdict; what was found on which tasks; and the figures that decided it."""

    claim: Claim
    verdict: Verdict
    why: str
    numbers: list[str]


def judge(claim: Claim, tasks: Iterable[Task]) -> Judged:
    """The verdict by RULE."""
    differences = {task.name: (task, claim.difference(task)) for task in tasks}
    findings = {name: _finding(d, claim.smallest(task)) for name, (task, d) in differences.items()}
    told = [_told(name, d, findings[name]) for name, (_, d) in differences.items()]
    return Judged(claim=claim, verdict=_verdict(set(findings.values())), why=_why(findings), numbers=told)


def _finding(difference: Paired | None, smallest: float | None) -> Finding:
    if difference is None:
        return "not run"
    if not difference.enough:
        return "too few seeds"
    if difference.above:
        return "holds"
    if difference.below:
        return "the opposite holds"
    assert difference.interval is not None  # of enough seeds there are intervals
    assert difference.t_interval is not None
    absent = smallest is not None and max(difference.interval[1], difference.t_interval[1]) < smallest
    return "no effect that counts" if absent else "undecided"


def _verdict(findings: set[Finding]) -> Verdict:
    testable = findings - {"too few seeds", "not run"}
    if testable & {"the opposite holds", "no effect that counts"}:
        return "not reproduced"
    return "reproduced" if testable == {"holds"} else "not testable here"


def _why(findings: Mapping[str, Finding]) -> str:
    groups = {finding: [name for name, found in findings.items() if found == finding] for finding in FINDINGS}
    return "; ".join(f"{finding} on {', '.join(names)}" for finding, names in groups.items() if names)


def _told(task: str, difference: Paired | None, finding: Finding) -> str:
    if difference is None:
        return f"{task}: not run"
    text = f"{task}: {difference.mean:+.3f}"
    if difference.interval and difference.t_interval:
        low, high = difference.interval
        text += f" [{low:+.3f}, {high:+.3f}], t [{difference.t_interval[0]:+.3f}, {difference.t_interval[1]:+.3f}]"
    return f"{text}, {len(difference.seeds)} seed{'s' if len(difference.seeds) > 1 else ''}: {finding}"


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
    """Steps that the best static weights need to SHARE of their own final validation hypervolume, minus the entry's.

    On a line between evaluations. Not to all of it: while volumes rise, that is the last step by construction. A run
    that ends before counts its last step, which favours the entry.
    """

    def difference(task: Task) -> Paired | None:
        static = _static(task, estimator)
        if static is None or entry not in task.entries:
            return None
        goals = {seed: SHARE * run.validation_hypervolume for seed, run in static.runs.items()}

        def steps(runs: dict[int, RunFigures]) -> BySeed:
            found = {s: (run, run.reached_between(goals[s])) for s, run in runs.items() if s in goals}
            return {s: float(run.run.steps if at is None else at) for s, (run, at) in found.items()}

        return paired(steps(static.runs), steps(task.entries[entry].runs))

    return difference


def costlier(entry: str, other: str) -> Callable[[Task], Paired | None]:
    """What a step costs more than another's, in compute per unit of generation, as a share of the other's."""

    def difference(task: Task) -> Paired | None:
        if entry not in task.entries or other not in task.entries:
            return None
        runs, others = task.entries[entry].runs, task.entries[other].runs
        pairs = {s: (run, others[s]) for s, run in runs.items() if s in others and run.timed_like(others[s])}
        costs = {s: (run.relative_cost, base.relative_cost) for s, (run, base) in pairs.items()}
        shares = {s: cost / base for s, (cost, base) in costs.items() if cost and base}
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
        test="steps of the best static grpo entry to 95 % of its own final validation hypervolume, minus "
             "grpo/gradient's to the same; between evaluations on a line; a run that never gets there counts its last "
             "step",
        difference=steps_saved("grpo/gradient", "grpo"),
        smallest=_of_steps,
    ),
    Claim(
        source=DRW, text="Gradient weighting costs more than hypervolume weighting (24 h to 14 h on 8 H200)",
        test="compute per unit of generation of grpo/gradient over that of grpo/hypervolume(faithful), minus 1",
        difference=costlier("grpo/gradient", "grpo/hypervolume(faithful)"),
        smallest=lambda _task: NO_EFFECT,
    ),
    Claim(
        source=GDPO, text="Normalising each objective before combining (gdpo) beats combining first (grpo)",
        test="gdpo/fixed minus grpo/fixed, as published: equal weights, test hypervolume",
        difference=over("gdpo/fixed", "grpo/fixed"),
    ),
    Claim(
        source=GDPO, text="The same with unequal weights",
        test="mean test hypervolume over the static grid, gdpo minus grpo with the same weights; weightings that give "
             "an objective up are part of it, and may decide it",
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
