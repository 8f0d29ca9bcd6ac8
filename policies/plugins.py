"""Rules from installed packages: advantage estimators and weighting strategies that a spec may name beside our own.

A package offers one with an entry point of that name:

    [project.entry-points."equipoise.weightings"]
    worst_first = "my_package:WorstFirst"

Names are known without importing anything; a plug-in is imported when a spec first asks for it. Importing this module
does not import torch, which the rules need: where it is not installed (an API server's own image) none can be loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

ESTIMATOR_GROUP = "equipoise.estimators"
WEIGHTING_GROUP = "equipoise.weightings"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Family:
    """Where the rules of a group are at home. By name, as importing them imports torch."""

    kind: str
    module: str
    base: str
    rules: str


_FAMILIES = {
    ESTIMATOR_GROUP: _Family(kind="estimator", module="policies.estimators", base="Estimator", rules="ESTIMATORS"),
    WEIGHTING_GROUP: _Family(kind="weighting", module="policies.weighting", base="Weighting", rules="WEIGHTINGS"),
}


def plugin_names(group: str) -> list[str]:
    """What installed packages offer, sorted, without importing it."""
    return sorted(_entry_points(group))


def plugin_package(group: str, name: str) -> str:
    """The distribution that an installed plug-in is of, with its version: `my-package 1.0`."""
    found = {point.dist for point in _entry_points(group)[name] if point.dist is not None}
    return " and ".join(sorted(f"{dist.name} {dist.version}" for dist in found))


def plugin_module(group: str, name: str) -> str:
    """Where an installed plug-in comes from, as its entry point says, without importing it."""
    return " and ".join(point.value for point in _entry_points(group)[name])


def can_load() -> bool:
    """Whether rules can be imported here."""
    return importlib.util.find_spec("torch") is not None


@cache
def load_plugin(group: str, name: str) -> type[Any]:
    """The class of an installed plug-in. Raises RuntimeError, naming it and its module, where it can't be used."""
    points, family = _entry_points(group)[name], _FAMILIES[group]
    where = f"the plug-in for {family.kind} '{name}' ({plugin_module(group, name)})"
    if len(points) > 1:
        raise RuntimeError(f"{where} is offered by more than one installed package; keep one of them")
    try:
        base = getattr(importlib.import_module(family.module), family.base)
        rule = points[0].load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises at import: the plug-in must be named
        raise RuntimeError(f"{where} does not load: {_line(error)}") from error
    if not (isinstance(rule, type) and issubclass(rule, base)):
        raise RuntimeError(f"{where} is not a subclass of {family.module}.{family.base}")
    return rule


def build_plugin(group: str, name: str, options: Mapping[str, Any]) -> Any:
    """An installed plug-in with these keyword arguments.

    Raises ValueError with the constructor's parameters where it refuses them, RuntimeError where it breaks.
    """
    rule = load_plugin(group, name)
    try:
        return rule(**options)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"'{name}' refuses them: {reason}; {_parameters_line(rule)}") from None
    except (Exception, SystemExit) as error:  # a stranger's code again
        module = plugin_module(group, name)
        raise RuntimeError(f"the plug-in '{name}' ({module}) can't be built: {_line(error)}") from error


def parameters(rule: type[Any]) -> dict[str, Any]:
    """The constructor's named parameters with their defaults, inspect.Parameter.empty where there is none."""
    if rule.__init__ is object.__init__:
        return {}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(rule).parameters.values()
    return {parameter.name: parameter.default for parameter in found if parameter.kind in named}


def find_estimator(name: str) -> type[Any]:
    """The class behind a spec's `estimator.name`. ValueError where there is none."""
    return _find(ESTIMATOR_GROUP, name)


def find_weighting(name: str) -> type[Any]:
    """The class behind a spec's `weighting.name`. ValueError where there is none."""
    return _find(WEIGHTING_GROUP, name)


def _find(group: str, name: str) -> type[Any]:
    """Our own first: a plug-in never replaces one."""
    family = _FAMILIES[group]
    rules: dict[str, type[Any]] = getattr(importlib.import_module(family.module), family.rules)
    if name in rules:
        return rules[name]
    if name in _entry_points(group):
        return load_plugin(group, name)
    known = [*rules, *plugin_names(group)]
    close = get_close_matches(name, known, n=1)
    hint = f", did you mean '{close[0]}'?" if close else f"; there are {', '.join(known)}"
    raise ValueError(f"no {family.kind} '{name}'{hint}")


@cache
def _entry_points(group: str) -> dict[str, list[EntryPoint]]:
    """By name; more than one where packages offer different things under the same name."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        offers = found.setdefault(point.name, [])
        if point.value not in [offer.value for offer in offers]:
            offers.append(point)
    return found


def _parameters_line(rule: type[Any]) -> str:
    shown = [
        name if default is inspect.Parameter.empty else f"{name} ({default!r})"
        for name, default in parameters(rule).items()
    ]
    return f"its parameters are {', '.join(shown)}" if shown else "it has no parameters"


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
