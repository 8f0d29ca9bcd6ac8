"""What weighting costs: the learner's time and memory in every gramian mode, and how far each mode's weights stray.

    python -m tests.benchmarks.weighting [PART ...] [--rounds 15] [--device cuda --size 0.5b] [--seeds 2]

Parts: rules (hypervolume and the strategies' updates), cost (learner time beside a plain update, interleaved), memory
(peak, a process each), sketches (error of what was tried for a cheap Gramian), shares (error of a response of some
prompts beside that of all, on the quickstart's own batches; its policy is made first), drift (real quickstart jobs in
every mode; about two minutes each). Figures go to tests/benchmarks/results/weighting.json as each part ends, or to
weighting_cuda.json with --device cuda.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import moocore
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from orchestrator.specs.gramian import GramianSpec
from policies.capture import Capture
from policies.estimators import Gdpo
from policies.estimators.base import whitening_factor
from policies.gramian import SketchedGradients, influence_of_response, inner_products, response_part, separable
from policies.learner import Learner, LearnerSettings
from policies.meter import Meter
from policies.types import FrontStats, ObjectiveAdvantages, Objectives, Rollout, StepStats, UpdateOutcome
from policies.weighting import WEIGHTINGS
from tests.benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results"
MODES: dict[str, dict[str, Any]] = {
    **{mode: {"mode": mode} for mode in ("exact", "sketch", "last_block", "step_response")},
    "whole_response": {"mode": "step_response", "response_share": 1.0},
}
WAYS = ("plain", "full_passes", *MODES)
SHARES = (0.5, 0.4, 0.25, 0.125)
SIZES: dict[str, dict[str, int]] = {
    "small": {"hidden": 256, "layers": 8, "heads": 4, "vocabulary": 1024, "prompts": 8, "tokens": 64},
    "0.5b": {"hidden": 1024, "layers": 24, "heads": 16, "vocabulary": 32_000, "prompts": 16, "tokens": 512},
}
GROUP = 8
Figures = dict[str, Any]


# ------------------------------------------------------------------------------------------------------------- cost


def make_policy(directory: Path, size: dict[str, int]) -> str:
    """A Qwen3 of random weights with a tokenizer that nobody calls."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from tests.support import make_policy as with_tokenizer

    with_tokenizer(directory)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=size["vocabulary"],
        hidden_size=size["hidden"],
        intermediate_size=3 * size["hidden"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["heads"] // 2,
        head_dim=size["hidden"] // size["heads"],
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    return str(directory)


class Case:
    """One batch and one way of learning from it."""

    def __init__(self, way: str, objectives: int, policy: str, size: dict[str, int], device: str) -> None:
        self.way = way
        self.objectives = objectives
        mode = GramianSpec(**MODES.get(way, {}))
        self.learner = Learner(
            LearnerSettings(
                model=policy,
                device=device,
                dtype="bfloat16" if device == "cuda" else "float32",
                gramian=mode.mode,
                response_share=mode.response_share,
                lr=1e-6,
                max_tokens=size["tokens"],
                tokens_per_microbatch=8192,
            )
        )
        generator = torch.Generator().manual_seed(objectives)
        shape = (size["prompts"], GROUP, objectives)
        self.rollouts = [rollout(size, generator) for _ in range(size["prompts"] * GROUP)]
        rewards_PGK = torch.rand(shape, generator=generator, dtype=torch.float64)
        self.weights_K = torch.full((objectives,), 1 / objectives, dtype=torch.float64)
        parts_PGK = Gdpo().per_objective(rewards_PGK)
        self.advantages_B = Gdpo()(rewards_PGK, self.weights_K).flatten()
        self.advantages_BK = parts_PGK.flatten(0, 1).float()
        self.parts = ObjectiveAdvantages(
            advantages_BK=self.advantages_BK, weights_K=whitening_factor(parts_PGK, self.weights_K) * self.weights_K
        )

    def step(self) -> None:
        """A whole update, from advantages to new weights."""
        if self.way == "plain":
            self.learner.learn(self.rollouts, self.advantages_B)
            return
        if self.way == "full_passes":
            self.full_passes()
            self.learner.learn(self.rollouts, self.advantages_B)
            return
        if self.way == "exact":
            self.learner.gramian(self.rollouts, self.advantages_BK)
        self.learner.learn(self.rollouts, self.advantages_B, parts=self.parts)

    def full_passes(self) -> Tensor:
        """As published: forward and backward anew for every objective, before the update."""
        found = []
        for advantages_B in self.advantages_BK.T:
            everything = list(range(len(self.rollouts)))
            self.learner._backward(self.rollouts, everything, advantages_B, None, Meter(len(self.rollouts)))
            found.append([p.grad for p in self.learner.parameters if p.grad is not None])
            self.learner.optimizer.zero_grad()
        return inner_products(found)


def rollout(size: dict[str, int], generator: torch.Generator) -> Rollout:
    """Half to all of the tokens, as lengths vary."""
    length = int(torch.randint(size["tokens"] // 2, size["tokens"], (1,), generator=generator))
    ids = torch.randint(0, size["vocabulary"], (16 + length,), generator=generator).tolist()
    return Rollout(
        prompt_tokens=tuple(ids[:16]),
        tokens=tuple(ids[16:]),
        logprobs=(-float(np.log(size["vocabulary"])),) * length,
        text="",
        truncated=False,
        policy_version=0,
    )


def timed(step: Callable[[], None], device: str, clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def measure_cost(options: argparse.Namespace) -> Figures:
    """Every way in turn, round after round: the median over rounds of each one's time over plain's."""
    size = SIZES[options.size]
    figures: Figures = {}
    clock = time.process_time if options.processor_time else time.perf_counter
    if options.processor_time:
        torch.set_num_threads(1)  # several wait for each other, which counts
    with tempfile.TemporaryDirectory() as folder:
        policy = make_policy(Path(folder), size)
        for objectives in (2, 3, 8):
            cases = [Case(way, objectives, policy, size, options.device) for way in options.ways]
            seconds: dict[str, list[float]] = {way: [] for way in options.ways}
            for turn in track(range(options.rounds + 2), f"K = {objectives}"):
                for case in cases:
                    elapsed = timed(case.step, options.device, clock)
                    if turn >= 2:  # the first ones allocate
                        seconds[case.way].append(elapsed)
            for way in options.ways:
                ratios = [a / b for a, b in zip(seconds[way], seconds["plain"], strict=True)]
                figures[f"{way}_k{objectives}"] = round(median(ratios), 3)
            figures[f"plain_ms_k{objectives}"] = round(1e3 * median(seconds["plain"]), 1)
            figures["parameters_m"] = round(sum(p.numel() for p in cases[0].learner.parameters) / 1e6, 1)
            del cases
            gc.collect()
    return figures


# ----------------------------------------------------------------------------------------------------------- memory


def measure_memory(options: argparse.Namespace) -> Figures:
    """Peak over what the process had before the learner was made, each way in a process of its own."""
    figures: Figures = {}
    for objectives in (3, 8):
        peaks = {}
        for way in track(options.ways, f"memory, K = {objectives}"):
            command = [sys.executable, "-m", "tests.benchmarks.weighting", "--one", way, str(objectives)]
            command += ["--device", options.device, "--size", options.size]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            peaks[way] = float(out.strip().splitlines()[-1])
        figures |= {f"memory_{way}_k{objectives}": round(peak / peaks["plain"], 3) for way, peak in peaks.items()}
        figures[f"memory_plain_mib_k{objectives}"] = round(peaks["plain"])
    return figures


def peak_of_one(way: str, objectives: int, options: argparse.Namespace) -> float:
    """MiB."""
    size = SIZES[options.size]
    with tempfile.TemporaryDirectory() as folder:
        policy = make_policy(Path(folder), size)
        gc.collect()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        case = Case(way, objectives, policy, size, options.device)
        for _ in range(3):
            case.step()
        if options.device == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before


# ----------------------------------------------------------------------------------------------------------- sketch


class OneSided(SketchedGradients):
    """Random signs on the output side alone: less noise for the width, but cost grows with K and the layer."""

    def product(self, place: int, left_bTm: Tensor, right_bTn: Tensor, ratios_bK: Tensor) -> None:
        left_bTr = left_bTm @ self._projection(place, 0, left_bTm)
        self._sum(place, torch.bmm(left_bTr.transpose(1, 2), right_bTn).flatten(1).float(), ratios_bK)

    def lookup(self, place: int, index_bT: Tensor, right_bTn: Tensor, ratios_bK: Tensor) -> None:
        left_bTr = self._projection(place, 0, right_bTn)[index_bT]
        self._sum(place, torch.bmm(left_bTr.transpose(1, 2), right_bTn).flatten(1).float(), ratios_bK)


class SampledUnits(OneSided):
    """A few output units of each layer instead of random mixtures of all: the same cost as one-sided signs."""

    def _projection(self, place: int, side: int, like: Tensor) -> Tensor:
        size = self._sizes[place][side]
        generator = torch.Generator().manual_seed((self._seed * len(self._sizes) + place) * 2 + side)
        chosen = torch.randperm(size, generator=generator)[: self.width]
        return torch.eye(size, dtype=like.dtype)[:, chosen] * (size / self.width) ** 0.5


def measure_sketches(options: argparse.Namespace) -> Figures:
    """Error of the Gramian (Frobenius, relative) of what was tried for `sketch`, and of the last block."""
    size = SIZES["small"]
    with tempfile.TemporaryDirectory() as folder:
        case = Case("exact", 3, make_policy(Path(folder), size), size, options.device)
    exact = case.learner.gramian(case.rollouts, case.advantages_BK)
    case.learner._held = None
    separated = separable(case.advantages_B, case.advantages_BK)
    assert separated is not None
    made_B, ratios_BK = separated
    capture, everything = Capture(case.learner.model), list(range(len(case.rollouts)))
    kinds = {"two_sided": SketchedGradients, "one_sided": OneSided, "sampled_units": SampledUnits}
    tries = [(kind, width) for kind in kinds for width in (4, 8, 16, 32) if kind == "two_sided" or width <= 8]
    figures: Figures = {}
    for kind, width in track(tries, "sketches"):
        errors = []
        for seed in range(5):
            sink = kinds[kind](capture.parameters, width=width, seed=seed)
            case.learner._capture = capture
            case.learner._backward(
                case.rollouts, everything, made_B, None, Meter(len(made_B)), sink=sink, ratios_BK=ratios_BK
            )
            case.learner.optimizer.zero_grad()
            errors.append(float((sink.gramian() - exact).norm() / exact.norm()))
        figures[f"{kind}_{width}"] = round(median(errors), 4)
    return {"gramian_error": figures}


# ----------------------------------------------------------------------------------------------------------- shares


def measure_shares(options: argparse.Namespace) -> Figures:
    """Influence by a share of the prompts beside that by all of them, of the same updates, over 100 draws for each.

    Of quickstart batches (32 prompts of 8 rollouts), while the policy learns from them for 24 steps. The relative
    error's median and ninth decile; the correlation of how far the objectives are from their mean, which is what
    moves the weights; the error of the mean over the draws; and the share of draws that say nothing.
    """
    from policies.models import load_tokenizer
    from policies.quickstart import ensure_policy, sample_problems

    policy = str(ensure_policy(Path(__file__).parents[2] / ".equipoise" / "test-cache"))
    settings = LearnerSettings(
        model=policy, device=options.device, lr=1e-4, warmup_steps=5, tokens_per_microbatch=2048, max_tokens=64,
        gramian="step_response", response_share=1.0, threads=1,
    )  # fmt: skip
    learner, tokenizer = Learner(settings), load_tokenizer(policy)
    problems = sample_problems(random.Random(0), held_out=False)
    found: dict[float, list[tuple[Tensor, Tensor]]] = {share: [] for share in SHARES}  # of all, of each draw
    for step in track(range(24), "shares"):
        asked = [next(problems) for _ in range(32)]
        torch.manual_seed(step)
        rollouts = sampled(learner, tokenizer, [problem.prompt for problem in asked])
        rewards_PGK = quickstart_rewards(rollouts, [problem.answer for problem in asked])
        parts_PGK, preference_K = Gdpo().per_objective(rewards_PGK), torch.tensor([0.6, 0.2, 0.2], dtype=torch.float64)
        weights_K = whitening_factor(parts_PGK, preference_K) * preference_K
        parts = ObjectiveAdvantages(advantages_BK=parts_PGK.flatten(0, 1).float(), weights_K=weights_K)
        learned = learner.learn(rollouts, Gdpo()(rewards_PGK, preference_K).flatten().float(), parts=parts)
        after = learner.logprobs(rollouts)
        tokens = sum(len(rollout.tokens) for rollout in rollouts)
        moved_B = torch.tensor([sum(now) - sum(r.logprobs) for now, r in zip(after, rollouts, strict=True)]) / tokens

        responses_BK = moved_B.double()[:, None] * parts.advantages_BK.double()
        whole_K = influence_of_response(responses_BK.sum(dim=0), weights_K, learned.grad_norm)
        assert torch.allclose(whole_K, torch.tensor(learned.influence_K).double(), rtol=0.02, atol=1e-3)
        for share in SHARES:
            everything, drawn = range(len(rollouts)), []
            for n in range(100):
                part = response_part(rollouts, everything, share=share, seed=1000 * step + n)
                drawn.append(influence_of_response(responses_BK[part].sum(dim=0), weights_K, learned.grad_norm))
            found[share].append((whole_K, torch.stack(drawn)))
    return {f"response_share_{share:g}": error_of(pairs) for share, pairs in found.items()}


def error_of(pairs: list[tuple[Tensor, Tensor]]) -> Figures:
    """Of (influence_K by all, influence_NK by each draw), one pair for each batch."""
    whole_SK, drawn_SNK = (torch.stack(values) for values in zip(*pairs, strict=True))
    whole_SNK = whole_SK[:, None].expand_as(drawn_SNK)
    error_SN = (drawn_SNK - whole_SNK).norm(dim=2) / whole_SNK.norm(dim=2)
    apart = [(values - values.mean(dim=2, keepdim=True)).flatten() for values in (whole_SNK, drawn_SNK)]
    mean_error_S = (drawn_SNK.mean(dim=1) - whole_SK).norm(dim=1) / whole_SK.norm(dim=1)
    return {
        "error": round(float(error_SN.median()), 3),
        "error_ninth_decile": round(float(error_SN.flatten().quantile(0.9)), 3),
        "correlation": round(float(torch.corrcoef(torch.stack(apart))[0, 1]), 4),
        "error_of_mean": round(float(mean_error_S.median()), 3),
        "silent": round(float((drawn_SNK == 0).all(dim=2).double().mean()), 4),
    }


@torch.no_grad()
def sampled(learner: Learner, tokenizer: Any, prompts: list[str]) -> list[Rollout]:
    """GROUP completions of each prompt, with the learner's own log-probabilities for the sampler's."""
    from policies.models import encode_prompt

    asked = [tuple(encode_prompt(tokenizer, prompt)) for prompt in prompts for _ in range(GROUP)]
    width = max(map(len, asked))
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(one)) + list(one) for one in asked])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in asked])
    written = learner.model.generate(
        input_ids=ids.to(learner.device), attention_mask=mask.to(learner.device), do_sample=True, top_k=0,
        max_new_tokens=64, pad_token_id=tokenizer.pad_token_id,
    )[:, width:].tolist()  # fmt: skip
    rollouts = []
    for prompt, row in zip(asked, written, strict=True):
        end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
        text = tokenizer.decode(row[:end], skip_special_tokens=True)
        rollouts.append(
            Rollout(
                prompt_tokens=prompt, tokens=tuple(row[:end]), logprobs=(0.0,) * end, text=text, truncated=False,
                policy_version=0,
            )
        )  # fmt: skip
    scores = learner.logprobs(rollouts)
    return [replace(rollout, logprobs=tuple(score)) for rollout, score in zip(rollouts, scores, strict=True)]


def quickstart_rewards(rollouts: list[Rollout], answers: list[str]) -> Tensor:
    """rewards_PGK much as the quickstart's job has them: right, short, and worked step by step."""
    from policies.quickstart import classify_style, is_right

    clarity = {"short": 0.2, "compact": 0.7, "verbose": 1.0}
    rows = [
        (float(is_right(r.text, answers[i // GROUP])), 1 - len(r.tokens) / 64, clarity.get(classify_style(r.text), 0.0))
        for i, r in enumerate(rollouts)
    ]
    return torch.tensor(rows, dtype=torch.float64).unflatten(0, (len(answers), GROUP))


# ------------------------------------------------------------------------------------------------------------ drift


def measure_drift(options: argparse.Namespace) -> Figures:
    """L1 distance between the weights after 50 steps in each mode and those of `exact`, same seed, real jobs.

    Beside it the distance of `exact` with another seed: what chance alone moves.
    """
    from orchestrator.state.embedded_redis import EmbeddedRedis
    from tests.benchmarks.main_job import Bench

    finals: dict[tuple[str, int], dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, EmbeddedRedis(Path(folder) / "redis") as redis:
        bench = Bench(Path(folder), redis.url, seeds=options.seeds, steps=50)
        for seed in bench.seeds:
            for mode in ("exact", *options.modes):
                spec = bench.spec(
                    name=f"drift-{mode}-{seed}",
                    seed=seed,
                    weighting={"name": "gradient", "floor": 0.0},
                    gramian=MODES[mode],
                    evaluation={"every": 25, "test_points": 0, "greedy": False},
                )
                store, job_id, _ = bench.run(spec)
                finals[mode, seed] = store.steps(job_id)[-1]["weights"]["strategy"]
                print(mode, seed, {name: round(value, 4) for name, value in finals[mode, seed].items()}, flush=True)
    figures: Figures = {"drift_seeds": options.seeds}
    for mode in options.modes:
        distances = [l1(finals[mode, seed], finals["exact", seed]) for seed in range(options.seeds)]
        figures[f"{mode}_l1"] = round(max(distances), 4)
    if options.seeds > 1:
        figures["other_seed_l1"] = round(l1(finals["exact", 0], finals["exact", 1]), 4)
    figures["drift_weights"] = {f"{mode} {seed}": weights for (mode, seed), weights in finals.items()}
    return figures


def l1(one: dict[str, float], other: dict[str, float]) -> float:
    return sum(abs(one[name] - other[name]) for name in one)


# ------------------------------------------------------------------------------------------------------------ rules


def measure_rules(_options: argparse.Namespace) -> Figures:
    """Hypervolume of spheres, and one update of every strategy at K = 32."""
    generator = np.random.default_rng(0)
    figures: Figures = {}
    for points, objectives in ((1000, 3), (100, 6)):
        front_NK = np.abs(generator.normal(size=(points, objectives)))
        front_NK /= np.linalg.norm(front_NK, axis=1, keepdims=True)
        corner_K = np.zeros(objectives)
        seconds = [
            timed(lambda f=front_NK, c=corner_K: moocore.hypervolume(f, ref=c, maximise=True), "cpu") for _ in range(51)
        ]  # type: ignore[misc]
        figures[f"hv_ms_{points}x{objectives}"] = round(1e3 * median(seconds), 3)
    updates = {name: 1e3 * median(update_seconds(name, 32, 60)) for name in WEIGHTINGS}
    figures["update_ms"] = {name: round(value, 3) for name, value in updates.items()}
    figures["max_update_ms"] = round(max(updates.values()), 3)
    return figures


def update_seconds(name: str, objectives: int, repeats: int) -> Iterable[float]:
    """Another batch, Gramian and front at every call, so that nothing is remembered."""
    names = tuple(f"o{k}" for k in range(objectives))
    options: Figures = {"floor": 0.0} if name == "gradient" else {}
    if name == "schedule":
        options["points"] = [(0, dict.fromkeys(names, 1.0)), (100, {n: float(i) for i, n in enumerate(names)})]
    strategy = WEIGHTINGS[name](**options)
    targets_K = torch.full((objectives,), torch.nan)
    targets_K[: objectives // 2] = 0.7
    about = Objectives(
        names=names,
        ranges_K2=torch.tensor([[0.0, 1.0]] * objectives),
        targets_K=targets_K,
        target_signs_K=torch.ones(objectives),
    )
    generator = torch.Generator().manual_seed(0)
    seconds = []
    for step in range(1, repeats + 1):
        rewards_PGK = torch.rand(32, 8, objectives, generator=generator, dtype=torch.float64)
        gradients = torch.randn(objectives, 200, generator=generator, dtype=torch.float64)
        points_NK = torch.rand(3, objectives, generator=generator, dtype=torch.float64)
        stats = StepStats(
            step=step,
            objectives=about,
            rewards_PGK=rewards_PGK,
            advantages_PGK=Gdpo().per_objective(rewards_PGK),
            preference_K=torch.full((objectives,), 1 / objectives),
            gramian_KK=gradients @ gradients.T,
            front=FrontStats(step=step, growth=0.01, points_NK=points_NK, current_K=points_NK[-1]),
        )
        outcome = UpdateOutcome(rewards_PGK=rewards_PGK, credit_PG=torch.randn(32, 8, generator=generator))
        seconds.append(timed(lambda s=stats, o=outcome: (strategy.update(s), strategy.observe(o)), "cpu"))  # type: ignore[misc]
    return seconds


# ------------------------------------------------------------------------------------------------------------- main

PARTS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "rules": measure_rules,
    "cost": measure_cost,
    "memory": measure_memory,
    "sketches": measure_sketches,
    "shares": measure_shares,
    "drift": measure_drift,
}


def show(figures: Figures) -> None:
    table = Table("way", *(f"time K{k}" for k in (2, 3, 8)), *(f"mem. K{k}" for k in (3, 8)), "L1")
    for way in WAYS:
        cells = [figures.get(f"{way}_k{k}") for k in (2, 3, 8)]
        cells += [figures.get(f"memory_{way}_k{k}") for k in (3, 8)] + [figures.get(f"{way}_l1")]
        table.add_row(way, *("" if cell is None else f"{cell:g}" for cell in cells))
    Console().print(table)
    table = Table("share of the prompts", "error", "9th decile", "correlation", "of the mean", "silent")
    for share in SHARES:
        if found := figures.get(f"response_share_{share:g}"):
            table.add_row(f"{share:g}", *(f"{value:g}" for value in found.values()))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="all when absent")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of every way")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of the drift jobs")
    parser.add_argument(
        "--modes", nargs="+", choices=[*MODES][1:], default=[*MODES][1:], help="of the drift jobs, beside exact"
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="whose cost and memory; plain among them")
    parser.add_argument(
        "--processor-time", action="store_true", help="that of one thread, where others use the machine too"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--size", choices=SIZES, default="small", help="of the random model")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "K"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(peak_of_one(options.one[0], int(options.one[1]), options))
        return
    path = RESULTS / ("weighting.json" if options.device == "cpu" else "weighting_cuda.json")
    results: Figures = json.loads(path.read_text()) if path.exists() else {}
    for name in options.parts or PARTS:
        where = machine() | ({"gpu": torch.cuda.get_device_name()} if options.device == "cuda" else {})
        figures = PARTS[name](options)
        if name in ("cost", "memory") and tuple(options.ways) != WAYS:  # beside those of another run, or machine
            clock = ", processor time" if options.processor_time else ""
            results[f"{name} of {', '.join(options.ways)}{clock}"] = figures | {"machine": where}
        else:
            results |= figures
            results.setdefault("machines", {})[name] = where
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
    show(results)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
