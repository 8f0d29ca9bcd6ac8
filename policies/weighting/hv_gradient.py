"""Weights from the gradient of the hypervolume: where a step of the current policy would move the front most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.pareto import hypervolume, nondominated
from policies.types import StepStats, Weights
from policies.weighting.base import Weighting
from policies.weighting.tilt import tilt

Array = NDArray[np.float64]

EXACT_OBJECTIVES = 7
FEW = 8
SAMPLES = 4096
SAME = 1e-6  # an archive point nearer than this to the current one, in every objective, is the current one


class HypervolumeGradient(Weighting):
    """w_k proportional to preference_k * dHV(B + q)/dq_k, q the latest evaluation's point and B the others.

    This is the ascent direction of hypervolume-gradient methods such as HIGA-MO. The archive's points are in [0, 1]^K
    and the volume is measured from 0. An objective of q below `least` counts as if it were there: at 0 it would have
    all the weight there is, and where no rollout is better in it, nothing would be learned, for good.
    Before the first evaluation, and where the gradient is 0 as another point dominates q, the weights are the
    preference. Areas are exact up to 8 objectives and for up to 8 points beside q; beyond, by 4096 samples, the same
    ones each time, with a standard error below 1% of the box below q.

    So a policy that hardly moves any more is mostly given the preference: of hundreds of evaluations some were lucky,
    and dominate nearly all that come.
    """

    needs = frozenset({"archive"})
    on_preference = "multiplies"

    def __init__(self, *, least: float = 0.05) -> None:
        self.least = least
        self._seen_step = -1
        self._slopes_K: Tensor | None = None

    def update(self, stats: StepStats) -> Weights:
        front = stats.front
        if front is not None and front.step > self._seen_step:
            slopes_K = hypervolume_gradient(
                front.points_NK.double().numpy(), front.current_K.double().numpy(), self.least
            )
            self._slopes_K = torch.from_numpy(slopes_K)
            self._seen_step = front.step
        if self._slopes_K is None:
            return Weights(weights_K=stats.preference_K.float())
        return tilt(stats.preference_K, self._slopes_K, {"slope": self._slopes_K})

    def state_dict(self) -> dict[str, Any]:
        return {
            "seen_step": self._seen_step,
            "slopes": None if self._slopes_K is None else self._slopes_K.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._seen_step = state["seen_step"]
        slopes = state["slopes"]
        self._slopes_K = None if slopes is None else torch.tensor(slopes, dtype=torch.float64)


def hypervolume_gradient(points_NK: Array, current_K: Array, least: float = 0.0) -> Array:
    """dHV(points + current)/dcurrent_k as current rises: the area of the facet that it alone holds up in direction k.

    The facet is the box below current without coordinate k, less what the points cover that are higher in k. One just
    as high covers nothing above itself, and held-out means are often just as high; at 1 it counts, as none can rise.
    Coordinates of current below `least` are raised to it first.
    """
    others_NK = points_NK[np.abs(points_NK - current_K).max(axis=1) > SAME]
    current_K = np.maximum(current_K, least)
    slopes_K = np.zeros(len(current_K))
    for k in range(len(current_K)):
        box = np.delete(current_K, k)
        if box.all():
            covers = np.greater if current_K[k] < 1 else np.greater_equal
            beside_SK = np.delete(others_NK[covers(others_NK[:, k], current_K[k])], k, axis=1)
            slopes_K[k] = box.prod() * _uncovered(np.minimum(beside_SK / box, 1.0))
    return slopes_K


def _uncovered(points_SK: Array) -> float:
    """Share of [0, 1]^K that no point dominates."""
    if len(points_SK) == 0:
        return 1.0
    if points_SK.shape[1] == 0:  # the whole space is one point
        return 0.0
    points_SK = points_SK[nondominated(points_SK)]
    if len(points_SK) > FEW and points_SK.shape[1] <= EXACT_OBJECTIVES:
        return max(0.0, 1.0 - hypervolume(points_SK))
    if len(points_SK) > FEW:
        samples = np.random.default_rng(0).random((SAMPLES, points_SK.shape[1]))
        for point in points_SK:
            samples = samples[(samples > point).any(axis=1)]
        return len(samples) / SAMPLES
    corners, signs = np.ones((1, points_SK.shape[1])), np.ones(1)  # inclusion and exclusion
    for point in points_SK:
        corners, signs = np.concatenate([corners, np.minimum(corners, point)]), np.concatenate([signs, -signs])
    return max(0.0, float(signs @ corners.prod(axis=1)))
