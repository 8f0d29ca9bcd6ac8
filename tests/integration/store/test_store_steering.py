"""Steering on a real redis-server: one winner for each version, effective at the step that was told."""

from collections import Counter
from collections.abc import Callable

import pytest

from orchestrator.state.states import JobStatus as S
from orchestrator.state.store import JobStore, Lease, SteerOutcome, steering_at
from tests.fault_figures import all_at_once
from tests.store_support import claim, commit, event_types, running, submit


def test_steering_takes_effect_after_the_step_in_flight(store: JobStore) -> None:
    submit(store, steering={"mode": "auto", "preference": {"a": 0.5, "b": 0.5}}, by="key-0")
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
        (1, 0, "key-0"), (2, 5, "key-1"), (3, 5, "key-2"),
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


def test_a_job_that_rests_has_no_step_in_flight(store: JobStore) -> None:
    submit(store)
    assert store.steer("j", change={"a": 0}, if_match=None, by="me").effective_step == 1
    lease = claim(store)
    assert store.steering_at("j", 1).version == 2
    store.set_total_steps(lease, 4)
    assert store.steer("j", change={"a": 1}, if_match=None, by="me").effective_step == 2
    commit(store, lease, 1, 2)
    assert store.steer("j", change={"a": 2}, if_match=None, by="me").effective_step == 4
    store.request_pause("j")
    assert store.steer("j", change={"a": 3}, if_match=None, by="me").effective_step == 4  # step 3 may still be made
    commit(store, lease, 3)
    store.release(lease)
    assert store.job("j").status == S.PAUSED
    assert store.steer("j", change={"a": 4}, if_match=None, by="me").effective_step == 4
    store.resume("j")
    assert store.steer("j", change={"a": 5}, if_match=None, by="me").effective_step == 4
    assert store.steering_at("j", 4).version == 7
    store.request_pause("j")
    assert store.steer("j", change={"a": 6}, if_match=None, by="me").effective_step == 4


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


def test_a_change_that_was_told_as_applied_is_not_rejected_once_its_step_is_undone(store: JobStore) -> None:
    lease = running(store)
    for i in (0, 1):
        store.steer("j", change={"a": i}, if_match=None, by="me")  # both from step 2 on
    commit(store, lease, 1, 2)
    store.event("j", "steering.applied", {"version": 3}, lease, once="steering 3")
    store.steer("j", change={"a": 2}, if_match=None, by="me")
    store.release(lease)
    lease = claim(store)  # from the beginning, as there is no checkpoint
    assert store.job("j").step == 0
    cancelled(store, lease)
    told = [event.data["version"] for event in store.events("j").items if event.type == "steering.rejected"]
    assert told == [4]


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
