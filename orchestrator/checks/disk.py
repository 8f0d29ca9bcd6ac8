"""What a job's checkpoints take of the disk that has the state directory. Reckoned, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.checks.judge_calls import evaluations
from orchestrator.checks.layout import readable
from orchestrator.spec import JobSpec
from orchestrator.storage.checkpoints import NEWEST
from policies.sizes import ModelSize, adapter_size

_STATE_BYTES = 12  # of a parameter that learns: weights and two moments in float32


def disk_taken(spec: JobSpec, size: ModelSize, free_bytes: int | None) -> dict[str, Any]:
    """At most: the newest whole ones, one more that is being written, and the policies of the front's others."""
    lora, number_bytes = spec.policy.lora, 2 if spec.policy.dtype == "bfloat16" else 4
    learns = size if lora is None else adapter_size(size, rank=lora.rank, targets=lora.targets)
    exported = learns.parameters if lora is not None else 0
    if lora is None or spec.merges:
        exported += size.parameters
    policy = number_bytes * exported
    whole = policy + _STATE_BYTES * learns.parameters
    policies = min(spec.checkpoints.front, evaluations(spec))
    return {
        "checkpoint_bytes": whole,
        "policy_bytes": policy,
        "policies": policies,
        "bytes": (NEWEST + 1) * whole + policies * policy,
        "free_bytes": free_bytes,
    }


def disk_doubts(taken: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """As `doubts`: where the job's checkpoints may not have room."""
    if taken is None or taken["free_bytes"] is None or taken["free_bytes"] >= taken["bytes"]:
        return []
    message = (
        f"its checkpoints take up to {readable(taken['bytes'])} ({NEWEST + 1} of {readable(taken['checkpoint_bytes'])} "
        f"and {taken['policies']} policies of {readable(taken['policy_bytes'])}), and the state directory has "
        f"{readable(taken['free_bytes'])} free: where they don't fit the job waits for room; keep fewer, or free space"
    )
    return [("checkpoints.front", message)]
