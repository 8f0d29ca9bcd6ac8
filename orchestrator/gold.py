"""Scores a step's rollouts under a gold reward, and watches the objectives against it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from orchestrator.rollouts.batch import Batch, reward_batch
from orchestrator.rollouts.prompts import Prompt
from orchestrator.spec import JobSpec
from policies.overoptimisation import OveroptimisationWatch, Overoptimised, rank_correlation
from policies.statistics import standard_error
from rewards.base import RewardBatch, Scores

GoldScorer = Callable[[RewardBatch], Scores]
"""Raises RewardError where there are no scores."""


@dataclass(frozen=True, kw_only=True)
class GoldReading:
    """A step's figures for its record, and what begins with it."""

    figures: dict[str, Any]
    began: list[Overoptimised]


class GoldWatch:
    """Of a job whose spec names a gold reward; without one it is never due."""

    def __init__(self, spec: JobSpec, score: GoldScorer | None) -> None:
        self.spec = spec
        self.gold = spec.gold
        self._score = score
        self._ranges = {objective.name: objective.range for objective in spec.objectives}
        self.watch: OveroptimisationWatch | None = None
        if self.gold is not None:
            self.watch = OveroptimisationWatch(
                spec.objective_names, window=self.gold.window, drop=self.gold.drop, rise=self.gold.rise
            )

    def due(self, step: int) -> bool:
        return self.gold is not None and step % self.gold.every == 0

    def read(self, step: int, batch: Batch, prompts: Sequence[Prompt]) -> GoldReading:
        """Means and correlations are over the same rollouts, those that gold applies to. Raises RewardError."""
        assert self.gold is not None
        assert self.watch is not None
        assert self._score is not None
        rows = spread_out(batch.counts, self.gold.samples)
        owners = [p for p, count in enumerate(batch.counts) for _ in range(count)]
        chosen = reward_batch(
            [prompts[batch.prompt_index[owners[row]]] for row in rows],
            [1] * len(rows),
            [batch.rollouts[row] for row in rows],
            self.spec.rollout.max_tokens,
            self.spec.rollout.thoughts_end,
        )
        scores = self._score(chosen)
        known = [i for i, score in enumerate(scores) if score is not None]
        gold = [score for score in scores if score is not None]
        rewards_BK = batch.in_a_row(batch.rewards_PGK)[[rows[i] for i in known]].tolist()
        proxies = {
            name: [None if row[k] != row[k] else row[k] for row in rewards_BK]  # NaN: it does not apply there
            for k, name in enumerate(self.spec.objective_names)
        }
        began: list[Overoptimised] = []
        if gold:
            levels = {name: _level(column, self._ranges[name]) for name, column in proxies.items()}
            level = _level(gold, self.gold.range)
            assert level is not None
            of_prompt = [owners[rows[i]] for i in known]
            errors = {name: error_of(column, of_prompt, self._ranges[name]) for name, column in proxies.items()}
            gold_error = error_of(gold, of_prompt, self.gold.range)
            began = self.watch.observe(step, level, levels, errors, gold_error)
        figures = {
            "mean": fmean(gold) if gold else None,
            "rollouts": len(gold),
            "objectives": {name: _mean(column) for name, column in proxies.items()},
            "correlation": {name: rank_correlation(column, gold) for name, column in proxies.items()},
            "trend": self.watch.trends(),
            "overoptimised": list(self.watch.active),
        }
        return GoldReading(figures=figures, began=began)

    def state_dict(self) -> dict[str, Any] | None:
        return None if self.watch is None else self.watch.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        if self.watch is not None and state is not None:
            self.watch.load_state_dict(state)


def spread_out(counts: Sequence[int], most: int) -> list[int]:
    """At most so many rows: the first rollout of each prompt, then the second of each, and so on; in their order."""
    starts = [0, *itertools.accumulate(counts)]
    by_turn = [starts[p] + g for g in range(max(counts, default=0)) for p, count in enumerate(counts) if g < count]
    return sorted(by_turn[:most])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _level(values: Sequence[float | None], ends: tuple[float, float]) -> float | None:
    """The mean in units of the range, 0 at its low end."""
    mean = _mean(values)
    return None if mean is None else (mean - ends[0]) / (ends[1] - ends[0])


def error_of(values: Sequence[float | None], prompts: Sequence[int], ends: tuple[float, float]) -> float | None:
    """Standard error of the level; rollouts of a prompt are alike. Of one prompt's, as if each were of its own."""
    groups = [[value for value, owner in zip(values, prompts, strict=True) if owner == p] for p in sorted(set(prompts))]
    error = standard_error(groups if len(groups) > 1 else [[value] for value in values])
    return None if error is None else error / (ends[1] - ends[0])
