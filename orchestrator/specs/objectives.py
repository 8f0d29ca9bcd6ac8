"""What is to be improved: an objective, its reward, and the person's preference for it."""

from __future__ import annotations

import json
import math
from typing import Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from orchestrator.specs.base import Finite, Fraction, Name, Spec
from orchestrator.specs.data import Domain
from orchestrator.specs.hosting import HostingSpec
from orchestrator.specs.transforms import IdentitySpec, TransformSpec
from rewards import registry

DEFAULT_RANGE = (0.0, 1.0)


def _option(name: str) -> str:
    return f"options.{name}" if name else "options"


class RewardSpec(Spec):
    """A registered reward and its options (`equipoise rewards` lists them)."""

    name: str = Field(description="registered name")
    options: dict[str, JsonValue] = Field(default_factory=dict, description="options of that reward")
    hosting: HostingSpec = HostingSpec()

    @model_validator(mode="after")
    def _known(self) -> Self:
        try:
            registry.parse_options(self.name, self.options)
        except registry.OptionsError as error:
            raise ValueError("; ".join(f"{_option(name)}: {message}" for name, message in error.problems)) from None
        except ValueError as error:
            raise ValueError(f"name: {error}") from None
        return self

    @property
    def head(self) -> str | None:
        """Which of the reward's heads it is; None for a reward that has none."""
        option = getattr(registry.resolve(self.name), "head_option", None)
        return None if option is None else str(getattr(registry.parse_options(self.name, self.options), option))

    @property
    def shared_by(self) -> str:
        """The same for rewards that one pass scores: equal in name and options, but for the head."""
        option = getattr(registry.resolve(self.name), "head_option", None)
        options = registry.parse_options(self.name, self.options).model_dump(mode="json")
        options.pop(option or "", None)
        return json.dumps([self.name, options], sort_keys=True)


class Gate(Spec):
    """The objective counts only in rollouts where another one reached a threshold.

    Elsewhere it is 0, or the batch's lowest where that is negative. So it counts on the front too; figures stay raw.
    """

    objective: Name = Field(description="the other objective")
    at_least: Finite = Field(description="threshold on the other objective's raw reward")


class Target(Spec):
    """What the objective should reach; used by rules that need targets, and drawn in the report.

    Under such a rule the front takes smaller for better where the target is `<=`, and under `equality` what is nearer.
    """

    op: Literal[">=", "<="] = ">="
    value: Finite = Field(description="in units of the raw reward")


class ObjectiveSpec(Spec):
    """One thing to improve, with the person's preference for it."""

    name: Name
    reward: RewardSpec
    weight: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="the person's preference; weights are scaled to sum to 1"
    )
    range: tuple[Finite, Finite] = Field(
        DEFAULT_RANGE,
        description="[lo, hi] of the raw reward, to normalise the front; values outside are clipped; when absent the "
        "reward's own, where that is finite",
    )
    reference: Finite | None = Field(
        None,
        description="corner from which the hypervolume is measured, in raw units; the range's worse end when absent",
    )
    transform: TransformSpec = Field(
        IdentitySpec(), description="of the raw reward, after the gate, before advantages; figures stay raw"
    )
    bounds: tuple[Fraction, Fraction] = Field((0.0, 1.0), description="[floor, ceiling] of its applied weight")
    gate: Gate | None = Field(None, description="counts only where another objective reached a threshold")
    target: Target | None = None
    domains: tuple[Domain, ...] | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="applies to prompts of these alone, by data.columns.domain, and is not asked about others; to all "
        "when absent (CGPO, arXiv 2409.20370)",
    )

    @field_validator("range")
    @classmethod
    def _range_ascends(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < value[1]:
            raise ValueError(f"expected [lo, hi] with lo < hi, got {list(value)}")
        return value

    @model_validator(mode="after")
    def _range_of_its_reward(self) -> Self:
        """Where a reference stands alone, it was chosen for the default."""
        if self.model_fields_set.isdisjoint({"range", "reference"}):
            low, high = getattr(registry.resolve(self.reward.name), "range", (-math.inf, math.inf))
            if -math.inf < low < high < math.inf:
                object.__setattr__(self, "range", (float(low), float(high)))  # it is frozen
        return self

    @model_validator(mode="after")
    def _reference_can_be_beaten(self) -> Self:
        low, high = self.range
        if self.reference is not None and not low <= self.reference < high:
            raise ValueError(
                f"reference: expected lo <= reference < hi of range {[low, high]}, got {self.reference:g}; "
                "no point of the range beats a higher one"
            )
        return self

    @field_validator("bounds")
    @classmethod
    def _bounds_ascend(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError(f"expected [floor, ceiling] with floor <= ceiling, got {list(value)}")
        return value
