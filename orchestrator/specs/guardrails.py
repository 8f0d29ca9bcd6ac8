"""Floors and ceilings on what a step reports; orchestrator/guardrails.py watches them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from orchestrator.specs.base import Finite, Spec

TOTALS = ("cost", "gpu_hours")  # of all the job's runs: they only rise
FIGURES = (
    "kl", "entropy", "loss", "grad_norm", "clip_share", "importance_mean", "sampler_gap", "total", "tokens",
    "mean_tokens", "truncated_share", "groups", "groups_learned", "rollouts_dropped", "prompts_put_off",
    "prompts_waiting", "updates_not_finite", "updates_masked", "evaluation.hypervolume", "evaluation.mean_tokens",
    "evaluation.truncated_share",
    *TOTALS,
)  # fmt: skip


def metrics(objectives: tuple[str, ...], *, has_gold: bool = False) -> tuple[str, ...]:
    """Every name that a guardrail of a job with these objectives may give."""
    gold = [f"gold.{figure}.{name}" for figure in ("correlation", "trend") for name in objectives]
    of_each = (
        f"{branch}.{name}{figure}"
        for name in objectives
        for branch, figure in (
            ("objectives", ".mean"),
            ("objectives", ".std"),
            ("objectives", ".zero_share"),
            ("weights.applied", ""),
            ("weights.strategy", ""),
            ("evaluation.objectives", ""),
        )
    )
    return (*FIGURES, *of_each, *(["gold.mean", *gold] if has_gold else ()))


class GuardrailSpec(Spec):
    """A floor, a ceiling or both on one figure, and what happens when it is outside for long enough."""

    metric: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        description="such as entropy, mean_tokens, truncated_share, objectives.NAME.mean, weights.applied.NAME or "
        "evaluation.objectives.NAME; kl where loss.kl_coef is above 0, so that it is measured; with a gold reward "
        "gold.mean, gold.correlation.NAME or gold.trend.NAME; a figure that not every step has counts at those that "
        "have it; `cost` (of judges) and `gpu_hours` are the job's so far"
    )
    min: Finite | None = Field(None, description="breached below this")
    max: Finite | None = Field(None, description="breached above this")
    for_steps: int = Field(1, ge=1, le=1_000_000, description="readings in a row that must be outside")
    action: Literal["alert", "pause"] = Field("alert", description="an event, or an event and a pause of the job")

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("expected min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min: {self.min:g} exceeds max ({self.max:g}): every value would be outside")
        return self


def problems(
    guardrails: tuple[GuardrailSpec, ...], objectives: tuple[str, ...], *, has_gold: bool = False
) -> Iterator[tuple[str, str]]:
    """(path below `guardrails`, message) of each metric that a job with these objectives does not report."""
    known = metrics(objectives, has_gold=has_gold)
    for i, guardrail in enumerate(guardrails):
        if guardrail.metric not in known:
            hint = _meant(guardrail.metric, known, objectives)
            yield f"{i}.metric", f"no figure '{guardrail.metric}'{hint or '; figures are ' + ', '.join(known)}"


def _meant(metric: str, known: tuple[str, ...], objectives: tuple[str, ...]) -> str:
    """People write an objective's name alone, where its mean is meant."""
    close = difflib.get_close_matches(metric, (*known, *objectives), n=1)
    if not close:
        return ""
    return f", did you mean '{close[0] if close[0] in known else f'objectives.{close[0]}.mean'}'?"
