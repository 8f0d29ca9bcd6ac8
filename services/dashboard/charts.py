"""Documents for ECharts. Colours are names of the theme, which static/chart.js looks up; no name is ever HTML."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from policies.places import Scale
from services.dashboard.figures import figure

Json = dict[str, Any]
Scales = Mapping[str, Scale]  # of objectives; larger is better of what has none

COLOURS = 31  # as many as a job may have objectives
INK, MUTED, LINE, CARD, BAD = "var(--ink)", "var(--muted)", "var(--line)", "var(--card)", "var(--bad)"
STAGES = ("rollout", "score", "learn", "sync", "evaluate", "checkpoint", "other")


def colour(index: int, alpha: float | None = None) -> str:
    name = f"--s{index % COLOURS}"
    return f"var({name})" if alpha is None else f"var({name}, {alpha})"


def _base(*, y: Json | None = None, x_name: str = "", legend: bool = False, zoom: bool = True, **more: Any) -> Json:
    axis = {
        "type": "value",
        "axisLine": {"lineStyle": {"color": LINE}},
        "axisTick": {"show": False},
        "axisLabel": {"color": MUTED, "fontSize": 11, "hideOverlap": True},
        "splitLine": {"lineStyle": {"color": LINE, "opacity": 0.6}},
        "nameTextStyle": {"color": MUTED, "fontSize": 11},
    }
    x = axis | {
        "min": "dataMin",
        "max": "dataMax",
        "minInterval": 1,
        "splitLine": {"show": False},
        "name": x_name,
        "nameLocation": "middle",
        "nameGap": 22,
    }
    return {
        "animation": False,
        "textStyle": {"fontFamily": "system-ui, sans-serif"},
        "grid": {
            "left": 8,
            "right": 14,
            "top": 34 if legend else 12,
            "bottom": 26 if x_name else 8,
            "containLabel": True,
        },
        "legend": {
            "show": legend,
            "type": "scroll",
            "top": 0,
            "left": 4,
            "itemWidth": 14,
            "itemHeight": 8,
            "textStyle": {"color": MUTED, "fontSize": 11},
            "pageTextStyle": {"color": MUTED},
            "pageIconColor": INK,
            "pageIconInactiveColor": LINE,
        },
        "tooltip": {
            "trigger": "axis",
            "backgroundColor": CARD,
            "borderColor": LINE,
            "textStyle": {"color": INK, "fontSize": 12},
            "axisPointer": {"lineStyle": {"color": MUTED}},
        },
        "xAxis": x,
        "yAxis": axis | {"scale": True, "splitNumber": 4} | (y or {}),
        "dataZoom": [{"type": "inside", "zoomOnMouseWheel": "ctrl", "moveOnMouseWheel": False}] if zoom else [],
    } | more


def _line(id_: str, column: int, hue: str, *, name: str = "", width: float = 2, **more: Any) -> Json:
    return {
        "id": id_,
        "name": name or id_,
        "type": "line",
        "showSymbol": False,
        "symbol": "circle",
        "symbolSize": 4,
        "encode": {"x": 0, "y": column},
        "lineStyle": {"width": width, "color": hue},
        "itemStyle": {"color": hue},
        "emphasis": {"disabled": True},
    } | more


@dataclass(frozen=True)
class Level:
    """What a figure should reach or must not cross: `target ≥ 0.9`. Told in words too, as no line widens an axis."""

    told: str
    value: float
    is_limit: bool = False


@dataclass(frozen=True)
class Marks:
    """Steps at which the weights were steered, and at which a watch found something."""

    steered: tuple[int, ...] = ()
    warned: tuple[int, ...] = ()


NO_MARKS = Marks()


def _mark_line(marks: Marks, levels: Iterable[Level] = ()) -> Json:
    """Vertical lines at the steps, horizontal ones at the levels; what warns is solid and of another colour."""
    warning = {"type": "solid", "color": BAD}
    lines: list[Json] = [{"xAxis": step} for step in marks.steered]
    lines += [{"xAxis": step, "lineStyle": warning} for step in marks.warned]
    for level in levels:
        look = warning | {"type": "dashed"} if level.is_limit else {"type": "solid", "opacity": 0.5}
        label = {"show": True, "formatter": level.told, "position": "insideEndTop", "color": MUTED, "fontSize": 10}
        lines.append({"yAxis": level.value, "lineStyle": look, "label": label})
    style = {"color": MUTED, "type": "dotted", "width": 1.2}
    return {"silent": True, "symbol": "none", "label": {"show": False}, "lineStyle": style, "data": lines}


def _band(hue: str, column: int) -> list[Json]:
    """An area from what stands in a column to that and the next one's spread, whatever the sign of either."""
    area = {"color": f"{hue.removesuffix(')')}, 0.16)"}
    hidden: Json = {
        "lineStyle": {"width": 0},
        "symbol": "none",
        "stack": "band",
        "stackStrategy": "all",
        "tooltip": {"show": False},
        "silent": True,
    }
    return [_line("low", column, hue, **hidden), _line("spread", column + 1, hue, **hidden, areaStyle=area)]


def objective_columns(name: str) -> list[str]:
    return [f"{name}.mean", f"{name}.low", f"{name}.spread"]


def gold_scaled(rows: Iterable[Sequence[Any]], gold: Sequence[float], scale: Sequence[float]) -> list[list[Any]]:
    """Rows whose last figure, of a gold reward with that range, is told on another scale."""
    share = (scale[1] - scale[0]) / (gold[1] - gold[0])
    return [[*row, None if found is None else scale[0] + (found - gold[0]) * share] for *row, found in rows]


def objective(name: str, index: int, marks: Marks = NO_MARKS, levels: Iterable[Level] = (), *, gold: str = "") -> Json:
    """Mean with a band of one standard deviation; the evaluations, of the second dataset, as points.

    `gold`: the name of a second line, whose figures follow the objective's.
    """
    evaluated = {
        "id": "held-out",
        "name": "held out",
        "type": "scatter",
        "datasetIndex": 1,
        "encode": {"x": 0, "y": 1},
        "symbol": "diamond",
        "symbolSize": 6,
        "itemStyle": {"color": CARD, "borderColor": INK, "borderWidth": 1.1},
    }
    mean = _line("mean", 1, colour(index), name=name, markLine=_mark_line(marks, levels))
    read = [_line("gold", 4, INK, name=gold, width=1.4, connectNulls=True)] if gold else []  # not of every step
    return _base(series=[*_band(colour(index), 2), mean, *read, evaluated])


def line(
    column_name: str,
    *,
    hue: str = "var(--s0)",
    marks: Marks = NO_MARKS,
    levels: Iterable[Level] = (),
    y: Json | None = None,
) -> Json:
    """One figure over steps, with a band from the least to the most where a point is of several."""
    drawn = _line(column_name, 1, hue, markLine=_mark_line(marks, levels))
    return _base(y=y, series=[*_band(hue, 2), drawn])


def lines(names: Sequence[str], *, y: Json | None = None) -> Json:
    """Several figures over steps, in the order of the columns."""
    series = [_line(f"l{i}", i + 1, colour(i), name=name, width=1.6) for i, name in enumerate(names)]
    return _base(y=y, legend=len(names) > 1, series=series)


_RING: Json = {"color": "transparent", "borderWidth": 2}
INITIAL, CORNER = "initial policy", "volume's corner"
ON_FRONT, DOMINATED, COLLAPSED = "on the front", "dominated", "collapsed"
SHARE: Json = {"min": 0, "max": 1, "scale": False, "interval": 0.25}


def weight_columns(names: Sequence[str]) -> list[str]:
    return [f"{name}.applied" for name in names] + [f"{name}.below" for name in names[:-1]]


def weights(names: Sequence[str], marks: Marks = NO_MARKS) -> Json:
    """Applied weights as a stack that fills the unit; over it, dashed, where the learner alone would part it."""
    areas = [
        _line(f"w{i}", i + 1, colour(i), name=name, width=0.5, stack="w", areaStyle={"color": colour(i, 0.5)})
        for i, name in enumerate(names)
    ]
    dashes = [
        _line(
            f"d{i}",
            len(names) + i + 1,
            INK,
            name=f"learner's edge above {name}",
            width=1.4,
            lineStyle={"width": 1.4, "color": INK, "type": "dashed"},
            tooltip={"show": False},
        )
        for i, name in enumerate(names[:-1])
    ]
    if areas:
        areas[0]["markLine"] = _mark_line(marks)
    option = _base(y=SHARE, legend=True, series=[*areas, *dashes])
    option["legend"]["data"] = list(names)
    return option


def stages() -> Json:
    """Shares of a step's time, stacked."""
    series = [
        _line(f"t{i}", i + 1, colour(i), name=stage, width=0.5, stack="t", areaStyle={"color": colour(i, 0.5)})
        for i, stage in enumerate(STAGES)
    ]
    return _base(y=SHARE, legend=True, series=series)


def stage_rows(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Seconds of stages as shares of their sum."""
    shared = []
    for step, *seconds in rows:
        total = sum(value or 0.0 for value in seconds)
        shared.append([step, *((value or 0.0) / total if total else None for value in seconds)])
    return shared


# The front ------------------------------------------------------------------------------------------------------------

NO_SCALES: Scales = {}


def better(scale: Scale | None) -> str:
    """In words, where larger is not."""
    if scale is None or scale.better == "larger":
        return ""
    return "smaller is better" if scale.better == "smaller" else f"nearer to {figure(scale.target)} is better"


def titled(name: str, scale: Scale | None) -> str:
    """An objective's name, with what is better of it."""
    return f"{name}, {words}" if (words := better(scale)) else name


def front(
    x: str,
    y: str,
    points: Sequence[Mapping[str, Any]],
    chosen: int | None,
    *,
    initial: Mapping[str, float | None],
    reference: Mapping[str, float | None],
    scales: Scales = NO_SCALES,
) -> Json:
    """Points of two objectives: the dominated dimmed, the newest ringed. A value is [x, y, step, error of x, of y].

    The chosen one has bars of one standard error, as static/chart.js gives the one under the mouse. A line ends what is
    dominated in these two; of more objectives, points of the front may lie below it.

    `initial` is the first policy, `reference` the corner that the hypervolume is measured from.
    """
    shown = [point for point in points if None not in (point["objectives"].get(x), point["objectives"].get(y))]

    def values(found: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
        return [
            [point["objectives"][x], point["objectives"][y], point["step"], *_errors(point, x, y)] for point in found
        ]

    def dots(id_: str, name: str, data: list[list[Any]], size: int, look: Json, **more: Any) -> Json:
        about = {"cursor": "pointer", **_read_as(x, y)}
        drawn = {"id": id_, "name": name, "type": "scatter", "data": data, "symbolSize": size, "itemStyle": look}
        return drawn | about | more

    best = sorted((point for point in shown if point["on_front"]), key=lambda point: point["objectives"][x])
    rest = [point for point in shown if place_of(point) == DOMINATED]
    collapsed = [point for point in shown if place_of(point) == COLLAPSED]
    newest = sorted(shown, key=lambda point: point["step"])[-1:]
    picked = [point for point in shown if point["step"] == chosen]
    first, corner = (
        [[place[x], place[y], -1]] if None not in (place.get(x), place.get(y)) else [] for place in (initial, reference)
    )
    series = [
        dots("dominated", "dominated", values(rest), 9, {"color": MUTED, "opacity": 0.45}),
        dots("collapsed", COLLAPSED, values(collapsed), 10, {"color": BAD}, symbol="triangle"),
        _edge(values(best), "var(--s0)", (scales.get(x), scales.get(y))),
        dots("front", "front", values(best), 12, {"color": "var(--s0)", "borderColor": CARD, "borderWidth": 1.5}),
        dots("now", "newest", values(newest), 20, _RING | {"borderColor": "var(--s1)"}, silent=True),
        dots("chosen", "selected", values(picked), 26, _RING | {"borderColor": INK}, silent=True),
        _error_bars("errors", values(picked)),
        _error_bars("hovered", []),
        _room(_ends(values(shown))),
        dots("initial", INITIAL, first, 11, {"color": INK}, silent=True, symbol="diamond"),
        dots("reference", CORNER, corner, 9, {"color": MUTED}, silent=True, symbol="rect"),
    ]
    option = _plane(titled(x, scales.get(x)), titled(y, scales.get(y)), series)
    option["yAxis"]["nameLocation"] = "end"
    option["legend"] |= {"itemWidth": 9, "itemGap": 6}  # all of it has room beside another chart
    option["legend"]["data"] = ["front", "dominated", *([COLLAPSED] if collapsed else ()), "newest", INITIAL, CORNER]
    return option


def _errors(point: Mapping[str, Any], *names: str) -> list[float | None]:
    known = point.get("standard_errors") or {}
    return [known.get(name) for name in names]


def _ends(places: Iterable[Sequence[Any]]) -> list[list[float]]:
    """Where the bars of these [x, y, step, error of x, of y] end."""
    return [[x + sign * (dx or 0.0), y + sign * (dy or 0.0)] for x, y, _, dx, dy in places for sign in (-1, 1)]


def _room(places: list[list[float]]) -> Json:
    """The axes reach that far from the start: bars that come and go move nothing."""
    return {"id": "room", "type": "scatter", "data": places, "symbol": "none", "silent": True}


def _read_as(x: str, y: str) -> Json:
    """How a value [x, y, step, error of x, of y] is read, and told in a tooltip."""
    return {"encode": {"x": 0, "y": 1, "tooltip": [0, 3, 1, 4, 2]}, "dimensions": [x, y, "step", f"± {x}", f"± {y}"]}


def _error_bars(id_: str, places: Iterable[Sequence[Any]]) -> Json:
    """A cross over each [x, y, step, error of x, of y], with a gap in the line behind each bar."""
    bars: list[list[float | None]] = []
    for x, y, _, dx, dy in places:
        bars += [[x - dx, y], [x + dx, y], [None, None]] if dx else []
        bars += [[x, y - dy], [x, y + dy], [None, None]] if dy else []
    return {
        "id": id_,
        "type": "line",
        "data": bars,
        "symbol": "none",
        "silent": True,
        "lineStyle": {"color": INK, "width": 1.4},
        "tooltip": {"show": False},
        "z": 3,
    }


def place_of(point: Mapping[str, Any]) -> str:
    """Points of a collapsed run are never on the front, whatever they reach, and are dominated by nothing for that."""
    return COLLAPSED if point.get("collapsed") else ON_FRONT if point["on_front"] else DOMINATED


def _edge(
    values: Iterable[Sequence[Any]], hue: str, scales: Sequence[Scale | None], id_: str = "edge", **more: Any
) -> Json:
    """Where that ends which one of these [x, y, ...] dominates: stairs over those that none dominates here.

    None where what is nearer to a target is better: what is as far from it on its other side is dominated too.
    """

    def places(value: Sequence[Any]) -> list[float]:
        return [at if scale is None else scale.place(at) for at, scale in zip(value, scales, strict=False)]

    has_stairs = not any(scale is not None and scale.better == "nearer" for scale in scales)
    stairs: list[Sequence[Any]] = []
    for value in sorted(values, key=places, reverse=True) if has_stairs else ():
        if not stairs or places(value)[1] > places(stairs[-1])[1]:
            stairs.append(value)
    is_turned = scales[0] is not None and scales[0].better == "smaller"
    return {
        "id": id_,
        "type": "line",
        "data": sorted([x, y] for x, y, *_ in stairs),
        "step": "end" if is_turned else "start",  # the corner between two is worse than either in its own way
        "symbol": "none",
        "silent": True,
        "lineStyle": {"color": hue, "width": 1.4, "opacity": 0.6},
        "tooltip": {"show": False},
        "z": 1,
    } | more


def _plane(x: str, y: str, series: list[Json]) -> Json:
    """Two objectives against each other."""
    option = _base(x_name=x, legend=True, zoom=False, series=series)
    option["xAxis"] |= {"scale": True, "min": None, "max": None, "minInterval": 0}
    option["yAxis"] |= {"name": y, "nameTextStyle": {"color": MUTED, "align": "left", "fontSize": 11}}
    option["grid"] |= {"top": 52}
    option["tooltip"] |= {"trigger": "item"}
    return option


def parallel(names: Sequence[str], points: Sequence[Mapping[str, Any]], chosen: int | None) -> Json:
    """A line for each point across all objectives; the last axis is its step."""
    axes = [{"dim": i, "name": name, "scale": True} for i, name in enumerate(names)]
    axes.append({"dim": len(names), "name": "step", "minInterval": 1})

    def line_of(point: Mapping[str, Any]) -> Json:
        place = place_of(point)
        style = {
            ON_FRONT: {"color": "var(--s0)", "width": 1.8, "opacity": 0.75},
            COLLAPSED: {"color": BAD, "width": 1, "opacity": 0.5, "type": "dashed"},
            DOMINATED: {"color": MUTED, "width": 1, "opacity": 0.25},
        }[place]
        if point["step"] == chosen:
            style |= {"color": INK, "width": 3, "opacity": 1}
        return {"value": [*(point["objectives"].get(name) for name in names), point["step"]], "lineStyle": style}

    ordered = sorted(points, key=lambda point: (point["step"] == chosen, point["on_front"]))
    return {
        "animation": False,
        "parallelAxis": axes,
        "parallel": {
            "left": 40,
            "right": 48,
            "top": 34,
            "bottom": 16,
            "parallelAxisDefault": {
                "axisLine": {"lineStyle": {"color": LINE}},
                "axisTick": {"show": False},
                "axisLabel": {"color": MUTED, "fontSize": 10},
                "nameTextStyle": {"color": INK, "fontSize": 10},
                "splitLine": {"show": False},
                "nameTruncate": {"maxWidth": 72},
            },
        },
        "tooltip": {"backgroundColor": CARD, "borderColor": LINE, "textStyle": {"color": INK, "fontSize": 12}},
        "series": [
            {
                "id": "points",
                "type": "parallel",
                "data": [line_of(point) for point in ordered],
                "cursor": "pointer",
                "lineStyle": {"width": 2},
                "emphasis": {"lineStyle": {"width": 4, "opacity": 1}},
            }
        ],
    }


def hypervolume() -> Json:
    """Over steps; it moves only where there was an evaluation."""
    return _base(series=[_line("hypervolume", 1, "var(--s2)", step="end", areaStyle={"color": "var(--s2, 0.12)"})])


# Several jobs ---------------------------------------------------------------------------------------------------------


def fronts(x: str, y: str, jobs: Sequence[Mapping[str, Any]]) -> Json:
    """Each job's front for a pair; `jobs` have a label, points and scales. The one under the mouse has its errors."""
    series: list[Json] = []
    ends: list[list[float]] = []
    for i, job in enumerate(jobs):
        known = [p for p in job["front"] if None not in (p["objectives"].get(x), p["objectives"].get(y))]
        data = sorted([p["objectives"][x], p["objectives"][y], p["step"], *_errors(p, x, y)] for p in known)
        ends += _ends(data)
        dots = {
            "id": f"f{i}",
            "name": job["label"],
            "type": "scatter",
            "data": data,
            "symbolSize": 10,
            "itemStyle": {"color": colour(i)},
            **_read_as(x, y),
        }
        scales = [job.get("scales", NO_SCALES).get(name) for name in (x, y)]
        series += [_edge(data, colour(i), scales, f"e{i}", name=job["label"], itemStyle={"color": colour(i)}), dots]
    return _plane(_common_title(x, jobs), _common_title(y, jobs), [*series, _error_bars("hovered", []), _room(ends)])


def _common_title(name: str, jobs: Sequence[Mapping[str, Any]]) -> str:
    """Says what is better where all jobs that have the objective agree."""
    scales = [job.get("scales", NO_SCALES) for job in jobs]
    titles = {titled(name, found[name]) for found in scales if name in found}
    return titles.pop() if len(titles) == 1 else name


def hypervolumes(jobs: Sequence[Mapping[str, Any]]) -> Json:
    """Each job's hypervolume over its steps; `jobs` have a label and pairs of step and value."""
    series = [
        _line(f"h{i}", 1, colour(i), name=job["label"], step="end")
        | {"data": list(job["growth"]), "encode": {"x": 0, "y": 1}}
        for i, job in enumerate(jobs)
    ]
    return _base(x_name="step", legend=True, zoom=False, series=series)


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    return list(itertools.combinations(names, 2))
