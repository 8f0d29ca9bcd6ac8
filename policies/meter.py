"""What one update reports, summed over the tokens of its microbatches."""

from __future__ import annotations

import torch
from torch import Tensor

from policies.batching import Rows
from policies.losses import at_bound
from policies.ranks import Ranks
from policies.types import LearnStats


class Meter:
    """Sums over the tokens of a batch."""

    def __init__(self, rollouts: int, *, measures_kl: bool = False) -> None:
        self.measures_kl = measures_kl
        self.lost_B = torch.zeros(rollouts)
        self.gramian_KK: Tensor | None = None
        self.influence_K: Tensor | None = None
        self.lr = self.loss = self.kl = self.entropy = self.clipped = self.importance = self.gap = self.bounded = 0.0
        self.tokens = self.slots = self.real = 0
        self.grad_norms: list[float] = []

    @torch.no_grad()
    def add(
        self,
        rows: Rows,
        loss: Tensor,
        logprobs_bT: Tensor,
        old_bT: Tensor | None,
        clip: tuple[Tensor, Tensor],
        entropy_bT: Tensor,
        kl_bT: Tensor | None,
    ) -> None:
        """`clip`: (ratio_bT, where it was clipped)."""
        if rows.idle:
            return
        mask_bT, (ratio_bT, clipped_bT) = rows.mask_bT, clip
        old_bT = logprobs_bT if old_bT is None else old_bT
        surviving_b = (ratio_bT * ~clipped_bT * mask_bT).sum(dim=1) / mask_bT.sum(dim=1).clamp_min(1)
        self.lost_B[rows.index] = 1 - surviving_b.cpu()
        difference_bT = old_bT - rows.sampler_logprobs_bT
        self.loss += float(loss.detach())
        if kl_bT is not None:
            self.kl += float((kl_bT.detach() * mask_bT).sum())
            self.bounded += float((at_bound(kl_bT) & mask_bT).sum())
        self.entropy += float((entropy_bT * mask_bT).sum())
        self.clipped += float((clipped_bT & mask_bT).sum())
        self.importance += float((difference_bT.exp() * mask_bT).sum())
        self.gap += float((difference_bT.abs() * mask_bT).sum())
        self.tokens += int(mask_bT.sum())
        self.slots += rows.input_ids_rt.numel()
        self.real += rows.real

    def result(self, ranks: Ranks) -> LearnStats:
        """Of all ranks, on each."""
        sums = (self.loss, self.entropy, self.kl, self.clipped, self.importance, self.gap, self.bounded)
        counts = (self.tokens, self.slots, self.real)
        totals = ranks.sum(torch.tensor([*sums, *counts], dtype=torch.float64)).tolist()
        loss, entropy, kl, clipped, importance, gap, bounded, tokens, slots, real = totals
        tokens, updates = max(tokens, 1), len(self.grad_norms)
        return LearnStats(
            loss=loss / updates,
            grad_norm=sum(self.grad_norms) / updates,
            lr=self.lr,
            entropy=entropy / tokens,
            kl=kl / tokens if self.measures_kl else None,
            kl_bounded=int(bounded) if self.measures_kl else None,
            clip_share=clipped / tokens,
            importance_mean=importance / tokens,
            sampler_gap=gap / tokens,
            padding_share=1 - real / max(slots, 1),
            updates=updates,
            surviving_B=tuple((1 - ranks.sum(self.lost_B)).tolist()),
            gramian_KK=None if self.gramian_KK is None else tuple(tuple(row) for row in self.gramian_KK.tolist()),
            influence_K=None if self.influence_K is None else tuple(self.influence_K.tolist()),
        )
