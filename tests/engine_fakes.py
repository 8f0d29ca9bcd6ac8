"""Engines in threads of this process, behind the real pool: what they sample follows from the seed, what goes wrong is
told to them beforehand.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from orchestrator.rollouts.engines import Answer, Engine, EngineError, EngineLost, EnginePool
from policies.rollout import StaleEngineError
from policies.types import Rollout, RolloutRequest


@dataclass(kw_only=True)
class Fleet:
    """What the stand-ins share. Troubles are by place and hold for the engine that is there now."""

    version: int = 0  # of the weights that a sync brings
    deaf: set[int] = field(default_factory=set)  # places that a sync does not reach
    up: bool = True  # those that are started again come up at once
    trouble: dict[int, tuple[str, int]] = field(default_factory=dict)  # what, after how many rollouts of a call
    asked: dict[int, list[list[RolloutRequest]]] = field(default_factory=dict)  # calls by place
    engines: list["StandIn"] = field(default_factory=list)
    stiff: set[int] = field(default_factory=set)  # places that do not go to sleep, or do not wake up
    said: list[str] = field(default_factory=list)  # sleep, wake and sync in their order
    connected: list[list[Engine]] = field(default_factory=list)
    tokens_s: float = 0.0  # seconds that a token takes
    withdrawn: list[str] = field(default_factory=list)  # calls
    write: Callable[[RolloutRequest], Rollout] | None = None  # in the place of `sample`

    def pool(self, count: int, **options: float) -> EnginePool:
        pool = EnginePool(
            [StandIn(self, number, serving=True) for number in range(count)],
            start=lambda number: StandIn(self, number, serving=False),
            connect=self.connected.append,
            **{"timeout_s": 30.0, "room": 10_000, **options},  # type: ignore[arg-type]  # plain numbers
        )
        pool.open()
        return pool

    def sync(self, version: int) -> None:
        """As a learner does."""
        self.version = version
        self.said.append("sync")
        for engine in self.connected[-1]:
            assert isinstance(engine, StandIn)
            assert not engine.resting
            if engine.number not in self.deaf and not engine.killed.is_set():
                engine.has = version


class StandIn:
    """One engine. Rollouts end one by one, in the order of their requests."""

    def __init__(self, fleet: Fleet, number: int, *, serving: bool) -> None:
        self.fleet, self.number = fleet, number
        self.has: int | None = 0 if serving else None
        self.killed = threading.Event()
        self.resting = False
        fleet.engines.append(self)
        if not serving:
            fleet.trouble.pop(number, None)
            fleet.stiff.discard(number)

    def started(self) -> bool:
        what, _ = self.fleet.trouble.get(self.number, ("", 0))
        if what == "never":
            raise EngineLost("it did not come up")
        return self.fleet.up or self.has is not None

    def withdraw(self, call: str) -> None:
        self.fleet.withdrawn.append(call)

    def stream(self, requests: Sequence[RolloutRequest], call: str) -> Iterator[list[tuple[int, Rollout]]]:
        self.fleet.asked.setdefault(self.number, []).append(list(requests))
        assert not self.resting
        if self.has is None:
            raise StaleEngineError("the weights are unknown")
        for place, request in enumerate(requests):
            what, after = self.fleet.trouble.get(self.number, ("", 0))
            if what and place >= after:
                self.go_wrong(what)
            began = self.has
            time.sleep(self.fleet.tokens_s * request.max_tokens)
            if call in self.fleet.withdrawn:
                return
            if self.killed.is_set():
                raise EngineLost("it was killed")
            write = self.fleet.write
            yield [(place, sample(request, began, self.has) if write is None else write(request))]

    def go_wrong(self, what: str) -> None:
        if what == "die":
            raise EngineLost("its process is gone")
        if what == "fail":
            raise EngineError("an odd token")
        if what == "hang":
            self.killed.wait(30)
            raise EngineLost("it was killed")

    def version(self) -> Answer[int]:
        return lambda _timeout_s: self.has

    def rest(self) -> Answer[bool]:
        return self._move(resting=True)

    def rise(self) -> Answer[bool]:
        return self._move(resting=False)

    def _move(self, *, resting: bool) -> Answer[bool]:
        self.fleet.said.append(f"{'sleep' if resting else 'wake'} {self.number}")
        if self.number in self.fleet.stiff:
            return lambda _timeout_s: None
        self.resting = resting
        return lambda _timeout_s: True

    def kill(self) -> None:
        self.killed.set()


def sample(request: RolloutRequest, began: int, ended: int | None) -> Rollout:
    """Tokens from the seed; half of them by each version where the weights changed under way."""
    tokens = tuple(itertools.islice(itertools.repeat((request.seed or 0) % 97), request.max_tokens))
    half = len(tokens) // 2
    return Rollout(
        prompt_tokens=request.prompt_tokens,
        tokens=tokens,
        logprobs=(0.0,) * len(tokens),
        text=str(request.seed),
        truncated=True,
        policy_version=began,
        version_spans=() if ended in (began, None) else ((began, half), (ended, len(tokens) - half)),  # type: ignore[arg-type]  # not None
    )


def requests_of(prompts: int, rollouts: int, *, max_tokens: int = 4) -> list[RolloutRequest]:
    """Groups of the same prompt, every request with a seed of its own."""
    return [
        RolloutRequest(prompt_tokens=(1, p), seed=100 * p + g, max_tokens=max_tokens)
        for p in range(prompts)
        for g in range(rollouts)
    ]
