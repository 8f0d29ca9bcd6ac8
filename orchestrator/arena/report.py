"""The arena's report: one HTML page that needs neither network nor script, and the same as Markdown."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import jinja2

from orchestrator.arena.analysis import Analysis, analyse, summary
from orchestrator.arena.charts import (
    Figure,
    attainment_figures,
    cost_figure,
    gain_figure,
    hypervolume_figure,
    shown_entries,
    weight_figures,
)
from orchestrator.arena.claims import RULE
from orchestrator.arena.comparison import Reached, Task
from orchestrator.arena.files import replace_file
from orchestrator.arena.plan import plan
from orchestrator.arena.protocol import PRESETS
from orchestrator.arena.results import Run, read_results
from orchestrator.arena.statistics import Interval, Mean, Paired

Json = dict[str, Any]

PROTOCOL = (
    "Every run of a task has the same prompts by seed, the same number of rollouts and the same learning rate; a "
    "rule has its documented defaults.",
    "Checkpoints are chosen on validation prompts; the figures are those of the test prompts. A run's hypervolume "
    "is that of its test front: values normalised by the declared ranges, clipped, measured from the declared "
    "references, as a share of the box above them.",
    "Standard error: what a run's test hypervolume is off by from its test prompts alone. A difference of two runs on "
    "the same prompts is off by less than the two together, and that of several seeds by less again.",
    "Area: mean validation hypervolume over the steps, a step having what the last evaluation found. Worst: the "
    "lowest normalised objective, on test, at the step that the preference chooses on validation.",
    "Steps to static: the first evaluation at which a run's validation hypervolume reaches what the best static "
    "weights had at the end with the same seed. A run that ends before is censored: the median over seeds is told "
    "where it is known, and how many got there.",
    "Outcome calibration: cosine between the preference and the normalised improvement. Weight calibration: 1 "
    "minus the total variation distance of the mean applied weights from the preference.",
    "Differences are paired by seed; a seed that one side lacks is dropped, and told. Intervals are 95 % "
    "bootstrap intervals of the mean (percentile, 10,000 resamples): with 5 seeds they are too narrow, covering "
    "about 83 %, so t intervals stand beside those that decide something. Marks * are paired t tests after "
    "Holm's correction over all entries that are compared with the same baseline.",
    "The best static weights and the best published rule are chosen by mean validation hypervolume, over all "
    "estimators and weights. The choice saw the same seeds, which flatters it; beside it stands one that never "
    "saw the seed it is compared on, where the other seeds have most of the grid.",
    "grpo sums the rewards in their own units, as published: on sums5, where one has a range of 64 and others of 1 or "
    "less, that one decides, and a difference to grpo is one of units.",
    "Overhead: median step, generation to weights without evaluation, over that of gdpo/fixed with the same seed, "
    "where as many runs went side by side. They disturb each other, and a rule that makes longer completions pays for "
    "them. At equal rollouts: rolling out, weighing and learning in units of rolling out, over the same of gdpo/fixed: "
    "what the rule itself costs.",
)


def write_report(runs: Path, html: Path | None, markdown: Path | None, default: str | None = None) -> Json:
    """Read the runs, write the report where asked for, and return its figures.

    `default`: the entry whose gains are told; see `analysis.analyse`. `ValueError` names what does not fit.
    """
    analysis = analyse(read_results(runs), default)
    for path, text in ((html, render_html), (markdown, render_markdown)):
        if path is not None:
            replace_file(path, text(analysis))
    return summary(analysis)


def render_html(analysis: Analysis) -> str:
    figures = {task.name: _figures(task, analysis.default) for task in analysis.tasks}
    return _environment(escape=True).get_template("arena.html.j2").render(**_context(analysis), figures=figures)


def render_markdown(analysis: Analysis) -> str:
    return _environment(escape=False).get_template("arena.md.j2").render(**_context(analysis))


def _environment(*, escape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("orchestrator"), autoescape=escape, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "mean": _mean, "difference": _difference, "spread": _spread, "cell": _cell, "seeds": _seeds, "steps": _steps,
        "seconds": _seconds, "signed": "{:+.3f}".format, "ends": _interval,
        "interval": lambda interval: "" if interval is None else _interval(interval, signed=False),
    }  # fmt: skip
    return environment


def _context(analysis: Analysis) -> Json:
    done = analysis.results.done
    return {
        "analysis": analysis,
        "protocol": PROTOCOL,
        "claims_rule": RULE,
        "conditions": _conditions(done),
        "tested": sorted({point.prompts for run in done for point in run.test if point.prompts}),
        "story": _story(analysis),
        "lost": {task.name: _lost(task) for task in analysis.tasks},
        "hours": _hours_of_all(done),
        "dates": (min(run.started for run in done)[:10], max(run.started for run in done)[:10]),
    }


def _figures(task: Task, default: str | None) -> dict[str, list[Figure]]:
    colours = shown_entries(task, default)
    compared = [default, *(b.entry for key in ("static", "fixed") if (b := task.baselines.get(key)))]
    adaptive = [row.entry.name for row in task.rows if row.entry.role in ("strategy", "auto")]
    pictures = (gain_figure(task, colours), hypervolume_figure(task, colours), cost_figure(task, colours))
    return {
        "overview": [picture for picture in pictures if picture],
        "fronts": attainment_figures(task, colours, [name for name in compared if name is not None][:2]),
        "weights": weight_figures(task, adaptive),
    }


# Words --------------------------------------------------------------------------------------------------------------


def _story(analysis: Analysis) -> list[str]:
    """The result in sentences, the bad news included."""
    results = analysis.results
    lines = [
        f"{len(results.done)} finished runs of {len({run.entry for run in results.done})} entries on "
        f"{', '.join(task.name for task in analysis.tasks)}; {len(results.failed)} failed."
    ]
    if analysis.default is None:
        return [*lines, f"There is no default to judge: {analysis.default_is}."]
    lines.append(f"The default that is judged here: {analysis.default} ({analysis.default_is}).")
    other = "other " if any(gain.itself_published for gain in analysis.gains) else ""
    for gain in analysis.gains:
        sides = (
            ("the best static weights", gain.static),
            (f"the best {other}published rule, {gain.rival}", gain.published),
        )
        parts = [f"{words}: {_difference(difference)}" for words, difference in sides if difference is not None]
        lines.append(f"{gain.task}: test hypervolume against {'; against '.join(parts) or 'nothing that was run'}.")
    verdicts = {True: "met", False: "missed", None: "open"}
    lines += [f"Target {verdicts[target.met]}: {target.name} ({target.words})." for target in analysis.targets]
    return [*lines, *_why(analysis)]


def _why(analysis: Analysis) -> list[str]:
    """What stands in the way of beating the best static weights, as far as figures tell it."""
    missed = [g for g in analysis.gains if g.static and g.static.interval and g.static.interval[0] <= 0]
    if not missed:
        return []
    lines = []
    for gain in missed:
        assert gain.static is not None
        task = next(task for task in analysis.tasks if task.name == gain.task)
        error, grid = task.standard_error, sum(entry.static for entry in task.entries.values())
        size = f", where one run's standard error is {error:.3f}" if error is not None else ""
        lines.append(
            f"Why not on {gain.task}: {gain.static.mean:+.3f} against what is best, in hindsight, of {grid} static "
            f"weights{size}."
        )
    runs = [run for task in analysis.tasks for entry in task.entries.values() for run in entry.runs.values()]
    rising = sum(len(run.curve) > 1 and run.curve[-1][1] > run.curve[-2][1] for run in runs)
    lines.append(
        f"In {rising} of {len(runs)} runs hypervolume still rose at the last evaluation: within this budget it counts "
        "how fast an objective is learned more than where the weights would settle."
    )
    return lines


def _hours_of_all(done: list[Run]) -> int | None:
    """Of the full preset and the held-out task, as many runs side by side as most of these had."""
    preset = PRESETS["full"]
    planned = len(plan(preset)) + len(plan(preset, held_out=True))
    totals = [run.seconds["total"] for run in done if "total" in run.seconds]
    if not totals:
        return None
    return math.ceil(planned * median(totals) / median(run.workers for run in done) / 3600)


def _lost(task: Task) -> list[str]:
    """Rules whose mean is below fixed equal weights, the significant ones marked."""
    lines = []
    for row in reversed(task.rows):
        difference = row.against.get("fixed")
        if row.entry.static or difference is None or difference.mean >= 0:
            continue
        sure = "significantly" if row.significant("fixed") else "not significantly"
        lines.append(f"{row.entry.name}: {_difference(difference)}, {sure}")
    return lines


def _conditions(done: list[Run]) -> list[tuple[str, str]]:
    """Hardware, versions and side-by-side runs, each with how many runs had them where they differ."""

    def told(values: list[str]) -> str:
        counts = Counter(values).most_common()
        return counts[0][0] if len(counts) == 1 else "; ".join(f"{value} ({n} runs)" for value, n in counts)

    def pairs(document: Json) -> str:
        return ", ".join(f"{key} {value}" for key, value in document.items() if key != "date") or "not told"

    return [
        ("machine", told([pairs(run.machine) for run in done])),
        ("versions", told([pairs(run.versions) for run in done])),
        ("Equipoise", told([pairs(run.code) for run in done])),
        ("runs side by side", told([str(run.workers) for run in done])),
        ("steps of a run", told([str(run.steps) for run in done])),
    ]


def _interval(interval: Interval, signed: bool = True) -> str:
    return "[{:+.3f}, {:+.3f}]".format(*interval) if signed else "[{:.3f}, {:.3f}]".format(*interval)


def _mean(mean: Mean | None, digits: int = 3, interval: bool = False) -> str:
    if mean is None:
        return "–"
    return f"{mean.mean:.{digits}f}" + (
        f" {_interval(mean.interval, signed=False)}" if interval and mean.interval else ""
    )


def _difference(difference: Paired | None) -> str:
    if difference is None:
        return "–"
    return f"{difference.mean:+.3f} {_spread(difference)}"


def _spread(difference: Paired) -> str:
    """The interval, and the seeds that are not in it."""
    dropped = f", without seed {_seeds(difference.dropped)}" if difference.dropped else ""
    interval = "(1 seed)" if difference.interval is None else _interval(difference.interval)
    return interval + dropped


def _steps(reached: Reached | None) -> str:
    """The median, or where half of the runs never got there, that it is later than all of them."""
    if reached is None:
        return "–"
    told = "not reached" if reached.steps is None else f"{reached.steps:g}"
    return f"{told} ({reached.reached} of {reached.of})"


def _seconds(reached: Reached | None) -> str:
    return "–" if reached is None or reached.seconds is None else f"{reached.seconds:.0f}"


def _seeds(seeds: tuple[int, ...] | list[int]) -> str:
    return ", ".join(map(str, seeds))


def _cell(text: object) -> str:
    """Text that stays in its cell of a Markdown table and is no HTML."""
    flat = " ".join(str(text).split())
    for sign, written in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "\\`"), ("](", "]\\(")):
        flat = flat.replace(sign, written)
    return flat
