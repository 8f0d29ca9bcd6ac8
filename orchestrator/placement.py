"""How many GPUs a job's engines, learner and rewards take, and whether some share one. Read without torch."""

from __future__ import annotations

import math

from orchestrator.hosting import hosted_gold, hosted_rewards
from orchestrator.spec import JobSpec
from orchestrator.specs.reward_job import RewardJobSpec


def reward_gpus(spec: JobSpec) -> float:
    """Of all replicas of the rewards that ask for some."""
    hosted = [*hosted_rewards(spec), *hosted_gold(spec)]
    return math.fsum(options["num_gpus"] for reward in hosted for options in reward.reserved)


def may_take_gpus(spec: JobSpec | RewardJobSpec) -> bool:
    """Whether the job's GPU time may count; known before the machine is that it will run on."""
    return spec.resources.device != "cpu"


def gpus_wanted(spec: JobSpec) -> int:
    """Where nobody shares: those of every engine, and the learner's ranks; the rewards' come on top."""
    return spec.rollout.engines * spec.rollout.tensor_parallel + spec.resources.learner_ranks


def shares_gpu(spec: JobSpec, gpus: int | None) -> bool:
    """On one machine with fewer than wanted (`gpus`; None: a cluster, where they wait), or where a spec asks for it.

    An engine or a learner of several GPUs never shares them.
    """
    if spec.rollout.tensor_parallel > 1 or spec.resources.learner_ranks > 1:
        return False
    return spec.rollout.transport == "ipc" or (gpus is not None and gpus_wanted(spec) + reward_gpus(spec) > gpus)
