"""Log-sigmoid centring (arXiv 2402.00742): what is already good gains little, what is bad still costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rewards.transforms.base import Transform, TransformContext, references


@dataclass(frozen=True)
class Lsc(Transform):
    """log sigmoid((r - r_ref(x)) / scale), r_ref a quantile of the initial policy's rewards for the same prompt.

    The paper takes the 85th percentile and no scale, for rewards that are Bradley-Terry logits; other rewards want a
    scale near their spread. NaN for a prompt whose references were all not measured: there is nothing to centre on.
    """

    needs = frozenset({"references"})

    quantile: float = 0.85
    scale: float = 1.0

    def __call__(self, values_PG: Tensor, context: TransformContext) -> Tensor:
        centre_P1 = torch.nanquantile(references(context), self.quantile, dim=1, keepdim=True)
        return torch.nn.functional.logsigmoid((values_PG.double() - centre_P1) / self.scale)
