"""What the tests of the API share: its key, a job's spec, a server for a store, and what a driver would write."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore, Lease
from services.keys import digest
from services.server import ApiServer
from services.settings import Settings

KEY = "eqp_test"
SECRET = "hunter2-do-not-repeat"
SPEC: dict[str, Any] = {
    "name": "a job",
    "steps": 4,
    "policy": {"model": "quickstart"},
    "data": {"type": "quickstart"},
    "rollout": {"max_tokens": 64},
    "objectives": [
        {"name": "accuracy", "reward": {"name": "math"}, "weight": 0.6},
        {"name": "conciseness", "reward": {"name": "conciseness"}, "weight": 0.4},
    ],
}


@contextmanager
def serving(store: JobStore, state_dir: Path, **settings: Any) -> Iterator[ApiServer]:
    server = ApiServer("127.0.0.1", 0)
    options = {"poll_s": 0.05, "local_exports": True, **settings}
    server.start(store, Settings(state_dir=state_dir, key_sha256=digest(KEY), **options))
    try:
        yield server
    finally:
        server.stop()


def claim(store: JobStore, job_id: str) -> Lease:
    """The lease of a driver that runs the job."""
    lease = store.claim(job_id, nonce=uuid.uuid4().hex, ttl_s=60).lease
    assert lease is not None
    store.set_status(lease, JobStatus.RUNNING)
    return lease


def step_record(mean: float = 0.5) -> dict[str, Any]:
    return {
        "objectives": {"accuracy": {"mean": mean, "std": 0.1, "zero_share": 0.0}},
        "weights": {
            "strategy": {"accuracy": 0.7, "conciseness": 0.3},
            "applied": {"accuracy": 0.6, "conciseness": 0.4},
        },
        "loss": float("nan"),
    }


def assert_error(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    document = response.json()
    assert document.keys() == {"error"}
    assert document["error"].keys() == {"type", "code", "message", "param"}
    assert response.headers["x-request-id"]
    assert SECRET not in response.text
    return dict(document["error"])
