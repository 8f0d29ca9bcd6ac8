"""The bounded simplex: where weights live once a person has set floors and ceilings."""

from __future__ import annotations

import torch
from torch import Tensor


def project(weights_K: Tensor, floors_K: Tensor, ceilings_K: Tensor) -> Tensor:
    """Nearest point, in Euclidean distance, with sum 1 and floors <= w <= ceilings.

    w = clip(v - t, floors, ceilings) for the one t that makes the sum 1. The sum falls from sum(ceilings) to
    sum(floors) as t grows, piecewise linear with breaks where a weight meets a bound: sort the breaks, find the piece.
    Raises ValueError where the bounds leave no such point.
    """
    floors_K, ceilings_K, weights_K = floors_K.double(), ceilings_K.double(), weights_K.double()
    if bool((floors_K > ceilings_K).any()) or float(floors_K.sum()) > 1 + 1e-9 or float(ceilings_K.sum()) < 1 - 1e-9:
        raise ValueError(
            f"bounds leave no weights that sum to 1: floors {floors_K.tolist()}, ceilings {ceilings_K.tolist()}"
        )
    if (
        bool((weights_K >= floors_K).all() and (weights_K <= ceilings_K).all())
        and abs(float(weights_K.sum()) - 1) < 1e-12
    ):
        return weights_K
    breaks = torch.cat([weights_K - ceilings_K, weights_K - floors_K]).sort().values
    sums = torch.stack([torch.clamp(weights_K - t, floors_K, ceilings_K).sum() for t in breaks])
    piece = max(0, int((sums >= 1).sum()) - 1)
    t = breaks[piece]
    if piece + 1 < len(breaks) and sums[piece] > max(1.0, float(sums[piece + 1])):
        share = (sums[piece] - 1) / (sums[piece] - sums[piece + 1])
        t = t + share * (breaks[piece + 1] - t)
    return torch.clamp(weights_K - t, floors_K, ceilings_K)
