"""Entries of one task beside each other, paired by seed, and beside the baselines that a rule has to beat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from orchestrator.arena.entries import CENTRE
from orchestrator.arena.results import Run
from orchestrator.arena.run_figures import RunFigures, union_hypervolume
from orchestrator.arena.statistics import ALPHA, ENOUGH_SEEDS, Mean, Paired, holm, mean_over, paired

FIXED = f"gdpo/{CENTRE}"
MOST = 0.75
SHOWN_BASELINES = ("fixed", "static", "static_unseen", "published", "front")
BySeed = dict[int, float]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One rule's finished runs on one task."""

    name: str
    role: str
    estimator: str
    runs: dict[int, RunFigures]
    plugin: bool = False

    @property
    def static(self) -> bool:
        return self.role == "static"

    @property
    def published(self) -> bool:
        """One of ours; a plug-in is compared with the best of them."""
        return self.role in ("strategy", "aggregator") and not self.plugin

    @property
    def hypervolumes(self) -> BySeed:
        return {seed: run.hypervolume for seed, run in self.runs.items()}

    def validation_mean(self, seeds: Iterable[int]) -> float:
        return float(np.mean([self.runs[seed].validation_hypervolume for seed in seeds]))


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Hypervolumes to beat, by seed; `entry` where they are one entry's own."""

    words: str
    hypervolumes: BySeed
    entry: str | None = None
    chosen_on: tuple[int, ...] = ()  # the seeds whose validation decided which entry it is
    among: int = 0  # entries that could be chosen
    of: int = 0  # that there are


@dataclass(frozen=True, kw_only=True)
class Reached:
    """Median steps to the best static weights' validation hypervolume; None where half of the runs ended before.

    `time`: as a share of what fixed equal weights took for all steps, with the same seed and under the same conditions.
    """

    steps: float | None
    time: float | None
    reached: int
    of: int


@dataclass(kw_only=True)
class Row:
    """All that the table says of an entry."""

    entry: Entry
    hypervolume: Mean
    figures: dict[str, Mean | None]
    reached: Reached | None
    against: dict[str, Paired | None]
    holm: dict[str, float] = field(default_factory=dict)  # by baseline

    @property
    def gain(self) -> Paired | None:
        """Over fixed equal weights, with the same seeds: what entries are ranked by."""
        return self.against.get("fixed")

    @property
    def ranked(self) -> bool:
        """It is fixed equal weights, or has enough seeds in common with them."""
        return self.entry.name == FIXED or (self.gain is not None and self.gain.enough)

    @property
    def rank(self) -> tuple[bool, float]:
        """To sort by. Where fixed equal weights were not run there is but the mean, whatever seeds are in it."""
        if self.gain is None and self.entry.name != FIXED:
            return True, -self.hypervolume.mean
        return not self.ranked, -self.gain.mean if self.gain is not None else 0.0

    def significant(self, baseline: str) -> bool:
        """The difference holds after Holm's correction over all entries with the same baseline."""
        return self.holm.get(baseline, 1.0) < ALPHA


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task's comparison, best entry first: by the gain over fixed equal weights with the same seeds; those with too
    few seeds for a test after the others."""

    name: str
    objectives: list[str]
    seeds: list[int]
    entries: dict[str, Entry]
    baselines: dict[str, Baseline]
    rows: list[Row]
    missing: dict[str, list[int]]  # seeds that others have, by entry
    calibration: dict[str, Mean | None]  # of each estimator's static grid

    @property
    def standard_error(self) -> float | None:
        """Of a run's test hypervolume, from its test prompts: the median over all runs that tell it."""
        errors = [run.hypervolume_error for entry in self.entries.values() for run in entry.runs.values()]
        told = [error for error in errors if error is not None]
        return median(told) if told else None

    @property
    def noise_gains(self) -> list[tuple[str, float]]:
        """By entry, the least first: what noise adds to the test hypervolume, mean over the runs that tell it."""
        told = {
            name: [gain for run in entry.runs.values() if (gain := run.noise_gain) is not None]
            for name, entry in self.entries.items()
        }
        return sorted(((name, float(np.mean(gains))) for name, gains in told.items() if gains), key=lambda g: g[1])

    @property
    def columns(self) -> list[str]:
        """Baselines worth a column each: that of the static weights chosen without the seed is none where it chose the
        same ones for every seed."""
        return [key for key in SHOWN_BASELINES if key in self.baselines and not (key == "static_unseen" and self.same)]

    @property
    def same(self) -> bool:
        """Without its own seed, each seed would have got the same best static weights."""
        static, unseen = self.baselines.get("static"), self.baselines.get("static_unseen")
        return static is not None and unseen is not None and unseen.hypervolumes.items() <= static.hypervolumes.items()

    @property
    def same_of_several(self) -> bool:
        """And that says something: of weights that one seed alone decided, leaving out the others changes nothing."""
        return self.same and len(self.baselines["static"].chosen_on) > 1

    def row(self, entry: str) -> Row:
        return next(row for row in self.rows if row.entry.name == entry)


def entries_of(runs: Iterable[Run]) -> dict[str, Entry]:
    """A task's finished runs by entry."""
    entries: dict[str, Entry] = {}
    for run in runs:
        entry = entries.setdefault(
            run.entry,
            Entry(name=run.entry, role=run.role, estimator=run.estimator, runs={}, plugin=bool(run.packages)),
        )
        entry.runs[run.seed] = RunFigures(run)
    return entries


def compare(name: str, runs: list[Run], default: str | None = None) -> Task:
    """The comparison of a task's finished runs, at least one. `default` is never the published rule to beat."""
    entries = entries_of(runs)
    seeds = sorted({run.seed for run in runs})
    baselines = _baselines(entries, seeds, default)
    rows = [_row(entry, baselines, entries) for entry in entries.values()]
    _correct(rows, baselines)
    rows.sort(key=lambda row: row.rank)
    return Task(
        name=name,
        objectives=list(runs[0].objectives),
        seeds=seeds,
        entries=entries,
        baselines=baselines,
        rows=rows,
        missing={
            entry.name: lacking
            for entry in entries.values()
            if (lacking := [seed for seed in seeds if seed not in entry.runs])
        },
        calibration={
            estimator: grid_calibration([e for e in entries.values() if e.static and e.estimator == estimator])
            for estimator in sorted({entry.estimator for entry in entries.values() if entry.static})
        },
    )


def comparable(candidates: Iterable[Entry], *, without: int | None = None) -> tuple[list[Entry], list[int]]:
    """The seeds that at least three quarters of the candidates have, and the candidates that have all of these.

    So neither one entry that failed nor a seed that has just begun decides for all. Where no seed is that common, the
    entries with the most seeds, over those that they share.
    """
    found = {entry.name: (entry, set(entry.runs) - {without}) for entry in candidates}
    counts = Counter(seed for _, seeds in found.values() for seed in seeds)
    shared = {seed for seed, count in counts.items() if count >= MOST * len(found)}
    kept = [entry for entry, seeds in found.values() if shared <= seeds]
    if not shared or not kept:
        most = max((len(seeds) for _, seeds in found.values()), default=0)
        kept = [entry for entry, seeds in found.values() if len(seeds) == most > 0]
        shared = set.intersection(*(set(entry.runs) - {without} for entry in kept)) if kept else set()
    return (kept, sorted(shared)) if shared else ([], [])


def best(candidates: Iterable[Entry], *, without: int | None = None) -> Entry | None:
    """The highest mean validation hypervolume among comparable entries.

    `without` a seed: the choice as somebody makes it who has not seen that seed.
    """
    kept, seeds = comparable(candidates, without=without)
    return max(kept, key=lambda entry: entry.validation_mean(seeds), default=None)


def _chosen(candidates: list[Entry], words: str, of: int) -> Baseline | None:
    """The best of the candidates, which are some `of` as many, and how it became that."""
    entry = best(candidates)
    if entry is None:
        return None
    kept, seeds = comparable(candidates)
    pool = f"the best of {len(kept)}" + f" (of {of}, as others lack these)" * (len(kept) < of)
    free = sorted(set(entry.runs) - set(seeds))
    if free:
        pool += f"; seed{'s' * (len(free) > 1)} {', '.join(map(str, free))} had no part in the choice"
    return Baseline(
        words=f"{words}: {entry.name}, by mean validation hypervolume over seed{'s' * (len(seeds) > 1)} "
        f"{', '.join(map(str, seeds))} {pool}",
        hypervolumes=entry.hypervolumes,
        entry=entry.name,
        chosen_on=tuple(seeds),
        among=len(kept),
        of=of,
    )


def _baselines(entries: dict[str, Entry], seeds: list[int], default: str | None) -> dict[str, Baseline]:
    """Those without runs are left out."""
    found: dict[str, Baseline] = {}
    statics = [entry for entry in entries.values() if entry.static]
    if static := _chosen(statics, "best static weights", len(statics)):
        found["static"] = static
    elsewhere = {seed: _best_unseen(statics, seed) for seed in seeds}
    left_out = {s: e.runs[s].hypervolume for s, e in elsewhere.items() if e is not None and s in e.runs}
    if left_out:
        found["static_unseen"] = Baseline(
            words="best static weights, chosen for each seed by the validation of the others", hypervolumes=left_out
        )
    if statics:
        whole = [seed for seed in seeds if all(seed in entry.runs for entry in statics)]
        found["front"] = Baseline(
            words=f"front of all {len(statics)} static runs together: {len(statics)} times the budget, no rival",
            hypervolumes={s: union_hypervolume([entry.runs[s] for entry in statics]) for s in whole},
        )
    if FIXED in entries:
        found["fixed"] = Baseline(
            words=f"fixed equal weights: {FIXED}", hypervolumes=entries[FIXED].hypervolumes, entry=FIXED
        )
    others = [entry for entry in entries.values() if entry.published and entry.name != default]
    # One with fewer seeds could only be a rival of which nothing can be told.
    tellable = [entry for entry in others if len(entry.runs) >= ENOUGH_SEEDS] or others
    words = "best published rule other than the default" if default else "best published rule"
    if published := _chosen(tellable, words, len(others)):
        found["published"] = published
    return found


def _best_unseen(statics: list[Entry], seed: int) -> Entry | None:
    """None where the other seeds have but some of the grid: which ones was decided by somebody who saw this seed."""
    kept, _ = comparable(statics, without=seed)
    return best(statics, without=seed) if len(kept) >= MOST * len(statics) else None


FIGURES: dict[str, Callable[[RunFigures], float | None]] = {
    "area": lambda run: run.area,
    "worst": lambda run: run.worst,
    "outcome_calibration": lambda run: run.outcome_calibration,
    "weight_calibration": lambda run: run.weight_calibration,
    "step_s": lambda run: run.step_s,
}


def _row(entry: Entry, baselines: dict[str, Baseline], entries: dict[str, Entry]) -> Row:
    hypervolume = mean_over(entry.hypervolumes)
    assert hypervolume is not None  # an entry has a run
    figures = {
        name: mean_over({s: value for s, run in entry.runs.items() if (value := figure(run)) is not None})
        for name, figure in FIGURES.items()
    }
    fixed = entries[FIXED].runs if FIXED in entries else {}
    timed = {s: run for s, run in entry.runs.items() if s in fixed and run.timed_like(fixed[s])}
    figures["overhead"] = mean_over(
        {s: run.step_s / fixed[s].step_s for s, run in timed.items() if fixed[s].step_s > 0}
    )
    figures["overhead_equal"] = mean_over(
        {s: cost / base for s, run in timed.items() if (cost := run.relative_cost) and (base := fixed[s].relative_cost)}
    )
    static = baselines.get("static")
    return Row(
        entry=entry,
        hypervolume=hypervolume,
        figures=figures,
        reached=_reached(entry, entries[static.entry], fixed) if static is not None and static.entry else None,
        against={
            key: None if baseline.entry == entry.name else paired(entry.hypervolumes, baseline.hypervolumes)
            for key, baseline in baselines.items()
        },
    )


def _reached(entry: Entry, static: Entry, fixed: dict[int, RunFigures]) -> Reached | None:
    shared = sorted(set(entry.runs) & set(static.runs))
    if not shared:
        return None
    found = {seed: entry.runs[seed].reached(static.runs[seed].validation_hypervolume) for seed in shared}
    times = {
        s: float("inf") if step is None else entry.runs[s].seconds_until(step) / whole
        for s, step in found.items()
        if s in fixed and entry.runs[s].timed_like(fixed[s]) and (whole := sum(fixed[s].run.step_seconds)) > 0
    }
    return Reached(
        steps=_censored_median(float("inf") if step is None else float(step) for step in found.values()),
        time=_censored_median(times.values()),
        reached=sum(step is not None for step in found.values()),
        of=len(shared),
    )


def _censored_median(values: Iterable[float]) -> float | None:
    """With censored runs a median, if it is known, stays a median."""
    told = list(values)
    middle = median(told) if told else float("inf")
    return middle if np.isfinite(middle) else None


def _correct(rows: list[Row], baselines: dict[str, Baseline]) -> None:
    """Holm over every entry that is compared with the same baseline over enough seeds; with fewer none can be
    significant, and each would only weaken the others."""
    for key in baselines:
        adjusted = holm({r.entry.name: d.p for r in rows if (d := r.against.get(key)) and d.enough and d.p is not None})
        for row in rows:
            if row.entry.name in adjusted:
                row.holm[key] = adjusted[row.entry.name]


def beaten_by(task: Task, entry: str) -> list[str]:
    """The entries that are significantly better, Holm over all that are compared with it."""
    known = rivals(task, entry)
    adjusted = holm({name: d.p for name, d in known.items() if d.p is not None})
    return [name for name, d in known.items() if d.mean > 0 and adjusted[name] < ALPHA]


def rivals(task: Task, entry: str) -> dict[str, Paired]:
    """Each other entry's difference to it, of those with at least ENOUGH_SEEDS seeds in common."""
    own = task.entries[entry].hypervolumes
    differences = {name: paired(other.hypervolumes, own) for name, other in task.entries.items() if name != entry}
    return {name: d for name, d in differences.items() if d is not None and d.enough}


def grid_calibration(grid: list[Entry]) -> Mean | None:
    """Does asking more for an objective give more of it? By seed, over a static grid's runs: rank correlation of the
    weight with the outcome (test, normalised, at the chosen step), mean over the objectives."""
    by_seed: BySeed = {}
    for seed in sorted({seed for entry in grid for seed in entry.runs}):
        runs = [entry.runs[seed] for entry in grid if seed in entry.runs]
        if len(runs) < 4:
            continue
        asked_NK = np.array([_asked(run) for run in runs])
        outcome_NK = np.array([run.outcome_K for run in runs])
        columns = zip(asked_NK.T, outcome_NK.T, strict=True)
        known = [r for asked_N, outcome_N in columns if (r := rank_correlation(asked_N, outcome_N)) is not None]
        if known:
            by_seed[seed] = float(np.mean(known))
    return mean_over(by_seed)


def _asked(run: RunFigures) -> np.ndarray:
    """Static weights, from what was applied: the preference may be the same for every entry."""
    weights_K = np.mean(run.run.weights, axis=0) if run.run.weights else run.preference_K
    return np.asarray(weights_K)


def rank_correlation(x_N: np.ndarray, y_N: np.ndarray) -> float | None:
    """Spearman's, equal values at their mean rank; None where one side does not vary."""
    ranks = [_ranks(np.round(values_N, 9)) for values_N in (x_N, y_N)]
    if min(r.std() for r in ranks) < 1e-12:
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values_N: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])
