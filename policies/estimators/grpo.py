"""Group-relative policy optimisation (arXiv 2402.03300): combine the rewards, then normalise in the group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from policies.estimators.base import Estimator, combine, finish
from policies.statistics import centre, standardise, std


@dataclass(frozen=True)
class Grpo(Estimator):
    """A = Z(sum_k w_k R_k), Z over the G rollouts of a prompt.

    The floor on the group's spread matters with nearly equal weights: rewards that tie up to 0.001 would otherwise
    become advantages near +-1.
    """

    std_floor: float = 1e-6

    def __call__(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        return finish(standardise(combine(rewards_PGK, weights_K), 1, std_floor=self.std_floor))

    def summands(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        """(R_k - mu_k) / the spread of the sum."""
        spread_P11 = std(combine(rewards_PGK, weights_K), 1)[:, :, None]
        scaled_PGK = centre(rewards_PGK.double(), 1) / spread_P11.clamp_min(torch.finfo(torch.float64).tiny)
        return torch.where((spread_P11 > self.std_floor) | torch.isnan(scaled_PGK), scaled_PGK, 0.0)
