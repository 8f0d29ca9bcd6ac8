"""What becomes of groups without signal, who gets how many rollouts, and who is waited for, as a spec names them.

policies/signal.py, policies/budget.py and orchestrator/rollouts/turns.py have the rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from orchestrator.spec_errors import nearest
from orchestrator.specs.base import Finite, Fraction, Name, Positive, RuleSpec, Spec


class SamplingRuleSpec(RuleSpec):
    """A rule that may not fit a job."""

    def problems(self, objectives: tuple[str, ...], rollouts_per_prompt: int) -> Iterator[tuple[str, str]]:
        """(path of a field below this one, message) of each mistake that only the whole job shows."""
        del objectives, rollouts_per_prompt
        return iter(())


class KeepSpec(SamplingRuleSpec):
    """Keep groups without signal: they count in the averages and ask for nothing."""

    source = "GRPO, arXiv 2402.03300"

    name: Literal["keep"] = "keep"


class NeedsSpread(SamplingRuleSpec):
    """A rule that looks for spread in a group."""

    def problems(self, objectives: tuple[str, ...], rollouts_per_prompt: int) -> Iterator[tuple[str, str]]:
        del objectives
        if rollouts_per_prompt < 2:
            yield "name", "a group of one rollout never has a signal; needs at least 2 rollouts per prompt"


class DropSpec(NeedsSpread):
    """Drop groups in which no weighted objective spreads; all stay where none does."""

    source = "per objective; on one reward: DAPO, arXiv 2503.14476"

    name: Literal["drop"] = "drop"


class RefillSpec(NeedsSpread):
    """Drop groups without signal and sample further prompts in their place."""

    source = "dynamic sampling of DAPO, arXiv 2503.14476, per objective"
    cost = "up to max_rounds further batches of rollouts"

    name: Literal["refill"] = "refill"
    max_rounds: int = Field(3, ge=1, le=64, description="times that further prompts are sampled in a step, at most")


class CopoSpec(SamplingRuleSpec):
    """Give groups without signal an advantage by their place in the batch."""

    source = "COPO, arXiv 2508.04138"

    name: Literal["copo"] = "copo"
    coefficient: Positive = Field(1.0, le=100, description="factor of that advantage beside the group's own")


ZeroSignalSpec = Annotated[KeepSpec | DropSpec | RefillSpec | CopoSpec, Field(discriminator="name")]


class UniformSpec(SamplingRuleSpec):
    """The same number of rollouts for every prompt."""

    source = "GRPO, arXiv 2402.03300"

    name: Literal["uniform"] = "uniform"


class KnapsackSpec(SamplingRuleSpec):
    """More rollouts for prompts that are rarely solved, fewer for those whose outcome is clear."""

    source = "arXiv 2509.25849"

    name: Literal["knapsack"] = "knapsack"
    objective: Name = Field(description="the objective whose reward tells success")
    success_at: Finite = Field(0.5, description="raw reward of that objective from which on a rollout succeeded")
    min_rollouts: int = Field(2, ge=1, le=1024, description="rollouts of a prompt, at least")
    max_rollouts: int | None = Field(
        None, ge=1, le=65_536, description="rollouts of a prompt, at most; the whole budget when absent"
    )
    forgetting: Fraction = Field(
        0.5, description="share of a prompt's earlier rollouts that stops to count at each new visit; 1 as published"
    )
    prior_rate: Fraction = Field(0.5, description="success rate assumed of a prompt that has no rollouts yet")
    prior_count: float = Field(
        2.0, ge=0, le=1e6, allow_inf_nan=False, description="rollouts that the assumption counts for; 0 as published"
    )

    @model_validator(mode="after")
    def _ends_ascend(self) -> Self:
        if self.max_rollouts is not None and self.min_rollouts > self.max_rollouts:
            raise ValueError(f"min_rollouts ({self.min_rollouts}) exceeds max_rollouts ({self.max_rollouts})")
        return self

    def arguments(self, objectives: tuple[str, ...]) -> dict[str, Any]:
        """Of policies.budget.Knapsack, but for rollouts_per_prompt; what tells success is its caller's matter."""
        del objectives
        return self.model_dump(exclude={"name", "objective", "success_at"})

    def problems(self, objectives: tuple[str, ...], rollouts_per_prompt: int) -> Iterator[tuple[str, str]]:
        if self.objective not in objectives:
            hint = nearest(self.objective, objectives)
            yield "objective", f"no objective '{self.objective}'{hint}; objectives are {', '.join(objectives)}"
        if self.min_rollouts > rollouts_per_prompt:
            yield "min_rollouts", f"{self.min_rollouts} each is more than the budget of {rollouts_per_prompt} a prompt"
        if self.max_rollouts is not None and self.max_rollouts < rollouts_per_prompt:
            yield "max_rollouts", f"{self.max_rollouts} each is less than the budget of {rollouts_per_prompt} a prompt"


BudgetSpec = Annotated[UniformSpec | KnapsackSpec, Field(discriminator="name")]


class WaitSpec(SamplingRuleSpec):
    """Wait for every rollout of a step, however long it gets."""

    source = "GRPO, arXiv 2402.03300"

    name: Literal["wait"] = "wait"

    def asked(self, prompts: int) -> int:
        """For how many a step asks that needs so many."""
        return prompts


class DeferSpec(SamplingRuleSpec):
    """Ask for more prompts than a step needs; those whose rollouts end last get a step of their own.

    Long completions then hold up only each other. What had been written of those that are put off is thrown away. Where
    a step is more than the engines write together, those that they have not come to are put off as well.
    """

    source = "tail batching of RollPacker, arXiv 2509.21009"
    cost = "tokens of the rollouts that are withdrawn"

    name: Literal["defer"] = "defer"
    over_sampling: Positive = Field(0.25, le=4, description="further prompts a step asks for, as a share of its own")

    def asked(self, prompts: int) -> int:
        """For how many a step asks that needs so many."""
        return prompts + math.ceil(prompts * self.over_sampling)


TailSpec = Annotated[WaitSpec | DeferSpec, Field(discriminator="name")]


class SamplingSpec(Spec):
    """Which prompts' groups are learned from, how many rollouts each gets, and who is waited for."""

    zero_signal: ZeroSignalSpec = KeepSpec()
    budget: BudgetSpec = UniformSpec()
    tail: TailSpec = WaitSpec()
    reference_rollouts: int = Field(
        8,
        ge=2,
        le=256,
        description="completions of the initial policy for each train prompt that the steps may reach, sampled before "
        "the first one, where a transform compares with them",
    )
