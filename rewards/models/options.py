"""What every learned reward is asked with."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rewards.base import RewardOptions
from rewards.registry import MODEL_FORMAT


class LoadOptions(RewardOptions):
    """Which model, and how it is read."""

    model: str = Field(
        min_length=1,
        description="a Hugging Face directory of safetensors, or a hub id with a revision",
        json_schema_extra={"format": MODEL_FORMAT},
    )
    revision: str | None = Field(None, description="commit of a hub id, which it needs; ignored for a directory")
    max_length: int | None = Field(
        None,
        ge=8,
        le=1_048_576,
        description="tokens of prompt and completion together; the model's own limit when absent",
    )
    overflow: Literal["truncate_left", "error"] = Field(
        "truncate_left", description="what a longer row does: lose its start, or count as one that can't be scored"
    )
    batch_size: int = Field(16, ge=1, le=65_536, description="rows in one forward pass")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of weights and arithmetic")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU where the reward's process has one (hosting.num_gpus)"
    )


class ModelOptions(LoadOptions):
    """The same for models that vLLM can run too."""

    runner: Literal["transformers", "vllm"] = Field(
        "transformers", description="vllm: its pooling runner, for large models; transformers pads and batches itself"
    )
    kv_cache_gib: float = Field(1.0, gt=0, le=10_000, description="vLLM's KV cache on CPU, GiB")
    gpu_memory_utilization: float = Field(0.4, gt=0, le=0.98, description="share of a GPU's memory for vLLM")
    tensor_parallel: int = Field(1, ge=1, le=64, description="GPUs of vLLM")
