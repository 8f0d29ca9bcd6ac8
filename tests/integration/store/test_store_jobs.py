"""Jobs in the store on a real redis-server: submitted once, listed in pages, each owner's own."""

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import redis

from orchestrator.state.keys import Keys
from orchestrator.state.states import JobStatus as S
from orchestrator.state.store import JobNotFound, JobStore, Lease, Submission, SubmitOutcome
from tests.fault_figures import all_at_once
from tests.store_support import claim, commit, submit, writes_under


def test_a_submitted_job_waits_in_the_queue(store: JobStore) -> None:
    before = time.time()
    answer = store.submit('{"a": 1}', name="first", job_id="j", steering={"mode": "auto"})
    assert (answer.job_id, answer.outcome) == ("j", SubmitOutcome.NEW)
    job = store.job("j")
    assert (job.name, job.status, job.reason, job.step, job.fence) == ("first", S.QUEUED, None, 0, 0)
    assert before - 1 < job.created_at < time.time() + 1
    assert (job.started_at, job.finished_at, job.total_steps, job.checkpoint_step) == (None,) * 4
    assert store.spec("j") == '{"a": 1}'
    assert store.next_queued() == "j"
    assert store.steering("j").current == {"mode": "auto"}
    (event,) = store.events("j").items
    assert (event.seq, event.type, event.level) == (1, "job.queued", "info")


def test_idempotency_key(store: JobStore, client: redis.Redis, owner: str) -> None:
    body = '{"a": 1}'
    assert store.submit(body, name="n", job_id="j1", idempotency_key="k").outcome is SubmitOutcome.NEW
    again = store.submit(body, name="n", job_id="j2", idempotency_key="k")
    assert (again.job_id, again.outcome) == ("j1", SubmitOutcome.REPLAY)
    other = store.submit('{"a": 2}', name="n", job_id="j3", idempotency_key="k")
    assert (other.job_id, other.outcome) == ("j1", SubmitOutcome.CONFLICT)
    assert store.queued() == ["j1"]
    assert 86_390_000 < client.pttl(Keys(owner).idempotency("k")) <= 86_400_000


def test_a_key_replays_the_first_answer_whatever_became_of_the_job(store: JobStore) -> None:
    first = submit_with_a_key(store)
    assert first.job == store.job("j1")
    assert first.job.status is S.QUEUED
    lease = claim(store, "j1")
    commit(store, lease, 1)
    store.finish(lease, S.FAILED, "broken")
    for again in (submit_with_a_key(store, "j2"), store.submitted("{}", idempotency_key="k")):
        assert again is not None
        assert (again.outcome, again.job_id, again.job) == (SubmitOutcome.REPLAY, "j1", first.job)
    conflict = store.submitted('{"a": 2}', idempotency_key="k")
    assert conflict is not None
    assert conflict.outcome is SubmitOutcome.CONFLICT
    assert store.submitted("{}", idempotency_key="another") is None
    again = store.submit("{}", name="n", job_id="j1", idempotency_key="other")
    assert (again.outcome, again.job) == (SubmitOutcome.REPLAY, store.job("j1"))  # by its id: the job as it is


def test_a_key_is_forgotten_after_its_time(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.state.store.IDEMPOTENCY_TTL_MS", 20)
    assert submit_with_a_key(store).outcome is SubmitOutcome.NEW
    time.sleep(0.05)
    assert store.submitted("{}", idempotency_key="k") is None
    assert submit_with_a_key(store, "j2").outcome is SubmitOutcome.NEW


def submit_with_a_key(store: JobStore, job_id: str = "j1") -> Submission:
    return store.submit("{}", name="n", job_id=job_id, idempotency_key="k")


def test_a_job_id_is_taken_once(store: JobStore) -> None:
    submit(store)
    assert store.submit("{}", name="n", job_id="j").outcome is SubmitOutcome.CONFLICT
    with pytest.raises(ValueError, match="job id"):
        store.submit("{}", name="n", job_id="no/slash")


def test_twenty_submits_with_one_key_make_one_job(store: JobStore) -> None:
    outcomes = all_at_once(20, lambda i: store.submit("{}", name="n", job_id=f"j{i}", idempotency_key="k").outcome)
    assert Counter(outcomes) == {SubmitOutcome.NEW: 1, SubmitOutcome.REPLAY: 19}
    assert len(store.jobs().items) == 1


def test_jobs_are_listed_newest_first_in_pages(store: JobStore) -> None:
    ids = [submit(store, f"j{i}") for i in range(7)]
    assert store.queued() == ids
    store.request_cancel("j3")
    seen: list[str] = []
    while True:
        page = store.jobs(after=seen[-1] if seen else None, limit=3)
        seen += [job.job_id for job in page.items]
        if not page.has_more:
            break
    assert seen == ids[::-1]
    page = store.jobs(limit=3, status=S.QUEUED)
    assert ([job.job_id for job in page.items], page.has_more) == (["j6", "j5", "j4"], True)
    page = store.jobs(after="j4", limit=3, status=S.QUEUED)
    assert ([job.job_id for job in page.items], page.has_more) == (["j2", "j1", "j0"], False)
    for nobody in ("nobody", "nobody.", "nobody.x", "."):
        with pytest.raises(JobNotFound):
            store.jobs(after=nobody)


@pytest.mark.parametrize("wanted", [None, S.CANCELLED])
def test_a_list_is_gone_through_while_its_jobs_are_deleted(store: JobStore, wanted: S | None) -> None:
    ids = [submit(store, f"j{i}") for i in range(7)]
    for job_id in ids:
        store.request_cancel(job_id)
    page, seen = store.jobs(limit=3, status=wanted), list[str]()
    while True:
        for job in page.items:
            seen.append(job.job_id)
            store.delete(job.job_id)
        if not page.has_more:
            break
        page = store.jobs(after=page.last, limit=3, status=wanted)
    assert (seen, store.jobs().items) == (ids[::-1], ())


def test_a_list_by_metadata_reads_specs_of_jobs_of_earlier_versions_alone(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"mark": "|x\u00e9"}
    for i in range(4):
        store.submit(json.dumps({"metadata": given}), name="x", job_id=f"j{i}", metadata=given if i % 2 else None)
    store.submit(json.dumps({"metadata": {}}), name="x", job_id="other", metadata={})
    read, specs = [], JobStore.specs
    monkeypatch.setattr(JobStore, "specs", lambda self, ids: read.extend(ids) or specs(self, ids))
    assert [job.job_id for job in store.jobs(metadata=given).items] == ["j3", "j2", "j1", "j0"]
    assert read == ["j2", "j0"]


def test_a_filtered_list_is_bounded_and_says_where_to_go_on(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.state.reader.MAX_SCANNED", 4)
    monkeypatch.setattr("orchestrator.state.reader._CHUNK", 2)
    for i in range(12):
        document = json.dumps({"metadata": {"mark": "x", "odd": str(i % 2)} if i < 4 else {}})
        store.submit(document, name="x", job_id=f"j{i}")
    store.request_cancel("j0")
    pages, after = [], None
    while not pages or pages[-1].has_more:
        pages.append(store.jobs(after=after, limit=3, metadata={"mark": "x"}))
        after = pages[-1].last
    assert [[job.job_id for job in page.items] for page in pages] == [[], [], ["j3", "j2", "j1"], ["j0"]]
    assert [str(page.last).partition(".")[0] for page in pages[:2]] == ["j8", "j4"]
    assert [job.job_id for job in store.jobs(after="j4", metadata={"mark": "x", "odd": "1"}).items] == ["j3", "j1"]
    assert [job.job_id for job in store.jobs(after="j4", status=S.CANCELLED).items] == ["j0"]
    assert not store.jobs(after="j4", status=S.CANCELLED).has_more
    assert not store.jobs(after="j0", status=S.CANCELLED).items
    assert len(store.jobs(limit=10).items) == 10  # an unfiltered list has no such bound


def test_jobs_keep_their_order_when_the_clock_steps_back(store: JobStore, client: redis.Redis, owner: str) -> None:
    keys, future = Keys(owner), 4_000_000_000_000_000  # in us: the year 2096
    submit(store, "early")
    client.zadd(keys.jobs, {"early": future})
    client.hset(keys.job("early"), "order", future)
    submit(store, "late")
    assert [job.job_id for job in store.jobs().items] == ["late", "early"]
    assert [job.job_id for job in store.jobs(after="late").items] == ["early"]


def test_owners_do_not_see_each_other(store: JobStore, client: redis.Redis) -> None:
    submit(store)
    stranger = JobStore(client, "stranger")
    assert stranger.jobs().items == ()
    with pytest.raises(JobNotFound):
        stranger.job("j")


@pytest.mark.parametrize("job_id", ["absent", "not a name", "a}:steps", ""])
def test_an_unknown_job_is_not_found_by_any_method(store: JobStore, job_id: str) -> None:
    lease = Lease(job_id=job_id, fence=1, nonce="n")
    calls: list[Callable[[], Any]] = [
        lambda: store.job(job_id), lambda: store.spec(job_id), lambda: store.steps(job_id),
        lambda: store.raw_steps(job_id), lambda: store.events(job_id), lambda: store.front(job_id),
        lambda: store.checkpoints(job_id), lambda: store.steering(job_id),
        lambda: store.steering_at(job_id, 1), lambda: store.event(job_id, "t", {}),
        lambda: store.steer(job_id, change={}, if_match=None, by="me"),
        lambda: store.claim(job_id, nonce="n", ttl_s=1), lambda: store.request_cancel(job_id),
        lambda: store.request_pause(job_id), lambda: store.resume(job_id),
        *writes_under(store, lease),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(JobNotFound):
            call()


def test_jobs_are_listed_by_who_submitted_them(store: JobStore) -> None:
    for i in range(4):
        submit(store, f"j{i}", by="ann" if i % 2 else "bob")
    store.request_cancel("j3")
    assert store.job("j1").submitted_by == "ann"
    assert [job.job_id for job in store.jobs(submitted_by="ann").items] == ["j3", "j1"]
    assert [job.job_id for job in store.jobs(submitted_by="ann", status=S.CANCELLED).items] == ["j3"]
    assert [job.job_id for job in store.jobs(submitted_by="ann", status=S.QUEUED).items] == ["j1"]
    assert store.jobs(submitted_by="nobody").items == ()
    store.calls.command("HDEL", Keys(store.owner).job("j1"), "submitted_by")  # of an earlier version
    assert store.job("j1").submitted_by is None
    assert [job.job_id for job in store.jobs(submitted_by="ann").items] == ["j3"]
