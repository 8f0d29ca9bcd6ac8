"""Sees a proxy being over-optimised: its mean goes on rising while a gold reward falls (arXiv 2210.10760).

The rule. A reading has the mean of each objective and of the gold reward over the same rollouts, each in units of its
range. Gold's level is the mean of its last `window` readings, an objective's likewise of those that it has. Once a
window is full, gold's best level is remembered, and every objective's level beside it, or its first one after it. An
objective is over-optimised from the reading at which, since that best,

    gold has fallen by `drop` or more, and the objective has risen by `rise` or more,

each beyond what noise explains: by GOLD_SURE and RISE_SURE standard errors of the difference, where readings tell
theirs. (Gold's best is the best of many levels and so partly luck, the more so the more there are: after LOOKS readings
it takes more than GOLD_SURE. The objective's level beside it is not.) It lasts until gold is less than drop / 2 below
its best, or the objective less than rise / 2 above where it was then. The two thresholds keep noise from telling it
over and over; a new best of gold ends it for all. Without a level of its own, an objective stays what it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from policies.statistics import surely

GOLD_SURE = 3.5  # tests have the rate of false alarms
LOOKS = 200  # readings for which that is enough
RISE_SURE = 2.0
_EPS = 1e-9  # rounding is neither a rise nor a fall


@dataclass(frozen=True, kw_only=True)
class Overoptimised:
    """What rose while gold fell. Levels are in units of the ranges."""

    step: int
    objective: str
    before: float
    now: float
    best_step: int  # where gold was at its best: take the checkpoint from near here
    gold_best: float
    gold_now: float
    rise_error: float = 0.0  # standard errors of the rise and of gold's fall; 0 where the readings tell none
    fall_error: float = 0.0

    def describe(self) -> str:
        known = self.rise_error or self.fall_error
        errors = f" (standard errors {self.rise_error:.2f} and {self.fall_error:.2f})" if known else ""
        return (
            f"{self.objective} rose from {self.before:.2f} to {self.now:.2f} while the gold reward fell from "
            f"{self.gold_best:.2f} to {self.gold_now:.2f}{errors}; it was at its best at step {self.best_step}"
        )


class OveroptimisationWatch:
    """Reads one step after another; `active` are the objectives that are over-optimised now."""

    def __init__(self, objectives: Sequence[str], *, window: int, drop: float, rise: float) -> None:
        self.objectives = tuple(objectives)
        self.window, self.drop, self.rise = window, drop, rise
        self.active: tuple[str, ...] = ()
        self._recent: list[dict[str, Any]] = []  # at most `window` readings
        self._best: dict[str, Any] | None = None
        self._moments = {name: [0.0] * 6 for name in self.objectives}  # of proxy and gold over the whole training

    def observe(
        self,
        step: int,
        gold: float,
        proxies: Mapping[str, float | None],
        errors: Mapping[str, float | None] | None = None,
        gold_error: float | None = None,
    ) -> list[Overoptimised]:
        """Those that begin with this reading; an objective without a value (it applied nowhere) has no reading.

        `errors` are standard errors of the means, in the same units; none where unknown.
        """
        readings = {name: proxies[name] for name in self.objectives}
        for name, value in readings.items():
            if value is not None:
                self._moments[name] = _moments_with(self._moments[name], value, gold)
        errors = {name: (errors or {}).get(name) for name in self.objectives}
        reading = {"gold": gold, "proxies": readings, "gold_error": gold_error, "errors": errors}
        self._recent = [*self._recent, reading][-self.window :]
        if len(self._recent) < self.window:
            return []
        levels = {name: self._level(name) for name in readings}
        now: dict[str, Any] = {"step": step, "gold": self._gold_level(), "levels": levels}
        self._best = self._best_with(now)
        fall, fall_error = _change(now["gold"], self._best["gold"])
        gold_sure = surely(GOLD_SURE, self._readings, upto=LOOKS)
        found: dict[str, Overoptimised] = {}
        for name, level in now["levels"].items():
            if level is None:
                continue
            first = self._best["levels"][name]
            rise, rise_error = _change(first, level)
            if self._begun(name, fall, fall_error, self.drop, gold_sure) and self._begun(
                name, rise, rise_error, self.rise, RISE_SURE
            ):
                found[name] = Overoptimised(
                    step=step,
                    objective=name,
                    before=first[0],
                    now=level[0],
                    best_step=self._best["step"],
                    gold_best=self._best["gold"][0],
                    gold_now=now["gold"][0],
                    rise_error=rise_error,
                    fall_error=fall_error,
                )
        began = [one for name, one in found.items() if name not in self.active]
        unread = {name for name in self.active if now["levels"][name] is None and fall >= 0.5 * self.drop - _EPS}
        self.active = tuple(name for name in self.objectives if name in found or name in unread)
        return began

    def _best_with(self, now: dict[str, Any]) -> dict[str, Any]:
        """Gold's best so far; what had no level then counts from its first one after it."""
        if self._best is None or now["gold"][0] > self._best["gold"][0]:
            return now
        levels = {name: now["levels"][name] if level is None else level for name, level in self._best["levels"].items()}
        return {**self._best, "levels": levels}

    def _begun(self, name: str, change: float, error: float, threshold: float, sure: float) -> bool:
        """What has begun lasts longer than it takes to begin."""
        return change >= (0.5 * threshold if name in self.active else threshold + sure * error) - _EPS

    def trends(self) -> dict[str, float | None]:
        """Pearson correlation of each objective's means with gold's, over all readings so far; None without spread."""
        return {name: _correlation(moments) for name, moments in self._moments.items()}

    @property
    def _readings(self) -> int:
        """So far, of gold and of the objective that has most."""
        return max(int(moments[0]) for moments in self._moments.values())

    def _gold_level(self) -> list[float]:
        return _mean_with_error([(one["gold"], one.get("gold_error")) for one in self._recent])

    def _level(self, name: str) -> list[float] | None:
        known = [
            (value, one.get("errors", {}).get(name))
            for one in self._recent
            if (value := one["proxies"][name]) is not None
        ]
        return _mean_with_error(known) if known else None

    def state_dict(self) -> dict[str, Any]:
        return {
            "active": list(self.active),
            "recent": self._recent,
            "best": self._best,
            "moments": self._moments,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for the state of other objectives."""
        if set(state["moments"]) != set(self.objectives):
            raise ValueError(f"the checkpoint watches {', '.join(state['moments'])}, not {', '.join(self.objectives)}")
        self.active = tuple(state["active"])
        self._recent, self._best = list(state["recent"]), _with_errors(state["best"])
        self._moments = {name: list(values) for name, values in state["moments"].items()}


def _mean_with_error(readings: Sequence[tuple[float, float | None]]) -> list[float]:
    """[mean, its standard error] of independent readings."""
    count = len(readings)
    squares = math.fsum((error or 0.0) ** 2 for _, error in readings)
    return [math.fsum(value for value, _ in readings) / count, math.sqrt(squares) / count]


def _change(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """From one level to another, and its standard error. Windows that overlap differ by less than it says."""
    return after[0] - before[0], math.hypot(before[1], after[1])


def _with_errors(best: dict[str, Any] | None) -> dict[str, Any] | None:
    """As older checkpoints have it: levels without errors."""
    if best is None or not isinstance(best["gold"], int | float):
        return best
    levels = {name: None if level is None else [level, 0.0] for name, level in best["levels"].items()}
    return {**best, "gold": [best["gold"], 0.0], "levels": levels}


def rank_correlation(one: Sequence[float | None], other: Sequence[float | None]) -> float | None:
    """Spearman's, ties sharing their mean rank, over the places where both have a value; None where one is constant."""
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    if len(pairs) < 2:
        return None
    first, second = (_ranks(column) for column in zip(*pairs, strict=True))
    spread = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return None if spread == 0 else float(np.clip(first @ second / spread, -1.0, 1.0))


def _ranks(values: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Centred."""
    _, place, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return np.asarray(ranks - (len(values) + 1) / 2, dtype=np.float64)


def _moments_with(moments: Sequence[float], x: float, y: float) -> list[float]:
    """Count, means, centred squares and product, one pair more (Welford)."""
    n, mean_x, mean_y, xx, yy, xy = moments
    n += 1
    dx, dy = x - mean_x, y - mean_y
    mean_x, mean_y = mean_x + dx / n, mean_y + dy / n
    return [n, mean_x, mean_y, xx + dx * (x - mean_x), yy + dy * (y - mean_y), xy + dx * (y - mean_y)]


def _correlation(moments: Sequence[float]) -> float | None:
    n, _, _, xx, yy, xy = moments
    spread = math.sqrt(xx * yy)
    return None if n < 3 or spread < _EPS**2 else max(-1.0, min(1.0, xy / spread))
