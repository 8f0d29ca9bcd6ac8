"""Readers of one job share a poller: each gets every event once, in order, wherever it starts, however slow it is."""

import asyncio
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from orchestrator.state.embedded_redis import connect
from orchestrator.state.keys import Keys
from orchestrator.state.store import JobStore, StoreUnavailable
from services.event_feed import Feeds

DEADLINE_S = 30


@pytest.fixture
def store(redis_url: str) -> Iterator[JobStore]:
    client = connect(redis_url)
    yield JobStore(client, owner=f"feed-{uuid.uuid4().hex}")
    client.close()


class Counted(JobStore):
    """How often the job was asked for, by whichever method."""

    watched = 0
    paged = 0

    def watch(self, *args, **options):  # type: ignore[no-untyped-def]
        self.watched += 1
        return super().watch(*args, **options)

    def events(self, *args, **options):  # type: ignore[no-untyped-def]
        self.paged += 1
        return super().events(*args, **options)


class Away(JobStore):
    """As the store while its Redis is away."""

    away = False

    def watch(self, *args, **options):  # type: ignore[no-untyped-def]
        if self.away:
            raise StoreUnavailable("away")
        return super().watch(*args, **options)


def submitted(store: JobStore, events: int) -> str:
    """A job with so many events, the one of its submission among them."""
    job_id = f"job-{uuid.uuid4().hex}"
    store.submit("{}", name="x", job_id=job_id)
    for number in range(events - 1):
        store.event(job_id, "test", {"number": number})
    return job_id


async def numbers(chunks: AsyncIterator[bytes], pause_s: float = 0) -> list[int]:
    found = []
    async for chunk in chunks:
        found += [json.loads(line[6:])["seq"] for line in chunk.split(b"\n") if line.startswith(b"data: ")]
        await asyncio.sleep(pause_s)
    return found


def test_readers_from_anywhere_get_everything_once(store: JobStore) -> None:
    job_id, feeds = submitted(store, 250), Feeds(0.02, threading.Event())

    async def all_of_them() -> list[list[int]]:
        newest = 250
        starts = [249, 0, 100, 10**15 - 1, 7]  # the first one starts the poller where the others lack most
        readers = [asyncio.create_task(numbers(feeds.follow(store, job_id, after, newest))) for after in starts]
        slow = asyncio.create_task(numbers(feeds.follow(store, job_id, 0, newest), pause_s=0.1))
        await asyncio.sleep(0.2)
        for number in range(150):
            await asyncio.to_thread(store.event, job_id, "test", {"number": number})
        await asyncio.to_thread(store.request_cancel, job_id)
        return await asyncio.wait_for(asyncio.gather(*readers, slow), DEADLINE_S)

    found = asyncio.run(all_of_them())
    end = 401  # 250, 150 and the cancellation
    assert [len(each) for each in found] == [end - 249, end, end - 100, 0, end - 7, end]
    for each in found:
        assert each == list(range(end - len(each) + 1, end + 1))
    assert feeds._feeds == {}


def test_a_cursor_beyond_the_end_takes_nothing_from_the_next_reader(store: JobStore) -> None:
    job_id, feeds = submitted(store, 3), Feeds(0.02, threading.Event())

    async def both() -> list[int]:
        beyond = asyncio.create_task(numbers(feeds.follow(store, job_id, 999, 3)))
        await asyncio.sleep(0.1)
        reader = asyncio.create_task(numbers(feeds.follow(store, job_id, 3, 3)))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(store.event, job_id, "test", {})
        await asyncio.to_thread(store.request_cancel, job_id)
        await asyncio.wait_for(beyond, DEADLINE_S)
        return await asyncio.wait_for(reader, DEADLINE_S)

    assert asyncio.run(both()) == [4, 5]


def test_readers_of_a_job_that_was_put_back_are_let_go(store: JobStore) -> None:
    """Its numbers begin anew: what they wait for would come much later, or never."""
    job_id, feeds = submitted(store, 20), Feeds(0.02, threading.Event())

    async def read() -> list[int]:
        reader = asyncio.create_task(numbers(feeds.follow(store, job_id, 0, 20)))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(store.calls.command, "HSET", Keys(store.owner).job(job_id), "seq", 1)
        return await asyncio.wait_for(reader, DEADLINE_S)

    assert asyncio.run(read()) == list(range(1, 21))


def test_readers_are_let_go_where_numbers_were_given_anew(store: JobStore, redis_url: str) -> None:
    """From an older copy of Redis, whose job has passed the number that they had: what they had is told no more."""
    job_id = submitted(store, 20)
    feeds = Feeds(0.02, threading.Event())

    async def read(held: Away) -> list[int]:
        reader = asyncio.create_task(numbers(feeds.follow(held, job_id, 0, 20)))
        await asyncio.sleep(0.2)
        held.away = True
        await asyncio.sleep(0.1)
        keys = Keys(store.owner)
        await asyncio.to_thread(store.calls.command, "DEL", keys.events(job_id))
        await asyncio.to_thread(store.calls.command, "HSET", keys.job(job_id), "seq", 19)
        for number in range(3):
            await asyncio.to_thread(store.event, job_id, "other", {"number": number})
        held.away = False
        return await asyncio.wait_for(reader, DEADLINE_S)

    with connect(redis_url) as client:
        assert asyncio.run(read(Away(client, owner=store.owner))) == list(range(1, 21))


def test_a_reader_that_falls_behind_reads_on_from_redis(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.event_feed._RECENT", 5)
    job_id, feeds = submitted(store, 20), Feeds(0.02, threading.Event())

    async def behind() -> list[int]:
        chunks = feeds.follow(store, job_id, 0, 20)
        fast = asyncio.create_task(numbers(feeds.follow(store, job_id, 0, 20)))
        found = await numbers_of(anext(chunks))
        for number in range(300):
            await asyncio.to_thread(store.event, job_id, "test", {"number": number})
        await asyncio.to_thread(store.request_cancel, job_id)
        assert await asyncio.wait_for(fast, DEADLINE_S) == list(range(1, 322))
        return found + await asyncio.wait_for(numbers(chunks), DEADLINE_S)

    async def numbers_of(chunk) -> list[int]:  # type: ignore[no-untyped-def]
        text = await asyncio.wait_for(chunk, DEADLINE_S)
        return [json.loads(line[6:])["seq"] for line in text.split(b"\n") if line.startswith(b"data: ")]

    assert asyncio.run(behind()) == list(range(1, 322))


def test_many_readers_cost_no_more_than_one(store: JobStore) -> None:
    job_id = submitted(store, 1)
    counted, feeds = Counted(connect_of(store), owner=store.owner), Feeds(0.02, threading.Event())

    async def many() -> list[list[int]]:
        readers = [asyncio.create_task(numbers(feeds.follow(counted, job_id, 0, 1))) for _ in range(50)]
        for number in range(20):
            await asyncio.to_thread(store.event, job_id, "test", {"number": number})
            await asyncio.sleep(0.01)
        await asyncio.to_thread(store.request_cancel, job_id)
        return await asyncio.wait_for(asyncio.gather(*readers), DEADLINE_S)

    began = time.monotonic()
    assert asyncio.run(many()) == [list(range(1, 23))] * 50
    assert counted.paged == 0
    assert counted.watched <= 23 + (time.monotonic() - began) / 0.02  # a page each, and the polls of one reader


def connect_of(store: JobStore):  # type: ignore[no-untyped-def]
    return store.calls._client


def test_a_reader_that_leaves_stops_the_poller(store: JobStore) -> None:
    job_id, feeds = submitted(store, 1), Feeds(0.02, threading.Event())

    async def leave() -> bool:
        chunks = feeds.follow(store, job_id, 0, 1)
        await anext(chunks)
        (feed,) = feeds._feeds.values()
        await chunks.aclose()
        await asyncio.wait([feed.poller], timeout=DEADLINE_S)
        return feed.poller.cancelled()

    assert asyncio.run(leave())
    assert feeds._feeds == {}


def test_what_breaks_the_poller_reaches_its_readers(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id, feeds = submitted(store, 1), Feeds(0.02, threading.Event())

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(store, "watch", broken)

    async def read() -> None:
        await asyncio.wait_for(numbers(feeds.follow(store, job_id, 0, 1)), DEADLINE_S)

    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(read())
