"""What ECharts draws of our charts: the options as they are, in the ECharts that the pages get, as SVG."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec import MAX_OBJECTIVES
from policies.places import Scale
from services.dashboard import charts
from services.dashboard.charts import Level, Marks

Json = dict[str, Any]
Place = tuple[float, float]

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="no node")
WIDTH, HEIGHT = 400, 150
BLUE, ORANGE, BAD, INK = "#3f6fd8", "#d9772b", "#b3372b", "#1b2230"
_DRAW = f"""
globalThis.window = undefined;
const {{ readFileSync }} = await import("fs");
const {{ echarts }} = await import("./index.js");
const {{ withRoom, withSymbols }} = await import("./alone.js");
const {{ option, datasets }} = JSON.parse(readFileSync(0, "utf-8"));
const chart = echarts.init(null, null, {{ renderer: "svg", ssr: true, width: {WIDTH}, height: {HEIGHT} }});
option.series = withSymbols(option.series, datasets);
option.xAxis = withRoom(option.xAxis, datasets.flat());
option.dataset = datasets.map((source) => ({{ source, sourceHeader: false }}));
chart.setOption(option);
const axes = ["x", "y"].map((one) => chart.getModel().getComponent(`${{one}}Axis`).axis.scale.getExtent());
const at = (x, y) => chart.convertToPixel({{ gridIndex: 0 }}, [x, y]);
const [zero, one] = [at(axes[0][0], axes[1][0]), at(axes[0][1], axes[1][1])];
console.log(JSON.stringify({{ svg: chart.renderToSVGString(), axes, zero, one }}));
process.exit(0);
"""


class Drawn:
    """An SVG, and what its pixels stand for."""

    def __init__(self, told: Json) -> None:
        self.svg: str = told["svg"]
        self.axes: list[list[float]] = told["axes"]
        self._zero, self._one = told["zero"], told["one"]

    def lines(self, hue: str) -> list[list[Place]]:
        """The corners of every line of this colour that can be seen, in values."""
        found = [self._corners(tag) for tag in self._paths(f'stroke="{hue}"') if 'stroke-width="0"' not in tag]
        return [corners for corners in found if len(corners) > 1]

    def areas(self, hue: str) -> list[list[Place]]:
        return [self._corners(tag) for tag in self._paths(f'fill="{hue}')]

    def symbols(self, hue: str) -> list[Place]:
        """Where a symbol of this colour stands."""
        at = [re.search(r'transform="[^"]*?([-\d.]+),([-\d.]+)\)"', tag) for tag in self._paths(f'fill="{hue}"')]
        return [self._value(float(found[1]), float(found[2])) for found in at if found]

    def _paths(self, look: str) -> list[str]:
        return [tag for tag in re.findall(r"<path [^>]*>", self.svg) if look in tag and "matrix(0" not in tag]

    def _corners(self, tag: str) -> list[Place]:
        path = re.search(r' d="([^"]*)"', tag)
        assert path is not None
        return [self._value(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path[1])]

    def _value(self, x: float, y: float) -> Place:
        return tuple(
            round(low + (at - zero) / (one - zero) * (high - low), 2)
            for at, zero, one, (low, high) in zip((x, y), self._zero, self._one, self.axes, strict=True)
        )


Draw = Callable[..., Drawn]


@pytest.fixture(scope="module")
def draw(tmp_path_factory: pytest.TempPathFactory) -> Draw:
    folder = tmp_path_factory.mktemp("echarts")
    for source in resources.files("nicegui").joinpath("elements/echart/dist").iterdir():
        if source.name.endswith(".js"):
            (folder / source.name).write_bytes(source.read_bytes())
    static = resources.files("services.dashboard").joinpath("static")
    (folder / "alone.js").write_bytes(static.joinpath("alone.js").read_bytes())
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "draw.js").write_text(_DRAW)
    light = static.joinpath("theme.css").read_text(encoding="utf-8").partition("@media")[0]
    theme = dict(re.findall(r"(--[a-z0-9-]+): (#[0-9a-f]{6})", light))
    return lambda option, *datasets: _drawn(folder, theme, option, datasets)


def _drawn(folder: Path, theme: dict[str, str], option: Json, datasets: Sequence[Any]) -> Drawn:
    def themed(found: re.Match[str]) -> str:
        hue, alpha = theme[found[1]], found[2]
        return f'"{hue}"' if alpha is None else f'"{hue}{round(255 * float(alpha)):02x}"'

    told = re.sub(r'"var\((--[a-z0-9-]+)(?:, ([\d.]+))?\)"', themed, json.dumps(option))
    asked = f'{{"option": {told}, "datasets": {json.dumps(list(datasets))}}}'
    done = subprocess.run(
        ["node", "draw.js"], input=asked, capture_output=True, text=True, check=True, timeout=60, cwd=folder
    )
    return Drawn(json.loads(done.stdout))


@needs_node
@pytest.mark.parametrize(("mean", "std"), [(0.2, 0.4), (-5.0, 1.0), (0.6, 0.1), (0.0, 0.5)])
def test_the_band_is_around_its_mean(draw: Draw, mean: float, std: float) -> None:
    rows = [[step, mean, mean - std, 2 * std] for step in range(1, 6)]
    drawn = draw(charts.objective("accuracy", 0), rows, [])
    (band,) = drawn.areas(f"{BLUE}29")
    assert {y for _, y in band} == {round(mean - std, 2), round(mean + std, 2)}
    assert {y for _, y in drawn.lines(BLUE)[-1]} == {mean}
    assert drawn.axes[1] == pytest.approx([mean - std, mean + std], abs=std), "no room for anything else"


@needs_node
def test_a_target_is_drawn_with_its_words_where_the_axis_has_it(draw: Draw) -> None:
    rows = [[step, 0.3, 0.25, 0.1] for step in range(1, 6)]
    near = draw(charts.objective("accuracy", 0, levels=[Level("target ≥ 0.32", 0.32)]), rows, [])
    assert "target ≥ 0.32" in near.svg
    far = draw(charts.objective("accuracy", 0, levels=[Level("target ≥ 0.9", 0.9)]), rows, [])
    assert "target ≥ 0.9" not in far.svg, "so it stands beside the title too"


@needs_node
def test_findings_limits_and_gold_are_drawn_beside_the_figure(draw: Draw) -> None:
    rows = [[step, 0.2 * step, 0.2 * step, 0.0, 1.0 - 0.2 * step if step % 2 else None] for step in range(1, 6)]
    levels = [Level("limit ≤ 0.8", 0.8, is_limit=True)]
    drawn = draw(charts.objective("accuracy", 0, Marks((2,), (4,)), levels, gold="gold"), rows, [])
    across = {tuple(x for x, _ in line) for line in drawn.lines(BAD)}
    assert (4, 4) in across
    assert (1, 5) in across
    assert "limit ≤ 0.8" in drawn.svg
    assert drawn.lines(INK) == [[(1, 0.8), (3, 0.4), (5, 0)]], "joined over steps without a reading"
    assert charts.gold_scaled([[1, 0.5, 5.0], [2, 0.5, None]], [0, 10], [-1, 1]) == [[1, 0.5, 0.0], [2, 0.5, None]]


def test_every_objective_has_a_colour_of_its_own() -> None:
    theme = resources.files("services.dashboard").joinpath("static/theme.css").read_text(encoding="utf-8")
    for block in re.findall(r"{[^{}]*--s0:[^{}]*}", theme):
        colours = dict(re.findall(r"--(s\d+): (#[0-9a-f]{6});", block))
        names = [charts.colour(i).removeprefix("var(--").removesuffix(")") for i in range(MAX_OBJECTIVES)]
        assert len({colours[name] for name in names}) == MAX_OBJECTIVES
    assert len(re.findall("--s30:", theme)) == 3


@needs_node
def test_what_is_between_gaps_is_drawn(draw: Draw) -> None:
    drawn = draw(charts.line("kl"), [[1, 0.5], [2, None], [3, 0.6], [4, None], [5, 0.7], [6, 0.8]])
    assert drawn.symbols(BLUE) == [(1, 0.5), (3, 0.6)], "the others are joined"
    one = draw(charts.objective("accuracy", 0), [[7, 0.5, 0.4, 0.2]], [])
    assert one.symbols(BLUE) == [(7, 0.5)]
    assert one.axes[0] == [6, 8]
    assert draw(charts.hypervolume(), [[0, 0.25]]).symbols("#1f9a72") == [(0, 0.25)]


def _point(step: int, *values: float, **more: Any) -> Json:
    return {"step": step, "objectives": dict(zip("xyz", values, strict=False)), "on_front": True} | more


FRONT = [_point(1, 0.2, 0.9, 0.1), _point(2, 0.5, 0.1, 0.9), _point(3, 0.8, 0.5, 0.2)]
STAIRS = [(0.2, 0.9), (0.2, 0.5), (0.8, 0.5)]


@needs_node
def test_a_front_ends_in_stairs_over_what_it_dominates_in_that_pair(draw: Draw) -> None:
    drawn = draw(charts.front("x", "y", FRONT, None, initial={}, reference={}))
    assert drawn.lines(BLUE) == [STAIRS]
    assert sorted(drawn.symbols(BLUE)) == [(0.2, 0.9), (0.5, 0.1), (0.8, 0.5)]
    jobs = [{"label": "one", "front": FRONT}, {"label": "other", "front": FRONT[:1]}]
    drawn = draw(charts.fronts("x", "y", jobs))
    assert STAIRS in drawn.lines(BLUE)
    assert {(0.2, 0.9), (0.5, 0.1), (0.8, 0.5)} <= set(drawn.symbols(BLUE))
    assert (0.2, 0.9) in drawn.symbols(ORANGE)


@needs_node
@pytest.mark.parametrize(
    ("x", "y", "stairs"),
    [
        ("smaller", "larger", [(0.2, 0.1), (0.5, 0.1), (0.5, 0.5), (0.8, 0.5), (0.8, 0.9)]),
        ("larger", "smaller", [(0.2, 0.1), (0.2, 0.5), (0.5, 0.5), (0.5, 0.9), (0.8, 0.9)]),
        ("smaller", "smaller", None),
        ("larger", "larger", None),
        ("nearer", "larger", None),
    ],
)
def test_stairs_are_on_the_worse_side(draw: Draw, x: Any, y: Any, stairs: list[Place] | None) -> None:
    scales = {
        name: Scale(low=0, high=1, better=better, target=0.4 if better == "nearer" else None)
        for name, better in (("x", x), ("y", y))
    }
    points = [_point(1, 0.2, 0.1), _point(2, 0.5, 0.5), _point(3, 0.8, 0.9)]
    option = charts.front("x", "y", points, None, initial={}, reference={}, scales=scales)
    assert draw(option).lines(BLUE) == ([stairs] if stairs else []), "one that dominates the others has no stairs"
    words = {"larger": "", "smaller": ", smaller is better", "nearer": ", nearer to 0.4 is better"}
    assert (option["xAxis"]["name"], option["yAxis"]["name"]) == (f"x{words[x]}", f"y{words[y]}")
    jobs: list[Json] = [{"label": "one", "front": points, "scales": scales}, {"label": "older", "front": points[:1]}]
    option = charts.fronts("x", "y", jobs)
    assert [line for line in draw(option).lines(BLUE) if len(line) > 2] == ([stairs] if stairs else [])
    assert option["xAxis"]["name"] == f"x{words[x]}"
    other = {**jobs[0], "scales": {"x": Scale(low=0, high=1, better="larger" if x != "larger" else "smaller")}}
    assert charts.fronts("x", "y", [*jobs, other])["xAxis"]["name"] == "x", "they differ"


@needs_node
def test_the_chosen_point_has_its_errors_and_all_have_room_for_theirs(draw: Draw) -> None:
    points = [
        _point(1, 0.2, 0.9, standard_errors={"x": 0.1, "y": 0.05}),
        _point(2, 0.8, 0.5, standard_errors={"x": 0.1, "y": None}),
        _point(3, 0.1, 0.1, on_front=False),
    ]
    none, one, other = (
        draw(charts.front("x", "y", points, chosen, initial={}, reference={})) for chosen in (None, 1, 2)
    )
    assert [(0.1, 0.9), (0.3, 0.9), (0.2, 0.85), (0.2, 0.95)] in one.lines(INK)
    assert [(0.7, 0.5), (0.9, 0.5)] in other.lines(INK)
    assert none.lines(INK) == []
    assert one.axes == none.axes, "choosing moves nothing"
    compared = charts.fronts("x", "y", [{"label": "one", "front": points[:2]}])["series"]
    assert [series["data"] for series in compared if series["id"] == "f0"] == [
        [[0.2, 0.9, 1, 0.1, 0.05], [0.8, 0.5, 2, 0.1, None]]
    ]
    assert {"hovered", "room"} <= {series["id"] for series in compared}


@needs_node
def test_bars_under_the_mouse_are_those_of_a_chosen_point() -> None:
    source = resources.files("services.dashboard").joinpath("static/bars.js").read_text(encoding="utf-8")
    values: list[Any] = [[0.2, 0.9, 1, 0.1, 0.05], [0.2, 0.9, 1, None, 0.05], [0.2, 0.9, 1, None, None]]
    code = f"{source}\nconsole.log(JSON.stringify({json.dumps(values)}.map(bars)))"
    done = subprocess.run(
        ["node", "--input-type=module", "-e", code], capture_output=True, text=True, check=True, timeout=60
    )
    for value, drawn in zip(values, json.loads(done.stdout), strict=True):
        errors = dict(zip("xy", value[3:], strict=True))
        option = charts.front("x", "y", [_point(1, 0.2, 0.9, standard_errors=errors)], 1, initial={}, reference={})
        (chosen,) = [series["data"] for series in option["series"] if series["id"] == "errors"]
        assert drawn == chosen


_PRINT = """
globalThis.document = Object.assign(new EventTarget(), { body: {} });
const windows = new EventTarget();
Object.assign(globalThis, {
  addEventListener: windows.addEventListener.bind(windows),
  removeEventListener: windows.removeEventListener.bind(windows),
  getComputedStyle: () => ({ getPropertyValue: () => "#000000" }),
});
for (const name of ["Mutation", "Intersection", "Resize"]) {
  globalThis[`${name}Observer`] = class { observe() {} disconnect() {} };
}
const { default: chart } = await import("./chart.js");
const { drawn } = await import("nicegui-echart");
const canvas = { clientWidth: 300, dataset: {} };
const one = { option: { series: [] }, datasets: [[]], extra: {}, $refs: { canvas }, ...chart.methods };
chart.mounted.call(one);
one.draw(true);
const before = drawn.length;
windows.dispatchEvent(new Event("beforeprint"));
chart.beforeUnmount.call(one);
windows.dispatchEvent(new Event("beforeprint"));
console.log(JSON.stringify([before, drawn]));
"""  # fmt: skip


@needs_node
def test_a_chart_that_nobody_has_seen_is_printed(tmp_path: Path) -> None:
    static = resources.files("services.dashboard").joinpath("static")
    for name in ("chart", "alone", "bars", "format"):
        source = static.joinpath(f"{name}.js").read_text(encoding="utf-8")
        (tmp_path / f"{name}.js").write_text(source.replace("/assets/", "./"))
    (tmp_path / "package.json").write_text('{"type": "module"}')
    told = "on() {}, dispose() {}, setOption: (_, how) => drawn.push(how)"
    stubs = {
        "vue": "export const h = () => null;",
        "nicegui-echart": f"export const drawn = []; export const echarts = {{ init: () => ({{ {told} }}) }};",
    }
    for name, source in stubs.items():
        folder = tmp_path / "node_modules" / name
        folder.mkdir(parents=True)
        (folder / "package.json").write_text('{"type": "module", "main": "index.js"}')
        (folder / "index.js").write_text(source)
    (tmp_path / "print.js").write_text(_PRINT)
    done = subprocess.run(["node", "print.js"], capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path)
    assert json.loads(done.stdout) == [0, [{"notMerge": True, "lazyUpdate": False}]]


def test_points_of_a_collapsed_run_are_no_dominated_ones() -> None:
    points = [
        *FRONT,
        _point(4, 0.95, 0.95, 0.95, on_front=False, collapsed=True),
        _point(5, 0.1, 0.1, 0.1, on_front=False),
    ]
    drawn = charts.front("x", "y", points, None, initial={}, reference={})
    places = {series["id"]: series["data"] for series in drawn["series"]}
    assert [place[:3] for place in places["collapsed"]] == [[0.95, 0.95, 4]]
    assert [place[:3] for place in places["dominated"]] == [[0.1, 0.1, 5]]
    assert "collapsed" in drawn["legend"]["data"]
    assert "collapsed" not in charts.front("x", "y", FRONT, None, initial={}, reference={})["legend"]["data"]
    looks = {line["value"][-1]: line["lineStyle"] for line in charts.parallel("xyz", points, None)["series"][0]["data"]}
    assert looks[4] not in (looks[1], looks[5])


@needs_node
def test_a_point_of_many_steps_has_a_shade_from_the_least_to_the_most(draw: Draw) -> None:
    drawn = draw(charts.line("kl"), [[32, 0.1, -0.2, 0.6], [64, 0.2, 0.0, 0.8], [66, 0.3, 0.3, 0.0]])
    assert drawn.lines(BLUE)[-1] == [(32, 0.1), (64, 0.2), (66, 0.3)]
    assert {(32, -0.2), (32, 0.4), (64, 0), (64, 0.8), (66, 0.3)} == set(drawn.areas(f"{BLUE}29")[0])
    single = draw(charts.line("kl"), [[1, 1.0, None, None], [2, 2.0, None, None]])
    assert single.axes[1] == pytest.approx([1, 2], abs=0.2)
