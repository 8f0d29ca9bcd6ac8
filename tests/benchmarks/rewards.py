"""What rewards agree with, and how fast they are.

    python -m tests.benchmarks.rewards [--only verifiers throughput] [--problems 500] [--steps 40]

Sections: verifiers (the math reward on MATH-500, which lies beside the repository: reference solutions, rewritten and
altered answers, formulas copied from the problem; a few minutes), throughput (completions a second of every verifier),
models (reward models trained on generated data, and what they score a second), hidden (the share of scoring that is
done while the engines of a quickstart job still write), hosting (cost of the pool), judges (against a local endpoint),
job (a whole job that a learned reward model drives). All but the first two have modules of their own, reward_*.py.
A section is a function that returns figures, and SECTIONS has it by name. They go to
tests/benchmarks/results/rewards.json as each section ends, disagreements by problem and family.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from rewards import registry
from rewards.base import RewardBatch
from rewards.verifiers.math import MathAccuracy, MathOptions
from tests.benchmarks.machine import machine
from tests.benchmarks.math_answers import ALTERED, REWRITTEN, Family, copied, is_dressed, is_reordered, unfinished
from tests.benchmarks.math_values import Unreadable, close, signature

RESULTS = Path(__file__).parent / "results" / "rewards.json"
MATH500 = Path(__file__).parents[3] / "shared" / "data" / "math500"
Figures = dict[str, Any]


# ------------------------------------------------------------------------------------------------------- verifiers


@dataclass(frozen=True, kw_only=True)
class Problem:
    id: str
    prompt: str
    solution: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Case:
    """One answer to one problem, and what it has to score."""

    problem: Problem
    family: str
    answer: str
    expected: float


def problems(folder: Path = MATH500) -> list[Problem]:
    import pyarrow.parquet as parquet

    rows = [
        row for split in ("train", "val", "test") for row in parquet.read_table(folder / f"{split}.parquet").to_pylist()
    ]
    return [
        Problem(
            id=row["unique_id"],
            prompt=row["prompt"][0]["content"],
            solution=row["solution"],
            answer=row["reward_model"]["ground_truth"],
        )
        for row in rows
    ]


def made_cases(
    chosen: Iterable[Problem], families: dict[str, Family], *, same: bool, refused: Counter[str]
) -> Iterator[Case]:
    """Answers that families make, where arithmetic finds the same value, or another; `refused` counts the rest."""
    for problem in chosen:
        for name, family in families.items():
            for answer in dict.fromkeys(family(problem.answer)):
                if answer == problem.answer:
                    continue
                if same and is_reordered(answer, problem.prompt):  # by its value right, and copied
                    refused[name] += 1
                    continue
                try:
                    is_same = close(signature(problem.answer), signature(answer))
                except (Unreadable, ZeroDivisionError):
                    refused[name] += 1
                    continue
                if is_same is same:
                    yield Case(problem=problem, family=name, answer=answer, expected=float(same))
                else:
                    refused[name] += 1


def copies(chosen: Iterable[Problem]) -> Iterator[Case]:
    """What earns nothing although its value may be right; the answer's own text is no copy."""
    for problem in chosen:
        for answer in dict.fromkeys(unfinished(problem.answer)):
            yield Case(problem=problem, family="unfinished", answer=answer, expected=0.0)
        for answer in dict.fromkeys(copied(problem.prompt)):
            if not is_dressed(answer, problem.answer):
                yield Case(problem=problem, family="copied", answer=answer, expected=0.0)


def judge(reward: MathAccuracy, cases: Sequence[Case], label: str) -> list[float]:
    scores = []
    for start in track(range(0, len(cases), 256), label):
        part = cases[start : start + 256]
        scores += reward.score(
            batch_of(
                [rf"Hence the answer is $\boxed{{{case.answer}}}$." for case in part], [case.problem for case in part]
            )
        )
    return [score for score in scores if score is not None]


def batch_of(completions: Sequence[str], of: Sequence[Problem]) -> RewardBatch:
    return RewardBatch(
        prompts=tuple(problem.prompt for problem in of),
        completions=tuple(completions),
        answers=tuple(problem.answer for problem in of),
        completion_tokens=tuple(len(text) // 4 + 1 for text in completions),
        truncated=(False,) * len(completions),
        max_tokens=2048,
    )


def agreement(cases: Sequence[Case], scores: Sequence[float]) -> tuple[float, Figures, list[list[str]]]:
    """(share that scored as it has to, [right, all] by family, problem and family of the others)."""
    right: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    wrong = []
    for case, score in zip(cases, scores, strict=True):
        counts[case.family] += 1
        right[case.family] += score == case.expected
        if score != case.expected:
            wrong.append([case.problem.id, case.family])
    by_family = {family: [right[family], counts[family]] for family in counts}
    return sum(right.values()) / len(cases), by_family, wrong


def measure_verifiers(options: argparse.Namespace) -> Figures:
    """Agreement of the math reward with what is known about each answer."""
    chosen = problems()[: options.problems]
    reward, refused = MathAccuracy(MathOptions()), Counter[str]()
    solved = reward.score(batch_of([problem.solution for problem in chosen], chosen))
    symbolic = [reward._child.ask(gold=p.answer, answer=p.answer, prose=False) for p in chosen]
    figures: Figures = {
        "math_problems": len(chosen),
        "gold_recall": round(sum(score == 1.0 for score in solved) / len(chosen), 4),
        "gold_recall_by_algebra_alone": round(sum(symbolic) / len(chosen), 4),
        "gold_disagreements": [p.id for p, score in zip(chosen, solved, strict=True) if score != 1.0],
    }
    kinds = {
        "equivalent_accepted": list(made_cases(chosen, REWRITTEN, same=True, refused=refused)),
        "altered_rejected": list(made_cases(chosen, ALTERED, same=False, refused=refused)),
        "unworked_rejected": list(copies(chosen)),
    }
    for figure, cases in kinds.items():
        share, by_family, wrong = agreement(cases, judge(reward, cases, figure))
        rates = [right / count for right, count in by_family.values()]
        figures |= {
            figure: round(share, 4),
            f"{figure}_mean_of_families": round(sum(rates) / len(rates), 4),
            f"{figure}_cases": len(cases),
            f"{figure}_by_family": by_family,
            f"{figure}_disagreements": wrong,
        }
    return figures | {"math_left_out_by_family": dict(refused)}


# ------------------------------------------------------------------------------------------------------ throughput

CALL = {"name": "weather", "arguments": {"city": "Rome", "days": 2}}
PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
CONSTRAINTS = [
    {"id": "punctuation:no_comma"},
    {"id": "length_constraints:number_words", "num_words": 50, "relation": "at least"},
    {"id": "keywords:existence", "keywords": ["therefore"]},
    {"id": "detectable_format:number_bullet_lists", "num_bullets": 2},
]
CHOSEN: dict[str, Figures] = {
    "instructions": {"constraints": CONSTRAINTS},
    "json_schema": {"json_schema": PERSON},
    "language": {"language": "en"},
    "numeric": {"where": "boxed"},
    "exact": {"where": "boxed"},
    "text": {"where": "boxed"},
    "regex": {"pattern": r"\\boxed\{\d+\}"},
}


def realistic(name: str, chosen: Sequence[Problem]) -> RewardBatch:
    """Worked solutions of MATH-500, with a call or an object behind them for what reads JSON.

    Every other solution for `math` ends with its answer spelled anew, which algebra has to compare.
    """
    texts = [problem.solution for problem in chosen]
    truth: list[str] = [problem.answer for problem in chosen]
    if name == "tool_call":
        texts = [f"{text}\n<tool_call>\n{json.dumps(CALL)}\n</tool_call>" for text in texts]
        truth = [json.dumps([CALL])] * len(texts)
    elif name == "json_schema":
        texts = [f'{text}\n```json\n{{"name": "Ada", "age": {place}}}\n```' for place, text in enumerate(texts)]
    elif name == "numeric":
        chosen = [problem for problem in chosen if problem.answer.isdigit()]
        texts, truth = [p.solution for p in chosen], [p.answer for p in chosen]
    elif name == "math":
        texts = [
            text if place % 2 else rf"{text} That is $\boxed{{{truth[place]} \text{{ units}}}}$"
            for place, text in enumerate(texts)
        ]
    return RewardBatch(
        prompts=tuple(problem.prompt for problem in chosen),
        completions=tuple(texts),
        answers=tuple(truth),
        completion_tokens=tuple(len(text) // 4 + 1 for text in texts),
        truncated=(False,) * len(texts),
        max_tokens=2048,
    )


def measure_throughput(options: argparse.Namespace) -> Figures:
    """Completions a second in one process, median of five rounds after one to warm up."""
    chosen = problems()[: options.problems]
    figures: Figures = {}
    ours = [n for n in registry.names() if registry.resolve(n).__module__.startswith("rewards.verifiers.")]
    for name in track(ours, "throughput"):
        reward, batch = registry.build(name, CHOSEN.get(name, {})), realistic(name, chosen)
        reward.score(batch.rows(range(min(8, len(batch)))))
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            reward.score(batch)
            seconds.append(time.perf_counter() - started)
        figures[name] = round(len(batch) / median(seconds))
    return {
        "completions_per_s": figures,
        "completion_chars_mean": round(sum(len(p.solution) for p in chosen) / len(chosen)),
    }


# ------------------------------------------------------------------------------------------------------------ main

# --------------------------------------------------------------------------------------------- measured elsewhere


def measure_models(_options: argparse.Namespace) -> Figures:
    from tests.benchmarks.reward_models import models

    found = models()
    top = {figure: found.pop(figure) for figure in ("r2_min", "pairwise_accuracy", "ece")}
    return {**top, "models": found}


def measure_hidden(options: argparse.Namespace) -> Figures:
    from tests.benchmarks import reward_pool

    found = reward_pool.measure_hidden(argparse.Namespace(steps=options.steps, policy=None))
    return {"hidden_share": found["hidden_share"], "hidden": found}


def measure_hosting(options: argparse.Namespace) -> Figures:
    from tests.benchmarks import reward_pool

    return {"hosting": reward_pool.on_ray(["overhead", "replicas"], options)}


def measure_judges(_options: argparse.Namespace) -> Figures:
    from tests.benchmarks import reward_judges

    return {"judges": reward_judges.measure()}


def measure_job(options: argparse.Namespace) -> Figures:
    from tests.benchmarks import reward_job

    return {"job": reward_job.measure_job(options.steps)}


SECTIONS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "verifiers": measure_verifiers,
    "throughput": measure_throughput,
    "models": measure_models,
    "hidden": measure_hidden,
    "hosting": measure_hosting,
    "judges": measure_judges,
    "job": measure_job,
}


def show(results: Figures) -> None:
    """Plain numbers, and the completions a second of each reward."""
    table = Table("figure", "value")
    for figure, value in results.items():
        if isinstance(value, int | float):
            table.add_row(figure, f"{value:g}")
    for name, rate in results.get("completions_per_s", {}).items():
        table.add_row(f"{name}, completions/s", f"{rate:,}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections; all when absent")
    parser.add_argument("--problems", type=int, default=500, help="of MATH-500, the first so many")
    parser.add_argument("--steps", type=int, default=40, help="of the jobs that are run")
    options = parser.parse_args()
    results: Figures = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.only:
        results |= SECTIONS[name](options) | {"machine": machine()}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    show(results)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
