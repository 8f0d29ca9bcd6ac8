"""What the rules share that multiply the person's preference by a factor of each objective."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from policies.types import Weights
from policies.weighting.base import Weighting


def tilt(preference_K: Tensor, factors_K: Tensor, because: Mapping[str, Tensor] = MappingProxyType({})) -> Weights:
    """w_k proportional to preference_k * factor_k; the preference where that is 0 everywhere or not finite."""
    product_K = preference_K.double() * factors_K.double()
    total = product_K.sum()
    if not bool(torch.isfinite(product_K).all()) or float(total) <= 0:
        return Weights(weights_K=preference_K.float(), because=because)
    return Weights(weights_K=(product_K / total).float(), because=because)


def under_preference(rule: type[Weighting], choice_K: Tensor, preference_K: Tensor, wanted_K: Tensor) -> Tensor:
    """What a choice under one preference would have been under the `wanted` one; as it was where that is unknown.

    Where the rule multiplies, wanted_k * choice_k / preference_k, scaled to sum to 1. What had no preference, so that
    its factor is unknown, counts with 1: the mean of the others' factors, weighted by preference.
    """
    match rule.on_preference:
        case "repeats":
            return wanted_K
        case "restarts":
            return choice_K if same(preference_K, wanted_K) else wanted_K
        case "multiplies":
            factors_K = torch.where(preference_K > 0, choice_K / preference_K, 1.0)
            return tilt(wanted_K, factors_K).weights_K.double()
        case _:
            return choice_K


def same(one_K: Tensor, other_K: Tensor) -> bool:
    """Whether two preferences were meant to be the same: scaling one again moves its last digits."""
    return torch.allclose(one_K.double(), other_K.double(), rtol=0.0, atol=1e-9)


def batch_mean(values_PGK: Tensor) -> Tensor:
    """Mean over prompts of each objective's mean in its group; NaN where the batch measured nothing.

    A prompt counts once, however many rollouts it was given: a budget gives more to what is rarely solved, and the mean
    over rollouts would then be one of hard prompts.
    """
    return torch.nanmean(torch.nanmean(values_PGK.double(), dim=1), dim=0)


def to_json(values_K: Tensor | None) -> list[float | None] | None:
    """NaN as null, which JSON has and NaN it has not."""
    if values_K is None:
        return None
    return [None if value != value else value for value in values_K.tolist()]


def from_json(values: list[float | None] | None) -> Tensor | None:
    if values is None:
        return None
    return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float64)
