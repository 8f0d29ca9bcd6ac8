"""Commands of the CLI as processes forked from one that has imported it, as the imports take seconds each time.

    python -m tests.cli_forks     runs one for each line of JSON and answers with its exit code

Each has its own environment, directory, streams and exit code. How the program starts is for tests that start it anew.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
LIMIT_S = 120  # only what hangs takes it


def environment_of(state_dir: Path, given: Mapping[str, str]) -> dict[str, str]:
    """What a command is told from outside: nothing of Equipoise's but this."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("EQUIPOISE_")}
    return env | {"EQUIPOISE_STATE_DIR": str(state_dir), "COLUMNS": "160", "PYTHONPATH": str(PROJECT), **given}


class Commands:
    """The process that forks them: one for a test session."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.cli_forks"]
        self.server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT,
            env=environment_of(Path(os.devnull), {}),
        )  # fmt: skip

    def run(self, state_dir: Path, *words: str, **environment: str) -> tuple[int, str, str]:
        """Exit code, output and errors of a command that a person in `state_dir` gives."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        with tempfile.NamedTemporaryFile("r") as output, tempfile.NamedTemporaryFile("r") as errors:
            asked = {
                "words": words, "directory": str(state_dir), "environment": environment_of(state_dir, environment),
                "output": output.name, "errors": errors.name,
            }  # fmt: skip
            self.server.stdin.write(json.dumps(asked) + "\n")
            self.server.stdin.flush()
            code = json.loads(self.server.stdout.readline())
            return code, output.read(), errors.read()

    def close(self) -> None:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait(30)
        self.server.stdout.close()


def serve() -> None:
    """The forked process leaves the loop, and ends as the program does, with all that runs at an exit."""
    from services.cli import main

    for line in sys.stdin:
        if pid := os.fork():
            _, status = os.waitpid(pid, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
        else:
            _become(json.loads(line))
            main()


def _become(asked: dict[str, Any]) -> None:
    signal.alarm(LIMIT_S)
    os.setsid()
    for target, name in enumerate((os.devnull, asked["output"], asked["errors"])):
        opened = os.open(name, os.O_RDWR)
        os.dup2(opened, target)
        os.close(opened)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["directory"])
    sys.argv = ["equipoise", *asked["words"]]


if __name__ == "__main__":
    serve()
