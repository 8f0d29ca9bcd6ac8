"""Where a reward scores: in a process of its own, which is watched, killed when it hangs, and started again.

What went wrong has a kind. Infrastructure: the process died, ran out of memory, lost its connection, gave no answer in
time, can't be built at all, or gives no list of scores whatever the rows. Data: the reward raised on these rows, or
gave something else than their scores. What a reward raises may quote the rows, so of a failure of the data only the
exception's type and place are kept, or the part of a RewardRowError that quotes none, or a RewardRefusedError, which
quotes none.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, Literal, Protocol

from rewards.base import (
    Reward,
    RewardBatch,
    RewardLengthError,
    RewardRefusedError,
    RewardRowError,
    RewardTypeError,
    RewardUnavailableError,
    read_scores,
)

RewardFactory = Callable[[], Reward]
"""Builds a reward where it scores, such as `functools.partial(registry.build, "math", {})`."""

Kind = Literal["died", "memory", "connection", "deadline", "broken", "raised", "length", "value"]
DATA: frozenset[Kind] = frozenset({"raised", "length", "value"})
GONE: frozenset[Kind] = frozenset({"died", "memory", "deadline", "broken"})
"""The process is gone, or in a state that nobody knows."""
SINGLE = ""
"""The one column of a reward that has no heads."""
SMALL_CALL = 8  # rows; fewer in a call cost more than they hide
MERGED_CALL = 64  # rows; of more, the first would wait long for their scores
_LONGEST_TEXT = 300


@dataclass(frozen=True, kw_only=True)
class Hosting:
    """How one reward is hosted: see the job spec for the meaning of each."""

    replicas: int = 1
    batch_size: int | None = None
    deadline_s: float = 60.0
    start_s: float = 600.0
    attempts: int = 5
    row_attempts: int = 2
    backoff_s: float = 0.5
    max_bad_share: float = 0.05
    rowwise: bool = False  # a row's score depends on that row alone, so what waits may go into one call

    def __post_init__(self) -> None:
        for name in ("deadline_s", "start_s"):
            if not 0 < getattr(self, name) < math.inf:  # NaN is neither
                raise ValueError(f"{name} must be a finite number above 0, not {getattr(self, name)}")

    def together(self, counts: Sequence[int]) -> int:
        """Most rows of one call, for groups of these sizes: one group, or some where groups are small."""
        return max(SMALL_CALL, *counts) if self.batch_size is None else self.batch_size

    def merges(self, rows: int) -> bool:
        """Whether so many rows may be called together although they became ready one by one."""
        return self.rowwise and rows <= (MERGED_CALL if self.batch_size is None else self.batch_size)

    def tolerated(self, rows: int) -> int:
        """Of so many rows of a step, how many may be left out: the share, rounded up to a whole row."""
        return math.ceil(self.max_bad_share * rows - 1e-9)

    def pause_s(self, failures: int) -> float:
        """Before the next try, after so many failures in a row."""
        return min(self.backoff_s * 2.0 ** (failures - 1), 30.0) if failures else 0.0


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a call gave no scores, in words that quote no row."""

    kind: Kind
    text: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a call gave: a column for each head, and in words what stands in the place of a number, by row."""

    columns: dict[str, list[float | None]] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)
    failure: Failure | None = None
    cost: float = 0.0  # of the call, where the reward has a price, as judges have


def answer(reward: Any, batch: RewardBatch, heads: Sequence[str]) -> Answer:
    """Scores a batch; whatever the reward raises becomes a Failure. Its `figures()`, if any, say what that cost."""
    before = _cost(reward)
    found = _answer(reward, batch, heads)
    return replace(found, cost=max(0.0, _cost(reward) - before))


def _cost(reward: Any) -> float:
    """Since the reward's start. One that gives no such figure, or none that is a number, costs nothing."""
    with contextlib.suppress(Exception):  # a plug-in may call anything figures
        return float(reward.figures()["cost"])
    return 0.0


def _answer(reward: Any, batch: RewardBatch, heads: Sequence[str]) -> Answer:
    try:
        found = {SINGLE: reward.score(batch)} if tuple(heads) == (SINGLE,) else reward.score_heads(batch)
        if not isinstance(found, Mapping):
            text = f"expected score_heads() to return every head's scores by name, got {type(found).__name__}"
            return Answer(failure=Failure(kind="broken", text=text))
        if unknown := [head for head in heads if head not in found]:
            text = f"the reward has no head {unknown[0]!r}; it has {', '.join(sorted(map(str, found)))}"
            return Answer(failure=Failure(kind="broken", text=text[:_LONGEST_TEXT]))
        columns: dict[str, list[float | None]] = {}
        bad: dict[int, str] = {}
        for head in heads:
            columns[head], wrong = read_scores(head, found[head], len(batch))
            bad |= wrong
        return Answer(columns=columns, bad=bad)
    except RewardTypeError as error:
        return Answer(failure=Failure(kind="broken", text=error.problem))
    except RewardLengthError as error:
        return Answer(failure=Failure(kind="length", text=error.problem))
    except (Exception, SystemExit) as error:
        return Answer(failure=_failure(error))


def is_infrastructure(error: BaseException) -> bool:
    """Whether what a reward raised is no row's fault."""
    return _failure(error).kind not in DATA


def _failure(error: BaseException) -> Failure:
    name = type(error).__name__
    if isinstance(error, MemoryError) or name == "OutOfMemoryError":  # the latter is CUDA's
        return Failure(kind="memory", text=name)
    if isinstance(error, ConnectionError | TimeoutError | RewardUnavailableError):
        return Failure(kind="connection", text=f"{name}: {error}"[:_LONGEST_TEXT])
    if isinstance(error, RewardRowError):
        return Failure(kind="raised", text=error.problem[:_LONGEST_TEXT])
    if isinstance(error, RewardRefusedError):
        return Failure(kind="raised", text=str(error)[:_LONGEST_TEXT])
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return Failure(kind="raised", text=f"{name}{where}")


class Replica(Protocol):
    """One place where a reward scores: the seam between the pool and threads or Ray actors."""

    def start(self, timeout_s: float) -> Failure | None:
        """Returns when it can score, or why it can't."""
        ...

    def call(self, batch: RewardBatch, heads: Sequence[str], timeout_s: float) -> Answer:
        """Never raises, and returns at the deadline."""
        ...

    def kill(self) -> None:
        """Ends it, whatever it is at. Safe to call twice."""
        ...


class LocalReplica:
    """Scores in a thread of this process: for tests, and for rewards that need no process of their own.

    A thread cannot be killed. One that hangs is left behind with its reward.
    """

    def __init__(self, factory: RewardFactory) -> None:
        self._factory = factory
        self._reward: Reward | None = None

    def start(self, timeout_s: float) -> Failure | None:
        del timeout_s
        try:
            self._reward = self._factory()
        except Exception as error:  # it is told to whoever hosts the reward
            return Failure(kind="broken", text=f"{type(error).__name__}: {error}"[:_LONGEST_TEXT])
        return None

    def call(self, batch: RewardBatch, heads: Sequence[str], timeout_s: float) -> Answer:
        future: Future[Answer] = Future()
        reward = self._reward
        # A daemon, unlike an executor's threads: a hang must not keep the process from ending.
        threading.Thread(
            target=lambda: future.set_result(answer(reward, batch, heads)), name="reward", daemon=True
        ).start()
        try:
            return future.result(timeout_s)
        except TimeoutError:
            return Answer(failure=_late(timeout_s))

    def kill(self) -> None:
        self._reward = None


class RewardActor:
    """Holds one reward in a process of its own; `actor_replica` makes a Ray actor of it."""

    def __init__(self, factory: RewardFactory, *, gpus: bool = True) -> None:
        """Without `gpus` it sees none: Ray leaves all of a machine's to who asks for none, and they are others'."""
        if not gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._reward = factory()
        if (warm_up := getattr(self._reward, "warm_up", None)) is not None:
            warm_up()

    def ready(self) -> bool:
        return True

    def answer(self, batch: RewardBatch, heads: Sequence[str]) -> Answer:
        return answer(self._reward, batch, heads)


class ActorReplica:
    """Scores in an actor."""

    def __init__(
        self, create: Callable[[], Any], end: Callable[[Any], None], lost: type[BaseException] | tuple[Any, ...]
    ) -> None:
        """`create` returns a handle of a RewardActor, `lost` is what a call raises whose actor is no more."""
        self._create, self._end, self._lost = create, end, lost
        self._actor: Any = None

    def start(self, timeout_s: float) -> Failure | None:
        try:
            self._actor = self._create()
            self._actor.ready.remote().future().result(timeout_s)
        except TimeoutError:
            self.kill()
            return Failure(kind="deadline", text=f"it did not start within {timeout_s:g} s")
        except self._lost as error:
            broken = getattr(error, "actor_init_failed", False)
            return Failure(kind="broken" if broken else "died", text=_last_line(error))
        return None

    def call(self, batch: RewardBatch, heads: Sequence[str], timeout_s: float) -> Answer:
        try:
            found: Answer = self._actor.answer.remote(batch, tuple(heads)).future().result(timeout_s)
        except TimeoutError:
            return Answer(failure=_late(timeout_s))
        except self._lost as error:
            return Answer(failure=Failure(kind="died", text=_last_line(error)))
        return found

    def kill(self) -> None:
        if self._actor is not None:
            self._end(self._actor)


def actor_replica(factory: RewardFactory, *, sees_gpus: bool = False, **actor_options: Any) -> ActorReplica:
    """A Ray actor, which belongs to this process and ends with it. `actor_options` are Ray's (`num_gpus`, ...).

    It sees the GPUs that it has reserved; with `sees_gpus` also those of the machine where it has none.
    """
    import ray  # only here: rewards are used, listed and tested without Ray

    # A verifier works for milliseconds a step: a core each would starve small machines. Restarts are the host's.
    options = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0} | actor_options
    actor = ray.remote(RewardActor).options(**options)
    gpus = sees_gpus or actor_options.get("num_gpus", 0) > 0
    return ActorReplica(lambda: actor.remote(factory, gpus=gpus), ray.kill, ray.exceptions.RayError)


def _late(timeout_s: float) -> Failure:
    return Failure(kind="deadline", text=f"no scores within {timeout_s:g} s")


def _last_line(error: BaseException) -> str:
    """The line of a remote traceback that says what was wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:_LONGEST_TEXT]
