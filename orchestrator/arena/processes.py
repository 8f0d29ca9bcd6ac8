"""Workers as processes of their own: the arena stays without torch, and what breaks in a run ends with its process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from orchestrator.actors.threads import WAITING
from orchestrator.arena.conduct import ArenaStopped, RunFailed
from orchestrator.arena.plan import Planned
from orchestrator.spec import JobSpec

END_S = 30.0
PATIENCE_S = 1800.0  # with a run: its policy may have to be made first
STEP_PATIENCE_S = 60.0  # and with each of its steps, which take some seconds on two cores


class ProcessWorker:
    """A worker.py beside this process, started with the first run and again after its death.

    A run that takes longer than `patience_s`, and `step_patience_s` for each of its steps, hangs, and would keep its
    place for ever; it is ended and has failed.
    """

    patience_s = PATIENCE_S
    step_patience_s = STEP_PATIENCE_S

    def __init__(self, number: int, directory: Path, state_dir: Path, *, threads: int) -> None:
        self.log = directory / f"worker-{number}.log"
        self._command = [sys.executable, "-m", "orchestrator.arena.worker", "--state-dir", str(state_dir)]
        self._command += ["--scratch", str(directory / f"scratch-{number}"), "--threads", str(threads)]
        self._process: subprocess.Popen[str] | None = None

    def make(self, planned: Planned, spec: JobSpec) -> dict[str, Any]:
        request = {"task": planned.task.name, "policy_seed": planned.policy_seed, "spec": spec.model_dump(mode="json")}
        answer = self._ask(json.dumps(request), self.patience_s + self.step_patience_s * planned.steps)
        if "stop" in answer:
            raise ArenaStopped(f"{answer['stop']}; what was finished stays, and --resume goes on from there")
        if "failed" in answer:
            raise RunFailed(answer["failed"])
        figures: dict[str, Any] = answer["figures"]
        return figures

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(END_S)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._process = None

    def _ask(self, request: str, longest_s: float) -> dict[str, Any]:
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        hanging = threading.Event()

        def end() -> None:
            hanging.set()
            process.kill()

        clock = threading.Timer(longest_s, end)
        clock.daemon = True
        clock.start()
        try:
            process.stdin.write(request + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        finally:
            clock.cancel()
        if not line.endswith("\n"):
            code = process.wait()
            self.close()
            if hanging.is_set():
                raise RunFailed(f"it had not ended after {longest_s:g} s; {self.log} has its last words")
            raise RunFailed(f"its process ended with code {code}; {self.log} has its last words")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _start(self) -> subprocess.Popen[str]:
        try:
            with self.log.open("a") as log:
                return subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    start_new_session=True,  # Ctrl-C is the arena's to hear
                    env=WAITING | os.environ,
                )
        except OSError as error:
            raise ArenaStopped(f"can't start a worker: {error.strerror or error}") from error
