"""Every call to the store whose reply is lost on the way acts once."""

import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from orchestrator.state.embedded_redis import connect
from orchestrator.state.states import JobStatus as S
from orchestrator.state.store import Fenced, IllegalTransition, JobNotFound, JobStore, StepGap
from tests.lossy import LossyProxy, dump
from tests.store_support import SHORT_TTL_S, TTL_S, claim, submit


@pytest.fixture
def proxy(redis_url: str, tmp_path: Path) -> Iterator[LossyProxy]:
    proxy = LossyProxy(redis_url.removeprefix("unix://"), tmp_path / "s")
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
    yield store.set_cost(lease, 0.5)
    yield store.set_front(lease, {"points": [{"step": 1}]})
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
    assert (store.job("j").reason or "").startswith("3 starts came to no new checkpoint")


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
