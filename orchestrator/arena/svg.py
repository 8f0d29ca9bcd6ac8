"""Charts as SVG: lines, bands and points in the page's own colours, no script. ElementTree escapes all text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

XY = tuple[float, float]

WIDE, SMALL = 540, 350  # as wide as they are shown, so that text keeps its size
HEIGHT = 290
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40
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


@dataclass(frozen=True)
class _Plane:
    """From values to places in the picture."""

    width: int
    x_range: XY
    y_range: XY

    def at(self, x: float, y: float) -> XY:
        (x0, x1), (y0, y1) = self.x_range, self.y_range
        across = LEFT + (x - x0) / (x1 - x0) * (self.width - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

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


def _axes(svg: ElementTree.Element, plane: _Plane, across: str, up: str) -> None:
    def rule(start: XY, end: XY) -> None:
        ends = zip(("x1", "y1", "x2", "y2"), (*start, *end), strict=True)
        ElementTree.SubElement(svg, "line", {key: f"{v:.1f}" for key, v in ends} | {"stroke": "var(--rule)"})

    for x in ticks(*plane.x_range, about=plane.width // 75):
        place, _ = plane.at(x, plane.y_range[0])
        rule((place, TOP), (place, HEIGHT - BOTTOM))
        _text(svg, f"{x:.4g}", place, HEIGHT - BOTTOM + 15)
    for y in ticks(*plane.y_range):
        _, place = plane.at(plane.x_range[0], y)
        rule((LEFT, place), (plane.width - RIGHT, place))
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
