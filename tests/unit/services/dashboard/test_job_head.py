from __future__ import annotations

from typing import Any

import pytest
from nicegui import Client

from services.dashboard.elements import Table
from services.dashboard.job_head import HeadPanel, engines_told, taken_told
from tests.dashboard_support import job_page, on_page


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (None, ""),
        ({"serving": 1, "of": 1}, ""),
        ({"serving": 0, "of": 1}, "0 of 1 engines serve"),
        ({"serving": 3, "of": 4}, "3 of 4 engines serve"),
        ({"serving": 4, "of": 4}, "4 of 4 engines serve"),
    ],
)
def test_engines_are_told_of_unless_there_is_one_and_it_serves(told: Any, said: str) -> None:
    assert engines_told(told) == said


@pytest.mark.parametrize("kind", ["alignment", "reward_model"])
def test_a_kept_policy_can_be_downloaded(kind: str) -> None:
    async def look(session: Any, client: Client) -> None:
        session.client.kept = [40, 100]
        session.client.told["spec"] |= {"kind": kind}
        HeadPanel(await job_page(session, client), ["Front"])._show_checkpoints()
        (table,) = (found for found in client.elements.values() if isinstance(found, Table))
        files = {row["step"]: (row["policy"] or {}).get("href") for row in table.rows}
        early = None if kind == "reward_model" else "/jobs/job-1/checkpoints/40/download"
        assert files == {40: early, 100: "/jobs/job-1/checkpoints/100/download"}, "a reward model is there at the end"

    on_page(look)


def test_a_time_that_may_hold_pauses_is_not_said_to_have_been_run() -> None:
    async def look(session: Any, client: Client) -> None:
        session.client.told |= {"status": "succeeded", "started_at": 60.0, "finished_at": 60.0 + 50_700}
        head = HeadPanel(await job_page(session, client), ["Front"])
        assert head._left.text == "14 h 05 min from its first start to its end"

    on_page(look)


@pytest.mark.parametrize(
    ("took", "told"),
    [
        ({}, ""),
        ({"gpu_hours": 2.5, "cost": 0.0}, "GPU-hours 2.50"),
        ({"gpu_hours": 1250.0, "cost": 31.0}, "GPU-hours 1,250.00, judges' cost 31.00"),
    ],
)
def test_what_the_job_took_is_told_where_it_did(took: dict[str, float], told: str) -> None:
    assert taken_told(took) == told
