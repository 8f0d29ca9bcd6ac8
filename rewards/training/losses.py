"""What a reward model is trained to lower. Tensors in, tensors out."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

PairLoss = Literal["plain", "scaled", "margin"]


def squared_errors(outputs_BK: Tensor, targets_BK: Tensor) -> Tensor:
    """Squared errors, [B, K]; 0, without a gradient, where the target is NaN: an attribute that nobody rated."""
    rated_BK = ~torch.isnan(targets_BK)
    return torch.where(rated_BK, outputs_BK - targets_BK.nan_to_num(), 0.0).square()


def preference_losses(chosen_B: Tensor, rejected_B: Tensor, margins_B: Tensor, loss: PairLoss) -> Tensor:
    """Bradley-Terry losses of pairs, [B], d the difference of scores and m the magnitude of the preference.

    plain   -log sigmoid(d)
    scaled  -m log sigmoid(d)      as if the pair stood there m times (arXiv 2410.01257, its equation 3)
    margin  -log sigmoid(d - m)    (arXiv 2307.09288)
    """
    difference_B = chosen_B - rejected_B
    if loss == "margin":
        return -logsigmoid(difference_B - margins_B)
    losses_B = -logsigmoid(difference_B)
    return losses_B * margins_B if loss == "scaled" else losses_B
