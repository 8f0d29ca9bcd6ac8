"""How many rollouts each prompt of a step gets; their sum is the step's budget, whatever the rule."""

from __future__ import annotations

import base64
import heapq
import zlib
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


class Budget:
    """Divides P * G rollouts among P prompts. G is `rollouts_per_prompt`."""

    def __init__(self, rollouts_per_prompt: int) -> None:
        self.rollouts_per_prompt = rollouts_per_prompt

    def allocate(self, prompt_index: Sequence[int]) -> list[int]:
        """Rollouts of each prompt, in order; they sum to exactly len(prompt_index) * rollouts_per_prompt."""
        raise NotImplementedError  # abstract: each subclass has its own

    def observe(self, prompt_index: Sequence[int], successes: Sequence[int], counts: Sequence[int]) -> None:
        """What became of a step's rollouts: of `counts[i]` that were measured, `successes[i]` succeeded."""
        del prompt_index, successes, counts

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready; loading it continues identically."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert not state


class Uniform(Budget):
    """G for everyone."""

    def allocate(self, prompt_index: Sequence[int]) -> list[int]:
        return [self.rollouts_per_prompt] * len(prompt_index)


class Knapsack(Budget):
    """Most value for the budget (arXiv 2509.25849): maximise sum_i value(n_i, p_i) under the sum of the n_i.

    p is a prompt's success rate over its past rollouts: at each observation the earlier ones lose the share
    `forgetting` of their count, and `prior_count` imagined rollouts with rate `prior_rate` stand beside them. The
    paper takes the last epoch's rate as it is (forgetting 1, prior count 0). Then p may be 0 or 1, where the value is
    0 for every n; such prompts get what the others have no use for, those never solved before those always solved.
    With a prior an unsolved prompt keeps a value, so that it gets many rollouts at once.
    """

    def __init__(
        self,
        rollouts_per_prompt: int,
        *,
        min_rollouts: int = 2,
        max_rollouts: int | None = None,
        forgetting: float = 0.5,
        prior_rate: float = 0.5,
        prior_count: float = 2.0,
    ) -> None:
        assert 1 <= min_rollouts <= rollouts_per_prompt <= (max_rollouts or rollouts_per_prompt)
        super().__init__(rollouts_per_prompt)
        self.min_rollouts = min_rollouts
        self.max_rollouts = max_rollouts
        self.forgetting = forgetting
        self.prior_rate = prior_rate
        self.prior_count = prior_count
        self._seen: dict[int, tuple[float, float]] = {}  # prompt: (successes, rollouts), faded

    def rate(self, prompt: int) -> float:
        """Success rate of a prompt as estimated so far."""
        successes, count = self._seen.get(prompt, (0.0, 0.0))
        if count + self.prior_count == 0:
            return self.prior_rate
        return (successes + self.prior_rate * self.prior_count) / (count + self.prior_count)

    def allocate(self, prompt_index: Sequence[int]) -> list[int]:
        total = len(prompt_index) * self.rollouts_per_prompt
        most = total if self.max_rollouts is None else self.max_rollouts
        return best_allocation([self.rate(prompt) for prompt in prompt_index], total, self.min_rollouts, most)

    def observe(self, prompt_index: Sequence[int], successes: Sequence[int], counts: Sequence[int]) -> None:
        """A prompt that stands several times in a step is one observation."""
        step: dict[int, tuple[float, float]] = {}
        for prompt, good, count in zip(prompt_index, successes, counts, strict=True):
            assert 0 <= good <= count
            before = step.get(prompt, (0.0, 0.0))
            step[prompt] = (before[0] + good, before[1] + count)
        kept = 1.0 - self.forgetting
        for prompt, (new_good, new_count) in step.items():
            if new_count:
                old = self._seen.get(prompt, (0.0, 0.0))
                self._seen[prompt] = (kept * old[0] + new_good, kept * old[1] + new_count)

    def state_dict(self) -> dict[str, Any]:
        """As packed columns: a row for each prompt ever seen would be most of a checkpoint's JSON."""
        seen = sorted(self._seen.items())
        return {
            "prompts": _packed(array("q", (prompt for prompt, _ in seen))),
            "good": _packed(array("d", (good for _, (good, _) in seen))),
            "counts": _packed(array("d", (count for _, (_, count) in seen))),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if "seen" in state:  # of an earlier version
            self._seen = {prompt: (good, count) for prompt, good, count in state["seen"]}
            return
        columns = [_unpacked(code, state[name]) for name, code in (("prompts", "q"), ("good", "d"), ("counts", "d"))]
        self._seen = {int(prompt): (good, count) for prompt, good, count in zip(*columns, strict=True)}


def _packed(values: array[Any]) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 1)).decode()


def _unpacked(code: str, text: str) -> array[Any]:
    return array(code, zlib.decompress(base64.b64decode(text)))


def value(n: int, p: float) -> float:
    """P(the group of n is not all alike) * expected gain in success rate = (1 - p^n - (1-p)^n) * p (1-p)^2."""
    return (1 - p**n - (1 - p) ** n) * p * (1 - p) ** 2


def best_allocation(rates: Sequence[float], total: int, least: int, most: int) -> list[int]:
    """n_i in [least, most] that sum to `total` and maximise sum_i value(n_i, rates_i). `least` is at least 1.

    value(n + 1, p) - value(n, p) = (p^n (1-p) + (1-p)^n p) p (1-p)^2 falls with n from n = 1 on, so that taking the
    largest gain each time is exact. Of equal gains, the prompt with the fewest rollouts comes first.
    """
    assert least >= 1
    assert least * len(rates) <= total <= most * len(rates)

    def entry(i: int, n: int) -> tuple[float, bool, int, int]:
        p = rates[i]
        gain = (p**n * (1 - p) + (1 - p) ** n * p) * p * (1 - p) ** 2
        return -gain, p >= 1, n, i

    allocation = [least] * len(rates)
    heap = [entry(i, least) for i in range(len(rates))] if least < most else []
    heapq.heapify(heap)
    for _ in range(total - least * len(rates)):
        *_, n, i = heap[0]
        allocation[i] = n + 1
        if n + 1 < most:
            heapq.heapreplace(heap, entry(i, n + 1))
        else:
            heapq.heappop(heap)
    return allocation


def count_successes(rewards_PG: Tensor, success_at: float) -> tuple[list[int], list[int]]:
    """(successes, counts) of each prompt for `observe`: a measured reward of at least `success_at` succeeded."""
    measured_PG = ~rewards_PG.isnan()
    return (rewards_PG >= success_at).sum(dim=1).tolist(), measured_PG.sum(dim=1).tolist()
