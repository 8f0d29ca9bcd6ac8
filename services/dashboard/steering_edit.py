"""A person's edit of the steering, and changes in words."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.client.types import Steering, SteeringEntry
from services.dashboard.figures import percent

PARTS = ("mode", "blend", "weights", "bounds")
MODES = ("auto", "blend", "manual")


@dataclass
class Edit:
    """What a person wants, made on `base`. Only what differs from it is sent."""

    base: Steering
    mode: str = "auto"
    blend: float = 0.5
    weights: dict[str, float] = field(default_factory=dict)
    bounds: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, base: Steering) -> Edit:
        bounds = {name: list(pair) for name, pair in base["bounds"].items()}
        return cls(base, base["mode"], base["blend"], dict(base["weights"]), bounds)

    @classmethod
    def read(cls, document: Any, names: Collection[str]) -> Edit | None:
        """What `document` gave, out of a browser; None where it is no edit of these objectives."""
        base = document.get("base") if isinstance(document, dict) else None
        if not isinstance(base, dict) or type(base.get("version")) is not int:
            return None
        if not (_is_steering(base, names) and _is_steering(document, names)):
            return None
        known = {part: base[part] for part in ("version", *PARTS)}
        stood: Any = {**known, "strategy": None, "log": [], "log_has_more": False}
        return cls(stood, *(document[part] for part in PARTS))

    def document(self) -> dict[str, Any]:
        """To be kept by a browser."""
        base: Mapping[str, Any] = self.base
        wanted = {"mode": self.mode, "blend": self.blend, "weights": self.weights, "bounds": self.bounds}
        return {"base": {part: base[part] for part in ("version", *PARTS)}, **wanted}

    def change(self) -> dict[str, Any]:
        """The body of a steer; empty where nothing differs."""
        found: dict[str, Any] = {}
        if self.mode != self.base["mode"]:
            found["mode"] = self.mode
        if abs(self.blend - self.base["blend"]) > 1e-6:
            found["blend"] = self.blend
        if any(abs(self.weights[name] - weight) > 2e-4 for name, weight in self.base["weights"].items()):
            found["weights"] = self.weights
        bounds = {
            name: pair
            for name, pair in self.bounds.items()
            if any(abs(a - b) > 1e-6 for a, b in zip(pair, self.base["bounds"].get(name, (0.0, 1.0)), strict=True))
        }
        return found | ({"bounds": bounds} if bounds else {})

    def onto(self, base: Steering) -> Edit:
        """The same wishes on a newer version."""
        wanted = self.change()
        bounds = {name: list(pair) for name, pair in base["bounds"].items()} | wanted.get("bounds", {})
        return Edit(
            base,
            wanted.get("mode", base["mode"]),
            wanted.get("blend", base["blend"]),
            dict(wanted.get("weights", base["weights"])),
            bounds,
        )


def _is_steering(document: Mapping[str, Any], names: Collection[str]) -> bool:
    weights, bounds = document.get("weights"), document.get("bounds")
    if not (isinstance(weights, dict) and isinstance(bounds, dict) and document.get("mode") in MODES):
        return False
    pairs = list(bounds.values())
    if set(weights) != set(names) or set(bounds) != set(names):
        return False
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        return False
    shares = [document.get("blend"), *weights.values(), *(end for pair in pairs for end in pair)]
    return all(type(share) in (int, float) and 0 <= share <= 1 for share in shares)


def parts_at(log: Iterable[SteeringEntry], version: int) -> dict[str, Any]:
    """Of the steering under a version, what changes up to it say, in their order; the first one says all of it."""
    found: dict[str, Any] = {}
    for entry in log:
        if entry["version"] <= version:
            found |= {part: entry["change"][part] for part in PARTS if part in entry["change"]}
    return found


def alike(one: Any, other: Any) -> bool:
    """Whether two changes say the same: the server scales weights, which may move their last digits."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(alike(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(alike(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, abs_tol=1e-6)
    return bool(one == other)


def mix(weights: Mapping[str, Any], falling: Collection[str] = ()) -> str:
    """With an arrow at what is pushed down."""
    told = ", ".join(f"{name} {percent(weight)}{' ↓' * (name in falling)}" for name, weight in weights.items())
    return f"{told} (↓ is pushed down)" if any(name in falling for name in weights) else told


def mode_name(mode: str) -> str:
    return {"auto": "the learner decides", "blend": "a blend", "manual": "the person's weights"}.get(mode, mode)


def changed(change: Mapping[str, Any]) -> str:
    """A change in words."""
    said = []
    if "mode" in change:
        said.append(mode_name(str(change["mode"])))
    if "blend" in change:
        said.append(f"{percent(change['blend'])} of the person's")
    if "weights" in change:
        said.append(mix(change["weights"]))
    for name, pair in (change.get("bounds") or {}).items():
        if list(pair) != [0.0, 1.0]:
            said.append(f"{name} between {percent(pair[0])} and {percent(pair[1])}")
    if change.get("guardrails") is not None:
        said.append(f"guardrails on {', '.join(rule['metric'] for rule in change['guardrails']) or 'nothing'}")
    if said and "over" in change:
        said.append(f"over {change['over']:,} steps")
    return "; ".join(said) or "as submitted"
