"""Which prompts a step gets: the next in the data's order, or those that earlier steps put off.

The last completions of a batch hold up everybody while they are written. A step may ask for more prompts than it needs
and learn from those whose rollouts end first; the others' are withdrawn, and their prompts put off. Once a step's worth
of them waits, it gets a step of its own, in which all are waited for: long completions hold up only each other, every
rollout is of the newest policy, and no prompt is left out (tail batching: RollPacker, arXiv 2509.21009).

A prompt that was put off is rolled out anew, so that its short rollouts are seen somewhat more often than long ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.rollouts.prompts import PromptOrder


@dataclass(frozen=True, kw_only=True)
class Turn:
    """The prompts of a round, each in one group of rollouts."""

    index: Sequence[int]  # P, of the train split
    enough: int  # groups that end it
    was_put_off: bool = False  # by an earlier step


class Turns:
    """The prompts of each step's rounds, in order. Called by the loop's thread alone."""

    def __init__(self, order: PromptOrder, *, prompts: int, asked: int) -> None:
        """A step asks for the rollouts of `asked` prompts, and ends once `prompts` have theirs."""
        self.order = order
        self.prompts = prompts
        self.asked = asked
        self.waiting: list[int] = []  # prompts that were put off
        self._again: list[int] = []  # prompts whose step came to nothing; they come before the order's next

    def first(self) -> Turn:
        """A step's first round."""
        if len(self.waiting) >= self.prompts:
            index, self.waiting = self.waiting[: self.prompts], self.waiting[self.prompts :]
            return Turn(index=index, enough=len(index), was_put_off=True)
        return Turn(index=self._take(self.asked), enough=self.prompts)

    def further(self, prompts: int) -> Turn:
        """So many more in the same step, which are all waited for."""
        return Turn(index=self._take(prompts), enough=prompts)

    def put_off(self, index: Iterable[int]) -> None:
        self.waiting += index

    def give_back(self, turns: Sequence[Turn]) -> None:
        """As if these, the last that were taken, had not been."""
        self.load_state_dict(self.state_dict(turns))

    def _take(self, count: int) -> list[int]:
        again, self._again = self._again[:count], self._again[count:]
        return again + self.order.take(count - len(again))

    def state_dict(self, open_turns: Sequence[Turn] = ()) -> dict[str, Any]:
        """For who goes on from here. The last turns, those that are still open, are taken again then."""
        fresh = [prompt for turn in open_turns if not turn.was_put_off for prompt in turn.index]
        put_off = [prompt for turn in open_turns if turn.was_put_off for prompt in turn.index]
        again, position = fresh + self._again, self.order.position
        while again and again[-1] == self.order.at(position - 1):  # the order has it next in any case
            again.pop()
            position -= 1
        return {"position": position, "again": again, "waiting": put_off + self.waiting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order.position = state["position"]
        self._again, self.waiting = list(state["again"]), list(state["waiting"])
