"""Sees one objective being hacked: another falls, and the whole gets worse for it.

Training towards a person's weights may lower an objective on purpose. So a fall alone is no collapse: it is one when
the preference-weighted total, which is what the person asked to raise, has fallen below its own best as well. Both
must have fallen further than the noise of a held-out mean explains: the best of many evaluations was lucky, too, and
the more so the more there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from policies.statistics import surely

SURE = 2.5  # standard errors by which a fall exceeds its threshold; tests have the rate of false alarms
LOOKS = 30  # evaluations for which that is enough
SAME = 1e-9  # weights that differ by less were meant to be the same: scaling them moves their last digits


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
    fall_error: float = 0.0  # standard error of the objective's fall; 0 where the evaluations tell none

    def describe(self) -> str:
        held = f" while {' and '.join(self.held_up)} held up" if self.held_up else ""
        error = f" (standard error of the fall {self.fall_error:.2f})" if self.fall_error else ""
        return (
            f"{self.objective} fell from {self.best:.2f} to {self.now:.2f}{error}{held}; the weighted total is "
            f"{self.total_now:.2f}, below {self.total_best:.2f} at step {self.best_step}"
        )


class CollapseWatch:
    """Compares each evaluation with the best total so far, by the weights of now.

    A collapse begins where the falls exceed their thresholds by SURE standard errors, by more after LOOKS evaluations.
    It is over once what fell is within `drop` of its best, or the total has all come back: what is hacked goes on
    rising, and may make up for most of what was lost. A steer by itself neither ends one nor begins one: what would be
    one by new weights alone was asked for, and the watch starts again from the last evaluation.
    """

    def __init__(self, *, drop: float, total_drop: float) -> None:
        self.drop = drop
        self.total_drop = total_drop
        self._weights: dict[str, float] = {}
        self._best: dict[str, Any] | None = None
        self._last: dict[str, Any] | None = None
        self._collapsed = False
        self._looks = 0

    def observe(
        self,
        step: int,
        normalised: Mapping[str, float],
        preference: Mapping[str, float],
        errors: Mapping[str, float] | None = None,
    ) -> Collapse | None:
        """A Collapse while the run is in one, else None. `errors`: of the means, normalised too; none where unknown."""
        if not _same(preference, self._weights):
            self._aim(dict(preference))
        self._looks += 1
        now = {"step": step, "objectives": dict(normalised), "errors": dict(errors or {})}
        found = None if self._best is None else self._fall(self._best, now)
        if self._best is None or self._total(now) > self._total(self._best):
            self._best = now
        self._last = now
        self._collapsed = found is not None
        return found

    def _aim(self, weights: dict[str, float]) -> None:
        self._weights = weights
        if self._best is None or self._last is None or self._collapsed:
            return
        if self._total(self._last) > self._total(self._best) or self._fall(self._best, self._last) is not None:
            self._best = self._last

    def _fall(self, best: Mapping[str, Any], now: Mapping[str, Any]) -> Collapse | None:
        sure = 0.0 if self._collapsed else surely(SURE, self._looks, upto=LOOKS)
        total_drop = SAME if self._collapsed else self.total_drop
        falls = {name: best["objectives"][name] - value for name, value in now["objectives"].items()}
        errors = {name: math.hypot(_error(best, name), _error(now, name)) for name in falls}
        total_error = math.hypot(*(self._weights[name] * error for name, error in errors.items()))
        fallen = [
            name for name, fall in falls.items() if self._weights[name] > 0 and fall >= self.drop + sure * errors[name]
        ]
        if not fallen or self._total(best) - self._total(now) < total_drop + sure * total_error:
            return None
        worst = max(fallen, key=lambda name: self._weights[name] * falls[name])
        return Collapse(
            step=now["step"],
            best_step=best["step"],
            objective=worst,
            best=best["objectives"][worst],
            now=now["objectives"][worst],
            held_up=tuple(name for name, fall in falls.items() if fall <= 0.02 and name != worst),
            total_best=self._total(best),
            total_now=self._total(now),
            fall_error=errors[worst],
        )

    def _total(self, seen: Mapping[str, Any]) -> float:
        return float(sum(weight * seen["objectives"][name] for name, weight in self._weights.items()))

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": self._weights,
            "best": self._best,
            "last": self._last,
            "collapsed": self._collapsed,
            "looks": self._looks,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._weights, self._best = dict(state["weights"]), state["best"]
        self._collapsed = state.get("collapsed", False)  # older checkpoints have none of the three
        self._last = state.get("last", self._best)
        self._looks = state.get("looks", 0)


def _same(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return one.keys() == other.keys() and all(abs(one[name] - other[name]) <= SAME for name in one)


def _error(seen: Mapping[str, Any], name: str) -> float:
    """Of a mean; none in older checkpoints, which did not keep it."""
    return float(seen.get("errors", {}).get(name, 0.0))
