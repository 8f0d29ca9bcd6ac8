"""`accuracy>=0.8 by conciseness` on a command line: which step of a job it means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.client import Client
from services.terminal import Document, fail, say
from services.text import figure, plain

STEP_HELP = "a step that is kept, `latest`, `best`, or words such as `accuracy>=0.8 by conciseness`"


def step_of(client: Client, job_id: str, words: str) -> int:
    """Of the checkpoint that is meant; ends the command where none is."""
    if words.isascii() and words.isdigit() and len(words) < 16:
        return int(words)
    if words == "latest":
        kept = [found["step"] for found in client.checkpoints(job_id)["data"]]
        return max(kept) if kept else fail("no checkpoint is kept yet")
    if words != "best" and not is_choice(words):
        fail(f"'{words}': expected {STEP_HELP}")
    require, by = ([], "weights") if words == "best" else split(words)
    found = picked(client.front(job_id, require=require or None, by=by), require)
    say(picked_line(found, list(found["objectives"])))
    return int(found["step"])


def is_choice(words: str) -> bool:
    """Whether it has a condition, which neither a step nor a name has."""
    return ">=" in words or "<=" in words or words.startswith("by ")


def split(words: str) -> tuple[list[str], str | None]:
    """(conditions, what they are picked by)."""
    padded = f" {words}"
    conditions, found, by = padded.rpartition(" by ")
    parts = conditions if found else padded
    return [part.strip() for part in parts.split(",") if part.strip()], by.strip() if found else None


def picked(front: Document, require: Sequence[str]) -> Any:
    """The point that the server picked; ends the command where there is none."""
    found = front["picked"]
    if found is None:
        asked = f" that has {' and '.join(require)}" if require else ""
        fail(f"no point of the front{asked} has its checkpoint kept; `equipoise front` shows what they reach")
    return found


def picked_line(point: Document, names: Sequence[str]) -> str:
    """Step and means, and beside them those of the test split and of further sets."""
    told = [f"step {point['step']}: {_means(point, names)}"]
    told += [f"test {plain(kind)}: {_means(found, names)}" for kind, found in (point.get("test") or {}).items()]
    told += [f"{plain(name)}: {_means(found, names)}" for name, found in (point.get("sets") or {}).items()]
    return "; ".join(told)


def _means(values: Document, names: Sequence[str]) -> str:
    means = values.get("objectives") or {}
    return ", ".join(f"{plain(name)} {figure(means.get(name))}" for name in names)
