"""Where the processes of a job run, and how long it waits for them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.specs.base import Positive, Spec


class ResourcesSpec(Spec):
    """What the job runs on."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    learner_ranks: int = Field(
        1,
        ge=1,
        le=1024,
        description="processes of the learner, on GPUs one each, that share weights, moments and every batch (FSDP2)",
    )
    learner_threads: int | None = Field(
        None, ge=1, description="CPU threads of each rank of the learner; all cores, shared evenly, when absent"
    )
    engine_threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of an engine, shared among its ranks; when absent the engines share all cores, but 1 "
        "for the quickstart policy",
    )
    placement_timeout_s: Positive = Field(
        60.0,
        description="longest wait for all of the job's CPUs and GPUs at once, before it lets others go first, seconds; "
        "machines that a cluster has yet to start have the operator's EQUIPOISE_RAY_GROWTH_S, if that is longer",
    )
    learner_timeout_s: Positive = Field(
        7200.0,
        description="longest wait for one update, or another call of the learner, seconds; one that takes longer is "
        "given up, and the job goes back to its checkpoint",
    )
    reward_timeout_s: Positive = Field(
        60.0, description="longest wait for one call of a reward, seconds, where its hosting.deadline_s is absent"
    )
