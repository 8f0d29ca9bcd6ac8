"""How many GPUs a job's engines and learner take, and whether they share one. Read without torch."""

from __future__ import annotations

from orchestrator.spec import JobSpec


def gpus_wanted(spec: JobSpec) -> int:
    """Where nobody shares: those of every engine, and the learner's."""
    return spec.rollout.engines * spec.rollout.tensor_parallel + 1


def shares_gpu(spec: JobSpec, gpus: int | None) -> bool:
    """On one machine with fewer than wanted (`gpus`; None: a cluster, where they wait), or where a spec asks for it.

    An engine of several GPUs never shares them.
    """
    if spec.rollout.tensor_parallel > 1:
        return False
    return spec.rollout.transport == "ipc" or (gpus is not None and gpus_wanted(spec) > gpus)
