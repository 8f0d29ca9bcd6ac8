"""A learner's state on disk: what the next update depends on, beside the exported policy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from policies.learner import Learner


def save_state(learner: Learner, directory: Path) -> None:
    """What the next update depends on: float32 weights, optimiser, schedule, random states."""
    tensors = {f"weights.{name}": p.detach().cpu() for name, p in learner.model.named_parameters()}
    for i, parameter in enumerate(learner.parameters):
        for key, value in learner.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{i}.{key}"] = torch.as_tensor(value).detach().cpu().clone()
    tensors["schedule.updates"] = torch.tensor(learner.scheduler.last_epoch)
    tensors["random.torch"] = torch.get_rng_state()
    tensors["random.order"] = learner.generator.get_state()
    with disk_errors():
        save_file(tensors, directory / "learner.safetensors")


def load_state(learner: Learner, directory: Path) -> None:
    """Continue exactly where `save_state` was. Raises KeyError where it is of another model."""
    tensors = load_file(directory / "learner.safetensors")
    names = {f"weights.{name}" for name, _ in learner.model.named_parameters()}
    if names != {key for key in tensors if key.startswith("weights.")}:
        raise KeyError(f"{directory} holds the state of another model")
    with torch.no_grad():
        for name, parameter in learner.model.named_parameters():
            parameter.copy_(tensors[f"weights.{name}"])
    learner.optimizer.state.clear()  # a state saved before the first update has no moments
    for i, parameter in enumerate(learner.parameters):
        prefix = f"optimizer.{i}."
        state: dict[str, Any] = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if state:
            moved = {k: v if k == "step" else v.to(learner.device) for k, v in state.items()}
            learner.optimizer.state[parameter] = moved
    updates = int(tensors["schedule.updates"])
    learner.scheduler.last_epoch = updates
    rates = [learner.scheduler.lr_lambdas[0](updates) * base for base in learner.scheduler.base_lrs]
    learner.scheduler._last_lr = rates
    for group, rate in zip(learner.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    torch.set_rng_state(tensors["random.torch"])
    learner.generator.set_state(tensors["random.order"])


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """safetensors has an error of its own for what the disk refuses."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error
