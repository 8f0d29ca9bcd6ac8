"""A session's time ends its open pages too, which say why and lead back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from nicegui import Client

from services.dashboard import sessions
from services.dashboard.frame import frame
from services.dashboard.sessions import Session, Sessions
from tests.dashboard_support import FakeApi, on_page, opened


def test_its_time_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "LIFETIME_S", 0.01)

    async def wait() -> None:
        found, key, client = Sessions(), {"name": "k"}, FakeApi()
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
