"""What a rollout engine does around vLLM. With real vLLM: tests/integration/cluster/test_engines.py."""

from __future__ import annotations

import asyncio
from typing import Any

from policies.rollout import _ended


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
