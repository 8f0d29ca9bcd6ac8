"""The chosen point of the front is shown as it is now."""

from __future__ import annotations

from typing import Any

import pytest
from nicegui import Client

from services.dashboard import charts
from services.dashboard.elements import Choice
from services.dashboard.job_front import FrontPanel
from services.dashboard.job_head import HeadPanel
from tests.dashboard_support import button, buttons, job_page, notes, on_page, texts


def _point(step: int, on_front: bool, **more: Any) -> dict[str, Any]:
    return {"step": step, "objectives": {"accuracy": 0.1, "brevity": 0.2}, "on_front": on_front} | more


def test_a_chosen_point_that_is_dominated_meanwhile_is_told_as_that() -> None:
    async def look(session: Any, client: Client) -> None:
        api = session.client
        api.points, api.kept = [_point(0, False), _point(40, True)], [40]
        page = await job_page(session, client)
        head, front = HeadPanel(page, ["Front"]), FrontPanel(page)
        await front.update(frozenset({"front", "checkpoints"}))
        front._select(40)
        fork = button(front._detail, "Fork from step 40")
        assert "Use it" in texts(front._detail)
        await front.update(frozenset({"front", "checkpoints"}))
        assert button(front._detail, "Fork from step 40") is fork, "what has not changed is not drawn anew"
        api.points, api.kept = [_point(0, False), _point(40, False), _point(50, True)], [50]
        page.watch._wanted |= {"front", "checkpoints"}
        await front.update(frozenset(await page.watch._fetch()))
        assert "dominated\n" in texts(front._detail)
        assert "not kept" in texts(front._detail)
        assert "Use it" not in texts(front._detail)
        assert buttons(front._detail, "Fork from step 40") == []
        assert [row["kept"] for row in front._table.rows] == [True, False, False]
        api.kept = []
        page.watch._wanted |= {"checkpoints"}
        await front.update(frozenset(await page.watch._fetch()) - {"front"})
        assert [row["kept"] for row in front._table.rows] == [False, False, False]
        await front._fork(40)  # by a click that was on its way
        assert notes(client) == ["The checkpoint of step 40 is no longer kept. Choose another one."]
        assert [found for found in client.elements.values() if isinstance(found, Choice)] == []
        await head.ask_fork()
        assert [found.value for found in client.elements.values() if isinstance(found, Choice)] == ["best"]

    on_page(look)


def test_further_sets_are_drawn_by_objective_and_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[str] = []
    monkeypatch.setattr("nicegui.ui.download.content", lambda content, *_: saved.append(content))

    async def look(session: Any, client: Client) -> None:
        api = session.client
        api.told["spec"]["data"] = {"type": "files", "sets": {"hard": "hard.jsonl"}}
        api.points = [_point(0, True), _point(10, True, sets={"hard": {"objectives": {"accuracy": 0.25}}})]
        page = await job_page(session, client)
        front = FrontPanel(page)
        await front.update(frozenset({"front", "checkpoints"}))
        assert [chart.props["note"] for chart in front._by_set.values()] == [
            "validation 0.1, hard 0.25", "validation 0.2, hard –",
        ]  # fmt: skip
        sent = {patch[0]: patch[-1] for patch in page._patches}
        assert sent[front._by_set["accuracy"].id] == [[0, 0.1, None], [10, 0.1, 0.25]]
        front._save()

    on_page(look)
    header, newest, _ = saved[0].lstrip("\ufeff").splitlines()
    assert header.endswith('"place","accuracy on hard","brevity on hard"')
    assert newest.endswith(',"yes",0.25,""')


def test_a_point_is_told_by_what_it_is_and_why_it_has_no_checkpoint() -> None:
    async def look(session: Any, client: Client) -> None:
        api = session.client
        api.points = [_point(0, True), _point(10, False), _point(20, False, collapsed=True), _point(30, True)]
        api.points[3]["sets"] = {"hard": {"objectives": {"accuracy": 0.25}, "standard_errors": {"accuracy": 0.125}}}
        api.kept = [0]
        front = FrontPanel(await job_page(session, client))
        await front.update(frozenset({"front", "checkpoints"}))
        assert front._scatter.props["label"].endswith(": 2 of 3 points are not dominated, 1 collapsed")
        assert [row["place"] for row in front._table.rows] == ["yes", "collapsed", "", "yes"]
        told = {}
        for step in (0, 10, 20, 30):
            front._select(step)
            told[step] = texts(front._detail)
            assert len(buttons(front._detail, "Rollouts of this step")) == (step > 0)
        assert "dominated\n" in told[10]
        assert "not kept: a dominated point's is dropped" in told[10]
        assert "collapsed: not eligible" in told[20]
        assert "not kept: the run had collapsed" in told[20]
        assert "dominated" not in told[20] + told[30]
        assert "not there yet: it is written beside the next steps" in told[30]
        assert "hard\naccuracy 0.25 ± 0.125" in told[30]

    on_page(look)


def test_a_point_names_those_that_it_is_not_told_apart_from() -> None:
    errors: dict[str, Any] = {"standard_errors": {"accuracy": 0.03, "brevity": 0.04}}

    def point(step: int, accuracy: float, *, on_front: bool = True, **more: Any) -> dict[str, Any]:
        return {**_point(step, on_front), "objectives": {"accuracy": accuracy, "brevity": 0.2}, **more}

    async def look(session: Any, client: Client) -> None:
        api = session.client
        near = [point(step, 0.54, **errors) for step in range(20, 28)]
        api.points = [point(10, 0.5, **errors), *near, point(30, 0.55, **errors), point(40, 0.5)]
        api.points += [point(50, 0.5, on_front=False, **errors)]
        page = await job_page(session, client)
        front = FrontPanel(page)
        await front.update(frozenset({"front"}))
        front._select(10)
        assert "step 20, step 21, step 22, step 23, step 24 and 3 more" in texts(front._detail)
        api.points = [api.points[0], point(60, 0.5, **errors)]
        page.watch._wanted |= {"front"}
        await front.update(frozenset(await page.watch._fetch()))
        assert "within the error of\nstep 60\n" in texts(front._detail), "also where the point itself is as it was"
        api.points = [api.points[0], point(60, 0.5)]
        page.watch._wanted |= {"front"}
        await front.update(frozenset(await page.watch._fetch()))
        assert "within the error of" not in texts(front._detail)

    on_page(look)


def test_what_is_better_smaller_says_so() -> None:
    async def look(session: Any, client: Client) -> None:
        api = session.client
        api.points = [_point(10, True)]
        page = await job_page(session, client)
        front: Any = page.watch.front
        front |= {
            "ranges": {"accuracy": [0, 1], "brevity": [0, 9]},
            "directions": {"brevity": {"better": "smaller", "target": None}},
        }
        panel = FrontPanel(page)
        await panel.update(frozenset({"front"}))
        labels = [column["label"] for column in panel._table.columns]
        assert labels[1:3] == ["accuracy", "brevity, smaller is better"]

    on_page(look)


def test_the_first_policy_and_the_corner_of_the_volume_are_drawn_apart() -> None:
    initial, corner = {"accuracy": 0.4, "brevity": 0.7}, {"accuracy": 0.2, "brevity": 0.0}
    drawn = charts.front("accuracy", "brevity", [_point(40, True)], None, initial=initial, reference=corner)
    places = {series.get("name"): series["data"] for series in drawn["series"]}
    assert places["initial policy"] == [[0.4, 0.7, -1]]
    assert places["volume's corner"] == [[0.2, 0.0, -1]]
    assert {"initial policy", "volume's corner"} <= set(drawn["legend"]["data"])
    partly = charts.front("accuracy", "brevity", [], None, initial={"accuracy": 0.4, "brevity": None}, reference={})
    assert not any(series["data"] for series in partly["series"])
