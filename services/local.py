"""All of Equipoise on one machine: embedded Redis, the API and a worker, started and stopped together."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from orchestrator.errors import StoreUnavailable
from orchestrator.launch.launchers import SubprocessLauncher
from orchestrator.launch.worker import Worker
from orchestrator.state.embedded_redis import EmbeddedRedis
from orchestrator.state.redis_calls import connect
from orchestrator.state.store import JobStore
from services.keys import digest
from services.processes import StopSignals, announce, api_server, dispatching, running
from services.server import ApiServer, ServerError
from services.settings import (
    Credentials,
    Limits,
    Listen,
    Settings,
    checkpoint_store,
    gpu_gib,
    memory_gib,
    write_credentials,
)
from services.terminal import fail, say

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


def own_memory_gib() -> float | None:
    """Of this machine, or the container on it, whose worker runs the jobs; None where they run on a Ray cluster."""
    if os.environ.get("EQUIPOISE_RAY_ADDRESS"):
        return None
    sizes: list[int] = [psutil.virtual_memory().total]
    with suppress(OSError, ValueError):  # there is none, or no limit in it
        sizes.append(int(CONTAINER_LIMIT.read_text()))
    return min(sizes) / 2**30


class AlreadyRunning(Exception):
    """Another process serves this state directory."""


class LocalServer:
    """`start`, then `stop`; `kill` may interrupt a stop that takes too long. One per state directory."""

    def __init__(self, state_dir: Path, listen: Listen) -> None:
        self.state_dir = state_dir
        self._listen = listen
        self._cleanup = ExitStack()
        self._worker: Worker | None = None
        self.api: ApiServer
        self.credentials: Credentials
        self.key_is_new = False

    def start(self) -> None:
        """Raises AlreadyRunning, ServerError or StoreUnavailable, with everything stopped again."""
        with ExitStack() as started:
            self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            started.enter_context(_only_one(self.state_dir / "up.lock"))
            self.api = api_server(self._listen)
            started.callback(self.api.stop)
            redis = started.enter_context(EmbeddedRedis(self.state_dir / "redis"))
            # The reverse order of stopping: worker (its drivers' last writes need Redis), API, Redis.
            started.callback(self.api.stop)
            self.credentials, self.key_is_new = write_credentials(
                self.state_dir, self.api.url, ca_file=self.api.ca_file
            )
            store = JobStore(connect(redis.url))
            key_sha256 = digest(self.credentials.key)
            limits = Limits.from_environment()
            settings = Settings(
                state_dir=self.state_dir,
                key_sha256=key_sha256,
                follow_key_file=True,
                local_exports=True,
                limits=limits,
                dashboard=self.api.dashboard(),
                checkpoint_store=checkpoint_store(),
                gpu_gib=gpu_gib(),
                memory_gib=memory_gib() or own_memory_gib(),
            )
            self.api.start(store, settings)
            started.enter_context(dispatching(store))
            self._worker = Worker(
                store,
                SubprocessLauncher(redis.url, self.state_dir),
                state_dir=self.state_dir,
                most_running=limits.most_running,
            )
            started.enter_context(running(self._worker))
            self._cleanup = started.pop_all()

    @property
    def working_on(self) -> list[str]:
        return self._worker.running if self._worker else []

    def stop(self) -> None:
        """Drivers write a checkpoint and hand their jobs back; then the API and Redis end."""
        self._cleanup.close()

    def kill(self) -> None:
        """Drivers are killed at once; a `stop` in progress then ends quickly."""
        if self._worker is not None:
            self._worker.request_kill()


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Holds a lock that ends with this process however it ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"another `equipoise up` already serves {path.parent}") from None
        yield
    finally:
        os.close(descriptor)


def run_until_stopped(state_dir: Path, listen: Listen) -> None:
    """`equipoise up`."""
    server = LocalServer(state_dir, listen)
    signals = StopSignals()
    signals.on_second = server.kill
    with signals.handled():
        try:
            server.start()
        except (AlreadyRunning, ServerError, StoreUnavailable, ValueError, OSError) as error:
            fail(str(error))
        try:
            announce(server.api, state_dir, server.credentials.key if server.key_is_new else None)
            say("Ctrl-C stops it; jobs go on at the next start")
            signals.received.wait()
            if server.working_on:
                say("stopping: the running job writes a checkpoint first; Ctrl-C again to stop at once")
        finally:
            server.stop()
    say("stopped")
