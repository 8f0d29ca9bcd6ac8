"""Tells trackers of a job: each step once, in order, and only once no crash can undo it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from services.client import Client, NotFound
from services.client.flows import FINAL
from services.trackers import figures
from services.trackers.base import NOTHING, Entry, Run, Table, Tracker

Document = Mapping[str, Any]
Open = Callable[[Run], Tracker]

_PAUSES_S = (1.0, 5.0, 30.0, 120.0)  # between tries of a tracker that fails; the last one again and again
PATIENCE_S = 60.0  # with a tracker, once the job rests


class Feed:
    """One tracker. One that fails is opened anew later, asked how far it came, and told what follows."""

    def __init__(self, name: str, open_tracker: Open) -> None:
        self.name = name
        self.trouble = ""
        self.last = NOTHING
        self._open = open_tracker
        self._tracker: Tracker | None = None
        self._failures = 0
        self._again_at = 0.0

    def take(self, run: Run, entries: Callable[[int], Iterator[Entry]], *, now_s: float) -> None:
        """What `entries` has after the step that the tracker came to."""
        if now_s < self._again_at:
            return
        try:
            if self._tracker is None:
                self._tracker = self._open(run)
                self.last = self._tracker.last_step()
            for entry in entries(self.last):
                self._tracker.log(entry)
                self.last = entry.step
        except Exception as error:  # each tracker raises what its own library has; the API may be away for rollouts
            self.trouble = f"{self.name}: {str(error) or type(error).__name__}"
            self._again_at = now_s + _PAUSES_S[min(self._failures, len(_PAUSES_S) - 1)]
            self._failures += 1
            self.close("")
        else:
            self.trouble, self._failures, self._again_at = "", 0, 0.0

    def close(self, status: str) -> None:
        tracker, self._tracker = self._tracker, None
        if tracker is None:
            return
        try:
            tracker.close(status)
        except Exception as error:  # as above
            self.trouble = self.trouble or f"{self.name}: {str(error) or type(error).__name__}"


class Recorder:
    """Of one job, for all of its trackers."""

    def __init__(self, client: Client, job: Document, trackers: Mapping[str, Open]) -> None:
        self._client = client
        self._run = Run(id=job["id"], name=job.get("name", ""), spec=job.get("spec", {}))
        self._feeds = [Feed(name, open_tracker) for name, open_tracker in trackers.items()]

    @property
    def trouble(self) -> str:
        return "; ".join(feed.trouble for feed in self._feeds if feed.trouble)

    def take(self, job: Document, steps: Sequence[Document], front: Document) -> None:
        """After each look at the job."""
        settled = settled_step(job)
        for feed in self._feeds:
            feed.take(self._run, lambda after: self._entries(job, steps, front, after, settled), now_s=time.monotonic())

    def finish(self, job: Document, steps: Sequence[Document], front: Document) -> None:
        """Once the job rests. Trackers that fail are tried for PATIENCE_S more; `trouble` says which still do."""
        until = time.monotonic() + PATIENCE_S
        self.take(job, steps, front)
        while self.trouble and time.monotonic() < until:
            time.sleep(_PAUSES_S[0])
            self.take(job, steps, front)
        self.close(job["status"])

    def close(self, status: str) -> None:
        for feed in self._feeds:
            feed.close(status)

    def _entries(
        self, job: Document, steps: Sequence[Document], front: Document, after: int, settled: float
    ) -> Iterator[Entry]:
        """Those with after < step <= settled. When a step was is reckoned from the job's start and what steps took."""
        at = job.get("started_at") or job.get("created_at") or time.time()
        points = {point["step"]: point for point in front.get("points", ())}
        if after < 0 <= settled and 0 in points:
            yield Entry(step=0, at=at, figures=figures.of_point(points[0]))
        for step in steps:
            at += (step.get("timings_s") or {}).get("step") or 0.0
            if not after < step["step"] <= settled:
                continue
            found, tables = figures.of_step(step), self._rollouts(step)
            if settled == math.inf and step is steps[-1] and points:
                found |= figures.of_point(points.get(step["step"], {"step": step["step"]}))
                tables["front"] = figures.front_table(front)
            yield Entry(step=step["step"], at=at, figures=found, tables=tables)

    def _rollouts(self, step: Document) -> dict[str, Table]:
        """With each evaluation, where the step's rollouts are kept."""
        if not step.get("evaluation"):
            return {}
        try:
            rows = [*self._client.iter_rollouts(self._run.id, step=step["step"])]
        except NotFound:
            return {}
        return {"rollouts": figures.rollouts_table(rows, step["objectives"])} if rows else {}


def settled_step(job: Document) -> float:
    """The last step that nobody makes again, whatever crashes; all of an ended job's.

    A job goes back to its newest checkpoint. The step of that one waits for the next, or for the end: an ended job's
    last step brings the front with it.
    """
    if job["status"] in FINAL:
        return math.inf
    return (job.get("checkpoint_step") or 0) - 1
