"""Sees one objective being hacked: another falls, and the whole gets worse for it.

Training towards a person's weights may lower an objective on purpose. So a fall alone is no collapse: it is one when
the preference-weighted total, which is what the person asked to raise, has fallen below its own best as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """What fell, from which best, and what did not fall with it (the one that is probably being hacked)."""

    step: int
    best_step: int  # of the best total: take the checkpoint from here
    objective: str
    best: float  # normalised to [0, 1]
    now: float
    held_up: tuple[str, ...]
    total_best: float
    total_now: float

    def describe(self) -> str:
        held = f" while {' and '.join(self.held_up)} held up" if self.held_up else ""
        return (
            f"{self.objective} fell from {self.best:.2f} to {self.now:.2f}{held}; the weighted total is "
            f"{self.total_now:.2f}, below {self.total_best:.2f} at step {self.best_step}"
        )


class CollapseWatch:
    """Compares each evaluation with the best total since the weights were last steered.

    Weights that are steered during a collapse do not end it: its best counts on, by the new ones.
    """

    def __init__(self, *, drop: float, total_drop: float) -> None:
        self.drop = drop
        self.total_drop = total_drop
        self._weights: dict[str, float] = {}
        self._best: dict[str, Any] | None = None
        self._collapsed = False

    def observe(self, step: int, normalised: Mapping[str, float], preference: Mapping[str, float]) -> Collapse | None:
        """A Collapse while the run is in one, else None. New weights are a new aim, and start the watch again."""
        if dict(preference) != self._weights:
            self._aim(dict(preference))
        found = self._fall(step, normalised)
        self._collapsed = found is not None
        return found

    def _aim(self, weights: dict[str, float]) -> None:
        best = self._best if self._collapsed else None
        self._weights = weights
        self._best = None if best is None else best | {"total": _total(best["objectives"], weights)}

    def _fall(self, step: int, normalised: Mapping[str, float]) -> Collapse | None:
        preference, total = self._weights, _total(normalised, self._weights)
        if self._best is None or total > self._best["total"]:
            self._best = {"step": step, "total": total, "objectives": dict(normalised)}
            return None
        falls = {name: self._best["objectives"][name] - normalised[name] for name in normalised}
        fallen = [name for name, fall in falls.items() if fall >= self.drop and preference[name] > 0]
        if not fallen or self._best["total"] - total < self.total_drop:
            return None
        worst = max(fallen, key=lambda name: preference[name] * falls[name])
        return Collapse(
            step=step,
            best_step=self._best["step"],
            objective=worst,
            best=self._best["objectives"][worst],
            now=normalised[worst],
            held_up=tuple(name for name, fall in falls.items() if fall <= 0.02 and name != worst),
            total_best=self._best["total"],
            total_now=total,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self._weights, "best": self._best, "collapsed": self._collapsed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._weights, self._best = dict(state["weights"]), state["best"]
        self._collapsed = state.get("collapsed", False)  # older checkpoints have none


def _total(normalised: Mapping[str, float], weights: Mapping[str, float]) -> float:
    return sum(weight * normalised[name] for name, weight in weights.items())
