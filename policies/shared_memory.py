"""vLLM's side of the shared-memory transport, for engines on CPU. Imported by vLLM's worker, by name, when it is used.

On CPU vLLM packs linear weights at load, so a plain `load_weights` fails half way. Layerwise reloading unpacks and
packs again around it; weights arrive as a safetensors file in shared memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from policies.lora import is_adapter, merged


@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):
    """There is no rendezvous: a file's path is all that the two sides share."""


@dataclass
class SharedMemoryUpdateInfo(WeightTransferUpdateInfo):
    """One file with every parameter, by its Hugging Face name; or an adapter alone (policies/lora.py)."""

    path: str


class SharedMemoryEngine(WeightTransferEngine[SharedMemoryInitInfo, SharedMemoryUpdateInfo]):
    """Loads a whole checkpoint from a file between start and finish."""

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo
    model: Any

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        """Nothing to connect."""

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)
        for module in self.model.modules():
            # Experts are packed where their kernel is made, once: one that stayed would read plain weights as packed.
            method: Any = getattr(module, "quant_method", None)
            if getattr(method, "moe_kernel", None) is not None:
                method.moe_kernel = None

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class synchronises an accelerator, which is not here.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        arrived = load_file(update_info.path)
        weights = merged(self._base(), arrived) if is_adapter(arrived) else iter(arrived.items())
        self.model.load_weights(weights)

    def _base(self) -> Iterator[tuple[str, Tensor]]:
        """The weights that the engine started with, from their files again: beside the packed ones it keeps none."""
        loader = get_model_loader(self.vllm_config.load_config)
        assert isinstance(loader, DefaultModelLoader), "load_format is safetensors"
        for name, tensor in loader.get_all_weights(self.model_config, self.model):
            yield name, tensor.to(self.model_config.dtype)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        for module in self.model.modules():
            # Tied to the embedding, the head has no weights of its own to load, and would keep its packed copy.
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Nothing to close."""
