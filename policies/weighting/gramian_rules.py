"""Weights from the inner products of the objectives' gradients: the methods of multi-task learning, by TorchJD's names.

Each rule answers with a combination alpha of the gradients; GramianRule brings in the preference and puts the answer on
the simplex. What needs no optional dependency of TorchJD's is TorchJD's own; the rest is in gramian_solvers.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torchjd.aggregation import AlignedMTLWeighting, DualProjWeighting, IMTLGWeighting, UPGradWeighting

from policies.types import StepStats, Weights
from policies.weighting.base import OnPreference, Weighting
from policies.weighting.gramian_solvers import DualCone, alpha_fair, conflict_averse, least_norm, surgery
from policies.weighting.simplex import project

NO_GRADIENT = 1e-12  # of the largest squared norm


class GramianRule(Weighting):
    """w_k proportional to preference_k * alpha_k, alpha the rule's answer to the Gramian G, put on the simplex.

    So more preference is never less weight, and equal preferences are the rule as published; what it promises of the
    worst objective holds for these. The rules are invariant, up to a factor, to a scaling of all gradients: G is scaled
    to trace 1, which keeps tiny gradients clear of the solvers' tolerances. A rule's negative coefficients are handled
    by projecting on the simplex after scaling to sum 1.

    Where conflict alone changes the mean gradient, the preference makes the mean a weighted one (`scales_gradients`):
    w proportional to D alpha, alpha the answer to D G D, D = K diag(preference). Without conflict the weights are the
    preference; upgrad's and dualproj's direction is still one that no objective loses by, and under strong conflict
    that may take a little less weight for more preference. The other rules balance the gradients' lengths, and would
    take D out again or turn it round.

    An objective without preference or without gradient takes no part and keeps its preference: a gradient of 0 would
    be every minimum-norm rule's answer and stop learning. Where fewer than two take part, no Gramian was measured yet,
    or the rule has no answer (no direction serves all), the weights are the preference. What a choice would be under
    another preference can be told exactly while the same objectives take part, all with a gradient. A Gramian measured
    with rounding may have slightly negative eigenvalues: the diagonal is raised by as much.
    """

    needs = frozenset({"gramian"})
    on_preference: ClassVar[OnPreference] = "multiplies"
    scales_gradients: ClassVar[bool] = False

    def combine(self, gramian_KK: Tensor, step: int) -> Tensor:
        """alpha for a positive semi-definite Gramian of trace 1; NaN or 0 where the rule has no answer."""
        raise NotImplementedError  # abstract: each subclass has its own

    def update(self, stats: StepStats) -> Weights:
        preference_K = stats.preference_K.double()
        if stats.gramian_KK is None or not bool(torch.isfinite(stats.gramian_KK).all()):
            return Weights(weights_K=preference_K.float())
        return self._weigh(stats.gramian_KK.double().cpu(), preference_K, stats.step)

    def _weigh(self, gramian_KK: Tensor, preference_K: Tensor, step: int) -> Weights:
        norms_K = preference_K.square() * gramian_KK.diagonal()
        taking = norms_K > NO_GRADIENT * norms_K.max()
        if int(taking.sum()) < 2:
            return Weights(weights_K=preference_K.float())
        because = dict(zip(("length", "cosine"), _geometry(gramian_KK, taking), strict=True))
        share = preference_K[taking].sum()
        relative_K = preference_K[taking] / share * len(preference_K[taking])  # 1 for equal preferences
        scales_K = relative_K if self.scales_gradients else torch.ones_like(relative_K)
        scaled_KK = scales_K[:, None] * gramian_KK[taking][:, taking] * scales_K[None, :]
        scaled_KK = 0.5 * (scaled_KK + scaled_KK.T)
        scaled_KK = scaled_KK / scaled_KK.trace()
        least = torch.linalg.eigvalsh(scaled_KK)[0]
        scaled_KK = scaled_KK - torch.eye(len(scaled_KK), dtype=torch.float64) * least.clamp_max(0)
        product_K = scales_K * self.combine(scaled_KK, step)
        total = product_K.sum()
        if not bool(torch.isfinite(product_K).all()) or float(total) <= 1e-9 * float(product_K.abs().sum()):
            return Weights(weights_K=preference_K.float(), because=because)
        because["coefficient"] = torch.full_like(preference_K, torch.nan).masked_scatter(taking, product_K / total)
        shares_K = project(product_K / total, torch.zeros_like(product_K), torch.ones_like(product_K))
        if not self.scales_gradients:
            shares_K = shares_K * relative_K / (shares_K * relative_K).sum()
        weights_K = preference_K.clone()
        weights_K[taking] = share * shares_K
        return Weights(weights_K=weights_K.float(), because=because)


def _geometry(gramian_KK: Tensor, taking: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients' lengths, and each one's least cosine with another that takes part: below 0 they conflict."""
    lengths_K = gramian_KK.diagonal().clamp_min(0).sqrt()
    cosines_KK = gramian_KK / (lengths_K[:, None] * lengths_K[None, :])
    others_KK = (taking[:, None] & taking[None, :]).fill_diagonal_(False)
    cosines_K = torch.where(others_KK, cosines_KK, torch.inf).amin(dim=1)
    return lengths_K, torch.where(taking, cosines_K, torch.nan).clamp(-1, 1)


class Mgda(GramianRule):
    """alpha = argmin over the simplex of |sum_k alpha_k g_k| (arXiv 1810.04650).

    TorchJD's Frank-Wolfe iteration stops up to 0.04 (L1) from it at 3 objectives and 0.33 at 32, where its square is
    12 % too large; this is the exact answer, from the solver that the rules below need as well.
    """

    def combine(self, gramian_KK: Tensor, step: int) -> Tensor:
        del step
        return torch.from_numpy(least_norm(gramian_KK.numpy()))


class UpGrad(GramianRule):
    """Each gradient projected on the cone of directions that no objective loses by; their mean (arXiv 2406.16232)."""

    on_preference = "unknown"
    scales_gradients = True

    def combine(self, gramian_KK: Tensor, step: int) -> Tensor:
        del step
        return UPGradWeighting(projector=DualCone())(gramian_KK)


class DualProj(GramianRule):
    """The mean gradient projected on the cone of directions that no objective loses by (arXiv 1706.08840)."""

    on_preference = "unknown"
    scales_gradients = True

    def combine(self, gramian_KK: Tensor, step: int) -> Tensor:
        del step
        return DualProjWeighting(projector=DualCone())(gramian_KK)


class CaGrad(GramianRule):
    """The direction near the mean gradient that does most for the worst objective (arXiv 2110.14048).

    max over d of min_k g_k.d with |d - g_0| <= c |g_0|: c = 0 is the preference, a large c is MGDA's answer.
    """

    def __init__(self, *, c: float = 0.4) -> None:
        self.c = c

    def combine(self, gramian_KK: Tensor, step: int) -> Tensor:
        del step
        return torch.from_numpy(conflict_averse(gramian_KK.numpy(), c=self.c))


class PcGrad(GramianRule):
    """Each gradient loses its part against those it conflicts with, in random order (arXiv 2001.06782).

    The order is drawn from the step's number, so the same step gives the same weights.
    """

    on_preference = "unknown"
    scales_gradients = True

    def combine(self, gramian_KK: Tensor, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        size = len(gramian_KK)
        orders = np.stack([torch.randperm(size, generator=generator).numpy() for _ in range(size)])
        return torch.from_numpy(surgery(gramian_KK.numpy(), orders))


class NashMtl(GramianRule):
    """The bargaining solution: G alpha = 1 / alpha (arXiv 2202.01017), which is FairGrad's condition at alpha 1."""

    def combine(self, gramian_KK: Tensor, step: int) -> Tensor:
        del step
        return torch.from_numpy(alpha_fair(gramian_KK.numpy(), alpha=1.0))


class FairGrad(GramianRule):
    """Alpha-fair shares of the improvement: G a = a^(-1/alpha) (arXiv 2402.15638).

    alpha 1 is proportional fairness (Nash-MTL), 2 least potential delay, larger approaches the best for the worst.
    """

    def __init__(self, *, alpha: float = 2.0) -> None:
        self.alpha = alpha

    def combine(self, gramian_KK: Tensor, step: int) -> Tensor:
        del step
        return torch.from_numpy(alpha_fair(gramian_KK.numpy(), alpha=self.alpha))


class ImtlG(GramianRule):
    """The combination whose projections on all the unit gradients are equal (ICLR 2021): alpha ~ G^+ sqrt(diag G)."""

    def combine(self, gramian_KK: Tensor, step: int) -> Tensor:
        del step
        return IMTLGWeighting()(gramian_KK)


class AlignedMtl(GramianRule):
    """Gradients made orthogonal and equally long by the nearest such change, then their mean (arXiv 2305.19000)."""

    def combine(self, gramian_KK: Tensor, step: int) -> Tensor:
        del step
        return AlignedMTLWeighting()(gramian_KK)


GRAMIAN_RULES: dict[str, type[GramianRule]] = {
    "mgda": Mgda,
    "upgrad": UpGrad,
    "cagrad": CaGrad,
    "pcgrad": PcGrad,
    "nash_mtl": NashMtl,
    "imtl_g": ImtlG,
    "fairgrad": FairGrad,
    "aligned_mtl": AlignedMtl,
    "dualproj": DualProj,
}
