"""Rollout engines in Ray actors: one as the pool sees it, and all of them as the sender of weights does."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from orchestrator.actors.ray_errors import is_lost, last_line
from orchestrator.rollouts.engines import Answer, EngineError, EngineLost
from policies.rollout import EngineDied, EngineSettings, RolloutEngine, StaleEngineError
from policies.types import Rollout, RolloutRequest
from policies.weight_sync import shared_file

LOOK_EVERY_S = 1.0
END_S = 5.0  # an engine's process ends vLLM's before it is ended itself
# By the names that vLLM and Python choose, in a process's list of what it has in its memory.
SHARED_BY_RANKS = re.compile(r"/dev/shm/(?:psm_|vllm_dist_|sem\.mp-)[^/\s]+$", re.MULTILINE)


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
        raise (EngineLost if is_lost(error) else EngineError)(last_line(error)) from error


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
                if is_lost(error):
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
