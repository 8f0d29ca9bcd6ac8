"""The Ray side of a job: one actor around each engine and the learner, and the handles that the loop calls.

The driver's process owns every actor, so nothing outlives a driver that dies.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from torch import Tensor

from orchestrator.errors import ActorLost
from orchestrator.gang import Gang, reserve
from policies.learner import Learner, LearnerSettings
from policies.rollout import EngineDied, EngineSettings, RolloutEngine
from policies.types import LearnStats, ObjectiveAdvantages, Rollout, RolloutRequest
from policies.weight_sync import Transport, make_sender

OBJECT_STORE_BYTES = 256 * 2**20  # on one machine; batches of tokens are small


class EngineError(RuntimeError):
    """A rollout engine did not answer as it should."""


class LearnerError(RuntimeError):
    """The learner could not make its update."""


class EngineActor(RolloutEngine):
    """A RolloutEngine in a process of its own."""

    async def ready(self) -> bool:
        return True


class LearnerActor:
    """A Learner in a process of its own, with its sender."""

    def __init__(self, settings: LearnerSettings) -> None:
        self.learner = Learner(settings)
        self.sender: Any = None

    def connect(self, engines: list[Any], transport: Transport, world_size: int) -> None:
        self.sender = make_sender(self.learner, EngineFanout(engines), transport=transport, world_size=world_size)

    def gramian(self, rollouts: Sequence[Rollout], advantages_BK: Tensor) -> Tensor:
        return self.learner.gramian(rollouts, advantages_BK)

    def learn(self, rollouts: Sequence[Rollout], advantages_B: Tensor, parts: ObjectiveAdvantages | None) -> LearnStats:
        return self.learner.learn(rollouts, advantages_B, parts=parts)

    def sync(self, version: int) -> None:
        self.sender.send(version)

    def save(self, directory: Path) -> None:
        self.learner.save_policy(directory / "policy")
        self.learner.save_state(directory)

    def load(self, directory: Path) -> None:
        self.learner.load_state(directory)

    def logprobs(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        return self.learner.logprobs(rollouts)


class EngineFanout:
    """Every engine as one, for the sender: each call returns when all have answered."""

    def __init__(self, engines: list[Any]) -> None:
        self.engines = engines

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        ray.get([engine.init_weight_transfer_engine.remote(init_info) for engine in self.engines])

    def start_weight_update(self) -> None:
        ray.get([engine.start_weight_update.remote() for engine in self.engines])

    def update_weights(self, update_info: Any) -> None:
        ray.get([engine.update_weights.remote(update_info) for engine in self.engines])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        ray.get([engine.finish_weight_update.remote(weight_version) for engine in self.engines])


class EnginePool:
    """Engines that share a batch. Which engine gets which request depends on nothing but their number."""

    def __init__(self, engines: list[Any], *, timeout_s: float) -> None:
        self.engines = engines
        self.timeout_s = timeout_s

    def generate(
        self, requests: Sequence[RolloutRequest], on_end: Callable[[int, Rollout], None] | None = None
    ) -> list[Rollout]:
        """One rollout for each request, in order. Raises ActorLost, EngineError where an engine is stale or silent.

        `on_end` is told of each as it ends, with the request's place; what it raises ends the wait.
        """
        count = len(self.engines)
        bounds = [len(requests) * i // count for i in range(count + 1)]
        streams: dict[Any, int] = {
            engine.stream.options(num_returns="streaming").remote(requests[low:high]): low
            for engine, (low, high) in zip(self.engines, itertools.pairwise(bounds), strict=True)
            if high > low
        }
        found: dict[int, Rollout] = {}
        deadline = time.monotonic() + self.timeout_s
        try:
            while streams:
                ready, _ = ray.wait(list(streams), timeout=max(0.0, deadline - time.monotonic()), fetch_local=False)
                if not ready:
                    raise EngineError(f"no rollouts within {self.timeout_s:g} s (rollout.timeout_s)")
                stream: Any = ready[0]
                low = streams[stream]
                try:
                    ended = ray.get(next(stream))
                except StopIteration:
                    del streams[stream]
                    continue
                for place, rollout in ended:
                    found[low + place] = rollout
                    if on_end is not None:
                        on_end(low + place, rollout)
        except ray.exceptions.RayError as error:
            if _is_lost(error):
                raise ActorLost(f"a rollout engine is gone: {last_line(error)}") from error
            raise EngineError(f"a rollout engine failed: {last_line(error)}") from error
        return [found[place] for place in range(len(requests))]


class RemoteLearner:
    """The learner as the loop sees it. Raises ActorLost, or LearnerError with the learner's own reason."""

    def __init__(self, actor: Any, *, timeout_s: float) -> None:
        self.actor = actor
        self.timeout_s = timeout_s

    def gramian(self, rollouts: Sequence[Rollout], advantages_BK: Tensor) -> Tensor:
        return self._get(self.actor.gramian.remote(rollouts, advantages_BK))

    def learn(self, rollouts: Sequence[Rollout], advantages_B: Tensor, parts: ObjectiveAdvantages | None) -> LearnStats:
        return self._get(self.actor.learn.remote(rollouts, advantages_B, parts))

    def sync(self, version: int) -> None:
        """Every engine samples from the learner's weights when this returns."""
        self._get(self.actor.sync.remote(version), self.timeout_s)

    def save(self, directory: Path) -> None:
        self._get(self.actor.save.remote(directory))

    def load(self, directory: Path) -> None:
        self._get(self.actor.load.remote(directory))

    def logprobs(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        return self._get(self.actor.logprobs.remote(rollouts))

    def _get(self, reference: Any, timeout_s: float | None = None) -> Any:
        try:
            return ray.get(reference, timeout=timeout_s)
        except ray.exceptions.GetTimeoutError:
            raise LearnerError(f"the weights did not reach the engines within {self.timeout_s:g} s") from None
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, OSError):  # the disk's own words, for the checkpoint's error
                raise cause from None
            if _is_lost(error):  # itself, or in a sync an engine
                raise ActorLost(f"the learner or an engine is gone: {last_line(error)}") from error
            raise LearnerError(f"the learner failed: {last_line(error)}") from error


class Cluster:
    """Ray, the engines and the learner of one job, from start to end."""

    def __init__(self, *, address: str | None = None, cpus: int = 2, gpus: int | None = None) -> None:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's own coming default
        self.actors: list[Any] = []
        self.gang: Gang | None = None
        self.grows = address is not None  # machines may join a cluster; our own Ray is this one
        self.owns_ray = not ray.is_initialized()
        if not self.owns_ray:
            return
        local: dict[str, Any] = {}
        if address is None:
            local = {"num_cpus": cpus, "num_gpus": gpus, "object_store_memory": OBJECT_STORE_BYTES}
        ray.init(
            address=address or "local",
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **local,
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
        reward_options: Sequence[Mapping[str, Any]] = (),
        timeout_s: float = 60.0,
        on_wait: Callable[[str], None] = lambda _: None,
    ) -> Gang:
        """Room for all that `start` starts with the same options, and for rewards' replicas in the places after them.

        Raises DoesNotFit or ResourcesBusy (gang.py).
        """
        actors = [*itertools.repeat(engine_options, engines), learner_options]
        self.gang = reserve(actors, timeout_s=timeout_s, grows=self.grows, on_wait=on_wait, apart=list(reward_options))
        return self.gang

    def start(
        self,
        engine: EngineSettings,
        learner: LearnerSettings,
        *,
        engines: int,
        engine_options: Mapping[str, Any],
        learner_options: Mapping[str, Any],
    ) -> tuple[EnginePool, RemoteLearner]:
        """Everything at once, then connected; returns when all can serve. Raises EngineError or LearnerError."""
        gang = self.gang or self.reserve(
            engines=engines, engine_options=engine_options, learner_options=learner_options
        )
        pool: list[Any] = [
            ray.remote(EngineActor).options(**engine_options, **gang.place(i)).remote(engine) for i in range(engines)
        ]
        trainer: Any = ray.remote(LearnerActor).options(**learner_options, **gang.place(engines)).remote(learner)
        self.actors = [*pool, trainer]
        try:
            ray.get([actor.ready.remote() for actor in pool])
        except ray.exceptions.RayError as error:
            if _is_lost(error):
                raise ActorLost(f"a rollout engine is gone: {last_line(error)}") from error
            raise EngineError(f"a rollout engine did not start: {last_line(error)}") from error
        world_size = 1 + engines * engine.tensor_parallel
        try:
            ray.get(trainer.connect.remote(pool, engine.transport, world_size))
        except ray.exceptions.RayError as error:
            if _is_lost(error):
                raise ActorLost(f"the learner or an engine is gone: {last_line(error)}") from error
            raise LearnerError(f"the learner did not start: {last_line(error)}") from error
        return EnginePool(pool, timeout_s=engine.timeout_s), RemoteLearner(trainer, timeout_s=engine.timeout_s)

    def close(self) -> None:
        """Ends the actors, and Ray where this cluster started it."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []
        if self.gang is not None:
            self.gang.close()
            self.gang = None
        if self.owns_ray:
            ray.shutdown()


def _is_lost(error: BaseException) -> bool:
    """Whether a process is gone, rather than that it said what was wrong. A constructor's mistake is its own word."""
    if isinstance(error, ray.exceptions.RayActorError):
        return not error.actor_init_failed
    return isinstance(error, EngineDied)  # Ray gives a task's error the class of its cause as well


def last_line(error: BaseException) -> str:
    """The line of a remote traceback that says what was wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
