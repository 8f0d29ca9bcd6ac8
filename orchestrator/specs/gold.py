"""A reward that is watched and never optimised; policies/overoptimisation.py has the rule."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from orchestrator.specs.base import Finite, Spec
from orchestrator.specs.objectives import RewardSpec

_Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class GoldSpec(Spec):
    """Scored on some of a step's rollouts beside the objectives; it has no weight and no part in any update."""

    reward: RewardSpec = Field(description="what is trusted more than the objectives, such as a larger judge")
    range: tuple[Finite, Finite] = Field((0.0, 1.0), description="[lo, hi] of its raw scores, the unit of falls")
    every: int = Field(1, ge=1, description="steps between those whose rollouts it scores")
    samples: int = Field(64, ge=2, le=65_536, description="rollouts of such a step, spread over its prompts")
    window: int = Field(5, ge=1, le=1000, description="readings that are averaged before they are compared")
    drop: _Share = Field(
        0.05, description="fall of gold below its best, in units of its range, that counts beyond noise"
    )
    rise: _Share = Field(
        0.02, description="rise of an objective since then, in units of its range, that counts beyond noise"
    )
    action: Literal["alert", "pause"] = Field("alert", description="an event, or an event and a pause of the job")

    @model_validator(mode="after")
    def _range_ascends(self) -> Self:
        if not self.range[0] < self.range[1]:
            raise ValueError(f"range: expected [lo, hi] with lo < hi, got {list(self.range)}")
        return self
