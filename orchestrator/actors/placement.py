"""Where a job's engines, learner and rewards run: how many GPUs they take, whether some share one, what Ray is asked.

Read without torch.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.actors.gang import MACHINES_VARIABLE, machine_gpus
from orchestrator.actors.threads import WAITING
from orchestrator.errors import DoesNotFit
from orchestrator.hosting import hosted_gold, hosted_rewards
from orchestrator.spec import JobSpec
from orchestrator.specs.reward_job import RewardJobSpec

if TYPE_CHECKING:
    from policies.weight_sync import Transport

log = logging.getLogger("equipoise.driver")
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
    return spec.resources.device != "cpu" or (isinstance(spec, JobSpec) and reward_gpus(spec) > 0)


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


def as_it_runs(spec: JobSpec, device: str) -> JobSpec:
    """For a job that goes on: `auto` for a transport that can't be on this device, which new jobs may not name.

    Its weights went another way before as well.
    """
    if (problem := transport_problem(spec, device)) is None:
        return spec
    log.warning("rollout.transport: %s; going on with auto, which is %s", problem, _AUTO[device])
    return spec.model_copy(update={"rollout": spec.rollout.model_copy(update={"transport": "auto"})})


def machine_problems(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """(field, what is wrong) of what needs more GPUs of one machine than any of the operator's cluster has."""
    most = machine_gpus()
    told = f"no machine for {{}} has more GPUs than {{}} ({MACHINES_VARIABLE}, the operator's); {{}}"
    on_gpus = spec.resources.device == "cuda" or (spec.resources.device == "auto" and cluster_device() == "cuda")
    engines = most.get("rollout", math.inf)
    if on_gpus and spec.rollout.tensor_parallel > engines:
        yield "rollout.tensor_parallel", told.format("rollout", engines, "an engine's are all in one machine")
    rewards = most.get("reward", math.inf)
    hosted = {f"objectives.{i}.reward": objective.reward for i, objective in enumerate(spec.objectives)}
    for field, reward in (hosted | ({} if spec.gold is None else {"gold.reward": spec.gold.reward})).items():
        if reward.hosting.num_gpus > rewards:
            yield f"{field}.hosting.num_gpus", told.format("reward", rewards, "leave it out to score on CPU")


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


def resolve_device(spec: JobSpec, gpus: int, *, grows: bool = False) -> str:
    """cpu or cuda. Raises ValueError where cuda is asked for and there is none, unless machines with it may join.

    On a cluster that grows, `auto` is what its operator says: its machines may not be there yet.
    """
    if spec.resources.device == "cuda" and gpus == 0 and not grows:
        raise ValueError("resources.device: cuda is asked for, but no CUDA device is visible; use cpu or auto")
    if spec.resources.device != "auto":
        return spec.resources.device
    return (cluster_device() if grows else None) or ("cuda" if gpus > 0 else "cpu")


def placement(spec: JobSpec, device: str, gpus: int | None) -> tuple[Transport, dict[str, Any], dict[str, Any]]:
    """(transport, Ray options of an engine, Ray options of the learner).

    With a GPU for each engine and one for the learner, weights go by nccl. Where they must share one GPU, by ipc: on
    one machine that has no other (`gpus`), or where a spec asks for ipc. On a cluster (None) they wait for GPUs of
    their own. Rewards have their shares first: on the same GPU where there is no other.
    """
    environment = {"env_vars": engine_environment(spec, device)}
    transport = transport_of(spec, device, gpus)
    if device == "cpu":
        learner = {"num_cpus": 1, "runtime_env": {"env_vars": dict(WAITING)}}
        return transport, {"num_cpus": 1, "runtime_env": environment}, learner
    size = spec.rollout.tensor_parallel
    wanted, rewards, shared = gpus_wanted(spec), reward_gpus(spec), shares_gpu(spec, gpus)
    room = 1.0 - rewards if gpus == 1 and rewards < 1 else 1.0
    share = math.floor(10_000 * room / wanted) / 10_000 if shared else 1.0  # Ray counts in ten-thousandths
    engine = {"num_cpus": 1, "num_gpus": share if shared else size, "runtime_env": environment}
    return transport, engine, {"num_cpus": 1, "num_gpus": share}


def engine_environment(spec: JobSpec, device: str) -> dict[str, str]:
    """Variables of an engine's process: quiet, offline about usage, and only as many threads as allowed."""
    variables = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if device == "cpu":
        variables |= WAITING
        # The few functions that vLLM compiles even so would cost an engine more than they ever save on a CPU, up to
        # half a minute of a C++ compiler where none of it is cached, in the middle of the first batch.
        variables["TORCH_COMPILE_DISABLE"] = "1"
    ranks = spec.rollout.tensor_parallel
    if device == "cpu" and ranks == 1:
        # The worker inside the engine core: a process and an import of torch less, the same tokens, 12 s sooner up.
        variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    elif device == "cpu":
        # vLLM would bind each rank to a NUMA node of its own, and does not start where nodes are fewer than ranks.
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    threads = spec.resources.engine_threads
    if threads is None and device == "cpu" and spec.policy.model == "quickstart":
        threads = 1  # its layers are too small to share out: on 2 cores a batch took .70 s, with both threads .86 s
    elif threads is None and device == "cpu":  # unasked, Ray would give it one
        threads = max(1, (os.cpu_count() or 1) // spec.rollout.engines)
    if threads is not None:
        variables["OMP_NUM_THREADS"] = str(max(1, threads // ranks))
    return variables
