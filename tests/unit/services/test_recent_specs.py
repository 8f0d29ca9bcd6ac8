from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest

from orchestrator.errors import JobNotFound
from services.recent_specs import RecentSpecs


class FakeStore:
    """Documents by job, and how often one was read."""

    def __init__(self, **specs: dict[str, Any]) -> None:
        self.specs = {job_id: json.dumps(spec) for job_id, spec in specs.items()}
        self.reads = 0

    def job(self, job_id: str) -> Any:
        if job_id not in self.specs:
            raise JobNotFound(job_id)
        return type("Record", (), {"spec_digest": sha256(self.specs[job_id].encode()).hexdigest()})

    def spec(self, job_id: str) -> str:
        self.reads += 1
        return self.specs[job_id]


def test_a_document_is_read_once() -> None:
    store, specs = FakeStore(a={"steps": 7}), RecentSpecs()
    for _ in range(3):
        _, spec = specs.job_and_spec(store, "a")  # type: ignore[arg-type]
        assert (spec.steps, json.loads(spec.body)) == (7, {"steps": 7})
    assert store.reads == 1


def test_one_without_steps_has_none() -> None:
    store = FakeStore(a={"kind": "reward_model"})
    assert RecentSpecs().job_and_spec(store, "a")[1].steps is None  # type: ignore[arg-type]


def test_a_job_that_is_gone_is_not_found_though_its_document_was_kept() -> None:
    store, specs = FakeStore(a={"steps": 7}), RecentSpecs()
    specs.job_and_spec(store, "a")  # type: ignore[arg-type]
    store.specs.clear()
    with pytest.raises(JobNotFound):
        specs.job_and_spec(store, "a")  # type: ignore[arg-type]


def test_another_document_under_the_same_id_is_read() -> None:
    store, specs = FakeStore(a={"steps": 7}), RecentSpecs()
    specs.job_and_spec(store, "a")  # type: ignore[arg-type]
    store.specs["a"] = json.dumps({"steps": 8})
    assert specs.job_and_spec(store, "a")[1].steps == 8  # type: ignore[arg-type]


def test_the_longest_unused_goes_where_there_are_too_many_bytes() -> None:
    store = FakeStore(a={"steps": 1}, b={"steps": 2}, c={"steps": 3})
    specs = RecentSpecs(most_bytes=2 * len(store.specs["a"]))
    for job_id in ("a", "b", "a", "c", "a"):
        specs.job_and_spec(store, job_id)  # type: ignore[arg-type]
    assert store.reads == 3
    specs.job_and_spec(store, "b")  # type: ignore[arg-type]
    assert store.reads == 4
