"""One point of a front: those that meet conditions, and of them the best by one objective, or by weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.lineage import best_of
from orchestrator.spec_errors import nearest
from policies.places import counted_values, read_scales

Json = dict[str, Any]
WEIGHTS = "weights"  # what a choice is `by` unless an objective is named
_CONDITION = re.compile(r"\s*(\w+)\s*(>=|<=)\s*(\S+)\s*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """On an objective's raw mean over the validation split."""

    objective: str
    op: Literal[">=", "<="]
    value: float

    def holds(self, objectives: Mapping[str, float | None]) -> bool:
        found = objectives.get(self.objective)
        if found is None:
            return False
        return found >= self.value if self.op == ">=" else found <= self.value


def parse_conditions(text: str, objectives: Sequence[str]) -> list[Condition]:
    """`accuracy>=0.8,length<=400`. ValueError is one line that says what is wrong."""
    return [_condition(part, objectives) for part in text.split(",")]


def _condition(text: str, objectives: Sequence[str]) -> Condition:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text.strip()}': expected NAME>=VALUE or NAME<=VALUE, such as {objectives[0]}>=0.8")
    name, op, written = match.groups()
    known_objective(name, objectives)
    try:
        value = float(written)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a number, got '{written}'")
    return Condition(objective=name, op=">=" if op == ">=" else "<=", value=value)


def known_objective(name: str, objectives: Sequence[str]) -> None:
    if name not in objectives:
        hint = nearest(name, list(objectives)) or f"; objectives are {', '.join(objectives)}"
        raise ValueError(f"no objective '{name}'{hint}")


def pick(front: Json, conditions: Sequence[Condition], by: str | None, weights: Mapping[str, float]) -> Json | None:
    """Of the points of a front's document whose checkpoint is kept; None where none of them meets the conditions.

    Conditions look at raw means, what is best is by what counts (places, after the gates). Those that are equal by an
    objective are told apart by the weights, and equal ones by the step: the latest.
    """
    points = [point for point in front["points"] if None not in point["objectives"].values()]
    scales = read_scales(front["ranges"], front.get("directions"))
    places = {
        point["step"]: {name: scale.place(values[name]) for name, scale in scales.items()}
        for point, values in zip(points, counted_values(points), strict=True)
        if point["on_front"] and point.get("checkpoint") and all(each.holds(point["objectives"]) for each in conditions)
    }
    if by is not None:
        most = max((found[by] for found in places.values()), default=0.0)
        places = {step: found for step, found in places.items() if found[by] == most}
    step = best_of(places, weights)
    return next((point for point in points if point["step"] == step), None)
