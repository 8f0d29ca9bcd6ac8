"""How many GPUs a job's engines, learner and rewards take, and whether some share one. Read without torch."""

from __future__ import annotations

import math
import os
from typing import Literal

from orchestrator.errors import DoesNotFit
from orchestrator.hosting import hosted_gold, hosted_rewards
from orchestrator.spec import JobSpec
from orchestrator.specs.reward_job import RewardJobSpec

DEVICE_VARIABLE = "EQUIPOISE_RAY_DEVICE"  # of a cluster: where jobs run that leave it open
_AUTO = {"cuda": "nccl, or ipc where all share one", "cpu": "shared_memory"}


def cluster_device() -> str | None:
    """cpu or cuda, by the cluster's operator; None where nobody said. Raises ValueError for anything else."""
    device = os.environ.get(DEVICE_VARIABLE)
    if device and device not in ("cpu", "cuda"):
        raise ValueError(f"{DEVICE_VARIABLE}: expected cpu or cuda, got {device[:100]!r}")
    return device or None


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

    An engine or a learner of several GPUs never shares them, nor do ranks of one NCCL group. All that share are on one
    GPU, so where another would be idle, nobody shares unasked: fewer engines with a GPU each are faster.
    """
    if spec.rollout.tensor_parallel > 1 or spec.resources.learner_ranks > 1:
        return False
    if spec.rollout.transport == "ipc":
        return True
    if spec.rollout.transport == "nccl" or gpus is None:
        return False
    rewards = reward_gpus(spec)
    return gpus_wanted(spec) + rewards > gpus and gpus - 1 - rewards < 1


def engines_that_fit(spec: JobSpec, gpus: int) -> int:
    """With GPUs of their own, beside the learner and the rewards; 0 where there is no room for one."""
    left = math.floor(gpus - reward_gpus(spec)) - spec.resources.learner_ranks
    return max(0, left) // spec.rollout.tensor_parallel


def transport_of(spec: JobSpec, device: str, gpus: int | None) -> Literal["shared_memory", "nccl", "ipc"]:
    """How weights reach the engines: as the spec says, or what `auto` is here (`gpus` as in `shares_gpu`)."""
    if spec.rollout.transport != "auto":
        return spec.rollout.transport
    if device == "cpu":
        return "shared_memory"
    return "ipc" if shares_gpu(spec, gpus) else "nccl"


def transport_problem(spec: JobSpec, device: str) -> str | None:
    """Why the transport that the spec names can't be on this device, whatever GPUs there are; nothing for auto."""
    transport = spec.rollout.transport
    if device == "cpu" and transport in ("nccl", "ipc"):
        return f"{transport} takes weights from GPU to GPU, and the job is on CPU"
    if device == "cuda" and transport == "shared_memory":
        return "shared_memory reaches engines on CPU alone, and these are on GPUs"
    if device == "cuda" and transport == "ipc" and spec.rollout.tensor_parallel > 1:
        return "ipc hands weights over inside one GPU, but an engine has several (rollout.tensor_parallel)"
    return None


def check_placement(spec: JobSpec, device: str, gpus: int | None) -> None:
    """Raises ValueError for a transport that can't be, DoesNotFit where one machine (`gpus`) has too few."""
    if problem := transport_problem(spec, device):
        raise ValueError(f"rollout.transport: {problem}; use auto, which is {_AUTO[device]}")
    if device == "cuda" and gpus is not None and not shares_gpu(spec, gpus):
        _check_gpus(spec, gpus)


def _check_gpus(spec: JobSpec, gpus: int) -> None:
    needed = gpus_wanted(spec) + reward_gpus(spec)
    if needed <= gpus:
        return
    ways = [f"rollout.engines: {fewer}"] if (fewer := engines_that_fit(spec, gpus)) else []
    if spec.rollout.tensor_parallel == spec.resources.learner_ranks == 1:
        shared = "auto" if spec.rollout.transport == "nccl" and gpus == 1 else "ipc"
        ways.append(f"rollout.transport: {shared}, by which engines and learner share one GPU")
    else:
        ways.append("a smaller rollout.tensor_parallel or resources.learner_ranks")
    field = "rollout.transport: nccl" if spec.rollout.transport == "nccl" else "rollout.engines"
    raise DoesNotFit(
        f"{field}: with GPUs of their own, engines, learner and rewards need {needed:g}, and there "
        f"{'is 1' if gpus == 1 else f'are {gpus}'}; use {' or '.join(ways)}"
    )
