"""The API as operators run it, in a process that tests may kill.

python -m tests.toy_api MUTANT ARGUMENTS    the same with a mistake of tests/toy_mutants.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from services.client import Client
from tests.ports import free_port

KEY = "eqp_faults"
LIMIT_S = 120  # only what hangs takes it
PROJECT = Path(__file__).parents[1]


class Api:
    """`equipoise serve` in a process of its own, on one port for good. Ready, unless `waits` is false."""

    def __init__(self, redis_url: str, state_dir: Path, *, mutant: str | None = None, waits: bool = True) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._arguments = ["serve", "--redis", redis_url, "--port", str(self.port), "--state-dir", str(state_dir)]
        self._program = ["services.cli"] if mutant is None else ["tests.toy_api", mutant]
        self._log = state_dir / f"api-{self.port}.log"
        self._began = 0.0
        self.process: subprocess.Popen[bytes]
        self.begin()
        if waits:
            self.wait_until_ready()

    def start(self) -> float:
        """Seconds until it is ready."""
        self.begin()
        return self.wait_until_ready()

    def begin(self) -> None:
        self._began = time.monotonic()
        environment = {**os.environ, "EQUIPOISE_API_KEY": KEY, "EQUIPOISE_MAX_WRITES_PER_MINUTE": "0"}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self._program, *self._arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=PROJECT,
            )  # fmt: skip

    def wait_until_ready(self) -> float:
        """Seconds since its start."""
        with Client(self.url, KEY, timeout_s=5) as client:
            while not client.ready():
                assert self.process.poll() is None, self._log.read_text()[-2000:]
                assert time.monotonic() < self._began + LIMIT_S, self._log.read_text()[-2000:]
                time.sleep(0.05)
        return time.monotonic() - self._began

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


if __name__ == "__main__":
    from services.cli import app
    from tests import toy_mutants

    toy_mutants.apply(sys.argv.pop(1))
    app()
