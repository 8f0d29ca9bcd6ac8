"""What a person asks for is done once, and said to be done only where it is known."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from nicegui import Client, ui

from services.client import Unavailable
from services.dashboard.elements import Field, Simplex
from services.dashboard.frame import AGAIN, BY_ITSELF, MAYBE_DONE, ONE_JOB, problem
from services.dashboard.job_head import BEGINS_ANEW, HeadPanel
from services.dashboard.jobs import JobList, JobsPage
from services.dashboard.submit import SubmitForm, example
from tests.dashboard_support import button, is_enabled, job_page, notes, on_page, opened, press, texts

AWAY = Unavailable(503, "store_unavailable", "Redis does not answer; try again shortly")


def test_two_clicks_on_a_fork_are_one_job() -> None:
    async def look(session: Any, client: Client) -> None:
        api = session.client
        api.kept = [3]
        head = HeadPanel(await job_page(session, client), ["Front"])
        await head.ask_fork(3)
        assert BEGINS_ANEW in [texts(found) for found in client.elements.values()]
        start = button(client, "Start the fork")
        api.failing["fork"] = AWAY
        await press(start, times=2)
        assert api.asked["fork"] == 1
        assert is_enabled(start), "it can be asked for again"
        assert notes(client)[-1].endswith(ONE_JOB)
        del api.failing["fork"]
        await press(start)
        assert api.keys[0] == api.keys[1] != "", "as what may have been taken"
        assert not is_enabled(start)
        assert opened(client) == ["/jobs/job-2"]
        await press(start)
        assert api.keys[2] == api.keys[0], "the page has not left yet"

    on_page(look)


def test_another_fork_has_another_key() -> None:
    async def look(session: Any, client: Client) -> None:
        head = HeadPanel(await job_page(session, client), ["Front"])
        await head.ask_fork()
        start = button(client, "Start the fork")
        await press(start)
        name, steps = [found for found in client.elements.values() if isinstance(found, Field)][-2:]
        name.value = "another"
        await press(start)
        steps.value = "many"
        await press(start)
        assert len(session.client.keys) == 2, "no number of steps"
        steps.value = "80"
        for typed, named in (("another", "another"), (f"{head.page.watch.job['name']} fork", None)):
            name.value = typed
            await press(start)
            assert session.client.forks[-1] == {"checkpoint": "latest", "steps": 80, "name": named}
        steps.value = ""
        await head.ask_fork()
        await press(button(client, "Start the fork"))
        assert len(set(session.client.keys)) == 5

    on_page(look)


def test_a_fork_begins_with_all_of_the_steering_until_a_weight_is_moved() -> None:
    """Weights in a request are all that is different, and mode, blend and bounds then those of the spec."""

    async def look(session: Any, client: Client) -> None:
        head = HeadPanel(await job_page(session, client), ["Front"])
        await head.ask_fork()
        start = button(client, "Start the fork")
        await press(start)
        (simplex,) = [found for found in client.elements.values() if isinstance(found, Simplex)]
        (edit,) = [found.handler for found in simplex._event_listeners.values() if found.type == "edit"]
        moved = {"accuracy": 0.9, "brevity": 0.1}
        edit(SimpleNamespace(args={"edits": 1, "weights": moved}))  # type: ignore[misc, arg-type]
        await press(start)
        assert [asked["weights"] for asked in session.client.forks] == [None, moved]

    on_page(look)


def test_two_clicks_on_submit_are_one_job() -> None:
    async def look(session: Any, client: Client) -> None:
        api = session.client
        form = SubmitForm(session, client, example("quickstart"), {"weighting": ["fixed"], "estimator": ["grpo"]})
        submit = button(client, "Submit")
        api.failing["submit"] = AWAY
        await press(submit, times=2)
        assert api.asked["submit"] == 1
        assert is_enabled(submit)
        assert ONE_JOB in texts(form._result)
        del api.failing["submit"]
        await press(submit)
        assert api.keys[0] == api.keys[1] != ""
        assert opened(client) == ["/jobs/job-2"]
        assert not is_enabled(submit), "until the page leaves"
        form._write("steps", "7")
        await form._do_submit()
        assert api.keys[2] != api.keys[1]

    on_page(look)


@pytest.mark.parametrize("kept", ["name: mine\nsteps: 9\n", None])
def test_a_form_is_as_it_was_left(monkeypatch: pytest.MonkeyPatch, kept: str | None) -> None:
    async def look(session: Any, client: Client) -> None:
        begun = example("quickstart")
        form = SubmitForm(session, client, begun, {"weighting": ["fixed"], "estimator": ["grpo"]})
        assert form._yaml.props["keep"] == "equipoise-draft me /nowhere?like=job-1"
        asked: list[str] = []

        async def run(method: str, *_: Any, **__: Any) -> Any:
            asked.append(method)
            return kept if method == "kept" else ["name: older\n", 7] if kept else None

        monkeypatch.setattr(form._yaml, "run_method", run)
        monkeypatch.setattr(form._yaml, "set", lambda text: setattr(form._yaml, "value", text))
        await form.restore()
        await form.restore()
        assert asked == ["kept", "shelf"]
        assert form._left == (["name: older\n"] if kept else [])
        assert form._yaml.value == (kept or begun)
        assert form._fields["steps"].value == ("9" if kept else "50")

    on_page(look)


def _form(session: Any, client: Client, begun: str = "name: mine\nsteps: 9\n") -> SubmitForm:
    return SubmitForm(session, client, begun, {"weighting": ["fixed"], "estimator": ["grpo"]})


def test_what_made_room_for_an_example_comes_back() -> None:
    async def look(session: Any, client: Client) -> None:
        form = _form(session, client)
        first = form._yaml.value

        def choose(name: str) -> str:
            form._start_from(name)
            return form._yaml.value

        def offered() -> dict[str, str]:
            return {found["value"]: found["text"] for found in form._start.props["options"]}

        assert offered()[""] == "what is here"
        assert choose("math") == example("math")
        assert choose("quickstart") == example("quickstart"), "as by an arrow key"
        assert offered()[""] == "what was here"
        form._write("steps", "7")
        changed = form._yaml.value
        assert choose("math") == example("math")
        assert (choose(""), form._start.value) == (changed, "")
        assert offered()["back:0"] == "what was here before (1)"
        assert (choose("back:0"), form._start.value) == (first, "")
        assert form._left == [changed]
        assert choose("back:9") == first, "a choice that was on its way"
        assert choose("math") == example("math")
        assert form._left == [first, changed]

    on_page(look)


def test_an_emptied_field_shows_what_the_text_still_says() -> None:
    async def look(session: Any, client: Client) -> None:
        form = _form(session, client)
        form._fields["steps"].value = ""
        form._write("steps", "")
        assert (form._fields["steps"].value, form._yaml.value) == ("9", "name: mine\nsteps: 9\n")
        assert "An empty field changes nothing" in form._banner.text

    on_page(look)


def test_a_verdict_says_that_it_is_of_an_earlier_text(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(session: Any, client: Client) -> None:
        form = _form(session, client, example("quickstart").replace("steps: 50", "steps: many"))
        await form._dry_run()
        assert form._age.text == ""
        assert form._fields["steps"].props["problem"]
        went: list[Any] = []
        monkeypatch.setattr(form._yaml, "run_method", lambda *args: went.append(args))
        form._yaml.value = form._yaml.value.replace("steps: many", "# how many\nsteps: 60")
        form._read_form()
        assert "the text before your change" in form._age.text
        assert form._fields["steps"].props["problem"] == ""
        form._go("steps", 4)
        assert went == [("go", 5)], "where it stands now"
        await form._checked()
        assert (form._age.text, texts(form._result)) == ("", "")

        async def plan(_: Any) -> Any:
            form._yaml.value += "# more\n"
            form._read_form()
            raise AWAY

        session.client.plan = plan
        await form._dry_run()
        assert "the text before your change" in form._age.text
        assert not form._yaml.props["problem"], "of what was checked alone"

    on_page(look)


@pytest.mark.parametrize(("name", "call"), [("Save and pause", "pause"), ("Cancel the job", "cancel")])
def test_what_may_not_have_been_done_is_not_said_to_go_on_by_itself(name: str, call: str) -> None:
    async def look(session: Any, client: Client) -> None:
        session.client.failing[call] = AWAY
        HeadPanel(await job_page(session, client), ["Front"])
        await press(button(client, {"pause": "Pause", "cancel": "Cancel job"}[call]))
        await press(button(client, name))
        assert notes(client) == [f"Redis does not answer. {MAYBE_DONE}"]

    on_page(look)


def test_a_list_that_is_read_again_by_itself_says_so() -> None:
    async def look(session: Any, client: Client) -> None:
        session.client.failing["jobs"] = AWAY
        shown = JobsPage(session, JobList(session), [])
        await shown.refresh()
        assert BY_ITSELF in texts(client.content)

    on_page(look)
    assert problem(AWAY) == f"Redis does not answer. {AGAIN}"


def test_jobs_are_chosen_by_who_submitted_them() -> None:
    async def look(session: Any, _: Client) -> None:
        session.client.told["submitted_by"] = "ann"
        jobs = JobList(session)
        assert [row["by"] for row in await jobs.read()] == ["ann"]
        shown = JobsPage(session, jobs, [])
        shown._by.value = " bob "
        await shown._typed_by()
        assert session.client.listed[-1]["submitted_by"] == "bob"

    on_page(look)


def test_a_figure_of_the_table_is_the_newest() -> None:
    async def look(session: Any, _: Client) -> None:
        means = [*(step / 100 for step in range(1, 100)), None]  # the last step had no prompt that it is scored on

        async def metrics(*_: Any, **__: Any) -> Any:
            steps = [{"step": step, "objectives": {"accuracy": {"mean": mean}}} for step, mean in enumerate(means, 1)]
            return {"data": steps, "has_more": False}

        session.client.metrics = metrics
        (row,) = await JobList(session).read()
        (shown,) = row["objectives"]
        assert shown["now"] == 0.99
        assert shown["values"][-1] == pytest.approx(0.98), "a point of the line is a mean"

    on_page(look)


def test_a_dialog_that_is_closed_stays_closed() -> None:
    async def look(session: Any, client: Client) -> None:
        HeadPanel(await job_page(session, client), ["Front"])
        await press(button(client, "Checkpoints"))
        dialog = next(found for found in client.elements.values() if isinstance(found, ui.dialog))
        assert dialog.value
        await asyncio.wait_for(press(button(client, "Close")), 10)
        assert not dialog.value

    on_page(look)
