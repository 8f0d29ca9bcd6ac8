"""What the panels of a job's page share."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from nicegui import Client

from services.dashboard.elements import Chart, Tag, text
from services.dashboard.series import Tail, closer, stride
from services.dashboard.sessions import Session
from services.dashboard.watch import JobWatch, News


class Panel(Protocol):
    """A part of the page."""

    async def update(self, news: News) -> None:
        """Shows what is new; runs in the page's context."""
        ...


class JobPage:
    """What the panels share: whose page it is, the watch of the job, and one message for all charts that grow."""

    def __init__(self, session: Session, watch: JobWatch, client: Client) -> None:
        self.session, self.watch, self.client = session, watch, client
        self.ask_fork: Callable[[int | None], Awaitable[None]] = _nothing  # the header's dialog
        self.show_rollouts: Callable[[int | None], Awaitable[None]] = _nothing
        self._patches: list[list[Any]] = []
        self._tails: dict[int, Tail] = {}

    @property
    def names(self) -> list[str]:
        return self.watch.objectives

    @property
    def falling(self) -> list[str]:
        """Objectives that the newest step pushed down."""
        return list(self.watch.signs.get("falling", ()))

    @property
    def stride(self) -> int:
        """Steps in a point of a chart."""
        return stride(len(self.watch.columns))

    @property
    def thinned(self) -> str:
        """What stands beside charts whose points are no single steps."""
        if self.stride == 1:
            return ""
        return f"Each point is the mean of {self.stride} steps; zoom in (Ctrl and the wheel) to see fewer in one."

    def grow(self, chart: Chart, columns: list[str], shape: Any = None, *, extremes: bool = False) -> None:
        """Sends what a chart of these columns lacks, with the next `flush`. `shape` is done to the rows before."""
        tail = self._tails.get(chart.id)
        if tail is None:
            tail = self._tails[chart.id] = Tail()
            chart.on("zoom", lambda event: self._look_closer(chart, columns, shape, extremes, event.args))
        found = tail.next_rows(self.watch.columns, columns, self.watch.generation, extremes=extremes)
        if found is not None:
            start, new = found
            self.put(chart, start, new if shape is None else shape(new))

    def _look_closer(self, chart: Chart, columns: list[str], shape: Any, extremes: bool, ends: Any) -> None:
        """A person has zoomed in, to a first and a last step."""
        if not isinstance(ends, list) or len(ends) != 2 or not all(type(end) is int for end in ends):
            return
        found = closer(self.watch.columns, columns, *ends, extremes=extremes)
        if found is not None:
            first, last, new = found
            chart.run_method("look", first, last, _brief(new if shape is None else shape(new)))

    def put(self, chart: Chart, start: int, new: list[Any], dataset: int = 0) -> None:
        self._patches.append([chart.id, dataset, start, _brief(new)])

    def flush(self) -> None:
        if self._patches:
            sent, self._patches = json.dumps(self._patches, separators=(",", ":")), []
            self.client.run_javascript(f"for (const [id, ...rest] of {sent}) runMethod(id, 'patch', rest)")

    def latest(self, column: str) -> Any:
        values = self.watch.columns.values.get(column)
        return values[-1] if values else None


async def _nothing(_: int | None) -> None: ...


def _brief(found: list[Any]) -> list[Any]:
    return [[float(f"{value:.5g}") if isinstance(value, float) else value for value in row] for row in found]


@contextmanager
def section(title: str, note: str = "") -> Iterator[Tag]:
    """A card with a heading; gives the place for its tools, at the end of that line."""
    with Tag("section", "", "card", id=title.lower(), aria_label=title):
        with Tag("div", "", "section-head"):
            Tag("h2", title)
            if note:
                text(note, "muted")
            tools = Tag("div", "", "section-tools")
        yield tools
