"""Commands that serve: all on one machine (`up`, `demo`), or one part of it (`serve`, `worker`)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from services.settings import DEFAULT_PORT, Settings, write_credentials
from services.terminal import fail, say

RedisUrl = Annotated[str, typer.Option(help="such as redis://:password@host:6379/0", envvar="EQUIPOISE_REDIS_URL")]
Host = Annotated[str, typer.Option(help="address to listen on; anything but loopback opens it to other machines")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")]

StateDir = Annotated[Path | None, typer.Option("--state-dir", help="instead of the common option's")]


class Device(StrEnum):
    cpu = "cpu"
    cuda = "cuda"


class Weighting(StrEnum):
    fixed = "fixed"
    hypervolume = "hypervolume"
    gradient = "gradient"


def add_commands(app: typer.Typer, state_dir: Callable[[], Path]) -> None:
    """`state_dir` is asked when a command runs, after the common options are read."""

    def chosen(option: Path | None) -> Path:
        return option.expanduser().absolute() if option else state_dir()

    @app.command()
    def up(host: Host = "127.0.0.1", port: Port = DEFAULT_PORT, state_dir: StateDir = None) -> None:
        """Serve everything on this machine: Redis, API and worker.

        Ctrl-C stops it cleanly; jobs go on at the next start.
        """
        from services.local import run_until_stopped

        _log_to_stderr()
        run_until_stopped(chosen(state_dir), host, port)

    @app.command()
    def demo(
        device: Annotated[Device | None, typer.Option(help="where it trains; found by itself if absent")] = None,
        steps: Annotated[int | None, typer.Option(min=1, help="instead of the example's own")] = None,
        weighting: Annotated[Weighting | None, typer.Option(help="who sets the weights")] = None,
        state_dir: StateDir = None,
    ) -> None:
        """Align a tiny model to three rewards, and get a report.

        Nothing to set up, no network. Ctrl-C stops it; the same command goes on where it was. For example:

            equipoise demo --weighting hypervolume --steps 40
        """
        from services.demo import run_demo

        _log_to_stderr()
        code = run_demo(chosen(state_dir), device=device, steps=steps, weighting=weighting)
        raise typer.Exit(code)

    @app.command()
    def serve(
        redis: RedisUrl,
        host: Host = "127.0.0.1",
        port: Port = DEFAULT_PORT,
        state_dir: StateDir = None,
    ) -> None:
        """Serve the API alone, on a Redis of yours.

        Its key is EQUIPOISE_API_KEY, else one that is kept in the state directory.
        """
        _log_to_stderr()
        _serve(redis, host, port, chosen(state_dir))

    @app.command()
    def worker(
        redis: RedisUrl,
        capacity: Annotated[int, typer.Option(min=1, max=64, help="jobs at once")] = 1,
        state_dir: StateDir = None,
    ) -> None:
        """Run queued jobs on this machine, from a Redis of yours.

        Several workers may share one Redis.
        """
        _log_to_stderr()
        _work(redis, capacity, chosen(state_dir))


def _serve(redis: str, host: str, port: int, state_dir: Path) -> None:
    from orchestrator.redis_calls import connect
    from orchestrator.store import JobStore
    from services.keys import digest
    from services.local import StopSignals, announce
    from services.server import ApiServer, ServerError

    signals = StopSignals()
    with signals.handled():
        try:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            api = ApiServer(host, port)
            credentials, is_new = write_credentials(state_dir, api.url, os.environ.get("EQUIPOISE_API_KEY"))
            api.start(JobStore(connect(redis)), Settings(state_dir=state_dir, key_sha256=digest(credentials.key)))
        except (ServerError, ValueError, OSError) as error:
            fail(str(error))
        announce(api, state_dir, credentials.key if is_new else None)
        signals.received.wait()
        api.stop()


def _work(redis: str, capacity: int, state_dir: Path) -> None:
    from orchestrator.redis_calls import connect
    from orchestrator.store import JobStore
    from orchestrator.worker import Worker
    from services.local import StopSignals, running

    try:
        worker = Worker(JobStore(connect(redis)), redis, state_dir, capacity=capacity)
    except ValueError as error:
        fail(f"--redis: {error}")
    signals = StopSignals()
    signals.on_second = worker.request_kill
    with signals.handled(), running(worker):
        say("worker: waiting for jobs (Ctrl-C stops it)")
        signals.received.wait()
        say("stopping: drivers write a checkpoint and hand their jobs back; Ctrl-C again to stop at once")


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
