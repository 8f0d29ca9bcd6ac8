"""GPU time on a real redis-server: counted once whoever dies or repeats a call, and a quota that holds under a race."""

import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.state import gpu_hours, scripts
from orchestrator.state.gpu_hours import UNITS_PER_HOUR, GpuQuotaReached
from orchestrator.state.keys import Keys
from orchestrator.state.states import JobStatus as S
from orchestrator.state.store import ClaimOutcome, Fenced, JobStore, Lease
from tests.fault_figures import all_at_once, tell
from tests.store_support import SHORT_TTL_S, TTL_S, claim, commit, event_types, running, submit
from tests.toy_mutants import store_with

HOUR_S = 3600


def fields(store: JobStore, job_id: str = "j") -> dict[str, str]:
    return dict(store.calls.command("HGETALL", Keys(store.owner).job(job_id)))


def months(store: JobStore) -> dict[str, int]:
    """What is counted for the owner, by month."""
    found = store.calls.command("HGETALL", Keys(store.owner).gpu_time)
    return {name: int(units) for name, units in found.items() if name != "limit"}


def used(store: JobStore) -> int:
    return sum(months(store).values())


def set_quota_s(store: JobStore, gpu_seconds: float) -> None:
    gpu_hours.set_quota(store.calls, store.owner, gpu_seconds / HOUR_S)


def on_gpus(store: JobStore, gpus: float = 2, job_id: str = "j", *, ttl_s: float = TTL_S) -> Lease:
    submit(store, job_id, may_take_gpus=True)
    lease = claim(store, job_id, ttl_s=ttl_s)
    store.set_status(lease, S.RUNNING)
    store.hold_gpus(lease, gpus)
    return lease


# ---------------------------------------------------------------------------------------------------- what counts


@settings(max_examples=60, deadline=None)
@given(ms=st.integers(0, 4_102_444_800_000))
def test_a_month_is_that_of_the_calendar(redis_url: str, ms: int) -> None:
    source = scripts.load()["gpus"].partition("local function charge")[0]
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        name, ends = client.eval(  # type: ignore[misc]
            f"{source} local name, ends = month(tonumber(ARGV[2])) return {{name, string.format('%.0f', ends)}}",
            0, "j", str(ms),
        )  # fmt: skip
    at = datetime.fromtimestamp(ms // 1000, UTC)
    following = datetime(at.year + at.month // 12, at.month % 12 + 1, 1, tzinfo=UTC)
    assert (name, int(ends)) == (f"{at:%Y-%m}", int(following.timestamp()) * 1000)


def test_gpus_count_from_their_reservation_to_the_end_of_the_lease(store: JobStore) -> None:
    lease = on_gpus(store, 2.5)
    began = int(fields(store)["gpu_at"])
    for step in (1, 2):
        time.sleep(0.02)
        store.renew(lease, TTL_S)
        commit(store, lease, step)
    store.finish(lease, S.SUCCEEDED)
    ended = int(fields(store)["gpu_at"])
    assert ended - began >= 40
    assert used(store) == int(fields(store)["gpu_used"]) == 2500 * (ended - began)
    assert store.job("j").gpu_hours == used(store) / UNITS_PER_HOUR
    hours = gpu_hours.read(store.calls, store.owner)
    assert (hours.used, hours.quota, hours.is_used_up) == (store.job("j").gpu_hours, None, False)
    assert 0 < hours.renews_at - hours.now <= 31 * 24 * HOUR_S


def test_a_job_on_cpu_counts_none(store: JobStore) -> None:
    lease = running(store)
    store.renew(lease, TTL_S)
    commit(store, lease, 1)
    store.finish(lease, S.SUCCEEDED)
    assert months(store) == {}
    assert store.job("j").gpu_hours == 0


def test_a_month_that_ends_meanwhile_gets_its_own_part(store: JobStore) -> None:
    lease = on_gpus(store)
    today = datetime.now(UTC)
    begins = int(datetime(today.year, today.month, 1, tzinfo=UTC).timestamp()) * 1000
    store.calls.command("HSET", Keys(store.owner).job("j"), "gpu_at", begins - 5000)
    store.renew(lease, TTL_S)
    now = int(fields(store)["gpu_at"])
    before = datetime.fromtimestamp(begins / 1000 - 1, UTC)
    assert months(store) == {f"{before:%Y-%m}": 2000 * 5000, f"{today:%Y-%m}": 2000 * (now - begins)}


def expiry_of(store: JobStore) -> int:
    return int(float(store.calls.command("ZSCORE", Keys(store.owner).leases, "j")))


def swept(store: JobStore) -> None:
    assert [store.sweep(), store.sweep()] == [[], ["j"]]


def claimed_again(store: JobStore) -> None:
    claim(store)


@pytest.mark.parametrize("take_back", [swept, claimed_again])
def test_a_holder_that_dies_counts_until_its_lease_ran_out(
    store: JobStore, take_back: Callable[[JobStore], None]
) -> None:
    on_gpus(store, ttl_s=SHORT_TTL_S)
    began, expired = int(fields(store)["gpu_at"]), expiry_of(store)
    time.sleep(3 * SHORT_TTL_S)
    take_back(store)
    assert used(store) == 2000 * (expired - began)
    again = claim(store) if take_back is swept else Lease(job_id="j", fence=2, nonce=fields(store)["nonce"])
    time.sleep(0.02)
    store.renew(again, TTL_S)  # it has no GPUs yet
    assert used(store) == 2000 * (expired - began)


def test_a_zombie_counts_nothing(store: JobStore) -> None:
    old = on_gpus(store, ttl_s=SHORT_TTL_S)
    time.sleep(2 * SHORT_TTL_S)
    claim(store)
    before = used(store)
    for write in (lambda: store.hold_gpus(old, 8), lambda: store.renew(old, TTL_S)):
        with pytest.raises(Fenced):
            write()
    assert used(store) == before


def storm(store: JobStore, jobs: int = 6, seed: int = 0) -> int:
    """GPU time that is counted beyond what the jobs can have taken; 0 where every ms is counted once."""
    chance = random.Random(seed)
    gpus = [chance.choice([0.5, 1, 2, 8]) for _ in range(jobs)]
    windows: list[list[int]] = [[] for _ in range(jobs)]

    def life(i: int) -> None:
        job_id, own = f"j{i}", random.Random(seed + i)
        submit(store, job_id, may_take_gpus=True)
        for _ in range(3):
            lease = claim(store, job_id, ttl_s=TTL_S)
            began = time.monotonic()
            store.hold_gpus(lease, gpus[i])
            for _ in range(4):
                if own.random() < 0.5:
                    store.renew(lease, TTL_S)
                else:
                    store.hold_gpus(lease, gpus[i])
            store.release(lease, "again", crashed=own.random() < 0.3)
            windows[i].append(round(1000 * (time.monotonic() - began)) + 2)
        store.request_cancel(job_id)

    all_at_once(jobs, life)
    own = sum(int(fields(store, f"j{i}")["gpu_used"]) for i in range(jobs))
    assert used(store) == own, "the owner's sum is its jobs'"
    most = sum(round(1000 * gpus[i]) * sum(windows[i]) for i in range(jobs))
    return max(0, own - most)


def test_jobs_of_one_owner_at_once_are_summed_exactly(store: JobStore) -> None:
    assert storm(store) == 0
    assert used(store) > 0


@pytest.mark.parametrize(("mutant", "seen_by"), [("gpus_twice", "twice"), ("gpus_past_expiry", "expiry")])
def test_mistakes_in_counting_are_seen(store: JobStore, mutant: str, seen_by: str) -> None:
    wrong = store_with(store, mutant)
    if seen_by == "expiry":
        with pytest.raises(AssertionError):
            test_a_holder_that_dies_counts_until_its_lease_ran_out(wrong, swept)
        return
    lease = on_gpus(wrong)
    began = int(fields(wrong)["gpu_at"])
    for _ in range(5):
        time.sleep(0.02)
        wrong.renew(lease, TTL_S)
    seconds, micros = wrong.calls.command("TIME")
    assert used(wrong) > 2000 * (1000 * seconds + micros // 1000 - began)


# ---------------------------------------------------------------------------------------------------- the quota


def exhausted(store: JobStore) -> Lease:
    """A running job whose owner's GPU time is used up at the next renewal."""
    lease = on_gpus(store, 1000)
    set_quota_s(store, 5)
    time.sleep(0.01)
    return lease


def test_a_job_that_uses_the_quota_up_is_paused_with_a_checkpoint_and_the_reason(store: JobStore) -> None:
    lease = exhausted(store)
    signals = store.renew(lease, TTL_S)
    assert (signals.pause, signals.save, signals.cancel) == (True, True, False)
    assert store.renew(lease, TTL_S) == signals
    job = store.job("j")
    assert job.status is S.PAUSING
    assert job.reason is not None
    renews = datetime.fromtimestamp(gpu_hours.read(store.calls, store.owner).renews_at, UTC)
    assert f"0.00138889 GPU-hours of {datetime.now(UTC):%Y-%m} are used up" in job.reason
    assert f"they renew on {renews:%Y-%m-%d} (UTC)" in job.reason
    store.finish(lease, S.PAUSED)
    assert (store.job("j").status, store.job("j").reason) == (S.PAUSED, job.reason)
    assert event_types(store)[-2:] == ["job.pausing", "job.paused"]


def test_one_that_hands_back_while_it_starts_keeps_the_reason(store: JobStore) -> None:
    submit(store, may_take_gpus=True)
    lease = claim(store)
    store.hold_gpus(lease, 1000)
    set_quota_s(store, 5)
    time.sleep(0.01)
    assert store.renew(lease, TTL_S).pause
    assert store.release(lease, "on request") is S.PAUSED
    assert "GPU-hours" in (store.job("j").reason or "")


def test_a_paused_one_comes_back_with_a_higher_quota(store: JobStore) -> None:
    lease = exhausted(store)
    store.renew(lease, TTL_S)
    store.finish(lease, S.PAUSED)
    with pytest.raises(GpuQuotaReached) as refused:
        store.resume("j")
    assert refused.value.hours.is_used_up
    assert store.job("j").status is S.PAUSED
    gpu_hours.set_quota(store.calls, store.owner, 100)
    assert store.resume("j") is S.QUEUED
    assert store.request_pause("j") is S.PAUSED
    assert store.job("j").reason == "paused on request"  # not what stopped it the time before
    gpu_hours.set_quota(store.calls, store.owner, None)
    assert gpu_hours.read(store.calls, store.owner).quota is None
    assert store.resume("j") is S.QUEUED


def test_one_that_waits_is_paused_when_its_turn_comes(store: JobStore) -> None:
    submit(store, "waits", may_take_gpus=True)
    submit(store, "cpu")
    store.renew(exhausted(store), TTL_S)
    assert store.claim("waits", nonce="n", ttl_s=TTL_S).outcome is ClaimOutcome.NOT_QUEUED
    assert store.job("waits").status is S.PAUSED
    assert "GPU-hours" in (store.job("waits").reason or "")
    assert store.claim("cpu", nonce="n", ttl_s=TTL_S).outcome is ClaimOutcome.OK


def test_a_quota_is_of_its_owner_alone(store: JobStore) -> None:
    store.renew(exhausted(store), TTL_S)
    other = store.of_owner(f"{store.owner}-2")
    assert submit(other, "other", may_take_gpus=True)
    assert gpu_hours.read(other.calls, other.owner).used == 0


def race(store: JobStore, submitters: int = 8) -> tuple[int, int, int]:
    """(accepted before the quota was used up, accepted after it, refused) of submits all the while."""
    lease = exhausted(store)
    stop = threading.Event()
    accepted: list[str] = []
    refused: list[GpuQuotaReached] = []

    def submit_on(i: int) -> None:
        for n in range(100):
            if stop.is_set():
                return
            try:
                accepted.append(submit(store, f"s{i}-{n}", may_take_gpus=True))
            except GpuQuotaReached as error:
                refused.append(error)

    def act(i: int) -> None:
        if i < submitters:
            submit_on(i)
            return
        while len(accepted) < submitters:
            time.sleep(0.001)
        store.renew(lease, TTL_S)
        deadline = time.monotonic() + 1
        while len(refused) < 3 * submitters and time.monotonic() < deadline:
            time.sleep(0.001)
        stop.set()

    all_at_once(submitters + 1, act)
    over_at = min((e.at for e in store.events("j").items if e.type == "job.pausing"), default=0.0)
    late = [job_id for job_id in accepted if store.job(job_id).created_at > over_at]
    assert {job.job_id for job in store.jobs(limit=10_000).items} == {"j", *accepted}
    assert all(error.hours.is_used_up for error in refused)
    return len(accepted) - len(late), len(late), len(refused)


def test_not_one_of_many_submits_passes_once_the_quota_is_used_up(store: JobStore) -> None:
    before, late, refused = race(store)
    tell("S6", accepted_before=before, accepted_after=late, refused=refused)
    assert late == 0
    assert before >= 8
    assert refused >= 8
    assert submit(store, "on-cpu") == "on-cpu"
    assert race(store_with(store.of_owner(f"{store.owner}-wrong"), "no_gpu_quota"))[2] == 0  # the mistake is seen


@pytest.mark.parametrize("hours", [0, -1, float("nan"), float("inf"), 1_000_001])
def test_what_is_no_quota_is_refused(store: JobStore, hours: float) -> None:
    with pytest.raises(ValueError, match="gpu_hours: expected a number above 0"):
        gpu_hours.set_quota(store.calls, store.owner, hours)
    assert gpu_hours.read(store.calls, store.owner).quota is None
