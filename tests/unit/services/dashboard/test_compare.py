"""What stands side by side may be set side by side, and a job that is gone takes no page away."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import Request
from nicegui import Client

from services.client import NotFound
from services.dashboard import compare
from services.dashboard.elements import Chart, Table
from tests.dashboard_support import on_page, texts


def _compares(session: Any, jobs: dict[str, list[str]], *, comparable: bool, status: str = "succeeded") -> None:
    """`jobs`: objectives by id."""
    api = session.client
    unlike = ["accuracy.reward: one has math, two has judge"] if comparable else []

    async def job(job_id: str) -> dict[str, Any]:
        if job_id not in jobs:
            raise NotFound(404, "not_found", "no such job")
        return {**api.told, "id": job_id, "name": job_id, "status": status}

    async def compared(ids: list[str]) -> dict[str, Any]:
        return {
            "comparable": comparable, "differences": [], "measured_differently": unlike,
            "set_differently": ["optimizer.lr: 0.1 in one, 0.2 in two"],
            "objectives": jobs[ids[0]], "ranges": None, "hypervolume": None, "front": None,
            "data": [
                {"id": i, "name": i, "status": status, "step": 3, "lineage": None, "hypervolume": 0.5, "adds": None,
                 "front": [{"step": 3, "objectives": dict.fromkeys(jobs[i], 0.5)}]}
                for i in ids
            ],
        }  # fmt: skip

    api.job, api.compare = job, compared
    api.points = [{"step": 3, "standard_errors": {"accuracy": 0.01}}]


async def _page(session: Any, client: Client, ids: str) -> str:
    await compare.page(Request({"type": "http", "equipoise.session": session}), ids)
    return texts(client.content)


def _made(client: Client, kind: type[Any]) -> list[Any]:
    return [found for found in client.elements.values() if isinstance(found, kind)]


@pytest.mark.parametrize("comparable", [True, False])
def test_volumes_without_a_common_scale_are_in_no_plot(comparable: bool) -> None:
    async def look(session: Any, client: Client) -> None:
        _compares(session, {"one": ["accuracy", "brevity"], "two": ["accuracy", "safety"]}, comparable=comparable)
        said = await _page(session, client, "one,two")
        assert "optimizer.lr: 0.1 in one, 0.2 in two" in said
        assert [chart.props["title"] for chart in _made(client, Chart)] == ["Fronts", "Hypervolume"][: 1 + comparable]
        (drawn,) = [
            series["data"] for series in _made(client, Chart)[0].props["option"]["series"] if series["id"] == "f0"
        ]
        assert drawn == [[0.5, 0.5, 3, 0.01, None]]
        labels = [column["label"] for column in _made(client, Table)[-1].columns]
        assert ("Hypervolume, on its own scale" in labels) is not comparable
        assert "Not drawn, as they have other objectives: two (two)." in said
        assert ("accuracy.reward: one has math, two has judge" in said) is comparable
        assert "as of" not in said, "nothing of it changes any more"

    on_page(look)


def test_a_job_that_is_gone_is_named_and_the_others_are_shown() -> None:
    async def look(session: Any, client: Client) -> None:
        jobs = {f"j{i}": ["accuracy", "brevity"] for i in range(9)}
        _compares(session, jobs, comparable=True, status="running")
        said = await _page(session, client, "j0,gone,j1")
        assert "gone: deleted, or another owner's. The others are compared." in said
        assert [row["id"] for row in _made(client, Table)[-1].rows] == ["j0", "j1"]
        assert "as of" in said
        client.content.clear()
        said = await _page(session, client, ",".join(jobs))
        assert "At most 8 jobs are compared at once. Left out: j8." in said
        assert len(_made(client, Table)[-1].rows) == 8
        client.content.clear()
        said = await _page(session, client, "gone")
        assert "Not found" in said
        assert "Which jobs" in said

    on_page(look)
