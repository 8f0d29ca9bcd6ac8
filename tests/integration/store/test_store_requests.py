"""What people ask of a job on a real redis-server, and the one end that it comes to."""

import math
import time
from contextlib import suppress

import pytest

from orchestrator.state.states import JobStatus as S
from orchestrator.state.store import ClaimOutcome, IllegalTransition, JobStore
from tests.fault_figures import all_at_once
from tests.store_support import SHORT_TTL_S, TTL_S, claim, commit, event_types, running, submit


def test_a_job_runs_to_its_end(store: JobStore) -> None:
    lease = running(store)
    store.set_total_steps(lease, 3)
    store.set_progress(lease, {"loss": math.inf, "line": "step 1"})
    assert store.job("j").cost == 0
    store.set_cost(lease, 1e-7)
    commit(store, lease, 1, 2, 3)
    store.finish(lease, S.SUCCEEDED)
    job = store.job("j")
    assert (job.status, job.step, job.total_steps, job.cost) == (S.SUCCEEDED, 3, 3, 1e-7)
    assert job.progress == {"loss": None, "line": "step 1"}
    assert job.started_at is not None
    assert job.finished_at is not None
    assert job.created_at <= job.started_at <= job.finished_at
    assert event_types(store) == ["job.queued", "job.claimed", "job.running", "job.succeeded"]
    assert store.claim("j", nonce="n", ttl_s=1).outcome is ClaimOutcome.TERMINAL
    for request in (store.request_cancel, store.request_pause, store.resume):
        with pytest.raises(IllegalTransition):
            request("j")


def test_what_a_run_is_at_is_its_holders_alone(store: JobStore) -> None:
    lease = running(store)
    store.set_phase(lease, ("rollout", 5.0))
    assert store.job("j").phase == {"at": "rollout", "since": 5.0}
    store.release(lease, "going down")
    claim(store)
    assert store.job("j").phase is None


def test_cancel(store: JobStore) -> None:
    submit(store)
    assert store.request_cancel("j") is S.CANCELLED
    assert store.request_cancel("j") is S.CANCELLED
    assert store.queued() == []
    assert event_types(store) == ["job.queued", "job.cancelled"]

    lease = running(store, "k")
    assert store.request_cancel("k") is S.CANCELLING
    assert store.job("k").status is S.CANCELLING
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
    assert store.job("j").status is S.PAUSING
    commit(store, lease, 1)
    store.finish(lease, S.PAUSED)
    assert store.claim("j", nonce="n", ttl_s=1).outcome is ClaimOutcome.NOT_QUEUED
    assert store.resume("j") is S.QUEUED
    job = store.job("j")
    assert (job.status, job.attempts) == (S.QUEUED, 0)
    assert store.request_pause("j") is S.PAUSED
    assert store.queued() == []
    assert store.request_cancel("j") is S.CANCELLED


@pytest.mark.parametrize("end", ["finish", "release", "sweep"])
def test_a_pause_by_a_rule_of_the_job_says_why_from_the_request_on(store: JobStore, end: str) -> None:
    why = "paused: kl is 2; wanted at most 1"
    lease = running(store)
    store.request_pause("j", why=why)
    store.request_pause("j", why="paused: another rule")  # who came first stands
    assert store.job("j").reason == why
    if end == "finish":
        store.finish(lease, S.PAUSED)
    elif end == "release":
        store.release(lease, "the machine goes down")
    else:
        store.renew(lease, 0.001)
        time.sleep(0.01)
        assert (store.sweep(), store.sweep()) == ([], ["j"])
    job = store.job("j")
    assert (job.status, job.reason) == (S.PAUSED, why)


def test_a_rule_of_the_job_takes_no_word_from_a_person(store: JobStore) -> None:
    lease = running(store)
    store.request_pause("j", by="key 12ab (ann)")
    store.request_pause("j", why="paused: kl is 2")
    store.finish(lease, S.PAUSED)
    assert store.job("j").reason == "paused by key 12ab (ann)"
    lease = running(store, "k")
    store.request_pause("k", why="paused: kl is 2")
    store.request_cancel("k")
    assert store.release(lease, "cancelled on request") is S.CANCELLED
    assert store.job("k").reason == "cancelled on request"


def test_events_and_reason_say_who_asked(store: JobStore) -> None:
    lease = running(store)
    store.request_pause("j", by="key 12ab (ann)")
    assert store.job("j").reason == "paused by key 12ab (ann)"
    store.finish(lease, S.PAUSED)
    assert store.job("j").reason == "paused by key 12ab (ann)"
    store.resume("j", by="key 34cd (ci)")
    lease = claim(store)
    store.set_status(lease, S.RUNNING)
    store.request_pause("j", by="key 12ab (ann)")
    store.request_pause("j")  # a rule of the job's own: what is asked stands already
    store.request_cancel("j", by="key 34cd (100%)")
    assert store.release(lease, "cancelled on request") is S.CANCELLED
    assert store.job("j").reason == "cancelled by key 34cd (100%)"
    told = [(event.type, event.data["by"]) for event in store.events("j").items if "by" in event.data]
    ann, ci, other = "key 12ab (ann)", "key 34cd (ci)", "key 34cd (100%)"
    assert told == [
        ("job.pausing", ann), ("job.paused", ann), ("job.queued", ci), ("job.pausing", ann),
        ("job.cancelling", other), ("job.cancelled", other),
    ]  # fmt: skip
    lease = running(store, "k")
    store.request_cancel("k", by=ann)
    store.finish(lease, S.SUCCEEDED)  # nobody asked for that
    assert "by" not in store.events("k").items[-1].data


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


def test_the_holder_hears_how_it_is_to_pause(store: JobStore) -> None:
    lease = running(store)
    assert store.renew(lease, TTL_S).pause is False
    store.request_pause("j", save=False)
    assert (store.renew(lease, TTL_S).pause, store.renew(lease, TTL_S).save) == (True, False)
    store.request_pause("j")  # who asks last decides
    assert store.renew(lease, TTL_S).save is True
