"""What happened to a job, and the spec that it runs with every default written out."""

from __future__ import annotations

import json
import time
from typing import Any

import yaml
from nicegui import ui

from services.client.types import Event
from services.dashboard.elements import Choice, Table, Tag, text
from services.dashboard.exports import csv_text
from services.dashboard.figures import figure
from services.dashboard.panels import JobPage, section
from services.dashboard.watch import News

SHOWN = 100
_LEVELS = {"": ("info", "warning", "error"), "warning": ("warning", "error"), "error": ("error",)}
_EMPTY = {"": "Nothing happened yet.", "warning": "No warnings and no errors so far.", "error": "No errors so far."}


class EventsPanel:
    """The newest events first."""

    def __init__(self, page: JobPage) -> None:
        self.page = page
        self._level = ""
        with section("Log") as tools:
            with tools:
                levels = {"": "all levels", "warning": "warnings and errors", "error": "errors"}
                Choice("Level", levels, "", self._choose, hidden=True)
            columns: list[dict[str, Any]] = [
                {"key": "seq", "label": "No.", "kind": "number"},
                {"key": "at", "label": "When", "kind": "time"},
                {"key": "level", "label": "Level", "kind": "level"},
                {"key": "type", "label": "Event", "kind": "code"},
                {"key": "told", "label": "What it says", "wide": True},
            ]
            self._words = text("", "muted", "p")
            self._table = Table(columns, caption="Events", on_csv=self._save, loading=True, empty=_EMPTY[""])

    async def update(self, news: News) -> None:
        if "events" in news:
            self._fill()

    def _choose(self, level: str) -> None:
        self._level = level
        self._fill()

    def _events(self) -> list[Event]:
        watch = self.page.watch
        found = watch.faults if self._level else watch.events
        return [event for event in reversed(found) if event["level"] in _LEVELS[self._level]]

    def _said(self, held: int) -> str:
        """What of these events the table and the CSV don't have."""
        count = sum(self.page.watch.event_counts[level] for level in _LEVELS[self._level])
        if count <= SHOWN:
            return ""
        known = "all of them" if held == count else f"the newest {held:,}"
        return f"The newest {SHOWN} of {count:,} are shown; the CSV has {known}."

    def _fill(self) -> None:
        found = self._events()
        rows = [
            {
                "id": e["seq"],
                "seq": e["seq"],
                "at": e["at"],
                "level": e["level"],
                "type": e["type"],
                "told": told(e),
                "tone": e["level"],
            }
            for e in found[:SHOWN]
        ]
        self._words.set_text(self._said(len(found)))
        self._table.change(rows=rows, loading=False, empty=_EMPTY[self._level])

    def _save(self) -> None:
        rows = [
            [
                e["seq"],
                time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(e["at"])),
                e["level"],
                e["type"],
                json.dumps(e["data"]),
            ]
            for e in self._events()
        ]
        ui.download.content(
            csv_text(["seq", "at", "level", "type", "data"], rows), f"{self.page.watch.job_id}-events.csv", "text/csv"
        )


def told(event: Event) -> str:
    """A line: the message where there is one, else what it holds."""
    data = event["data"]
    if message := data.get("message"):
        return str(message)
    known = {key: value for key, value in data.items() if value not in ("", None) and key not in ("described",)}
    if event["type"] == "evaluated":
        known = {key: known[key] for key in ("step", "objectives", "hypervolume", "on_front") if key in known}
    return "; ".join(f"{key} {_value(value)}" for key, value in known.items())[:600]


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value)
    return figure(value) if isinstance(value, float) else str(value)


class SpecPanel:
    """As YAML, in the form in which it could be submitted again."""

    def __init__(self, page: JobPage) -> None:
        self.page = page
        spec = page.watch.job["spec"]
        with section("Spec", "resolved: every default is written out") as tools:
            with tools:
                Tag("a", "Submit one like it", "button", href=f"/submit?like={page.watch.job_id}") if page.session.may(
                    "submit"
                ) else None
            shown = yaml.safe_dump(spec, sort_keys=False, allow_unicode=True, width=100)
            text(shown, "spec", "pre").attributes(tabindex="0", aria_label="Resolved spec")

    async def update(self, news: News) -> None:
        """It never changes."""
