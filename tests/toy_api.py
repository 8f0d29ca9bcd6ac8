"""The API as operators run it, in a process that tests may kill.

python -m tests.toy_api MUTANT ARGUMENTS    the same with a mistake of tests/toy_mutants.py
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from services.client import ApiError, Client

KEY = "eqp_faults"
PROJECT = Path(__file__).parents[1]


class Api:
    """`equipoise serve` in a process of its own, on one port for good."""

    def __init__(self, redis_url: str, state_dir: Path, *, mutant: str | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._arguments = ["serve", "--redis", redis_url, "--port", str(self.port), "--state-dir", str(state_dir)]
        self._program = ["services.cli"] if mutant is None else ["tests.toy_api", mutant]
        self._log = state_dir / "api.log"
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> float:
        """Seconds until it is ready."""
        began = time.monotonic()
        environment = {**os.environ, "EQUIPOISE_API_KEY": KEY, "EQUIPOISE_MAX_WRITES_PER_MINUTE": "0"}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self._program, *self._arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=PROJECT,
            )  # fmt: skip
        with Client(self.url, KEY, timeout_s=5) as client:
            while True:
                with contextlib.suppress(ApiError):
                    if client.ready():
                        return time.monotonic() - began
                assert self.process.poll() is None, self._log.read_text()[-2000:]
                time.sleep(0.05)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


if __name__ == "__main__":
    from services.cli import app
    from tests import toy_mutants

    toy_mutants.apply(sys.argv.pop(1))
    app()
