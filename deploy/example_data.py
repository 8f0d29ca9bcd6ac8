"""The data of the example jobs, fetched from the hub: python deploy/example_data.py math | ratings

They go below data/ in the folder that this is run in, where deploy/jobs/math.yaml and reward_model.yaml look for them.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ASK = "\n\nReason step by step, and put the final answer into \\boxed{}."  # `math` and `clarity` look for the box
HELD_BACK = 500
RATINGS = ("helpfulness", "coherence", "verbosity")


def math(source: Path, target: Path) -> None:
    """Hendrycks' MATH without MATH-500 to learn from, some of it held back for validation, and MATH-500 as the test."""
    import pyarrow.parquet as parquet

    def rows(split: str) -> list[dict[str, str]]:
        found = sorted((source / "data").glob(f"{split}-*.parquet"))
        table = [row for file in found for row in parquet.read_table(file, columns=["problem", "answer"]).to_pylist()]
        return [{"prompt": row["problem"] + ASK, "answer": row["answer"]} for row in table if row["answer"]]

    known = rows("train")
    random.Random(0).shuffle(known)
    _write(target / "validation.jsonl", known[:HELD_BACK])
    _write(target / "train.jsonl", known[HELD_BACK:])
    _write(target / "test.jsonl", rows("test"))


def ratings(source: Path, target: Path) -> None:
    """HelpSteer2: completions that people rated from 0 to 4."""
    for split in ("train", "validation"):
        with gzip.open(source / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = map(json.loads, lines)
            rated = (
                {
                    "prompt": row["prompt"],
                    "completion": row["response"],
                    "ratings": {name: row[name] for name in RATINGS},
                }
                for row in rows
            )
            _write(target / f"{split}.jsonl", rated)


SETS: dict[str, tuple[str, list[str], Callable[[Path, Path], None]]] = {
    "math": ("nlile/hendrycks-MATH-benchmark", ["data/*.parquet"], math),
    "ratings": ("nvidia/HelpSteer2", ["train.jsonl.gz", "validation.jsonl.gz"], ratings),
}


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(path)


def main(names: list[str]) -> None:
    from huggingface_hub import snapshot_download

    if not names or not set(names) <= SETS.keys():
        sys.exit(f"usage: python deploy/example_data.py {' | '.join(SETS)}")
    for name in names:
        repository, patterns, convert = SETS[name]
        source = snapshot_download(repository, repo_type="dataset", allow_patterns=patterns)
        convert(Path(source), Path("data") / name)


if __name__ == "__main__":
    main(sys.argv[1:])
