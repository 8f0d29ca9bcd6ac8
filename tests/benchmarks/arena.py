"""Every weighting rule compared, from the runs that `equipoise arena` left: which is better, and is that sure.

    python -m tests.benchmarks.arena [--runs FILE] [--default ENTRY]

Without --runs those that are kept with the project, results/arena_runs.jsonl.gz. Nothing is trained here; it takes
seconds. The report goes to results/arena.md and arena.html, the figures to arena.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.arena.report import write_report
from tests.benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results"
KEPT = RESULTS / "arena_runs.jsonl.gz"
LARGEST_PAGE = 2**20


def keep(runs: Path) -> None:
    """Store the runs with the project, compressed and the same bytes for the same runs."""
    if runs.resolve() != KEPT.resolve():
        data = gzip.decompress(runs.read_bytes()) if runs.suffix == ".gz" else runs.read_bytes()
        KEPT.write_bytes(gzip.compress(data, mtime=0))


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
            console.print(f"{kind[:-1]}: {name}: {verdict}", highlight=False, markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.arena", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, help="runs.jsonl of an arena, plain or .gz; kept with the results")
    parser.add_argument("--default", help="the entry whose gains are told; auto, or else the best published rule")
    options = parser.parse_args()
    runs = options.runs or KEPT
    if not runs.is_file():
        parser.error(f"no file {runs}; `equipoise arena --out DIR` writes DIR/runs.jsonl")
    try:
        figures = write_report(runs, RESULTS / "arena.html", RESULTS / "arena.md", options.default)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    keep(runs)
    if (RESULTS / "arena.html").stat().st_size > LARGEST_PAGE:
        (RESULTS / "arena.html").unlink()
        print("arena.html is larger than 1 MiB and is not kept; `equipoise arena report` writes it elsewhere")
    (RESULTS / "arena.json").write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")
    print_tables(figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
