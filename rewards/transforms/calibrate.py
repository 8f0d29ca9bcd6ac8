"""Calibrate and transform (InfAlign-CTRL, arXiv 2412.19792): the reward that best-of-N sampling wants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rewards.transforms.base import Transform, TransformContext, references


@dataclass(frozen=True)
class Calibrate(Transform):
    """f(q), q in [0, 1] the reward's quantile among the initial policy's rewards for the same prompt, ties half.

    identity     q: the win rate over the initial policy
    exponential  (e^(t q) - 1) / (e^t - 1): e^(t q) on an affine scale that stays in [0, 1]; t = 10 for best-of-N,
                 negative t for the worst of N, which is what an attacker picks
    log          log max(q, 1 / 2N): the log-quantile of best-of-N distillation (arXiv 2407.14622)

    NaN for a prompt whose references were all not measured: there is nothing to compare with.
    """

    needs = frozenset({"references"})

    transform: Literal["identity", "exponential", "log"] = "exponential"
    t: float = 10.0

    def __call__(self, values_PG: Tensor, context: TransformContext) -> Tensor:
        references_PN = references(context)
        counts_P1 = (~torch.isnan(references_PN)).sum(dim=1, keepdim=True).double()
        quantiles_PG = win_rate(values_PG.double(), references_PN, counts_P1)
        if self.transform == "log":
            return torch.log(quantiles_PG.maximum(0.5 / counts_P1))
        if self.transform == "exponential" and self.t != 0:
            return torch.expm1(self.t * quantiles_PG) / math.expm1(self.t)
        return quantiles_PG


def win_rate(values_PG: Tensor, references_PN: Tensor, counts_P1: Tensor) -> Tensor:
    """Share of the measured references that a value beats, a tie counting half; NaN where either side is missing."""
    ranked_PN = references_PN.nan_to_num(nan=math.inf).sort(dim=1).values  # a missing one is never beaten
    below_PG = torch.searchsorted(ranked_PN, values_PG.contiguous(), right=False)
    not_above_PG = torch.searchsorted(ranked_PN, values_PG.contiguous(), right=True)
    rates_PG = (below_PG + not_above_PG) / 2 / counts_P1
    return torch.where(torch.isnan(values_PG) | (counts_P1 == 0), torch.nan, rates_PG)
