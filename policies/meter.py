"""What one update reports, summed over the tokens of its microbatches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from policies.batching import Rows
from policies.losses import at_bound
from policies.ranks import Ranks
from policies.types import LearnStats

SUMS = ("loss", "entropy", "kl", "clipped", "importance", "gap", "bounded", "tokens")


class Meter:
    """Sums over the tokens of a batch, of the updates that are made."""

    def __init__(self, learned_B: Tensor, *, measures_kl: bool = False) -> None:
        """learned_B: whether a rollout has a share in the loss; figures are of all."""
        self.measures_kl = measures_kl
        self.learned_B = learned_B
        self.lost_B = torch.zeros(len(learned_B))
        self.gramian_KK: Tensor | None = None
        self.influence_K: Tensor | None = None
        self.lr = 0.0
        self.sums = dict.fromkeys(SUMS, 0.0)
        self.slots = self.real = self.not_finite = self.masked = 0
        self.grad_norms: list[float] = []
        self._before = dict(self.sums)  # the update that is under way
        self._added: list[int] = []  # since then

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
        """`clip`: (what clips leave of the ratio_bT, where they act)."""
        if rows.idle:
            return
        mask_bT, (kept_bT, clipped_bT) = rows.mask_bT, clip
        old_bT = logprobs_bT if old_bT is None else old_bT
        surviving_b = (kept_bT * mask_bT).sum(dim=1) / mask_bT.sum(dim=1).clamp_min(1)
        self.lost_B[rows.index] = 1 - surviving_b.cpu()
        difference_bT = old_bT - rows.sampler_logprobs_bT
        self.sums["loss"] += float(loss.detach())
        if kl_bT is not None:
            self.sums["kl"] += float((kl_bT.detach() * mask_bT).sum())
            self.sums["bounded"] += float((at_bound(kl_bT) & mask_bT).sum())
        self.sums["entropy"] += float((entropy_bT * mask_bT).sum())
        self.sums["clipped"] += float((clipped_bT & mask_bT).sum())
        self.sums["importance"] += float((difference_bT.exp() * mask_bT).sum())
        self.sums["gap"] += float((difference_bT.abs() * mask_bT).sum())
        self.sums["tokens"] += int(mask_bT.sum())
        self.slots += rows.input_ids_rt.numel()
        self.real += rows.real
        self._added += rows.index

    def made(self, grad_norm: float) -> None:
        """The update of what was added last."""
        self.grad_norms.append(grad_norm)
        self._before, self._added = dict(self.sums), []

    def nothing_learned(self) -> None:
        """As no rollout of what was added last has a share in the loss: no update, and the figures count."""
        self.masked += 1
        self.sums["loss"] = self._before["loss"]  # no part of it, and 0 times infinity would be no number
        self._before, self._added = dict(self.sums), []

    def take_back(self) -> None:
        """What was added last, as its update is not made: its figures are no numbers."""
        self.not_finite += 1
        self.lost_B[self._added] = 1
        self.sums, self._added = dict(self._before), []

    def result(self, ranks: Ranks) -> LearnStats:
        """Of all ranks, on each."""
        counts = (self.slots, self.real)
        totals = ranks.sum(torch.tensor([*self.sums.values(), *counts], dtype=torch.float64)).tolist()
        loss, entropy, kl, clipped, importance, gap, bounded, tokens, slots, real = totals
        updates = len(self.grad_norms)
        tokens = max(tokens, 1) if updates or self.masked else math.nan
        divisor = updates or (1 if self.masked else math.nan)
        return LearnStats(
            loss=loss / divisor,
            grad_norm=sum(self.grad_norms) / divisor,
            lr=self.lr,
            entropy=entropy / tokens,
            kl=kl / tokens if self.measures_kl else None,
            kl_bounded=int(bounded) if self.measures_kl else None,
            clip_share=clipped / tokens,
            importance_mean=importance / tokens,
            sampler_gap=gap / tokens,
            padding_share=1 - real / max(slots, 1),
            updates=updates,
            updates_not_finite=self.not_finite,
            updates_masked=self.masked,
            surviving_B=tuple(torch.where(self.learned_B, 1 - ranks.sum(self.lost_B), 0.0).tolist()),
            gramian_KK=None if self.gramian_KK is None else tuple(tuple(row) for row in self.gramian_KK.tolist()),
            influence_K=None if self.influence_K is None else tuple(self.influence_K.tolist()),
        )
