"""A real server with its dashboard, real Redis, toy jobs: what browser tests, screenshots and a benchmark look at."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from orchestrator.state.embedded_redis import EmbeddedRedis
from orchestrator.state.redis_calls import connect
from orchestrator.state.store import JobStore
from services.client import Client
from tests.browser.seeded import seed_job
from tests.toy_api import KEY, Api
from tests.toy_driver import Forks, Garage, ToyDriver
from tests.toy_jobs import submit, toy_spec


class Stage:
    """`api` and `redis` are processes that tests may kill; the drivers' lease lives through that."""

    def __init__(self, directory: Path, forks: Forks | None = None) -> None:
        self._stack = ExitStack()
        self.state_dir = directory / "state"
        self.state_dir.mkdir(parents=True)
        self.redis = self._stack.enter_context(EmbeddedRedis(directory / "redis"))
        self.raw = connect(self.redis.url)
        self.store = JobStore(self.raw)
        if forks is None:
            forks = Forks()
            self._stack.callback(forks.close)
        self.garage = self._stack.enter_context(Garage(forks, self.redis.url, self.state_dir, ttl_s=30, renew_s=0.2))
        self.api = Api(self.redis.url, self.state_dir)
        self._stack.callback(lambda: self.api.kill())
        self.client = self._stack.enter_context(Client(self.api.url, KEY))

    @property
    def url(self) -> str:
        return self.api.url

    def job(
        self,
        *,
        step_s: float = 0.2,
        steps: int = 400,
        seed: int = 7,
        start: bool = True,
        work_mib: int = 0,
        **spec: Any,
    ) -> str:
        """Its id; with `start`, a toy driver works on it."""
        document = toy_spec(steps=steps, step_s=step_s, seed=seed, **spec)
        if work_mib:
            metadata = {**document.metadata, "toy.work_mib": str(work_mib)}
            document = document.model_copy(update={"metadata": metadata})
        job_id = submit(self.store, document)
        if start:
            self.start(job_id)
        return job_id

    def seeded(self, names: Sequence[str], **options: Any) -> str:
        """A job written straight into Redis (tests/browser/seeded.py)."""
        return seed_job(self.store, self.raw, names, **options)

    def start(self, job_id: str) -> ToyDriver:
        return self.garage.start(job_id)

    def wait_for_step(self, job_id: str, step: int, timeout_s: float = 60) -> None:
        self.wait(lambda: self.store.job(job_id).step >= step, timeout_s, f"step {step} of {job_id}")

    @staticmethod
    def wait(condition: Callable[[], object], timeout_s: float = 90, what: str = "it") -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come within {timeout_s} s"
            time.sleep(0.02)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
