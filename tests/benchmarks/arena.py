"""Every weighting rule compared, from the runs that `equipoise arena` left: which is better, and is that sure.

    python -m tests.benchmarks.arena [--runs FILE] [--default ENTRY]

Without --runs those that are kept with the project, results/arena_runs.jsonl.gz. Nothing is trained here; it takes
seconds. The report goes to results/arena.md and arena.html, the figures to arena.json. To go on from the kept runs:

    mkdir DIR && gunzip -c tests/benchmarks/results/arena_runs.jsonl.gz > DIR/runs.jsonl
    equipoise arena --out DIR --resume
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.arena.conduct import KEY
from orchestrator.arena.files import replace_file
from orchestrator.arena.report import write_report
from orchestrator.arena.results import read_results, whole_lines
from tests.benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results"
KEPT = RESULTS / "arena_runs.jsonl.gz"
LARGEST_PAGE = 2**20


def keep(runs: Path) -> None:
    """Store the runs with the project, small: six digits, and without training rewards, which no figure uses.

    What a run failed of may name files of the machine that it ran on: their folders are left out. ValueError where
    runs that are kept are not among them, with what is kept as it was.
    """
    read_results(runs)  # what can't be read is not kept
    records = {_identity(record): record for record in _records(runs)}  # joined files may tell a run twice
    if KEPT.exists():
        lost = [record for record in _records(KEPT) if record["status"] == "done" and _identity(record) not in records]
        if lost:
            first = "{task} {entry} seed {seed}, of {started}".format(**lost[0])
            packed = runs.suffix == ".gz"
            join = f"cat {KEPT} {runs} > both.jsonl.gz" if packed else f"gunzip -c {KEPT} | cat - {runs} > both.jsonl"
            raise ValueError(
                f"{runs} lacks {len(lost)} finished runs that are kept, such as {first}; put both in one file ({join}) "
                "and give that to --runs"
            )
    small = [{k: v for k, v in record.items() if k != "train_rewards"} for record in records.values()]
    text = "".join(json.dumps(shortened(record)) + "\n" for record in small)
    replace_file(KEPT, gzip.compress(text.encode(), mtime=0))


def _records(runs: Path) -> list[dict[str, Any]]:
    lines, _ = whole_lines(runs)
    return [json.loads(line) for line in lines if line.strip()]


def _identity(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record.get(key) for key in (*KEY, "started", "status"))


def shortened(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub(r"(?<![\w/:])/(?:[^\s/'\"]+/)+", "", value)
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: shortened(item) for key, item in value.items()}
    return [shortened(item) for item in value] if isinstance(value, list) else value


def print_tables(figures: dict[str, Any]) -> None:
    console = Console(width=130)
    for task, rules in figures["by_rule"].items():
        table = Table(title=f"{task}: test hypervolume", title_justify="left")
        for heading in ("entry", "seeds", "hypervolume", "interval", "steps to static", "reached", "overhead"):
            table.add_column(heading)
        for name, row in rules.items():
            reached = "{} of {}".format(*row["reached_static"]) if row["reached_static"] else None
            cells = (
                row["seeds"],
                row["hypervolume"],
                row["interval"],
                row["steps_to_static"],
                reached,
                row["overhead"],
            )
            table.add_row(name, *("-" if cell is None else str(cell) for cell in cells))
        console.print(table)
    for kind in ("targets", "claims"):
        for name, verdict in figures[kind].items():
            why = f" ({figures['claims_why'][name]})" if kind == "claims" else ""
            console.print(f"{kind[:-1]}: {name}: {verdict}{why}", highlight=False, markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.arena", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, help="runs.jsonl of an arena, plain or .gz; kept with the results")
    parser.add_argument("--default", help="the entry whose gains are told; else that of a job that names no rule")
    options = parser.parse_args()
    try:
        if options.runs is not None:
            keep(options.runs)
        figures = write_report(KEPT, RESULTS / "arena.html", RESULTS / "arena.md", options.default)
    except FileNotFoundError as error:
        parser.error(f"no file {error.filename}; `equipoise arena --out DIR` writes DIR/runs.jsonl")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if (RESULTS / "arena.html").stat().st_size > LARGEST_PAGE:
        (RESULTS / "arena.html").unlink()
        print("arena.html is larger than 1 MiB and is not kept; `equipoise arena report` writes it elsewhere")
    replace_file(RESULTS / "arena.json", json.dumps({"machine": machine(), **figures}, indent=1) + "\n")
    print_tables(figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
