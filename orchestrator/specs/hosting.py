"""Where a reward scores, and what happens when it can't."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from orchestrator.specs.base import Fraction, Positive, Spec

UNRESERVED_REPLICAS = 8


class HostingSpec(Spec):
    """The processes of a reward, and how patient the job is with them."""

    replicas: int = Field(1, ge=1, le=64, description="processes that share the scoring, each with the whole reward")
    num_cpus: float = Field(
        0.0,
        ge=0,
        le=1024,
        allow_inf_nan=False,
        description="CPUs reserved for a replica; 0 suits what works for milliseconds a step, such as verifiers",
    )
    num_gpus: float = Field(
        0.0, ge=0, le=64, allow_inf_nan=False, description="GPUs reserved for a replica: a share of one, or whole ones"
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="most completions in one call, whole groups where they fit; when absent a group, small groups "
        "together up to 8 rows, and of a rowwise reward what waits, up to 64",
    )
    deadline_s: Positive | None = Field(
        None, description="longest wait for one call, seconds; resources.reward_timeout_s when absent"
    )
    start_s: Positive = Field(600.0, description="longest wait for a replica to load its reward, seconds")
    attempts: int = Field(
        5,
        ge=1,
        le=100,
        description="tries of a call whose process dies, runs out of memory, hangs or loses its connection",
    )
    row_attempts: int = Field(
        2, ge=1, le=100, description="tries of a completion that the reward raises on, or gives no finite number for"
    )
    backoff_s: Positive = Field(0.5, le=60, description="pause before the first restart, seconds; it doubles up to 30")
    max_bad_share: Fraction = Field(
        0.05,
        description="share of a step's completions that may be left out because they can't be scored, rounded up to a "
        "whole one; above it the step is not made",
    )
    on_failure: Literal["pause", "fail"] = Field(
        "pause", description="what becomes of the job when the tries are used up or too many completions are bad"
    )

    @model_validator(mode="after")
    def _resources_can_be_given(self) -> Self:
        if self.replicas > UNRESERVED_REPLICAS and not self.num_cpus and not self.num_gpus:
            raise ValueError(
                f"replicas: {self.replicas} that reserve nothing may crowd out a machine; above {UNRESERVED_REPLICAS}, "
                "give num_cpus or num_gpus"
            )
        if self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            raise ValueError(f"num_gpus: expected a share below 1 or a whole number, got {self.num_gpus:g}")
        return self
