"""Weighting strategies as a spec names them; policies/weighting has the rules."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from orchestrator.specs.base import Fraction, Name, Positive, RuleSpec, Spec
from orchestrator.specs.plugins import PluginSpec, with_plugins
from policies.plugins import WEIGHTING_GROUP

Problem = tuple[str, str]  # field below `weighting`, what is wrong with it

Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class WeightingRule(RuleSpec):
    """What all of them share."""

    def problems(self, objectives: tuple[str, ...], targets: frozenset[str]) -> Iterator[Problem]:
        """What is wrong for a job with these objectives, of which `targets` have a target."""
        del objectives, targets
        yield from ()


class FixedSpec(WeightingRule):
    """The person's preference, as it is."""

    source = "baseline"
    name: Literal["fixed"] = "fixed"


class SchedulePoint(Spec):
    """The weights at one step of a schedule."""

    step: int = Field(ge=0, description="step at which these weights apply")
    weights: dict[Name, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        min_length=1, description="every objective's weight by name; scaled to sum to 1"
    )

    @field_validator("weights")
    @classmethod
    def _some_weight(cls, value: dict[str, float]) -> dict[str, float]:
        if sum(value.values()) <= 0:
            raise ValueError("expected at least one weight above 0")
        return value


class ScheduleSpec(WeightingRule):
    """Weights by step, drawn up in advance: piecewise linear, constant outside."""

    source = "baseline"
    name: Literal["schedule"] = "schedule"
    points: tuple[SchedulePoint, ...] = Field(
        min_length=1, max_length=1000, description="weights at given steps, in the order of the steps"
    )

    @field_validator("points")
    @classmethod
    def _steps_ascend(cls, value: tuple[SchedulePoint, ...]) -> tuple[SchedulePoint, ...]:
        steps = [point.step for point in value]
        if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
            raise ValueError(f"expected steps that ascend, got {steps}")
        return value

    def arguments(self, objectives: tuple[str, ...]) -> dict[str, Any]:
        del objectives
        return {"points": [(point.step, dict(point.weights)) for point in self.points]}

    def problems(self, objectives: tuple[str, ...], targets: frozenset[str]) -> Iterator[Problem]:
        del targets
        for i, point in enumerate(self.points):
            if set(point.weights) != set(objectives):
                yield (
                    f"points.{i}.weights",
                    f"expected a weight for each of {', '.join(objectives)}, got {', '.join(point.weights)}",
                )


class HypervolumeSpec(WeightingRule):
    """Rewards batches that push the front out."""

    source = "arXiv 2509.11452, part 1"
    needs = frozenset({"archive"})
    name: Literal["hypervolume"] = "hypervolume"
    faithful: bool = Field(
        False,
        description="multiply the rewards, as published (a no-op under grpo and reinforce), not the advantages",
    )
    base: float = Field(0.5, ge=0, le=10, allow_inf_nan=False, description="multiplier when the front does not grow")
    gain: float = Field(
        1.5, ge=0, le=10, allow_inf_nan=False, description="multiplier = base + gain tanh(growth / tau)"
    )


class HvGradientSpec(WeightingRule):
    """Follows the hypervolume's own gradient: weight where the front would be pushed out most.

    It gives mostly the preference once a policy hardly moves, as lucky evaluations before dominate it.
    """

    source = "hypervolume-gradient ascent (HIGA-MO)"
    needs = frozenset({"archive"})
    name: Literal["hv_gradient"] = "hv_gradient"
    least: Fraction = Field(
        0.05, description="place in its range below which an objective asks for no more; 0 as published"
    )


class _GradientRule(WeightingRule):
    """Weighs objectives against each other by their gradients."""

    cost = "one more measurement of the objectives' gradients a step, see gramian.mode"

    def problems(self, objectives: tuple[str, ...], targets: frozenset[str]) -> Iterator[Problem]:
        del targets
        if len(objectives) < 2:
            yield "name", "a Gramian rule weighs objectives against each other and needs at least 2; use 'fixed'"


class GradientSpec(_GradientRule):
    """Weight to the objectives whose gradient helps the others."""

    source = "arXiv 2509.11452, part 2"
    needs = frozenset({"influence"})
    name: Literal["gradient"] = "gradient"
    step_size: Positive = Field(0.1, le=10, description="eta / mu of the paper: step of the mirror descent")
    decay: Fraction = Field(
        0.0, description="pull back to the preference each step; 0 as published, which is rich-get-richer"
    )
    floor: Fraction = Field(0.05, description="least weight of an objective that has a preference; 0 as published")
    ceiling: Fraction = Field(
        1.0,
        description="largest weight of an objective, but no less than an equal share of those with a preference; "
        "1 as published",
    )

    def problems(self, objectives: tuple[str, ...], targets: frozenset[str]) -> Iterator[Problem]:
        yield from super().problems(objectives, targets)
        count = len(objectives)
        if self.floor * count > 1 + 1e-9:
            yield "floor", f"{self.floor:g} for each of {count} objectives is more than 1"
        if self.ceiling * count < 1 - 1e-9:
            yield "ceiling", f"{self.ceiling:g} for each of {count} objectives is less than 1"


class _GramianRule(_GradientRule):
    """From the inner products of the objectives' gradients; more preference is more weight."""

    needs = frozenset({"gramian"})


class MgdaSpec(_GramianRule):
    """The combination of the gradients with the least norm."""

    source = "arXiv 1810.04650"
    name: Literal["gramian:mgda"] = "gramian:mgda"


class UpGradSpec(_GramianRule):
    """Projects each gradient on the directions that no objective loses by, then takes the mean."""

    source = "arXiv 2406.16232"
    name: Literal["gramian:upgrad"] = "gramian:upgrad"


class CaGradSpec(_GramianRule):
    """The direction near the mean gradient that does most for the worst objective."""

    source = "arXiv 2110.14048"
    name: Literal["gramian:cagrad"] = "gramian:cagrad"
    c: float = Field(
        0.4,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="how far from the mean gradient, in its norm: 0 is the preference, large is mgda; 0.4 as published",
    )


class PcGradSpec(_GramianRule):
    """Takes from each gradient its part against those that it conflicts with."""

    source = "arXiv 2001.06782"
    name: Literal["gramian:pcgrad"] = "gramian:pcgrad"


class NashMtlSpec(_GramianRule):
    """The bargaining solution: every objective's weight times its improvement is the same."""

    source = "arXiv 2202.01017"
    name: Literal["gramian:nash_mtl"] = "gramian:nash_mtl"


class ImtlGSpec(_GramianRule):
    """The combination whose projections on all the gradients are equal."""

    source = "ICLR 2021, openreview IMPnRXEWpvr"
    name: Literal["gramian:imtl_g"] = "gramian:imtl_g"


class FairGradSpec(_GramianRule):
    """Alpha-fair shares of the improvement."""

    source = "arXiv 2402.15638"
    name: Literal["gramian:fairgrad"] = "gramian:fairgrad"
    alpha: float = Field(
        2.0,
        ge=0.1,
        le=20,
        allow_inf_nan=False,
        description="1 is proportional fairness (nash_mtl), 2 least delay, a large one the best for the worst",
    )


class AlignedMtlSpec(_GramianRule):
    """Makes the gradients orthogonal and equally long by the least change, then takes the mean."""

    source = "arXiv 2305.19000"
    name: Literal["gramian:aligned_mtl"] = "gramian:aligned_mtl"


class DualProjSpec(_GramianRule):
    """Projects the mean gradient on the directions that no objective loses by."""

    source = "arXiv 1706.08840"
    name: Literal["gramian:dualproj"] = "gramian:dualproj"


class LagrangianSpec(WeightingRule):
    """Multipliers that grow while a target is missed; objectives without a target are what is maximised."""

    source = "arXiv 2310.04373, 2602.05863"
    needs = frozenset({"targets"})
    name: Literal["lagrangian"] = "lagrangian"
    eta: Positive = Field(0.1, le=10, description="step of a multiplier, per range of its objective")
    lam_max: Positive = Field(
        5.0, le=1000, description="largest multiplier; objectives without a target have weight 1 together"
    )
    lam_init: float = Field(0.0, ge=0, le=1000, allow_inf_nan=False, description="multiplier at the start")
    form: Literal["inequality", "equality"] = Field(
        "inequality", description="equality: the multiplier may turn negative, against overshooting"
    )

    def problems(self, objectives: tuple[str, ...], targets: frozenset[str]) -> Iterator[Problem]:
        if not targets:
            yield "name", "'lagrangian' needs a target on at least one objective"
        elif targets >= set(objectives):
            yield "name", "'lagrangian' needs an objective without a target, which it maximises"
        if self.lam_init > self.lam_max:
            yield "lam_init", f"{self.lam_init:g} is more than lam_max, {self.lam_max:g}"


class SawSpec(WeightingRule):
    """Weight to the objectives whose rewards still differ between rollouts."""

    source = "arXiv 2606.07705"
    name: Literal["saw"] = "saw"
    rate: Rate = Field(0.1, description="share of the newest batch in the exponential mean; 1 is the newest alone")
    floor: Fraction = Field(0.25, description="least factor on a preference")


class DaraSpec(WeightingRule):
    """Weight to the objectives that few groups of rollouts can learn from."""

    source = "DARA, 2026"
    name: Literal["dara"] = "dara"
    cap: float = Field(5.0, ge=1, le=1000, allow_inf_nan=False, description="largest factor; 5 as published")


class SaturationSpec(WeightingRule):
    """Weight away from the objectives that are nearly solved."""

    source = "SA-MRPO, 2026"
    name: Literal["saturation"] = "saturation"
    gamma: float = Field(
        0.5,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="power of what is left of the range; 0.25 to 0.5 as published",
    )


class LogVolumeSpec(WeightingRule):
    """Weight by what each objective's own improvement would add to the volume below the policy's point."""

    source = "ours"
    name: Literal["log_volume"] = "log_volume"
    rate: Rate = Field(0.3, description="share of the newest batch in the exponential means; 1 is the newest alone")
    least: Fraction = Field(0.05, gt=0, description="place in its range below which an objective asks for no more")


class CovarianceSpec(WeightingRule):
    """Weight to the objectives that the updates do not follow yet."""

    source = "CTWA, arXiv 2602.06869"
    needs = frozenset({"credit"})
    name: Literal["covariance"] = "covariance"
    eta: Positive = Field(0.05, le=10, description="step of the log-weight, per missing covariance; 0.05 as published")
    target_covariance: float = Field(
        0.1,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="of a reward, in its range, with the update's advantages; 0.08 to 0.15 as published",
    )
    rate: Rate = Field(0.1, description="share of the newest update in the exponential mean; 0.1 as published")
    cap: float = Field(
        20.0,
        ge=1,
        le=1e9,
        allow_inf_nan=False,
        description="the most times that one objective's factor is another's; unbounded as published",
    )


class PamaSpec(WeightingRule):
    """All weight to the objective with the least advantage to gain from the batch."""

    source = "arXiv 2508.07768"
    name: Literal["pama"] = "pama"


class TchebycheffSpec(WeightingRule):
    """Weight to the objective furthest below the best seen, smoothed."""

    source = "arXiv 2402.19078"
    needs = frozenset({"archive"})
    name: Literal["tchebycheff"] = "tchebycheff"
    mu: Positive = Field(0.1, le=100, description="smoothing: a large one is the preference, a small one a maximum")
    margin: Fraction = Field(0.0, description="how far above the best seen the aim lies, in the objectives' ranges")


BuiltInWeighting = (
    FixedSpec
    | ScheduleSpec
    | HypervolumeSpec
    | HvGradientSpec
    | GradientSpec
    | MgdaSpec
    | UpGradSpec
    | CaGradSpec
    | PcGradSpec
    | NashMtlSpec
    | ImtlGSpec
    | FairGradSpec
    | AlignedMtlSpec
    | DualProjSpec
    | LagrangianSpec
    | SawSpec
    | DaraSpec
    | SaturationSpec
    | CovarianceSpec
    | PamaSpec
    | TchebycheffSpec
    | LogVolumeSpec
)


class WeightingPlugin(PluginSpec, WeightingRule):
    """A weighting strategy from an installed package."""

    group = WEIGHTING_GROUP

    def problems(self, objectives: tuple[str, ...], targets: frozenset[str]) -> Iterator[Problem]:
        if self.needs & {"gramian", "influence"} and len(objectives) < 2:
            yield "name", f"'{self.name}' compares the objectives' gradients and needs at least 2; use 'fixed'"
        if "targets" in self.needs and not targets:
            yield "name", f"'{self.name}' needs a target on at least one objective"


if TYPE_CHECKING:
    WeightingSpec = Annotated[BuiltInWeighting, Field(discriminator="name")]
else:
    WeightingSpec = with_plugins(BuiltInWeighting, WeightingPlugin)
