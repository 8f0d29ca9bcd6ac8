"""What a job's spec wants of a figure, and what its watches found, for the chart that shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.guardrails import in_force
from services.client.types import Event
from services.dashboard.charts import Level, Marks
from services.dashboard.figures import figure
from services.dashboard.watch import JobWatch

MOST = 200  # of the newest findings: more lines would hide what they mark, and the log has them all


def drawn_of(objective: str) -> tuple[str, ...]:
    """Guardrails' names of the figures that an objective's chart draws."""
    return (f"objectives.{objective}.mean", f"evaluation.objectives.{objective}")


def told_of(objective: str) -> tuple[str, ...]:
    """And of those that tell of it."""
    figures = (f"objectives.{objective}.std", f"objectives.{objective}.zero_share", "gold.mean")
    return (*drawn_of(objective), *figures, f"gold.correlation.{objective}", f"gold.trend.{objective}")


def targets(objective: Mapping[str, Any]) -> list[Level]:
    """Of an objective in the spec."""
    target = objective.get("target")
    if not target:
        return []
    side = {">=": "≥", "<=": "≤"}[target.get("op") or ">="]
    return [Level(f"target {side} {figure(target['value'])}", target["value"])]


def limits(watch: JobWatch, metrics: Iterable[str]) -> list[Level]:
    """What the guardrails that are in force allow of these figures: the spec's, or those of a change since."""
    applied = (event["data"] for event in reversed(watch.steered) if event["type"] == "steering.applied")
    newest: Mapping[str, Any] = next(applied, {})
    rules = in_force(watch.job["spec"], newest.get("requested") or {})
    known = tuple(metrics)
    return [
        Level(f"{_kind(rule['metric'])} {side} {figure(rule[end])}", rule[end], is_limit=True)
        for rule in rules
        for end, side in (("min", "≥"), ("max", "≤"))
        if rule["metric"] in known and rule.get(end) is not None
    ]


def _kind(metric: str) -> str:
    return "held-out limit" if metric.startswith("evaluation.") else "limit"


def told(levels: Iterable[Level]) -> str:
    """Behind a figure: `, target ≥ 0.9, limit ≤ 1`."""
    return "".join(f", {level.told}" for level in levels)


def marks(
    steered: Iterable[int], warned: Iterable[Event], *, metrics: Iterable[str] = (), objective: str = ""
) -> Marks:
    """Of the chart of these figures, or of an objective: a collapse is of all, other findings of what they name."""
    known = tuple(metrics)

    def is_shown(event: Event) -> bool:
        data = event["data"]
        if event["type"] == "guardrail.breached":
            return data.get("metric") in known
        if event["type"] == "overoptimisation.detected":
            return bool(objective) and data.get("objective") == objective
        return True

    steps = {event["data"].get("step") for event in warned if is_shown(event)}
    return Marks(tuple(steered), tuple(sorted(step for step in steps if isinstance(step, int))[-MOST:]))
