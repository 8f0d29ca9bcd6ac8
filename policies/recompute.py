"""Gradient checkpointing: a block's activations are computed again in the backward pass, which takes less memory.

transformers does it only for blocks that are training, and then they drop out what their config says. So a block is
said to be training when it is called, and is not while it computes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def enable(model: Any) -> None:
    """In a model that is not training, and that still computes what it did. Raises ValueError where it can't."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.gradient_checkpointing_enable()
    blocks: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for block in blocks:
        block.training = True
        block._gradient_checkpointing_func = partial(_twice, block)


def _twice(block: nn.Module, call: Callable[..., Any], *inputs: Any) -> Any:
    def quietly(*inputs: Any) -> Any:
        block.training = False
        try:
            return call(*inputs)
        finally:
            block.training = True

    return checkpoint(quietly, *inputs, use_reentrant=False)
