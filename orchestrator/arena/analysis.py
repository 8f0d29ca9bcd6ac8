"""From runs to conclusions: the default's gains, the targets, and the claims, over all tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.arena.claims import CLAIMS, Judged, judge
from orchestrator.arena.comparison import (
    MOST,
    Entry,
    Row,
    Task,
    beaten_by,
    comparable,
    compare,
    entries_of,
    rivals,
)
from orchestrator.arena.protocol import rule_version
from orchestrator.arena.results import Results, Run
from orchestrator.arena.statistics import ENOUGH_SEEDS, Interval, Mean, Paired
from orchestrator.arena.tasks import TASKS
from orchestrator.spec import JobSpec

HELD_OUT = "held_out"
TASKS_ASKED = len(TASKS)
MAX_OVERHEAD = 1.05
SHIPPED = (
    "what a job gets that names no rule; it became that once every task had been run, held_out too, so that none of "
    "them confirms the choice"
)
SEEDS_FOR_NOBODY = 5  # for "beaten by nobody" to say anything
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The default on one task. `rival`: the best published rule other than the default itself, of `pool`: those that
    could be chosen, and all that ran."""

    task: str
    fixed: Paired | None
    static: Paired | None
    static_unseen: Paired | None
    published: Paired | None
    rival: str | None
    pool: tuple[int, int]
    beaten_by: list[str]
    rivals: dict[str, Paired]  # of other entries to it, where they share seeds enough for a test
    others: int  # entries beside it
    overhead: Mean | None
    overhead_equal: Mean | None

    @property
    def against_published(self) -> str | None:
        """As `standing`, but where most published rules could not be chosen, `behind` alone can be told."""
        stands = standing(self.published)
        few = self.pool[0] < MOST * self.pool[1]
        return None if few and stands != "behind" else stands


@dataclass(frozen=True, kw_only=True)
class Target:
    """What was aimed for; `met` is None where it cannot be told yet, and `words` say why."""

    name: str
    met: bool | None
    words: str


@dataclass(frozen=True, kw_only=True)
class Lacking:
    """Runs that others of the task have. `seeds` is empty where an entry of another task has none at all."""

    task: str
    entries: list[str]
    seeds: list[int]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """All that the report says."""

    results: Results
    tasks: list[Task]
    default: str | None
    default_is: str
    gains: list[Gain]
    targets: list[Target]
    claims: list[Judged]
    missing: list[str]
    lacking: list[Lacking]


def analyse(results: Results, default: str | None = None) -> Analysis:
    """Compare what was run. `default`: the entry whose gains are told; without it the rules of a job that names none,
    if they ran; else our own with the best validation hypervolume over the tasks that may be tuned on, else the
    published rule with the best."""
    if not results.done:
        reasons = "; ".join(f"{run.entry}: {run.reason}" for run in results.failed[:3])
        raise ValueError(f"no run has finished, so there is nothing to compare ({reasons or 'no runs'})")
    runs: dict[str, list[Run]] = {}
    for run in results.done:
        runs.setdefault(run.task, []).append(run)
    entries = {name: entries_of(runs[name]) for name in sorted(runs, key=_order)}
    everybody = {name for found in entries.values() for name in found}
    if default is not None and default not in everybody:
        raise ValueError(f"no finished run of entry {default!r}; there are {', '.join(sorted(everybody))}")
    chosen, why = (default, "as asked for") if default else _default(entries)
    tasks = [compare(name, runs[name], chosen) for name in entries]
    gains = [_gain(task, chosen) for task in tasks if chosen in task.entries] if chosen else []
    return Analysis(
        results=results,
        tasks=tasks,
        default=chosen,
        default_is=why,
        gains=gains,
        targets=_targets(gains),
        claims=[judge(claim, tasks) for claim in CLAIMS],
        missing=[*_older_rules(results.done), *_missing(tasks)],
        lacking=_lacking(tasks),
    )


def _order(task: str) -> tuple[bool, str]:
    return task == HELD_OUT, task


def shipped() -> str:
    """The entry that runs what a job gets that names no rule."""
    return "/".join(JobSpec.model_fields[field].default.name for field in ("estimator", "weighting"))


def _default(tasks: Mapping[str, Mapping[str, Entry]]) -> tuple[str | None, str]:
    """The entry, and why it is that one. `tasks`: entries by name, by task."""
    if any(shipped() in found for found in tasks.values()):
        return shipped(), SHIPPED
    ours = {entry.name for found in tasks.values() for entry in found.values() if entry.role == "auto"}
    if len(ours) == 1:
        return ours.pop(), "our own rule"
    tuned = [list(found.values()) for name, found in tasks.items() if name != HELD_OUT] or [
        list(found.values()) for found in tasks.values()
    ]
    if ours and (chosen := _best_everywhere(tuned, lambda entry: entry.role == "auto")):
        lost = ", ".join(sorted(ours - {chosen}))
        return chosen, f"of our own rules the one that is best on validation, before {lost}"
    why = (
        "the published rule that is best on validation, as no rule of our own ran on every task; "
        "being picked from these runs flatters its gains, but for those of the held-out task"
    )
    chosen = _best_everywhere(tuned, lambda entry: entry.published)
    return (chosen, why) if chosen else (None, "no published rule has run on every task")


def _best_everywhere(tasks: Iterable[Iterable[Entry]], may: Callable[[Entry], bool]) -> str | None:
    """The entry that loses least to the best on each task, by mean validation hypervolume; among comparable ones."""
    shares = []
    for found in tasks:
        entries, seeds = comparable(entry for entry in found if may(entry))
        levels = {entry.name: entry.validation_mean(seeds) for entry in entries}
        most = max(levels.values(), default=1.0)
        shares.append({name: level / most if most else 1.0 for name, level in levels.items()})
    everywhere = set.intersection(*map(set, shares))
    return max(sorted(everywhere), key=lambda name: float(np.mean([found[name] for found in shares])), default=None)


def _gain(task: Task, default: str) -> Gain:
    row, rival = task.row(default), task.baselines.get("published")
    return Gain(
        task=task.name,
        fixed=row.gain,
        static=row.against.get("static"),
        static_unseen=row.against.get("static_unseen"),
        published=row.against.get("published"),
        rival=rival.entry if rival else None,
        pool=(rival.among, rival.of) if rival else (0, 0),
        beaten_by=beaten_by(task, default),
        rivals=rivals(task, default),
        others=len(task.entries) - 1,
        overhead=row.figures["overhead"],
        overhead_equal=row.figures["overhead_equal"],
    )


def _targets(gains: list[Gain]) -> list[Target]:
    """Missed on one task is missed; met only once every task has been run with enough seeds for an interval."""
    stands = {gain.task: standing(gain.static) for gain in gains}
    beaten = {g.task: True if g.beaten_by else False if _enough(g) else None for g in gains}
    equal = {gain.task: gain.overhead_equal for gain in gains}
    clock = {gain.task: gain.overhead for gain in gains}
    return [
        Target(
            name="the default beats the best static weights, both intervals above 0, on every task",
            met=_all({task: None if stand is None else stand == "ahead" for task, stand in stands.items()}),
            words=_by_task(stands),
        ),
        Target(
            name="the default is not significantly beaten by any rule on any task",
            met=_all({task: None if lost is None else not lost for task, lost in beaten.items()}),
            words=_by_task({gain.task: _beaten_words(gain) for gain in gains}),
        ),
        *(
            Target(
                name=f"a step of the default takes at most {MAX_OVERHEAD} times that of fixed weights, {how}",
                met=_all({task: _cheap(cost) for task, cost in costs.items()}),
                words=_by_task({task: _cost_words(cost) for task, cost in costs.items()}),
            )
            for how, costs in (("in compute per unit of generation", equal), ("as the clock saw it", clock))
        ),
    ]


def _cheap(cost: Mean | None) -> bool | None:
    """None where the interval has the limit in it."""
    if cost is None or cost.interval is None or cost.interval[0] <= MAX_OVERHEAD < cost.interval[1]:
        return None
    return cost.mean <= MAX_OVERHEAD


def _cost_words(cost: Mean | None) -> str | None:
    if cost is None or cost.interval is None:
        return None
    low, high = cost.interval
    return f"{cost.mean:.3f} [{low:.3f}, {high:.3f}], {len(cost.seeds)} seeds"


def standing(difference: Paired | None) -> str | None:
    """`ahead` or `behind` where bootstrap and t interval are both on that side of 0, else `level`; None where there are
    too few seeds to tell. With 3 seeds the bootstrap interval alone would have every fourth of equal rules ahead or
    behind."""
    if difference is None or not difference.enough:
        return None
    return "ahead" if difference.above else "behind" if difference.below else "level"


def _enough(gain: Gain) -> bool:
    """Whether being beaten by nobody says anything: most entries can be tested, and the default has seeds enough."""
    seeds = len(gain.static.seeds) if gain.static is not None else 0
    return seeds >= SEEDS_FOR_NOBODY and len(gain.rivals) >= MOST * gain.others


def _beaten_words(gain: Gain) -> str | None:
    """The uncorrected cases too: with few seeds and many entries the correction leaves next to nothing."""
    if not gain.rivals:
        return None
    words = (
        f"beaten by {', '.join(gain.beaten_by) or 'nobody'} of the {len(gain.rivals)}, of {gain.others} others, that "
        f"have {ENOUGH_SEEDS} seeds in common with it"
    )
    if not gain.beaten_by and not _enough(gain):
        words += ", too few to tell"
    ahead = {name: d for name, d in gain.rivals.items() if d.above and name not in gain.beaten_by}
    if ahead:
        told = (f"{name} {d.mean:+.3f} ({len(d.seeds)} seeds)" for name, d in ahead.items())
        words += f", ahead before correcting for the number of comparisons: {', '.join(told)}"
    return words


def _all(held: dict[str, bool | None]) -> bool | None:
    if any(value is False for value in held.values()):
        return False
    return True if len(held) >= TASKS_ASKED and all(held.values()) else None


def _by_task(told: dict[str, str | None]) -> str:
    lacking = TASKS_ASKED - len(told)
    words = [f"{task}: {text or 'not known with these seeds'}" for task, text in told.items()]
    return "; ".join([*words, f"{lacking} of {TASKS_ASKED} tasks not run"] if lacking > 0 else words)


def _older_rules(runs: list[Run]) -> list[str]:
    """Entries whose rule does something else by now, so that the arena would make their runs again."""
    names = {run.entry for run in runs if run.rule_version < rule_version(run.estimator, run.weighting)}
    told = "made by an older version of the rule; a resumed arena makes its runs again"
    return [f"{name}: {told}" for name in sorted(names)]


def _missing(tasks: list[Task]) -> list[str]:
    """What a comparison can't rest on, beside the runs that are lacking."""
    lines = [line for task in tasks for line in _other_policies(task)]
    lines += [f"{t.name}: {len(t.seeds)} seeds, so intervals are wide" for t in tasks if 1 < len(t.seeds) < 5]
    lines += [f"{t.name}: one seed, so there are no intervals" for t in tasks if len(t.seeds) == 1]
    if HELD_OUT not in {task.name for task in tasks}:
        lines.append(f"{HELD_OUT}: not run")
    return lines


def _lacking(tasks: list[Task]) -> list[Lacking]:
    """Runs that are not there, entries that lack the same ones together."""
    everybody = {name for task in tasks for name in task.entries if "static(" not in name}
    found = []
    for task in tasks:
        groups: dict[tuple[int, ...], list[str]] = {}
        for name, seeds in task.missing.items():
            groups.setdefault(tuple(seeds), []).append(name)
        if absent := sorted(everybody - set(task.entries)):
            groups[()] = absent
        found += [Lacking(task=task.name, entries=sorted(groups[k]), seeds=list(k)) for k in sorted(groups)]
    return found


def _other_policies(task: Task) -> list[str]:
    """Runs of a seed whose first evaluation is not that of the others: training rounds otherwise on another processor,
    so that the same seed makes another policy."""
    lines = []
    for seed in task.seeds:
        runs = [(name, entry.runs[seed]) for name, entry in task.entries.items() if seed in entry.runs]
        starts = {name: tuple(f"{value:.6g}" for value in run.initial_K) for name, run in runs}
        usual, _ = Counter(starts.values()).most_common(1)[0]
        if others := sorted(name for name, start in starts.items() if start != usual):
            lines.append(
                f"{task.name} seed {seed}: the policy that {', '.join(others)} began with is not that of the others, "
                "as where they were made on another processor: their pairs say little"
            )
    return lines


# ------------------------------------------------------------------------------------------------------------ summary


def summary(analysis: Analysis) -> Json:
    """The figures that targets are stated in, as one JSON document."""
    return {
        "runs": len(analysis.results.done),
        "failed": len(analysis.results.failed),
        "seeds": max(len(task.seeds) for task in analysis.tasks),
        "seeds_by_task": {task.name: _seeds_of(task) for task in analysis.tasks},
        "rules": len(names := {name for task in analysis.tasks for name in task.entries}),
        "rules_without_grid": len({name for name in names if "/static(" not in name}),
        "tasks": [task.name for task in analysis.tasks],
        "default": analysis.default,
        "standard_error": {task.name: _rounded(task.standard_error) for task in analysis.tasks},
        "gain_tasks": [gain.task for gain in analysis.gains],
        "gain_static": [_mean(gain.static) for gain in analysis.gains],
        "gain_static_low": [_low(gain.static) for gain in analysis.gains],
        "gain_static_t_low": [
            _rounded(_first(gain.static.t_interval if gain.static else None)) for gain in analysis.gains
        ],
        "gain_static_unseen": [_mean(gain.static_unseen) for gain in analysis.gains],
        "gain_published": [_mean(gain.published) for gain in analysis.gains],
        "gain_published_low": [_low(gain.published) for gain in analysis.gains],
        "published": [gain.rival for gain in analysis.gains],
        "published_pool": [list(gain.pool) for gain in analysis.gains],
        "against_published": [gain.against_published for gain in analysis.gains],
        "targets": {target.name: target.met for target in analysis.targets},
        "claims": {f"{j.claim.source}: {j.claim.text}": j.verdict for j in analysis.claims},
        "claims_why": {f"{j.claim.source}: {j.claim.text}": j.why for j in analysis.claims},
        "by_rule": {task.name: {row.entry.name: _row(row) for row in task.rows} for task in analysis.tasks},
    }


def _seeds_of(task: Task) -> Json:
    """How many entries have how many seeds."""
    counts = Counter(len(entry.runs) for entry in task.entries.values())
    return {str(seeds): counts[seeds] for seeds in sorted(counts)}


def _row(row: Row) -> Json:
    overhead, equal, interval = row.figures["overhead"], row.figures["overhead_equal"], row.hypervolume.interval
    return {
        "hypervolume": _rounded(row.hypervolume.mean),
        "interval": None if interval is None else [_rounded(end) for end in interval],
        "seeds": len(row.hypervolume.seeds),
        "steps_to_static": row.reached.steps if row.reached else None,
        "time_to_static": _rounded(row.reached.time) if row.reached else None,
        "reached_static": [row.reached.reached, row.reached.of] if row.reached else None,
        "overhead": _rounded(overhead.mean) if overhead else None,
        "overhead_equal": _rounded(equal.mean) if equal else None,
    }


def _first(interval: Interval | None) -> float | None:
    return None if interval is None else interval[0]


def _mean(difference: Paired | None) -> float | None:
    return None if difference is None else _rounded(difference.mean)


def _low(difference: Paired | None) -> float | None:
    return None if difference is None else _rounded(_first(difference.interval))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
