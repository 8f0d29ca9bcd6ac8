"""A person's edit of the steering, and changes in words."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.client.types import Steering
from services.dashboard.figures import percent


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
    return "; ".join(said) or "as submitted"
