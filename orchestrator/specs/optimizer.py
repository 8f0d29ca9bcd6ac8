"""The loss, and how a batch becomes updates."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.specs.base import Decay, Fraction, Positive, Spec


class LossSpec(Spec):
    """Clipped surrogate, and a KL penalty to the initial policy."""

    ratio: Literal["token", "sequence"] = Field(
        "token",
        description="what is clipped: each token's probability ratio, or the geometric mean of a completion's (GSPO, "
        "arXiv 2507.18071), which goes with aggregation: sequence_mean, clip_low: 3e-4 and clip_high: 4e-4; both are 1 "
        "with optimizer.minibatches: 1",
    )
    form: Literal["ppo", "cispo"] = Field(
        "ppo",
        description="what the clip does: ppo takes tokens that moved too far out of the gradient; cispo (arXiv "
        "2506.13585) keeps them all, and clips the ratio that weighs each: clip_low: 1 has no lower end, clip_high: 4 "
        "is that of arXiv 2510.13786. Both are the same with optimizer.minibatches: 1",
    )
    clip_low: Fraction = Field(0.2, description="ratio is clipped at 1 - clip_low")
    clip_high: float = Field(0.28, ge=0, le=10, allow_inf_nan=False, description="ratio is clipped at 1 + clip_high")
    dual_clip: float | None = Field(
        None,
        gt=1,
        le=1000,
        allow_inf_nan=False,
        description="where the advantage is negative, the ratio counts as this at most (dual-clip PPO, arXiv "
        "1912.09729; verl's clip_ratio_c, TRL's delta): 3 is usual. Off when absent",
    )
    importance_cap: Positive = Field(
        2.0,
        description="truncation of learner/sampler probability ratios (engines round, and their weights may be older)",
    )
    kl_coef: float = Field(
        0.0,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="k3 KL to the initial policy; 0 loads no reference. A token's log-ratio counts as 20 at most: "
        "`kl_bounded` of a step has how many were beyond it",
    )
    mask_truncated: bool = Field(
        False,
        description="completions that were cut at rollout.max_tokens have no share in the loss (overlong filtering of "
        "DAPO, arXiv 2503.14476); their rewards are measured, and count in their groups' means and spreads",
    )
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = Field(
        "token_mean", description="constant divides by rollout.max_tokens (arXiv 2503.20783)"
    )


class OptimizerSpec(Spec):
    """AdamW and how a batch becomes updates."""

    lr: Positive = Field(1e-6, le=1, description="peak learning rate")
    betas: tuple[Decay, Decay] = Field((0.9, 0.95), description="decay of the gradient's mean and of its square")
    weight_decay: float = Field(0.0, ge=0, le=10, allow_inf_nan=False, description="decoupled, as AdamW has it")
    warmup_steps: int = Field(0, ge=0, description="updates over which the learning rate rises from 0")
    schedule: Literal["constant", "cosine", "linear"] = Field("constant", description="after the warm-up")
    min_lr_ratio: Fraction = Field(0.0, description="share of lr to which cosine and linear fall by the job's end")
    max_grad_norm: Positive = Field(1.0, description="clipping of the combined gradient's norm")
    max_skipped_steps: int = Field(
        3,
        ge=0,
        le=1000,
        description="an update whose gradient or loss is not finite is skipped (event update.skipped); steps in a row "
        "that may have such updates: the next one fails the job",
    )
    minibatches: int = Field(1, ge=1, le=1024, description="updates made from one batch of rollouts")
    tokens_per_microbatch: int = Field(
        16_384, ge=16, description="tokens of one forward pass of a rank, padding included"
    )
    packing: bool = Field(
        False, description="several short rollouts in one row of a forward pass, none of which sees another: no padding"
    )
    share_prompts: bool = Field(
        True,
        description="no padding in a microbatch, and a prompt goes through the policy once for all its rollouts there: "
        "where that saves a tenth of the tokens and the model allows it; not with policy.compile, nor where gradients "
        "of objectives are read off a backward pass",
    )
