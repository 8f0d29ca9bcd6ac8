"""What one update reports, summed over the tokens of its microbatches."""

from __future__ import annotations

import torch
from torch import Tensor

from policies.batching import Rows
from policies.types import LearnStats


class Meter:
    """Sums over the tokens of a batch."""

    def __init__(self, rollouts: int) -> None:
        self.surviving_B = [1.0] * rollouts
        self.gramian_KK: Tensor | None = None
        self.influence_K: Tensor | None = None
        self.lr = self.loss = self.kl = self.entropy = self.clipped = self.importance = self.gap = 0.0
        self.tokens = self.slots = self.real = 0
        self.grad_norms: list[float] = []

    @torch.no_grad()
    def add(
        self,
        rows: Rows,
        loss: Tensor,
        logprobs_bT: Tensor,
        old_bT: Tensor | None,
        clipped_bT: Tensor,
        entropy_bT: Tensor,
        kl_bT: Tensor | None,
    ) -> None:
        mask_bT = rows.mask_bT
        old_bT = logprobs_bT if old_bT is None else old_bT
        ratio_bT = torch.exp(logprobs_bT - old_bT)
        surviving_b = (ratio_bT * ~clipped_bT * mask_bT).sum(dim=1) / mask_bT.sum(dim=1).clamp_min(1)
        for i, share in zip(rows.index, surviving_b.tolist(), strict=True):
            self.surviving_B[i] = share
        difference_bT = old_bT - rows.sampler_logprobs_bT
        self.loss += float(loss.detach())
        self.kl += 0.0 if kl_bT is None else float((kl_bT.detach() * mask_bT).sum())
        self.entropy += float((entropy_bT * mask_bT).sum())
        self.clipped += float((clipped_bT & mask_bT).sum())
        self.importance += float((difference_bT.exp() * mask_bT).sum())
        self.gap += float((difference_bT.abs() * mask_bT).sum())
        self.tokens += int(mask_bT.sum())
        self.slots += rows.input_ids_bt.numel()
        self.real += int(rows.attention_bt.sum())

    def result(self) -> LearnStats:
        tokens = max(self.tokens, 1)
        return LearnStats(
            loss=self.loss / len(self.grad_norms),
            grad_norm=sum(self.grad_norms) / len(self.grad_norms),
            lr=self.lr,
            entropy=self.entropy / tokens,
            kl=self.kl / tokens,
            clip_share=self.clipped / tokens,
            importance_mean=self.importance / tokens,
            sampler_gap=self.gap / tokens,
            padding_share=1 - self.real / max(self.slots, 1),
            updates=len(self.grad_norms),
            surviving_B=tuple(self.surviving_B),
            gramian_KK=None if self.gramian_KK is None else tuple(tuple(row) for row in self.gramian_KK.tolist()),
            influence_K=None if self.influence_K is None else tuple(self.influence_K.tolist()),
        )
