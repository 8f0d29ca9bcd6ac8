"""The order of an owner's queue on a real Redis: by priority, then by age, wherever a job has been meanwhile."""

import itertools
import uuid
from collections.abc import Iterator

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.state.keys import Keys
from orchestrator.state.redis_calls import connect
from orchestrator.state.states import MAX_PRIORITY, JobStatus
from orchestrator.state.store import JobStore, SubmitOutcome

PRIORITIES = st.integers(-MAX_PRIORITY, MAX_PRIORITY)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with connect(redis_url) as client:
        yield client


@pytest.fixture
def store(client: redis.Redis) -> JobStore:
    return JobStore(client, f"priority-{uuid.uuid4().hex}")


def submit(store: JobStore, job_id: str, priority: int = 0) -> str:
    return store.submit("{}", name="x", job_id=job_id, priority=priority).job_id


def leave_and_come_back(store: JobStore, job_id: str, way: str) -> None:
    """One of the ways by which a job leaves the queue and comes back; swept at most three times: then it is poison."""
    if way == "paused":
        store.request_pause(job_id)
        store.resume(job_id)
        return
    lease = store.claim(job_id, nonce=uuid.uuid4().hex, ttl_s=0.001 if way == "swept" else 30).lease
    assert lease is not None
    if way == "released":
        assert store.release(lease, "handed back") is JobStatus.QUEUED
        return
    while store.job(job_id).status is not JobStatus.QUEUED:
        store.sweep()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    priorities=st.lists(PRIORITIES, min_size=1, max_size=8),
    moves=st.lists(
        st.tuples(st.integers(0, 7), st.sampled_from(["paused", "released", "swept"])), max_size=3
    ),  # a fourth crash is poison
)
def test_the_queue_is_in_order_of_priority_then_age(
    client: redis.Redis, priorities: list[int], moves: list[tuple[int, str]]
) -> None:
    store = JobStore(client, f"priority-{uuid.uuid4().hex}")
    jobs = [submit(store, f"j{i}", priority) for i, priority in enumerate(priorities)]
    for i, way in moves:
        leave_and_come_back(store, jobs[i % len(jobs)], way)
    assert store.queued() == sorted(jobs, key=lambda job_id: -priorities[jobs.index(job_id)])  # a stable sort: by age
    assert store.next_queued() == store.queued()[0]
    assert [store.job(job_id).priority for job_id in jobs] == priorities


@pytest.mark.parametrize("year", [2030, 2064])
def test_a_microsecond_decides_at_every_priority(store: JobStore, client: redis.Redis, year: int) -> None:
    """Scores are doubles: the oldest and the newest of each priority must still be told apart."""
    keys = Keys(store.owner)
    newest = int((year - 1970) * 365.25 * 24 * 3600 * 1_000_000)
    client.zadd(keys.jobs, {"earlier": newest})  # a job's order is at least this, + 1
    wanted: list[str] = []
    for priority in range(MAX_PRIORITY, -MAX_PRIORITY - 1, -1):
        wanted += [submit(store, f"p{priority + MAX_PRIORITY}-{i}", priority) for i in (1, 0)]  # not by name
    assert store.queued() == wanted
    orders = [int(client.hget(keys.job(job_id), "order")) for job_id in wanted]  # type: ignore[arg-type]
    assert all(late - early == 1 for early, late in itertools.pairwise(orders))
    scores = [int(client.zscore(keys.queue, job_id)) for job_id in wanted]  # type: ignore[arg-type]
    assert all(scores[i + 1] - scores[i] == 1 for i in range(0, len(scores), 2))
    assert max(map(abs, scores)) < 2**53


def test_a_job_from_before_there_were_priorities_has_the_common_one(store: JobStore, client: redis.Redis) -> None:
    submit(store, "low", -1), submit(store, "old"), submit(store, "high", 1)
    client.hdel(Keys(store.owner).job("old"), "priority")
    assert store.job("old").priority == 0
    for way in ("paused", "released"):
        leave_and_come_back(store, "old", way)
    assert store.queued() == ["high", "old", "low"]


def test_a_priority_out_of_range_is_refused_and_nothing_is_stored(store: JobStore) -> None:
    for priority in (MAX_PRIORITY + 1, -MAX_PRIORITY - 1):
        with pytest.raises(ValueError, match="-5 to 5"):
            submit(store, "j", priority)
    assert store.queued() == []
    assert store.submit("{}", name="x", job_id="j", priority=MAX_PRIORITY).outcome is SubmitOutcome.NEW
