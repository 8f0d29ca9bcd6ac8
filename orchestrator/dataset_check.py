"""Reads every row of an uploaded file, as a child process (orchestrator/children.py): its bytes are a stranger's."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from orchestrator import children
from orchestrator.prompts import DatasetError, examine
from orchestrator.spec import Columns

MAX_PROBLEMS = 20
TIMEOUT_S = 300.0
_MEMORY_BYTES = 4 * 1024**3  # a small Parquet file can hold much


def check(path: Path, columns: Columns) -> tuple[int, list[str]]:
    """Rows, and what is wrong: the first problems, then how it goes on. ChildError where that can't be told."""
    question = {"path": str(path), "columns": columns.model_dump()}
    try:
        answer: dict[str, Any] = children.ask(__name__, question, timeout_s=TIMEOUT_S)
    except children.ChildTimeout:
        return 0, [f"can't be read within {TIMEOUT_S:g} s"]
    except children.ChildBusy:
        raise
    except children.ChildError:
        return 0, [f"can't be read, or not within {_MEMORY_BYTES >> 30} GiB of memory"]
    return answer["rows"], answer["problems"]


def _main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.alarm(int(TIMEOUT_S) + 30)  # whoever asked has killed us by then, unless it died itself
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    question = json.load(sys.stdin)
    path = Path(question["path"])
    try:
        rows, problems = examine(path, Columns.model_validate(question["columns"]), most=MAX_PROBLEMS)
    except DatasetError as error:
        rows, problems = 0, [str(error)]
    cleaned = [problem.removeprefix(f"{path}: ") for problem in problems]
    json.dump({"rows": rows, "problems": [problem[:300] for problem in cleaned]}, answers)
    answers.close()


if __name__ == "__main__":
    _main()
