"""A whole training step, ours beside TRL's GRPOTrainer: completions a second, and where the time goes.

    python -m tests.benchmarks.step --trl-python PATH [--policies quickstart 3m] [--rounds 5] [--steps 5]

Processes on the same machine take turns, `steps` steps each in every round, so that all see the same load; the first
round is not counted. Beside TRL's and ours there is ours one step off (`rollout.mode: overlapped`), with one engine,
and a thread each for it and the learner: what it has begun for its next turn is waited for in this one. All train the
same policy in float32 with AdamW on the same prompts in the same order and through the same chat template, 32 prompts x
8 completions of at most 64 tokens, three rewards by the same code, advantages normalised by objective and then summed,
one clipped update a step. Ours is the loop of a job on two vLLM engines of a thread each and one learner, without Redis
(a few ms a step) and held-out evaluations. The learning rate is so small that both keep the lengths of the policy they
began with; an update costs what it costs. TRL generates with transformers: its vLLM mode starts on CPU, but its first
weight sync fails on weights that vLLM has packed. Policies: the quickstart's, whose completions are of mixed lengths,
and an untrained one of 3.4 M parameters. `ratio` is ours, step by step, over TRL's, in completions a second;
`ratio_tokens` in tokens, as lengths differ by chance.

PATH is a Python that has trl and datasets beside what is in requirements/cpu.txt; without it nothing is measured. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from orchestrator.actors.threads import WAITING

Figures = dict[str, Any]
RESULTS = Path(__file__).parent / "results" / "step.json"
POLICIES = ("quickstart", "3m")
SIDES = ("ours", "overlapped", "trl")
PROMPTS, GROUP, MAX_TOKENS = 32, 8, 64
REWARDS = {"math": 0.6, "conciseness": 0.2, "clarity": 0.2}
LR, BETAS = 1e-9, (0.9, 0.95)  # a policy that moved would write longer or shorter completions on one side
ENGINES = 2  # of a thread each, as there are cores: what is not arithmetic in decoding goes side by side too
READY_S, ROUND_S = 600.0, 600.0
SETTLE = "settle"
MARK = "figures:"  # before a worker's line; libraries write to the same stream


# ---------------------------------------------------------------------------------------------------------- workers


def spec_of(policy: str, mode: str = "sync") -> Any:
    """The job, as all sides run it."""
    from orchestrator.spec import parse_spec

    engines, threads = ENGINES, {"engine_threads": 1}
    if mode == "overlapped":
        engines, threads = 1, threads | {"learner_threads": 1}
    return parse_spec(
        {
            "name": "step",
            "steps": 100_000,
            "policy": {"model": policy, "dtype": "float32"},
            "data": {"type": "quickstart"},
            "objectives": [
                {"name": name, "reward": {"name": name}, "weight": weight} for name, weight in REWARDS.items()
            ],
            "rollout": {
                "prompts_per_step": PROMPTS,
                "rollouts_per_prompt": GROUP,
                "max_tokens": MAX_TOKENS,
                "kv_cache_gib": 0.5,
                "mode": mode,
                "engines": engines,
            },
            "weighting": {"name": "fixed"},
            "optimizer": {"lr": LR, "betas": BETAS, "tokens_per_microbatch": 8192},
            "evaluation": {"every": 100_000},
            "checkpoints": {"every": 100_000},
            "resources": {"device": "cpu", **threads},
        }
    )


def train_prompts(state_dir: Path, spec: Any) -> list[Any]:
    """In the order in which both take them."""
    from orchestrator.inputs import split_files
    from orchestrator.rollouts.prompts import PromptOrder, load_prompts

    train = split_files(spec, state_dir, "local")["train"]
    prompts = load_prompts(train.paths[0], train.columns, limit=train.limit)
    return [prompts[i] for i in PromptOrder(len(prompts), seed=spec.seed).take(len(prompts))]


def serve_steps(steps: Iterator[Figures], settle: Callable[[], None]) -> None:
    """Says that it is ready; then a line of figures for each step that a line of input asks for, or when all rests."""
    print(MARK, json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        if line.strip() == SETTLE:
            start = time.perf_counter()
            settle()
            print(MARK, json.dumps({"seconds": time.perf_counter() - start}), flush=True)
        else:
            print(MARK, json.dumps(next(steps)), flush=True)


def ours(policy: str, state_dir: Path, mode: str) -> None:
    from orchestrator.build import build
    from orchestrator.loop import Loop
    from orchestrator.storage.checkpoint_store import CheckpointStore
    from tests.loop_fakes import MemoryJournal, World

    spec = spec_of(policy, mode)
    parts = build(spec, state_dir)
    folder = state_dir / "checkpoints"
    folder.mkdir(exist_ok=True)
    journal: Any = MemoryJournal(spec, World())
    loop = Loop(spec, parts, journal, CheckpointStore(folder), fence=1)

    def steps() -> Iterator[Figures]:
        for step in itertools.count(1):
            start = time.perf_counter()
            loop.step(step)
            seconds = time.perf_counter() - start
            record = journal.records[step]
            timings = record["timings_s"]
            yield {
                "seconds": seconds,
                "tokens": record["mean_tokens"],
                "generate": timings["rollout"],
                "learn": timings["learn"],
                "sync": timings["sync"],
            }

    try:
        serve_steps(steps(), loop.collector.ahead.settle)
    finally:
        parts.close()


def trl(policy: str, state_dir: Path) -> None:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    spec = spec_of(policy)
    rows = [
        {"prompt": [{"role": "user", "content": prompt.content}], "answer": prompt.answer}  # for the chat template
        for prompt in train_prompts(state_dir, spec)
    ]
    spent: dict[str, float] = {}
    tokens: list[float] = []

    class Turns(TrainerCallback):  # type: ignore[misc]
        """A step when it is asked for."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not sys.stdin.readline():
                os._exit(0)
            spent.clear()
            tokens.clear()
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds = time.perf_counter() - self.start
            rest = seconds - spent["generate"] - spent["score"]
            figures = {"seconds": seconds, "tokens": sum(tokens) / len(tokens), "learn": rest, **spent}
            print(MARK, json.dumps(figures), flush=True)

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - start

        return run

    arguments = GRPOConfig(
        output_dir=str(state_dir / "trl"), use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False,
        per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP, max_completion_length=MAX_TOKENS,
        temperature=1.0, top_p=1.0, top_k=0, learning_rate=LR, adam_beta1=BETAS[0], adam_beta2=BETAS[1],
        lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, beta=0.0, epsilon=0.2, epsilon_high=0.28,
        num_iterations=1, steps_per_generation=1, gradient_accumulation_steps=1, loss_type="dapo",
        multi_objective_aggregation="normalize_then_sum", reward_weights=list(REWARDS.values()), shuffle_dataset=False,
        max_steps=100_000, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=[scoring(name, tokens) for name in REWARDS],
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        callbacks=[Turns()],
    )
    trainer._generate = timed("generate", trainer._generate)
    trainer._calculate_rewards = timed("score", trainer._calculate_rewards)
    print(MARK, json.dumps({"ready": True}), flush=True)
    trainer.train()


def scoring(name: str, lengths: list[float]) -> Callable[..., list[float | None]]:
    """One of our rewards as TRL calls them."""
    from rewards import registry
    from rewards.base import RewardBatch

    reward = registry.build(name, {})

    def score(prompts: Any, completions: Any, completion_ids: Any, answer: Any, **_: Any) -> list[float | None]:
        counts = tuple(len(ids) for ids in completion_ids)
        lengths[:] = counts
        batch = RewardBatch(
            prompts=tuple(messages[0]["content"] for messages in prompts),
            completions=tuple(messages[0]["content"] for messages in completions),
            answers=tuple(answer), completion_tokens=counts,
            truncated=tuple(count >= MAX_TOKENS for count in counts), max_tokens=MAX_TOKENS,
        )  # fmt: skip
        return list(reward.score(batch))

    score.__name__ = name
    return score


# ----------------------------------------------------------------------------------------------------------- parent


class Worker:
    """One side, in a process of its own."""

    def __init__(self, side: str, python: str, policy: str, state_dir: Path, log: Path) -> None:
        command = [python, "-m", "tests.benchmarks.step", "--worker", side, "--policy-dir", policy]
        command += ["--state-dir", str(state_dir)]
        self.side, self.log = side, log
        self.errors = log.open("w")
        waiting = os.environ | WAITING  # as our jobs have it: threads that spin would slow the other
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=waiting
        )

    def read(self) -> Figures:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                found: Figures = json.loads(line.removeprefix(MARK))
                return found
        raise SystemExit(f"{self.side} ended: {self.log.read_text()[-3000:]}")

    def turn(self, steps: int) -> list[Figures]:
        """So many steps; the last one's seconds have in them what was begun beyond it."""
        found = [self._ask("") for _ in range(steps)]
        if self.side == "overlapped":
            found[-1]["seconds"] += self._ask(SETTLE)["seconds"]
        return found

    def _ask(self, line: str) -> Figures:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        self.process.wait(60)
        self.errors.close()


def make_larger(folder: Path) -> Path:
    """An untrained Llama of 3.4 M parameters that reads the quickstart's prompts."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from policies.quickstart import _make_tokenizer

    tokenizer = _make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def directory_of(name: str, state_dir: Path) -> Path:
    if name == "3m":
        return make_larger(state_dir / "larger")
    from policies.quickstart import ensure_policy

    return ensure_policy(Path(os.environ.get("EQUIPOISE_STATE_DIR", state_dir)) / "policies", show_progress=False)


def measure(name: str, trl_python: str, rounds: int, steps: int) -> Figures:
    with tempfile.TemporaryDirectory(prefix="equipoise-") as folder:
        state_dir = Path(folder)
        policy = str(directory_of(name, state_dir))
        workers = []
        try:
            for side in SIDES:
                python = trl_python if side == "trl" else sys.executable
                (state_dir / side).mkdir()
                workers.append(Worker(side, python, policy, state_dir / side, state_dir / f"{side}.log"))
                workers[-1].read()
            told: dict[str, list[list[Figures]]] = {worker.side: [] for worker in workers}
            for i in range(rounds + 1):
                for worker in workers:
                    turn = worker.turn(steps)
                    told[worker.side] += [turn] if i else []
        finally:
            for worker in workers:
                worker.close()
    sides = {side: summary(found) for side, found in told.items()}
    ratios = {
        f"ratio{suffix}{of}": round(sides[side][figure] / sides["trl"][figure], 2)
        for suffix, side in (("", "ours"), ("_overlapped", "overlapped"))
        for of, figure in (("", "completions_per_s"), ("_tokens", "tokens_per_s"))
    }
    return {**sides, **ratios, "rounds": rounds, "steps_per_round": steps}


def summary(turns: list[list[Figures]]) -> Figures:
    """Medians of the turns, and the spread of their speed."""
    found = [step for turn in turns for step in turn]
    speeds = sorted(PROMPTS * GROUP * len(turn) / sum(step["seconds"] for step in turn) for turn in turns)
    total = sum(step["seconds"] for step in found)
    stages = [name for name in ("generate", "score", "learn", "sync") if name in found[0]]
    shares = {name: round(sum(step[name] for step in found) / total, 3) for name in stages}
    lengths = [step["tokens"] for step in found]
    return {
        "completions_per_s": round(median(speeds), 1),
        "slowest_and_fastest": [round(speeds[0], 1), round(speeds[-1], 1)],
        "step_s": round(PROMPTS * GROUP / median(speeds), 3),
        "shares": shares | {"other": round(1 - sum(shares.values()), 3)},
        "tokens_per_s": round(PROMPTS * GROUP * sum(step["tokens"] for step in found) / total),
        "tokens_per_completion": [round(min(lengths), 1), round(median(lengths), 1), round(max(lengths), 1)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", help="a Python that has trl")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="of one side, before the other's turn")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--policy-dir", help=argparse.SUPPRESS)
    parser.add_argument("--state-dir", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        if options.worker == "trl":
            trl(options.policy_dir, options.state_dir)
        else:
            ours(options.policy_dir, options.state_dir, "sync" if options.worker == "ours" else "overlapped")
        return
    why = missing(options.trl_python)
    if why:
        print(f"skipped: {why}")
        return
    report(options)


def missing(python: str | None) -> str | None:
    """Why there is nothing to compare with; None where there is."""
    if python is None:
        return "name a Python that has trl and datasets (--trl-python)"
    done = subprocess.run([python, "-c", "import datasets, trl"], capture_output=True, text=True, check=False)
    return f"{python} can't import trl: {done.stderr.strip()[-300:]}" if done.returncode else None


def report(options: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from tests.benchmarks.machine import machine

    kept: Figures = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    table = Table("policy", "side", "figure", "value")
    line: Figures = {}
    for name in options.policies:
        load = [round(load, 1) for load in os.getloadavg()]
        found = measure(name, options.trl_python, options.rounds, options.steps)
        kept[name] = {**found, "load_before": load, "machine": machine()}
        for figure in ("ratio", "ratio_tokens", "ratio_overlapped", "ratio_overlapped_tokens"):
            line[figure.replace("ratio", f"ratio_vs_trl_{name}", 1)] = found[figure]
        for side in SIDES:
            for figure, value in found[side].items():
                table.add_row(name, side, figure, str(value))
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    Console().print(table)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
