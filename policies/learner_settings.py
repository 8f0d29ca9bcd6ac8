"""What a learner is told; plain constants, explained where a job's spec names them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from policies.gramian import Mode
from policies.lora import Lora
from policies.losses import Aggregation, ClippedSurrogate
from policies.memory import CHUNK_LOGITS
from policies.types import Rollout


@dataclass(frozen=True, kw_only=True)
class LearnerSettings:
    """Plain constants of the learner; see the job spec for their meaning."""

    model: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    threads: int | None = None
    seed: int = 0
    temperature: float = 1.0
    evaluated_temperature: float = 1.0  # with which held-out figures are sampled; 0 is greedy
    evaluated_top_p: float = 1.0
    evaluated_top_k: int = 0
    evaluated_min_p: float = 0.0
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    min_lr_ratio: float = 0.0
    total_updates: int = 1000
    max_grad_norm: float = 1.0
    minibatches: int = 1
    tokens_per_microbatch: int = 16_384
    packing: bool = False
    share_prompts: bool = True
    chunk_logits: int = CHUNK_LOGITS
    surrogate: ClippedSurrogate = field(default_factory=ClippedSurrogate)
    aggregation: Aggregation = "token_mean"
    mask_truncated: bool = False
    max_tokens: int = 1024
    max_model_len: int | None = None  # of the engines
    kl_coef: float = 0.0
    gradient_checkpointing: bool = False
    cpu_offload: bool = False
    compile: bool = False
    lora: Lora | None = None  # None: every parameter learns
    gramian: Mode | None = "exact"  # None: nobody asks for the objectives' gradients
    sketch_width: int = 16
    response_share: float = 0.25

    def learns_from(self, rollout: Rollout) -> bool:
        """Whether its tokens have a share in the loss."""
        return not (self.mask_truncated and rollout.truncated)


def learning_rate(settings: LearnerSettings) -> Callable[[int], float]:
    """Factor on the peak rate after n updates: linear warm-up from 1/warmup, then the schedule down to its least."""
    least = settings.min_lr_ratio

    def factor(update: int) -> float:
        if update < settings.warmup_steps:
            return (update + 1) / settings.warmup_steps
        if settings.schedule == "constant":
            return 1.0
        done = (update - settings.warmup_steps) / max(1, settings.total_updates - settings.warmup_steps)
        done = min(1.0, done)
        left = 1 - done if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return least + (1 - least) * left

    return factor
