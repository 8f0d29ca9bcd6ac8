"""Charts as SVG: lines, bands and points in the page's own colours, no script. ElementTree escapes all text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

XY = tuple[float, float]

WIDE, SMALL = 540, 350  # as wide as they are shown, so that text keeps its size
HEIGHT = 290
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 40
NAMES, ROW = 180, 26  # of a forest plot: room for names, height of a row
MUTED = "var(--muted)"


@dataclass(frozen=True, kw_only=True)
class Series:
    """What is drawn in one colour: an area, a line, points with a text each (shown on hover), or several of them."""

    name: str
    colour: str
    area: Sequence[XY] = ()
    line: Sequence[XY] = ()
    points: Sequence[tuple[float, float, str]] = ()
    dash: bool = False
    faint: bool = False


def chart(
    title: str, series: Sequence[Series], *, across: str, up: str, width: int = WIDE,
    x_range: XY | None = None, y_range: XY | None = None,
) -> str:  # fmt: skip
    """The chart as an SVG element. Series are drawn in their order; ranges are those of the data unless given."""
    drawn = [p for s in series for p in (*s.area, *s.line, *((x, y) for x, y, _ in s.points))]
    xs, ys = [x for x, _ in drawn], [y for _, y in drawn]
    plane = _Plane(width, x_range or _padded(xs), y_range or _padded(ys))
    size = {"viewBox": f"0 0 {width} {HEIGHT}", "role": "img", "aria-label": title}
    svg = ElementTree.Element("svg", size)
    _axes(svg, plane, across, up)
    for one in series:
        _draw(svg, plane, one)
    return ElementTree.tostring(svg, encoding="unicode")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A row of a forest plot: a mean with its interval, if it has one, and the single values behind it."""

    name: str
    colour: str
    mean: float
    interval: XY | None
    values: Sequence[tuple[float, str]] = ()


def forest(title: str, rows: Sequence[Estimate], *, across: str) -> str:
    """A forest plot as an SVG element: a row for each estimate, in their order from above, and a line at 0."""
    drawn = [0.0, *(x for row in rows for x in (row.mean, *(row.interval or ()), *(x for x, _ in row.values)))]
    height = TOP + BOTTOM + ROW * len(rows)
    plane = _Plane(WIDE, _padded(drawn), (0.0, float(len(rows))), left=NAMES, height=height)
    svg = ElementTree.Element("svg", {"viewBox": f"0 0 {WIDE} {height}", "role": "img", "aria-label": title})
    for x in ticks(*plane.x_range):
        _rule(svg, plane.at(x, plane.y_range[1]), plane.at(x, 0.0))
        _text(svg, f"{x:.4g}", plane.at(x, 0.0)[0], height - BOTTOM + 15)
    _rule(svg, plane.at(0.0, plane.y_range[1]), plane.at(0.0, 0.0), colour=MUTED)
    _text(svg, across, (NAMES + WIDE - RIGHT) / 2, height - 6)
    for place, row in enumerate(reversed(rows)):
        up = place + 0.5
        _text(svg, row.name, NAMES - 8, plane.at(0.0, up)[1] + 4, "end", fill="var(--ink)")
        if row.interval is not None:
            low, high = row.interval
            _rule(svg, plane.at(low, up), plane.at(high, up), colour=row.colour, width="2")
        faint = [(x, up, told) for x, told in row.values]
        _draw(svg, plane, Series(name=row.name, colour=row.colour, points=faint, faint=True))
        told = f"{row.name}: {row.mean:+.3f}" + (" [{:+.3f}, {:+.3f}]".format(*row.interval) if row.interval else "")
        _draw(svg, plane, Series(name=row.name, colour=row.colour, points=[(row.mean, up, told)]))
    return ElementTree.tostring(svg, encoding="unicode")


@dataclass(frozen=True)
class _Plane:
    """From values to places in the picture."""

    width: int
    x_range: XY
    y_range: XY
    left: int = LEFT
    height: int = HEIGHT

    def at(self, x: float, y: float) -> XY:
        (x0, x1), (y0, y1) = self.x_range, self.y_range
        across = self.left + (x - x0) / (x1 - x0) * (self.width - self.left - RIGHT)
        return across, self.height - BOTTOM - (y - y0) / (y1 - y0) * (self.height - TOP - BOTTOM)

    def path(self, points: Iterable[XY]) -> str:
        return " ".join("{:.1f},{:.1f}".format(*self.at(x, y)) for x, y in points)


def _padded(values: Sequence[float]) -> XY:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = 0.05 * (high - low) or max(abs(low), 1.0) * 0.05
    return low - room, high + room


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values inside a range: 1, 2 or 5 times a power of ten apart."""
    size = 10 ** math.floor(math.log10((high - low) / about))
    step = next(size * by for by in (1, 2, 5, 10) if (high - low) / (size * by) <= about + 1)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _text(parent: ElementTree.Element, text: str, x: float, y: float, anchor: str = "middle", **more: str) -> None:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "fill": MUTED, "font-size": "11.5"}
    ElementTree.SubElement(parent, "text", place | more).text = text


def _rule(parent: ElementTree.Element, start: XY, end: XY, colour: str = "var(--rule)", width: str = "1") -> None:
    ends = zip(("x1", "y1", "x2", "y2"), (*start, *end), strict=True)
    look = {"stroke": colour, "stroke-width": width}
    ElementTree.SubElement(parent, "line", {key: f"{v:.1f}" for key, v in ends} | look)


def _axes(svg: ElementTree.Element, plane: _Plane, across: str, up: str) -> None:
    for x in ticks(*plane.x_range, about=plane.width // 75):
        place, _ = plane.at(x, plane.y_range[0])
        _rule(svg, (place, TOP), (place, HEIGHT - BOTTOM))
        _text(svg, f"{x:.4g}", place, HEIGHT - BOTTOM + 15)
    for y in ticks(*plane.y_range):
        _, place = plane.at(plane.x_range[0], y)
        _rule(svg, (LEFT, place), (plane.width - RIGHT, place))
        _text(svg, f"{y:.4g}", LEFT - 6, place + 4, "end")
    _text(svg, across, (LEFT + plane.width - RIGHT) / 2, HEIGHT - 6)
    middle = (TOP + HEIGHT - BOTTOM) / 2
    _text(svg, up, 13, middle, transform=f"rotate(-90 13 {middle:.0f})")


def _draw(svg: ElementTree.Element, plane: _Plane, series: Series) -> None:
    opacity = "0.35" if series.faint else "1"
    if series.area:
        look = {"fill": series.colour, "fill-opacity": "0.18", "stroke": "none"}
        ElementTree.SubElement(svg, "polygon", {"points": plane.path(series.area)} | look)
    if series.line:
        look = {"fill": "none", "stroke": series.colour, "stroke-width": "1" if series.faint else "2"}
        look |= {"stroke-opacity": opacity, "stroke-linejoin": "round"} | (
            {"stroke-dasharray": "5 4"} if series.dash else {}
        )
        line = ElementTree.SubElement(svg, "polyline", {"points": plane.path(series.line)} | look)
        ElementTree.SubElement(line, "title").text = series.name
    for x, y, told in series.points:
        across, up = plane.at(x, y)
        look = {"fill": series.colour, "fill-opacity": opacity, "r": "3.5" if series.faint else "5"}
        dot = ElementTree.SubElement(svg, "circle", {"cx": f"{across:.1f}", "cy": f"{up:.1f}"} | look)
        ElementTree.SubElement(dot, "title").text = told
