"""The small convex problems behind the Gramian rules, in numpy: milliseconds at 32 objectives.

TorchJD's own solvers for these (quadprog, SciPy, CVXPY with Clarabel or ECOS) are optional dependencies that this
project does without; the tests compare with their answers. Every Gramian here is symmetric, positive semi-definite up
to rounding, and of trace 1.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchjd.linalg import DualConeProjector

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

RIDGE = 1e-9  # makes the answer unique: of several, the one with the smallest norm
PROJECTOR_RIDGE = 1e-4  # TorchJD's own
PATIENCE = 3
PIVOTS = 3000  # rarely more than 20
NEWTON_STEPS = 100
BACKTRACKS = 30
STILL = 1e-4


def nonnegative_quadratic(matrix_KK: Array, linear_RK: Array, free_RK: Mask | None = None) -> Array:
    """argmin over x >= 0 of x'Mx / 2 - c'x for every row c; M positive definite. NaN in a row that does not converge.

    Block principal pivoting (Portugal, Judice and Vicente 1994), all rows at once: solve on the free coordinates, then
    exchange every coordinate with a wrong sign; where that stops helping, only the last one, which can't cycle.
    `free_RK` is where to start.
    """
    rows, size = linear_RK.shape
    free_RK = linear_RK > 0 if free_RK is None else free_RK.copy()
    answer_RK = np.full((rows, size), np.nan)
    open_R = np.arange(rows)
    fewest_R = np.full(rows, size + 1)
    patience_R = np.full(rows, PATIENCE)
    identity_KK = np.eye(size)
    for _ in range(PIVOTS):
        free, linear = free_RK[open_R], linear_RK[open_R]
        system = np.where(free[:, :, None] & free[:, None, :], matrix_KK, identity_KK)
        x = np.linalg.solve(system, np.where(free, linear, 0.0)[:, :, None])[:, :, 0]
        slope = x @ matrix_KK - linear
        x_noise = 1e-12 * np.abs(x).max(axis=1, keepdims=True)
        slope_noise = 1e-12 * (np.abs(x) @ np.abs(matrix_KK) + np.abs(linear))
        wrong = np.where(free, x < -x_noise, slope < -slope_noise)
        count = wrong.sum(axis=1)
        done = count == 0
        answer_RK[open_R[done]] = np.maximum(x[done], 0.0)
        if done.all():
            break
        improved = count < fewest_R[open_R]
        fewest_R[open_R] = np.minimum(fewest_R[open_R], count)
        patience_R[open_R] = np.where(improved, PATIENCE, patience_R[open_R] - 1)
        last = size - 1 - np.argmax(wrong[:, ::-1], axis=1)
        only_last = (np.arange(size) == last[:, None]) & wrong
        flip = np.where((patience_R[open_R] >= 0)[:, None], wrong, only_last)
        free_RK[open_R] ^= flip
        open_R = open_R[~done]
    return answer_RK


class DualCone(DualConeProjector):
    """TorchJD's projector onto the dual cone, argmin over v >= u of v'Gv, without quadprog."""

    def __call__(self, U: Tensor, G: Tensor) -> Tensor:
        lower_RK = np.atleast_2d(U.double().numpy())
        matrix_KK = G.double().numpy() + PROJECTOR_RIDGE * np.eye(len(G))
        raised_RK = nonnegative_quadratic(matrix_KK, -lower_RK @ matrix_KK)
        return torch.from_numpy(lower_RK + raised_RK).reshape(U.shape).to(G.dtype)


def least_norm(gramian_KK: Array) -> Array:
    """argmin over the simplex of w'Gw: x / sum x for x = argmin over x >= 0 of x'Gx / 2 - sum x."""
    size = len(gramian_KK)
    x_K = nonnegative_quadratic(gramian_KK + RIDGE * np.eye(size), np.ones((1, size)))[0]
    weights_K: Array = x_K / x_K.sum()
    return weights_K


def conflict_averse(gramian_KK: Array, *, c: float) -> Array:
    """1/K + x with |sum_k x_k g_k| = c |g_0|, the direction d within c |g_0| of the mean g_0 whose least g_k.d is most.

    For a given nu, x(nu) = argmin over x >= 0 of x'Gx / 2 - (nu - G/K)'x is piecewise linear and its norm rises with
    nu: on each piece the nu of the wanted norm is a quadratic's root. x / sum x is the w of the paper's dual. NaN where
    |g_w| < STILL: no direction helps every objective.
    """
    size = len(gramian_KK)
    matrix_KK = gramian_KK + RIDGE * np.eye(size)
    mean_K = np.full(size, 1 / size)
    pull_K = matrix_KK @ mean_K
    radius = c * float(np.sqrt(mean_K @ pull_K))
    if radius == 0:
        return mean_K
    low, high = float(pull_K.min()), np.inf
    nu = low + radius * float(np.sqrt(np.trace(gramian_KK)))
    free_K = np.ones(size, dtype=bool)
    x_K = np.full(size, np.nan)
    for _ in range(NEWTON_STEPS):
        x_K = nonnegative_quadratic(matrix_KK, (nu - pull_K)[None], free_K[None])[0]
        if not np.isfinite(x_K).all():
            break
        free_K = x_K > 0
        norm = float(np.sqrt(x_K @ matrix_KK @ x_K))
        if abs(norm - radius) <= 1e-9 * radius:
            break
        low, high = (nu, high) if norm < radius else (low, nu)
        nu = _nu_on_piece(matrix_KK, pull_K, free_K, radius)
        if not low < nu < high:
            nu = 0.5 * (low + high) if np.isfinite(high) else 2 * low + radius
    still_direction = not np.isfinite(x_K).all() or radius < STILL * x_K.sum()
    return np.full(size, np.nan) if still_direction else mean_K + x_K


def _nu_on_piece(matrix_KK: Array, pull_K: Array, free_K: Mask, radius: float) -> float:
    """Larger root of |x(nu)|^2 = radius^2 with the free coordinates as they are; NaN without one."""
    part = np.flatnonzero(free_K)
    if len(part) == 0:
        return float("nan")
    columns = np.stack([np.ones(len(part)), pull_K[part]], axis=1)
    (a, b), (_, d) = columns.T @ np.linalg.solve(matrix_KK[np.ix_(part, part)], columns)
    discriminant = b * b - a * (d - radius**2)
    return float((b + np.sqrt(discriminant)) / a) if discriminant >= 0 else float("nan")


def alpha_fair(gramian_KK: Array, *, alpha: float) -> Array:
    """The a > 0 with G a = a^(-1/alpha): the minimum of a'Ga / 2 - sum_k F(a_k), F' = a^(-1/alpha), by damped Newton.

    NaN where it does not converge.
    """
    size = len(gramian_KK)
    matrix_KK = gramian_KK + RIDGE * np.eye(size)
    power = 1 / alpha
    a_K = np.full(size, float(size) ** (1 / (1 + power)))  # exact for equal orthogonal gradients
    for _ in range(NEWTON_STEPS):
        wanted_K = a_K**-power
        slope_K = matrix_KK @ a_K - wanted_K
        noise_K = 1e-14 * (np.abs(matrix_KK) @ a_K)
        if bool((np.abs(slope_K) <= 1e-9 * wanted_K + noise_K).all()):
            return a_K
        step_K = -np.linalg.solve(matrix_KK + np.diag(power * wanted_K / a_K), slope_K)
        length = min(1.0, 0.9 / max(float((-step_K / a_K).max()), 0.9))
        fall = float(slope_K @ step_K)  # < 0; a step too long climbs again on the other side
        for _ in range(BACKTRACKS):
            next_K = a_K + length * step_K
            if float((matrix_KK @ next_K - next_K**-power) @ step_K) <= -0.5 * fall:
                break
            length *= 0.5
        a_K = a_K + length * step_K
    return np.full(size, np.nan)


def surgery(gramian_KK: Array, orders_KK: NDArray[np.int64]) -> Array:
    """PCGrad's weights: each gradient loses its part against every other that it conflicts with, in row k's order."""
    size = len(gramian_KK)
    rows = np.arange(size)
    weights_KK = np.eye(size)
    for column in range(size):
        other_K = orders_KK[:, column]
        product_K = np.einsum("kl,kl->k", gramian_KK[other_K], weights_KK)
        norms_K = gramian_KK[other_K, other_K]
        hit_K = (other_K != rows) & (product_K < 0) & (norms_K > 0)
        weights_KK[rows[hit_K], other_K[hit_K]] -= product_K[hit_K] / norms_K[hit_K]
    total_K: Array = weights_KK.sum(axis=0)
    return total_K
