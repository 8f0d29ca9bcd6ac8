"""What is looked at and kept while a job runs, and who has a say in it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.specs.base import Fraction, Spec
from orchestrator.specs.rollout import RolloutSpec

CUTS = ("top_p", "top_k", "min_p")


class SteeringSpec(Spec):
    """Who decides the weights at the start; a person can change it while the job runs."""

    mode: Literal["auto", "blend", "manual"] = Field(
        "auto", description="strategy alone, a mix, or the preference alone"
    )
    blend: Fraction = Field(0.5, description="share of the preference in mode blend")


class EvaluationSpec(Spec):
    """Held-out figures, which make the Pareto front."""

    every: int = Field(10, ge=1, description="steps between evaluations; step 0 and the last are always evaluated")
    prompts: int | None = Field(None, ge=1, description="validation prompts used; all when absent")
    rollouts_per_prompt: int = Field(1, ge=1, le=64, description="completions of each held-out prompt")
    temperature: float = Field(1.0, ge=0, le=5, allow_inf_nan=False, description="of held-out sampling; 0 is greedy")
    top_p: float | None = Field(
        None, gt=0, le=1, allow_inf_nan=False, description="of held-out sampling; rollout.top_p when absent"
    )
    top_k: int | None = Field(None, ge=0, le=2**31 - 1, description="the same; rollout.top_k when absent")
    min_p: Fraction | None = Field(None, description="the same; rollout.min_p when absent")
    greedy: bool = Field(True, description="greedy figures beside the sampled ones on the test split")
    test_points: int = Field(
        8, ge=0, le=256, description="points of the final front that are evaluated on the test split"
    )

    def sampling(self, rollout: RolloutSpec) -> RolloutSpec:
        """How held-out completions are drawn, but for the temperature."""
        own = {cut: value for cut in CUTS if (value := getattr(self, cut)) is not None}
        return rollout.model_copy(update=own)


class SamplesSpec(Spec):
    """Training rollouts that are kept on disk, to be looked at and to preview a change of weights."""

    every: int = Field(1, ge=0, description="steps between those whose rollouts are kept; 0 keeps none")
    prompts: int = Field(4, ge=1, le=64, description="whole groups kept of such a step, the first of its batch")
    keep: int = Field(500, ge=1, le=100_000, description="such steps whose rollouts are kept, the newest")


class CheckpointSpec(Spec):
    """What a crash can cost, and what is kept."""

    every: int = Field(10, ge=1, description="steps between checkpoints: the most that a crash re-runs")
    front: int = Field(
        32,
        ge=1,
        le=256,
        description="checkpoints of the front that are kept beside the newest two, as policies alone: those that hold "
        "most of the hypervolume alone, and always the initial policy and the best by the weights that are in force",
    )
    asynchronous: bool = Field(
        False,
        description="checkpoints are written, summed, flushed and copied to a store beside the next steps, from a copy "
        "of the learner's state in the host's memory; a crash meanwhile goes back to the checkpoint before",
    )


class CollapseSpec(Spec):
    """Sees one objective being hacked while another falls, further than noise explains (policies/collapse.py)."""

    action: Literal["off", "alert", "pause"] = "alert"
    drop: Fraction = Field(0.15, description="fall of an objective below its best, in units of its range, that counts")
    total_drop: Fraction = Field(
        0.05, description="fall of the preference-weighted total below its best that counts; both must hold"
    )
