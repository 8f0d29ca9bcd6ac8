"""A dry run says where a job would run, and what does not fit there."""

from __future__ import annotations

from typing import Any

import pytest
from nicegui import Client, ui

from orchestrator.checks.estimate import estimate
from orchestrator.checks.layout import Machine
from orchestrator.spec import parse_spec
from services.dashboard.plan import show_plan
from services.tables import disk_line
from tests.api_support import SPEC
from tests.dashboard_support import on_page, texts


@pytest.mark.parametrize("fits", [True, False])
def test_a_job_that_does_not_fit_is_told_as_that(fits: bool) -> None:
    spec = parse_spec({**SPEC, "resources": {"device": "cpu"}})
    found = estimate(spec, Machine(memory_gib=64 if fits else 0.01))
    assert [layout["fits"] for layout in found["layouts"]] == [fits]
    judge = {"profile": "gpt", "training": {"calls": 4, "cost": None}, "evaluation": None}
    counts = {"rollouts_per_step": 1, "rollouts": 4, "evaluations": 1, "judges": [judge]}
    plan: Any = {"valid": True, "spec": spec.model_dump(mode="json"), "estimate": found, **counts}

    async def look(_: Any, __: Client) -> None:
        with ui.element() as place:
            show_plan(plan)
        said = texts(place)
        assert ("Nothing is wrong with it" in said) is fits
        assert ("fits nowhere here" in said) is not fits
        assert "on CPU" in said
        assert f"on disk {disk_line(found['disk'])}" in said
        assert "4 calls of judge 'gpt' for training" in said
        assert ("does not fit: " in said) is not fits
        assert ("would help: " in said) is not fits
        for problem in found["layouts"][0]["problems"]:
            assert problem["message"] in said

    on_page(look)


def test_a_model_of_unknown_size_is_told_as_that() -> None:
    spec = parse_spec({**SPEC, "policy": {"model": "someone/model"}})
    counts = {"rollouts_per_step": 1, "rollouts": 4, "evaluations": 1}
    plan: Any = {"valid": True, "spec": spec.model_dump(mode="json"), "estimate": estimate(spec), **counts}

    async def look(_: Any, __: Client) -> None:
        with ui.element() as place:
            show_plan(plan)
        said = texts(place)
        assert f"memory is not known: {plan['estimate']['unknown']}" in said
        assert "nobody can tell here whether it fits" in said
        assert "Nothing is wrong with it" not in said

    on_page(look)
