"""Checkpoints one after another: written, durable, registered; the middle of it beside the next steps where asked.

    write -> (in a thread where it is not waited for: learner's files, sums, flushes, the copy in the store) -> register

Only one is under way at a time, and the ledger hears of it from the loop's own thread, once it is durable.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from orchestrator.failpoints import reach
from orchestrator.journal import Journal
from orchestrator.storage.checkpoint_store import CheckpointStore, StoreAway
from orchestrator.storage.checkpoints import CheckpointError, Fill, Manifest

MAX_FAILURES = 3  # in a row


class CheckpointWriter:
    """What a loop does with its checkpoints. `registered` is told of each step whose checkpoint a restart may use."""

    def __init__(
        self, store: CheckpointStore, journal: Journal, *, fence: int, registered: Callable[[int], None]
    ) -> None:
        self.store = store
        self.journal = journal
        self.fence = fence
        self._registered = registered
        self._failures = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._under_way: tuple[int, Future[tuple[Path, Manifest]]] | None = None  # its step

    def write(self, step: int, fill: Fill, *, beside: Mapping[str, Path], wait: bool) -> None:
        """Make a step's state durable. Not to `wait`: `settle` registers it later; `fill` has returned in any case.

        A failure is an event; several in a row raise CheckpointError: StoreAway or DiskFull where the job may wait.
        """
        self.settle()
        with self._failure_is_told(step):
            finish = self.store.begin(step=step, fence=self.fence, fill=fill, beside=beside)
            if wait:
                self._register(*finish())
            else:
                self._under_way = (step, self._thread.submit(finish))

    def settle(self, *, wait: bool = True) -> None:
        """Register the one that is under way, if it is durable by now; or wait until it is. Raises as `write`."""
        if self._under_way is None or not (wait or self._under_way[1].done()):
            return
        (step, written), self._under_way = self._under_way, None
        with self._failure_is_told(step):
            self._register(*written.result())

    def _register(self, path: Path, manifest: Manifest) -> None:
        self._failures = 0
        self.journal.checkpoint(path, manifest)
        reach("checkpoint_registered")
        self._registered(manifest.step)

    @contextlib.contextmanager
    def _failure_is_told(self, step: int) -> Iterator[None]:
        try:
            yield
        except CheckpointError as error:
            self._failures += 1
            self.journal.event("checkpoint.failed", level="error", step=step, message=str(error))
            if self._failures < MAX_FAILURES:
                return
            if isinstance(error.__cause__, StoreAway):
                raise error.__cause__ from None  # not the job's end: it waits for the store and goes on
            raise
