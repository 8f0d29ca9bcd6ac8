"""The rollouts of a step: how many there are, the first ones of all in an order, and the latest step while it is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from nicegui import Client

from services.dashboard import job_rollouts
from services.dashboard.job_rollouts import RolloutsPanel
from services.dashboard.panels import JobPage
from tests.dashboard_support import ALL, job_page, notes, on_page, texts

STEPS: Any = frozenset({"steps"})


async def _panel(session: Any, client: Client) -> tuple[JobPage, RolloutsPanel]:
    page = await job_page(session, client)
    panel = RolloutsPanel(page)
    await panel.update(ALL)
    return page, panel


async def _step(page: JobPage, panel: RolloutsPanel) -> None:
    """Another one, and what follows from it."""
    await page.watch._fetch()
    await panel.update(STEPS)
    for _ in range(50):
        await asyncio.sleep(0)


def _numbers(panel: RolloutsPanel) -> list[int]:
    return [int(row["name"].removeprefix("rollout ")) for row in panel._table.rows[:2]]


def test_what_is_not_shown_is_said() -> None:
    async def look(session: Any, client: Client) -> None:
        _, panel = await _panel(session, client)
        assert panel._words.text == "Step 1: 4 rollouts are kept"
        session.client.stored = 1200
        await panel._latest()
        assert panel._words.text == (
            "Step 1: 1,200 rollouts are kept, of which 1,000 were read: the first ones as stored; 100 rollouts are "
            "shown, and the CSV has all that were read"
        )
        panel._choose_view("groups")
        assert "100 prompts are shown" in panel._words.text

    on_page(look)


def test_the_first_ones_of_all_are_read() -> None:
    async def look(session: Any, client: Client) -> None:
        session.client.stored = 1200
        page, panel = await _panel(session, client)
        await page.watch._fetch()  # there is a newer step: the order is of the one that is shown
        await panel._sorted("-r.accuracy")
        assert _numbers(panel) == [1200, 1199]
        assert panel._shown_step == 1
        await panel._choose_order("r.brevity")
        assert _numbers(panel) == [1200, 1199]
        await panel._choose_order("")
        assert _numbers(panel) == [1, 2]
        session.client.stored = 8
        await panel._latest()
        session.client.asked.clear()
        await panel._sorted("-r.accuracy")
        assert _numbers(panel) == [8, 7]
        assert session.client.asked["rollouts"] == 0, "all of them are here"

    on_page(look)


def test_the_latest_step_is_followed_while_nothing_else_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_rollouts, "FOLLOW_S", 0.0)

    async def look(session: Any, client: Client) -> None:
        page, panel = await _panel(session, client)
        panel._follow_at = 0.0
        await _step(page, panel)
        assert panel._words.text.startswith("Step 2:")
        assert panel._heard.text == "", "nobody asked for it"
        panel._open("1:each:3")
        assert texts(panel._detail) == "", "a row of another step, by a click that was on its way"
        assert "replaced by newer ones" in notes(client)[-1]
        panel._open("2:each:3")
        panel._follow_at = 0.0
        await _step(page, panel)
        assert panel._words.text.startswith("Step 2:"), "somebody reads it"
        panel._open("2:each:3")
        panel._follow_at = 0.0
        await _step(page, panel)
        assert panel._words.text.startswith("Step 4:")
        await panel.show(1)
        assert panel._heard.text.startswith("Step 1:")
        panel._follow_at = 0.0
        await _step(page, panel)
        assert panel._words.text.startswith("Step 1:")

    on_page(look)


def test_it_looks_for_the_latest_step_no_more_often_than_that() -> None:
    async def look(session: Any, client: Client) -> None:
        page, panel = await _panel(session, client)
        await _step(page, panel)
        session.client.asked.clear()
        for _ in range(5):
            await _step(page, panel)
        assert session.client.asked["rollouts"] == 0

    on_page(look)
