"""Documents of jobs that were asked for of late: accepted once they never change, and a job is read again and again."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass

from orchestrator.state.store import JobRecord, JobStore


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A job's document, and how many steps it asks for; None where it counts none."""

    body: bytes
    steps: int | None


class RecentSpecs:
    """Kept by their digest, which the job's own record names, up to `most_bytes` in all."""

    def __init__(self, most_bytes: int = 16 << 20) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Spec] = OrderedDict()  # longest unused first
        self._bytes = 0

    def job_and_spec(self, store: JobStore, job_id: str) -> tuple[JobRecord, Spec]:
        """Raises JobNotFound."""
        record = store.job(job_id)
        with self._lock:
            if record.spec_digest in self._kept:
                self._kept.move_to_end(record.spec_digest)
                return record, self._kept[record.spec_digest]
        text = store.spec(job_id)
        spec = Spec(body=text.encode(), steps=json.loads(text).get("steps"))
        with self._lock:
            if record.spec_digest not in self._kept:
                self._kept[record.spec_digest] = spec
                self._bytes += len(spec.body)
            while self._bytes > self._most_bytes:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= len(dropped.body)
        return record, spec
