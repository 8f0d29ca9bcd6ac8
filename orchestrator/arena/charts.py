"""The arena's pictures: gains by entry, hypervolume and weights over steps, fronts with attainment bands, cost."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.arena import svg
from orchestrator.arena.attainment import attainment_stairs
from orchestrator.arena.comparison import Entry, Row, Task
from orchestrator.arena.statistics import mean_over
from orchestrator.arena.svg import MUTED, Estimate, Series
from orchestrator.report import COLOURS

SHOWN = 6
ROWS = 20  # of the plot of gains


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart with its legend: (name, colour) pairs."""

    title: str
    svg: str
    legend: Sequence[tuple[str, str]]


def shown_entries(task: Task, default: str | None) -> dict[str, str]:
    """Colours of the entries that are told apart: the default, the baselines, and the best of the others."""
    wanted = [
        default,
        *(baseline.entry for baseline in task.baselines.values()),
        *(row.entry.name for row in task.rows),
    ]
    names = list(dict.fromkeys(name for name in wanted if name in task.entries))
    return dict(zip((name for name in names[:SHOWN] if name is not None), COLOURS, strict=False))


def gain_figure(task: Task, colours: Mapping[str, str]) -> Figure | None:
    """Gain in test hypervolume over fixed equal weights, in the order of the table: those with enough seeds first. Each
    seed is a faint dot."""
    fixed = task.baselines.get("fixed")
    found = [(row, gain) for row in task.rows if (gain := row.gain) is not None]
    if fixed is None or not found:
        return None
    rows = []
    for row, gain in found[:ROWS]:
        name = row.entry.name
        by_seed = {seed: row.entry.hypervolumes[seed] - fixed.hypervolumes[seed] for seed in gain.seeds}
        rows.append(
            Estimate(
                name=name if row.ranked else f"{name} (n={len(gain.seeds)})",
                colour=colours.get(name, MUTED),
                mean=gain.mean,
                interval=gain.interval,
                values=[(value, f"{name}, seed {seed}: {value:+.3f}") for seed, value in by_seed.items()],
            )
        )
    left = len(found) - len(rows)
    title = f"{task.name}: gain over fixed equal weights" + (f", the first {ROWS} of {len(found)}" if left else "")
    picture = svg.forest(title, rows, across="gain in test hypervolume; 95 % interval, and each seed")
    return Figure(title=title, svg=picture, legend=[])


def hypervolume_figure(task: Task, colours: Mapping[str, str]) -> Figure:
    """Validation hypervolume over steps: mean over seeds, every other entry faint; for the first two colours the
    interval as a band."""
    rest, told = [], []
    banded = list(colours)[:2]
    for row in task.rows:
        curve = _mean_curve(row.entry)
        line = [(step, mean) for step, mean, _, _ in curve]
        if row.entry.name not in colours:
            rest.append(Series(name=row.entry.name, colour=MUTED, line=line, faint=True))
            continue
        edge = [(step, high) for step, _, _, high in curve] + [(step, low) for step, _, low, _ in reversed(curve)]
        area = edge if row.entry.name in banded else []
        told.append(Series(name=row.entry.name, colour=colours[row.entry.name], line=line, area=area))
    title = f"{task.name}: hypervolume over steps (validation)"
    picture = svg.chart(title, [*rest, *told], across="step", up="hypervolume")
    return Figure(title=title, svg=picture, legend=_legend(colours, rest))


def _mean_curve(entry: Entry) -> list[tuple[int, float, float, float]]:
    """(step, mean, low, high) at the steps that all of an entry's runs evaluated."""
    curves = {seed: dict(run.curve) for seed, run in entry.runs.items()}
    points = []
    for step in sorted(set.intersection(*(set(curve) for curve in curves.values()))):
        found = mean_over({seed: curve[step] for seed, curve in curves.items()})
        assert found is not None  # an entry has a run
        low, high = found.interval or (found.mean, found.mean)
        points.append((step, found.mean, low, high))
    return points


def attainment_figures(task: Task, colours: Mapping[str, str], entries: Sequence[str]) -> list[Figure]:
    """For each pair of objectives the test fronts of a few entries: from what every seed attains to what any does."""
    figures = []
    names = [name for name in dict.fromkeys(entries) if name in colours]
    for across, up in itertools.combinations(range(len(task.objectives)), 2):
        series = []
        for name in names:
            runs = task.entries[name].runs.values()
            edges = attainment_stairs([run.front_NK for run in runs], across, up)
            if edges:
                area = [*edges["any"], *reversed(edges["every"])]
                series.append(Series(name=name, colour=colours[name], area=area, line=edges["median"]))
        title = f"{task.name}: {task.objectives[across]} and {task.objectives[up]}"
        picture = svg.chart(
            title, series, across=task.objectives[across], up=task.objectives[up], width=svg.SMALL,
            x_range=(0, 1.02), y_range=(0, 1.02),
        )  # fmt: skip
        figures.append(Figure(title=title, svg=picture, legend=[(s.name, s.colour) for s in series]))
    return figures


def weight_figures(task: Task, entries: Sequence[str]) -> list[Figure]:
    """Each entry's applied weights over steps, mean over seeds."""
    figures = []
    for name in entries:
        told = [run.run.weights for run in task.entries[name].runs.values() if run.run.weights]
        if not told:
            continue
        length = min(map(len, told))
        mean_TK = np.mean([weights[:length] for weights in told], axis=0)
        series = [
            Series(
                name=objective, colour=COLOURS[k % len(COLOURS)], line=list(enumerate(mean_TK[:, k].tolist(), start=1))
            )
            for k, objective in enumerate(task.objectives)
        ]
        title = f"{task.name}: weights of {name}"
        top = max(1.0, 1.02 * float(mean_TK.max()))
        low = min(0.0, float(mean_TK.min()))
        picture = svg.chart(title, series, across="step", up="weight", width=svg.SMALL, y_range=(low, top))
        figures.append(Figure(title=title, svg=picture, legend=[(s.name, s.colour) for s in series]))
    return figures


def cost_figure(task: Task, colours: Mapping[str, str]) -> Figure | None:
    """Gain over fixed equal weights against compute per unit of generation; one point for each entry.

    Far outliers below, by Tukey's fence, are drawn at the lower edge: the others would be one blot.
    """
    rest, told = [], []
    gains = [point[1] for row in task.rows if (point := _cost_and_gain(row))]
    low, high = np.quantile(gains, (0.25, 0.75)) if gains else (0.0, 0.0)
    floor = float(low - 1.5 * (high - low))
    for row in task.rows:
        point = _cost_and_gain(row)
        if point is None:
            continue
        name = row.entry.name
        words = f"{name}: {point[1]:+.3f} hypervolume at {point[0]:.2f} times the compute of fixed"
        dot = (point[0], max(point[1], floor), words)
        if name in colours:
            told.append(Series(name=name, colour=colours[name], points=[dot]))
        else:
            rest.append(Series(name=name, colour=MUTED, points=[dot], faint=True))
    if not rest and not told:
        return None
    below = sum(gain < floor for gain in gains)
    title = f"{task.name}: cost against gain" + (f" ({below} far below, at the lower edge)" if below else "")
    up = "gain in test hypervolume over fixed"
    picture = svg.chart(title, [*rest, *told], across="compute per unit of generation, fixed = 1", up=up)
    return Figure(title=title, svg=picture, legend=_legend(colours, rest))


def _cost_and_gain(row: Row) -> tuple[float, float] | None:
    cost, gain = row.figures.get("overhead_equal"), row.against.get("fixed")
    return None if cost is None or gain is None else (cost.mean, gain.mean)


def _legend(colours: Mapping[str, str], rest: Sequence[Series]) -> list[tuple[str, str]]:
    return [*colours.items(), *([("others", MUTED)] if rest else [])]
