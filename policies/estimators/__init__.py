"""Advantage estimators: one file per published rule; the file list is the list of rules."""

from policies.estimators.base import Estimator
from policies.estimators.cond_gdpo import CondGdpo
from policies.estimators.corr_grpo import CorrGrpo
from policies.estimators.dr_grpo import DrGrpo
from policies.estimators.dvao import Dvao
from policies.estimators.gd2po import Gd2po
from policies.estimators.gdpo import Gdpo
from policies.estimators.grpo import Grpo
from policies.estimators.hvo import Hvo
from policies.estimators.mo_grpo import MoGrpo
from policies.estimators.reinforce import Reinforce
from policies.estimators.rloo import Rloo
from policies.estimators.softmin import Softmin

ESTIMATORS: dict[str, type[Estimator]] = {
    "cond_gdpo": CondGdpo,
    "corr_grpo": CorrGrpo,
    "dr_grpo": DrGrpo,
    "dvao": Dvao,
    "gd2po": Gd2po,
    "gdpo": Gdpo,
    "grpo": Grpo,
    "hvo": Hvo,
    "mo_grpo": MoGrpo,
    "reinforce": Reinforce,
    "rloo": Rloo,
    "softmin": Softmin,
}

__all__ = [
    "ESTIMATORS",
    "CondGdpo",
    "CorrGrpo",
    "DrGrpo",
    "Dvao",
    "Estimator",
    "Gd2po",
    "Gdpo",
    "Grpo",
    "Hvo",
    "MoGrpo",
    "Reinforce",
    "Rloo",
    "Softmin",
]
