"""Transforms of one objective's rewards before the estimator: one file per form; the file list is the list of forms."""

from rewards.transforms.base import Transform, TransformContext
from rewards.transforms.calibrate import Calibrate
from rewards.transforms.clip import Clip
from rewards.transforms.cosine import Cosine
from rewards.transforms.group_length import GroupLength
from rewards.transforms.identity import Identity
from rewards.transforms.lsc import Lsc
from rewards.transforms.mean_length import MeanLength
from rewards.transforms.soft_overlong import SoftOverlong
from rewards.transforms.zscore import ZScore

TRANSFORMS: dict[str, type[Transform]] = {
    "identity": Identity,
    "clip": Clip,
    "zscore": ZScore,
    "lsc": Lsc,
    "calibrate": Calibrate,
    "soft_overlong": SoftOverlong,
    "cosine": Cosine,
    "group_length": GroupLength,
    "mean_length": MeanLength,
}

__all__ = [
    "TRANSFORMS",
    "Calibrate",
    "Clip",
    "Cosine",
    "GroupLength",
    "Identity",
    "Lsc",
    "MeanLength",
    "SoftOverlong",
    "Transform",
    "TransformContext",
    "ZScore",
]
