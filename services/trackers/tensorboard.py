"""TensorBoard's files of a job: DIRECTORY/NAME/ID/events.out.tfevents.*, a new file for each call."""

from __future__ import annotations

import fcntl
import os
import re
import time
from pathlib import Path
from typing import Any

import yaml

from services.trackers import event_file
from services.trackers.base import NOTHING, Entry, Run, Table
from services.trackers.event_file import EventFile

_EVENTS = "events.out.tfevents.*"
_NAME_BYTES = 255
_MARKED = {ord(sign): f"&#{ord(sign)};" for sign in "\\`*_[]<>|&#~"}  # what Markdown or HTML would take for its own


class TensorBoard:
    """Raises OSError where the directory can't be used, and where another process writes this job's files."""

    def __init__(self, run: Run, directory: Path) -> None:
        self.run = run
        self.folder = directory.expanduser() / _file_name(run.name) / run.id
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / ".lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise OSError(f"another `equipoise follow` writes {self.folder}") from None
        self._file: EventFile | None = None
        self._last = max(
            (step for path in self.folder.glob(_EVENTS) for step in event_file.summary_steps(path)), default=NOTHING
        )

    def last_step(self) -> int:
        return self._last

    def log(self, entry: Entry) -> None:
        values = [event_file.scalar(name, value) for name, value in entry.figures.items()]
        values += [event_file.text(name, _markdown(table)) for name, table in entry.tables.items()]
        if self._last == NOTHING:
            values += self._about(entry)
        if self._file is None:
            path = self.folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}.equipoise"
            self._file = EventFile(path, wall_time=time.time())
        self._file.write(step=entry.step, wall_time=entry.at, values=values)
        self._last = entry.step

    def close(self, status: str) -> None:
        del status
        if self._file is not None:
            self._file.close()
        self._lock.close()

    def _about(self, first: Entry) -> list[bytes]:
        """With the first step, so that they are there once."""
        spec = yaml.safe_dump(dict(self.run.spec), sort_keys=False, allow_unicode=True)
        indented = "".join(f"    {line}\n" for line in spec.splitlines())
        return [
            event_file.text("spec", indented),
            event_file.hparams(self.run.settings(), group=self.run.id, started_at=first.at),
        ]


def _file_name(name: str) -> str:
    """Of no more bytes than file systems take, cut between characters."""
    taken = re.sub(r"[^\w .+-]", "_", name).encode()[:_NAME_BYTES].decode(errors="ignore")
    return taken.strip(" .") or "job"


def _markdown(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).translate(_MARKED).replace("\r", "").replace("\n", "<br>")
