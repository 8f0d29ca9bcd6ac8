"""Low-rank adapters (LoRA, arXiv 2106.09685): y = x W^T + s x A^T B^T in linear layers, where only A and B learn.

W stays what was loaded; with the adapter off the policy is the one that training began with. What engines load and what
is exported is merged, W' = W + s B A, each time from that W, so that rounding never adds up.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from policies.gramian import blocks
from policies.models import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ModelError

_A, _B, _SCALE = ".lora_A", ".lora_B", ".lora_scale"  # after a layer's name; the scale has no dimensions
# Of PEFT's config, what does not change what A and B of a layer mean.
_PLAIN = {
    "peft_type", "task_type", "base_model_name_or_path", "revision", "r", "lora_alpha", "lora_dropout",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "inference_mode", "peft_version",
    "auto_mapping",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Lora:
    """An adapter's constants; see the job spec for their meaning."""

    rank: int
    alpha: float
    targets: tuple[str, ...] | None = None  # last parts of layers' names; None: every linear layer of the blocks
    merge: bool = False  # what is saved for export is the merged policy, the adapter beside it


def attach(model: nn.Module, lora: Lora) -> None:
    """Adapters into the model's blocks, in float32, with B = 0. All else is frozen.

    Raises ValueError for a target that isn't there.
    """
    from peft import inject_adapter_in_model

    stack = blocks(model)[1]
    linear = [path for path, module in stack.named_modules() if type(module) is nn.Linear]
    there = sorted({_last(path) for path in linear})
    wanted = lora.targets or there
    for target in wanted:
        if target not in there:
            raise ValueError(
                f"policy.lora.targets: no linear layer '{target}' in the policy's blocks; {_listed(there)}"
            )
    if not linear:
        raise ValueError(f"policy.lora: the policy's blocks have no plain linear layers to adapt; {_listed(there)}")
    model.requires_grad_(False)
    # Of a model with a config PEFT adapts experts where layers that are none of theirs have the names that theirs had.
    inject_adapter_in_model(_config(lora, [path for path in linear if _last(path) in wanted]), stack)
    for layer in layers(model).values():
        layer.cast_input_dtype_enabled = False  # autocast does it
        for parameter in (layer.lora_A.default.weight, layer.lora_B.default.weight):
            parameter.data = parameter.data.float()


def layers(model: nn.Module) -> dict[str, Any]:
    """Adapted layers by the names that they have without adapters."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@contextlib.contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """The base alone. For passes without gradient: of the adapters' parameters none would get one."""
    found = list(layers(model).values())
    for layer in found:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in found:
            layer.enable_adapters(True)


def plain_name(name: str) -> str | None:
    """Of a parameter as it is called without adapters; None for an adapter's own."""
    return None if ".lora_" in name else name.replace(".base_layer.", ".")


def base_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All but the adapters', by their plain names; tied ones once."""
    for name, parameter in model.named_parameters():
        plain = plain_name(name)
        if plain is not None:
            yield plain, parameter.detach()


def base_weights(model: nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, torch.dtype]]:
    """(plain name, tensor, type to hand it on in) of a checkpoint's, in the model's order: all of its parameters, and
    what does not learn and is in its files nevertheless, as the balance of DeepSeek-V3's experts, in the type it has.
    """
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        plain = plain_name(name)
        if plain is not None and id(tensor) not in seen:
            seen.add(id(tensor))
            yield plain, tensor.detach(), dtype if isinstance(tensor, nn.Parameter) else tensor.dtype


def base_digest(model: nn.Module) -> bytes:
    """sha256 of the base's names, types and numbers, before they are sharded."""
    found = hashlib.sha256()
    for name, tensor in base_parameters(model):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.digest()


def adapter(model: nn.Module, *, dtype: torch.dtype, gather: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """A r x n, B m x r and s of every adapted layer, as `merged` takes them. `gather` makes shards whole."""
    found = {}
    for name, layer in layers(model).items():
        found[name + _A] = gather(layer.lora_A.default.weight.detach()).to(dtype).contiguous()
        found[name + _B] = gather(layer.lora_B.default.weight.detach()).to(dtype).contiguous()
        found[name + _SCALE] = torch.tensor(layer.scaling["default"])
    return found


def adapter_parameters(model: nn.Module) -> dict[str, Tensor]:
    """A and B of every adapted layer, by the names that `adapter` has for them."""
    found = {}
    for name, layer in layers(model).items():
        found[name + _A] = layer.lora_A.default.weight
        found[name + _B] = layer.lora_B.default.weight
    return found


def is_adapter(tensors: Mapping[str, Tensor]) -> bool:
    """Whether they are `adapter`'s rather than a policy's own."""
    return any(name.endswith(_A) for name in tensors)


def merged(base: Iterable[tuple[str, Tensor]], adapter: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The base's weights by name, W + s B A in an adapted layer's place; summed in float32, in the type of W.

    Raises ValueError where a layer of the adapter is not in the base: at the end, when all others have been given.
    """
    left = {name.removesuffix(_A) for name in adapter if name.endswith(_A)}
    for name, weight_mn in base:
        layer = name.removesuffix(".weight")
        if layer not in left:
            yield name, weight_mn
            continue
        left.remove(layer)
        a_rn, b_mr = (adapter[layer + part].to(weight_mn.device).float() for part in (_A, _B))
        yield name, (weight_mn.float() + float(adapter[layer + _SCALE]) * (b_mr @ a_rn)).to(weight_mn.dtype)
    if left:
        raise ValueError(f"the adapter is for another model: it has no layer {min(left)}")


def save_adapter(
    adapter: Mapping[str, Tensor], lora: Lora, directory: Path, *, base: str, revision: str | None, digest: bytes
) -> None:
    """As PEFT and vLLM load it beside its base, whose id is in the config, and whose sum is in the weights' header."""
    from safetensors.torch import save_file

    directory.mkdir(exist_ok=True)
    names = {name.removesuffix(_A) for name in adapter if name.endswith(_A)}
    targets = sorted({_last(name) for name in names})
    config = _config(lora, targets)
    config.target_modules = targets  # in order, where PEFT makes a set of them
    config.base_model_name_or_path, config.revision = base, revision
    config.save_pretrained(directory)
    tensors = {
        f"base_model.model.{name}{part}.weight": adapter[name + part].cpu() for name in names for part in (_A, _B)
    }
    save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt", "base_sha256": digest.hex()})


def read_adapter(directory: Path) -> tuple[dict[str, Tensor], bytes | None]:
    """What `save_adapter` or PEFT wrote, as `merged` takes it, and the base's sum where that is known.

    Raises ModelError for what is no plain adapter of linear layers.
    """
    from safetensors import SafetensorError, safe_open

    try:
        config = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        with safe_open(directory / ADAPTER_WEIGHTS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
            digest = (file.metadata() or {}).get("base_sha256")
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"can't read the adapter in {directory}: {error}") from None
    if not _is_plain(config):
        raise ModelError(f"{directory} has no plain LoRA adapter; merge it with peft's merge_and_unload")
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        if not layer or part not in ("A", "B") or tensor.dim() != 2:
            raise ModelError(f"{directory} has no plain LoRA adapter: {name}; merge it with peft's merge_and_unload")
        found[f"{layer}.lora_{part}"] = tensor
        found[layer + _SCALE] = torch.tensor(config["lora_alpha"] / config["r"])
    for layer in (name.removesuffix(_SCALE) for name in found if name.endswith(_SCALE)):
        if not {layer + _A, layer + _B} <= found.keys():
            raise ModelError(f"{directory} has half an adapter: expected both A and B of {layer}")
    return found, None if digest is None else bytes.fromhex(digest)


def _is_plain(config: Mapping[str, Any]) -> bool:
    """Whether PEFT means W + alpha / rank B A of linear layers: all else that it can do is off, or as it is unasked."""
    from peft import LoraConfig

    unasked = LoraConfig().to_dict()
    sizes = (config.get("r"), config.get("lora_alpha"))
    return (
        config.get("peft_type") == "LORA"
        and config.get("init_lora_weights", True) in (True, False, "gaussian")
        and all(isinstance(size, int | float) and size > 0 for size in sizes)
        and all(
            name in _PLAIN or not value or name == "init_lora_weights" or value == unasked.get(name)
            for name, value in config.items()
        )
    )


def _config(lora: Lora, targets: list[str]) -> Any:
    from peft import LoraConfig

    alpha: Any = int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha  # PEFT's files have whole ones
    return LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM")


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _listed(names: list[str]) -> str:
    return f"there are {', '.join(names)}" if names else "train it in full: leave policy.lora out"
