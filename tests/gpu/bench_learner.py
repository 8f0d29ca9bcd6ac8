"""The learner alone on one GPU: speed, share of the GPU's arithmetic, memory, and what comparing gradients costs.

    python -m tests.gpu.bench_learner [--sizes 0.5B 1.5B] [--device cuda]

Policies with random weights in bfloat16 arithmetic, rollouts of 2,048 tokens, three objectives. It needs torch,
transformers and some 80 GB of GPU memory, and neither Ray nor vLLM. `--sizes tiny --device cpu` tries it anywhere. A
part that does not fit is reported as such. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from policies.learner import Learner, LearnerSettings
from policies.lora import Lora
from policies.types import ObjectiveAdvantages, Rollout

K = 3
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # of dense bfloat16, as their makers state it
Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Size:
    """A policy's shape, and the batch that it is tried with."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    cached: int
    vocabulary: int = 151_936
    tokens: int = 2048  # of a rollout
    rollouts: int = 16


LORA = Lora(rank=16, alpha=32)
SIZES = {
    "0.5B": Size(hidden=896, intermediate=4864, layers=24, heads=14, cached=2),
    "1.5B": Size(hidden=1536, intermediate=8960, layers=28, heads=12, cached=2),
    "tiny": Size(hidden=32, intermediate=48, layers=2, heads=2, cached=1, vocabulary=64, tokens=16, rollouts=4),
}


def write_policy(size: Size, folder: Path) -> int:
    """Random weights as a Hugging Face directory; the number of parameters."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=size.vocabulary, hidden_size=size.hidden, intermediate_size=size.intermediate,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.cached,
        max_position_embeddings=max(size.tokens, 64), tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")  # never used
    return sum(parameter.numel() for parameter in model.parameters())


def make_rollouts(size: Size) -> list[Rollout]:
    """A quarter of each is prompt."""
    generator = torch.Generator().manual_seed(0)
    cut = size.tokens // 4
    made = []
    for _ in range(size.rollouts):
        ids = torch.randint(0, size.vocabulary, (size.tokens,), generator=generator).tolist()
        made.append(
            Rollout(
                prompt_tokens=tuple(ids[:cut]), tokens=tuple(ids[cut:]), logprobs=(-11.9,) * (size.tokens - cut),
                text="", truncated=True, policy_version=0,
            )
        )  # fmt: skip
    return made


def timed(run: Callable[[], object], device: str, rounds: int) -> float:
    """Median seconds, after one round that is not counted."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def measure_mode(
    policy: str, batch: list[Rollout], mode: Any, device: str, rounds: int, lora: Lora | None = None
) -> Figures:
    """Of an update with the objectives' gradients compared in this way, or not at all."""
    tokens = len(batch[0].prompt_tokens) + len(batch[0].tokens)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    settings = LearnerSettings(
        model=policy, device=device, dtype="bfloat16", lr=1e-6, gramian=mode, gradient_checkpointing=True,
        tokens_per_microbatch=4 * tokens, lora=lora,
    )  # fmt: skip
    learner = Learner(settings)
    advantages_BK = torch.randn(len(batch), K, generator=torch.Generator().manual_seed(1))
    parts = ObjectiveAdvantages(advantages_BK=advantages_BK, weights_K=torch.full((K,), 1 / K))

    def update() -> None:
        if mode == "exact":
            learner.gramian(batch, advantages_BK)
        learner.learn(batch, advantages_BK.mean(dim=1), parts=parts if mode else None)

    figures: Figures = {"update_s": timed(update, device, rounds)}
    figures["tokens_per_s"] = len(batch) * tokens / figures["update_s"]
    figures["weights_s"] = timed(learner.weights, device, rounds)  # to have them ready for a transport
    if device == "cuda":
        figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


def measure(size: Size, device: str, rounds: int = 3) -> Figures:
    """Of one size, by mode, and of a plain update with an adapter.

    `mfu` counts 6 operations a parameter and token, 4 where the parameters get no gradient; not what is computed twice.
    """
    batch = make_rollouts(size)
    found: Figures = {"rollouts": size.rollouts, "tokens": size.tokens}
    card = torch.cuda.get_device_name() if device == "cuda" else ""
    peak = next((flops for part, flops in PEAK_FLOPS.items() if part in card), None)
    with tempfile.TemporaryDirectory(prefix="equipoise-") as folder:
        found["parameters"] = write_policy(size, Path(folder))
        for name in ("plain", "lora", "exact", "sketch", "last_block", "step_response"):
            mode = None if name in ("plain", "lora") else name
            figures: Figures = {"fits": False}
            with contextlib.suppress(torch.OutOfMemoryError):
                figures = measure_mode(folder, batch, mode, device, rounds, LORA if name == "lora" else None)
                plain = found.get("plain", figures)
                figures["times_plain"] = figures["update_s"] / plain["update_s"] if "update_s" in plain else None
                figures["mfu"] = (
                    (4 if name == "lora" else 6) * found["parameters"] * figures["tokens_per_s"] / peak
                    if peak
                    else None
                )
            found[name] = figures
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["0.5B", "1.5B"])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    found: Figures = {name: measure(SIZES[name], options.device) for name in options.sizes}
    found["device"] = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    for size in options.sizes:
        for name, value in found[size].items():
            print(size, name, value)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
