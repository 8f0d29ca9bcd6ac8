"""Means and spreads of rewards where some were not measured (NaN): those count for nothing and stay NaN."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev

import torch
from torch import Tensor

WHITEN_EPS = 1e-8

Dims = int | tuple[int, ...]


def mean(values: Tensor, dim: Dims) -> Tensor:
    """Mean of what was measured, dimensions kept; 0 where nothing was."""
    measured = ~torch.isnan(values)
    total = torch.where(measured, values, 0.0).sum(dim=dim, keepdim=True)
    return total / measured.sum(dim=dim, keepdim=True).clamp_min(1)


def std(values: Tensor, dim: Dims) -> Tensor:
    """Population standard deviation of what was measured, dimensions kept; 0 where nothing was."""
    return mean((values - mean(values, dim)).square(), dim).sqrt()


def centre(values: Tensor, dim: Dims) -> Tensor:
    """Values minus their mean."""
    return values - mean(values, dim)


def standardise(values: Tensor, dim: Dims, *, std_floor: float) -> Tensor:
    """(v - mean) / std; exactly 0 where the spread does not exceed the floor."""
    spread = std(values, dim)
    scaled = centre(values, dim) / spread.clamp_min(torch.finfo(spread.dtype).tiny)
    return torch.where((spread > std_floor) | torch.isnan(values), scaled, 0.0)


def standard_error(groups: Iterable[Sequence[float | None]]) -> float | None:
    """Of the mean over groups (a prompt's completions) that were drawn; from the groups' own means.

    More completions narrow these, and are no further prompts. None where fewer than two groups were measured.
    """
    known = ([value for value in group if value is not None] for group in groups)
    means = [fmean(group) for group in known if group]
    return stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None


def surely(sure: float, looks: int, *, upto: int) -> float:
    """Standard errors by which a fall below the best of `looks` readings is beyond luck: `sure` for `upto` of them.

    Of many readings the best was lucky, and one of the others is as unlucky; either has a chance of exp(-z^2 / 4) at
    each look, half of z its own. It stays as rare over all of them where z^2 = sure^2 + 4 log(looks / upto).
    """
    return math.sqrt(sure**2 + 4 * math.log(max(1.0, looks / upto)))


def whiten(values: Tensor) -> Tensor:
    """(v - mean) / (std + 1e-8) over all that was measured (arXiv 2501.03262); exactly 0 where nothing spreads."""
    everywhere = tuple(range(values.dim()))
    spread = std(values, everywhere)
    whitened = centre(values, everywhere) / (spread + WHITEN_EPS)
    return torch.where((spread > WHITEN_EPS) | torch.isnan(values), whitened, 0.0)
