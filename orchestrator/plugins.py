"""Everything that installed packages offer a spec: where each is from, and whether it can be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from typing import Any

from orchestrator.specs.estimators import EstimatorSpec
from orchestrator.specs.plugins import plugin_specs
from orchestrator.specs.weightings import WeightingSpec
from policies.plugins import ESTIMATOR_GROUP, WEIGHTING_GROUP, load_plugin
from rewards import registry


@dataclass(frozen=True, kw_only=True, slots=True)
class Plugin:
    """Something that an installed package offers."""

    kind: str
    name: str
    module: str  # and the class in it
    package: str  # with its version
    problem: str | None  # why no spec can use it


def installed() -> list[Plugin]:
    """By kind and name. Each is imported, to see whether it can be."""
    weightings = {spec.rule_name for spec in plugin_specs(WeightingSpec)}
    estimators = {spec.rule_name for spec in plugin_specs(EstimatorSpec)}
    rewards = {one.name for one in registry.listed() if one.plugin is not None}
    return [
        *_of("weighting", WEIGHTING_GROUP, weightings, partial(load_plugin, WEIGHTING_GROUP)),
        *_of("estimator", ESTIMATOR_GROUP, estimators, partial(load_plugin, ESTIMATOR_GROUP)),
        *_of("reward", registry.ENTRY_POINT_GROUP, rewards, registry.resolve),
    ]


def _of(kind: str, group: str, taken: set[str], load: Callable[[str], Any]) -> Iterator[Plugin]:
    """`taken`: names that specs take for a plug-in's."""
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value)):
        problem = None if point.name in taken else f"there is a {kind} of that name already; give it another"
        if problem is None:
            try:
                load(point.name)
            except RuntimeError as error:
                problem = str(error)
        package = "unknown" if point.dist is None else f"{point.dist.name} {point.dist.version}"
        yield Plugin(kind=kind, name=point.name, module=point.value, package=package, problem=problem)
