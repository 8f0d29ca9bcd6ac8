"""The first rounds of coming steps, sampled while earlier ones are learned from.

A step's first round may begin once the engines' policy is at most `most_stale` updates behind the one that will learn
from it. So no rollout is staler than that, whatever takes how long: with 0 nothing is ever begun ahead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from orchestrator.rollouts.scoring import Rolled, Stage
from orchestrator.rollouts.turns import Turn


@dataclass(frozen=True, kw_only=True)
class FirstRound:
    """A step's first prompts, and what will come of them."""

    turn: Turn
    counts: Sequence[int]  # P: rollouts of each of its prompts
    written: threading.Event = field(default_factory=threading.Event)  # its rollouts have ended, scored or not
    result: Future[Rolled] = field(default_factory=Future)

    def begin(self, roll_out: Callable[[Stage], Rolled]) -> FirstRound:
        """In a thread of its own, which keeps no process alive. What it raises is raised to who takes the result."""

        @contextmanager
        def stage(name: str) -> Iterator[None]:
            yield
            if name == "rollout":
                self.written.set()

        def run() -> None:
            try:
                self.result.set_result(roll_out(stage))
            except BaseException as error:  # the loop's own thread decides
                self.result.set_exception(error)
            finally:
                self.written.set()

        threading.Thread(target=run, name="first-round", daemon=True).start()
        return self


class Ahead:
    """First rounds that have begun and were not taken, by step. Called by the loop's thread alone."""

    def __init__(self, most_stale: int, last_step: int) -> None:
        self.most_stale = most_stale
        self.last_step = last_step
        self._begun: dict[int, FirstRound] = {}  # in the order of steps

    def due(self, served: int, taken: int) -> range:
        """Steps to begin now: the engines have version `served`, and step `taken` was the last to be taken.

        Step m learns with version m - 1, so m - 1 - served <= most_stale.
        """
        first = max([taken, *self._begun]) + 1
        last = min(served + 1 + self.most_stale, self.last_step) if self.most_stale else 0
        return range(first, last + 1)

    def put(self, step: int, begun: FirstRound) -> None:
        self._begun[step] = begun

    def take(self, step: int) -> FirstRound | None:
        return self._begun.pop(step, None)

    def settle(self) -> None:
        """Returns when no rollout of what has begun is under way."""
        for begun in self._begun.values():
            begun.written.wait()

    def forget(self) -> None:
        """Nobody will ask for them."""
        self._begun.clear()

    @property
    def turns(self) -> list[Turn]:
        """Of what has begun, in the order of steps."""
        return [begun.turn for begun in self._begun.values()]
