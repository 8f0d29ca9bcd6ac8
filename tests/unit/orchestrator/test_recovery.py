"""What `recover` makes of directories, without drivers: those have tests of their own (test_faults_recovery.py)."""

import json
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.state.keys import Keys
from orchestrator.state.redis_calls import connect
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore, Origin
from orchestrator.steering import initial_steering
from orchestrator.storage.checkpoint_store import STORE_VARIABLE, open_store
from orchestrator.storage.checkpoints import MANIFEST, STATE, directory_name, write_checkpoint, write_json
from orchestrator.storage.recovery import DOCUMENT, Finding, Found, Survey, keep_document, recover, survey
from tests.loop_fakes import make_spec


@pytest.fixture
def store(redis_url: str) -> Iterator[JobStore]:
    with connect(redis_url) as client:
        yield JobStore(client, owner=f"recovery-{uuid.uuid4().hex}")


def forget(store: JobStore, job_id: str) -> None:
    """As a Redis does that has lost the job."""
    keys = Keys(store.owner)
    found = store.calls.command("KEYS", f"{keys.job(job_id).replace('{', '?').replace('}', '?')}*")
    store.calls.command("DEL", *found)
    store.calls.command("ZREM", keys.jobs, job_id)
    store.calls.command("ZREM", keys.queue, job_id)


def test_a_job_comes_back_with_its_priority_its_origin_and_who_submitted_it(store: JobStore, tmp_path: Path) -> None:
    spec = make_spec(priority=3)
    origin = Origin(parent="job-parent", step=7)
    jobs = {"job-fork": origin, "job-plain": None}
    by = {"job-fork": "ci", "job-plain": None}
    for job_id, forked in jobs.items():
        store.submit(spec.to_json(), name=spec.name, job_id=job_id, origin=forked, priority=spec.priority)
        (tmp_path / "jobs" / job_id).mkdir(parents=True)
        text = store.spec(job_id)
        keep_document(tmp_path / "jobs" / job_id, owner=store.owner, spec=text, origin=forked, by=by[job_id])
        forget(store, job_id)
    assert {each.finding for each in recover(store, tmp_path)} == {Finding.RECOVERED}
    for job_id, forked in jobs.items():
        record = store.job(job_id)
        assert (record.status, record.priority, record.origin) == (JobStatus.PAUSED, 3, forked)
        assert record.submitted_by == (by[job_id] or "recover")


@pytest.mark.parametrize(
    ("missing", "step", "mode"), [(None, 30, "manual"), (MANIFEST, 10, "auto"), (STATE, 30, "auto")]
)
def test_a_job_comes_back_from_the_checkpoint_store(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str | None, step: int, mode: str
) -> None:
    """A machine that had the job once, and whose disk is behind."""
    monkeypatch.setenv(STORE_VARIABLE, f"file://{tmp_path}/store")
    spec, job_id = make_spec(), "job-moved"
    directory = tmp_path / "here" / "jobs" / job_id
    directory.mkdir(parents=True)
    keep_document(directory, owner=store.owner, spec=spec.to_json())
    followed = initial_steering(spec).model_dump(mode="json")

    def fill(folder: Path, **steering: Any) -> None:
        write_json(folder / "state.json", {"steering": followed | steering})

    open_store(directory / "checkpoints", store.owner, job_id).write(step=10, fence=3, fill=fill)
    elsewhere = open_store(tmp_path / "there", store.owner, job_id)
    elsewhere.write(step=30, fence=4, fill=partial(fill, mode="manual"))
    if missing is not None:
        (tmp_path / "store" / store.owner / job_id / "000030-4" / missing).unlink()
    (found,) = recover(store, tmp_path / "here")
    assert (found.finding, found.step) == (Finding.RECOVERED, step)
    assert store.steering(job_id).current["mode"] == mode


def test_what_can_not_be_read_yet_is_said_and_the_others_come_back(store: JobStore, tmp_path: Path) -> None:
    spec = make_spec()
    for job_id in ("job-one", "job-two"):
        directory = tmp_path / "jobs" / job_id / "checkpoints"
        write_checkpoint(directory, step=3, fence=1, fill=lambda folder: write_json(folder / "state.json", {}))
        keep_document(directory.parent, owner=store.owner, spec=spec.to_json())
    manifest = tmp_path / "jobs" / "job-one" / "checkpoints" / directory_name(3) / MANIFEST
    manifest.unlink()
    manifest.mkdir()  # a read that fails, also for root
    later = json.dumps(json.loads(spec.to_json()) | {"invented": 1})
    (tmp_path / "jobs" / "job-three").mkdir()
    keep_document(tmp_path / "jobs" / "job-three", owner=store.owner, spec=later)
    found = {each.job_id: each for each in recover(store, tmp_path)}
    assert found["job-two"].finding is Finding.RECOVERED
    assert found["job-one"].finding is Finding.LOST
    assert found["job-one"].note.startswith("not yet: can't read")
    assert found["job-three"].finding is Finding.LOST
    assert found["job-three"].note.startswith("not yet: its spec is refused: invented: unknown field")


@pytest.mark.parametrize("text", [None, "{", '{"owner": "local"}'])
def test_a_directory_without_its_document_is_known_where_redis_has_the_job(
    store: JobStore, tmp_path: Path, text: str | None
) -> None:
    spec, job_id = make_spec(), f"job-{uuid.uuid4().hex}"
    store.submit(spec.to_json(), name=spec.name, job_id=job_id)
    (tmp_path / "jobs" / job_id / "init").mkdir(parents=True)  # a fork that waits: no driver has been there
    if text is not None:
        (tmp_path / "jobs" / job_id / DOCUMENT).write_text(text)
    known = Found(job_id=job_id, finding=Finding.KNOWN, owner=store.owner, note="queued")
    operator = store.of_owner("local")
    assert list(recover(operator, tmp_path)) == [known]
    forget(store, job_id)
    assert [each.finding for each in recover(operator, tmp_path)] == [Finding.LOST]


def test_a_job_that_ended_without_a_driver_does_not_come_back(store: JobStore, tmp_path: Path) -> None:
    """Cancelled while it waited, and failed by the store: no driver was there to write it down."""
    spec, nonces = make_spec(), iter("abcd")
    jobs = ("job-cancelled", "job-poison", "job-waiting", "job-lost")
    for job_id in jobs:
        store.submit(spec.to_json(), name=spec.name, job_id=job_id)
        (tmp_path / "jobs" / job_id).mkdir(parents=True)
        keep_document(tmp_path / "jobs" / job_id, owner=store.owner, spec=store.spec(job_id))
    store.request_cancel("job-cancelled")
    while (lease := store.claim("job-poison", nonce=next(nonces), ttl_s=60).lease) is not None:
        store.release(lease, crashed=True)
    forget(store, "job-lost")
    (tmp_path / "jobs" / "job-fork" / "init").mkdir(parents=True)  # no driver has been there

    told = survey(store.of_owner("local"), tmp_path)
    assert told == Survey(known=3, missing=("job-lost",))
    assert not told.fits
    for job_id in jobs[:3]:
        forget(store, job_id)
    assert survey(store, tmp_path) == Survey(known=0, missing=("job-lost", "job-waiting"))
    found = {each.job_id: each for each in recover(store, tmp_path, dry=True)}
    assert {job_id: found[job_id].finding for job_id in jobs} == {
        "job-cancelled": Finding.FINISHED, "job-poison": Finding.FINISHED,
        "job-waiting": Finding.RECOVERED, "job-lost": Finding.RECOVERED,
    }  # fmt: skip
    assert found["job-poison"].note.startswith("failed;")
    assert not list((tmp_path / "jobs").rglob(f".{DOCUMENT}*"))
