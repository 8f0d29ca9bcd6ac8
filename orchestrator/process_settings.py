"""What the processes of a job are started with: the settings of an engine and of the learner, by its spec."""

from __future__ import annotations

import os

from orchestrator.spec import JobSpec
from policies.learner import LearnerSettings
from policies.lora import Lora
from policies.losses import ClippedSurrogate
from policies.rollout import EngineSettings
from policies.weight_sync import Transport


def engine_settings(spec: JobSpec, model: str, device: str, transport: Transport) -> EngineSettings:
    rollout = spec.rollout
    return EngineSettings(
        model=model,
        revision=spec.policy.revision,
        dtype=spec.policy.dtype,
        device=device,
        seed=spec.seed,
        max_model_len=spec.policy.max_model_len,
        max_num_seqs=rollout.max_num_seqs,
        kv_cache_gib=rollout.kv_cache_gib,
        gpu_memory_utilization=rollout.memory_share(is_shared=transport == "ipc"),
        tensor_parallel=rollout.tensor_parallel,
        prefix_caching=rollout.prefix_caching,
        enforce_eager=rollout.enforce_eager,
        transport=transport,
        sleep=rollout.sleep and transport == "ipc",  # elsewhere the learner has a GPU, or a machine, of its own
        timeout_s=rollout.timeout_s,
        stall_s=rollout.stall_s,
    )


def learner_settings(spec: JobSpec, model: str, device: str) -> LearnerSettings:
    optimizer, loss = spec.optimizer, spec.loss
    evaluated = spec.evaluation.sampling(spec.rollout)
    # Where the optimiser works, or what several share is loaded and tried; unasked, Ray would give it one thread.
    on_host = device == "cpu" or spec.policy.cpu_offload or spec.resources.learner_ranks > 1
    return LearnerSettings(
        model=model,
        revision=spec.policy.revision,
        dtype=spec.policy.dtype,
        device=device,
        threads=spec.resources.learner_threads
        or (max(1, (os.cpu_count() or 1) // spec.resources.learner_ranks) if on_host else None),
        seed=spec.seed,
        temperature=spec.rollout.temperature,
        evaluated_temperature=spec.evaluation.temperature,
        evaluated_top_p=evaluated.top_p,
        evaluated_top_k=evaluated.top_k,
        evaluated_min_p=evaluated.min_p,
        lr=optimizer.lr,
        betas=optimizer.betas,
        weight_decay=optimizer.weight_decay,
        warmup_steps=optimizer.warmup_steps,
        schedule=optimizer.schedule,
        min_lr_ratio=optimizer.min_lr_ratio,
        total_updates=spec.steps * optimizer.minibatches,
        max_grad_norm=optimizer.max_grad_norm,
        minibatches=optimizer.minibatches,
        tokens_per_microbatch=optimizer.tokens_per_microbatch,
        packing=optimizer.packing,
        share_prompts=optimizer.share_prompts,
        surrogate=ClippedSurrogate(
            clip_low=loss.clip_low,
            clip_high=loss.clip_high,
            importance_cap=loss.importance_cap,
            dual_clip=loss.dual_clip,
            ratio=loss.ratio,
            form=loss.form,
        ),
        aggregation=loss.aggregation,
        mask_truncated=loss.mask_truncated,
        max_tokens=spec.rollout.max_tokens,
        max_model_len=spec.policy.max_model_len,
        kl_coef=loss.kl_coef,
        gradient_checkpointing=spec.policy.gradient_checkpointing,
        cpu_offload=spec.policy.cpu_offload,
        compile=spec.policy.compile and device == "cuda",
        lora=None if spec.policy.lora is None else Lora(**spec.policy.lora.model_dump() | {"merge": spec.merges}),
        gramian=spec.gramian.mode if spec.measures_gradients else None,
        sketch_width=spec.gramian.sketch_width,
        response_share=spec.gramian.response_share,
    )
