"""CTWA (arXiv 2602.06869): weight to the objectives that the updates do not follow yet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from policies.signal import SPREAD
from policies.statistics import std
from policies.types import StepStats, UpdateOutcome, Weights
from policies.weighting.base import Weighting
from policies.weighting.tilt import batch_mean, from_json, to_json


class CovarianceTarget(Weighting):
    """log u_k += eta max(0, c* - c_k); w_k proportional to preference_k * u_k.

    c_k is the mean over prompts of the covariance, within the group, of reward k with the credit that the update gave
    (advantage * ratio * [not clipped]), in units of the declared range and as an exponential mean over the steps:
    `rate` is the share of the newest. An objective whose target is met in this step's batch is not pushed further.
    Nor is one that no group of the batch varies in: its covariance is 0 whatever the weights are. (A group without
    spread beside others counts with its 0, as published.) The published weights are not scaled to sum to 1, so there a
    push also lengthens the step. Groups with fewer than two measured rollouts say nothing; before the first update the
    weights are the preference.

    As published nothing bounds u: an objective whose target is met loses against those that are pushed at every step,
    and takes as many to come back once it is missed again. Here no u is more than `cap` times another.
    """

    needs = frozenset({"credit"})
    on_preference = "multiplies"

    def __init__(
        self, *, eta: float = 0.05, target_covariance: float = 0.1, rate: float = 0.1, cap: float = 20.0
    ) -> None:
        self.cap = cap
        self.eta = eta
        self.target_covariance = target_covariance
        self.rate = rate
        self._covariance_K: Tensor | None = None  # raw reward units; NaN until measured
        self._log_factors_K: Tensor | None = None

    def observe(self, outcome: UpdateOutcome) -> None:
        now_K = group_covariance(outcome.rewards_PGK, outcome.credit_PG)
        past_K = now_K if self._covariance_K is None else self._covariance_K
        moved_K = torch.where(torch.isnan(past_K), now_K, past_K + self.rate * (now_K - past_K))
        self._covariance_K = torch.where(torch.isnan(now_K), past_K, moved_K)

    def update(self, stats: StepStats) -> Weights:
        if self._log_factors_K is None or not stats.decides:
            self._log_factors_K = torch.zeros(len(stats.preference_K), dtype=torch.float64)
        because = {}
        if self._covariance_K is not None and stats.decides:
            low_K, high_K = stats.objectives.ranges_K2.double().unbind(dim=1)
            missing_K = self.target_covariance - self._covariance_K / (high_K - low_K)
            push_K = torch.nan_to_num(missing_K, nan=0.0).clamp_min(0)
            push_K = push_K.where(~(_target_met(stats) | ~_varies_K(stats.rewards_PGK)), 0.0)
            pushed_K = self._log_factors_K + self.eta * push_K
            largest = pushed_K[stats.preference_K > 0].max()  # what has no preference has no say
            pushed_K = pushed_K.clamp(largest - math.log(self.cap), largest)
            self._log_factors_K = pushed_K - pushed_K.mean()  # only differences count
            because = {"covariance": self._covariance_K / (high_K - low_K), "push": push_K}
        because["factor"] = torch.exp(self._log_factors_K)
        log_weights_K = torch.log(stats.preference_K.double()) + self._log_factors_K
        return Weights(weights_K=torch.softmax(log_weights_K, dim=0).float(), because=because)

    def state_dict(self) -> dict[str, Any]:
        return {"covariance": to_json(self._covariance_K), "log_factors": to_json(self._log_factors_K)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._covariance_K = from_json(state["covariance"])
        self._log_factors_K = from_json(state["log_factors"])


def group_covariance(rewards_PGK: Tensor, credit_PG: Tensor) -> Tensor:
    """Mean over prompts of Cov_g(R_k, credit), population form; NaN for an objective that varies in no group."""
    rewards_PGK = rewards_PGK.double()
    measured_PGK = ~torch.isnan(rewards_PGK)
    credit_PGK = torch.where(measured_PGK, credit_PG.double()[:, :, None], torch.nan)
    rewards_mean_P1K = torch.nanmean(rewards_PGK, dim=1, keepdim=True)
    credit_mean_P1K = torch.nanmean(credit_PGK, dim=1, keepdim=True)
    covariance_PK = torch.nanmean((rewards_PGK - rewards_mean_P1K) * (credit_PGK - credit_mean_P1K), dim=1)
    covariance_K = torch.nanmean(torch.where(measured_PGK.sum(dim=1) >= 2, covariance_PK, torch.nan), dim=0)
    return torch.where(_varies_K(rewards_PGK), covariance_K, torch.nan)


def _varies_K(rewards_PGK: Tensor) -> Tensor:
    return (std(rewards_PGK.double(), 1) > SPREAD).squeeze(1).any(dim=0)


def _target_met(stats: StepStats) -> Tensor:
    """Where this step's mean reaches the objective's target; False without a target or without a measurement."""
    above_K = batch_mean(stats.rewards_PGK) - stats.objectives.targets_K.double()
    return stats.objectives.target_signs_K.double() * above_K >= 0
