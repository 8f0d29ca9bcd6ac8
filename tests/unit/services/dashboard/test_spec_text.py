"""A spec as YAML that a form writes into, and errors at their lines."""

from __future__ import annotations

from importlib import resources
from unittest.mock import Mock

import pytest
import yaml

from orchestrator.spec_errors import SpecError
from rewards.verifiers.json_schema import SchemasBusy
from services.dashboard import spec_text
from services.dashboard.spec_text import BadText, checked, line_of, put, read, use_dataset, value_at

QUICKSTART = resources.files("deploy").joinpath("jobs/quickstart.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("path", "value"),
    [("name", "new: name # x"), ("name", "- a"), ("steps", 7), ("optimizer.lr", 2.5e-5), ("objectives.1.weight", 0.9),
     ("policy.model", "true"), ("objectives.2.name", "größe")],
)  # fmt: skip
def test_a_value_changes_and_the_comments_stay(path: str, value: object) -> None:
    written = put(QUICKSTART, path.split("."), value)  # type: ignore[arg-type]
    expected = yaml.safe_load(QUICKSTART)
    place = expected
    *parents, last = path.split(".")
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place[part]
    place[last] = value
    assert yaml.safe_load(written) == expected
    assert "# the boxed answer is right" in written


def test_what_is_not_there_yet_is_added() -> None:
    written = put(QUICKSTART, ["priority"], 2)
    assert yaml.safe_load(written) == {**yaml.safe_load(QUICKSTART), "priority": 2}
    assert yaml.safe_load(put("a: 1", ["b", "c"], "x")) == {"a": 1, "b": {"c": "x"}}


@pytest.mark.parametrize(
    ("text", "path", "written"),
    [
        ("name: a\nsteps:\n# more\n", "steps", "name: a\nsteps: 5\n# more\n"),
        ("steps: # how many\n", "steps", "steps: 5 # how many\n"),
        ("{steps: }", "steps", None),
        ("{steps}", "steps", None),
        ("o:\n- w:\n  n: a\n", "o.0.w", "o:\n- w: 5\n  n: a\n"),
        ("steps: null\n", "steps", "steps: 5\n"),
    ],
)
def test_a_field_that_is_empty_is_filled(text: str, path: str, written: str | None) -> None:
    found = put(text, path.split("."), 5)
    assert value_at(read(found), path.split(".")) == 5
    assert written in (None, found)


SHARE = {"share": 0.05}


@pytest.mark.parametrize(
    ("split", "data", "expected"),
    [
        ("train", "type: quickstart", {"train": "dataset:ds-1", "validation": SHARE}),
        ("validation", "type: quickstart", {"validation": "dataset:ds-1"}),
        ("train", "{type: files, train: a, validation: b}", {"train": "dataset:ds-1", "validation": "b"}),
        ("validation", "{type: files, train: a, validation: {share: .1}}",
         {"train": "a", "validation": "dataset:ds-1"}),
        ("test", "{type: files, train: [a, c], validation: b}",
         {"train": ["a", "c"], "validation": "b", "test": "dataset:ds-1"}),
    ],
)  # fmt: skip
def test_an_uploaded_dataset_becomes_a_split(split: str, data: str, expected: dict[str, object]) -> None:
    text = QUICKSTART.replace("type: quickstart", data)
    written = use_dataset(text, split, "ds-1")
    assert yaml.safe_load(written) == {**yaml.safe_load(text), "data": {"type": "files", **expected}}


def test_generated_prompts_make_room_and_the_comments_stay() -> None:
    written = use_dataset(QUICKSTART.replace("objectives:", "# three of them\nobjectives:"), "train", "ds-1")
    assert "\n\n# three of them\nobjectives:" in written
    assert "# the boxed answer is right" in written
    assert yaml.safe_load(use_dataset("a: 1", "test", "ds-1"))["data"] == {"type": "files", "test": "dataset:ds-1"}


@pytest.mark.parametrize(
    ("path", "line"),
    [("name", 3), ("steps", 4), ("objectives.1", 18), ("objectives.1.weight", 20), ("optimizer.lr", 35),
     ("optimizer.missing", 34), ("nothing", 0), ("objectives.9.weight", 14)],
)  # fmt: skip
def test_where_a_field_stands(path: str, line: int) -> None:
    shown = QUICKSTART.splitlines()[line - 1] if line else ""
    assert line_of(QUICKSTART, path) == line, shown


def test_the_example_is_right_and_a_wrong_one_is_told_by_field() -> None:
    assert checked(QUICKSTART)["steps"] == 50
    with pytest.raises(SpecError) as caught:
        checked(QUICKSTART.replace("steps: 50", "steps: many\nsteppes: 3"))
    assert {path for path, _ in caught.value.problems} == {"steps", "steppes"}


@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        ("a: [1", "not valid YAML", 1),
        ("a: 1\nb: :\n  - c: {", "not valid YAML", 2),
        ("- 1", "expected a mapping", 1),
        ("", "expected a mapping", 1),
        ("a: &x [1]\nb: *x", "anchors", 0),
        ("a: " + "[" * 60_000, "^nested too deeply$", 0),
        ("a: " + "[" * 64 + "]" * 64, "^nested too deeply$", 0),
        ("x" * 70_000, "longer", 0),
        ("a: !!python/object:os.system x", "not valid YAML", 1),
        ("a: 2026-99-99", "not valid YAML", 0),
        ("\x07: 1", "not valid YAML", 0),
        ("a: 1\nb: {c: 1}\na: 2", "^the key 'a' stands twice, first in line 1; keep one of them", 3),
    ],
)
def test_what_is_no_spec_at_all(text: str, words: str, line: int) -> None:
    with pytest.raises(BadText, match=words) as caught:
        read(text)
    assert caught.value.line == line or 2 <= line <= caught.value.line or "[[" in text


def test_a_bomb_of_aliases_is_refused_unread() -> None:
    bomb = "a: &a [x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)},*{chr(97 + i)}]\n" for i in range(20)
    )
    with pytest.raises(BadText, match="aliases"):
        read(bomb)


def test_a_value_at_a_path() -> None:
    document = {"a": [{"b": 1}], "c": None}
    assert value_at(document, ["a", "0", "b"]) == 1
    for path in (["a", "1", "b"], ["a", "x"], ["c", "d"], ["q"]):
        assert value_at(document, path) is None


def test_schemas_of_others_that_are_being_checked_are_no_fault_of_the_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec_text, "parse_job", Mock(side_effect=SchemasBusy))
    with pytest.raises(BadText, match="other JSON schemas are being checked; try again shortly"):
        checked(QUICKSTART)
