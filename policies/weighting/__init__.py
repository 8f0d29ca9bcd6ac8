"""Weighting strategies: one file per published rule; the file list is the list of rules."""

from policies.weighting.base import Weighting
from policies.weighting.fixed import Fixed
from policies.weighting.gradient import GradientInfluence
from policies.weighting.hypervolume import HypervolumeGuided

WEIGHTINGS: dict[str, type[Weighting]] = {
    "fixed": Fixed,
    "gradient": GradientInfluence,
    "hypervolume": HypervolumeGuided,
}

__all__ = ["WEIGHTINGS", "Fixed", "GradientInfluence", "HypervolumeGuided", "Weighting"]
