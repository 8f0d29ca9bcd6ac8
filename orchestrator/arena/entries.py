"""Who takes part: one entry for each rule, or weight vector, under an estimator.

    ESTIMATOR/fixed              the preference, which is equal weights
    ESTIMATOR/static(4,1,1)      fixed weights in that proportion, in the order of the task's objectives
    ESTIMATOR/RULE[(faithful)]   a weighting strategy, from equal weights
    gdpo/log_volume              our own, each a candidate for the default
    softmin/dara
    softmin/hv_gradient
    ESTIMATOR/aggregate          equal weights under an estimator that trades objectives off by itself
    gdpo/PLUGIN                  a weighting of an installed package; PLUGIN/aggregate: an estimator of one

Options are the rules' own defaults.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from orchestrator.specs.estimators import EstimatorSpec
from orchestrator.specs.plugins import plugin_specs
from orchestrator.specs.weightings import WeightingSpec

Role = Literal["static", "strategy", "aggregator", "auto"]
CENTRE = "fixed"

STRATEGIES = (
    "hypervolume",
    "hv_gradient",
    "gradient",
    "gramian:mgda",
    "gramian:upgrad",
    "gramian:cagrad",
    "gramian:pcgrad",
    "gramian:nash_mtl",
    "gramian:imtl_g",
    "gramian:fairgrad",
    "gramian:aligned_mtl",
    "gramian:dualproj",
    "saw",
    "dara",
    "saturation",
    "covariance",
    "pama",
    "tchebycheff",
)
"""Under gdpo. `schedule` is a person's plan, and `lagrangian` waits for its targets."""

AGGREGATORS = ("softmin", "hvo", "gd2po", "dvao", "corr_grpo", "mo_grpo", "rloo", "reinforce", "dr_grpo")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """How its runs' specs differ from those of the others."""

    name: str
    role: Role
    estimator: str
    weighting: Mapping[str, Any] = field(default_factory=lambda: {"name": CENTRE})
    proportions: tuple[int, ...] = ()  # of the weights, K; equal where absent
    sections: Mapping[str, Any] = field(default_factory=dict)
    targets_from_statics: bool = False
    plugin: bool = False


def entries(objectives: int) -> list[Entry]:
    """All of ours, for a task with K objectives; the statics first, as others rely on them."""
    return [*statics("gdpo", objectives), *statics("grpo", objectives), *ours(), *strategies(), *aggregators()]


def statics(estimator: str, objectives: int) -> Iterator[Entry]:
    """Fixed weights on a grid of the simplex, equal ones first."""
    yield Entry(name=f"{estimator}/{CENTRE}", role="static", estimator=estimator)
    for proportions in grid(objectives):
        name = f"{estimator}/static({','.join(map(str, proportions))})"
        yield Entry(name=name, role="static", estimator=estimator, proportions=proportions)


def grid(objectives: int) -> Iterator[tuple[int, ...]]:
    """Weight vectors other than the centre, in proportion.

    Up to K = 3 the inner points of the lattice of sixths (K = 3: 9, beside the centre). Above that, one objective with
    six parts to the others' one, each in turn, and the first objective with each of the others, four parts each.
    """
    if objectives <= 3:
        parts = range(1, 6)
        for proportions in itertools.product(parts, repeat=objectives):
            if sum(proportions) == 6 and len(set(proportions)) > 1:
                yield proportions
        return
    for heavy in range(objectives):
        yield tuple(6 if k == heavy else 1 for k in range(objectives))
    for other in range(1, objectives):
        yield tuple(4 if k in (0, other) else 1 for k in range(objectives))


def ours() -> Iterator[Entry]:
    """Candidates for the default: a rule of our own, two compositions of published ones; README.md here says why."""
    yield Entry(name="gdpo/log_volume", role="auto", estimator="gdpo", weighting={"name": "log_volume"})
    for name in ("dara", "hv_gradient"):
        yield Entry(name=f"softmin/{name}", role="auto", estimator="softmin", weighting={"name": name})


def strategies() -> Iterator[Entry]:
    """The published setting (arXiv 2509.11452) last: its hypervolume rule multiplies rewards, which only rloo feels."""
    for name in STRATEGIES:
        yield _strategy("gdpo", name)
    yield Entry(
        name="gdpo/lagrangian",
        role="strategy",
        estimator="gdpo",
        weighting={"name": "lagrangian"},
        targets_from_statics=True,
    )
    yield _strategy("grpo", "gradient")
    for estimator in ("gdpo", "grpo", "rloo"):
        yield _strategy(estimator, "hypervolume", faithful=True)


def aggregators() -> Iterator[Entry]:
    for name in AGGREGATORS:
        # dr_grpo is defined with a constant in place of the number of tokens.
        sections = {"loss": {"aggregation": "constant"}} if name == "dr_grpo" else {}
        yield Entry(name=f"{name}/aggregate", role="aggregator", estimator=name, sections=sections)


def plugins() -> Iterator[Entry]:
    """Of installed packages; nothing is imported."""
    for weighting in plugin_specs(WeightingSpec):
        yield replace(_strategy("gdpo", weighting.rule_name), plugin=True)
    for estimator in plugin_specs(EstimatorSpec):
        name = estimator.rule_name
        yield Entry(name=f"{name}/aggregate", role="aggregator", estimator=name, plugin=True)


def _strategy(estimator: str, name: str, **options: bool) -> Entry:
    marks = f"({','.join(options)})" if options else ""
    return Entry(
        name=f"{estimator}/{name}{marks}",
        role="strategy",
        estimator=estimator,
        weighting={"name": name, **options},
    )
