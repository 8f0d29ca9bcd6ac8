"""Weighting strategies: one file per rule; the file list is the list of rules."""

from policies.weighting.base import Weighting
from policies.weighting.covariance import CovarianceTarget
from policies.weighting.dara import SignalShare
from policies.weighting.fixed import Fixed
from policies.weighting.gradient import GradientInfluence
from policies.weighting.gramian_rules import GRAMIAN_RULES
from policies.weighting.hv_gradient import HypervolumeGradient
from policies.weighting.hypervolume import HypervolumeGuided
from policies.weighting.lagrangian import Lagrangian
from policies.weighting.log_volume import LogVolume
from policies.weighting.pama import LeastAdvantage
from policies.weighting.saturation import SaturationAware
from policies.weighting.saw import CoefficientOfVariation
from policies.weighting.schedule import Schedule
from policies.weighting.tchebycheff import Tchebycheff

WEIGHTINGS: dict[str, type[Weighting]] = {
    "fixed": Fixed,
    "schedule": Schedule,
    "hypervolume": HypervolumeGuided,
    "hv_gradient": HypervolumeGradient,
    "gradient": GradientInfluence,
    **{f"gramian:{name}": rule for name, rule in GRAMIAN_RULES.items()},
    "lagrangian": Lagrangian,
    "saw": CoefficientOfVariation,
    "dara": SignalShare,
    "saturation": SaturationAware,
    "covariance": CovarianceTarget,
    "pama": LeastAdvantage,
    "tchebycheff": Tchebycheff,
    "log_volume": LogVolume,
}

__all__ = ["WEIGHTINGS", "Fixed", "GradientInfluence", "HypervolumeGuided", "Weighting"]
