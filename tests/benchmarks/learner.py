"""The learner's memory and speed: chunks of the head, packed rows, ranks.

    python -m tests.benchmarks.learner [logprobs] [packing] [ranks] [lora] [checkpoint]

logprobs: the memory of a head over 150,000 words, its gradient included, in chunks and at once, and the time of both in
a pass through a policy of half a billion parameters, of which the head is a quarter. packing: an update on rollouts of
the quickstart's lengths and others, padded, in rows of several, and in one row with each prompt once. ranks: 20 steps
of two ranks and of one, and how far their losses are apart. lora: what a sync hands to an engine of an adapter, and of
the whole policy, and their checkpoints. checkpoint: how long a save keeps the learner from its next update. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.machine import machine

Figures = dict[str, Any]
RESULTS = Path(__file__).parent / "results" / "learner.json"
VOCABULARY, HIDDEN, INTERMEDIATE, LAYERS = 150_000, 896, 4864, 24  # as Qwen2.5-0.5B
ROWS = 8
WHOLE = 10**15  # logits in a chunk: all


def make_pass(layers: int, completion: int) -> Callable[[int], float]:
    """Seconds that log-probabilities and their gradient take, for a number of logits in a chunk."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from policies.batching import make_rows
    from policies.scorer import Scorer
    from policies.types import Rollout

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_hidden_layers=layers,
        num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    one = Rollout(
        prompt_tokens=(5,), tokens=tuple(range(completion)), logprobs=(-12.0,) * completion, text="", truncated=True,
        policy_version=0,
    )  # fmt: skip
    rows = make_rows([one] * ROWS, list(range(ROWS)), torch.device("cpu"))

    def run(chunk_logits: int) -> float:
        model.zero_grad()
        scorer = Scorer(model, chunk_logits=chunk_logits)
        start = time.perf_counter()
        scorer(rows)[0].sum().backward()
        return time.perf_counter() - start

    return run


def peak_gib(chunk_logits: int) -> float:
    """Memory beside what was there before, of a head and one layer."""
    run = make_pass(layers=1, completion=384)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status_kib("VmRSS")
    run(chunk_logits)
    return (_status_kib("VmHWM") - before) / 2**20


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure_logprobs(rounds: int = 7) -> Figures:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from policies.memory import CHUNK_LOGITS

    peaks = []
    for chunk in (WHOLE, CHUNK_LOGITS):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            peaks.append(pool.submit(peak_gib, chunk).result())
    run = make_pass(LAYERS, completion=64)
    pairs = [(run(WHOLE), run(CHUNK_LOGITS)) for _ in range(rounds + 1)][1:]  # in turns: both see the same machine
    return {
        "logprob_peak_gib": [round(peak, 2) for peak in peaks],
        "logprob_memory_ratio": round(peaks[1] / peaks[0], 3),
        "logprob_pass_s": [round(median(times), 2) for times in zip(*pairs, strict=True)],
        "logprob_slowdown": round(median(chunked / whole for whole, chunked in pairs), 3),
    }


def quickstart_rollouts(count: int, seed: int = 0) -> list[Any]:
    """Of the lengths that the quickstart's policy writes: mostly compact answers, some short, some verbose."""
    from policies.quickstart import Recipe
    from policies.types import Rollout

    rng = random.Random(seed)
    recipe = Recipe()
    made = []
    for _ in range(count):
        draw = rng.random()
        short, compact = draw < recipe.short_share, draw < recipe.short_share + recipe.compact_share
        length = rng.randint(4, 7) if short else rng.randint(16, 32) if compact else rng.randint(32, 48)
        prompt = tuple(rng.randrange(5, 20) for _ in range(rng.randint(8, 20)))
        tokens = tuple(rng.randrange(5, 20) for _ in range(length))
        made.append(
            Rollout(
                prompt_tokens=prompt, tokens=tokens, logprobs=(-3.0,) * length, text="", truncated=False,
                policy_version=0,
            )
        )  # fmt: skip
    return made


def quickstart_sized_policy(folder: Path) -> str:
    """An untrained policy of the quickstart's size; its tokenizer is never used."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from policies.quickstart import MAX_POSITIONS, Recipe

    recipe = Recipe()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64, hidden_size=recipe.hidden_size, intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads, num_key_value_heads=recipe.heads,
        head_dim=recipe.hidden_size // recipe.heads, max_position_embeddings=MAX_POSITIONS, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return str(folder)


def groups(count: int, *, prompt: int, tokens: tuple[int, int], seed: int = 0) -> list[Any]:
    """`count` prompts with 8 rollouts each, of lengths evenly between two."""
    from policies.types import Rollout

    rng = random.Random(seed)
    made = []
    for _ in range(count):
        first = tuple(rng.randrange(5, 20) for _ in range(prompt))
        for _ in range(8):
            ids = tuple(rng.randrange(5, 20) for _ in range(rng.randint(*tokens)))
            made.append(
                Rollout(
                    prompt_tokens=first, tokens=ids, logprobs=(-3.0,) * len(ids), text="", truncated=False,
                    policy_version=0,
                )
            )  # fmt: skip
    return made


LAYOUTS: dict[str, Figures] = {
    "padded": {"share_prompts": False},
    "rows": {"share_prompts": False, "packing": True},  # of several rollouts, where a model can't share prompts
    "shared": {"packing": True},
}


def measure_packing(rounds: int = 9) -> Figures:
    """Tokens a second of an update, alternating, so that all see the same machine.

    Of 256 rollouts of quickstart lengths and prompts of their own, as `packing_gain` has it; of 32 quickstart prompts
    with 8 rollouts each; and of prompts four times as long as their completions.
    """
    import torch

    from policies.learner import Learner, LearnerSettings

    batches = {
        "": quickstart_rollouts(256),
        "_groups": groups(32, prompt=9, tokens=(4, 32)),
        "_long_prompts": groups(8, prompt=160, tokens=(20, 60)),
    }
    with tempfile.TemporaryDirectory(prefix="equipoise-") as folder:
        policy = quickstart_sized_policy(Path(folder))
        learners = {
            name: Learner(LearnerSettings(model=policy, tokens_per_microbatch=4096, gramian=None, **changes))
            for name, changes in LAYOUTS.items()
        }
    found: Figures = {}
    for suffix, batch in batches.items():
        tokens = sum(len(one.prompt_tokens) + len(one.tokens) for one in batch)
        advantages_B = torch.linspace(-1, 1, len(batch))
        seconds: dict[str, list[float]] = {name: [] for name in learners}
        for _ in range(rounds + 1):
            for name, learner in learners.items():
                start = time.perf_counter()
                learner.learn(batch, advantages_B)
                seconds[name].append(time.perf_counter() - start)
        speeds = {name: tokens / median(times[1:]) for name, times in seconds.items()}
        found |= {
            f"tokens_per_s{suffix}": {name: round(speed) for name, speed in speeds.items()},
            f"packing_gain{suffix}": round(speeds["shared"] / speeds["padded"], 3),
            f"rows_gain{suffix}": round(speeds["rows"] / speeds["padded"], 3),
        }
    return found


def twenty_steps(policy: str) -> list[float]:
    """Losses of steps with three objectives whose gradients are compared exactly."""
    import torch

    from policies.learner import Learner, LearnerSettings
    from policies.types import ObjectiveAdvantages

    learner = Learner(LearnerSettings(model=policy, threads=1, lr=3e-4, kl_coef=0.05, minibatches=2))
    losses = []
    for seed in range(20):
        batch = quickstart_rollouts(32, seed)
        advantages_BK = torch.randn(32, 3, generator=torch.Generator().manual_seed(seed))
        weights_K = torch.ones(3) / 3
        learner.gramian(batch, advantages_BK)
        parts = ObjectiveAdvantages(advantages_BK=advantages_BK, weights_K=weights_K)
        losses.append(learner.learn(batch, advantages_BK @ weights_K, parts=parts).loss)
    return losses


def rank_main(rank: int, policy: str, folder: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    losses = twenty_steps(policy)
    if rank == 0:
        Path(folder, "losses.json").write_text(json.dumps(losses))
    dist.destroy_process_group()


def measure_ranks() -> Figures:
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory(prefix="equipoise-") as folder:
        policy = quickstart_sized_policy(Path(folder))
        alone = twenty_steps(policy)
        mp.spawn(rank_main, args=(policy, folder), nprocs=2)
        together = json.loads(Path(folder, "losses.json").read_text())
    apart = max(abs(one - other) for one, other in zip(alone, together, strict=True))
    return {"steps": len(alone), "fsdp_max_diff": apart, "loss_range": [min(alone), max(alone)]}


class _Measured:
    """An engine that takes an update, and remembers what it was handed."""

    def __init__(self) -> None:
        self.bytes = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...
    def start_weight_update(self) -> None: ...
    def finish_weight_update(self, weight_version: str | None = None) -> None: ...
    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.bytes = Path(update_info["path"]).stat().st_size


def measure_lora() -> Figures:
    """Bytes that a sync hands to an engine on this machine, and those of a checkpoint: an adapter's, and a policy's.

    Of the quickstart policy as files; reckoned for one with the dimensions of Qwen2.5-0.5B, where rank weighs less.
    """
    import torch

    from policies.learner import Learner, LearnerSettings
    from policies.lora import Lora
    from policies.sizes import adapter_size, size_of
    from policies.weight_sync import Collected, SharedMemorySender

    sent: dict[int, int] = {}
    state: dict[int, int] = {}
    checkpoint: dict[int, int] = {}
    with tempfile.TemporaryDirectory(prefix="equipoise-") as folder:
        policy = quickstart_sized_policy(Path(folder, "policy"))
        for rank in (0, 4, 16):
            lora = Lora(rank=rank, alpha=2.0 * rank) if rank else None
            learner, engine = Learner(LearnerSettings(model=policy, gramian=None, lora=lora)), _Measured()
            learner.learn(quickstart_rollouts(8), torch.linspace(-1, 1, 8))
            SharedMemorySender(Collected(learner, "shared_memory"), engine).send(1)
            sent[rank] = engine.bytes
            kept = Path(folder, f"state-{rank}")
            kept.mkdir()
            learner.save_state(kept)
            state[rank] = _bytes_in(kept)
            learner.save_policy(kept / "policy")
            checkpoint[rank] = _bytes_in(kept)
        size = size_of(Path(policy))
    larger = larger_size()
    return {
        "bytes_sent": sent,
        "lora_bytes_ratio": round(sent[4] / sent[0], 4),
        "lora_bytes_ratio_rank_16": round(sent[16] / sent[0], 4),
        "learner_state_ratio": round(state[4] / state[0], 4),
        "checkpoint_bytes": checkpoint,
        "checkpoint_ratio": round(checkpoint[4] / checkpoint[0], 4),
        "reckoned_ratio": round(adapter_size(size, rank=4).parameters / size.parameters, 4),
        "reckoned_ratio_0.5B_rank_16": round(adapter_size(larger, rank=16).parameters / larger.parameters, 4),
    }


def _bytes_in(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def larger_size() -> Any:
    """Of a policy as Qwen2.5-0.5B, by its published dimensions."""
    from policies.sizes import ModelSize

    width, cached, inner = HIDDEN, 128, INTERMEDIATE
    block = {"q_proj": (width, width), "k_proj": (cached, width), "v_proj": (cached, width), "o_proj": (width, width)}
    block |= {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
    shapes = {f"layers.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in block.items()}
    return ModelSize(shapes=shapes | {"embed_tokens": (VOCABULARY, width)}, dimensions=None)


def measure_checkpoint(rounds: int = 5) -> Figures:
    """How long a save keeps a learner of some 50 M parameters from its next update: its files written, or copied."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from policies.learner import Learner, LearnerSettings

    batch = quickstart_rollouts(8)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory(prefix="equipoise-") as folder:
        policy, state = Path(folder) / "policy", Path(folder) / "state"
        config = LlamaConfig(
            vocab_size=32_000, hidden_size=512, intermediate_size=1536, num_hidden_layers=10, num_attention_heads=8,
            num_key_value_heads=8, tie_word_embeddings=True,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(policy)
        (policy / "tokenizer.json").write_text("{}")
        learner = Learner(LearnerSettings(model=str(policy), gramian=None))
        learner.learn(batch, torch.linspace(-1, 1, len(batch)))  # makes the moments
        for beside in [False, True] * (rounds + 1):
            shutil.rmtree(state, ignore_errors=True)
            state.mkdir()
            start = time.perf_counter()
            if beside:
                saving = learner.begin_save(state / "policy", state)
                seconds[True].append(time.perf_counter() - start)
                saving.result()
            else:
                learner.save_policy(state / "policy")
                learner.save_state(state)
                seconds[False].append(time.perf_counter() - start)
        size = sum(file.stat().st_size for file in state.rglob("*") if file.is_file())
    pauses = [median(seconds[beside][1:]) for beside in (False, True)]
    return {
        "checkpoint_gib": round(size / 2**30, 2),
        "checkpoint_pause_s": [round(pause, 3) for pause in pauses],
        "checkpoint_pause_ratio": round(pauses[1] / pauses[0], 3),
    }


SECTIONS = {
    "logprobs": measure_logprobs,
    "packing": measure_packing,
    "ranks": measure_ranks,
    "lora": measure_lora,
    "checkpoint": measure_checkpoint,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="all when absent")
    chosen = parser.parse_args().sections or list(SECTIONS)
    kept: Figures = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in chosen:
        kept[name] = {**SECTIONS[name](), "machine": machine()}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    table = Table("section", "figure", "value")
    figures: Figures = {}
    for section in chosen:
        for name, value in kept[section].items():
            table.add_row(section, name, str(value))
            figures[name] = value
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
