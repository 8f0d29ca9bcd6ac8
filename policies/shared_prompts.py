"""A prompt that several rollouts continue goes through the model once, not once for each.

A microbatch becomes one row of n tokens without padding: every prompt that differs, then every completion; a prompt's
only completion follows it at once. Most of a model treats tokens alone and never notices; attention alone looks back,
and there each completion is given its prompt's keys and values beside its own. Values and gradients are those of the
plain way; with G rollouts of a prompt of P tokens and completions of T on average, the model sees P + G T tokens where
it saw G (P + T). The idea is that of Prefix Grouper (arXiv 2506.05433).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ATTENTION = "shared_prompts"  # the name under which transformers finds `attend`


@dataclass(frozen=True, kw_only=True)
class Part:
    """Queries that attend together: b rows of q of the n tokens, and the s that each row may look at."""

    query_bq: Tensor
    key_bs: Tensor
    mask_b1qs: Tensor | None  # None: query i sees the keys up to i

    def to(self, device: torch.device) -> Part:
        mask_b1qs = None if self.mask_b1qs is None else self.mask_b1qs.to(device)
        return Part(query_bq=self.query_bq.to(device), key_bs=self.key_bs.to(device), mask_b1qs=mask_b1qs)


@dataclass(frozen=True, kw_only=True)
class SharedPrompts:
    """How the n tokens of a row look back."""

    parts: tuple[Part, ...]
    place_n: Tensor  # of each token among the queries of all parts, one part after the other

    def model_inputs(self) -> dict[str, Any]:
        """Beside tokens and positions: itself, for `attend`, and a mask of four dimensions, so that none is made."""
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.place_n.device)
        return {"shared_prompts": self, "attention_mask": mask}


class UnsupportedAttentionError(ValueError):
    """Attention that is not every token's view of all before it."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    shared_prompts: SharedPrompts | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention as transformers calls it (1 x heads x n x d), whose tokens look back as told.

    Without `shared_prompts` it is transformers' own. Raises UnsupportedAttentionError for a sliding window, and in a
    model that keeps `shared_prompts` to itself.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa

    if shared_prompts is None:
        if attention_mask is not None and attention_mask.numel() == 1 < query.shape[2]:
            raise UnsupportedAttentionError("it does not hand on what its attention is told")
        found: tuple[Tensor, Tensor | None] = sdpa(module, query, key, value, attention_mask, **options)
        return found
    if options.get("sliding_window") is not None:
        raise UnsupportedAttentionError("its attention forgets what is far back")
    query_nHd, key_nhd, value_nhd = (x[0].transpose(0, 1) for x in (query, key, value))
    outputs = []
    for part in shared_prompts.parts:
        q, k, v = _taken(query_nHd, part.query_bq), _taken(key_nhd, part.key_bs), _taken(value_nhd, part.key_bs)
        out_bqHd = sdpa(module, q, k, v, part.mask_b1qs, **options)[0]
        outputs.append(out_bqHd.flatten(0, 1))
    return torch.cat(outputs).index_select(0, shared_prompts.place_n).unsqueeze(0), None


def _taken(values_nhd: Tensor, places_bq: Tensor) -> Tensor:
    """b x h x q x d."""
    return values_nhd.index_select(0, places_bq.flatten()).unflatten(0, places_bq.shape).transpose(1, 2)


def obstacle(model: Any) -> str | None:
    """Why a model can't share prompts, as far as its config tells; windows that only its mask knows are told there."""
    config = model.config.get_text_config()
    if getattr(model.config, "_attn_implementation", None) != "sdpa" or not model._supports_attention_backend:
        return "it does not ask transformers for sdpa"
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        return f"its layers are {', '.join(sorted(set(config.layer_types)))}"
    limits = [name for name in ("sliding_window", "attention_chunk_size") if getattr(config, name, None) is not None]
    return f"its attention forgets what is far back ({', '.join(limits)})" if limits else None


def enable(model: Any) -> None:
    """Lets a model share prompts that has no `obstacle`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)


def disable(model: Any) -> None:
    """Leaves a model as it was before `enable`."""
    model.set_attn_implementation("sdpa")
