"""A weighting strategy and an estimator for a package of your own. It offers them in its pyproject.toml:

    [project.entry-points."equipoise.weightings"]
    worst_first = "my_package:WorstFirst"

    [project.entry-points."equipoise.estimators"]
    plain_sum = "my_package:PlainSum"

and a spec asks for `weighting: {name: worst_first, options: {sharpness: 2}}`.
"""

import torch
from torch import Tensor

from policies.estimators import Estimator
from policies.types import StepStats, Weights
from policies.weighting import Weighting


class WorstFirst(Weighting):
    """Weight to the objectives whose mean is lowest in their range; sharpness 0 is the preference."""

    def __init__(self, *, sharpness: float = 4.0) -> None:
        if sharpness < 0:
            raise ValueError(f"sharpness must be at least 0, got {sharpness:g}")
        self.sharpness = sharpness

    def update(self, stats: StepStats) -> Weights:
        means_K = torch.nanmean(stats.rewards_PGK.double().flatten(0, 1), dim=0)
        places_K = torch.nan_to_num(stats.objectives.normalise(means_K), nan=1.0)
        weights_K = torch.softmax(stats.preference_K.double().log() - self.sharpness * places_K, dim=0)
        return Weights(weights_K=weights_K.float())


class PlainSum(Estimator):
    """The weighted sum of the rewards, as it is: no baseline, so one rollout per prompt is enough."""

    single_rollout = True

    def __call__(self, rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
        return (torch.nan_to_num(rewards_PGK).double() @ weights_K.double()).float()
