"""What is read of a long job: the same as from the whole of it, without reading the whole."""

import json
import random
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.state import reader
from orchestrator.state.keys import Keys
from orchestrator.state.redis_calls import connect
from orchestrator.state.store import JobStore


@pytest.fixture
def store(redis_url: str) -> Iterator[JobStore]:
    with connect(redis_url) as client:
        store = JobStore(client, owner=f"reader-{uuid.uuid4().hex}")
        store.submit("{}", name="a job", job_id="j", steering={"weights": {"a": 1.0}})
        yield store


def with_ledger(store: JobStore, entries: list[tuple[int, int]], committed: int) -> None:
    keys = Keys(store.owner)
    commands: list[tuple[str | int, ...]] = [("DEL", keys.steps("j")), ("HSET", keys.job("j"), "step", committed)]
    for fence, step in entries:
        record = json.dumps({"loss": fence + step / 1000})
        commands.append(("XADD", keys.steps("j"), f"{fence}-{step}", "digest", "d", "at", "1.5", "record", record))
    store.calls.together(commands)


def expected(entries: list[tuple[int, int]], committed: int, after: int, limit: int | None) -> list[tuple[int, int]]:
    """By reading everything, newest first: a step not below those already met was undone by the fence that has them."""
    below, found = committed + 1, []
    for fence, step in reversed(entries):
        if step < below:
            below = step
            found.append((fence, step))
    return [(fence, step) for fence, step in reversed(found) if step > after][:limit]


def random_ledger(chance: random.Random) -> tuple[list[tuple[int, int]], int]:
    """Claims that go on from an older step, from an undone one, or beyond a gap, some without a commit."""
    entries: list[tuple[int, int]] = []
    fence = step = 0
    for _ in range(chance.randrange(7)):
        fence += chance.randint(1, 3)
        step = max(0, step + chance.randint(-8, 2))
        for _ in range(chance.choice([0, 1, 3, 9])):
            step += 1
            entries.append((fence, step))
    return entries, max(0, step + chance.choice([0, 0, 0, -2, -5, 1]))  # a claim has just taken it back, or not


def test_a_page_of_steps_is_that_of_the_whole_ledger(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_CHUNK", 4)
    for seed in range(150):
        chance = random.Random(seed)
        entries, committed = random_ledger(chance)
        with_ledger(store, entries, committed)
        for _ in range(4):
            after, limit = chance.randrange(-1, committed + 4), chance.choice([None, 1, 2, 5, 50])
            records = store.steps("j", after_step=after, limit=limit)
            found = [(record["fence"], record["step"]) for record in records]
            assert found == expected(entries, committed, after, limit), (seed, entries, committed, after, limit)
            assert [record["loss"] for record in records] == [fence + step / 1000 for fence, step in found]


def entries_read(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many stream entries each command of the store reads from now on."""
    counts: list[int] = []
    command, reads = store.calls.command, store.calls.reads

    def counted(*words: Any) -> Any:
        reply = command(*words)
        counts.append(len(reply) if words[0] in ("XRANGE", "XREVRANGE") else 0)
        return reply

    def all_counted(commands: Any) -> list[Any]:
        replies = reads(commands)
        streams = ("XRANGE", "XREVRANGE")
        counts.extend(len(reply) for words, reply in zip(commands, replies, strict=True) if words[0] in streams)
        return replies

    monkeypatch.setattr(store.calls, "command", counted)
    monkeypatch.setattr(store.calls, "reads", all_counted)
    return counts


@pytest.mark.parametrize("after", [0, 1490, 2900])
def test_a_page_of_a_long_ledger_reads_little_of_it(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    entries = [(fence, step) for fence in (1, 2, 3) for step in range(1000 * (fence - 1) + 1, 1000 * fence + 1)]
    with_ledger(store, entries, 3000)
    counts = entries_read(store, monkeypatch)
    steps = [record["step"] for record in store.steps("j", after_step=after, limit=20)]
    assert steps == list(range(after + 1, after + 21))
    assert sum(counts) <= 20 + 2 * 3


def test_the_newest_changes_of_a_long_steering_log(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(1, 8):
        store.steer("j", change={"at": i}, if_match=i, by="me")
    everything = store.steering("j")
    assert [entry.version for entry in everything.log] == list(range(1, 9))
    assert not everything.log_has_more
    counts = entries_read(store, monkeypatch)
    newest = store.steering("j", limit=3)
    assert (newest.version, newest.current, newest.log_has_more) == (8, everything.current, True)
    assert newest.log == everything.log[5:]
    older = store.steering("j", before=6, limit=3)
    assert (older.version, older.log, older.log_has_more) == (8, everything.log[2:5], True)
    oldest = store.steering("j", before=3, limit=3)
    assert (oldest.log, oldest.log_has_more) == (everything.log[:2], False)
    none = store.steering("j", limit=0)
    assert (none.version, none.log, none.log_has_more) == (8, (), True)
    assert max(counts) <= 4
