"""The length reward published with dynamic reward weighting (arXiv 2509.11452): shorter than the mean so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rewards.transforms.base import Transform, TransformContext


class MeanLength(Transform):
    """1 where a completion has fewer tokens than the mean over all so far, this batch included, else 0.

    In place of the reward, or added to it with `add`. The published mean weighs all completions of the job alike; with
    `decay` d, those of each earlier batch count d times as much as those of the next, which forgets how long the
    first policy was.
    """

    def __init__(self, *, decay: float = 1.0, add: bool = False) -> None:
        self.decay = decay
        self.add = add
        self._weight = 0.0
        self._tokens = 0.0

    def __call__(self, values_PG: Tensor, context: TransformContext) -> Tensor:
        values_PG, tokens_PG = values_PG.double(), context.completion_tokens_PG.double()
        measured = tokens_PG[~torch.isnan(values_PG)]
        self._weight = self.decay * self._weight + measured.numel()
        self._tokens = self.decay * self._tokens + float(measured.sum())
        mean = self._tokens / self._weight if self._weight else 0.0
        shorter_PG = (tokens_PG < mean).double()
        kept_PG = values_PG if self.add else 0.0 * values_PG  # NaN stays
        return kept_PG + shorter_PG

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self._weight, "tokens": self._tokens}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._weight, self._tokens = state["weight"], state["tokens"]
