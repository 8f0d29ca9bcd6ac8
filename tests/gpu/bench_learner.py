"""The learner alone on one GPU: speed, share of the GPU's arithmetic, memory, and what comparing gradients costs.

    python -m tests.gpu.bench_learner [--sizes 0.5B 1.5B] [--device cuda] [--rounds 3] [--no-engine]

Policies with random weights in bfloat16 arithmetic, rollouts of 2,048 tokens, three objectives; every parameter
trained or an adapter, activations computed twice (gradient checkpointing) or kept, blocks compiled or not. It needs
torch, transformers, peft and some 80 GB of GPU memory, and neither Ray nor vLLM; where vLLM is installed, an engine
on the same GPU is given the weights too. `--sizes tiny --device cpu` tries it anywhere. A part that does not fit is
reported as such. What the figures are held against comes last, each met, missed or not measured; the last line is
JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from policies.learner import Learner, LearnerSettings
from policies.lora import Lora
from policies.types import ObjectiveAdvantages, Rollout
from tests.gpu.engine_sync import engine_sender
from tests.tiny_policy import make_tokenizer

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


@dataclass(frozen=True, kw_only=True)
class Case:
    """A way of learning that is measured. `gramian`: how the objectives' gradients are compared; None: not at all."""

    gramian: Any
    whole: bool = False  # step_response looks at all prompts again, not at the share of them that is the default
    lora: bool = False
    checkpointing: bool = True
    compiled: bool = False  # with larger microbatches, for which it leaves room

    @property
    def name(self) -> str:
        words = [*(["lora"] if self.lora else []), *(["whole"] if self.whole else []), self.gramian or "plain"]
        words += ([] if self.checkpointing else ["kept"]) + (["compiled"] if self.compiled else [])
        return "_".join(words)

    @property
    def plain(self) -> str:
        """The name of the same without a comparison."""
        return Case(**{**asdict(self), "gramian": None, "whole": False}).name


APPROXIMATE = ("sketch", "last_block", "step_response")
CASES = [  # of each sort the plain one first
    Case(gramian=gramian, lora=lora, checkpointing=checkpointing)
    for lora, checkpointing, gramian in product((False, True), (True, False), (None, "exact", *APPROXIMATE))
] + [  # exact and sketch read every block, so that none can be compiled
    Case(gramian=gramian, lora=lora, checkpointing=checkpointing, compiled=True)
    for lora, checkpointing, gramian in product((False, True), (True, False), (None, "last_block", "step_response"))
]
CASES += [  # what the share is worth
    Case(gramian="step_response", whole=True, lora=lora, checkpointing=False) for lora in (False, True)
]
MFU_AT_LEAST = 0.40  # of a plain update of all parameters, at this size
MFU_SIZE = "1.5B"
TIMES_PLAIN_AT_MOST = 1.15  # of an update with an approximate comparison
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
    make_tokenizer().save_pretrained(folder)  # an engine reads it
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


def make_learner(policy: str, case: Case, size: Size, device: str) -> Learner:
    settings = LearnerSettings(
        model=policy, device=device, dtype="bfloat16", lr=1e-6, gramian=case.gramian,
        gradient_checkpointing=case.checkpointing, lora=LORA if case.lora else None,
        tokens_per_microbatch=(8 if case.compiled else 4) * size.tokens, compile=case.compiled,
    )  # fmt: skip
    return Learner(replace(settings, response_share=1.0) if case.whole else settings)


def free(device: str) -> None:
    """What earlier learners had."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure_case(policy: str, batch: list[Rollout], case: Case, size: Size, device: str, rounds: int) -> Figures:
    """Of an update. `sync_s`: to gather the weights, in the engines' dtype and merged, for a transport to take."""
    free(device)
    learner = make_learner(policy, case, size, device)
    advantages_BK = torch.randn(len(batch), K, generator=torch.Generator().manual_seed(1))
    parts = ObjectiveAdvantages(advantages_BK=advantages_BK, weights_K=torch.full((K,), 1 / K))

    def update() -> None:
        if case.gramian == "exact":
            learner.gramian(batch, advantages_BK)
        learner.learn(batch, advantages_BK.mean(dim=1), parts=parts if case.gramian else None)

    figures: Figures = {"update_s": timed(update, device, rounds)}
    figures["tokens_per_s"] = len(batch) * size.tokens / figures["update_s"]
    figures["sync_s"] = timed(learner.weights, device, rounds)
    if device == "cuda":
        figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


def measure_engine(policy: str, size: Size, device: str, rounds: int) -> Figures:
    """Of handing all weights to a vLLM engine beside the learner: until it samples from them."""
    free(device)
    learner = make_learner(policy, Case(gramian=None), size, device)
    with engine_sender(learner, policy, device, learner.settings.dtype) as sender:
        return {"engine_sync_s": timed(lambda: sender.send(1), device, rounds)}


def peak_flops(device: str) -> float | None:
    card = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((flops for part, flops in PEAK_FLOPS.items() if part in card), None)


def measure(size: Size, device: str, rounds: int = 3, *, engine: bool = False) -> Figures:
    """Of one size, by case.

    `mfu` counts 6 operations a parameter and token, 4 where the parameters get no gradient; not what is computed twice.
    `times_plain` is beside a plain update of the same sort: with or without adapter, activations kept or not.
    """
    batch = make_rollouts(size)
    found: Figures = {"rollouts": size.rollouts, "tokens": size.tokens}
    peak = peak_flops(device)
    with tempfile.TemporaryDirectory(prefix="equipoise-") as folder:
        found["parameters"] = write_policy(size, Path(folder))
        for case in CASES:
            if case.compiled and device == "cpu":
                continue  # wants a compiler for C++
            figures: Figures = {"fits": False}
            with contextlib.suppress(torch.OutOfMemoryError):
                figures = measure_case(folder, batch, case, size, device, rounds)
                plain_s = found.get(case.plain, figures).get("update_s")
                figures["times_plain"] = figures["update_s"] / plain_s if plain_s else None
                operations = (4 if case.lora else 6) * found["parameters"] * figures["tokens_per_s"]
                figures["mfu"] = operations / peak if peak else None
            found[case.name] = figures
            print(case.name, figures, flush=True)
        if engine:
            found["engine"] = measure_engine(folder, size, device, rounds)
            print("engine", found["engine"], flush=True)
    return found


def held_against_targets(found: Figures) -> list[Figures]:
    """Every figure that has a target, by size: with `word` met, missed or not measured."""
    judged = []
    for size, case in product(SIZES, CASES):
        figures = found.get(size, {}).get(case.name)
        if figures is None:
            continue
        if case.gramian in APPROXIMATE and not case.whole:
            judged.append(_judge(f"{size} {case.name}", figures, "times_plain", at_most=TIMES_PLAIN_AT_MOST))
        elif case.gramian is None and not case.lora and size == MFU_SIZE:
            judged.append(_judge(f"{size} {case.name}", figures, "mfu", at_least=MFU_AT_LEAST))
    return judged


def _judge(what: str, figures: Figures, name: str, **bound: float) -> Figures:
    value = figures.get(name)
    ((side, target),) = bound.items()
    met = value is not None and (value <= target if side == "at_most" else value >= target)
    word = "not measured" if value is None else "met" if met else "missed"
    return {"what": what, "figure": name, "value": value, **bound, "word": word}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["0.5B", "1.5B"])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-engine", action="store_true", help="none is started, whether vLLM is installed or not")
    options = parser.parse_args()
    engine = find_spec("vllm") is not None and not options.no_engine
    found: Figures = {}
    for name in options.sizes:
        print(name, flush=True)
        found[name] = measure(SIZES[name], options.device, options.rounds, engine=engine)
    found["device"] = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    found["targets"] = held_against_targets(found)
    for judged in found["targets"]:
        print(*(f"{key} {value}" for key, value in judged.items()))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
