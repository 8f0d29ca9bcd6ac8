"""What the list of jobs shows only where it says something."""

from __future__ import annotations

from typing import Any

import pytest

from services.tables import job_view, jobs_table


def job(**changes: Any) -> dict[str, Any]:
    return {
        "id": "job-1", "name": "a job", "status": "queued", "reason": None, "step": 0, "total_steps": None,
        "progress": {}, "created_at": 0.0, "checkpoint_step": None,
        "spec": {"objectives": [], "weighting": {"name": "fixed"}}, **changes,
    }  # fmt: skip


@pytest.mark.parametrize(("priorities", "shown"), [((0, 0), None), ((0, -2), ["0", "-2"])])
def test_priorities_are_listed_where_a_job_has_one(priorities: tuple[int, ...], shown: list[str] | None) -> None:
    table = jobs_table([job(priority=priority) for priority in priorities])
    cells = {column.header: list(column.cells) for column in table.columns}
    assert cells.get("priority") == shown
    assert cells["id"] == ["job-1", "job-1"]


@pytest.mark.parametrize(("priority", "shown"), [(0, False), (3, True)])
def test_a_jobs_own_page_names_its_priority_where_it_has_one(priority: int, shown: bool) -> None:
    steering = {"mode": "auto", "version": 1, "weights": {}, "bounds": {}, "strategy": None}
    facts = job_view(job(priority=priority), steering).renderables[0]
    names = [cell.plain for cell in facts.columns[0].cells]
    assert ("priority" in names) is shown


@pytest.mark.parametrize(
    ("took", "told"),
    [
        ({}, {}),
        ({"gpu_hours": 0.0, "cost": 0.0}, {}),
        ({"gpu_hours": 12.345, "cost": 0.004}, {"GPU-hours": "12.35", "judges' cost": "below 0.01"}),
    ],
)
def test_a_jobs_own_page_names_what_it_took(took: dict[str, float], told: dict[str, str]) -> None:
    steering = {"mode": "auto", "version": 1, "weights": {}, "bounds": {}, "strategy": None}
    columns = job_view(job(**took), steering).renderables[0].columns
    facts = dict(zip(*([cell.plain for cell in column.cells] for column in columns), strict=True))
    assert {name: facts[name] for name in ("GPU-hours", "judges' cost") if name in facts} == told


@pytest.mark.parametrize(
    ("by", "shown"), [(("ann", "ann"), None), (("ann", "bob"), ["ann", "bob"]), ((None, "bob"), ["", "bob"])]
)
def test_who_submitted_is_listed_where_several_did(by: tuple[str | None, ...], shown: list[str] | None) -> None:
    table = jobs_table([job(submitted_by=name) for name in by])
    cells = {column.header: [str(cell) for cell in column.cells] for column in table.columns}
    assert cells.get("by") == shown
