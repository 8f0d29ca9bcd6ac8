"""Group-dynamic gdpo (arXiv 2606.16771): rollouts on which the objectives disagree are left out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from policies.estimators.base import Estimator, combine, finish
from policies.statistics import standardise, whiten

ZERO = 1e-8  # an advantage this small has no sign


@dataclass(frozen=True)
class Gd2po(Estimator):
    """A = whiten(share_p sum_k w_k Z_k) over the rollouts without conflict; 0 for the others.

    Z_k is standardised over the whole group, share_p is the kept share of the prompt's rollouts. A rollout has a
    conflict where Z_k of both signs occur (among objectives with weight > 0) and |sum_k w_k Z_k| / sum_k w_k |Z_k| is
    at most `conflict_below`: 1 is the published sign form, 0.2 the published soft form, for three and more objectives,
    where few rollouts agree in every sign. Where all rollouts conflict, or only one does not, every advantage is 0.

    The kept rollouts need not have mean 0, so the whitening moves all of them, also those of groups without spread.
    """

    conflict_below: float = 1.0
    std_floor: float = 1e-6

    def __call__(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        scores_PGK = standardise(rewards_PGK.double(), 1, std_floor=self.std_floor)
        sums_PG = combine(scores_PGK, weights_K)
        kept_PG = torch.where(self._conflicts(scores_PGK, weights_K), torch.nan, sums_PG)
        count_P1, left_P1 = ((~torch.isnan(values_PG)).sum(dim=1, keepdim=True) for values_PG in (sums_PG, kept_PG))
        return finish(whiten(left_P1 / count_P1.clamp_min(1) * kept_PG))

    def _conflicts(self, scores_PGK: Tensor, weights_K: Tensor) -> Tensor:
        """Where the objectives disagree, _PG."""
        used_PGK = torch.nan_to_num(scores_PGK[..., weights_K > 0], nan=0.0)
        parts_PGK = used_PGK * weights_K[weights_K > 0].double()
        both_signs_PG = (used_PGK > ZERO).any(dim=2) & (used_PGK < -ZERO).any(dim=2)
        agreement_PG = parts_PGK.sum(dim=2).abs() / parts_PGK.abs().sum(dim=2).clamp_min(ZERO**2)
        return both_signs_PG & (agreement_PG <= self.conflict_below)
