"""The arena's report: one HTML page that needs neither network nor script, and the same as Markdown."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import jinja2

from orchestrator.arena.analysis import SEEDS_FOR_NOBODY, Analysis, analyse, summary
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
from orchestrator.arena.comparison import FIXED, MOST, Task
from orchestrator.arena.files import replace_file
from orchestrator.arena.plan import plan
from orchestrator.arena.protocol import PRESETS
from orchestrator.arena.results import Run, read_results
from orchestrator.arena.statistics import ENOUGH_SEEDS
from orchestrator.arena.words import FILTERS, advice, lacking_words, leads, lost, story

Json = dict[str, Any]

PROTOCOL = (
    "Every run of a task has the same prompts by seed, the same number of rollouts and the same learning rate; a "
    "rule has its documented defaults. Runs of other conditions than most of their task (steps, prompts, evaluations, "
    "version of the protocol) are left out and listed.",
    "Checkpoints are chosen on validation prompts; the figures are those of the test prompts. A run's hypervolume "
    "is that of its test front: values normalised by the declared ranges, clipped, measured from the declared "
    "references, as a share of the box above them.",
    "Standard error: what a run's test hypervolume is off by from its test prompts alone. A difference of two runs on "
    "the same prompts is off by less than the two together, and that of several seeds by less again.",
    "What noise adds: of several tested points the luckier make the front, so that its volume is too high, for some "
    "entries more than for others. How much is estimated by adding as much noise again, each point's by itself; the "
    "entries with the least and the most of it are told.",
    "Area: mean validation hypervolume over the steps, a step having what the last evaluation found. Worst: the "
    "lowest normalised objective, on test, at the step that the preference chooses on validation.",
    "Steps and time to static: the first evaluation at which a run's validation hypervolume reaches what the best "
    "static weights had at the end with the same seed, and the training time until then, as a share of that of all "
    f"steps of {FIXED} with the same seed. A run that ends before is censored: the median over seeds is told where it "
    "is known, and how many got there.",
    "Outcome calibration: cosine between the preference and the normalised improvement. Weight calibration: 1 "
    "minus the total variation distance of the mean applied weights from the preference.",
    "Differences are paired by seed; a seed that one side lacks is dropped, and it is told of how many seeds a "
    "difference is. Intervals are 95 % bootstrap intervals of the mean (percentile, 10,000 resamples): with 5 seeds "
    "they are too narrow, covering about 83 %, so whatever is decided is decided with a t interval beside it. Ahead: "
    "both are above 0; behind: both are below 0; level: one or both are across 0.",
    f"Entries are ranked by the gain over {FIXED} with the same seeds. Those with fewer than {ENOUGH_SEEDS} seeds in "
    "common with it stand after the others and are not ranked. The column hypervolume is over an entry's own seeds: "
    "two of its values are no comparison.",
    "Marks * are paired t tests after Holm's correction over all entries that are compared with the same baseline over "
    f"at least {ENOUGH_SEEDS} seeds: with fewer nothing can be significant, and each would only weaken the others. "
    f"Beaten by nobody counts where the default has {SEEDS_FOR_NOBODY} seeds, and {MOST:.0%} of the other entries "
    f"{ENOUGH_SEEDS} in common with it.",
    "The best static weights and the best published rule are chosen by mean validation hypervolume, over all "
    "estimators and weights, on the seeds that at least three quarters of them have; the default is no candidate for "
    "the published rule. On the seeds that the choice saw it flatters them: each task says which these were. Where a "
    "choice that never saw the seed it is compared on would be another, that one has a column of its own. Where fewer "
    f"than {MOST:.0%} of the published rules have seeds enough to be chosen, being ahead of the best of these few, or "
    "level with it, says nothing of the others, and is not called so.",
    "Two entries of our own were picked by some of these runs, which flatters them there: softmin/dara by seeds 0 and "
    "1 of sums3 and sums5, softmin/hv_gradient by seeds 3 and 4 of sums3 and sums5 and seeds 0 and 1 of sums4.",
    "grpo sums the rewards in their own units, as published: on sums5, where one has a range of 64 and others of 1 or "
    "less, that one decides, and a difference to grpo is one of units.",
    f"Overhead: median step, generation to weights without evaluation, over that of {FIXED} with the same seed. A rule "
    "that makes longer completions pays for them. Compute per unit of generation: the seconds of rolling out, weighing "
    f"and learning over those of rolling out alone, over the same of {FIXED}: what the rule itself costs, however long "
    "its completions are. Times are compared where the two runs had the same kind of processor and as many runs beside "
    "them, and are noisy even so: a target is open while the interval has its limit in it.",
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
    environment.filters |= FILTERS
    return environment


def _context(analysis: Analysis) -> Json:
    done = analysis.results.done
    return {
        "analysis": analysis,
        "protocol": [*PROTOCOL, *_tested_in_part(analysis.tasks)],
        "claims_rule": RULE,
        "conditions": _conditions(done),
        "tested": sorted({point.prompts for run in done for point in run.test if point.prompts}),
        "leads": leads(analysis),
        "advice": advice(analysis),
        "story": story(analysis),
        "lost": {task.name: lost(task) for task in analysis.tasks},
        "lacking": [lacking_words(one) for one in analysis.lacking],
        "grid": {task.name: sum(entry.static for entry in task.entries.values()) for task in analysis.tasks},
        "hours": _hours_of_all(done),
        "dates": (min(run.started for run in done)[:10], max(run.started for run in done)[:10]),
    }


def _tested_in_part(tasks: list[Task]) -> list[str]:
    """Where fronts were tested in part."""
    runs = [run for task in tasks for entry in task.entries.values() for run in entry.runs.values()]
    partly = sum(run.untested > 0 for run in runs)
    if not partly:
        return []
    return [
        f"In {partly} of {len(runs)} runs validation kept more points on the front than were tested (those that cover "
        "most together, `test_points`), which takes from their test hypervolumes. They are no lower bounds: noise adds."
    ]


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


def _hours_of_all(done: list[Run]) -> int | None:
    """Of the full preset and the held-out task, as many runs side by side as most of these had."""
    preset = PRESETS["full"]
    planned = len(plan(preset)) + len(plan(preset, held_out=True))
    totals = [run.seconds["total"] for run in done if "total" in run.seconds]
    if not totals:
        return None
    return math.ceil(planned * median(totals) / median(run.workers for run in done) / 3600)


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
