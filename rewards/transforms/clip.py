"""Clipping: no more to gain above one end, no more to lose below the other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rewards.transforms.base import Transform, TransformContext


@dataclass(frozen=True)
class Clip(Transform):
    """min(max(r, lo), hi); an end that is None is open."""

    lo: float | None = None
    hi: float | None = None

    def __call__(self, values_PG: Tensor, context: TransformContext) -> Tensor:
        del context
        values_PG = values_PG.double()
        if self.lo is not None:
            values_PG = values_PG.clamp_min(self.lo)
        return values_PG if self.hi is None else values_PG.clamp_max(self.hi)
