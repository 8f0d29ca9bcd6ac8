"""Rank correlation, and the share of verbosity that frees a head from it. numpy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
_HALVINGS = 60


def pearson(left_N: Vector, right_N: Vector) -> float | None:
    """None where one of them is constant, or there are fewer than two."""
    if len(left_N) < 2 or np.ptp(left_N) == 0 or np.ptp(right_N) == 0:
        return None
    return float(np.corrcoef(left_N, right_N)[0, 1])


def spearman(left_N: Vector, right_N: Vector) -> float | None:
    """Correlation of ranks, equal values sharing the mean of theirs; None where one is constant."""
    return pearson(ranks(left_N), ranks(right_N))


def ranks(values_N: Vector) -> Vector:
    """0 for the least; equal values share the mean of their ranks."""
    _, place_N, count_U = np.unique(values_N, return_inverse=True, return_counts=True)
    last_U = np.cumsum(count_U) - 1
    return np.asarray(last_U - (count_U - 1) / 2, dtype=np.float64)[place_N]


def verbosity_share(head_N: Vector, verbosity_N: Vector) -> float:
    """lambda such that the Spearman correlation of head - lambda * verbosity with verbosity is 0 (arXiv 2406.12845).

    It falls as lambda grows, from 1 to -1, in steps as ranks do: lambda is where it changes its sign. 0 where either is
    constant, 1 where the head is the verbosity itself.
    """
    if np.array_equal(head_N, verbosity_N):
        return 1.0
    if (start := spearman(head_N, verbosity_N)) is None or start == 0:
        return 0.0
    sign, outer = np.sign(start), float(np.std(head_N) / np.std(verbosity_N))
    while sign * (spearman(head_N - sign * outer * verbosity_N, verbosity_N) or 0.0) > 0 and outer < 1e12:
        outer *= 2.0
    inner = 0.0
    for _ in range(_HALVINGS):
        middle = (inner + outer) / 2
        if sign * (spearman(head_N - sign * middle * verbosity_N, verbosity_N) or 0.0) > 0:
            inner = middle
        else:
            outer = middle
    return float(sign * outer)
