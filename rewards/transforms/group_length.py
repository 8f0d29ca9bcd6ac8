"""Length reward relative to the group (Kimi k1.5, arXiv 2501.12599): the shortest of a prompt's completions gain."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rewards.transforms.base import Transform, TransformContext


@dataclass(frozen=True)
class GroupLength(Transform):
    """l = 1/2 - (tokens - shortest) / (longest - shortest), of the prompt's measured rollouts; 0 where all are equal.

    In place of the reward, or added to it with `add`. Where `correct_at` is given, as published: a rollout whose raw
    reward is below it gets min(0, l), so that a wrong answer gains nothing by being short.
    """

    correct_at: float | None = 0.5
    add: bool = False

    def __call__(self, values_PG: Tensor, context: TransformContext) -> Tensor:
        values_PG, tokens_PG = values_PG.double(), context.completion_tokens_PG.double()
        missing_PG = torch.isnan(values_PG)
        shortest_P1 = tokens_PG.masked_fill(missing_PG, math.inf).amin(dim=1, keepdim=True)
        longest_P1 = tokens_PG.masked_fill(missing_PG, -math.inf).amax(dim=1, keepdim=True)
        spread_P1 = longest_P1 - shortest_P1
        lengths_PG = 0.5 - (tokens_PG - shortest_P1) / spread_P1
        lengths_PG = torch.where(spread_P1 > 0, lengths_PG, 0.0)
        if self.correct_at is not None:
            lengths_PG = torch.where(values_PG < self.correct_at, lengths_PG.clamp_max(0.0), lengths_PG)
        return torch.where(missing_PG, torch.nan, lengths_PG + values_PG if self.add else lengths_PG)
