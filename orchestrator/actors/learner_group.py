"""The learner's ranks as Ray actors: one process alone, or several in a group of torch's.

    rank 0 says where they meet -> all join -> each has its Learner -> rank 0 alone has a sender

Every call goes to all ranks: a pass through a sharded model needs the others, and so does collecting its weights.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.failpoints import reach
from orchestrator.software import processor
from policies.learner import Learner, LearnerSettings
from policies.types import LearnStats, ObjectiveAdvantages, Rollout
from policies.weight_sync import Collected, EngineClient, Transport, make_sender

MEETING_S = 1800.0  # for all ranks to have started, and in any exchange: the slowest may have a large model to load
LOSS_S = 5.0  # until Ray knows that an actor is gone
LOOK_EVERY_S = 1.0


class LearnerActor:
    """A Learner in a process of its own; the first rank's has the sender."""

    def __init__(self, settings: LearnerSettings, *, rank: int = 0, ranks: int = 1) -> None:
        self.settings, self.rank, self.ranks = settings, rank, ranks
        self.sender: Any = None
        self.shares_gpu = False  # with engines
        self.saving: Future[None] | None = None
        if not in_group(settings, ranks):
            self._load()

    def meeting_place(self) -> str:
        """An address at which the ranks can find the first."""
        address = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{address}:{probe.getsockname()[1]}"

    def join(self, place: str) -> None:
        """Returns when all ranks are there and have loaded the model."""
        interface = _interface_of(ray.util.get_node_ip_address())
        if interface is not None:  # gloo would ask for the machine's name, which need not be known
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        backend = "cpu:gloo,cuda:nccl" if self.settings.device == "cuda" else "gloo"
        dist.init_process_group(
            backend, init_method=place, rank=self.rank, world_size=self.ranks, timeout=timedelta(seconds=MEETING_S)
        )
        self._load()

    def _load(self) -> None:
        self.learner = Learner(self.settings)

    def renew(self, settings: LearnerSettings) -> None:
        """Everything afresh but the process and its way to the engines, as a new actor with these settings would be.

        For a rank alone, whose sender keeps nothing of the old weights.
        """
        assert self.ranks == 1
        self.settings = settings
        self.learner = Learner(settings)
        self.weights.follow(self.learner)

    def connect(self, engines: Callable[[], EngineClient], transport: Transport, world_size: int) -> None:
        self.weights = Collected(self.learner, transport)
        self.shares_gpu = transport == "ipc"
        if self.rank == 0:
            self.sender = make_sender(
                self.weights,
                engines(),
                transport=transport,
                world_size=world_size,
                address=ray.util.get_node_ip_address,  # the machine's own name may stand for 127.0.1.1
            )

    def device_name(self) -> str:
        """What it learns on: another kind rounds otherwise."""
        return torch.cuda.get_device_name(self.learner.device) if self.settings.device == "cuda" else processor()

    def gramian(self, rollouts: Sequence[Rollout], advantages_BK: Tensor) -> Tensor:
        return self.learner.gramian(rollouts, advantages_BK)

    def learn(self, rollouts: Sequence[Rollout], advantages_B: Tensor, parts: ObjectiveAdvantages | None) -> LearnStats:
        found = self.learner.learn(rollouts, advantages_B, parts=parts)
        if self.shares_gpu:
            torch.cuda.empty_cache()  # the engines wake up there, and what torch keeps for itself is not theirs
        return found

    def sync(self, version: int) -> None:
        with self.weights.collected():
            if self.rank == 0:
                self.sender.send(version)

    def save(self, directory: Path, beside: bool) -> None:
        """To save `beside` what comes next: the files are written when `saved` says so."""
        if beside:
            self.saving = self.learner.begin_save(directory / "policy", directory, halfway=_halfway)
            return
        self.learner.save_state(directory)  # first, as all ranks agree on its errors
        _halfway()
        self.learner.save_policy(directory / "policy")

    def saved(self) -> bool:
        """Whether what was saved beside is written. Raises once what kept it from that."""
        if self.saving is None:
            return True
        if not self.saving.done():
            return False
        saving, self.saving = self.saving, None
        saving.result()
        return True

    def load(self, directory: Path) -> None:
        self.learner.load_state(directory)

    def load_policy(self, directory: Path) -> None:
        self.learner.load_policy(directory)

    def logprobs(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        return self.learner.logprobs(rollouts)


class LearnerRanks:
    """All ranks as one actor. Arguments are put into Ray's store once."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = list(actors)

    def call(self, method: str, *arguments: Any, **waiting: Any) -> Any:
        """The first rank's answer to `ask`."""
        return self.ask(method, *arguments, **waiting)[0]

    def ask(
        self,
        method: str,
        *arguments: Any,
        timeout_s: float | None = None,
        watch: Sequence[Any] = (),
        on_wait: Callable[[], None] | None = None,
    ) -> list[Any]:
        """Every rank's answer.

        Raises what the first rank to fail raises, as the others may wait for it for ever; Ray's GetTimeoutError after
        `timeout_s`.

        `watch` has references that end with an error alone, which is then raised: of others that ranks may wait for.
        `on_wait` is called every second meanwhile, and may raise.
        """
        calls = [getattr(actor, method).remote(*arguments) for actor in self.actors]
        waiting = list(calls)
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while waiting:
            left_s = min(max(0.0, deadline - time.monotonic()), LOOK_EVERY_S if on_wait else math.inf)
            ready, _ = ray.wait([*waiting, *watch], timeout=None if left_s == math.inf else left_s)
            waiting = [reference for reference in waiting if reference not in ready]
            if on_wait is not None:
                on_wait()
            if not ready:
                if on_wait and time.monotonic() < deadline:
                    continue
                raise ray.exceptions.GetTimeoutError(f"{method} took longer than {timeout_s:g} s")
            try:
                ray.get(ready)
            except ray.exceptions.RayTaskError:  # perhaps that another is not there any more
                self._raise_loss([*waiting, *watch])
                raise
        return ray.get(calls)

    def _raise_loss(self, waiting: list[Any]) -> None:
        """RayActorError where a process is gone, which Ray may learn a moment after the other ranks do."""
        ended, _ = ray.wait(waiting, num_returns=len(waiting), timeout=LOSS_S) if waiting else ([], [])
        for reference in ended:
            try:
                ray.get(reference)
            except ray.exceptions.RayTaskError:
                continue


def start_ranks(
    settings: LearnerSettings, *, ranks: int, options: Mapping[str, Any], place: Callable[[int], Mapping[str, Any]]
) -> LearnerRanks:
    """Actors with these Ray options, each in its place; returns before they have met (`meet`)."""
    actor: Any = ray.remote(LearnerActor)
    return LearnerRanks(
        [actor.options(**options, **place(rank)).remote(settings, rank=rank, ranks=ranks) for rank in range(ranks)]
    )


def in_group(settings: LearnerSettings, ranks: int) -> bool:
    """Whether the learner is sharded, which takes a group of torch's even for one rank."""
    return ranks > 1 or settings.cpu_offload


def meet(
    learner: LearnerRanks, settings: LearnerSettings, *, timeout_s: float | None, on_wait: Callable[[], None]
) -> None:
    """All ranks have loaded the model, and are one group where they need one. Both limits as in LearnerRanks.ask."""
    learner.call("__ray_ready__", timeout_s=timeout_s, on_wait=on_wait)
    if in_group(settings, len(learner.actors)):
        place = ray.get(learner.actors[0].meeting_place.remote())
        learner.call("join", place, timeout_s=timeout_s, on_wait=on_wait)


def _halfway() -> None:
    reach("checkpoint_halfway")


def _interface_of(address: str) -> str | None:
    """The network interface that has the address."""
    found = (name for name, entries in psutil.net_if_addrs().items() if any(e.address == address for e in entries))
    return next(found, None)
