"""What the fault tests measured: shown with the test, and kept where EQUIPOISE_FAULT_FIGURES names a file.

EQUIPOISE_FAULT_REPEATS multiplies the repetitions, 1 by default; 10 gives the counts of the reliability table.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPEATS = int(os.environ.get("EQUIPOISE_FAULT_REPEATS", "1"))


def tell(test: str, **figures: Any) -> None:
    """`test` is a row of the reliability table, such as T2."""
    print(f"{test}: {json.dumps(figures)}")
    if name := os.environ.get("EQUIPOISE_FAULT_FIGURES"):
        path = Path(name)
        known = json.loads(path.read_text()) if path.exists() else {}
        known.setdefault("tests", {}).setdefault(test, {}).update(figures)
        path.write_text(json.dumps(known, indent=1) + "\n")


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
