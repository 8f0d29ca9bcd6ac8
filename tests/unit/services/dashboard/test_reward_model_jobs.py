"""A job that trains a reward model has no front, no steering and no rollouts, and takes no page away."""

from __future__ import annotations

from importlib import resources
from typing import Any

import pytest
import yaml
from fastapi import Request
from nicegui import Client, ui

from services.client import AuthenticationError, Conflict, Unavailable
from services.dashboard import compare, frame, job
from services.dashboard.jobs import JobList
from services.dashboard.panels import JobPage
from services.dashboard.plan import show_plan
from services.dashboard.spec_text import checked
from services.dashboard.submit import SubmitForm
from services.dashboard.watch import JobWatch
from tests.dashboard_support import ALL, buttons, on_page, texts

YAML = resources.files("deploy").joinpath("jobs/reward_model.yaml").read_text(encoding="utf-8")
REFUSED = Conflict(409, "wrong_kind", "this job trains a reward model, which has no front")


def _trains(session: Any) -> None:
    session.client.told |= {"spec": checked(YAML)}
    session.client.failing |= dict.fromkeys(("front", "steering", "compare"), REFUSED)
    session.client.newest = {"loss": 0.5, "lr": 1e-5}


def test_it_is_a_row_of_the_table_without_what_it_does_not_have() -> None:
    async def look(session: Any, _: Client) -> None:
        _trains(session)
        session.client.moves = False
        jobs = JobList(session)
        row = (await jobs.read())[0]
        assert (row["id"], row["hypervolume"], row["objectives"], row["weights"]) == ("job-1", None, [], [])
        session.client.asked.clear()
        await jobs.read()
        assert "front" not in session.client.asked, "asked again only when it has moved"

    on_page(look)


def test_details_that_can_not_be_read_cost_a_row_its_details_alone() -> None:
    async def look(session: Any, _: Client) -> None:
        jobs, api = JobList(session), session.client
        api.moves, api.hypervolume = False, 0.5
        api.failing["front"] = Unavailable(503, "unavailable", "away")
        assert (await jobs.read())[0]["hypervolume"] is None
        del api.failing["front"]
        assert (await jobs.read())[0]["hypervolume"] == 0.5, "and they are asked for again"
        api.told["step"] = 1
        api.failing["front"] = Unavailable(503, "unavailable", "away")
        row = (await jobs.read())[0]
        assert (row["progress"]["text"], row["hypervolume"]) == ("1 of 100", 0.5), "what was known stays"
        api.failing["front"] = AuthenticationError(401, "unauthorized", "no longer")
        with pytest.raises(AuthenticationError):
            await jobs.read()

    on_page(look)


def test_its_page_is_a_short_one() -> None:
    async def look(session: Any, client: Client) -> None:
        _trains(session)
        watch = await JobWatch.of(session, "job-1")
        with frame.frame(session, "a job", ""):
            panels = job._build(JobPage(session, watch, client))
            assert await watch._fetch() >= {"job", "steps"}
            assert await watch._fetch() == {"job", "steps"}
            for panel in panels:
                await panel.update(ALL)
        said = texts(client.content)
        assert "Training" in said
        assert "The driver holds the job." in said
        assert "no evaluation yet" not in said
        assert buttons(client, "Fork") == []
        assert buttons(client, "Pause") != []

    on_page(look)


def test_comparing_it_says_what_to_do() -> None:
    async def look(session: Any, client: Client) -> None:
        _trains(session)
        await compare.page(Request({"type": "http", "equipoise.session": session}), "job-1")
        said = texts(client.content)
        assert "a job trains a reward model, which has no front to compare: take it out above." in said
        assert "Which jobs" in said

    on_page(look)


def test_it_is_submitted_as_the_command_takes_it() -> None:
    assert checked(YAML)["training"]["epochs"] == 2
    plan: Any = {"valid": True, "spec": checked(YAML)}

    async def look(session: Any, client: Client) -> None:
        with ui.element() as place:
            show_plan(plan)
        assert "helpfulness, coherence, verbosity" in texts(place)
        form = SubmitForm(session, client, YAML, {"weighting": ["fixed"], "estimator": ["grpo"]})
        assert list(form._fields) == ["name", "training.epochs", "training.model", "training.lr"]
        form._write("training.epochs", "3")
        assert yaml.safe_load(form._yaml.value)["training"]["epochs"] == 3
        assert not form._prompts.visible, "it has ratings, no prompts"
        form._start_from("quickstart")
        assert "policy.model" in form._fields
        assert form._choices["weighting.name"].value
        form._use({"id": "ds-1", "rows": 3})
        assert yaml.safe_load(form._yaml.value)["data"]["train"] == "dataset:ds-1"
        assert "dataset:ds-1 is data.train now; rows: 3." in texts(form._prompts)

    on_page(look)
