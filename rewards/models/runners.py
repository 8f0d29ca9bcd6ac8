"""Where the forward pass runs: transformers in this process, or vLLM's pooling runner. Rows of tokens in, rows out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from rewards.models.chat import by_length
from rewards.models.directory import ModelError, first_line
from rewards.models.options import LoadOptions, ModelOptions

Pooling = Literal["last", "mean"]
PAD = 0  # behind an attention mask it may be any token


class Runner(Protocol):
    """One vector for each row: a pooled hidden state, or the logits of a classifier."""

    def __call__(self, rows: Sequence[list[int]]) -> Tensor:
        """[B, D], float32, on the CPU."""
        ...


class PooledBackbone(nn.Module):
    """A backbone's hidden states of each row, pooled."""

    def __init__(self, backbone: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        self.pad = PAD

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        hidden_BTH: Tensor = self.backbone(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state.float()
        if self.pooling == "mean":
            mean_BH: Tensor = (hidden_BTH * mask_BT[..., None]).sum(dim=1) / mask_BT.sum(dim=1, keepdim=True)
            return mean_BH
        last_B = mask_BT.sum(dim=1) - 1  # padding is on the right
        return hidden_BTH[torch.arange(len(ids_BT), device=ids_BT.device), last_B]


class Classifier(nn.Module):
    """The logits of a standard sequence classifier, whose own rule picks the token that it reads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.pad = getattr(model.config, "pad_token_id", None)

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        logits_BK: Tensor = self.model(input_ids=ids_BT, attention_mask=mask_BT).logits
        return logits_BK.float()


class TransformersRunner:
    """Pads rows of similar length into batches. A row's result depends on the others by rounding alone."""

    def __init__(self, module: PooledBackbone | Classifier, batch_size: int, device: str) -> None:
        self._module = module
        # without a padding token transformers can't tell the last one, so rows go alone
        self._batch_size = batch_size if module.pad is not None else 1
        self._device = device

    @torch.no_grad()
    def __call__(self, rows: Sequence[list[int]]) -> Tensor:
        results: dict[int, Tensor] = {}
        for index in by_length(rows, self._batch_size):
            ids_BT, mask_BT = pad([rows[i] for i in index], self._module.pad or PAD)
            out_BD = self._module(ids_BT.to(self._device), mask_BT.to(self._device)).cpu()
            results |= dict(zip(index, out_BD, strict=True))
        return torch.stack([results[i] for i in range(len(rows))])


class VllmRunner:
    """vLLM's pooling runner: hidden states (`embed`) or the logits of a sequence classifier (`classify`)."""

    def __init__(
        self,
        path: Path,
        options: ModelOptions,
        *,
        max_length: int,
        task: Literal["embed", "classify"],
        pooling: Pooling,
    ) -> None:
        from vllm import LLM
        from vllm.config import PoolerConfig

        on_cpu = pick_device(options.device) == "cpu"
        memory: dict[str, Any] = {"gpu_memory_utilization": options.gpu_memory_utilization}
        if on_cpu:
            memory = {"kv_cache_memory_bytes": int(options.kv_cache_gib * 2**30)}
        self._task = task
        self._llm = LLM(
            model=str(path),
            runner="pooling",
            convert=task,
            pooler_config=PoolerConfig(seq_pooling_type="MEAN" if pooling == "mean" else "LAST", use_activation=False),
            dtype=options.dtype,
            max_model_len=max_length,
            # A prompt in parts has no hidden states of the earlier ones, which the mean needs.
            enable_chunked_prefill=False,
            max_num_batched_tokens=max(8192, max_length),
            max_num_seqs=min(256, max(options.batch_size, 1)),
            tensor_parallel_size=options.tensor_parallel,
            enforce_eager=on_cpu,
            load_format="safetensors",
            trust_remote_code=False,
            disable_log_stats=True,
            **memory,
        )
        # transformers' classifiers read the last token that is not padding, vLLM the last of all
        self._pad = self._llm.model_config.hf_config.pad_token_id if task == "classify" else None

    def __call__(self, rows: Sequence[list[int]]) -> Tensor:
        from vllm import PoolingParams
        from vllm.inputs import TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=_strip(row, self._pad)) for row in rows]
        parameters = PoolingParams(use_activation=False)
        outputs = self._llm.encode(prompts, parameters, pooling_task=self._task, use_tqdm=False)
        return torch.stack([output.outputs.data for output in outputs]).float().cpu()


def load_module(
    automatic: Any, path: Path, options: LoadOptions, *, new: tuple[str, ...] = (), **arguments: Any
) -> Any:
    """A model through one of transformers' Auto classes, in evaluation mode, from safetensors alone.

    `new` are beginnings of the names of weights that may be missing, which are then random. Raises ModelError where
    others are missing, or where one is not finite.
    """
    from safetensors import SafetensorError

    try:
        model, report = automatic.from_pretrained(
            path,
            dtype=getattr(torch, options.dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **arguments,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"can't load {path}: {first_line(error)}") from None
    if missing := sorted(key for key in report["missing_keys"] if not key.startswith(new or ("\0",))):
        raise ModelError(f"can't load {path}: it has no weights for {', '.join(missing[:3])}")
    check_finite(path, model)
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")  # Gemma 2's bound on attention, of which the usual one takes no notice
    return model.to(pick_device(options.device)).eval()


def check_finite(path: Path, module: nn.Module) -> None:
    """Raises ModelError, which names the first weight that is not finite."""
    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(f"{path}: the weight {name} has values that are not finite; the model is damaged")


def pick_device(device: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def pad(rows: Sequence[Sequence[int]], token: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, [B, T] each, padded on the right."""
    longest = max(len(row) for row in rows)
    ids_BT = torch.tensor([[*row, *[token] * (longest - len(row))] for row in rows])
    mask_BT = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids_BT, mask_BT


def _strip(row: list[int], token: int | None) -> list[int]:
    end = len(row)
    while token is not None and end > 1 and row[end - 1] == token:
        end -= 1
    return row[:end]
