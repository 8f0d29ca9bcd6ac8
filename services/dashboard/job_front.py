"""The Pareto front: which trade-offs were reached, and the checkpoint that one of them is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nicegui import ui

from policies.places import Scale, read_scales
from services.client.types import Front
from services.dashboard import charts
from services.dashboard.elements import Button, Chart, Choice, Table, Tag, text
from services.dashboard.exports import csv_text
from services.dashboard.figures import figure
from services.dashboard.panels import JobPage, section
from services.dashboard.use import show_use
from services.dashboard.watch import News

_NAMED = 5  # steps in a sentence
_PLACES = {charts.ON_FRONT: "yes", charts.DOMINATED: "", charts.COLLAPSED: "collapsed"}


class FrontPanel:
    """A scatter of any pair, parallel coordinates from three objectives on, hypervolume, and the chosen point."""

    def __init__(self, page: JobPage) -> None:
        self.page = page
        self._chosen: int | None = None
        self._detailed: tuple[Any, ...] = (
            None,
            None,
            [],
        )  # the point that is shown, its checkpoint, and what is like it
        names = page.names
        pairs = {f"{x}|{y}": f"{x} and {y}" for x, y in charts.pairs(names)}
        self._pair: tuple[str, str] = charts.pairs(names)[0] if len(names) > 1 else (names[0], names[0])
        with section("Front", "held-out values of every evaluation; select one to see it") as tools:
            with tools:
                if len(pairs) > 1:
                    Choice("Pair", pairs, "|".join(self._pair), self._choose_pair, hidden=True)
            with Tag("div", "", "two-charts"):
                empty = "The first evaluation gives the first point."
                option = charts.front(*self._pair, [], None, initial={}, reference={})
                self._scatter = Chart(
                    "Front", option, label="Front", height=320, on_pick=self._picked, empty=empty, loading=True
                )
                if len(names) > 2:
                    self._parallel: Chart | None = Chart(
                        "All objectives",
                        charts.parallel(names, [], None),
                        label="All objectives of every point",
                        height=320,
                        on_pick=self._picked_line,
                        empty=empty,
                        loading=True,
                    )
                else:
                    self._parallel = None
                self._volume = Chart(
                    "Hypervolume",
                    charts.hypervolume(),
                    label="Hypervolume by step",
                    height=320 if len(names) < 3 else 200,
                    empty=empty,
                    loading=True,
                )
            self._sets = list((page.watch.job["spec"].get("data") or {}).get("sets") or ())
            self._by_set = self._build_sets(empty) if self._sets else {}
            self._sort = "-step"
            with Tag("details", "", "points-block"):
                Tag("summary", "All points as a table")
                self._table = Table(
                    _columns(names, charts.NO_SCALES),
                    caption="Points of the front",
                    pick="Select",
                    on_pick=self._select,
                    on_sort=self._sorted,
                    on_csv=self._save,
                    empty=empty,
                    sort=self._sort,
                )
            self._detail = Tag("div", "", "stack point-detail", aria_live="polite")

    def _build_sets(self, empty: str) -> dict[str, Chart]:
        """For each objective the further held-out sets beside the validation split; the front counts that alone."""
        with Tag("div", "", "small-charts"):
            return {
                name: Chart(
                    f"{name}, by set",
                    charts.lines(["validation", *self._sets]),
                    label=f"{name} on each held-out set, by step",
                    height=180,
                    empty=empty,
                    loading=True,
                )
                for name in self.page.names
            }

    async def update(self, news: News) -> None:
        if "front" in news:
            self._draw()
        elif "checkpoints" in news:
            self._fill_table(self._points())
        if news & {"front", "checkpoints"}:
            self._show_detail()

    def _points(self) -> list[Any]:
        return list(self.page.watch.front["points"]) if self.page.watch.front else []

    def _draw(self) -> None:
        points, front = self._points(), self.page.watch.front
        for chart in (self._scatter, self._parallel, self._volume, *self._by_set.values()):
            if chart is not None:
                chart.change(loading=False)
        if front is None or not points:
            return
        places = [charts.place_of(point) for point in points]
        best, collapsed = places.count(charts.ON_FRONT), places.count(charts.COLLAPSED)
        of, apart = f"{best} of {len(points) - collapsed} points", f", {collapsed} collapsed" if collapsed else ""
        self._scatter.change(
            note=of + apart,
            label=f"Front of {self._pair[0]} and {self._pair[1]}: {of} are not dominated{apart}",
        )
        scales = scales_of(front)
        corners: Any = {"initial": front["initial"], "reference": front["reference"]}
        drawn = charts.front(*self._pair, points, self._chosen, **corners, scales=scales)
        self._scatter.merge(drawn, replace=True)
        self._table.change(columns=_columns(self.page.names, scales))
        if self._parallel is not None:
            turned = [titled for name in self.page.names if (titled := charts.titled(name, scales.get(name))) != name]
            self._parallel.change(note="; ".join(turned))
            self._parallel.merge(charts.parallel(self.page.names, points, self._chosen), replace=True)
        self.page.put(self._volume, 0, front["hypervolume_by_step"])
        self._volume.change(
            note=figure(front["hypervolume"]), label=f"Hypervolume by step; now {figure(front['hypervolume'])}"
        )
        for name, chart in self._by_set.items():
            rows = [[p["step"], p["objectives"].get(name), *self._held_out(p, name)] for p in points]
            newest = zip(["validation", *self._sets], rows[-1][1:], strict=True)
            self.page.put(chart, 0, rows)
            chart.change(note=", ".join(f"{held} {figure(value)}" for held, value in newest))
        self._fill_table(points)

    def _held_out(self, point: Mapping[str, Any], name: str) -> list[Any]:
        """An objective on each further set, None where it was not evaluated."""
        sets = point.get("sets") or {}
        return [((sets.get(held) or {}).get("objectives") or {}).get(name) for held in self._sets]

    def _fill_table(self, points: list[Any]) -> None:
        key, down = self._sort.removeprefix("-"), self._sort.startswith("-")
        kept = {found["step"] for found in self.page.watch.checkpoints}

        def value(point: Any) -> float:
            found = point["step"] if key == "step" else point["objectives"].get(key.removeprefix("o."))
            return float("-inf") if found is None else found

        rows = [
            {
                "id": p["step"],
                "name": f"step {p['step']}",
                "step": p["step"],
                "tokens": p.get("mean_tokens"),
                "on_front": p["on_front"],
                "place": _PLACES[charts.place_of(p)],
                "kept": p["step"] in kept,
                **{f"o.{name}": p["objectives"].get(name) for name in self.page.names},
            }
            for p in sorted(points, key=value, reverse=down)
        ]
        self._table.change(rows=rows, sort=self._sort, chosen=self._chosen)

    # -- what a person does ------------------------------------------------------------------------------------

    def _choose_pair(self, value: str) -> None:
        x, _, y = value.partition("|")
        self._pair = (x, y)
        self._draw()
        self.page.flush()

    def _sorted(self, sort: str) -> None:
        self._sort = sort
        self._fill_table(self._points())

    def _picked(self, event: dict[str, Any]) -> None:
        value = event.get("value")
        if isinstance(value, list) and len(value) > 2 and isinstance(value[2], int):
            self._select(value[2])

    def _picked_line(self, event: dict[str, Any]) -> None:
        value = event.get("value")
        if isinstance(value, list) and value and isinstance(value[-1], int):
            self._select(value[-1])

    def _select(self, step: Any) -> None:
        if step not in [point["step"] for point in self._points()]:
            return
        self._chosen = None if step == self._chosen else step
        self._draw()
        self.page.flush()
        self._show_detail()

    def _show_detail(self) -> None:
        """The chosen point: its figures, its tests, its checkpoint, and a way on from there."""
        point = next((point for point in self._points() if point["step"] == self._chosen), None)
        kept = next((found for found in self.page.watch.checkpoints if found["step"] == self._chosen), None)
        same = alike(point, self._points(), self.page.names) if point else []
        if (point, kept, same) == self._detailed:
            return
        self._detailed = (point, kept, same)
        self._detail.clear()
        if point is None:
            return
        with self._detail, Tag("div", "", "card chosen-point"):
            with Tag("div", "", "section-head"):
                Tag("h3", f"Step {point['step']:,}")
                place = charts.place_of(point)
                is_collapsed = place == charts.COLLAPSED
                text("collapsed: not eligible" if is_collapsed else place, f"pill{' pill-bad' if is_collapsed else ''}")
                with Tag("div", "", "section-tools"):
                    if kept is not None and self.page.session.may("submit"):
                        Button(f"Fork from step {point['step']}", lambda: self._fork(point["step"]), "main")
                    if point["step"]:  # those of the first policy are no step's
                        Button("Rollouts of this step", lambda: self._samples(point["step"]))
            with Tag("dl", "", "facts"):
                for name in self.page.names:
                    _fact(name, _with_error(point, name))
                if same:
                    _fact("within the error of", _steps(same))
                _fact("tokens a completion", figure(point.get("mean_tokens")))
                for split, words in (("sampled", "test, sampled"), ("greedy", "test, greedy")):
                    tested = (point.get("test") or {}).get(split) or {}
                    if tested.get("objectives"):
                        _fact(words, _all_with_errors(tested))
                for name, found in (point.get("sets") or {}).items():
                    _fact(name, _all_with_errors(found))
                if point.get("standard_errors"):
                    _fact("±", "standard error of the mean")
                _fact("checkpoint", str(kept["path"]) if kept else self._why_not_kept(place))
            if kept is not None:
                show_use(self.page.watch.job_id, point["step"], self.page.watch.job["spec"])

    def _why_not_kept(self, place: str) -> str:
        if place == charts.COLLAPSED:
            return "not kept: the run had collapsed, and its points are not eligible"
        if place == charts.DOMINATED:
            return "not kept: a dominated point's is dropped"
        return "not kept" if self.page.watch.is_over else "not there yet: it is written beside the next steps"

    async def _fork(self, step: int) -> None:
        await self.page.ask_fork(step)

    async def _samples(self, step: int) -> None:
        await self.page.show_rollouts(step)

    def _save(self) -> None:
        names, points = self.page.names, {point["step"]: point for point in self._points()}
        rows = [
            [
                row["step"],
                *(row[f"o.{name}"] for name in names),
                row["tokens"],
                row["on_front"],
                row["kept"],
                row["place"],
                *(value for name in names for value in self._held_out(points[row["step"]], name)),
            ]
            for row in self._table.rows
        ]
        header = ["step", *names, "tokens", "on the front", "checkpoint", "place"]
        header += [f"{name} on {held}" for name in names for held in self._sets]
        ui.download.content(csv_text(header, rows), f"{self.page.watch.job_id}-front.csv", "text/csv")


def scales_of(front: Front) -> dict[str, Scale]:
    """Which way each objective of a front is better."""
    return read_scales(front.get("ranges", {}), front.get("directions"))


def _columns(names: Sequence[str], scales: charts.Scales) -> list[dict[str, Any]]:
    labels = {name: charts.titled(name, scales.get(name)) for name in names}
    return [
        {"key": "step", "label": "Step", "kind": "number", "sortable": True},
        *({"key": f"o.{name}", "label": labels[name], "kind": "number", "sortable": True} for name in names),
        {"key": "tokens", "label": "Tokens", "kind": "number"},
        {"key": "place", "label": "On the front", "kind": "text"},
        {"key": "kept", "label": "Checkpoint", "kind": "yes"},
    ]


def _with_error(figures: dict[str, Any], name: str) -> str:
    """Of a split: an objective's mean and its standard error, where that is told."""
    error = (figures.get("standard_errors") or {}).get(name)
    return figure(figures["objectives"].get(name)) + (f" ± {figure(error)}" if error else "")


def _all_with_errors(figures: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_with_error(figures, name)}" for name in figures["objectives"])


def alike(point: Mapping[str, Any], points: Iterable[Mapping[str, Any]], names: Sequence[str]) -> list[int]:
    """Steps of the front that are not told apart from this point: no objective differs by more than the error of that.

    The standard error of a difference, as of two independent samples. A point without errors is like none.
    """

    def is_close(other: Mapping[str, Any], name: str) -> bool:
        values = [one["objectives"].get(name) for one in (point, other)]
        errors: list[Any] = [(one.get("standard_errors") or {}).get(name) for one in (point, other)]
        return None not in (*values, *errors) and abs(values[0] - values[1]) <= math.hypot(*errors)

    others = (other for other in points if other["on_front"] and other["step"] != point["step"])
    return [other["step"] for other in others if all(is_close(other, name) for name in names)]


def _steps(found: Sequence[int]) -> str:
    """`step 3, step 9 and 4 more`."""
    named = ", ".join(f"step {step:,}" for step in found[:_NAMED])
    return named + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "")


def _fact(term: str, told: str) -> None:
    Tag("dt", term)
    text(told, tag="dd")
