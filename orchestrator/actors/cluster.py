"""The Ray side of a job: its engines and the ranks of its learner, reserved, started and connected.

The driver's process owns every actor, so nothing outlives a driver that dies.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.job_config import JobConfig

from orchestrator.actors.engine_actors import END_S, LOOK_EVERY_S, ActorEngine, EngineActor, EngineFanout
from orchestrator.actors.gang import Gang, growth_s, machine_gpus, members, reserve, role_label
from orchestrator.actors.kernel_kills import kernel_kills
from orchestrator.actors.learner_group import LearnerRanks, meet, start_ranks
from orchestrator.actors.ray_errors import is_lost, last_line
from orchestrator.actors.remote_learner import LearnerError, RemoteLearner, loss_of
from orchestrator.errors import ActorLost, ResourcesBusy
from orchestrator.rollouts.engines import START_S, Engine, EngineError, EnginePool
from policies.learner import LearnerSettings
from policies.rollout import EngineSettings

OBJECT_STORE_BYTES = 256 * 2**20  # on one machine; batches of tokens are small
ANSWER_S = 5.0  # of a Ray cluster's head
PATIENCE_S = 60.0  # with an engine, in each phase of a weight update, at least
MEET_S = 600.0  # for learner and engines to become one group; torch's part of it ends after 300


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray's start puts a handler in the place of this process's, by which SIGTERM ends it: ours hears that, too."""
    ours = signal.getsignal(signal.SIGTERM)
    if not callable(ours) or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        yield
    except SystemExit:  # by Ray's
        ours(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGTERM, ours)


class _OwnPath(JobConfig):
    """For a process that imports nothing from its current folder: nor do Ray's workers, which have that one first."""

    def _runtime_env_has_working_dir(self) -> bool:  # as of a driver whose folder is a package that Ray unpacks
        return True


def _own_token() -> None:
    """Ray keeps a token in ~/.ray. Without a home, or with a read-only one, that of this job has a token of its own."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: of a user whom the system does not know
        token = Path.home() / ".ray" / "auth_token"
        if os.access(token, os.R_OK):
            return
        token.parent.mkdir(parents=True, exist_ok=True)
        if os.access(token.parent, os.W_OK):
            return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _start_ray(**options: Any) -> None:
    """Ray's own processes on this machine, in a second try where a busy one takes longer than the half minute that Ray
    gives them. ActorLost where that is too late as well: no fault of the job's."""
    for last in (False, True):
        try:
            ray.init(**options)
            return
        except Exception as error:  # Ray raises no narrower one there
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if last:
                raise ActorLost("Ray did not start in its time, twice: this machine is too busy") from error


def _join_ray(address: str, **options: Any) -> None:
    """The cluster there. ResourcesBusy where it can't be reached: its head may come back, or the address be mended.

    Asked by a plain connection first, as ray.init tries for minutes and names no address.
    """
    away = f"the Ray cluster at {address} (EQUIPOISE_RAY_ADDRESS) can't be reached"
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():  # not `auto`
        try:
            socket.create_connection((host.rpartition("/")[2].strip("[]"), int(port)), timeout=ANSWER_S).close()
        except (OSError, OverflowError) as error:
            raise ResourcesBusy(f"{away}: {error}") from error
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError) as error:  # ValueError: of no form that Ray knows
        raise ResourcesBusy(f"{away}: {last_line(error)}") from error


class Cluster:
    """Ray, the engines and the learner of one job, from start to end."""

    def __init__(self, *, address: str | None = None, cpus: int = 2, gpus: int | None = None) -> None:
        """Joins the cluster at `address`, or starts a Ray on this machine. Raises ResourcesBusy or ActorLost."""
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's own coming default
        self.actors: list[Any] = []
        self.engines: list[Any] = []  # of these
        self.gang: Gang | None = None
        self.pool: EnginePool | None = None
        self.grows = address is not None  # machines may join a cluster; our own Ray is this one
        self.owns_ray = not ray.is_initialized()
        if not self.owns_ray:
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if sys.flags.safe_path:
            quiet["job_config"] = _OwnPath()
        with _own_sigterm():
            if address is not None:
                _join_ray(address, **quiet)
                return
            _own_token()
            _start_ray(
                address="local",
                include_dashboard=False,
                num_cpus=cpus,
                num_gpus=gpus,
                object_store_memory=OBJECT_STORE_BYTES,
                **quiet,
            )

    @property
    def gpus(self) -> int:
        """Of all its machines."""
        return int(ray.cluster_resources().get("GPU", 0))

    def reserve(
        self,
        *,
        engines: int,
        engine_options: Mapping[str, Any],
        learner_options: Mapping[str, Any],
        learner_ranks: int = 1,
        reward_options: Sequence[Mapping[str, Any]] = (),
        timeout_s: float = 60.0,
        on_wait: Callable[[str], None] = lambda _: None,
    ) -> Gang:
        """Room for all that `start` starts with the same options, and for rewards' replicas in the places after them.

        Raises DoesNotFit or ResourcesBusy (gang.py).
        """
        actors = members(engine_options, engines, learner_options, learner_ranks, reward_options)
        self.gang = reserve(
            actors,
            timeout_s=timeout_s,
            grows=self.grows,
            growth_s=growth_s() if self.grows else 0.0,
            on_wait=on_wait,
            role_label=role_label() if self.grows else None,
            machine_gpus=machine_gpus() if self.grows else {},
        )
        return self.gang

    def start(
        self,
        engine: EngineSettings,
        learner: LearnerSettings,
        *,
        engines: int,
        engine_options: Mapping[str, Any],
        learner_options: Mapping[str, Any],
        learner_ranks: int = 1,
        learner_timeout_s: float | None = None,
        on_wait: Callable[[], None] = lambda: None,
    ) -> tuple[EnginePool, RemoteLearner]:
        """Everything at once, then connected; returns when all can serve. On a shared GPU engines follow the learner.

        Raises EngineError, LearnerError, and ActorLost where another try may mend it.

        `on_wait` is called every second until then, and may raise: a large model may take its time.
        """
        gang = self.gang or self.reserve(
            engines=engines,
            engine_options=engine_options,
            learner_options=learner_options,
            learner_ranks=learner_ranks,
        )
        killed = kernel_kills()
        trainer = start_ranks(
            learner, ranks=learner_ranks, options=learner_options, place=lambda rank: gang.place(engines + rank)
        )

        def start_engine(number: int, *, serving: bool = False) -> ActorEngine:
            factory = ray.remote(EngineActor).options(**engine_options, **gang.place(number))
            actor = factory.remote(engine, serving=serving)
            self.actors.append(actor)
            self.engines.append(actor)
            return ActorEngine(actor)

        one_gpu = engine.transport == "ipc"
        first: list[Engine] = [start_engine(i, serving=True) for i in range(0 if one_gpu else engines)]
        self.actors += trainer.actors
        try:
            meet(trainer, learner, timeout_s=learner_timeout_s, on_wait=on_wait)
        except ray.exceptions.RayError as error:
            raise loss_of(error, killed) or LearnerError(f"the learner did not start: {last_line(error)}") from error
        start_s = max(START_S, engine.timeout_s)
        while len(first) < engines:  # one by one: vLLM counts as its own what others take of the GPU while it starts
            first.append(start_engine(len(first), serving=True))
            self._await_engines(start_s, on_wait)
        self._await_engines(start_s, on_wait)
        in_group = engine.transport != "shared_memory"
        group = [actor.lasts.remote() for actor in self.engines] if in_group else []

        starting = True

        def connect(members: list[Engine]) -> None:
            actors = [member.actor for member in members if isinstance(member, ActorEngine)]
            hears = on_wait if starting else None
            connect_engines(trainer, actors, engine, group, timeout_s=learner_timeout_s, on_wait=hears)

        pool = self.pool = EnginePool(
            first,
            timeout_s=engine.timeout_s,
            stall_s=engine.stall_s,
            room=engine.max_num_seqs,
            start=None if in_group else start_engine,  # a group of ranks has no newcomers
            connect=connect,
            sleeps=engine.sleep,
        )
        pool.open()
        starting = False
        return pool, RemoteLearner(*trainer.actors, sync_s=engine.timeout_s, timeout_s=learner_timeout_s, group=group)

    def _await_engines(self, limit_s: float, on_wait: Callable[[], None]) -> None:
        waiting = [actor.ready.remote() for actor in self.engines]
        deadline = time.monotonic() + limit_s
        try:
            while waiting:
                ready, waiting = ray.wait(waiting, timeout=LOOK_EVERY_S)
                ray.get(ready)
                on_wait()
                if waiting and time.monotonic() > deadline:
                    raise ActorLost(f"{len(waiting)} of {len(self.engines)} engines did not start within {limit_s:g} s")
        except ray.exceptions.RayError as error:
            if is_lost(error):
                raise ActorLost(f"a rollout engine is gone: {last_line(error)}") from error
            raise EngineError(f"a rollout engine did not start: {last_line(error)}") from error

    def close(self) -> None:
        """Ends the actors, and Ray where this cluster started it."""
        if self.pool is not None:
            self.pool.close()
        if ending := [actor.end_core.remote() for actor in self.engines]:
            ray.wait(ending, num_returns=len(ending), timeout=END_S)
        for actor in self.actors:
            ray.kill(actor)
        self.actors, self.engines = [], []
        if self.gang is not None:
            self.gang.close()
            self.gang = None
        if self.owns_ray:
            ray.shutdown()


def connect_engines(
    trainer: LearnerRanks,
    engines: Sequence[Any],
    settings: EngineSettings,
    group: Sequence[Any],
    *,
    timeout_s: float | None = None,
    on_wait: Callable[[], None] | None = None,
) -> None:
    """From now on the learner sends these engines its weights. Raises ActorLost or LearnerError.

    Engines and learner of one group (`group`, as RemoteLearner has it) wait for each other: until one of them is gone,
    or for MEET_S. Else the learner may take `timeout_s`, and engines so long in each phase of an update that a sync has
    the time to do without one of them. `on_wait` is called every second meanwhile, and may raise.
    """
    killed = kernel_kills()
    patience_s = None if group else min(max(PATIENCE_S, settings.stall_s), settings.timeout_s / 4)
    fanout = functools.partial(EngineFanout, list(engines), patience_s=patience_s, ranks=settings.tensor_parallel)
    world_size = 1 + len(engines) * settings.tensor_parallel
    try:
        limit_s = MEET_S if group else timeout_s
        waits = {"timeout_s": limit_s, "watch": group, "on_wait": on_wait}
        trainer.call("connect", fanout, settings.transport, world_size, **waits)
    except ray.exceptions.GetTimeoutError as error:
        if not group:
            raise ActorLost(f"the learner hangs: {last_line(error)} (resources.learner_timeout_s)") from None
        raise LearnerError(
            f"learner and engines did not become one group within {MEET_S:g} s (rollout.transport: "
            f"{settings.transport}): their machines must reach each other at the addresses that Ray has for them, and "
            "NCCL_SOCKET_IFNAME, where it is set, must name the interface of these"
        ) from None
    except ray.exceptions.RayError as error:
        raise loss_of(error, killed) or LearnerError(f"the learner did not start: {last_line(error)}") from error
