"""A job's life in the store, in a word each."""

import uuid
from collections.abc import Callable
from typing import Any

from orchestrator.state.states import JobStatus as S
from orchestrator.state.store import JobStore, Lease

TTL_S = 30.0
SHORT_TTL_S = 0.04


def submit(store: JobStore, job_id: str = "j", **options: Any) -> str:
    return store.submit('{"policy": "tiny"}', name="a job", job_id=job_id, **options).job_id


def claim(store: JobStore, job_id: str = "j", *, nonce: str | None = None, ttl_s: float = TTL_S) -> Lease:
    lease = store.claim(job_id, nonce=nonce or uuid.uuid4().hex, ttl_s=ttl_s).lease
    assert lease is not None
    return lease


def running(store: JobStore, job_id: str = "j", *, ttl_s: float = TTL_S) -> Lease:
    submit(store, job_id)
    lease = claim(store, job_id, ttl_s=ttl_s)
    store.set_status(lease, S.RUNNING)
    return lease


def commit(store: JobStore, lease: Lease, *steps: int) -> None:
    for step in steps:
        store.commit(lease, step=step, digest=f"d{lease.fence}-{step}", record={"loss": 1 / step})


def event_types(store: JobStore, job_id: str = "j") -> list[str]:
    return [event.type for event in store.events(job_id).items]


def writes_under(store: JobStore, lease: Lease) -> list[Callable[[], Any]]:
    """Every write that a lease allows."""
    return [
        lambda: store.renew(lease, TTL_S),
        lambda: store.set_status(lease, S.RUNNING),
        lambda: store.set_progress(lease, {"line": "zombie"}),
        lambda: store.set_total_steps(lease, 99),
        lambda: store.set_cost(lease, 99.0),
        lambda: store.set_front(lease, {"points": []}),
        lambda: store.commit(lease, step=1, digest="z", record={}),
        lambda: store.register_checkpoint(lease, step=0, path="z", digest="z"),
        lambda: store.update_checkpoints(lease, removals=[1]),
        lambda: store.rewind(lease, step=0),
        lambda: store.event(lease.job_id, "zombie", {}, lease),
        lambda: store.finish(lease, S.FAILED, "zombie"),
        lambda: store.release(lease, "zombie"),
    ]
