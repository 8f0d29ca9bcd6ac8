"""What Ray raises, read: whether a process is gone, and what it said."""

from __future__ import annotations

import ray
import torch

from policies.rollout import EngineDied


def is_lost(error: BaseException) -> bool:
    """Whether a process is gone, rather than that it said what was wrong. A constructor's mistake is its own word."""
    if isinstance(error, ray.exceptions.RayActorError):
        return not error.actor_init_failed
    return isinstance(error, EngineDied)  # Ray gives a task's error the class of its cause as well


def is_out_of_memory(cause: object) -> bool:
    """Python's own error, or torch's, of a GPU and of the machine: it names the latter in words alone."""
    known = isinstance(cause, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(cause, RuntimeError) and "can't allocate memory" in str(cause))


def last_line(error: BaseException) -> str:
    """The line of a remote traceback that says what was wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
