"""What a rollout engine does around vLLM. With real vLLM: tests/integration/cluster/test_engines.py."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace
from typing import Any

from policies.rollout import EngineSettings, RolloutEngine, _ended
from policies.types import RolloutRequest


def test_rollouts_that_end_soon_after_each_other_are_handed_over_together():
    async def ended() -> tuple[set[int], set[int], set[int]]:
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Any]] = [loop.create_future() for _ in range(3)]
        none = await _ended(futures, 0.01)
        loop.call_later(0.001, futures[2].set_result, None)
        loop.call_later(0.002, futures[0].set_result, None)
        two = await _ended(futures, 60.0)
        futures[1].set_result(None)
        all_ended = await _ended(futures, 60.0)
        return tuple({futures.index(future) for future in found} for found in (none, two, all_ended))  # type: ignore[return-value]

    assert asyncio.run(ended()) == (set(), {0, 2}, {0, 1, 2})


def test_a_rollout_without_a_label_is_of_the_policy_that_it_began_with():
    """The first weight update may come between its end and its hand-over, which waits for others."""

    class Queue(asyncio.Queue[Any]):
        def get_nowait(self) -> Any:  # as vLLM's
            return None if self.empty() else super().get_nowait()

    class Engine(RolloutEngine):
        def __init__(self) -> None:
            self.settings, self.policy_version = EngineSettings(model=""), 0
            self.queues = [Queue(), Queue()]
            self._ids = itertools.count()

        async def _queue(self, *_: Any) -> list[Any]:
            return self.queues

        def _texts(self, completions: Any) -> list[str]:
            return [""] * len(completions)

    completion = SimpleNamespace(
        token_ids=[5],
        logprobs=SimpleNamespace(token_ids=[5], logprobs=[-1.0]),
        weight_versions=None,
        finish_reason="stop",
    )
    output = SimpleNamespace(finished=True, outputs=[completion])

    async def versions() -> list[int]:
        engine = Engine()
        loop = asyncio.get_running_loop()
        loop.call_later(0.001, engine.queues[0].put_nowait, output)
        loop.call_later(0.002, setattr, engine, "policy_version", 1)
        loop.call_later(0.003, engine.queues[1].put_nowait, output)
        rollouts = await engine.generate([RolloutRequest(prompt_tokens=(3,), seed=0, max_tokens=4)] * 2)
        return [rollout.policy_version for rollout in rollouts]

    assert asyncio.run(versions()) == [0, 0]
