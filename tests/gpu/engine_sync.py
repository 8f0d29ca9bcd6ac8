"""How long the learner's weights take into a vLLM engine on the same GPU, where vLLM is installed; without Ray."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from policies.weight_sync import WeightSender, WeightSource, make_sender


class ThreadedEngine:
    """The four phases of an engine whose methods are coroutines, each done when its call returns."""

    def __init__(self, engine: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._engine, self._loop = engine, loop

    def _do(self, call: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._do(self._engine.init_weight_transfer_engine(init_info))

    def start_weight_update(self) -> None:
        self._do(self._engine.start_weight_update())

    def update_weights(self, update_info: Any) -> None:
        self._do(self._engine.update_weights(update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._do(self._engine.finish_weight_update(weight_version))


@contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def engine_sender(learner: WeightSource, policy: str, device: str, dtype: Any) -> Iterator[WeightSender]:
    """What hands the learner's weights to a fresh engine of this policy: by `ipc`, on a CPU through shared memory."""
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    from policies.rollout import EngineSettings, RolloutEngine

    transport: Any = "ipc" if device == "cuda" else "shared_memory"
    settings = EngineSettings(
        model=policy, dtype=dtype, device=device, transport=transport, enforce_eager=True,
        kv_cache_gib=0.1, gpu_memory_utilization=0.2,
    )  # fmt: skip

    async def start() -> Any:  # in the loop that will call it
        return RolloutEngine(settings)

    async def stop() -> None:
        engine.close()
        await asyncio.sleep(0.1)  # vLLM's own task sees that it is cancelled

    with running_loop() as loop:
        engine = asyncio.run_coroutine_threadsafe(start(), loop).result()
        try:
            # Learner and engine are on one machine, so nobody asks for its address.
            yield make_sender(
                learner, ThreadedEngine(engine, loop), transport=transport, world_size=2, address=lambda: "127.0.0.1"
            )
        finally:
            asyncio.run_coroutine_threadsafe(stop(), loop).result()
