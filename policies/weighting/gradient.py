"""Gradient-based weighting (arXiv 2509.11452, part 2): weight to the objectives whose gradient helps them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from policies.types import StepStats, Weights
from policies.weighting.base import Weighting
from policies.weighting.simplex import project
from policies.weighting.tilt import same

HELD = 1e-9  # a smaller difference is none


class GradientInfluence(Weighting):
    """Mirror descent on the influence of each objective (algorithm 1 of the paper).

    g_k = gradient of the surrogate under A_k alone, its norm clipped to 1; influence I_k = sum_l <g_k, g_l>;
    log w_k += step_size * I_k; w = softmax. The first weights are the preference.

    The published rule has no floor and is rich-get-richer: with step size 0.1 and influences 1.2 and 0.3, a third
    becomes 0.62 and 0.04 within 30 steps. `floor` keeps every objective at work, `ceiling` keeps one from taking over,
    and `decay` pulls log w back to the preference by that share at each step; 0, 1 and 0 is the rule as published.

    An objective without preference takes no part and stays without weight, and the ceiling is no less than an equal
    share of the others. A step without a measurement keeps the weights. Raises ValueError where floor and ceiling leave
    no weights that sum to 1.
    """

    needs = frozenset({"influence"})
    on_preference = "restarts"

    def __init__(
        self, *, step_size: float = 0.1, decay: float = 0.0, floor: float = 0.05, ceiling: float = 1.0
    ) -> None:
        self.step_size = step_size
        self.decay = decay
        self.floor = floor
        self.ceiling = ceiling
        self._weights_K: Tensor | None = None
        self._preference_K: Tensor | None = None

    def update(self, stats: StepStats) -> Weights:
        preference_K = stats.preference_K.double()
        if not stats.decides:
            self._weights_K = self._preference_K = preference_K
            return Weights(weights_K=preference_K.float())
        if self._weights_K is None or self._preference_K is None or not same(preference_K, self._preference_K):
            self._weights_K = self._preference_K = preference_K  # a new preference is a new start
        asked = preference_K > 0  # what a person gave no weight stays without, and has no say in the others'
        influence_K = None if stats.influence_K is None else stats.influence_K[asked]
        if stats.gramian_KK is not None:
            influence_K = influence(stats.gramian_KK[asked][:, asked])
        if influence_K is None or not bool(torch.isfinite(influence_K).all()):  # nothing measured yet
            return Weights(weights_K=self._weights_K.float())
        told_K3 = torch.full((len(asked), 3), torch.nan, dtype=torch.float64)  # influence, before, limit
        told_K3[asked, 0], told_K3[asked, 1] = influence_K.double(), self._weights_K[asked]
        self._weights_K = torch.where(asked, self._weights_K, 0.0)
        self._weights_K[asked], told_K3[asked, 2] = self._descend(
            self._weights_K[asked], preference_K[asked], influence_K.double()
        )
        because = dict(zip(("influence", "before", "limit"), told_K3.unbind(dim=1), strict=True))
        return Weights(weights_K=self._weights_K.float(), because=because)

    def _descend(self, weights_K: Tensor, preference_K: Tensor, influence_K: Tensor) -> tuple[Tensor, Tensor]:
        """The next weights of objectives that all have a preference, and where floor or ceiling hold them."""
        tiny = torch.finfo(torch.float64).tiny
        log_weights_K, log_preference_K = (
            torch.log(values_K.clamp_min(tiny)) for values_K in (weights_K, preference_K)
        )
        log_weights_K = log_weights_K + self.decay * (log_preference_K - log_weights_K)
        log_weights_K = log_weights_K + self.step_size * influence_K
        floors_K = torch.full_like(log_weights_K, self.floor)
        ceilings_K = torch.full_like(log_weights_K, max(self.ceiling, 1 / len(log_weights_K)))
        free_K = torch.softmax(log_weights_K, dim=0)
        held_K = project(free_K, floors_K, ceilings_K)
        at_K = (held_K >= ceilings_K - HELD).double() - (held_K <= floors_K + HELD).double()
        return held_K, torch.where((held_K - free_K).abs() > HELD, at_K, 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": None if self._weights_K is None else self._weights_K.tolist(),
            "preference": None if self._preference_K is None else self._preference_K.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._weights_K = None if state["weights"] is None else torch.tensor(state["weights"], dtype=torch.float64)
        self._preference_K = (
            None if state["preference"] is None else torch.tensor(state["preference"], dtype=torch.float64)
        )


def influence(gramian_KK: Tensor) -> Tensor:
    """I_k = sum_l <g_k, g_l> with every norm clipped to 1; 0 for an objective without gradient."""
    gramian_KK = gramian_KK.double()
    scales_K = 1.0 / gramian_KK.diagonal().clamp_min(1.0).sqrt()
    return (scales_K[:, None] * gramian_KK * scales_K[None, :]).sum(dim=1)
