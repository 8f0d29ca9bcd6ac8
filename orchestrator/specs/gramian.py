"""How the objectives' gradients are compared."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.specs.base import Decay, Spec


class GramianSpec(Spec):
    """How the objectives' gradients are compared, where the weighting needs it."""

    mode: Literal["exact", "sketch", "last_block", "step_response"] = Field(
        "exact",
        description="exact before the update, at (2 + K) / 3 of its cost; or measured during it, nearly free, for the "
        "next step: sketch (random projections), last_block, step_response (influence alone)",
    )
    sketch_width: int = Field(16, ge=2, le=1024, description="columns of a sketch's projections: error ~ 1 / width")
    response_share: float = Field(
        0.25,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="share of the prompts, drawn anew at each step, whose rollouts step_response reads again; 1 is all",
    )
    average: Decay = Field(0.0, description="share of the running average kept at each step; 0 is this step's alone")
