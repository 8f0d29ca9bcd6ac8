"""Claims and leases on a real redis-server: one holder, fences that only grow, zombies that write nothing."""

import time
from collections import Counter

import pytest
import redis

from orchestrator.state.keys import Keys
from orchestrator.state.states import JobStatus as S
from orchestrator.state.store import ClaimOutcome, Fenced, JobStore, Lease
from tests.fault_figures import all_at_once
from tests.lossy import dump
from tests.store_support import SHORT_TTL_S, TTL_S, claim, commit, event_types, running, submit, writes_under


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


def test_an_heir_of_one_that_died_before_its_first_commit_re_runs_as_many(store: JobStore) -> None:
    lease = running(store)
    commit(store, lease, 1, 2, 3)
    store.register_checkpoint(lease, step=1, path="/c/1", digest="c1")
    store.register_checkpoint(lease, step=2, path="/c/2", digest="c2")
    store.release(lease, "its driver died", crashed=True)
    for nonce, rewinds in (("a", False), ("b", True), ("c", False)):
        got = store.claim("j", nonce=nonce, ttl_s=TTL_S)
        assert got.lease is not None
        assert (got.step, got.from_step) == (1 if nonce == "c" else 2, 3)
        assert store.claim("j", nonce=nonce, ttl_s=TTL_S) == got  # the reply was lost
        if rewinds:
            store.rewind(got.lease, step=1)
        if nonce == "c":
            commit(store, got.lease, 2)
        store.release(got.lease, "its driver died")
    got = store.claim("j", nonce="d", ttl_s=TTL_S)
    assert (got.step, got.from_step) == (1, 2)


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


def test_a_commit_extends_the_lease(store: JobStore, client: redis.Redis) -> None:
    """To its whole time from then on, and no longer."""
    leases = Keys(store.owner).leases
    lease = running(store, ttl_s=TTL_S)
    for step in (1, 2, 3):
        seconds, micros = client.time()
        now_ms = 1000 * seconds + micros / 1000
        client.zadd(leases, {"j": now_ms + 5000})  # as if most of it had passed
        commit(store, lease, step)
        seconds, micros = client.time()
        latest_ms = 1000 * seconds + micros / 1000
        assert now_ms - 1 <= client.zscore(leases, "j") - 1000 * TTL_S <= latest_ms + 1
    assert store.claim("j", nonce="n", ttl_s=1).outcome is ClaimOutcome.HELD


@pytest.mark.parametrize("last", ["its lease ran out", "its driver died: CUDA out of memory", "no word of why"])
def test_a_fourth_attempt_without_a_checkpoint_is_poison(store: JobStore, last: str) -> None:
    submit(store)
    for _ in range(3):
        lease = claim(store, ttl_s=SHORT_TTL_S)
        if last.startswith("its lease"):
            time.sleep(2 * SHORT_TTL_S)
        else:
            store.release(lease, last if last.startswith("its driver") else None, crashed=True)
    assert store.claim("j", nonce="n", ttl_s=1).outcome is ClaimOutcome.POISON
    assert store.claim("j", nonce="n", ttl_s=1).outcome is ClaimOutcome.POISON  # a retry of the same call
    assert store.claim("j", nonce="m", ttl_s=1).outcome is ClaimOutcome.TERMINAL
    job = store.job("j")
    why = f"3 starts came to no new checkpoint (the events have each); the last ended with: {last}"
    assert (job.status, job.reason, job.attempts) == (S.FAILED, why, 3)
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
