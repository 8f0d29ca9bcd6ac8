"""Hypervolume-guided weighting (arXiv 2509.11452, part 1): batches count more while the front is moving out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from policies.types import StepStats, Weights
from policies.weighting.base import Weighting


class HypervolumeGuided(Weighting):
    """w = preference; m = base + gain tanh(d / tau) multiplies the batch.

    d is the growth of the normalised hypervolume at the latest evaluation, tau the running median of past d > 0: in raw
    units tanh would be stuck at 0 or 1. Until the next evaluation m stays.

    As published (`faithful`), m multiplies the rewards before they are normalised, which group standardisation and
    whitening cancel: only rloo feels it. By default m multiplies the advantages, where it acts as far as the norm of
    the gradient stays within the learner's limit: beyond, clipping takes a larger m back, and what is left of the rule
    is that it brakes. AdamW divides by the gradient's own size, and so takes back an m that stays, within some
    1 / (1 - betas[1]) updates: what acts is its change. Before the first evaluation after the initial one, m = 1.
    """

    needs = frozenset({"archive"})
    on_preference = "repeats"

    def __init__(self, *, faithful: bool = False, base: float = 0.5, gain: float = 1.5) -> None:
        self.faithful = faithful
        self.base = base
        self.gain = gain
        self._seen_step = -1
        self._growths: list[float] = []  # past d > 0
        self._multiplier = 1.0

    def update(self, stats: StepStats) -> Weights:
        front = stats.front
        if front is not None and front.step > self._seen_step:
            if front.step > 0:  # the initial policy's own volume is no growth
                self._observe(front.growth)
            self._seen_step = front.step
        return Weights(
            weights_K=stats.preference_K,
            advantage_scale=1.0 if self.faithful else self._multiplier,
            reward_scale=self._multiplier if self.faithful else 1.0,
        )

    def _observe(self, growth: float) -> None:
        tau = statistics.median(self._growths) if self._growths else growth
        self._multiplier = self.base + self.gain * (math.tanh(growth / tau) if growth > 0 else 0.0)
        if growth > 0:
            self._growths.append(growth)

    def state_dict(self) -> dict[str, Any]:
        return {"seen_step": self._seen_step, "growths": list(self._growths), "multiplier": self._multiplier}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._seen_step = state["seen_step"]
        self._growths = list(state["growths"])
        self._multiplier = state["multiplier"]
