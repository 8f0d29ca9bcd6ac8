"""The Ray side of a job: an actor around each engine and each rank of the learner, and the handles for the loop.

The driver's process owns every actor, so nothing outlives a driver that dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
from torch import Tensor

from orchestrator.actors.gang import Gang, growth_s, members, reserve, role_label
from orchestrator.actors.kernel_kills import kernel_kills
from orchestrator.actors.learner_group import LearnerRanks, meet, start_ranks
from orchestrator.errors import ActorLost, LearnerOutOfMemory, ResourcesBusy
from orchestrator.rollouts.engines import START_S, Answer, Engine, EngineError, EngineLost, EnginePool
from policies.learner import LearnerSettings
from policies.rollout import EngineDied, EngineSettings, RolloutEngine, StaleEngineError
from policies.types import LearnStats, ObjectiveAdvantages, Rollout, RolloutRequest
from policies.weight_sync import shared_file

OBJECT_STORE_BYTES = 256 * 2**20  # on one machine; batches of tokens are small
ANSWER_S = 5.0  # of a Ray cluster's head
PATIENCE_S = 60.0  # with an engine, in each phase of a weight update, at least
MEET_S = 600.0  # for learner and engines to become one group; torch's part of it ends after 300
LOOK_EVERY_S = 1.0
SAVED_EVERY_S = 0.2
END_S = 5.0  # an engine's process ends vLLM's before it is ended itself


# By the names that vLLM and Python choose, in a process's list of what it has in its memory.
SHARED_BY_RANKS = re.compile(r"/dev/shm/(?:psm_|vllm_dist_|sem\.mp-)[^/\s]+$", re.MULTILINE)


PORT_TAKEN = ("EADDRINUSE", "ddress already in use")  # in torch's and gloo's words


class LearnerError(RuntimeError):
    """The learner could not make its update."""


class EngineActor(RolloutEngine):
    """A RolloutEngine in a process of its own."""

    def __init__(self, settings: EngineSettings, *, serving: bool = True) -> None:
        """Not `serving`: it takes another's place, whose policy is not the initial one, and waits for its weights."""
        super().__init__(settings)
        self.stale = not serving

    async def ready(self) -> bool:
        return True

    async def machine(self) -> str:
        """Ray's name of the one that it is on."""
        return ray.get_runtime_context().get_node_id()

    async def update_weights(self, update_info: Any, contents: np.ndarray | None = None) -> None:
        """`contents` of the file that `update_info` names, where that is on another machine."""
        if contents is None:
            await super().update_weights(update_info)
            return
        with shared_file() as path:
            contents.tofile(path)
            await super().update_weights({**update_info, "path": str(path)})

    async def lasts(self) -> None:
        """Never answers: a wait for it ends with Ray's error once this process is gone, with EngineDied, or with the
        EngineError that the engine had in a weight update, while the learner may still wait for it."""
        while True:
            await self.version()
            if self.broken is not None:
                raise EngineError(self.broken)
            await asyncio.sleep(LOOK_EVERY_S)

    async def end_core(self) -> None:
        """vLLM's processes would end with this one, but not one that is stopped; nor would the memory that several
        ranks share, up to .7 GB."""
        shared = set()
        for child in (children := psutil.Process().children(recursive=True)):
            with contextlib.suppress(OSError):
                shared |= set(SHARED_BY_RANKS.findall(Path(f"/proc/{child.pid}/maps").read_text()))
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        for path in shared:
            Path(path).unlink(missing_ok=True)


class ActorEngine:
    """An Engine (engines.py) in a Ray actor."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self._ready = actor.ready.remote()

    def started(self) -> bool:
        with _as_an_engine():
            return bool(ray.wait([self._ready], timeout=0)[0]) and ray.get(self._ready)

    def stream(self, requests: Sequence[RolloutRequest], call: str) -> Iterator[list[tuple[int, Rollout]]]:
        with _as_an_engine():
            for reference in self.actor.stream.options(num_returns="streaming").remote(requests, call):
                yield ray.get(reference)

    def withdraw(self, call: str) -> None:
        with contextlib.suppress(Exception):  # it, or Ray, is gone
            self.actor.withdraw.remote(call)

    def version(self) -> Answer[int]:
        return _answer(self.actor.version.remote())

    def rest(self) -> Answer[bool]:
        return _answer(self.actor.rest.remote())

    def rise(self) -> Answer[bool]:
        return _answer(self.actor.rise.remote())

    def kill(self) -> None:
        def end() -> None:
            with contextlib.suppress(Exception):  # it is to end in any case
                ray.wait([self.actor.end_core.remote()], timeout=END_S)
            with contextlib.suppress(Exception):
                ray.kill(self.actor)

        threading.Thread(target=end, name="end-engine", daemon=True).start()


def _answer(reference: Any) -> Answer[Any]:
    def answer(timeout_s: float) -> Any:
        try:
            return ray.get(reference, timeout=timeout_s)
        except (ray.exceptions.RayError, TimeoutError):  # what the next call says, too
            return None

    return answer


@contextlib.contextmanager
def _as_an_engine() -> Iterator[None]:
    """Ray's errors in the pool's words."""
    try:
        yield
    except StaleEngineError as error:
        raise StaleEngineError(last_line(error)) from error
    except ray.exceptions.RayError as error:
        raise (EngineLost if _is_lost(error) else EngineError)(last_line(error)) from error


class EngineFanout:
    """Every engine as one, for the sender: each call returns when all have answered.

    With `patience_s`, an engine that fails, is lost or does not answer in that time is left out of the rest of the
    update: the others' comes to its end, and this one is found without the new version. Without it the first error is
    raised, as where engines and learner are ranks of one group, in which each engine has `ranks` of them.
    """

    def __init__(self, engines: list[Any], *, patience_s: float | None = None, ranks: int = 1) -> None:
        self._whole = engines
        self.engines = list(engines)
        self.patience_s = patience_s
        self.ranks = ranks

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """In a group each has its own `rank_offset`: the sender gives the first one's, as it knows of one engine."""
        infos = [dict(init_info) for _ in self.engines]
        if "rank_offset" in init_info:
            for number, info in enumerate(infos):
                info["rank_offset"] += number * self.ranks
        calls = zip(self.engines, infos, strict=True)
        self._all([engine.init_weight_transfer_engine.remote(info) for engine, info in calls])

    def start_weight_update(self) -> None:
        self.engines = list(self._whole)  # one that was slow the last time may have got everything in the end
        self._all([engine.start_weight_update.remote() for engine in self.engines])

    def update_weights(self, update_info: Any) -> None:
        """Engines on other machines get what is in this one's file by Ray's store, which has it once for all."""
        carried: tuple[Any, ...] = ()
        away = [False] * len(self.engines)
        if isinstance(update_info, dict) and "path" in update_info:
            here = ray.get_runtime_context().get_node_id()
            away = [machine != here for machine in self._all([engine.machine.remote() for engine in self.engines])]
            if any(away):
                contents = np.memmap(update_info["path"], dtype=np.uint8, mode="r")
                carried = (ray.put(np.asarray(contents)),)
        calls = zip(self.engines, away, strict=True)
        self._all([engine.update_weights.remote(update_info, *(carried if far else ())) for engine, far in calls])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all([engine.finish_weight_update.remote(weight_version) for engine in self.engines])

    def _all(self, references: list[Any]) -> list[Any]:
        """What the engines said, of those that are left then."""
        calls = dict(zip(references, self.engines, strict=True))
        if self.patience_s is None:
            try:
                return ray.get(list(calls))
            except ray.exceptions.RayTaskError as error:
                if _is_lost(error):
                    raise
                raise EngineError(last_line(error)) from error  # which the learner does not take for its own
        answered, _ = ray.wait(list(calls), num_returns=len(calls), timeout=self.patience_s)
        self.engines, said = [], []
        problem: Exception = EngineDied(f"no engine answered within {self.patience_s:g} s (rollout.stall_s)")
        for reference in answered:
            try:
                said.append(ray.get(reference))
            except ray.exceptions.RayError as error:
                problem = error
            else:
                self.engines.append(calls[reference])
        if not self.engines:
            raise problem
        return said


class RemoteLearner:
    """The learner as the loop sees it. Raises ActorLost, or LearnerError with the learner's own reason.

    `sync_s` is how long a sync may take, and `timeout_s` any other call; what takes longer is lost, as if it had died.
    `group` has a reference for each engine that is in one group with it, as `LearnerRanks.call` watches them; none
    where an engine may come and go.
    """

    def __init__(self, *ranks: Any, sync_s: float, timeout_s: float | None = None, group: Sequence[Any] = ()) -> None:
        self.ranks = LearnerRanks(ranks)
        self.sync_s = sync_s
        self.timeout_s = timeout_s
        self.group = group

    def gramian(self, rollouts: Sequence[Rollout], advantages_BK: Tensor) -> Tensor:
        return self._call("gramian", ray.put(rollouts), advantages_BK)

    def learn(self, rollouts: Sequence[Rollout], advantages_B: Tensor, parts: ObjectiveAdvantages | None) -> LearnStats:
        return self._call("learn", ray.put(rollouts), advantages_B, parts)

    def sync(self, version: int) -> None:
        """Every engine samples from the learner's weights when this returns.

        What goes wrong in a group is ActorLost: one that broke off in an exchange is of no use, and a new one may be.
        """
        try:
            self._call("sync", version, timeout_s=self.sync_s, watch=self.group)
        except (LearnerError, OSError) as error:
            if not self.group:
                raise
            raise ActorLost(f"learner and engines are to begin anew: {error}") from error

    def save(self, directory: Path, *, beside: bool = False) -> Callable[[], None]:
        """The learner's files. To save `beside` the next steps takes copies now; what is returned waits for the files.

        That may be called in another thread, and raises as this.
        """
        self._call("save", directory, beside)

        def written() -> None:
            while beside and not all(self._ask("saved")):  # ranks answer between their updates
                time.sleep(SAVED_EVERY_S)

        return written

    def load(self, directory: Path) -> None:
        self._call("load", directory)

    def logprobs(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        return self._call("logprobs", ray.put(rollouts))

    def renew(self, settings: LearnerSettings) -> None:
        """As new, for another job; engines have the old weights until the next sync."""
        self._call("renew", settings)

    def _call(self, method: str, *arguments: Any, **waiting: Any) -> Any:
        """The first rank's answer to `_ask`."""
        return self._ask(method, *arguments, **waiting)[0]

    def _ask(self, method: str, *arguments: Any, **waiting: Any) -> list[Any]:
        killed = kernel_kills()
        try:
            return self.ranks.ask(method, *arguments, **{"timeout_s": self.timeout_s} | waiting)
        except ray.exceptions.GetTimeoutError:
            if method == "sync":
                told = f"the weights did not reach the engines within {self.sync_s:g} s (rollout.timeout_s)"
            else:
                told = f"the learner did not end `{method}` within {self.timeout_s:g} s (resources.learner_timeout_s)"
            raise ActorLost(told) from None
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, OSError):  # the disk's own words, for the checkpoint's error
                raise cause from None
            loss = _loss(error, killed)  # of itself, or in a sync of an engine
            raise loss or LearnerError(f"the learner failed: {last_line(error)}") from error


def _loss(error: ray.exceptions.RayError, killed: int) -> ActorLost | None:
    """What another try may mend; None where the learner itself said what was wrong.

    `killed`: the kernel's kills of this machine (kernel_kills.py) before the call; a learner on another is just gone.
    """
    if isinstance(getattr(error, "cause", None), EngineError):
        return ActorLost(f"a rollout engine failed in a weight update: {last_line(error)}")
    if isinstance(error, ray.exceptions.OutOfMemoryError) or is_out_of_memory(getattr(error, "cause", None)):
        return LearnerOutOfMemory(f"the learner is out of memory: {last_line(error)}")
    if isinstance(error, ray.exceptions.GetTimeoutError):
        return ActorLost(f"the learner hangs: {last_line(error)} (resources.learner_timeout_s)")
    if any(words in str(error) for words in PORT_TAKEN):
        return ActorLost(f"a port that learner and engines were to meet at was taken meanwhile: {last_line(error)}")
    if not _is_lost(error):
        return None
    if kernel_kills() > killed:
        return LearnerOutOfMemory("the kernel ended the learner, or an engine, for want of memory")
    return ActorLost(f"the learner or an engine is gone: {last_line(error)}")


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
        with _own_sigterm():
            if address is not None:
                _join_ray(address, **quiet)
                return
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
            raise _loss(error, killed) or LearnerError(f"the learner did not start: {last_line(error)}") from error
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
            if _is_lost(error):
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
        raise _loss(error, killed) or LearnerError(f"the learner did not start: {last_line(error)}") from error


def _is_lost(error: BaseException) -> bool:
    """Whether a process is gone, rather than that it said what was wrong. A constructor's mistake is its own word."""
    if isinstance(error, ray.exceptions.RayActorError):
        return not error.actor_init_failed
    return isinstance(error, EngineDied)  # Ray gives a task's error the class of its cause as well


def is_out_of_memory(cause: object) -> bool:
    """Python's own error, or torch's, of a GPU and of the machine: it names the latter in words alone."""
    known = isinstance(cause, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(cause, RuntimeError) and "can't allocate memory" in str(cause))


def last_line(error: BaseException) -> str:
    """The line of a remote traceback that says what was wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
