"""Cosine length reward (arXiv 2502.03373): a right answer should be short, a wrong one may think longer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rewards.transforms.base import Transform, TransformContext


@dataclass(frozen=True)
class Cosine(Transform):
    """Half a cosine from the first to the second value as tokens go from 0 to max_tokens; `exceeded` from there on.

        end + (start - end) (1 + cos(pi tokens / max_tokens)) / 2

    with (start, end) = `correct` where the raw reward is at least `correct_at`, `wrong` below it.
    """

    max_tokens: int
    correct_at: float = 0.5
    correct: tuple[float, float] = (2.0, 1.0)
    wrong: tuple[float, float] = (-10.0, 0.0)
    exceeded: float = -10.0

    def __call__(self, values_PG: Tensor, context: TransformContext) -> Tensor:
        values_PG, tokens_PG = values_PG.double(), context.completion_tokens_PG.double()
        start_PG, end_PG = (
            torch.where(values_PG >= self.correct_at, correct, wrong).double()
            for correct, wrong in zip(self.correct, self.wrong, strict=True)
        )
        fall_PG = (1 + torch.cos(math.pi * tokens_PG / self.max_tokens)) / 2
        rewards_PG = torch.where(tokens_PG < self.max_tokens, end_PG + (start_PG - end_PG) * fall_PG, self.exceeded)
        return torch.where(torch.isnan(values_PG), torch.nan, rewards_PG)
