"""Learned rewards: what tiny models learn from rows whose attributes are known, and how quickly they score.

    python -m tests.benchmarks.reward_models [PART ...]

Parts: regression (two and five heads, the gate against a uniform mix), bradley_terry (ranking and calibration),
quickstart (three heads for the quickstart task), throughput (rows/s of each kind, vLLM's pooling runner included).
Figures go to tests/benchmarks/results/reward_models.json as each part ends. r2_min, pairwise_accuracy and ece stand at
the top.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from tests import reward_data as data
from tests.benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results"
Figures = dict[str, Any]
ANSWER = "answer "
SLOPE = 12.0  # of the generated preferences: some are noise, so that calibration means something


def fit(settings: Figures, directory: Path) -> tuple[Any, float]:
    """The training's result and its seconds."""
    from rewards.training import TrainSettings, train

    common = {"batch_size": 64, "lr": 3e-3, "max_length": 64, "checkpoint_every": 10**6}
    started = time.monotonic()
    wanted = TrainSettings.from_dict(common | settings)
    result = train(wanted, directory=directory, on_step=lambda _: None, should_stop=lambda: None)
    return result, round(time.monotonic() - started, 1)


def regression(folder: Path) -> Figures:
    """Held-out R2 of each head, and pairwise accuracy of the gate beside that of the plain mean of the heads."""
    from rewards.models.heads import FILE
    from rewards.training import evaluate

    base = str(data.make_backbone(folder / "backbone"))
    pairs = str(data.write_rows(folder / "pairs.jsonl", data.pairs(2000, slope=SLOPE)))
    judged = data.write_rows(folder / "judged.jsonl", data.pairs(1000, seed=1))
    figures: Figures = {}
    for heads in (data.ATTRIBUTES[:2], data.ATTRIBUTES):
        rows = str(data.write_rows(folder / "rows.jsonl", data.ratings(3000, heads=heads, missing=0.2)))
        held_out = str(data.write_rows(folder / "held_out.jsonl", data.ratings(1000, heads=heads, seed=1)))
        result, seconds = fit(
            {
                "model": base,
                "train": [rows, pairs],
                "validation": [held_out, str(judged)],
                "heads": [{"name": name} for name in heads],
                "gating": {"hidden_sizes": [32], "steps": 600, "lr": 5e-3},
                "epochs": 6,
            },
            folder / f"{len(heads)} heads",
        )
        report = result.evaluation
        heads_file = result.model / FILE
        description = json.loads(heads_file.read_text())
        heads_file.write_text(json.dumps(description | {"gating": None}))
        _drop_gate(result.model)
        uniform = evaluate(result.model, judged, on_progress=lambda *_: None, batch_size=64)
        figures[f"{len(heads)} heads"] = {
            "r2": {name: round(values["r2"] or 0.0, 4) for name, values in report.heads.items()},
            "pairwise_accuracy_gated": report.pairwise_accuracy,
            "pairwise_accuracy_uniform": uniform.pairwise_accuracy,
            "seconds": seconds,
        }
    figures["r2_min"] = min(min(part["r2"].values()) for part in figures.values())
    return figures


def _drop_gate(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    from rewards.models.heads import WEIGHTS

    tensors = {name: tensor for name, tensor in load_file(model / WEIGHTS).items() if not name.startswith("gate.")}
    save_file(tensors, model / WEIGHTS)


def bradley_terry(folder: Path) -> Figures:
    """A model of preferences drawn with a known slope: does it rank as the utility does, and is it sure rightly?"""
    from rewards.training import evaluate
    from rewards.training.correlation import spearman

    base = str(data.make_backbone(folder / "backbone"))
    result, seconds = fit(
        {
            "model": base,
            "train": [str(data.write_rows(folder / "pairs.jsonl", data.pairs(6000, slope=SLOPE)))],
            "objective": "bradley_terry",
            "epochs": 4,
            "lr": 2e-3,
        },
        folder / "bt",
    )
    files = {
        "noiseless": data.pairs(1500, seed=1),
        "drawn": data.pairs(3000, slope=SLOPE, seed=2),
        "best_of_4": data.pairs(500, rejected=3, seed=3),
    }
    reports = {
        name: evaluate(
            result.model, data.write_rows(folder / f"{name}.jsonl", rows), on_progress=lambda *_: None, batch_size=64
        )
        for name, rows in files.items()
    }
    import numpy as np

    rows = data.pairs(600, seed=4)
    scores = _score("bradley_terry", {"model": str(result.model)}, [(r["prompt"], r["chosen"]) for r in rows])
    by_domain = {
        domain: spearman(
            np.array([data.utility(domain, r["chosen"]) for r in rows if r["domain"] == domain]),
            np.array([s for s, r in zip(scores, rows, strict=True) if r["domain"] == domain]),
        )
        for domain in data.UTILITIES
    }
    return {
        "pairwise_accuracy": reports["noiseless"].pairwise_accuracy,
        "best_of_4_accuracy": reports["best_of_4"].best_of_4_accuracy,
        "ece": reports["drawn"].ece,
        "rank_correlation_with_utility": by_domain,
        "seconds": seconds,
    }


def quickstart(folder: Path) -> Figures:
    """The three-head model for the quickstart task: seconds to train, and its figures on held-out problems."""
    started = time.monotonic()
    data.make_quickstart_reward_model(folder / "quickstart")
    seconds = round(time.monotonic() - started, 1)
    report = json.loads((folder / "quickstart" / "eval.json").read_text())
    return {"seconds": seconds, "heads": report["heads"]}


def _score(name: str, options: Figures, rows: list[tuple[str, str]]) -> list[float]:
    from rewards import registry

    scores = registry.build(name, options).score(_batch(rows))
    return [float(score) for score in scores if score is not None]


def _batch(rows: list[tuple[str, str]]) -> Any:
    from rewards.base import RewardBatch

    size = len(rows)
    return RewardBatch(
        prompts=tuple(prompt for prompt, _ in rows),
        completions=tuple(text for _, text in rows),
        answers=(None,) * size,
        completion_tokens=(1,) * size,
        truncated=(False,) * size,
        max_tokens=64,
    )


def throughput(folder: Path, rounds: int = 5) -> Figures:
    """Rows/s of each kind on one model of 2 layers, median of the rounds; each in a process of its own."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

    from rewards.models.heads import HeadConfig, HeadsConfig
    from rewards.models.readout import Readout

    torch.manual_seed(0)
    size = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    base = data.make_backbone(folder / "backbone", size=size)
    heads = HeadsConfig(heads=tuple(HeadConfig(name=n, range=(0.0, 1.0)) for n in data.ATTRIBUTES), gating=(64,))
    Readout(heads, 256).save(data.make_backbone(folder / "regression", size=size))
    classes = {"classifier": AutoModelForSequenceClassification, "steps": AutoModelForTokenClassification}
    for name, automatic in classes.items():
        automatic.from_pretrained(base, num_labels=1 if name == "classifier" else 2).save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder / name)
    cases: dict[str, tuple[str, Figures]] = {
        "regression, transformers": ("regression", {"model": str(folder / "regression")}),
        "regression, vllm": ("regression", {"model": str(folder / "regression"), "runner": "vllm"}),
        "bradley_terry, transformers": ("bradley_terry", {"model": str(folder / "classifier")}),
        "bradley_terry, vllm": ("bradley_terry", {"model": str(folder / "classifier"), "runner": "vllm"}),
        "process, transformers": ("process", {"model": str(folder / "steps"), "separator": "."}),
    }
    figures: Figures = {}
    for name, (reward, options) in cases.items():
        options |= {"batch_size": 64, "device": "cpu"} | ({"max_length": 64} if "runner" in options else {})
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.reward_models",
            "--one",
            json.dumps([reward, options, rounds]),
        ]
        environment = os.environ | {"VLLM_LOGGING_LEVEL": "WARNING"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        (answer,) = (line for line in done.stdout.splitlines() if line.startswith(ANSWER))  # vLLM prints around it
        figures[name] = json.loads(answer.removeprefix(ANSWER))
    return figures


def measure_one(reward: str, options: Figures, rounds: int) -> Figures:
    """Seconds to be ready, and rows/s on 64 prompts with 8 completions each."""
    from rewards import registry

    rng = random.Random(0)
    prompts = [data.prompt(rng)[0] for _ in range(64)]
    batch = _batch([(text, data.completion(rng)) for text in prompts for _ in range(8)])
    started = time.monotonic()
    built = registry.build(reward, options)
    built.score(batch.rows(range(64)))
    ready_s = time.monotonic() - started
    seconds = []
    for _ in range(rounds):
        started = time.monotonic()
        built.score(batch)
        seconds.append(time.monotonic() - started)
    return {"rows_per_s": round(len(batch) / median(seconds)), "ready_s": round(ready_s, 1)}


PARTS: dict[str, Callable[[Path], Figures]] = {
    "regression": regression,
    "bradley_terry": bradley_terry,
    "quickstart": quickstart,
    "throughput": throughput,
}


def models(parts: list[str] | None = None, *, on_part: Callable[[Figures], None] = lambda _: None) -> Figures:
    """Every part's figures, and r2_min, pairwise_accuracy and ece on top; `on_part` hears what there is so far."""
    figures: Figures = {}
    for name in parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = PARTS[name](Path(folder))
        if name == "regression":
            figures["r2_min"] = figures[name]["r2_min"]
        if name == "bradley_terry":
            figures |= {key: figures[name][key] for key in ("pairwise_accuracy", "ece")}
        on_part(figures)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.reward_models", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(ANSWER + json.dumps(measure_one(*json.loads(options.one))), flush=True)
        return
    path = RESULTS / "reward_models.json"
    before = json.loads(path.read_text()) if options.parts and path.is_file() else {}

    def save(figures: Figures) -> None:
        path.write_text(json.dumps(before | {"machine": machine()} | figures, indent=2) + "\n")

    print(json.dumps(models(options.parts, on_part=save), indent=2))


if __name__ == "__main__":
    main()
