"""What a step's record says of its rewards, its engines and what it pushes down is on the page."""

from __future__ import annotations

from typing import Any

import pytest
from nicegui import Client

from services.dashboard.health import engines_told, rewards_told
from services.dashboard.job_charts import HealthPanel, WeightsPanel
from services.dashboard.job_steering import SteeringPanel
from tests.dashboard_support import ALL, job_page, on_page

FINE = {"calls": 12, "failures": 0, "retries": 0, "restarts": 0, "dropped": 0, "cost": 0.0}
HEALTHY = {"health": "healthy", "restarts": 0, "reason": None}


@pytest.mark.parametrize(
    ("health", "told"),
    [
        ({}, ""),
        ({"math": FINE}, "Rewards at the last step: nothing went wrong."),
        (
            {"math": FINE, "judge": {**FINE, "failures": 3, "dropped": 5}},
            "Rewards at the last step: judge had 3 failed calls, 5 completions not scored.",
        ),
    ],
)
def test_rewards(health: Any, told: str) -> None:
    assert rewards_told(health) == told


@pytest.mark.parametrize(
    ("health", "told"),
    [
        ({}, ""),
        ({"0": HEALTHY}, "Engines at the last step: 1 of 1 healthy."),
        (
            {"0": {**HEALTHY, "restarts": 2}, "1": {"health": "retired", "restarts": 1, "reason": "its process died"}},
            "Engines at the last step: 1 of 2 healthy; engine 1 is retired: its process died; 3 started again so far.",
        ),
    ],
)
def test_engines(health: Any, told: str) -> None:
    assert engines_told(health) == told


def test_they_are_on_the_page_and_so_is_what_falls() -> None:
    async def look(session: Any, client: Client) -> None:
        session.client.newest = {
            "reward_health": {"math": {**FINE, "dropped": 2}}, "engine_health": {"0": HEALTHY}, "falling": ["brevity"],
            "weights": {"applied": {"accuracy": 0.7, "brevity": 0.3}, "strategy": {"accuracy": 0.7, "brevity": 0.3}},
        }  # fmt: skip
        page = await job_page(session, client)
        health, weights, steering = HealthPanel(page), WeightsPanel(page), SteeringPanel(page)
        for panel in (health, weights, steering):
            await panel.update(ALL)
        assert health._rewards.text == "Rewards at the last step: math had 2 completions not scored."
        assert health._engines.text == "Engines at the last step: 1 of 1 healthy."
        told = "accuracy 70%, brevity 30% ↓ (↓ is pushed down)"
        assert told in weights._now.text
        assert told in steering._now.text
        session.client.newest = {}
        await page.watch._fetch()
        for panel in (health, weights, steering):
            await panel.update(ALL)
        assert (health._rewards.text, health._engines.text) == ("", "")
        assert "↓" not in weights._now.text + steering._now.text

    on_page(look)
