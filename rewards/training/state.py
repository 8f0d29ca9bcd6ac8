"""What it takes to go on after a kill: one safetensors file, replaced as a whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rewards.training.trainer import Trainer

FILE = "checkpoint.safetensors"


def save_state(trainer: Trainer, directory: Path, digest: str) -> None:
    """`digest` tells models, settings and data apart: a checkpoint goes on with its own alone."""
    tensors: dict[str, Tensor] = {f"weights.{name}": p for name, p in trainer.module.named_parameters()}
    for i, parameter in enumerate(trainer.parameters):
        for key, value in trainer.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{i}.{key}"] = torch.as_tensor(value)
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    directory.mkdir(parents=True, exist_ok=True)
    scratch = directory / f".{FILE}.{os.getpid()}"
    copies = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    save_file(copies, scratch, metadata={"step": str(trainer.step), "digest": digest})
    with scratch.open("rb") as written:
        os.fsync(written.fileno())
    scratch.replace(directory / FILE)


def is_same(stored: str | None, digest: str) -> bool:
    """Whether both are of one training. An early checkpoint has the first hash alone, which leaves the weights out."""
    return bool(stored) and digest.startswith(str(stored))


def load_state(trainer: Trainer, directory: Path, digest: str) -> bool:
    """Whether there was a checkpoint to go on from. Raises ValueError for one of other settings, or a damaged one."""
    path = directory / FILE
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
    except SafetensorError:
        raise ValueError(f"{path} is damaged; delete it to start over") from None
    if not is_same(metadata.get("digest"), digest):
        raise ValueError(f"{path} is of another model, settings or data; train in another directory, or delete it")
    with torch.no_grad():
        for name, parameter in trainer.module.named_parameters():
            parameter.copy_(tensors[f"weights.{name}"])
    for i, parameter in enumerate(trainer.parameters):
        prefix = f"optimizer.{i}."
        state: dict[str, Any] = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if state:
            trainer.optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
            }
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    trainer.step = int(metadata["step"])
    return True
