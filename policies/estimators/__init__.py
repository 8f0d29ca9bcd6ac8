"""Advantage estimators: one file per published rule; the file list is the list of rules."""

from policies.estimators.base import Estimator
from policies.estimators.gdpo import Gdpo
from policies.estimators.grpo import Grpo
from policies.estimators.reinforce import Reinforce
from policies.estimators.rloo import Rloo

ESTIMATORS: dict[str, type[Estimator]] = {"gdpo": Gdpo, "grpo": Grpo, "reinforce": Reinforce, "rloo": Rloo}

__all__ = ["ESTIMATORS", "Estimator", "Gdpo", "Grpo", "Reinforce", "Rloo"]
