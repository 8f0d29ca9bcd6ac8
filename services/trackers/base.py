"""What a tracker is told, and what it must be able to say."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from services.text import is_number

NOTHING = -1  # the last step of a tracker that was told nothing yet: an initial policy is step 0


class NotInstalled(ValueError):
    """The tracker's package is not there; the message says how to get it."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The job, as trackers know it."""

    id: str
    name: str
    spec: Mapping[str, Any]

    def settings(self) -> dict[str, float | bool | str]:
        """The spec's values by dotted path. Lists of plain values are one, as JSON; what is null is left out."""
        return dict(_flat("", self.spec))


@dataclass(frozen=True, kw_only=True)
class Table:
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Everything of one step."""

    step: int
    at: float  # seconds since 1970
    figures: Mapping[str, float]
    tables: Mapping[str, Table] = field(default_factory=dict)


class Tracker(Protocol):
    """One run of one tracker. Whatever its library raises is trouble of the tracker, never of the job."""

    def last_step(self) -> int:
        """The last step that it holds whole, whoever logged it; NOTHING before the first."""
        ...

    def log(self, entry: Entry) -> None:
        """A later step than any before; whole or not at all, as far as the tracker's own calls are."""
        ...

    def close(self, status: str) -> None:
        """Nothing more comes from here. `status` is the job's."""
        ...


def needed(module: str, option: str, package: str) -> Any:
    """An optional package, imported when it is asked for. Raises NotInstalled."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != module:
            raise NotInstalled(f"{option}: the package {package} does not load: {error}") from None
        raise NotInstalled(
            f"{option} needs the package {package}, which is not installed here: "
            f"`.venv/bin/python -m pip install {package}`"
        ) from None


def _flat(path: str, value: Any) -> list[tuple[str, float | bool | str]]:
    if value is None:
        return []
    if isinstance(value, bool | str) or is_number(value):
        return [(path, value)]
    if isinstance(value, Mapping):
        parts = [(str(key), item) for key, item in value.items()]
    elif any(isinstance(item, Mapping) for item in value):
        parts = [(str(i), item) for i, item in enumerate(value)]
    else:
        return [(path, json.dumps(value, ensure_ascii=False))]
    return [pair for key, item in parts for pair in _flat(f"{path}.{key}" if path else key, item)]
