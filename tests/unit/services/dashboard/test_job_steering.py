"""What the steering panel says of a change: the server's word, whoever made it, and once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from nicegui import Client

from services.client import Invalid, Unavailable
from services.dashboard.frame import MAYBE_DONE
from services.dashboard.job_steering import SteeringPanel
from services.dashboard.panels import JobPage
from services.dashboard.steering_edit import alike
from tests.dashboard_support import ALL, button, buttons, is_enabled, job_page, notes, on_page, press, texts

AWAY = Unavailable(503, "unavailable", "away")


async def _panel(session: Any, client: Client) -> tuple[JobPage, SteeringPanel]:
    page = await job_page(session, client)
    panel = SteeringPanel(page)
    await panel.update(ALL)
    return page, panel


async def _look(page: JobPage, panel: SteeringPanel) -> None:
    page.watch._wanted |= {"steering"}
    await panel.update(frozenset(await page.watch._fetch()))


def _move(panel: SteeringPanel, accuracy: float) -> None:
    weights = {"accuracy": accuracy, "brevity": 1 - accuracy}
    panel._moved({"weights": weights, "bounds": {name: [0.0, 1.0] for name in weights}})


def _happens(session: Any, kind: str, **data: Any) -> None:
    session.client.happened.append({"seq": len(session.client.happened) + 1, "type": kind, "data": data})


def test_two_clicks_on_apply_are_one_change() -> None:
    async def look(session: Any, client: Client) -> None:
        page, panel = await _panel(session, client)
        _move(panel, 0.3)
        await press(button(client, "Apply"), times=2)
        assert session.client.asked["steer"] == 1
        _move(panel, 0.2)
        await _look(page, panel)
        panel._do_reset()
        _move(panel, 0.2)
        await asyncio.gather(panel._do_apply(), panel._do_apply(), panel._hand_back())
        assert session.client.asked["steer"] == 2
        assert panel._line.text == "Queued: version 3 takes effect at step 4."
        assert notes(client) == []

    on_page(look)


def test_a_version_is_in_force_from_its_step_on() -> None:
    change = {"mode": "manual", "weights": {"accuracy": 0.3, "brevity": 0.7}}
    queued = "Queued: version 2, the person's weights; accuracy 30%, brevity 70%, from step 3 on, by another."

    async def look(session: Any, client: Client) -> None:
        page, panel = await _panel(session, client)
        assert panel._line.text == "In force: version 1, the learner decides."
        session.client.take(change, by="another")
        session.client.moves = False
        await _look(page, panel)
        assert panel._line.text == queued
        session.client.moves = True
        await _look(page, panel)
        assert panel._line.text == queued
        await _look(page, panel)
        assert panel._line.text == "In force: version 2, the person's weights."

    async def begins(session: Any, client: Client) -> None:
        page, panel = await _panel(session, client)
        session.client.take(change, by="another")
        session.client.moves = False
        _happens(session, "steering.applied", version=2, step=3, applied=change["weights"])
        await _look(page, panel)
        assert panel._line.text == "In force: version 2, the person's weights."

    async def ends(session: Any, client: Client) -> None:
        page, panel = await _panel(session, client)
        session.client.take(change, by="another")
        session.client.moves = False
        _happens(session, "steering.rejected", version=2, reason="the job ended at step 1: cancelled")
        await _look(page, panel)
        told = "Version 2 by another was not applied: the job ended at step 1: cancelled."
        assert panel._line.text == told

    for test in (look, begins, ends):
        on_page(test)


def test_what_was_said_of_a_change_ends_with_the_next_one() -> None:
    async def look(session: Any, client: Client) -> None:
        page, panel = await _panel(session, client)
        _move(panel, 0.3)
        await press(button(client, "Apply"))
        _happens(session, "steering.applied", version=2, step=3, applied={"accuracy": 0.3, "brevity": 0.7})
        await _look(page, panel)
        assert panel._line.text == "Applied at step 3: accuracy 30%, brevity 70%."
        await _look(page, panel)
        assert panel._line.text.startswith("Applied at step 3")
        session.client.take({"mode": "auto"}, by="another")
        await _look(page, panel)
        assert panel._line.text.startswith("Queued: version 3, the learner decides")
        assert panel._line.text.endswith("by another.")

    on_page(look)


def test_a_conflict_stays_as_it_is_while_steps_come() -> None:
    async def look(session: Any, client: Client) -> None:
        page, panel = await _panel(session, client)
        _move(panel, 0.3)
        session.client.take({"mode": "manual"}, by="another")
        await _look(page, panel)
        assert "Someone else steered meanwhile: version 2 by another" in texts(panel._conflict)
        rebase = button(panel._conflict, "Put mine on top")
        await _look(page, panel)
        assert button(panel._conflict, "Put mine on top") is rebase
        session.client.take({"blend": 0.2}, by="mine")
        await _look(page, panel)
        assert "This key was used to steer meanwhile: version 3 by mine" in texts(panel._conflict)
        await press(button(panel._conflict, "Put mine on top"))
        assert texts(panel._conflict) == ""
        assert panel._edit is not None
        assert panel._edit.base["version"] == 3

    on_page(look)


@pytest.mark.parametrize("edited_further", [False, True])
def test_a_change_whose_answer_was_lost_is_nobody_elses(edited_further: bool) -> None:
    async def look(session: Any, client: Client) -> None:
        page, panel = await _panel(session, client)
        api = session.client
        _move(panel, 0.3)
        api.failing["steer"] = AWAY
        await press(button(client, "Apply"))
        assert panel._line.text.endswith(MAYBE_DONE)
        assert panel._edit is not None, "the edit is kept"
        sent = panel._edit.change()
        api.take({**sent, "weights": {name: weight + 1e-12 for name, weight in sent["weights"].items()}}, by="mine")
        if edited_further:
            _move(panel, 0.2)
        await _look(page, panel)
        assert texts(panel._conflict) == ""
        if edited_further:
            assert panel._edit.base["version"] == 2
            assert panel._edit.change() == {"weights": {"accuracy": 0.2, "brevity": 0.8}}
        else:
            assert panel._line.text == "Queued: version 2 takes effect at step 3."

    async def applied(session: Any, client: Client) -> None:
        page, panel = await _panel(session, client)
        _move(panel, 0.3)
        session.client.failing["steer"] = AWAY
        await press(button(client, "Apply"))
        assert panel._edit is not None
        session.client.take(panel._edit.change(), by="mine")
        _happens(session, "steering.applied", version=2, step=3, applied={"accuracy": 0.3, "brevity": 0.7})
        await _look(page, panel)
        assert panel._line.text == "Applied at step 3: accuracy 30%, brevity 70%."

    on_page(look)
    on_page(applied)
    assert not alike({"mode": "auto"}, {"mode": "manual"})
    assert not alike({"mode": "auto"}, {"blend": 0.5})


def test_a_refusal_is_said_beside_a_conflict() -> None:
    async def look(session: Any, client: Client) -> None:
        page, panel = await _panel(session, client)
        _move(panel, 0.3)
        session.client.take({"mode": "manual"}, by="another")
        await _look(page, panel)
        session.client.failing["steer"] = Invalid(422, "invalid_steering", "leave no weights that sum to 1")
        await press(button(client, "Apply"))
        assert panel._line.text == "Refused: leave no weights that sum to 1"

    on_page(look)


def test_a_preview_is_of_the_edit_that_is_shown() -> None:
    async def look(session: Any, client: Client) -> None:
        _, panel = await _panel(session, client)
        _move(panel, 0.3)
        await press(button(client, "Preview"))
        assert "30%" in texts(panel._preview)
        running = asyncio.ensure_future(_within(client, panel._do_preview()))
        await asyncio.sleep(0)
        assert not is_enabled(button(client, "Preview"))
        await panel._do_preview()
        assert session.client.asked["preview"] == 2, "one at a time"
        _move(panel, 0.2)
        await running
        assert texts(panel._preview) == ""
        assert is_enabled(button(client, "Preview"))
        session.client.failing["preview"] = AWAY
        running = asyncio.ensure_future(_within(client, panel._do_preview()))
        await asyncio.sleep(0)
        panel._do_reset()
        await running
        assert texts(panel._preview) == ""
        assert buttons(panel._conflict, "Take theirs") == []

    on_page(look)


BEGUN: Any = {"mode": "auto", "blend": 0.5, "weights": {"accuracy": 0.5, "brevity": 0.5},
              "bounds": {"accuracy": [0.0, 1.0], "brevity": [0.0, 1.0]}}  # fmt: skip


@pytest.mark.parametrize("has_more", [False, True])
def test_an_edit_begins_from_an_earlier_version(has_more: bool) -> None:
    first = {"version": 1, "effective_step": 0, "by": "mine", "change": BEGUN, "at": 0.0}

    async def look(session: Any, client: Client) -> None:
        api, read = session.client, session.client.steering
        api.steered["log"] = [first]
        api.take({"weights": {"accuracy": 0.3, "brevity": 0.7}, "mode": "manual"}, by="another")
        api.take({"bounds": {"accuracy": [0.2, 0.9], "brevity": [0.0, 1.0]}}, by="another")
        api.take({"weights": {"accuracy": 0.6, "brevity": 0.4}}, by="another")

        async def steering(_: str, *, log_before: int = 9, **__: Any) -> Any:
            found = await read("")
            log = [entry for entry in found["log"] if entry["version"] < log_before]
            return found | {"log": log[-2:] if has_more else log, "log_has_more": has_more and len(log) > 2}

        api.steering = steering
        _, panel = await _panel(session, client)
        assert len(buttons(panel._changes, "Edit from this version")) == (1 if has_more else 3), "all but the newest"
        await press(buttons(panel._changes, "Edit from this version")[0])
        assert panel._edit is not None
        assert panel._edit.change() == {"weights": {"accuracy": 0.3, "brevity": 0.7}}
        assert panel._line.text == "Edited, not applied. It began as version 3."
        assert is_enabled(button(client, "Preview"))
        await panel._edit_from(1)
        assert panel._edit.change() == {"mode": "auto", "weights": BEGUN["weights"], "bounds": {"accuracy": [0.0, 1.0]}}
        await press(button(client, "Apply"))
        assert api.steered["mode"] == "auto"
        assert api.asked["steer"] == 1

    async def same(session: Any, client: Client) -> None:
        api = session.client
        api.steered["log"] = [first]
        api.take({"mode": "manual"}, by="another")
        api.take({"mode": "auto"}, by="another")
        _, panel = await _panel(session, client)
        await panel._edit_from(1)
        assert notes(client) == ["Version 1 is as what stands now."]
        assert panel._edit is None

    on_page(look)
    on_page(same)


@pytest.mark.parametrize("meanwhile", ["nothing", "another's change", "it was applied", "the job ended", "moved"])
def test_an_edit_outlives_its_page(monkeypatch: pytest.MonkeyPatch, meanwhile: str) -> None:
    stored: list[Any] = []

    def keeps(panel: SteeringPanel) -> None:
        async def kept() -> Any:
            return stored[-1] if stored else None

        def run(method: str, *args: Any, **_: Any) -> Any:
            if method == "store":
                stored.append(args[0])
            return kept() if method == "kept" else None

        monkeypatch.setattr(panel._simplex, "run_method", run)

    async def look(session: Any, client: Client) -> None:
        page, panel = await _panel(session, client)
        keeps(panel)
        await panel.restore()
        assert stored == []
        _move(panel, 0.3)
        change = stored[-1]
        if meanwhile == "another's change":
            session.client.take({"blend": 0.2}, by="another")
        elif meanwhile == "it was applied":
            session.client.take(panel._edit.change() if panel._edit else {}, by="mine")
        elif meanwhile == "the job ended":
            session.client.told["status"] = "succeeded"
        await page.watch._fetch_wanted({"steering", "job"})
        again = SteeringPanel(page)
        keeps(again)
        if meanwhile == "moved":
            _move(again, 0.2)
        await again.restore()
        if meanwhile in ("it was applied", "the job ended"):
            assert (again._edit, stored[-1]) == (None, None)
            return
        assert again._edit is not None
        assert stored[-1] == again._edit.document()
        assert (stored[-1] == change) is (meanwhile != "moved")
        if meanwhile != "moved":
            assert again._line.text == "Edited, not applied. This is what you had edited here."
        assert bool(texts(again._conflict)) is (meanwhile == "another's change")
        again._do_reset()
        assert stored[-1] is None

    on_page(look)


def test_a_share_that_is_none_is_not_applied() -> None:
    async def look(session: Any, client: Client) -> None:
        _, panel = await _panel(session, client)
        panel._choose_mode("blend")
        for typed, is_right in (("80", True), ("150", False), ("", False), ("70", True)):
            panel._blend.value = typed
            panel._typed_blend()
            assert is_enabled(button(client, "Apply")) is is_right
            assert is_enabled(button(client, "Preview")) is is_right
            assert bool(panel._blend.props["problem"]) is not is_right
        panel._blend.value = "150"
        panel._typed_blend()
        _move(panel, 0.3)
        assert panel._blend.value == "150", "what is typed stays"
        await panel._do_apply()
        assert session.client.asked["steer"] == 0
        panel._choose_mode("manual")
        assert is_enabled(button(client, "Apply"))
        assert (panel._blend.value, panel._blend.props["problem"]) == ("70", "")

    on_page(look)


async def _within(client: Client, running: Any) -> None:
    with client:
        await running


def test_a_ramp_is_sent_followed_and_forgotten() -> None:
    ramp = {"step": 1, "of": 10, "target": {"accuracy": 0.3, "brevity": 0.7}, "until": 13}

    async def look(session: Any, client: Client) -> None:
        page, panel = await _panel(session, client)
        _move(panel, 0.3)
        for typed, is_right in (("0", False), ("1.5", False), ("", False), ("9999999999", False), ("10", True)):
            panel._over.value = typed
            panel._typed_over()
            assert bool(panel._over.props["problem"]) is not is_right
            assert is_enabled(button(client, "Apply")) is is_right
        await press(button(client, "Apply"))
        step = session.client.told["step"] + 2
        assert panel._line.text == f"Queued: version 2 takes effect from step {step} to step {step + 9}."
        assert session.client.steered["log"][-1]["change"]["over"] == 10
        assert (panel._over.value, panel._steps) == ("1", 1)
        applied = {"accuracy": 0.66, "brevity": 0.34}
        _happens(session, "steering.applied", version=2, step=4, applied=applied, clamped={}, ramp=ramp)
        await _look(page, panel)
        way = "accuracy 66%, brevity 34%, on the way to accuracy 30%, brevity 70% at step 13."
        assert panel._line.text == f"Applied at step 4: {way}"
        panel._do_reset()
        assert panel._line.text == "Under way to version 2, the person's weights: reached at step 13."
        for typed, is_right in (("0", False), ("10", True)):
            panel._over.value = typed
            panel._typed_over()
            assert is_enabled(button(client, "Hand back to the learner")) is is_right

    on_page(look)
