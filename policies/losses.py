"""The policy loss, token by token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["token_mean", "sequence_mean", "constant"]
RatioLevel = Literal["token", "sequence"]
Form = Literal["ppo", "cispo"]

MAX_LOG_RATIO = 20.0  # e^20 is 5e8: more says nothing, and e^89 is infinite in float32


@dataclass(frozen=True, kw_only=True)
class ClippedSurrogate:
    """Constants of the clipped surrogate (arXiv 1707.06347, asymmetric as in 2503.14476)."""

    clip_low: float = 0.2
    clip_high: float = 0.28
    importance_cap: float = 2.0
    dual_clip: float | None = None
    ratio: RatioLevel = "token"
    form: Form = "ppo"

    def token_losses(
        self,
        logprobs_BT: Tensor,
        old_logprobs_BT: Tensor,
        sampler_logprobs_BT: Tensor,
        advantages_B: Tensor,
        mask_BT: Tensor | None = None,
    ) -> Tensor:
        """loss_BT = -m min(rho A, clip(rho, 1 - low, 1 + high) A), and with a dual clip c at most -m c A where A < 0.

        rho = pi / pi_old, both the learner's (`ratios`); the dual clip is that of arXiv 1912.09729.
        m = min(pi_old / pi_sampler, cap), detached, of each token, corrects for the engine's rounding and for older
        weights (truncated importance sampling, arXiv 2505.24034). The gradient flows through pi only.
        Of the form "cispo" (arXiv 2506.13585) loss_BT = -m sg(clip(rho)) A log pi up to a constant, by which its value
        is that of the weights alone, as near the old policy that of the other form.
        """
        ratio_BT = self.ratios(logprobs_BT, old_logprobs_BT, mask_BT)
        clipped_BT = ratio_BT.clamp(1 - self.clip_low, 1 + self.clip_high)
        importance_BT = self.importance(old_logprobs_BT, sampler_logprobs_BT).detach()
        advantages_B1 = advantages_B.unsqueeze(1)
        if self.form == "cispo":
            moved_BT = logprobs_BT - logprobs_BT.detach()  # 0, with the gradient of log pi
            return -importance_BT * clipped_BT.detach() * advantages_B1 * (1 + moved_BT)
        gains_BT = torch.minimum(ratio_BT * advantages_B1, clipped_BT * advantages_B1)
        if self.dual_clip is not None:
            least_BT = torch.maximum(gains_BT, self.dual_clip * advantages_B1)
            gains_BT = torch.where(advantages_B1 < 0, least_BT, gains_BT)
        return -importance_BT * gains_BT

    def ratios(self, logprobs_BT: Tensor, old_logprobs_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """rho_BT of each token; of "sequence", their geometric mean over the completion (GSPO, arXiv 2507.18071).

        mask_BT: where there are tokens; everywhere without it.
        """
        log_ratio_BT = logprobs_BT - old_logprobs_BT
        if self.ratio == "sequence":
            real_BT = torch.ones_like(log_ratio_BT) if mask_BT is None else mask_BT.to(log_ratio_BT.dtype)
            total_B1 = (log_ratio_BT * real_BT).sum(dim=1, keepdim=True)
            log_ratio_BT = (total_B1 / real_BT.sum(dim=1, keepdim=True).clamp_min(1)).expand_as(log_ratio_BT)
        if self.dual_clip is not None:  # both clips have no gradient there, and an infinite ratio would make NaN of it
            log_ratio_BT = log_ratio_BT.clamp_max(MAX_LOG_RATIO)
        return torch.exp(log_ratio_BT)

    def importance(self, old_logprobs_BT: Tensor, sampler_logprobs_BT: Tensor) -> Tensor:
        """m = min(pi_old / pi_sampler, cap)."""
        return torch.exp(old_logprobs_BT - sampler_logprobs_BT).clamp_max(self.importance_cap)

    def clipped(self, ratio_BT: Tensor, advantages_B: Tensor) -> Tensor:
        """Where a clip removes the gradient of these ratios, or of the form "cispo" bounds it, as booleans_BT."""
        advantages_B1 = advantages_B.unsqueeze(1)  # 0 has no gradient to remove
        if self.form == "cispo":
            return ((ratio_BT > 1 + self.clip_high) | (ratio_BT < 1 - self.clip_low)) & (advantages_B1 != 0)
        above_BT = (advantages_B1 > 0) & (ratio_BT > 1 + self.clip_high)
        below_BT = (advantages_B1 < 0) & (ratio_BT < 1 - self.clip_low)
        if self.dual_clip is None:
            return above_BT | below_BT
        return above_BT | below_BT | ((advantages_B1 < 0) & (ratio_BT > self.dual_clip))

    def kept(self, ratio_BT: Tensor, advantages_B: Tensor) -> Tensor:
        """Factor on m A grad log pi that the clips leave of these ratios."""
        if self.form == "cispo":
            return ratio_BT.clamp(1 - self.clip_low, 1 + self.clip_high)
        return ratio_BT * ~self.clipped(ratio_BT, advantages_B)


def k3(logprobs_BT: Tensor, reference_logprobs_BT: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(pi || reference) per token: exp(d) - d - 1 with d = log ref - log pi, >= 0.

    d counts as MAX_LOG_RATIO at most, as in verl: a token that the policy has all but given up would be infinite.
    """
    difference_BT = (reference_logprobs_BT - logprobs_BT).clamp_max(MAX_LOG_RATIO)
    return torch.exp(difference_BT) - difference_BT - 1


def at_bound(k3_BT: Tensor) -> Tensor:
    """Where `k3` is as large as it gets, as booleans_BT: such a token has no gradient."""
    return k3_BT >= (1 - 1e-6) * (math.exp(MAX_LOG_RATIO) - MAX_LOG_RATIO - 1)


def token_weights(mask_BT: Tensor, aggregation: Aggregation, *, max_tokens: int) -> Tensor:
    """weights_BT such that sum(weights * token losses) is the aggregated loss of the minibatch.

    token_mean: every token alike (1 / all tokens). sequence_mean: every completion alike (1 / (B * its length)).
    constant: 1 / (B * max_tokens), which does not favour short wrong answers (arXiv 2503.20783).
    An empty completion weighs 0.
    """
    mask_BT = mask_BT.float()
    if aggregation == "token_mean":
        return mask_BT / mask_BT.sum().clamp_min(1)
    if aggregation == "sequence_mean":
        return mask_BT / mask_BT.sum(dim=1, keepdim=True).clamp_min(1) / mask_BT.shape[0]
    return mask_BT / (mask_BT.shape[0] * max_tokens)
