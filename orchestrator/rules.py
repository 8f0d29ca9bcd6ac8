"""The catalogue of rules: what each is for, where it is from, what it costs, and how a spec selects it.

Read from the spec's own classes, so it can't say anything else than the spec takes. Nothing here imports torch, and an
installed plug-in is imported only where it is asked for by name.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from types import MappingProxyType
from typing import Any, get_args

import yaml

from orchestrator.spec_fields import Option, options_of
from orchestrator.specs.base import RuleSpec
from orchestrator.specs.estimators import BuiltInEstimator, EstimatorSpec
from orchestrator.specs.gramian import GramianSpec
from orchestrator.specs.plugins import PluginSpec, plugin_specs
from orchestrator.specs.sampling import BudgetSpec, TailSpec, ZeroSignalSpec
from orchestrator.specs.transforms import TransformSpec
from orchestrator.specs.weightings import BuiltInWeighting, WeightingSpec
from policies.plugins import can_load, load_plugin, parameters, plugin_module

NEEDS = {
    "gramian": "inner products of the objectives' gradients, see gramian.mode",
    "influence": "each objective's influence on all by their gradients, see gramian.mode",
    "archive": "held-out evaluations, see evaluation.every",
    "credit": "what the update did",
    "targets": "a target on an objective",
    "references": "scored completions of the initial policy, see sampling.reference_rollouts",
}


class RuleKind(StrEnum):
    """What a rule decides."""

    ESTIMATOR = "estimator"
    WEIGHTING = "weighting"
    TRANSFORM = "transform"
    ZERO_SIGNAL = "zero_signal"
    BUDGET = "budget"
    TAIL = "tail"
    GRAMIAN = "gramian"

    @property
    def heading(self) -> str:
        return _PLACES[self][0]

    @property
    def path(self) -> str:
        """Where a spec selects it."""
        return _PLACES[self][1]


_PLACES = {
    RuleKind.ESTIMATOR: ("Advantage estimators: from rewards to advantages", "estimator"),
    RuleKind.WEIGHTING: ("Weighting strategies: the objectives' weights at each step", "weighting"),
    RuleKind.TRANSFORM: ("Transforms: what the estimator sees of a reward", "objectives[].transform"),
    RuleKind.ZERO_SIGNAL: ("Groups without signal: what becomes of them", "sampling.zero_signal"),
    RuleKind.BUDGET: ("Budgets: how many rollouts each prompt gets", "sampling.budget"),
    RuleKind.TAIL: ("Long completions: whether a step waits for the last of them", "sampling.tail"),
    RuleKind.GRAMIAN: ("Gramian modes: how the objectives' gradients are compared", "gramian.mode"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What a person needs in order to choose a rule."""

    kind: RuleKind
    name: str
    summary: str  # one line
    description: str  # the whole of it, the summary first
    source: str
    needs: tuple[str, ...]  # keys of NEEDS
    cost: str  # beside a step with fixed weights
    options: tuple[Option, ...]
    example: str  # how a spec selects it, in YAML


@dataclass(frozen=True, kw_only=True, slots=True)
class _Mode:
    """A Gramian mode, which is no class of its own in the spec."""

    summary: str
    more: str
    source: str
    cost: str
    options: tuple[str, ...]


_MODES = {
    "exact": _Mode(
        summary="Every objective's gradient in full, before the update.",
        more="The update is their weighted sum where the estimator is linear in the weights.",
        source="by definition; from one backward pass as in arXiv 1510.01799",
        cost="(2 + K) / 3 of the update's time (measured: 1.6 for K = 3, 3.0 for K = 8), K gradients in memory",
        options=("average",),
    ),
    "sketch": _Mode(
        summary="During the update, each layer's gradients through two random projections; for the next step.",
        more="An unbiased estimate; a wide sketch or a running average makes it steadier.",
        source="random projections",
        cost="about a tenth of the update's time whatever K is (measured: 1.06 to 1.11; with an adapter 1.2 to 1.3)",
        options=("sketch_width", "average"),
    ),
    "last_block": _Mode(
        summary="During the update, the gradients of the last transformer block alone; for the next step.",
        more="What the other layers would say is left out.",
        source="common practice",
        cost="K products of one block's layers (measured with 8 blocks: 1.10 for K = 3, 1.24 for K = 8)",
        options=("average",),
    ),
    "step_response": _Mode(
        summary="After the update, how its change of the log-probabilities serves each objective; for the next step.",
        more="The influence of the whole update, not a Gramian: enough for 'gradient', not for 'gramian:*'. Of a share "
        "of the prompts it is an estimate; a larger one or a running average makes it steadier.",
        source="ours, first order in the step",
        cost="one more forward pass of the share of the prompts (measured: 1.00 to 1.08; of all of them, 1.3)",
        options=("response_share", "average"),
    ),
}

# What a spec must say where a rule has no default for it.
_EXAMPLES: dict[str, dict[str, Any]] = {
    "cond_gdpo": {"condition": "accuracy", "at_least": 1.0},
    "schedule": {
        "points": [
            {"step": 0, "weights": {"accuracy": 1.0, "brevity": 0.0}},
            {"step": 100, "weights": {"accuracy": 0.5, "brevity": 0.5}},
        ]
    },
    "clip": {"lo": 0.0, "hi": 1.0},
    "soft_overlong": {"max_tokens": 1024, "buffer_tokens": 256},
    "cosine": {"max_tokens": 1024},
    "knapsack": {"objective": "accuracy"},
}


def rules(kind: RuleKind | None = None) -> list[Rule]:
    """Every rule that a spec may name, by kind and in the order of the spec; plug-ins last, and not imported."""
    return [rule for rule in _all(load=None) if kind in (None, rule.kind)]


def find_rules(name: str) -> list[Rule]:
    """The rules of that name: one, or several of different kinds. A plug-in is imported to describe it.

    Raises ValueError with the nearest names where there is none, RuntimeError for a plug-in that does not load.
    """
    if found := [rule for rule in _all(load=name) if rule.name == name]:
        return found
    known = list(dict.fromkeys(rule.name for rule in rules()))
    parts = [other for other in known if len(name) > 2 and name in other]
    close = list(dict.fromkeys([*parts, *get_close_matches(name, known)]))[:3]
    hint = (
        f", did you mean {' or '.join(repr(other) for other in close)}?" if close else "; `equipoise rules` lists all"
    )
    shown = name if len(name) <= 64 else f"{name[:61]}..."
    raise ValueError(f"no rule '{shown}'{hint}")


def _all(load: str | None) -> Iterator[Rule]:
    for kind, union, plugins in (
        (RuleKind.ESTIMATOR, BuiltInEstimator, EstimatorSpec),
        (RuleKind.WEIGHTING, BuiltInWeighting, WeightingSpec),
        (RuleKind.TRANSFORM, get_args(TransformSpec)[0], None),
        (RuleKind.ZERO_SIGNAL, get_args(ZeroSignalSpec)[0], None),
        (RuleKind.BUDGET, get_args(BudgetSpec)[0], None),
        (RuleKind.TAIL, get_args(TailSpec)[0], None),
    ):
        for model in get_args(union):
            yield _rule(kind, model)
        for plugin in plugin_specs(plugins) if plugins else ():
            yield _plugin(kind, plugin, load=plugin.rule_name == load)
    for name in get_args(GramianSpec.model_fields["mode"].annotation):
        yield _mode(name)


def _rule(kind: RuleKind, model: type[RuleSpec]) -> Rule:
    name = get_args(model.model_fields["name"].annotation)[0]
    description = inspect.cleandoc(model.__doc__ or "")
    options = tuple(option for option in options_of(model) if option.name != "name")
    chosen = {"name": name, **_chosen(options, _EXAMPLES.get(name, {}))}
    return Rule(
        kind=kind,
        name=name,
        summary=description.partition("\n")[0],
        description=description,
        source=model.source,
        needs=tuple(sorted(model.needs)),
        cost=model.cost,
        options=options,
        example=_example(kind, chosen, target="targets" in model.needs),
    )


def _mode(name: str) -> Rule:
    mode = _MODES[name]
    options = tuple(option for option in options_of(GramianSpec) if option.name in mode.options)
    return Rule(
        kind=RuleKind.GRAMIAN,
        name=name,
        summary=mode.summary,
        description=f"{mode.summary}\n\n{mode.more}",
        source=mode.source,
        needs=(),
        cost=mode.cost,
        options=options,
        example=_example(RuleKind.GRAMIAN, {"mode": name, **_chosen(options)}),
    )


def _plugin(kind: RuleKind, model: type[PluginSpec], *, load: bool) -> Rule:
    name, module = model.rule_name, plugin_module(model.group, model.rule_name)
    description, needs = "An installed plug-in; asked for by name, it is loaded and described.", frozenset[str]()
    options: tuple[Option, ...] = ()
    if load and not can_load():
        description = "An installed plug-in; there is no torch here to load it with, so that a job's driver checks it."
    elif load:
        found = load_plugin(model.group, name)
        description = inspect.cleandoc(found.__doc__ or "An installed plug-in without a description.")
        needs = frozenset(getattr(found, "needs", ()))
        options = tuple(_parameter(*pair) for pair in parameters(found).items())
    chosen: dict[str, Any] = {"name": name}
    if values := _chosen(options):
        chosen["options"] = values
    return Rule(
        kind=kind,
        name=name,
        summary=description.partition("\n")[0],
        description=description,
        source=f"plug-in {module}",
        needs=tuple(sorted(needs)),
        cost="as its package says",
        options=options,
        example=_example(kind, chosen, target="targets" in needs),
    )


def _parameter(name: str, default: Any) -> Option:
    required = default is inspect.Parameter.empty
    try:
        value = None if required else json.loads(json.dumps(default, allow_nan=False))
    except (TypeError, ValueError):
        value = repr(default)
    return Option(name=name, required=required, default=value, allowed="as the class has it", description="")


def _chosen(options: tuple[Option, ...], given: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Values for an example, in the order of the fields: the given ones, else the defaults."""
    values = {option.name: given.get(option.name, option.default) for option in options}
    return {name: value for name, value in values.items() if value is not None}


def _example(kind: RuleKind, chosen: Mapping[str, Any], *, target: bool = False) -> str:
    """The branch of a spec that selects a rule, with its defaults written out."""
    place: Any = dict(chosen)
    for part in reversed(kind.path.removesuffix(".mode").split(".")):
        if part == "objectives[]":
            place = {"objectives": [{"name": "accuracy", "reward": {"name": "math"}, **place}]}
        else:
            place = {part: place}
    if target:
        objective = {"name": "accuracy", "reward": {"name": "math"}, "target": {"op": ">=", "value": 0.8}}
        place = {"objectives": [objective], **place}
    return yaml.safe_dump(place, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
