"""What measuring the objectives' gradients before an update leaves for the update."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from policies.batching import Rows
from policies.gramian import Gradients


@dataclass(kw_only=True)
class Held:
    """What `gramian` leaves for `learn`: the first minibatch's gradients and figures."""

    order: list[int]
    first: list[int]
    gradients: list[Gradients]  # K objectives, every parameter
    penalty: Gradients | None = None  # of the KL penalty
    scored: list[tuple[Rows, Tensor, Tensor, Tensor | None]] = field(default_factory=list)

    def add(self, *, gradients: list[Gradients] | None = None, penalty: Gradients | None = None) -> None:
        """Sums over microbatches."""
        if gradients is not None:
            pairs = zip(self.gradients, gradients, strict=True)
            self.gradients = [_plus(old, new) for old, new in pairs] if self.gradients else gradients
        if penalty is not None:
            self.penalty = _plus(self.penalty, penalty)


def _plus(total: Gradients | None, part: Gradients) -> Gradients:
    if total is None:
        return part
    torch._foreach_add_(total, part)
    return total
