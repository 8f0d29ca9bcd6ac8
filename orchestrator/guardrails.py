"""Watches a job's figures for what a person said must not happen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.specs.guardrails import TOTALS, GuardrailSpec


@dataclass(frozen=True, kw_only=True)
class Breach:
    """One guardrail at the step at which it was breached for long enough. `value` is None for what is no number."""

    step: int
    metric: str
    value: float | None
    limit: Literal["min", "max"]
    bound: float
    for_steps: int
    action: Literal["alert", "pause"]

    @property
    def told_as(self) -> str:
        """The same for every run of its step, and of no other guardrail."""
        rule = f"{self.metric} {self.limit} {self.bound!r} {self.for_steps} {self.action}"
        return f"guardrail {self.step} {rule}"

    def describe(self) -> str:
        shown = "not a finite number" if self.value is None else f"{self.value:.4g}"
        side = "at least" if self.limit == "min" else "at most"
        long = f" for {self.for_steps} readings in a row" if self.for_steps > 1 else ""
        return f"{self.metric} is {shown}{long}; wanted {side} {self.bound:g}"


def in_force(spec: Mapping[str, Any], steering: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those of a job's document, unless its steering has others in their stead."""
    steered = steering.get("guardrails")
    return list((spec.get("guardrails") or ()) if steered is None else steered)


@dataclass(kw_only=True)
class Held:
    """A guardrail, the steps that it was held against (to None: to the end), and those at which it was breached."""

    rule: Mapping[str, Any]
    spans: list[tuple[int, int | None]]
    breaches: list[int]


def history(spec: Mapping[str, Any], events: Iterable[Mapping[str, Any]]) -> list[Held]:
    """Every guardrail of a job by its document and its events, in the order in which they came."""
    held = [Held(rule=rule, spans=[(1, None)], breaches=[]) for rule in in_force(spec, {})]
    for event in events:
        data = event.get("data") or {}
        step = data.get("step")
        if not isinstance(step, int):
            continue
        if event.get("type") == "steering.applied":
            _hold(held, in_force(spec, data.get("requested") or {}), step)
        elif event.get("type") == "guardrail.breached":
            for one in held:
                if is_of(data, one.rule) and step not in one.breaches:
                    one.breaches.append(step)
    return held


def _hold(held: list[Held], rules: list[Mapping[str, Any]], step: int) -> None:
    """These from this step on, and no others."""
    for one in held:
        since, until = one.spans[-1]
        if until is None and one.rule not in rules:
            one.spans[-1] = (since, step - 1)
        elif until is not None and one.rule in rules:
            one.spans.append((step, None))
    known = [one.rule for one in held]
    held += [Held(rule=rule, spans=[(step, None)], breaches=[]) for rule in rules if rule not in known]


def is_of(breach: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    """Whether an event's data tells of this guardrail."""
    same = all(breach.get(field) == rule.get(field) for field in ("metric", "for_steps", "action"))
    return same and breach.get("bound") == rule.get(str(breach.get("limit")))


class Guardrails:
    """Told once when a breach begins, and again only after the figure has been back inside.

    A value that is no finite number (a diverged loss) is outside. A step that does not report the figure (no evaluation
    was due) changes nothing.
    """

    def __init__(self, specs: Sequence[GuardrailSpec]) -> None:
        self.specs = tuple(specs)
        self._streaks = [0] * len(self.specs)  # readings outside in a row

    def observe(self, record: Mapping[str, Any]) -> list[Breach]:
        """The breaches that begin with this step's record (as `Loop.record` makes it), in the order of the spec."""
        found = []
        for i, spec in enumerate(self.specs):
            present, value = _reading(record, spec.metric)
            if not present:
                continue
            limit = _broken_limit(spec, value)
            self._streaks[i] = self._streaks[i] + 1 if limit else 0
            if limit is None or self._streaks[i] != spec.for_steps:
                continue
            bound = spec.min if limit == "min" else spec.max
            assert bound is not None
            found.append(
                Breach(
                    step=record["step"],
                    metric=spec.metric,
                    value=value,
                    limit=limit,
                    bound=bound,
                    for_steps=spec.for_steps,
                    action=spec.action,
                )
            )
        return found

    def follow(self, specs: Sequence[GuardrailSpec]) -> None:
        """Watch these from now on. One that was watched before goes on with its count, any other begins anew."""
        if (wanted := tuple(specs)) == self.specs:
            return
        left = list(zip(self.specs, self._streaks, strict=True))
        streaks = []
        for spec in wanted:
            found = next((i for i, (known, _) in enumerate(left) if known == spec), None)
            streaks.append(0 if found is None else left.pop(found)[1])
        self.specs, self._streaks = wanted, streaks

    def state_dict(self) -> dict[str, Any]:
        return {"streaks": list(self._streaks), "specs": [spec.model_dump(mode="json") for spec in self.specs]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for the state of other guardrails; an older state does not say of which it is."""
        if "specs" in state:
            self.specs = tuple(GuardrailSpec.model_validate(spec) for spec in state["specs"])
        streaks = [int(streak) for streak in state["streaks"]]
        if len(streaks) != len(self.specs):
            raise ValueError(f"{len(streaks)} guardrails in the checkpoint, {len(self.specs)} in the spec")
        # A total never comes back inside: whoever resumes the job is asked again, else it would spend without a limit.
        totals = {i for i, spec in enumerate(self.specs) if spec.metric in TOTALS}
        self._streaks = [0 if i in totals else streak for i, streak in enumerate(streaks)]


def _reading(record: Mapping[str, Any], metric: str) -> tuple[bool, float | None]:
    """(whether the step reports it, its value; None where that is no finite number).

    An objective that applied to none of the step's prompts, a gold reward that was not asked, or KL without a reference
    has no reading.
    """
    value: Any = record
    for part in metric.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False, None
        value = value[part]
    if value is None and metric.partition(".")[0] in ("objectives", "gold", "kl"):
        return False, None
    finite = isinstance(value, int | float) and math.isfinite(value)
    return True, float(value) if finite else None


def _broken_limit(spec: GuardrailSpec, value: float | None) -> Literal["min", "max"] | None:
    if spec.min is not None and (value is None or value < spec.min):
        return "min"
    if spec.max is not None and (value is None or value > spec.max):
        return "max"
    return None
