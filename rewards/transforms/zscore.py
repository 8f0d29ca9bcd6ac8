"""Running standardisation: an objective in units of its own spread over the whole job so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rewards.transforms.base import Transform, TransformContext


class ZScore(Transform):
    """(r - mean) / (std + eps), mean and population std over all batches so far, this one included.

    Batches are merged by Welford's update in Chan's form for sets: with delta the difference of the means,
    M2 = M2_a + M2_b + delta^2 n_a n_b / (n_a + n_b). The first batch is standardised by itself; a reward that has
    never spread gives 0. Unlike standardisation in the group it keeps how far apart two prompts are.

    What the policy has gained since the first batches is in the spread, too, so that over a long job an objective that
    rose counts for ever less beside one that did not. With `decay` d, what was measured in each earlier batch counts d
    times as much as in the next.
    """

    def __init__(self, *, eps: float = 1e-6, decay: float = 1.0) -> None:
        self.eps = eps
        self.decay = decay
        self._count = 0.0
        self._mean = 0.0
        self._m2 = 0.0  # sum of squared distances from the mean

    def __call__(self, values_PG: Tensor, context: TransformContext) -> Tensor:
        del context
        values_PG = values_PG.double()
        self._merge(values_PG[~torch.isnan(values_PG)])
        std = math.sqrt(self._m2 / self._count) if self._count else 0.0
        return (values_PG - self._mean) / (std + self.eps)

    def _merge(self, measured: Tensor) -> None:
        added = measured.numel()
        if not added:
            return
        self._count *= self.decay
        self._m2 *= self.decay
        mean = float(measured.mean())
        delta, total = mean - self._mean, self._count + added
        self._m2 += float((measured - mean).square().sum()) + delta**2 * self._count * added / total
        self._mean += delta * added / total
        self._count = total

    def state_dict(self) -> dict[str, Any]:
        return {"count": self._count, "mean": self._mean, "m2": self._m2}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._count, self._mean, self._m2 = state["count"], state["mean"], state["m2"]
