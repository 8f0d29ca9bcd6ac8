"""What a watch asks of the API, and how often."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from services.client import Unavailable
from services.dashboard import watch
from services.dashboard.watch import JobWatch, figures, pause_s
from tests.dashboard_support import on_page


class FakeClient:
    """A job whose every look finds another step."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.version = 1

    async def job(self, _: str) -> dict[str, Any]:
        self.asked["job"] += 1
        return {"status": "running", "checkpoint_step": None, "spec": {"objectives": []}}

    async def events(self, *_: Any, **__: Any) -> dict[str, Any]:
        self.asked["events"] += 1
        return {"data": [], "has_more": False}

    async def metrics(self, _: str, *, after: int, **__: Any) -> dict[str, Any]:
        self.asked["metrics"] += 1
        return {"data": [{"step": after + 1, "at": 0.0}], "has_more": False}

    async def front(self, _: str) -> dict[str, Any]:
        return {"points": []}

    async def checkpoints(self, _: str) -> dict[str, Any]:
        return {"data": []}

    async def steering(self, _: str, **__: Any) -> dict[str, Any]:
        self.asked["steering"] += 1
        return {"version": self.version}


class FakeSession:
    def __init__(self) -> None:
        self.client = FakeClient()
        self.shared: dict[str, Any] = {}
        self.ending: list[Any] = []


@pytest.mark.parametrize(("watches", "pause"), [(0, 0.8), (1, 0.8), (13, 0.8), (25, 1.5), (100, 6.0)])
def test_many_watches_look_more_seldom(watches: int, pause: float) -> None:
    assert pause_s(watches) == pytest.approx(pause)


def test_a_look_at_a_new_step_asks_for_each_thing_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look_twice() -> Counter[str]:
        session = FakeSession()
        found = await JobWatch.of(session, "job-1")  # type: ignore[arg-type]
        await found._fetch()
        session.client.asked.clear()
        assert await found._fetch() == {"steps", "job"}
        return session.client.asked

    assert asyncio.run(look_twice()) == {"events": 1, "metrics": 1, "job": 1}
    monkeypatch.setattr(watch, "LATE_S", 0.0)
    assert asyncio.run(look_twice()) == {"events": 1, "metrics": 1, "job": 1, "steering": 1}


def test_a_change_of_the_steering_that_somebody_else_made_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LATE_S", 0.0)

    async def look() -> set[str]:
        session = FakeSession()
        found = await JobWatch.of(session, "job-1")  # type: ignore[arg-type]
        await found._fetch()
        session.client.version = 2
        return await found._fetch()

    assert "steering" in asyncio.run(look())


@pytest.mark.parametrize(("status", "seen"), [("running", True), ("paused", True), ("succeeded", False)])
def test_it_is_seen_without_a_new_step_too(monkeypatch: pytest.MonkeyPatch, status: str, seen: bool) -> None:
    monkeypatch.setattr(watch, "LATE_S", 0.0)

    async def look(session: Any, _: Any) -> None:
        session.client.moves = False
        session.client.told["status"] = status
        found = await JobWatch.of(session, "job-1")
        await found._fetch()
        session.client.take({"mode": "manual"}, by="another")
        assert await found._fetch() == ({"steering"} if seen else set())

    on_page(look)


def test_a_look_that_breaks_off_is_told_of_with_the_next() -> None:
    async def look(session: Any, _: Any) -> None:
        found, api = await JobWatch.of(session, "job-1"), session.client
        await found._fetch()
        api.happened = [{"seq": 1, "type": "evaluated", "data": {"step": 1}}]
        api.failing["front"] = Unavailable(503, "unavailable", "away")
        with pytest.raises(Unavailable):
            await found._fetch()
        api.failing, api.moves = {}, False
        assert await found._fetch() == {"events", "steps", "job", "front", "checkpoints"}

    on_page(look)


def test_what_is_asked_for_during_a_look_has_a_look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_S", 60.0)

    async def look(session: Any, _: Any) -> None:
        found, looks = await JobWatch.of(session, "job-1"), []

        async def listen(news: Any) -> None:
            looks.append(news)
            if len(looks) == 1:
                found.poke()

        found.on_news(listen)
        for _ in range(100):
            await asyncio.sleep(0)
        await found.stop()
        assert len(looks) == 2

    on_page(look)


def test_a_front_and_a_checkpoint_that_come_after_their_event_are_seen() -> None:
    async def look(session: Any, _: Any) -> None:
        found, api = await JobWatch.of(session, "job-1"), session.client
        await found._fetch()
        api.moves = False
        api.happened = [{"seq": 1, "type": "evaluated", "data": {"step": 2}}]
        await found._fetch()
        api.points = [{"step": 2}]
        api.moves, api.newest = True, {"evaluation": {"objectives": {}}}
        assert await found._fetch() >= {"front", "checkpoints"}
        assert found.front == {**await api.front(""), "points": [{"step": 2}]}
        api.kept, api.newest = [2], {}
        api.told["checkpoint_step"] = 2
        assert await found._fetch() >= {"front", "checkpoints"}
        assert [kept["step"] for kept in found.checkpoints] == [2]
        assert await found._fetch() == {"steps", "job"}

    on_page(look)


@pytest.mark.parametrize(
    ("timings", "speed"),
    [
        ({"step": 12.0, "evaluate": 8.0, "checkpoint": 2.0}, 50.0),
        ({"step": 2.0}, 50.0),
        ({"step": 2.0, "evaluate": 2.0}, None),
        ({}, None),
    ],
)
def test_an_evaluation_makes_no_training_slower(timings: dict[str, float], speed: float | None) -> None:
    assert figures({"step": 1, "tokens": 100, "timings_s": timings})["tokens_per_s"] == speed


def test_watches_count_while_they_run() -> None:
    async def watched() -> tuple[int, int]:
        found = await JobWatch.of(FakeSession(), "job-1")  # type: ignore[arg-type]

        async def listen(_: Any) -> None: ...

        found.on_news(listen)
        await asyncio.sleep(0.01)
        running = len(watch._running)
        await found.stop()
        await asyncio.sleep(0.01)
        return running, len(watch._running)

    assert asyncio.run(watched()) == (1, 0)


def test_where_steering_changed_is_told_by_the_steps() -> None:
    """Events of a long job are not kept; and a crash takes back what came after it."""

    async def look(session: Any, _: Any) -> None:
        found = await JobWatch.of(session, "job-1")
        for step, version in enumerate((2, 2, 3, 5, 5), start=1):
            found._add({"step": step, "steering_version": version})
        assert found.versions == [(1, 2), (3, 3), (4, 5)]
        found._rewind(3)
        assert found.versions == [(1, 2), (3, 3)]

    on_page(look)


def test_all_that_is_read_of_a_step_is_asked_for() -> None:
    """The whole record is ten times as large, and everybody who opens a long job's page reads all of its steps."""

    class Asked(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            read.add(key)
            return super().get(key, default)

        def __contains__(self, key: object) -> bool:
            read.add(str(key))
            return super().__contains__(key)

    async def look(session: Any, _: Any) -> None:
        found = await JobWatch.of(session, "job-1")
        found._add(Asked(step=1))
        assert read <= set(watch._READ)

    read: set[str] = set()
    on_page(look)


@pytest.mark.parametrize("numbers", ["below", "passed"])
def test_a_job_that_was_put_back_from_an_older_copy_is_read_anew(numbers: str) -> None:
    """Its events have the old numbers, and some of its steps happened otherwise."""

    async def look(session: Any, _: Any) -> None:
        found, api = await JobWatch.of(session, "job-1"), session.client
        api.happened = [{"seq": seq, "level": "info", "type": "note", "at": 1.0, "data": {}} for seq in (1, 2, 3)]
        for _ in range(4):
            await found._fetch()
        assert ([event["seq"] for event in found.events], found.columns.last) == ([1, 2, 3], 4)
        again = [{"seq": seq, "level": "info", "type": "note", "at": 2.0, "data": {}} for seq in (2, 3, 4)]
        api.happened = [api.happened[0], *(again if numbers == "passed" else [])]
        await found._fetch()
        assert list(found.events) == api.happened
        assert (found.columns.steps, found.generation) == ([1], 1)

    on_page(look)
