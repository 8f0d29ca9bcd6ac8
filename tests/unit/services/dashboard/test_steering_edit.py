"""An edit sends what differs, and moves onto another person's change with what it wanted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.dashboard.steering_edit import Edit, changed, mix


def _steering(version: int = 1, **given: Any) -> Any:
    found = {"version": version, "mode": "auto", "blend": 0.5, "weights": {"a": 0.7, "b": 0.3},
             "bounds": {"a": [0.0, 1.0], "b": [0.0, 1.0]}, "log": []}  # fmt: skip
    return found | given


def test_nothing_edited_is_nothing_to_send() -> None:
    edit = Edit.of(_steering())
    assert edit.change() == {}
    edit.weights["a"] += 1e-5
    assert edit.change() == {}, "a slider's rounding is no edit"


def test_only_what_differs_is_sent() -> None:
    edit = Edit.of(_steering())
    edit.mode, edit.weights, edit.bounds["b"] = "manual", {"a": 0.2, "b": 0.8}, [0.1, 1.0]
    assert edit.change() == {"mode": "manual", "weights": {"a": 0.2, "b": 0.8}, "bounds": {"b": [0.1, 1.0]}}
    edit.blend = 0.9
    assert edit.change()["blend"] == 0.9
    assert edit.base["bounds"]["b"] == [0.0, 1.0], "the base is left as it was"


def test_an_edit_moves_onto_a_newer_version() -> None:
    edit = Edit.of(_steering())
    edit.weights = {"a": 0.2, "b": 0.8}
    theirs = _steering(5, mode="blend", weights={"a": 0.5, "b": 0.5}, bounds={"a": [0.1, 0.9], "b": [0.0, 1.0]})
    moved = edit.onto(theirs)
    assert moved.base["version"] == 5
    assert (moved.mode, moved.bounds["a"]) == ("blend", [0.1, 0.9]), "what was not edited is theirs"
    assert moved.change() == {"weights": {"a": 0.2, "b": 0.8}}
    same = Edit.of(_steering()).onto(theirs)
    assert same.change() == {}


def test_a_change_in_words() -> None:
    said = changed({"mode": "manual", "weights": {"a": 0.25, "b": 0.75}, "bounds": {"a": [0.1, 1.0], "b": [0.0, 1.0]}})
    assert said == "the person's weights; a 25%, b 75%; a between 10% and 100%"
    assert changed({}) == "as submitted"
    assert mix({"a": None, "b": float("nan")}) == "a –, b –"


def test_an_edit_comes_back_out_of_a_browser() -> None:
    edit = Edit.of(_steering(7))
    edit.mode, edit.weights = "manual", {"a": 0.2, "b": 0.8}
    found = Edit.read(json.loads(json.dumps(edit.document())), ["a", "b"])
    assert found is not None
    assert (found.change(), found.base["version"]) == (edit.change(), 7)


@pytest.mark.parametrize(
    "wrong",
    [{"base": None}, {"base": {}}, {"mode": "mine"}, {"blend": "x"}, {"weights": {"a": 1.0}},
     {"bounds": {"a": 1, "b": 2}}, {"weights": {"a": None, "b": 1.0}}, {"bounds": {"a": [0, 2], "b": [0, 1]}}],
)  # fmt: skip
def test_what_is_no_edit_of_this_job_is_left(wrong: Any) -> None:
    assert Edit.read(Edit.of(_steering()).document() | wrong, ["a", "b"]) is None
    assert Edit.read(None, ["a", "b"]) is None


def test_guardrails_and_ramps_are_said() -> None:
    assert changed({"guardrails": [{"metric": "kl", "max": 1}], "over": 3}) == "guardrails on kl; over 3 steps"
    assert changed({"guardrails": []}) == "guardrails on nothing"
