"""A job that trains a reward model: `kind: reward_model`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.specs.base import Metadata, Spec, Title
from orchestrator.state.states import MAX_PRIORITY
from rewards.training.spec import RewardModelSpec


class RewardResourcesSpec(Spec):
    """What the training runs on: the driver's own process, on the machine where a worker starts it."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(None, ge=1, description="CPU threads; torch's own choice when absent")


class RewardJobSpec(Spec):
    """A reward model, and the ratings or pairs that it learns from."""

    kind: Literal["reward_model"]
    name: Title = Field(description="what people call it")
    priority: int = Field(
        0, ge=-MAX_PRIORITY, le=MAX_PRIORITY, description="higher goes first among its owner's own waiting jobs"
    )
    training: RewardModelSpec
    resources: RewardResourcesSpec = RewardResourcesSpec()
    metadata: Metadata = Field(default_factory=dict)

    def to_json(self) -> str:
        """With every default written out, so that a job replays after the defaults have moved."""
        return self.model_dump_json()
