"""A policy's weights as its checkpoint has them: what engines load, whatever transformers makes of it in memory.

It keeps all experts of a layer in one tensor, and calls Mixtral's `block_sparse_moe` `mlp`; vLLM knows the files' names
alone, of some families.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from policies.gramian import blocks

Kind = tuple[str, torch.dtype, tuple[int, ...]]  # name, type, shape


def as_saved(model: Any, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Weights of the model, which have its own names, in the model's order; a block of it at a time where they change.

    None shares its memory with another then, as one made of a part of an expert's would.
    """
    if not getattr(model, "_weight_conversions", None):
        yield from weights
        return
    from transformers.core_model_loading import revert_weight_conversion

    stack = blocks(model)[0] + "."

    def block_of(weight: tuple[str, Tensor]) -> str | None:
        name = weight[0]
        return name.removeprefix(stack).split(".")[0] if name.startswith(stack) else None

    for _, together in itertools.groupby(weights, key=block_of):
        for name, tensor in revert_weight_conversion(model, dict(together)).items():
            part = tensor.untyped_storage().nbytes() > tensor.nbytes
            yield name, tensor.clone(memory_format=torch.contiguous_format) if part else tensor.contiguous()


def kinds_as_saved(model: Any, kinds: Iterable[Kind]) -> list[Kind]:
    """Of what `as_saved` makes of weights of these kinds, in its order."""
    shapes = ((name, torch.empty(shape, dtype=dtype, device="meta")) for name, dtype, shape in kinds)
    return [(name, found.dtype, tuple(found.shape)) for name, found in as_saved(model, shapes)]
