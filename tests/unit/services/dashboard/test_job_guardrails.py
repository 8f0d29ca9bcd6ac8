"""The form for guardrails: a version for each change, mistakes beside their fields, nothing over another's."""

from __future__ import annotations

from typing import Any

import pytest
from nicegui import Client

from services.client import Invalid
from services.dashboard.job_guardrails import GuardrailsPanel
from services.dashboard.panels import JobPage
from tests.dashboard_support import ALL, button, buttons, is_enabled, job_page, on_page, press, texts

ENTROPY = {"metric": "entropy", "min": 0.1, "max": None, "for_steps": 1, "action": "alert"}
LOSS = {"metric": "loss", "min": None, "max": 2.0, "for_steps": 3, "action": "pause"}


async def _panel(session: Any, client: Client) -> tuple[JobPage, GuardrailsPanel]:
    session.client.told["spec"]["guardrails"] = [ENTROPY]
    page = await job_page(session, client)
    panel = GuardrailsPanel(page)
    await panel.update(ALL)
    return page, panel


async def _look(page: JobPage, panel: GuardrailsPanel) -> None:
    page.watch._wanted |= {"steering"}
    await panel.update(frozenset(await page.watch._fetch()))


def _type(panel: GuardrailsPanel, metric: str, action: str = "alert", **typed: str) -> None:
    panel._metric._props["value"], panel._action._props["value"] = metric, action
    for name, value in typed.items():
        panel._fields[name].value = value


def test_guardrails_are_added_changed_and_removed() -> None:
    async def look(session: Any, client: Client) -> None:
        page, panel = await _panel(session, client)
        assert "entropy at least 0.1; else an event tells of it" in texts(panel._list)
        _type(panel, "loss", "pause", max="2", for_steps="3")
        await press(button(client, "Add"), times=2)
        assert session.client.steered["guardrails"] == [ENTROPY, LOSS]
        assert panel._line.text == "Version 2 takes effect at step 3."
        await _look(page, panel)
        assert "loss at most 2; when it is outside 3 times in a row, the job is paused" in texts(panel._list)
        first, _ = buttons(client, "Change")
        await press(first)
        assert (panel._metric.value, panel._fields["min"].value) == ("entropy", "0.1")
        _type(panel, "entropy", min="0.2")
        await press(button(client, "Apply"))
        changed = {**ENTROPY, "min": 0.2}
        assert session.client.steered["guardrails"] == [changed, LOSS]
        await _look(page, panel)
        first, _ = buttons(client, "Remove")
        await press(first)
        assert session.client.steered["guardrails"] == [LOSS]
        assert session.client.asked["steer"] == 3

    on_page(look)


@pytest.mark.parametrize(
    ("typed", "field", "message"),
    [
        ({}, "min", "expected a number here"),
        ({"min": "much"}, "min", "expected a number, or nothing"),
        ({"max": "nan"}, "max", "expected a number, or nothing"),
        ({"min": "2", "max": "1"}, "min", "is above 1, which it may be at most"),
        ({"min": "2", "for_steps": "0"}, "for_steps", "expected 1 to 1,000,000"),
    ],
)
def test_a_mistake_stands_beside_its_field_and_is_not_sent(typed: dict[str, str], field: str, message: str) -> None:
    async def look(session: Any, client: Client) -> None:
        _, panel = await _panel(session, client)
        _type(panel, "loss", **typed)
        await press(button(client, "Add"))
        assert str(panel._fields[field]._props["problem"]).startswith(message)
        assert session.client.asked["steer"] == 0
        session.client.failing["steer"] = Invalid(422, "x", "guardrails.1.max: too large", "guardrails.1.max")
        _type(panel, "loss", min="", max="3", for_steps="1")
        await press(button(client, "Add"))
        assert [panel._fields[name]._props["problem"] for name in ("min", "max", "for_steps")] == ["", "too large", ""]

    on_page(look)


def test_nothing_goes_over_another_persons_change() -> None:
    async def look(session: Any, client: Client) -> None:
        page, panel = await _panel(session, client)
        _type(panel, "loss", "pause", max="2", for_steps="3")
        session.client.take({"guardrails": []}, by="another")
        await press(button(client, "Add"))
        assert panel._line.text.startswith("Someone steered meanwhile")
        assert session.client.steered["guardrails"] == []
        await _look(page, panel)
        assert buttons(client, "Change") == []
        await press(button(client, "Add"))
        assert session.client.steered["guardrails"] == [LOSS]

    on_page(look)


def test_breaches_are_told_and_a_job_that_is_over_has_nothing_to_press() -> None:
    async def look(session: Any, client: Client) -> None:
        page, panel = await _panel(session, client)
        breach = {"metric": "entropy", "limit": "min", "bound": 0.1, "for_steps": 1, "action": "alert"}
        for seq, step in enumerate((3, 9), 1):
            session.client.happened.append({"seq": seq, "type": "guardrail.breached", "data": {**breach, "step": step}})
        await _look(page, panel)
        assert "breached at step 3, 9" in texts(panel._list)
        session.client.told["status"] = "succeeded"
        page.watch.job["status"] = "succeeded"
        await panel.update(ALL)
        assert buttons(client, "Remove") == []
        assert not is_enabled(button(client, "Add"))

    on_page(look)


def test_a_draft_outlives_the_page() -> None:
    async def look(session: Any, client: Client) -> None:
        _, panel = await _panel(session, client)
        _type(panel, "loss", "pause", max="2", for_steps="3")
        draft = panel._draft()
        panel._clear()
        assert panel._fields["max"].value == ""
        panel._fill(draft)
        assert panel._draft() == {"metric": "loss", "min": "", "max": "2", "for_steps": "3", "action": "pause"}
        assert "kl" not in panel._metrics()

    on_page(look)
