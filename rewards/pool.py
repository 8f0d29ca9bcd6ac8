"""Scores a batch under every objective at once, or not at all.

Each objective has a scorer of its own, so that the slowest reward sets the time and a broken one harms no
other.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, as_completed
from typing import Any, Protocol

from rewards.base import (
    Reward,
    RewardBatch,
    RewardDeadlineError,
    RewardError,
    RewardFailedError,
    Scores,
    check_scores,
)

RewardFactory = Callable[[], Reward]
"""Builds a reward where it scores, such as `functools.partial(registry.build, "math", {})`."""


class Scorer(Protocol):
    """Where one objective is scored: the seam between the pool and threads, Ray actors or remote services."""

    def submit(self, batch: RewardBatch) -> Future[Scores]:
        """Starts scoring and returns at once. Whatever goes wrong comes out of the future."""
        ...

    def recover(self, error: BaseException | None) -> None:
        """Makes ready for the next batch after a failure; `error` is None where the deadline passed.

        What still runs is abandoned: it must neither delay the next batch nor answer in its place.
        """
        ...

    def close(self) -> None:
        """Frees what the scorer holds. Safe to call twice."""
        ...


class RewardPool:
    """K objectives, by name, and a deadline for each batch.

    consumes: one batch at a time, from one caller
    waits for: every scorer, in parallel, for at most `deadline_s` in all, the start of an actor included
    unblocked by: the last answer, or the deadline
    """

    def __init__(self, scorers: Mapping[str, Scorer], *, deadline_s: float) -> None:
        if not scorers:
            raise ValueError("a reward pool needs at least one objective")
        if not 0 < deadline_s < math.inf:  # NaN is neither
            raise ValueError(f"deadline_s must be a finite number above 0, not {deadline_s}")
        self._scorers = dict(scorers)
        self._deadline_s = deadline_s
        self.timings_s: dict[str, float] = {}
        """Seconds from the start of the last call to each objective's answer; a late one is absent."""

    def score(self, batch: RewardBatch) -> dict[str, list[float | None]]:
        """Every objective's scores, each of the batch's length and finite, or None where it does not apply.

        Raises RewardError for the first objective that has none; the others' failures are its notes. Scorers
        that failed are ready again for the next call.
        """
        futures = {name: scorer.submit(batch) for name, scorer in self._scorers.items()}
        self._wait(futures)
        scores: dict[str, list[float | None]] = {}
        errors: list[RewardError] = []
        for name, future in futures.items():
            try:
                scores[name] = check_scores(name, self._collect(name, future), len(batch))
            except RewardError as error:
                errors.append(error)
        if errors:
            for other in errors[1:]:
                errors[0].add_note(f"also {other}")
            raise errors[0]
        return scores

    def close(self) -> None:
        """Frees every scorer."""
        for scorer in self._scorers.values():
            scorer.close()

    def _wait(self, futures: Mapping[str, Future[Scores]]) -> None:
        """Returns when all are done or the deadline has passed, and notes when each was done."""
        started = time.monotonic()
        self.timings_s = {}
        names = {future: name for name, future in futures.items()}
        try:
            for future in as_completed(names, timeout=self._deadline_s):
                self.timings_s[names[future]] = time.monotonic() - started
        except TimeoutError:
            return  # `_collect` finds those that are late

    def _collect(self, name: str, future: Future[Scores]) -> object:
        # Decided by what `_wait` saw: an answer that comes in while others are collected is late as well.
        if name not in self.timings_s:
            self._scorers[name].recover(None)
            raise RewardDeadlineError(name, f"no scores within {self._deadline_s:g} s")
        error = future.exception()
        if error is not None:
            self._scorers[name].recover(error)
            cause = getattr(error, "cause", None) or error  # Ray wraps what the reward raised
            raise RewardFailedError(name, f"{type(cause).__name__}: {cause}") from error
        return future.result()


class LocalScorer:
    """Scores in a thread of this process: for tests, and for rewards that need no process of their own.

    A thread cannot be killed. One that hangs is left behind with its reward, and the next batch gets new
    ones.
    """

    def __init__(self, factory: RewardFactory) -> None:
        self._factory = factory
        self._reward = factory()

    def submit(self, batch: RewardBatch) -> Future[Scores]:
        future: Future[Scores] = Future()
        reward = self._reward

        def run() -> None:
            try:
                future.set_result(reward.score(batch))
            except BaseException as error:  # not swallowed: the pool reads it from the future
                future.set_exception(error)

        # A daemon, unlike an executor's threads: a hang must not keep the process from ending.
        threading.Thread(target=run, name="reward", daemon=True).start()
        return future

    def recover(self, error: BaseException | None) -> None:
        if error is None:
            self._reward = self._factory()

    def close(self) -> None:
        pass


class RewardActor:
    """Holds one reward in a process of its own; `remote_scorers` makes a Ray actor of it."""

    def __init__(self, factory: RewardFactory) -> None:
        self._reward = factory()

    def score(self, batch: RewardBatch) -> Scores:
        """As `Reward.score`."""
        return self._reward.score(batch)


class ActorScorer:
    """Scores in an actor that is killed when it hangs and replaced when it is gone."""

    def __init__(
        self,
        start: Callable[[], Any],
        kill: Callable[[Any], None],
        died: type[BaseException],
    ) -> None:
        """`start` returns a handle of a RewardActor; `died` is the error of a call on one that is gone."""
        self._start, self._kill, self._died = start, kill, died
        self._actor = start()

    def submit(self, batch: RewardBatch) -> Future[Scores]:
        future: Future[Scores] = self._actor.score.remote(batch).future()
        return future

    def recover(self, error: BaseException | None) -> None:
        if error is None or isinstance(error, self._died):
            self._kill(self._actor)
            self._actor = self._start()

    def close(self) -> None:
        self._kill(self._actor)


def remote_scorers(factories: Mapping[str, RewardFactory], **actor_options: Any) -> dict[str, Scorer]:
    """One Ray actor per objective; `actor_options` are Ray's (`num_gpus`, `scheduling_strategy`, ...).

    Ray must be initialised. The actors belong to this process and end with it.
    """
    import ray  # only here: rewards are used, listed and tested without Ray

    options = {
        "num_cpus": 0,  # a verifier works for milliseconds a step: a core each would starve small machines
        "max_restarts": -1,  # a process that dies is replaced by Ray itself,
        "max_task_retries": 1,  # and gets the batch once more, within the deadline: scoring has no effects
    } | actor_options
    actor = ray.remote(RewardActor).options(**options)

    def scorer(factory: RewardFactory) -> Scorer:
        return ActorScorer(lambda: actor.remote(factory), ray.kill, ray.exceptions.RayActorError)

    return {name: scorer(factory) for name, factory in factories.items()}
