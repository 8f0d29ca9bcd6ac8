"""Advantage estimators as a spec names them; policies/estimators has the rules.

Notation of the docstrings: R_k is the raw reward of objective k, Z_k the same standardised over the rollouts of its
prompt, w_k its weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from orchestrator.specs.base import Finite, Fraction, Name, RuleSpec
from orchestrator.specs.plugins import PluginSpec, with_plugins
from policies.plugins import ESTIMATOR_GROUP

# Below 1e-9, what rounding leaves of rewards that are equal would pass for spread.
StdFloor = Annotated[
    float,
    Field(
        ge=1e-9,
        le=1,
        allow_inf_nan=False,
        description="an objective whose standard deviation in the group is no more than this, in units of its reward, "
        "carries no signal there",
    ),
]
Kappa = Annotated[float, Field(ge=1e-3, le=100, allow_inf_nan=False)]


class EstimatorRule(RuleSpec):
    """What every estimator's spec shares."""

    single_rollout: ClassVar[bool] = False
    """Whether it has a signal with one rollout per prompt."""


class CondGdpoSpec(EstimatorRule):
    """As gdpo, but the other rewards count only in rollouts where one objective reached a threshold.

    What fails gets 0, or the lowest reward of the batch where that is negative.
    """

    source: ClassVar[str] = "arXiv 2601.05242, conditioned rewards"

    name: Literal["cond_gdpo"] = "cond_gdpo"
    condition: Name = Field(description="the objective that has to be reached")
    at_least: Finite = Field(
        description="threshold, in units of that objective's raw reward, such as 1 for a correct answer"
    )
    std_floor: StdFloor = 1e-6

    def arguments(self, objectives: tuple[str, ...]) -> dict[str, Any]:
        """With the condition's index. Raises ValueError where the job has no such objective."""
        if self.condition not in objectives:
            raise ValueError(f"estimator.condition: no objective '{self.condition}', there are {', '.join(objectives)}")
        return super().arguments(objectives) | {"condition": objectives.index(self.condition)}


class CorrGrpoSpec(EstimatorRule):
    """Rewards combined and centred, prompts where objectives move together scaled down.

    sum_k w_k (R_k - mean) / sqrt(sum of the objectives' correlations in the group). It re-weights prompts, not
    objectives.
    """

    source: ClassVar[str] = "arXiv 2609.36820"

    name: Literal["corr_grpo"] = "corr_grpo"
    correlation_floor: float = Field(
        0.1,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="least sum of correlations, which goes to 0 where objectives oppose each other; 0.1 scales a "
        "prompt up by 3.2 at most (ours, the published rule has none)",
    )
    std_floor: StdFloor = 1e-6


class DrGrpoSpec(EstimatorRule):
    """Rewards combined, minus the group's mean, not divided by its spread.

    Goes with loss.aggregation: constant.
    """

    source: ClassVar[str] = "arXiv 2503.20783"

    name: Literal["dr_grpo"] = "dr_grpo"


class DvaoSpec(EstimatorRule):
    """Rewards combined and centred, divided by the weighted sum of their spreads.

    It re-weights prompts, not objectives: sum_k w_k (R_k - mean) / sum_k w_k std_k.
    """

    source: ClassVar[str] = "arXiv 2605.25604"

    name: Literal["dvao"] = "dvao"
    std_floor: float = Field(
        1e-6,
        ge=1e-9,
        le=1,
        allow_inf_nan=False,
        description="a group whose weighted sum of standard deviations is no more than this, in units of the rewards, "
        "carries no signal",
    )


class Gd2poSpec(EstimatorRule):
    """As gdpo, without the rollouts on which objectives disagree, times the share that is left."""

    source: ClassVar[str] = "arXiv 2606.16771"

    name: Literal["gd2po"] = "gd2po"
    conflict_below: Fraction = Field(
        1.0,
        description="a rollout with advantages of both signs is left out where |sum_k w_k Z_k| / sum_k w_k |Z_k| is no "
        "more than this; 1 leaves out all (the paper's sign form), 0.2 is the paper's soft form, for three objectives "
        "or more",
    )
    std_floor: StdFloor = 1e-6


class GdpoSpec(EstimatorRule):
    """Each reward normalised in its group, then combined, then whitened over the batch."""

    source: ClassVar[str] = "arXiv 2601.05242"

    name: Literal["gdpo"] = "gdpo"
    std_floor: StdFloor = 1e-6


class GrpoSpec(EstimatorRule):
    """Rewards combined, then normalised by the group's mean and standard deviation."""

    source: ClassVar[str] = "arXiv 2402.03300"

    name: Literal["grpo"] = "grpo"
    std_floor: float = Field(
        1e-6,
        ge=1e-9,
        le=1,
        allow_inf_nan=False,
        description="groups whose combined reward has a standard deviation of no more than this carry no signal; with "
        "nearly equal weights, set it above the weights' differences",
    )


class HvoSpec(EstimatorRule):
    """Product of the rewards above the batch's worst, minus the group's mean; for rewards in about [0, 1].

    prod_k (R_k - min over the batch + offset)^(K w_k).
    """

    source: ClassVar[str] = "hypervolume scalarisation"

    name: Literal["hvo"] = "hvo"
    offset: float = Field(
        0.1,
        ge=1e-6,
        le=1e3,
        allow_inf_nan=False,
        description="added to each factor, in units of the rewards, so that the worst value of one objective does not "
        "hide the others",
    )


class MoGrpoSpec(EstimatorRule):
    """Each reward normalised in its group, then combined; as gdpo without the whitening over the batch."""

    source: ClassVar[str] = "arXiv 2509.22047"

    name: Literal["mo_grpo"] = "mo_grpo"
    std_floor: StdFloor = 1e-6


class ReinforceSpec(EstimatorRule):
    """Rewards combined, then whitened over the batch (REINFORCE++); works with one rollout per prompt."""

    source: ClassVar[str] = "arXiv 2501.03262"

    name: Literal["reinforce"] = "reinforce"
    baseline: Literal["batch", "group"] = Field(
        "batch",
        description="what is subtracted: the batch's mean, or that of the prompt's rollouts, of which it then needs "
        "at least 2 (REINFORCE++-baseline; TRL's scale_rewards: batch)",
    )

    @property
    def single_rollout(self) -> bool:  # type: ignore[override]  # it depends
        return self.baseline == "batch"


class RlooSpec(EstimatorRule):
    """Rewards combined, minus the mean of the group's other rollouts (leave-one-out)."""

    source: ClassVar[str] = "arXiv 2402.14740"

    name: Literal["rloo"] = "rloo"


class SoftminSpec(EstimatorRule):
    """Each reward normalised in its group, then their soft minimum (RVPO), whitened over the batch.

    -(1 / kappa) log sum_k w_k exp(-kappa Z_k); kappa moves linearly over the job's steps.
    """

    source: ClassVar[str] = "arXiv 2605.05750"

    name: Literal["softmin"] = "softmin"
    kappa_start: Kappa = Field(0.5, description="kappa at the first step; near 0 is gdpo; the paper's is 0.5")
    kappa_end: Kappa = Field(2.0, description="kappa at the last step; large is the worst objective; the paper's is 2")
    std_floor: StdFloor = 1e-6


BuiltInEstimator = (
    CondGdpoSpec
    | CorrGrpoSpec
    | DrGrpoSpec
    | DvaoSpec
    | Gd2poSpec
    | GdpoSpec
    | GrpoSpec
    | HvoSpec
    | MoGrpoSpec
    | ReinforceSpec
    | RlooSpec
    | SoftminSpec
)


class EstimatorPlugin(PluginSpec, EstimatorRule):
    """An advantage estimator from an installed package."""

    group = ESTIMATOR_GROUP

    @property
    def single_rollout(self) -> bool:  # type: ignore[override]  # the class knows
        rule = self.rule  # what is unknown is not refused
        return rule is None or bool(getattr(rule, "single_rollout", False))


if TYPE_CHECKING:
    EstimatorSpec = Annotated[BuiltInEstimator, Field(discriminator="name")]
else:
    EstimatorSpec = with_plugins(BuiltInEstimator, EstimatorPlugin)
