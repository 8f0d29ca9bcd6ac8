"""A session's time ends its open pages too, which say why and lead back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from nicegui import Client

from services.dashboard import sessions
from services.dashboard.frame import frame
from services.dashboard.sessions import Session, Sessions, TooManySessions
from tests.dashboard_support import FakeApi, on_page, opened


def key_of(owner: str, key_id: str) -> Any:
    return {"id": key_id, "name": "k", "owner": owner, "scopes": ["read"]}


def test_who_signs_in_again_and_again_signs_no_other_key_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_OF_KEY", 3)
    monkeypatch.setattr(sessions, "_OF_OWNER", 5)
    monkeypatch.setattr(sessions, "_MOST", 8)

    async def story() -> None:
        found = Sessions()

        async def begin(owner: str, key_id: str) -> str:
            return await found.begin(key_of(owner, key_id), FakeApi())  # type: ignore[arg-type]

        def there(tokens: list[str]) -> list[bool]:
            return [found.find(token) is not None for token in tokens]

        others = [await begin("bob", "9"), await begin("ann", "1")]
        same = [await begin("ann", "2")]
        first = found.find(same[0])
        same += [await begin("ann", "2") for _ in range(4)]
        assert first is not None
        assert (first.is_over, first.why) == (True, "others")
        assert there(others + same) == [True, True, False, False, True, True, True]
        more = [await begin("ann", "3") for _ in range(2)]  # of the owner there are six: the oldest makes room
        assert there([*others, *same[2:], *more]) == [True, False, True, True, True, True, True]
        await begin("cyd", "4")
        await begin("cyd", "4")
        with pytest.raises(TooManySessions):
            await begin("dan", "5")
        assert there([others[0], *more]) == [True, True, True]

    asyncio.run(asyncio.wait_for(story(), 30))


def test_its_time_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "LIFETIME_S", 0.01)

    async def wait() -> None:
        found, key, client = Sessions(), key_of("ann", "1"), FakeApi()
        session = found.find(await found.begin(key, client))  # type: ignore[arg-type]
        assert session is not None
        told: list[str] = []

        async def tell() -> None:
            told.append(session.why)

        session.ending.append(tell)
        while not client.asked["aclose"]:
            await asyncio.sleep(0.01)
        assert (session.is_over, told) == (True, ["over"])

    asyncio.run(asyncio.wait_for(wait(), 30))


@pytest.mark.parametrize(
    ("why", "address"),
    [
        ("over", "/signin?ended=over&next=%2Fnowhere%3Flike%3Djob-1"),
        ("key", "/signin?ended=key&next=%2Fnowhere%3Flike%3Djob-1"),
        ("others", "/signin?ended=others&next=%2Fnowhere%3Flike%3Djob-1"),
        ("signed_out", "/signin?ended=signed_out"),
    ],
)
def test_a_page_that_is_left_says_why_and_leads_back(why: Any, address: str) -> None:
    async def look(fake: Any, client: Client) -> None:
        session = Session(fake.key, fake.client, 0.0)
        with frame(session, "Nowhere", ""):
            pass
        await session.end(why)
        assert opened(client) == [address]

    on_page(look)
