"""What the fault tests measured: shown with the test, and kept where EQUIPOISE_FAULT_FIGURES names a file.

    "tests": {"T3": {"tests/integration/test_faults_driver.py::test_fifty_...": {"jobs": 20, ..., "measured": {...}}}}

A test that runs again replaces all that it told before, so that each has its figures of one time and one machine.
EQUIPOISE_FAULT_REPEATS multiplies the repetitions, 1 by default; 10 gives the counts of the reliability table. Some
tests have none to multiply: a test's own figures say how much it did. What must not happen is asserted as well, so that
such a figure can only be 0. So is what takes its time, with BUSY_S to spare; the bounds of the reliability table itself
hold for the figures that are kept, of a machine that did nothing else (tests/unit/test_fault_figures.py).
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.machine import machine

FIGURES_VARIABLE = "EQUIPOISE_FAULT_FIGURES"
REPEATS_VARIABLE = "EQUIPOISE_FAULT_REPEATS"
BUSY_S = 10.0  # for what takes one to three, on a machine that has much else to do
REPEATS = int(os.environ.get(REPEATS_VARIABLE, "1"))


_told: dict[tuple[str, str], dict[str, Any]] = {}  # by this run: (row, test) -> its figures


def tell(row: str, **figures: Any) -> None:
    """Of the test that runs now; `row` is one of the reliability table, such as T2. Figures of one test add up."""
    print(f"{row}: {json.dumps(figures)}")
    if name := os.environ.get(FIGURES_VARIABLE):
        test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
        of_test = _told.setdefault((row, test), {})
        of_test |= figures
        keep(Path(name), row, test, of_test)


def keep(path: Path, row: str, test: str, figures: Mapping[str, Any]) -> None:
    """In the place of what the file has of this test, with today's date, the machine, and what it was run with."""
    known = json.loads(path.read_text()) if path.exists() else {}
    on = machine()
    measured = {name: on[name] for name in ("date", "processor", "cores")} | {REPEATS_VARIABLE: REPEATS}
    known.setdefault("tests", {}).setdefault(row, {})[test] = {**figures, "measured": measured}
    known["tests"] = {row: known["tests"][row] for row in sorted(known["tests"], key=_in_order)}
    path.write_text(json.dumps(known, indent=1) + "\n")


def _in_order(row: str) -> tuple[str, int]:
    """T2 before T10."""
    return row[:1], int(row[1:])


def all_at_once(count: int, act: Callable[[int], Any]) -> list[Any]:
    """What `count` threads return, released by a barrier at the same moment."""
    barrier, results = threading.Barrier(count), [None] * count

    def body(i: int) -> None:
        barrier.wait()
        results[i] = act(i)

    threads = [threading.Thread(target=body, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
