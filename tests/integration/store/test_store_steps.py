"""Steps, checkpoints, the front and events on a real redis-server."""

import json
import math
import time
from typing import Any

import pytest
import redis

from orchestrator.figures import front_document
from orchestrator.rollouts.engine_health import recorded
from orchestrator.state import reader
from orchestrator.state.census import Census
from orchestrator.state.keys import Keys
from orchestrator.state.records import dumps
from orchestrator.state.states import JobStatus
from orchestrator.state.store import Fenced, JobStore, StepGap
from policies.pareto import Archive, Point
from tests.fault_figures import all_at_once
from tests.store_support import claim, commit, running, submit


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


def test_what_a_job_writes_is_counted_until_it_is_deleted(store: JobStore) -> None:
    """A few long jobs fill Redis, and then nobody's leases are renewed: its owner's quota is to say so before."""
    lease = running(store)
    before = Census(store).kept()[1]
    healthy = {"health": "healthy", "resent": 0, "failures": 0, "restarts": 0, "rollouts": 8, "reason": None}
    figures = {str(number): healthy for number in range(64)}
    record = {"loss": 0.5, **recorded(figures)}
    assert len(dumps(record)) < 100, "64 healthy engines are one figure"
    for _ in range(2):  # the first reply was lost
        store.commit(lease, step=1, digest="d", record=record)
    assert Census(store).kept()[1] == before + len(dumps(record))
    change = {"weights": {"a": 1.0}}
    store.steer("j", change=change, if_match=None, by="ann")
    assert Census(store).kept()[1] == before + len(dumps(record)) + 2 * len(dumps(change))
    store.finish(lease, JobStatus.FAILED)
    store.delete("j")
    assert Census(store).kept() == (0, 0)


def test_what_a_version_that_counts_nothing_deleted_is_forgotten_with_the_last_job(
    store: JobStore, client: redis.Redis
) -> None:
    lease = running(store)
    client.hincrby(Keys(store.owner).kept, "bytes", 999)
    store.finish(lease, JobStatus.FAILED)
    store.delete("j")
    assert Census(store).kept() == (0, 0)


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
    with pytest.raises(StepGap, match="step 2 does not fit"):
        store.update_checkpoints(lease, {2: {"on_front": True}})
    with pytest.raises(ValueError, match="other than metrics"):
        store.update_checkpoints(lease, {3: {"path": "/elsewhere"}})
    store.update_checkpoints(lease, {3: {"on_front": True}}, removals=[1])
    assert [(c.step, c.on_front) for c in store.checkpoints("j")] == [(3, True)]
    job = store.job("j")
    assert (job.checkpoint_step, job.checkpoint_path) == (3, "/c/3")


def test_only_checkpoints_that_changed_are_written(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long job keeps hundreds, and tells of all of them with each evaluation."""
    lease = running(store)
    commit(store, lease, *range(1, 21))
    for step in range(1, 21):
        store.register_checkpoint(lease, step=step, path=f"/c/{step}", digest=f"c{step}")
    changes = {step: {"metrics": {"a": 0.1 * step, "b": math.nan}, "on_front": step > 5} for step in range(1, 21)}
    store.update_checkpoints(lease, changes)
    written, write = [], JobStore._write
    monkeypatch.setattr(JobStore, "_write", lambda *args, **more: written.append(args[3:]) or write(*args, **more))
    store.update_checkpoints(lease, changes | {7: {"on_front": False}})
    ((removals, step, _),) = written
    assert (removals, step) == (0, 7)
    assert [found.step for found in store.checkpoints("j") if found.on_front] == [6, *range(8, 21)]
    assert store.checkpoint("j", 7) == store.checkpoints("j")[6]
    assert store.checkpoint("j", 21) is None


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
    points = [{"step": 0, "objectives": {"a": 0.1}, "mean_tokens": math.nan}]
    store.set_front(lease, {"points": points, "hypervolume": 0.3})
    assert store.front("j") == {"points": [{**points[0], "mean_tokens": None}], "hypervolume": 0.3}
    store.calls.command("HDEL", store._keys.front("j"), "doc")
    assert Census(store).pulses(["j"])["j"].hypervolume == 0.3, "a monitor asks every few seconds: not for all points"
    store.calls.command("HSET", store._keys.front("j"), "doc", dumps({"points": points, "hypervolume": 0.4}))
    store.calls.command("HDEL", store._keys.front("j"), "volume")  # as an earlier version left it
    assert Census(store).pulses(["j"])["j"].hypervolume == 0.4


@pytest.mark.parametrize("end", ["claimed", "cancelled", "rewound"])
def test_the_front_is_the_lineages(store: JobStore, end: str) -> None:
    """A point whose step was undone, or never committed, is on no front; nor does it keep another from it."""
    values = {0: (0.2, 0.2), 1: (0.4, 0.5), 2: (0.5, 0.4), 3: (0.6, 0.6), 4: (0.7, 0.7)}

    def front(steps: int) -> dict[str, Any]:
        archive = Archive({"a": (0.0, 1.0), "b": (0.0, 1.0)})
        for step in range(steps + 1):
            archive.add(Point(step=step, objectives=dict(zip("ab", values[step], strict=True)), mean_tokens=9.0))
        return json.loads(dumps(front_document(archive, {1, 2})))  # type: ignore[no-any-return]

    lease = running(store)
    for step in (1, 2, 3):
        commit(store, lease, step)
        if step < 3:
            store.register_checkpoint(lease, step=step, path=f"/c/{step}", digest=f"c{step}")
    store.set_front(lease, front(3))
    assert store.front("j") == front(3)
    store.set_front(lease, front(4))  # evaluated, and killed before its commit
    assert store.front("j") == front(3)
    store.release(lease)
    lease = claim(store)
    expected = front(2)
    if end == "cancelled":
        store.request_cancel("j")
        store.finish(lease, JobStatus.CANCELLED)
    elif end == "rewound":
        store.rewind(lease, step=1)
        expected = front(1)
    assert store.front("j") == expected
    assert Census(store).pulses(["j"])["j"].hypervolume == expected["hypervolume"]


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


def test_what_is_told_once_outlives_ten_thousand_others(store: JobStore, client: redis.Redis) -> None:
    """A report draws collapses; and who reads on must see that there is a gap."""
    lease = running(store)
    kept = [store.event("j", "collapse.detected", {"step": 20}, lease, level="warning", once="collapse 20")]
    store.event("j", "steering.applied", {}, lease, once="steering 2")  # the steering's log has these
    with client.pipeline(transaction=False) as many:  # as 11,000 calls would leave it
        key = store._keys.events("j")
        many.hincrby(store._keys.job("j"), "seq", 11_000)
        for seq in range(kept[0] + 2, kept[0] + 11_002):
            fields = {"type": "note", "level": "info", "at": "1.0", "data": "{}"}
            many.xadd(key, fields, id=f"{seq}-0", maxlen=10_000, approximate=True)
        many.execute()
    kept.append(store.event("j", "collapse.over", {"step": 30}, lease, once="collapse over 20"))
    page = store.events("j", limit=20)
    assert page.newest == kept[1]
    assert 9_900 < page.newest - page.oldest < 10_300
    assert [event.seq for event in page.items] == [kept[0], *range(page.oldest, page.oldest + 19)]
    assert page.has_more
    page = store.events("j", after=kept[0], limit=2)
    assert [event.seq for event in page.items] == [page.oldest, page.oldest + 1]
    page = store.events("j", after=page.newest - 1)
    assert ([event.seq for event in page.items], page.has_more) == ([kept[1]], False)
    store.finish(lease, JobStatus.FAILED)
    store.delete("j")
    assert store.calls.command("EXISTS", store._keys.marks("j")) == 0


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
