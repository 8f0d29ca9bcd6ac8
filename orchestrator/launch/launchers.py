"""Where drivers run: the seam between the worker, which decides what runs, and what starts a process and watches it.

On one machine a driver is a subprocess (here); on a cluster it is one of Ray's jobs (ray_jobs.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.state.keys import OWN_OWNER

REDIS_URL_VARIABLE = "EQUIPOISE_REDIS_URL"
NONCE_VARIABLE = "EQUIPOISE_LEASE_NONCE"
REDIS_URL_FILE_VARIABLE = "EQUIPOISE_REDIS_URL_FILE"
LOG_NAME = "driver.log"  # in the job's directory
OTHER_HOLDER = 3  # exit code of a driver that lost or missed its lease: no harm done
NO_RESOURCES = 4  # of one that handed its job back, as others hold what it needs
_API_KEYS = frozenset(
    f"{name}{file}" for name in ("EQUIPOISE_API_KEY", "EQUIPOISE_METRICS_KEY") for file in ("", "_FILE")
)
_LAST_LINE_CHARS = 300
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})  # as the hub's client reads variables


class Handle(Protocol):
    """One driver, wherever it runs."""

    @property
    def owner(self) -> str: ...

    @property
    def job_id(self) -> str: ...

    @property
    def fence(self) -> int:
        """The job's when the driver was started: its claim raises it."""
        ...

    @property
    def nonce(self) -> str | None:
        """Of the lease that the driver claims, so that its worker can end it; None where only the driver knows it."""
        ...

    @property
    def name(self) -> str:
        """What people find the process by."""
        ...

    @property
    def log(self) -> str:
        """Where people find what it printed."""
        ...

    def poll(self) -> int | None:
        """None while it runs, else its exit code (negative: the signal that ended it), and nothing of it is left."""
        ...

    def terminate(self) -> None:
        """Asks it to write a checkpoint, hand its job back and end; returns at once."""
        ...

    def kill(self) -> None:
        """Ends it, and all that it started, without its job being handed back."""
        ...

    def last_line(self) -> str:
        """The last thing that it said, at most 300 characters."""
        ...


class Launcher(Protocol):
    """Starts drivers. Everything may raise LauncherUnavailable."""

    @property
    def survives_worker(self) -> bool:
        """True where drivers go on when the worker ends, and `running` finds them again."""
        ...

    def start(self, job_id: str, owner: str, *, fence: int) -> Handle:
        """A driver for this job at this fence. OSError where the job's own files are in the way."""
        ...

    def running(self) -> Sequence[Handle]:
        """Drivers that an earlier worker started and that have not ended."""
        ...


def driver_command(job_id: str, owner: str, state_dir: Path, *, python: str = sys.executable) -> list[str]:
    """How a driver is started; where the Redis is stands in its environment."""
    return [
        python, "-m", "orchestrator.driver",
        "--job", job_id, "--owner", owner, "--state-dir", str(state_dir),
    ]  # fmt: skip


def hub_environment(owner: str, state_dir: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What keeps the hub's private and gated models, which the server's token opens, from the jobs of other owners.

    They load what everybody may: without a token, and from a cache that none filled. Where nothing is fetched, all have
    the cache that the operator filled.
    """
    if owner == OWN_OWNER:
        return {}
    is_offline = any(environment.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    cache = {} if is_offline else {"HF_HUB_CACHE": str(state_dir / "hub")}
    return {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", **cache}


class SubprocessLauncher:
    """Drivers on this machine, each in a session of its own, so that a signal to us or our death doesn't reach it.

    A driver gets the Redis URL, which may hold a password, by its environment: everyone on a machine can read
    arguments. It ends with us where we can end it; a driver whose worker was killed keeps its job by its lease.
    """

    survives_worker = False

    def __init__(
        self, redis_url: str, state_dir: Path, *, command: Callable[[str, str, Path], list[str]] = driver_command
    ) -> None:
        self._redis_url = redis_url
        self._state_dir = state_dir
        self._command = command

    def start(self, job_id: str, owner: str, *, fence: int) -> Subprocess:
        directory = self._state_dir / "jobs" / job_id
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        log_path, nonce = directory / LOG_NAME, secrets.token_hex(16)
        with log_path.open("ab") as output:
            process = subprocess.Popen(
                self._command(job_id, owner, self._state_dir),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=self._environment() | hub_environment(owner, self._state_dir) | {NONCE_VARIABLE: nonce},
            )
        return Subprocess(owner=owner, job_id=job_id, fence=fence, nonce=nonce, process=process, log_path=log_path)

    def running(self) -> Sequence[Subprocess]:
        """Not those of a worker that was killed: they are no children of ours, and their leases guard their jobs."""
        return []

    def _environment(self) -> dict[str, str]:
        """Ours, with the Redis and without the API's keys, which no driver needs."""
        kept = {name: value for name, value in os.environ.items() if name not in _API_KEYS}
        return {**kept, REDIS_URL_VARIABLE: self._redis_url}


@dataclass(kw_only=True)
class Subprocess:
    """A driver as a child of ours."""

    owner: str
    job_id: str
    fence: int
    nonce: str
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def name(self) -> str:
        return f"driver {self.process.pid}"

    @property
    def log(self) -> str:
        return str(self.log_path)

    def poll(self) -> int | None:
        if self.process.returncode is None:
            if not self._has_ended():
                return None
            self.kill()
        return self.process.returncode

    def terminate(self) -> None:
        if self.process.returncode is None:
            os.kill(self.process.pid, signal.SIGTERM)  # Popen.send_signal would reap one that has ended

    def kill(self) -> None:
        if self.process.returncode is not None:
            return  # its pid may be another's by now
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: nobody left but the zombie itself
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def last_line(self) -> str:
        with self.log_path.open("rb") as file:
            file.seek(max(0, self.log_path.stat().st_size - 8192))
            return last_line(file.read().decode("utf-8", "replace"))

    def _has_ended(self) -> bool:
        """Without reaping it: until then its pid, which names its group, can't be given to another process."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def last_line(log: str) -> str:
    """The last line that says something; of a JSON line, its message."""
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")
    with contextlib.suppress(ValueError, AttributeError):
        last = str(json.loads(last).get("message", last))
    return last[:_LAST_LINE_CHARS]
