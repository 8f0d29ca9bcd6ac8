"""Soft overlong punishment (DAPO, arXiv 2503.14476): completions near the limit cost, gradually."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rewards.transforms.base import Transform, TransformContext


@dataclass(frozen=True)
class SoftOverlong(Transform):
    """penalty clip((max_tokens - buffer_tokens - tokens) / buffer_tokens, -1, 0), in the reward's place or added to it.

    0 up to max_tokens - buffer_tokens, then linear to -penalty at max_tokens. In place of the reward the punishment is
    an objective with a weight of its own; the paper adds it to a correctness of -1 or 1.
    """

    max_tokens: int
    buffer_tokens: int
    add: bool = False
    penalty: float = 1.0

    def __call__(self, values_PG: Tensor, context: TransformContext) -> Tensor:
        values_PG, tokens_PG = values_PG.double(), context.completion_tokens_PG.double()
        punished_PG = ((self.max_tokens - self.buffer_tokens - tokens_PG) / self.buffer_tokens).clamp(-1.0, 0.0)
        kept_PG = values_PG if self.add else 0.0 * values_PG  # NaN stays
        return kept_PG + self.penalty * punished_PG
