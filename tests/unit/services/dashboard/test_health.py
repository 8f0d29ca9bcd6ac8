"""What a step's record says of its rewards, its engines and what it pushes down is on the page."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from nicegui import Client

from services.dashboard.health import engines_told, rewards_told
from services.dashboard.job_charts import HealthPanel, ObjectivesPanel, WeightsPanel, _said
from services.dashboard.job_log import EventsPanel
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
    ("record", "told"),
    [
        ({}, ""),
        ({"engine_health": {"0": HEALTHY}}, "Engines at the last step: 1 of 1 healthy."),  # of an earlier version
        ({"engines": {"healthy": 64}, "engine_health": {}}, "Engines at the last step: 64 of 64 healthy."),
        (
            {
                "engines": {"healthy": 3, "retired": 1},
                "engine_health": {
                    "0": {**HEALTHY, "restarts": 2},
                    "2": {**HEALTHY, "failures": 7, "reason": "CUDA error"},
                    "1": {"health": "retired", "restarts": 1, "reason": "its process died"},
                },
            },
            "Engines at the last step: 3 of 4 healthy; engine 1 is retired: its process died; "
            "engine 2 had 7 failed calls: CUDA error; 3 started again so far.",
        ),
    ],
)
def test_engines(record: Any, told: str) -> None:
    assert engines_told(record) == told


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


def test_why_the_weights_are_what_they_are_stands_beside_them() -> None:
    def newest(conciseness: float) -> dict[str, Any]:
        weights = {"accuracy": 1 - conciseness, "brevity": conciseness}
        figures = {"preference": dict.fromkeys(weights, 0.5), "slope": {"accuracy": 0.011, "brevity": 0.034}}
        because = {"mode": "auto", "share": 0.0, "figures": figures, "held": {}, "gates": {}}
        return {"weights": {"applied": weights, "strategy": weights}, "weights_because": because}

    async def look(session: Any, client: Client) -> None:
        session.client.told["spec"] |= {"weighting": {"name": "hv_gradient"}}
        session.client.newest = newest(0.21)
        page = await job_page(session, client)
        panel = WeightsPanel(page)
        await panel.update(ALL)
        session.client.newest = newest(0.27)
        await page.watch._fetch()
        await panel.update(ALL)
        told = "one more unit of it adds most to the hypervolume (slope .034, accuracy .011)"
        assert panel._why[1].text == f"brevity .21 -> .27: {told}"
        page.watch._rewind(1)
        session.client.newest = {}
        await page.watch._fetch()
        await panel.update(ALL)
        assert [line.text for line in panel._why] == ["", ""], "a step of an older version"

    on_page(look)


def test_what_tells_of_the_update_is_drawn() -> None:
    async def look(session: Any, client: Client) -> None:
        session.client.newest = {"clip_share": 0.01, "sampler_gap": 0.002, "lr": 5e-6}
        panel = HealthPanel(await job_page(session, client))
        await panel.update(ALL)
        notes = {column: panel._charts[column].props["note"] for column in session.client.newest}
        assert notes == {"clip_share": "0.01", "sampler_gap": "0.002", "lr": "5.00e-06"}

    on_page(look)


def test_charts_of_many_steps_say_so_and_a_close_look_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(session: Any, client: Client) -> None:
        page = await job_page(session, client)
        panels: list[Any] = [ObjectivesPanel(page), WeightsPanel(page), HealthPanel(page)]
        for panel in panels:
            await panel.update(ALL)
        assert {panel._thinned.text for panel in panels} == {""}
        for step in range(page.watch.columns.last + 1, 1001):
            page.watch.columns.append(step, {"kl": float(step == 700)})
        for panel in panels:
            await panel.update(ALL)
            assert panel._thinned.text.startswith("Each point is the mean of 2 steps")
        sent: list[Any] = []
        chart = panels[-1]._charts["kl"]
        monkeypatch.setattr(chart, "run_method", lambda *args: sent.append(args))
        (zoom,) = [found.handler for found in chart._event_listeners.values() if found.type == "zoom"]
        for ends in ([699, 702], [1, 1000], ["699", 702], [699], None):
            zoom(SimpleNamespace(args=ends))
        still = [None, None]
        assert sent == [("look", 699, 702, [[699, 0, *still], [700, 1, *still], [701, 0, *still], [702, 0, *still]])]

    on_page(look)


@pytest.mark.parametrize(
    ("target", "note"), [(None, "–"), ({"value": 0.9}, "–, target ≥ 0.9"), ({"op": "<=", "value": 3}, "–, target ≤ 3")]
)
def test_a_target_stands_beside_its_objective(target: Any, note: str) -> None:
    async def look(session: Any, client: Client) -> None:
        session.client.told["spec"] = {"objectives": [{"name": "accuracy", "target": target}]}
        panel = ObjectivesPanel(await job_page(session, client))
        await panel.update(ALL)
        assert panel._charts["accuracy"].props["note"] == note

    on_page(look)


def _event(seq: int, kind: str, **data: Any) -> dict[str, Any]:
    return {"seq": seq, "type": kind, "at": 0.0, "level": "warning", "data": data}


def _marked(option: Any) -> list[int]:
    """Steps with a line."""
    lines = next(series["markLine"]["data"] for series in option["series"] if "markLine" in series)
    return [line["xAxis"] for line in lines if "xAxis" in line]


def test_what_a_watch_finds_is_marked_where_it_is_seen() -> None:
    async def look(session: Any, client: Client) -> None:
        api = session.client
        api.told["spec"] |= {
            "guardrails": [
                {"metric": "kl", "min": None, "max": 0.1},
                {"metric": "evaluation.objectives.accuracy", "min": 0.5, "max": None},
            ],
            "gold": {"range": [0, 10]},
        }
        api.newest = {"kl": 0.05, "gold": {"mean": 7.5}, "objectives": {"accuracy": {"mean": 0.25, "std": 0.0}}}
        page = await job_page(session, client)
        objectives, weights, health = ObjectivesPanel(page), WeightsPanel(page), HealthPanel(page)
        for panel in (objectives, weights, health):
            await panel.update(ALL)
        assert health._charts["kl"].props["note"] == "0.05, limit ≤ 0.1"
        assert objectives._charts["accuracy"].props["note"] == "0.25, held-out limit ≥ 0.5"
        chart = objectives._charts["accuracy"].id
        (sent,) = [rows for found, dataset, _, rows in page._patches if found == chart and dataset == 0]
        assert sent == [[1, 0.25, 0.25, 0.0, 0.75]], "gold on the objective's scale"
        api.happened = [
            _event(1, "guardrail.breached", step=3, metric="kl"),
            _event(2, "collapse.detected", step=5, objective="brevity"),
            _event(3, "overoptimisation.detected", step=7, objective="accuracy"),
            _event(4, "evaluated", step=8),
        ]
        await page.watch._fetch()
        for panel in (objectives, weights, health):
            assert panel.has_new_marks()
            assert not panel.has_new_marks()
        assert _marked(objectives._option(0, "accuracy")) == [5, 7]
        assert _marked(objectives._option(1, "brevity")) == [5]
        assert _marked(health._options()["kl"]) == [3, 5]
        assert _marked(health._options()["loss"]) == [5]
        moved = [{"metric": "kl", "min": None, "max": 0.3}]
        api.happened.append(_event(5, "steering.applied", step=9, version=2, requested={"guardrails": moved}))
        await page.watch._fetch()
        for panel in (objectives, health):
            await panel.update(ALL)
        assert health._charts["kl"].props["note"] == "0.05, limit ≤ 0.3"
        assert objectives._charts["accuracy"].props["note"] == "0.25"

    on_page(look)


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        (["job.queued", "job.claimed"], ""),
        (["job.queued", "job.claimed", "job.paused", "job.queued", "job.claimed"], ""),
        (["job.queued", "job.claimed", "job.requeued info", "job.claimed"], ""),  # handed back in good order
        (["job.queued", "job.claimed", "job.requeued", "job.claimed"], " It was started anew once after a crash."),
        (["job.queued", "job.claimed", *["checkpoint.registered", "job.claimed"] * 2],
         " It was started anew 2 times after a crash."),
    ],
)  # fmt: skip
def test_crashes_are_counted_and_not_claims(kinds: list[str], told: str) -> None:
    async def look(session: Any, client: Client) -> None:
        for seq, kind in enumerate(kinds, 1):
            name, _, level = kind.partition(" ")
            warns = name == "job.requeued" and not level
            session.client.happened.append({**_event(seq, name), "level": "warning" if warns else "info"})
        session.client.told["attempts"] = 2
        panel = HealthPanel(await job_page(session, client))
        await panel.update(ALL)
        assert panel._words.text == f"The driver holds the job.{told}"

    on_page(look)


def test_the_log_says_what_it_does_not_show() -> None:
    async def look(session: Any, client: Client) -> None:
        api = session.client
        api.happened = [{**_event(seq, "evaluated", step=seq), "level": "info"} for seq in range(1, 1203)]
        api.happened[2] = _event(3, "guardrail.breached", step=3, message="kl is above 0.1")
        panel = EventsPanel(await job_page(session, client))
        await panel.update(ALL)
        assert panel._words.text == "The newest 100 of 1,202 are shown; the CSV has the newest 1,000."
        panel._choose("warning")
        assert [row["told"] for row in panel._table.rows] == ["kl is above 0.1"]
        assert panel._words.text == ""
        panel._choose("error")
        assert (panel._table.rows, panel._table.props["empty"]) == ([], "No errors so far.")

    on_page(look)


@pytest.mark.parametrize(("has_steps", "note"), [(False, "–"), (True, "not measured")])
def test_a_figure_is_missed_where_there_are_steps(has_steps: bool, note: str) -> None:
    async def look(session: Any, client: Client) -> None:
        session.client.moves = has_steps
        panel = HealthPanel(await job_page(session, client))
        await panel.update(ALL)
        assert panel._charts["kl"].props["note"] == note

    on_page(look)


def test_what_a_step_that_hangs_is_at_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.dashboard.watch.LATE_S", 0.0)

    async def look(session: Any, client: Client) -> None:
        session.client.moves = False
        page = await job_page(session, client)
        panel = HealthPanel(page)
        await panel.update(ALL)
        assert not panel._at.visible
        session.client.told["progress"] = {"stage": "training", "at": "commit", "since": 5.0}
        news = await page.watch._fetch()
        assert news == {"job"}, "without a step or an event"
        await panel.update(frozenset(news))
        assert panel._at.visible
        assert panel._at_words.text == "The step under way: committing the step since "
        assert panel._since.props["at"] == 5.0

    on_page(look)


@pytest.mark.parametrize(
    ("job", "says"),
    [
        ({"status": "starting", "progress": {}}, "Engines and reward models are being placed and started."),
        (
            {"status": "starting", "progress": {"stage": "waiting for resources: needs 2 GPUs, 1 free"}},
            "Engines and reward models are being placed and started; the driver's last word is "
            "'waiting for resources: needs 2 GPUs, 1 free'.",
        ),
        (
            {"status": "running", "progress": {"stage": "training"}},
            "The driver holds the job, at the stage 'training'.",
        ),
        ({"status": "failed", "progress": {"stage": "training"}}, "The job is failed."),
    ],
)
def test_what_the_driver_is_at(job: dict[str, Any], says: str) -> None:
    page = SimpleNamespace(watch=SimpleNamespace(job=job, restarts=0), latest=lambda _: None)
    assert _said(page) == says  # type: ignore[arg-type]
