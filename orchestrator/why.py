"""Why a step's weights are what they are, in words: a sentence for each objective, from the step's record alone.

The record says what the rule was led by (`weights_because`, as figures.weights_because makes it); which of a rule's
figures speaks for a weight, and how, stands in `_TOLD`. A person, a ramp, a bound or a gate that decides is told first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Json = Mapping[str, Any]
Decided = Literal["rule", "blend", "person", "ramp", "floor", "ceiling", "bounds"]  # the last: those of others
FIELDS = ("weights", "weights_because", "ramp", "steering_version", "multiplier", "objectives", "falling")
"""Of a record: what `reasons` reads."""

_OTHERS = 3  # whose figures stand beside an objective's
_FEW = 0.25  # a share of groups with signal that is worth a word
_SAME = 1e-9


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Of one objective. `before` is its weight at the step before; None where that is not known."""

    objective: str
    before: float | None
    applied: float
    decided_by: Decided
    words: str

    @property
    def sentence(self) -> str:
        now = _number(self.applied)
        then = "" if self.before is None else _number(self.before)
        moved = now if not then else f"stays at {now}" if then == now else f"{then} -> {now}"
        return f"{self.objective} {moved}: {self.words}"


@dataclass(frozen=True, kw_only=True)
class _Told:
    """How a rule's choice is told: by `figure`, the largest of which has most weight for its preference.

    `{other}` is the objective with the largest one. `shown` is the figure that people see, where it is another.
    """

    figure: str
    most: str
    less: str
    none: str = ""  # where the figure is 0
    missing: str = "it was not measured"
    alike: str = "nothing tells the objectives apart, so the preference counts"
    shown: str = ""
    label: str = ""
    form: Literal["number", "share"] = "number"


_GRAMIAN = _Told(
    figure="coefficient",
    most="the rule's combination of the gradients leans on it most",
    less="the rule's combination of the gradients leans on it less than on {other}",
    none="the rule's combination of the gradients does without it",
    missing="without a gradient it keeps its preference",
    alike="the rule's combination of the gradients leans on all alike",
)
_TOLD = {
    "hv_gradient": _Told(
        figure="slope",
        most="one more unit of it adds most to the hypervolume",
        less="one more unit of it adds less to the hypervolume than one of {other}",
        none="more of it adds nothing to the hypervolume",
    ),
    "gradient": _Told(
        figure="influence",
        most="at this step its gradient helps all objectives together most",
        less="at this step its gradient helps all objectives together less than that of {other}",
        alike="all gradients help alike, so the weights stay",
    ),
    "saw": _Told(
        figure="factor",
        most="its rewards have differed most between rollouts, for their size",
        less="its rewards have differed less between rollouts, for their size, than those of {other}",
        none="its rewards have not differed between rollouts",
    ),
    "dara": _Told(
        figure="factor",
        most="fewest groups vary in it",
        less="more groups vary in it than in {other}",
        shown="signal_share",
        label="groups with signal",
        form="share",
    ),
    "saturation": _Told(
        figure="factor",
        most="it is farthest from the upper end of its range",
        less="it is nearer to the upper end of its range than {other}",
        none="it is at the upper end of its range",
        shown="place",
    ),
    "covariance": _Told(
        figure="factor",
        most="the updates have followed it least so far",
        less="the updates have followed it better so far than {other}",
    ),
    "tchebycheff": _Told(
        figure="gap",
        most="it is furthest below the best seen",
        less="it is nearer to the best seen than {other}",
        none="it is the best seen",
        alike="all are as far below the best seen",
    ),
    "log_volume": _Told(
        figure="factor",
        most="its own improvement adds most to the volume below the policy's point",
        less="its own improvement adds less to the volume below the policy's point than that of {other}",
        none="no rollout changes it, and so it asks for nothing",
        missing="it was never measured, and so it asks for nothing",
    ),
}


def reasons(record: Json, before: Json | None, rule: str) -> list[Reason]:
    """In the record's order; none of a step that an older version made. `before`: the record of the step before.

    `rule` is the job's `weighting.name`.
    """
    if not record.get("weights_because"):
        return []
    step = _Step(record, before or {}, rule)
    found = []
    for name, applied in step.applied.items():
        decided, words = _decision(step, name)
        then = step.before.get(name)
        words += _signal(step, name)
        found.append(Reason(objective=name, before=then, applied=applied, decided_by=decided, words=words))
    return found


class _Step:
    """A record, read for its words."""

    def __init__(self, record: Json, before: Json, rule: str) -> None:
        self.record, self.rule = record, rule
        self.applied: dict[str, float] = record["weights"]["applied"]
        self.strategy: Mapping[str, float] = record["weights"]["strategy"]
        self.before: Mapping[str, float] = (before.get("weights") or {}).get("applied") or {}
        self.because: Json = record["weights_because"]
        self.figures: Mapping[str, Mapping[str, float | None]] = self.because["figures"]
        self.figures_before: Json = (before.get("weights_because") or {}).get("figures") or {}
        self.version = f"steering version {record.get('steering_version', '?')}"

    def figure(self, figure: str) -> dict[str, float]:
        """By objective, where there is a number."""
        return {name: value for name, value in self.figures.get(figure, {}).items() if value is not None}

    @property
    def is_preference(self) -> bool:
        wanted = self.figures["preference"]
        return all(abs(weight - (wanted[name] or 0.0)) < 1e-6 for name, weight in self.strategy.items())


def _decision(step: _Step, name: str) -> tuple[Decided, str]:
    """Who has the last word on a weight, and the rest in the order in which it came about."""
    because, ramp = step.because, step.record.get("ramp")
    if ramp and ramp["step"] < ramp["of"]:
        way = f"step {ramp['step']} of {ramp['of']} on the way to {_number(ramp['target'][name])}"
        return "ramp", f"a gradual change decides, {way} ({step.version})"
    free = because.get("unbounded") or {}
    if (end := because["held"].get(name)) is not None:
        told = f"its {end} holds it, in place of {_number(free[name])} ({step.version})"
        return end, f"{told}; {_choice(step, name)[1]}"
    if abs(free.get(name, step.applied[name]) - step.applied[name]) > _SAME:
        bounds = " and ".join(f"the {end} of {other}" for other, end in because["held"].items())
        told = f"{bounds or 'bounds'} moved it from {_number(free[name])} ({step.version})"
        return "bounds", f"{told}; {_choice(step, name)[1]}"
    return _choice(step, name)


def _choice(step: _Step, name: str) -> tuple[Decided, str]:
    """Before bounds and ramps: the person's, the rule's, or a mix."""
    share, wanted = step.because["share"], step.figures["preference"][name]
    if share >= 1:
        return "person", f"a person decides, mode manual ({step.version})"
    words = _rule(step, name)
    if share <= 0:
        return "rule", words
    mix = f"{_percent(share)} of it a person's {_number(wanted)} ({step.version})"
    return "blend", f"{mix}, the rest the rule's {_number(step.strategy[name])}: {words}"


def _rule(step: _Step, name: str) -> str:
    if custom := _CUSTOM.get(step.rule):
        return custom(step, name)
    if step.strategy[name] == 0 and step.figures["preference"][name] == 0:
        return "without preference the rule gives it nothing"
    told = _GRAMIAN if step.rule.startswith("gramian:") else _TOLD.get(step.rule)
    if told is None:
        return _of_plugin(step, name)
    if not step.figure(told.shown or told.figure):
        if step.rule.startswith("gramian:") and step.figures.get("cosine"):
            return f"no direction serves all objectives, so the preference counts{_conflict(step, name)}"
        kept = "nothing is measured yet, so the preference counts"
        return kept if step.is_preference else "nothing is measured at this step, so it stays"
    return _ranked(step, name, told) + _limit(step, name) + (_conflict(step, name) if told is _GRAMIAN else "")


def _ranked(step: _Step, name: str, told: _Told) -> str:
    """By a figure that multiplies the preference: beside those of the other objectives that have one."""
    preference = step.figure("preference")
    values = {other: value for other, value in step.figure(told.figure).items() if preference.get(other)}
    shown = _beside(step, name, told)
    if name not in values:
        return told.missing + shown
    most = max(values.values())
    if told.none and most <= 0:
        return f"{told.none}, and so for all: the preference counts{shown}"
    noise = _SAME * max(1.0, abs(most))
    if len(values) > 1 and most - min(values.values()) <= noise:
        return told.alike + shown
    if told.none and values[name] <= 0:
        return told.none + shown
    largest = max(values, key=lambda other: values[other])
    words = told.most if most - values[name] <= noise else told.less.format(other=largest)
    return words + shown


def _beside(step: _Step, name: str, told: _Told) -> str:
    """` (slope .034, accuracy .011; preference .3)`"""
    figure = told.shown or told.figure
    write = _percent if told.form == "share" else _number
    values = step.figures.get(figure, {})
    others = sorted((other for other in values if other != name), key=lambda other: -(values[other] or 0.0))
    parts = [f"{told.label or figure} {write(values.get(name))}"]
    parts += [f"{other} {write(values[other])}" for other in others[:_OTHERS]]
    return f" ({', '.join(parts)}{_unequal(step, name)})"


def _unequal(step: _Step, name: str) -> str:
    """The preference, where it is not the same for all."""
    wanted = step.figure("preference")
    is_equal = max(wanted.values()) - min(wanted.values()) < 1e-6
    return "" if is_equal else f"; preference {_number(wanted.get(name))}"


def _limit(step: _Step, name: str) -> str:
    """What the rule's own limits did."""
    limit = step.figures.get("limit", {}).get(name)
    if not limit:
        return ""
    return f"; the rule's own {'ceiling keeps it from more' if limit > 0 else 'floor keeps it from less'}"


def _conflict(step: _Step, name: str) -> str:
    least = step.figures.get("cosine", {}).get(name)
    if least is None:
        return ""
    pulls = "pulls against another's" if least < 0 else "pulls against no other's"
    return f"; its gradient {pulls} (least cosine {_number(least)})"


def _signal(step: _Step, name: str) -> str:
    """Why its weight may move nothing: few groups vary in it, or its gate is shut."""
    words = ""
    silent = ((step.record.get("objectives") or {}).get(name) or {}).get("zero_share")
    if silent is not None and 1 - silent <= _FEW:
        words += f"; only {_percent(1 - silent)} of its groups have signal"
    if name in (step.because.get("gates") or {}):
        words += f"; its gate is open in {_percent(step.because['gates'][name])} of the rollouts"
    return words


# Rules that do not multiply the preference by a figure ----------------------------------------------------------------


def _fixed(step: _Step, name: str) -> str:
    del name
    return f"the preference as it is ({step.version})"


def _hypervolume(step: _Step, name: str) -> str:
    times = step.record.get("multiplier")
    counts = "" if times is None else f"; the whole batch counts {_number(times)} times, by how the front moves"
    return _fixed(step, name) + counts


def _schedule(step: _Step, name: str) -> str:
    start, end = (step.figures.get(figure, {}).get(name) for figure in ("before", "after"))
    if start is None or end is None or abs(start - end) < _SAME:
        return "the schedule's"
    return f"the schedule's, on the way from {_number(start)} to {_number(end)}"


def _pama(step: _Step, name: str) -> str:
    told = _Told(figure="gain", most="", less="")
    wanted = step.figures["preference"]
    taking = {other: gain for other, gain in step.figure("gain").items() if gain > 0 and wanted[other]}
    if not taking:
        return "no objective has anything to gain from the batch, so the preference counts"
    least = min(taking, key=lambda other: taking[other])
    if step.strategy[name] > 0:
        return f"it has least to gain from the batch, and the rule gives that all{_beside(step, name, told)}"
    if name not in taking:
        return f"it has nothing to gain from the batch{_beside(step, name, told)}"
    return f"it has more to gain from the batch than {least}, which has all{_beside(step, name, told)}"


def _lagrangian(step: _Step, name: str) -> str:
    multipliers, below = step.figure("multiplier"), step.figures.get("below_target", {}).get(name)
    if name not in multipliers:
        return "nothing is measured yet, so the preference counts"
    own, whole = multipliers[name], math.fsum(abs(value) for value in multipliers.values())
    if whole < _SAME:
        return "every multiplier is 0 yet, so the preference counts"
    if step.figures.get("limit", {}).get(name) is None:
        return f"it has no target: its part is {_number(own)}, of {_number(whole)} with the multipliers"
    then = (step.figures_before.get("multiplier") or {}).get(name)
    moved = "" if then is None or abs(own - then) < _SAME else f" (before {_number(then)})"
    largest = ", the largest that it may have" if step.figures["limit"][name] else ""
    pushed = ", and pushes it down" if name in (step.record.get("falling") or ()) else ""
    if below is None:
        place = "not measured in this batch"
    else:
        place = f"{_percent(abs(below))} of its range {'below' if below > 0 else 'above'} its target"
    return f"{place}: its multiplier is {_number(own)}{moved}{largest}, of {_number(whole)} together{pushed}"


_CUSTOM: dict[str, Callable[[_Step, str], str]] = {
    "fixed": _fixed,
    "hypervolume": _hypervolume,
    "schedule": _schedule,
    "pama": _pama,
    "lagrangian": _lagrangian,
}


def _of_plugin(step: _Step, name: str) -> str:
    own = {figure: values.get(name) for figure, values in step.figures.items() if figure not in ("preference", "limit")}
    told = ", ".join(f"{figure} {_number(value)}" for figure, value in own.items())
    return f"by the rule {step.rule}{f' ({told})' if told else ', which says no more'}{_limit(step, name)}"


def _number(value: float | None) -> str:
    """`.034`, `-1.2`: with what digits matter beside a weight."""
    if value is None or not math.isfinite(value):
        return "not measured"
    if value == 0:
        return "0"
    digits = f"{value:.2g}" if abs(value) < 0.1 or abs(value) >= 100 else f"{value:.2f}"
    if "e" in digits:
        return digits
    return digits.replace("0.", ".", 1) if abs(float(digits)) < 1 else digits


def _percent(value: float | None) -> str:
    return "an unknown share" if value is None else f"{100 * value:.0f}%"
