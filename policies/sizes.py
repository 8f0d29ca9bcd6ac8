"""How large a model is, from its config and the headers of its weights: nothing is loaded, and torch is not needed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from policies.models import BOUNDED_ATTENTION, ModelError, check_directory, context_length
from policies.quickstart import MAX_POSITIONS, Recipe, task_vocabulary

_INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"
_OF_EXPERTS = ".experts."
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """Of a dense decoder with grouped attention and a gated MLP: the Llama and Qwen families and their kin."""

    layers: int
    hidden: int
    query: int  # heads x their size
    key_value: int  # the same of the heads that are cached
    intermediate: int
    vocabulary: int
    normed_heads: bool = False  # queries and keys have norms of their own, as in Qwen3


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A model's trainable tensors, and the dimensions of what flows between them."""

    shapes: Mapping[str, tuple[int, ...]]  # tied ones once
    dimensions: Dimensions | None
    no_dimensions: str = ""  # why there are none
    context: int | None = None  # tokens that it was made for

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def has_experts(self) -> bool:
        return any(_OF_EXPERTS in name for name in self.shapes)

    @property
    def largest(self) -> int:
        """Parameters of the largest tensor."""
        return max((math.prod(shape) for shape in self.shapes.values()), default=0)

    @property
    def last_block(self) -> int:
        """Parameters of the last transformer block (policies.gramian.in_last_block)."""
        if self.dimensions is None:
            return 0
        mark = f"layers.{self.dimensions.layers - 1}."
        return sum(math.prod(shape) for name, shape in self.shapes.items() if mark in name)


def size_of(directory: Path) -> ModelSize:
    """Of a Hugging Face directory. Raises ModelError; its message says what is wrong, but not where."""
    return size_from(check_directory(directory), _shapes(directory))


def parameters_of(directory: Path) -> int:
    """Of all tensors in a directory's safetensors, whatever model it is. Raises ModelError as `size_of`."""
    return sum(math.prod(shape) for shape in _shapes(directory).values())


def size_from(config: dict[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> ModelSize:
    """Of a model with this config.json and these tensors in its files."""
    shapes = dict(tensors)
    head = shapes.get("lm_head.weight")
    embeddings = [shape for name, shape in shapes.items() if name.endswith("embed_tokens.weight")]
    if config.get("tie_word_embeddings") is True and head in embeddings:  # some files hold it twice
        del shapes["lm_head.weight"]
    text = config.get("text_config")
    try:
        dimensions, why = _dimensions(text if isinstance(text, dict) else config, shapes), ""
    except ModelError as error:
        dimensions, why = None, str(error)
    return ModelSize(shapes=shapes, dimensions=dimensions, no_dimensions=why, context=context_length(config))


def quickstart_config() -> dict[str, Any]:
    """What its config.json will say of context and heads."""
    heads = Recipe().heads
    return {"max_position_embeddings": MAX_POSITIONS, "num_attention_heads": heads, "num_key_value_heads": heads}


def quickstart_size() -> ModelSize:
    """Of the quickstart policy, which need not have been trained yet."""
    recipe, words = Recipe(), len(task_vocabulary())
    width, inner = recipe.hidden_size, recipe.intermediate_size
    dimensions = Dimensions(
        layers=recipe.layers,
        hidden=width,
        query=width,
        key_value=width,
        intermediate=inner,
        vocabulary=words,
        normed_heads=True,
    )
    block: dict[str, tuple[int, ...]] = {f"{name}_proj": (width, width) for name in "qkvo"}
    block |= {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
    block |= {"before": (width,), "after": (width,)}
    block |= dict.fromkeys(("q_norm", "k_norm"), (width // recipe.heads,))
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (words, width), "norm": (width,)}
    shapes |= {f"layers.{layer}.{name}": shape for layer in range(recipe.layers) for name, shape in block.items()}
    return ModelSize(shapes=shapes, dimensions=dimensions, context=MAX_POSITIONS)


def linear_layers(size: ModelSize) -> list[str]:
    """Those of the transformer blocks, by the last part of their names; each once."""
    return sorted({_last(name) for name in _matrices(size)})


def adapter_size(size: ModelSize, *, rank: int, targets: Sequence[str] | None = None) -> ModelSize:
    """Of what learns in an adapter (policies/lora.py): A and B of each target, or of every linear layer."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (outputs, inputs) in _matrices(size).items():
        if targets is None or _last(name) in targets:
            shapes |= {f"{name}.lora_A": (rank, inputs), f"{name}.lora_B": (outputs, rank)}
    return replace(size, shapes=shapes)


def _matrices(size: ModelSize) -> dict[str, tuple[int, int]]:
    """Of the blocks' linear layers. Experts have one tensor together in the model, whatever its files have, and what
    routes to them is no linear layer either."""
    found = {name.removesuffix(".weight"): shape for name, shape in size.shapes.items() if "layers." in name}
    mixtures = {name.partition(_OF_EXPERTS)[0] for name in found if _OF_EXPERTS in name}
    routers = {f"{mixture}.{router}" for mixture in mixtures for router in ("gate", "router")}
    return {
        name: (shape[0], shape[1])
        for name, shape in found.items()
        if len(shape) == 2 and _OF_EXPERTS not in name and name not in routers
    }


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _dimensions(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Dimensions:
    """Raises ModelError for another architecture."""
    if any(config.get(name) for name in _EXPERTS):
        raise ModelError("what a mixture of experts keeps for its update is not known")
    if config.get("kv_lora_rank"):
        raise ModelError("what latent attention keeps is not known")
    if config.get(BOUNDED_ATTENTION):
        raise ModelError("what attention with a bound keeps is not known")

    def number(name: str, default: int | None = None) -> int:
        value = config.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**32:
            raise ModelError(f"config.json does not say {name}")
        return value

    heads, hidden = number("num_attention_heads"), number("hidden_size")
    size = number("head_dim", hidden // heads)
    return Dimensions(
        layers=number("num_hidden_layers"),
        hidden=hidden,
        query=heads * size,
        key_value=number("num_key_value_heads", heads) * size,
        intermediate=number("intermediate_size"),
        vocabulary=number("vocab_size"),
        normed_heads=any(".q_norm." in name for name in shapes),
    )


def _shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Of all tensors that would be loaded, by name."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for name in _files(directory):
            with safe_open(directory / name, framework="numpy") as file:
                shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  # no mapping: it has no iterator
    except (SafetensorError, OSError):
        raise ModelError("its safetensors can't be read") from None
    return shapes


def _files(directory: Path) -> list[str]:
    if (directory / _WHOLE).is_file():
        return [_WHOLE]
    try:
        index = json.loads((directory / _INDEX).read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
    except FileNotFoundError:
        raise ModelError(f"it has neither {_WHOLE} nor {_INDEX}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{_INDEX} can't be read") from None
    if not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise ModelError(f"{_INDEX} names files outside the directory")
    return names
