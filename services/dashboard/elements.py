"""Our own elements for NiceGUI's pages. None of them ever makes HTML of text.

What comes from outside stands in values, never in the names of properties: NiceGUI evaluates those that begin with `:`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Self

from nicegui import ui
from nicegui.element import Element
from nicegui.elements.mixins.text_element import TextElement
from nicegui.events import GenericEventArguments

Handler = Callable[..., Awaitable[None] | None]
Json = dict[str, Any]


class Tag(TextElement):
    """An HTML element with text; `attributes` such as aria-label are given as they are."""

    def __init__(self, tag: str, text: str = "", classes: str = "", **attributes: Any) -> None:
        super().__init__(tag=tag, text=text)
        self.classes(classes)
        self.attributes(**attributes)

    def attributes(self, **attributes: Any) -> Self:
        """`aria_label` is aria-label; None takes one away."""
        for name, value in attributes.items():
            name = name.rstrip("_").replace("_", "-")
            if value is None:
                self._props.pop(name, None)
            else:
                self._props[name] = value
        self.update()
        return self


class Button(Tag):
    """A native button. `tone` is main, quiet, or danger. A click while the last one is being answered is no other."""

    def __init__(self, text: str, on_click: Handler | None = None, tone: str = "", **attributes: Any) -> None:
        super().__init__("button", text, tone, type="button", **attributes)
        self._is_busy = False

        def clicked(_: GenericEventArguments) -> Awaitable[None] | None:
            if self._is_busy or on_click is None:
                return None
            waiting = on_click()
            if not asyncio.iscoroutine(waiting):  # NiceGUI's dialogs can be awaited, and would open again
                return None
            self._is_busy = True
            return self._answered(waiting)

        if on_click is not None:
            self.on("click", clicked, args=[])

    async def _answered(self, waiting: Awaitable[None]) -> None:
        try:
            await waiting
        finally:
            self._is_busy = False

    def enable(self, is_enabled: bool, why: str = "") -> None:
        """`why` not: shown on hovering, and read out."""
        self.attributes(disabled=None if is_enabled else True, title=None if is_enabled or not why else why)


class Component(Element):
    """An element of static/*.js with its properties."""

    def __init__(self, **properties: Any) -> None:
        super().__init__()
        self._props.update({name: value for name, value in properties.items() if value is not None})

    def change(self, **properties: Any) -> None:
        """Only what differs is sent."""
        changed = {name: value for name, value in properties.items() if self._props.get(name) != value}
        if changed:
            self._props.update(changed)
            self.update()


class Chart(Component, component="static/chart.js", esm={}):
    """A figure of services/dashboard/charts.py."""

    def __init__(self, title: str, option: Json, *, on_pick: Handler | None = None, **properties: Any) -> None:
        super().__init__(title=title, option=option, **properties)
        if on_pick is not None:
            self.on("pick", lambda event: on_pick(event.args))

    def merge(self, part: Mapping[str, Any], *, replace: bool = False) -> None:
        self.run_method("merge", dict(part), replace)


class Table(Component, component="static/table.js"):
    """Rows of figures and text."""

    def __init__(
        self,
        columns: Sequence[Json],
        *,
        caption: str,
        on_pick: Handler | None = None,
        on_sort: Handler | None = None,
        on_csv: Handler | None = None,
        **properties: Any,
    ) -> None:
        super().__init__(columns=list(columns), caption=caption, csv=on_csv is not None, **{"rows": [], **properties})
        if on_pick is not None:
            self.on("pick", lambda event: on_pick(event.args))
        if on_sort is not None:
            self.on("sort", lambda event: on_sort(str(event.args)))
        if on_csv is not None:
            self.on("csv", lambda _: on_csv(), args=[])

    @property
    def rows(self) -> list[Json]:
        rows: list[Json] = self._props["rows"]
        return rows

    @property
    def columns(self) -> list[Json]:
        columns: list[Json] = self._props["columns"]
        return columns


class Simplex(Component, component="static/simplex.js"):
    """Weights that a person may move."""

    def __init__(self, names: Sequence[str], on_edit: Handler, **properties: Any) -> None:
        super().__init__(names=list(names), **properties)
        self._seen = 0  # edits that have come here: a page takes no word that was said before its own newest

        def edited(event: GenericEventArguments) -> Awaitable[None] | None:
            self._seen = self._props["seen"] = int(event.args["edits"])
            return on_edit(event.args)

        self.on("edit", edited)

    def set(self, weights: Mapping[str, float], bounds: Mapping[str, Sequence[float]]) -> None:
        """Also the properties, for a page that is drawn anew."""
        self._props.update(weights=dict(weights), bounds=dict(bounds))
        self.run_method("set", dict(weights), {n: list(pair) for n, pair in bounds.items()}, self._seen)


class Choice(Component, component="static/choice.js"):
    """A select; `options` are value and text."""

    def __init__(
        self,
        label: str,
        options: Mapping[str, str],
        value: str,
        on_choose: Handler | None = None,
        *,
        hidden: bool = False,
    ) -> None:
        super().__init__(label=label, options=_options(options), value=value, hidden=hidden)

        async def chosen(event: GenericEventArguments) -> None:
            self._props["value"] = str(event.args)
            if on_choose is not None and (waiting := on_choose(str(event.args))) is not None:
                await waiting

        self.on("choose", chosen)

    @property
    def value(self) -> str:
        return str(self._props["value"])

    def offer(self, options: Mapping[str, str], value: str) -> None:
        self.change(options=_options(options), value=value)


def _options(options: Mapping[str, str]) -> list[Json]:
    return [{"value": value, "text": text} for value, text in options.items()]


class Field(Component, component="static/field.js"):
    """A text field; `value` is what was typed when the field was last left, which a click on a button does too."""

    def __init__(self, label: str, value: str = "", on_change: Handler | None = None, **properties: Any) -> None:
        super().__init__(label=label, value=value, **properties)
        self.value = value

        def changed(event: GenericEventArguments) -> None:
            self.value = str(event.args)

        self.on("change", changed)
        if on_change is not None:
            self.on("change", lambda _: on_change(), args=[])

    def set(self, text: str) -> None:
        self.value = text
        self._props["value"] = text
        self.run_method("set", text)

    def problem(self, text: str) -> None:
        self.change(problem=text)


class Moment(Component, component="static/moment.js"):
    """A time, in seconds since 1970."""

    def __init__(self, at: float | None) -> None:
        super().__init__(at=at)


class Command(Component, component="static/command.js"):
    """A line for a shell that a person may copy."""

    def __init__(self, label: str, command: str) -> None:
        super().__init__(label=label, command=command)


class Upload(Component, component="static/upload.js"):
    """A file of prompts that becomes a dataset; `on_uploaded` gets its id and rows, as the browser tells them."""

    def __init__(self, on_uploaded: Handler) -> None:
        super().__init__()
        self.on("uploaded", lambda event: on_uploaded(event.args))


def text(content: str, classes: str = "", tag: str = "span") -> Tag:
    """Foreign text: its direction is its own."""
    return Tag(tag, content, classes, dir="auto")


def say(message: str, kind: str = "info") -> None:
    """A passing note; read out by screen readers."""
    look: Any = {"good": "positive", "bad": "negative"}.get(kind)
    ui.notify(message, type=look, position="bottom", timeout=5000, html=False)
