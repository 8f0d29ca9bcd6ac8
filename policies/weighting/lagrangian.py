"""Lagrange multipliers for objectives with targets (arXiv 2310.04373, 2602.05863)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from policies.types import StepStats, Weights
from policies.weighting.base import Weighting
from policies.weighting.tilt import batch_mean

Form = Literal["inequality", "equality"]

LARGEST_ARGUMENT = 3.0  # of tanh: 0.995 of the way to lam_max, and soon left again when the target is passed


class Lagrangian(Weighting):
    """v is 1, shared by preference, for objectives without a target and a multiplier for each other; w = |v| / sum |v|.

    inequality: lam_k <- clip(lam_k + eta * missing_k, 0, lam_max), missing_k = (target_k - mean R_k) / (hi - lo) for
    "at least". For "at most" missing_k changes sign and so does the objective: it is pushed down, and left alone while
    it stays below.
    equality: mu_k <- mu_k + eta (target_k - mean R_k) / (hi - lo), lam_k = lam_max tanh(mu_k), which turns negative,
    and pushes the reward down, when it overshoots; whether the target says at least or at most does not matter.

    The multipliers assume that every objective's advantage is normalised on its own, as gdpo does. An objective that
    the batch did not measure keeps its multiplier. While a person alone decides, the multipliers are those of their
    weights. Where every v is 0 (no preference for any objective without a target, no multiplier yet), the weights are
    the preference.
    """

    needs = frozenset({"targets"})
    follows_preference = False

    def __init__(
        self, *, eta: float = 0.1, lam_max: float = 5.0, lam_init: float = 0.0, form: Form = "inequality"
    ) -> None:
        self.eta = eta
        self.lam_max = lam_max
        self.lam_init = lam_init
        self.form = form
        self._duals_K: Tensor | None = None  # lam, or mu in the equality form

    def update(self, stats: StepStats) -> Weights:
        targets_K = stats.objectives.targets_K.double()
        signs_K = stats.objectives.target_signs_K.double()
        low_K, high_K = stats.objectives.ranges_K2.double().unbind(dim=1)
        below_K = (targets_K - batch_mean(stats.rewards_PGK)) / (high_K - low_K)
        missing_K = torch.nan_to_num(below_K, nan=0.0)
        if self._duals_K is None:
            self._duals_K = torch.full_like(missing_K, self._first_dual())
        aimed_K = ~torch.isnan(targets_K)
        if not stats.decides:
            self._duals_K = self._duals_of(stats.preference_K.double(), aimed_K)
        elif self.form == "equality":
            moved_K = self._duals_K + self.eta * missing_K
            self._duals_K = moved_K.clamp(-LARGEST_ARGUMENT, LARGEST_ARGUMENT)
        else:
            self._duals_K = (self._duals_K + self.eta * signs_K * missing_K).clamp(0, self.lam_max)
        multipliers_K = self.lam_max * torch.tanh(self._duals_K) if self.form == "equality" else signs_K * self._duals_K
        primary_K = torch.where(aimed_K, 0.0, stats.preference_K.double())
        primary_K = primary_K / primary_K.sum().clamp_min(torch.finfo(torch.float64).tiny)
        values_K = torch.where(aimed_K, multipliers_K, primary_K)
        total = values_K.abs().sum()
        ways_K = torch.where(aimed_K, signs_K, 1.0) if self.form == "inequality" else torch.ones_like(values_K)
        choice_K = stats.preference_K.double() if float(total) < 1e-12 else values_K.abs() / total
        turned_K = torch.where(values_K == 0, ways_K, values_K.sign())  # where its weight would push an objective
        most = LARGEST_ARGUMENT if self.form == "equality" else self.lam_max
        limits_K = torch.where(aimed_K, (self._duals_K.abs() >= most).double(), torch.nan)
        because = {"multiplier": values_K, "below_target": below_K, "limit": limits_K}
        return Weights(weights_K=choice_K.float(), signs_K=turned_K, directions_K=ways_K, because=because)

    def _duals_of(self, preference_K: Tensor, aimed_K: Tensor) -> Tensor:
        """Those whose weights are the preference, as far as lam_max lets them."""
        untargeted = preference_K[~aimed_K].sum()
        scale = 1 / untargeted if float(untargeted) > 0 else self.lam_max / preference_K.max()
        multipliers_K = (scale * preference_K).clamp(max=self.lam_max)
        if self.form == "inequality":
            return multipliers_K
        return torch.atanh(multipliers_K / self.lam_max).clamp(max=LARGEST_ARGUMENT)

    def _first_dual(self) -> float:
        if self.form == "inequality":
            return min(self.lam_init, self.lam_max)
        return min(LARGEST_ARGUMENT, math.atanh(min(self.lam_init / self.lam_max, 1 - 1e-9)))

    def state_dict(self) -> dict[str, Any]:
        return {"duals": None if self._duals_K is None else self._duals_K.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        duals = state["duals"]
        self._duals_K = None if duals is None else torch.tensor(duals, dtype=torch.float64)
