"""What the driver leaves for people of a job: report.html and samples.json beside its checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.comparison import front_as_told
from orchestrator.report import render_report
from orchestrator.spec import JobSpec
from orchestrator.specs.reward_job import RewardJobSpec
from orchestrator.state.store import REASON_LIMIT_CHARS, Fenced, JobStatus, JobStore, Lease, StoreUnavailable
from orchestrator.stored_spec import read_stored

log = logging.getLogger("equipoise.driver")


def report_so_far(
    store: JobStore, job_id: str, directory: Path, status: JobStatus, *, lease: Lease | None, reason: str | None = None
) -> None:
    """The report of a job that did not come to its end. It is an extra: what goes wrong with it costs an event.

    `lease`: None where it is over, and an event under it would be refused; the store has the reason then.
    """
    try:
        if (known := store.job(job_id)).step == 0:
            return
        spec = read_stored(store.spec(job_id))
        if isinstance(spec, RewardJobSpec):
            return
        why = known.reason if lease is None else reason
        write_report(store, job_id, spec, directory, [], lease=lease, status=status, reason=why)
    except Fenced:
        raise
    except Exception as error:  # whatever it is, the job ends as it would have without a report
        log.error("no report: %s", traceback.format_exc())
        data = {"message": str(error)[:REASON_LIMIT_CHARS]}
        with contextlib.suppress(StoreUnavailable):
            store.event(job_id, "report.failed", data, lease, level="error")


def write_report(
    store: JobStore,
    job_id: str,
    spec: JobSpec,
    directory: Path,
    samples: list[dict[str, Any]],
    *,
    lease: Lease | None,
    status: JobStatus = JobStatus.SUCCEEDED,
    reason: str | None = None,
) -> None:
    """report.html and samples.json beside the checkpoints. A full disk costs an event, not the job."""
    record = store.job(job_id)
    job = {
        "id": record.job_id,
        "name": record.name,
        "status": str(status),
        "reason": reason,
        "created_at": record.created_at,
        "started_at": record.started_at,
        "finished_at": time.time(),
        "step": record.step,
        "total_steps": record.total_steps,
        "gpu_hours": record.gpu_hours,
        "cost": record.cost,
    }
    front, document = store.front(job_id), spec.model_dump(mode="json")
    html = render_report(
        job=job,
        spec=document,
        steps=store.steps(job_id),
        front=front and front_as_told(front, document),
        samples=samples,
        events=[dataclasses.asdict(event) for event in all_events(store, job_id)],
        weights=store.steering_head(job_id).current["weights"],
    )
    try:
        for name, text in (("samples.json", json.dumps(samples, indent=1)), ("report.html", html)):
            hidden = directory / f".{name}"
            hidden.write_text(text, encoding="utf-8")
            hidden.rename(directory / name)
    except OSError as error:
        store.event(job_id, "report.failed", {"message": str(error)}, lease, level="error")
        return
    store.event(job_id, "report.written", {"path": str(directory / "report.html")}, lease)


def all_events(store: JobStore, job_id: str) -> Iterator[Any]:
    after, more = 0, True
    while more:
        page = store.events(job_id, after=after, limit=1000)
        yield from page.items
        after = page.items[-1].seq if page.items else after
        more = page.has_more
