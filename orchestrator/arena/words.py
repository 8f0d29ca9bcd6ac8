"""The arena's result in sentences and cells, the bad news included."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from orchestrator.arena.analysis import Analysis, Gain, Lacking, standing
from orchestrator.arena.comparison import FIXED, Reached, Task
from orchestrator.arena.statistics import Interval, Mean, Paired
from orchestrator.arena.tasks import TASKS

MEANS = {"ahead": "both intervals above 0", "level": "an interval across 0", "behind": "both intervals below 0"}
UNKNOWN = "too few seeds to tell"
ADVISED = 8


@dataclass(frozen=True, kw_only=True)
class Lead:
    """A task's row of the first table."""

    task: str
    what: str
    fixed: str
    default: str
    static: str
    verdict: str


def leads(analysis: Analysis) -> list[Lead]:
    """For each task how fixed equal weights, the default and the best static weights did."""
    return [_lead(task, next((g for g in analysis.gains if g.task == task.name), None)) for task in analysis.tasks]


def _lead(task: Task, gain: Gain | None) -> Lead:
    static = task.baselines.get("static")
    over_fixed = task.row(static.entry).gain if static is not None and static.entry is not None else None
    itself = "fixed weights themselves" if static is not None and static.entry == FIXED else "–"
    sides = (
        [("fixed", standing(gain.fixed)), ("best static", standing(gain.static))] if gain is not None else []
    )  # the default did not run everywhere
    return Lead(
        task=task.name,
        what=TASKS[task.name].what if task.name in TASKS else "",
        fixed=mean_words(task.row(FIXED).hypervolume) if FIXED in task.entries else "–",
        default=with_seeds(gain.fixed) if gain is not None and gain.fixed is not None else "–",
        static=with_seeds(over_fixed) if over_fixed is not None else itself,
        verdict="; ".join(f"against {side}: {stands or UNKNOWN}" for side, stands in sides)
        or "the default did not run",
    )


def advice(analysis: Analysis) -> list[str]:
    """How the default, and other rules with enough seeds on every task, stand against fixed equal weights."""
    lines = []
    if analysis.default is not None and analysis.gains:
        told = ((gain.task, standing(gain.fixed), _figures(gain.fixed)) for gain in analysis.gains)
        lines.append(f"The default, {analysis.default}, against fixed equal weights: {standings(told)}.")
    everywhere = []
    for row in analysis.tasks[0].rows:
        name = row.entry.name
        if row.entry.static or name == analysis.default or not all(name in task.entries for task in analysis.tasks):
            continue
        stands = {task.name: standing(task.row(name).gain) for task in analysis.tasks}
        if all(stands.values()):
            everywhere.append((name, stands))
    score = {"ahead": 1, "level": 0, "behind": -1}
    everywhere.sort(key=lambda found: -sum(score[stand or "level"] for stand in found[1].values()))
    for name, stands in everywhere[:ADVISED]:
        groups = {s: [task for task, stand in stands.items() if stand == s] for s in score}
        lines.append(f"{name}: " + "; ".join(f"{s} on {listed(tasks)}" for s, tasks in groups.items() if tasks) + ".")
    return lines


def story(analysis: Analysis) -> list[str]:
    """What was run, how the default did, which targets it met, and why not the others."""
    results = analysis.results
    names = {run.entry: run.role for run in results.done}
    weightings = sum(role == "static" for role in names.values())
    seeds = sorted({len(entry.runs) for task in analysis.tasks for entry in task.entries.values()})
    counted = counted_words(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    lines = [
        f"{counted_words(len(results.done), 'finished run')} of {counted_words(len(names) - weightings, 'rule')} and "
        f"{counted_words(weightings, 'static weighting')}, with {counted} each, on "
        f"{listed([task.name for task in analysis.tasks])}; {len(results.failed)} failed."
    ]
    if analysis.default is None:
        return [*lines, f"There is no default to judge: {analysis.default_is}."]
    lines.append(f"The default that is judged here: {analysis.default} ({analysis.default_is}).")
    static = standings((gain.task, standing(gain.static), _figures(gain.static)) for gain in analysis.gains)
    lines.append(f"Its test hypervolume against that of the best static weights: {static}.")
    against = ((gain.task, gain.against_published, _published_figures(gain)) for gain in analysis.gains)
    published = standings(against, unknown="too few seeds or rules to tell")
    lines.append(f"Against that of the best published rule other than itself: {published}.")
    verdicts = {True: "met", False: "missed", None: "open"}
    lines += [f"Target {verdicts[target.met]}: {target.name} ({target.words})." for target in analysis.targets]
    return [*lines, *_why(analysis)]


def standings(told: Iterable[tuple[str, str | None, str]], unknown: str = UNKNOWN) -> str:
    """`behind on A (...) and B (...), both intervals below 0; ahead on C (...), ...`, from tasks, standings, and
    figures for each."""
    groups: dict[str | None, list[str]] = {"ahead": [], "level": [], "behind": [], None: []}
    for task, stands, figures in told:
        groups[stands].append(f"{task} ({figures})")
    parts = [f"{s} on {listed(groups[s])}, {meaning}" for s, meaning in MEANS.items() if groups[s]]
    return "; ".join([*parts, *([f"{unknown} on {listed(groups[None])}"] if groups[None] else [])])


def _figures(difference: Paired | None) -> str:
    return with_seeds(difference) if difference else "not run with it"


def _published_figures(gain: Gain) -> str:
    rival = "" if gain.rival is None else f"{gain.rival}, the best of {gain.pool[0]} of {gain.pool[1]}, "
    return rival + _figures(gain.published)


def with_seeds(difference: Paired) -> str:
    """Mean, bootstrap interval, seeds; and the t interval where it alone is across 0."""
    count = len(difference.seeds) + len(difference.dropped)
    seeds = (
        f"{len(difference.seeds)} of {count} seeds"
        if difference.dropped
        else counted_words(len(difference.seeds), "seed")
    )
    text = f"{difference.mean:+.3f}"
    if difference.interval is not None:
        text += f" {ends(difference.interval)}"
    if difference.t_interval is not None and _across(difference.t_interval) and not _across(difference.interval):
        text += f", t {ends(difference.t_interval)}"
    return f"{text}, {seeds}"


def _across(interval: Interval | None) -> bool:
    return interval is not None and interval[0] <= 0 <= interval[1]


def counted_words(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _why(analysis: Analysis) -> list[str]:
    """What stands in the way of beating the best static weights, as far as figures tell it."""
    missed = [g for g in analysis.gains if g.static and standing(g.static) in ("level", "behind")]
    if not missed:
        return []
    lines = []
    for gain in missed:
        assert gain.static is not None
        task = next(task for task in analysis.tasks if task.name == gain.task)
        error, grid = task.standard_error, sum(entry.static for entry in task.entries.values())
        chosen_on = task.baselines["static"].chosen_on
        size = f"; one run's standard error from its test prompts is {error:.3f}" if error is not None else ""
        lines.append(
            f"Why not on {gain.task}: the best static weights were chosen in hindsight from {grid} weightings, by "
            f"their validation over seed{'s' * (len(chosen_on) > 1)} {seeds_list(chosen_on)}, which takes {grid} times "
            f"the budget of the default's one run; the difference to them is {gain.static.mean:+.3f}{size}."
        )
    return [*lines, _best_at_last(analysis.tasks)]


def _best_at_last(tasks: Iterable[Task]) -> str:
    """On which tasks a longer budget might say otherwise."""
    told, rising = [], []
    for task in tasks:
        runs = [run for entry in task.entries.values() for run in entry.runs.values()]
        best = sum(run.best_at_last for run in runs)
        told.append(f"{best} of {len(runs)} runs on {task.name}")
        if best > len(runs) / 2:
            rising.append(task.name)
    text = f"The last policy that was evaluated is the best of its run, by its own volume, in {listed(told)}"
    if not rising:
        return f"{text}."
    what = f"{listed(rising)} {'counts' if len(rising) == 1 else 'count'}"
    return f"{text}: within this budget, {what} how fast is learned more than where the weights would settle."


def lost(task: Task) -> list[str]:
    """Rules whose mean is below fixed equal weights, the significant ones marked."""
    lines = []
    for row in sorted(task.rows, key=lambda row: row.gain.mean if row.gain is not None else 0.0):
        if row.entry.static or row.gain is None or row.gain.mean >= 0:
            continue
        sure = "significantly" if row.significant("fixed") else "not significantly" if row.gain.enough else UNKNOWN
        lines.append(f"{row.entry.name}: {difference_words(row.gain)}, {sure}")
    return lines


def lacking_words(lacking: Lacking) -> tuple[str, str, str]:
    """Task, entries, seeds: a row of the table of runs that are not there."""
    count = len(lacking.entries)
    names = ", ".join(lacking.entries)
    return lacking.task, names if count == 1 else f"{count} entries: {names}", seeds_list(lacking.seeds) or "all"


# Cells --------------------------------------------------------------------------------------------------------------


def ends(interval: Interval, signed: bool = True) -> str:
    return "[{:+.3f}, {:+.3f}]".format(*interval) if signed else "[{:.3f}, {:.3f}]".format(*interval)


def mean_words(mean: Mean | None, digits: int = 3, interval: bool = False) -> str:
    if mean is None:
        return "–"
    return f"{mean.mean:.{digits}f}" + (f" {ends(mean.interval, signed=False)}" if interval and mean.interval else "")


def difference_words(difference: Paired | None) -> str:
    if difference is None:
        return "–"
    return f"{difference.mean:+.3f} {spread(difference)}"


def spread(difference: Paired) -> str:
    """The interval, and of how many seeds where one side lacks some."""
    count = len(difference.seeds) + len(difference.dropped)
    of = f" ({len(difference.seeds)} of {count} seeds)" if difference.dropped else ""
    if difference.interval is None:
        return of.strip() or "(1 seed)"
    return ends(difference.interval) + of


def steps_words(reached: Reached | None) -> str:
    """The median, or where half of the runs never got there, that it is later than all of them."""
    if reached is None:
        return "–"
    told = "not reached" if reached.steps is None else f"{reached.steps:g}"
    return f"{told} ({reached.reached} of {reached.of})"


def time_words(reached: Reached | None) -> str:
    return "–" if reached is None or reached.time is None else f"{reached.time:.2f}"


def seeds_list(seeds: Iterable[int]) -> str:
    """`0-2, 5`."""
    ranges: list[list[int]] = []
    for seed in sorted(seeds):
        if ranges and seed == ranges[-1][-1] + 1:
            ranges[-1].append(seed)
        else:
            ranges.append([seed])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in ranges)


def cell(text: object) -> str:
    """Text that stays in its cell of a Markdown table and is no HTML."""
    flat = " ".join(str(text).split())
    for sign, written in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "\\`"), ("](", "]\\(")):
        flat = flat.replace(sign, written)
    return flat


FILTERS: dict[str, Callable[..., str]] = {
    "mean": mean_words,
    "difference": difference_words,
    "cell": cell,
    "seeds": seeds_list,
    "steps": steps_words,
    "time": time_words,
    "signed": "{:+.3f}".format,
    "ends": ends,
    "interval": lambda interval: "" if interval is None else ends(interval, signed=False),
}
