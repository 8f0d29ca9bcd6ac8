"""What two jobs on one scale did not measure alike."""

from typing import Any

import pytest

from orchestrator.measurement import measured_differently, set_differently

Json = dict[str, Any]
SPEC: Json = {
    "objectives": [{"name": "a", "reward": {"name": "conciseness", "options": {}}, "gate": None}],
    "evaluation": {"temperature": 1.0},
    "data": {"type": "files", "train": "t.jsonl", "validation": "v.jsonl", "test": None, "columns": {"prompt": "p"}},
}
SPLIT = "data.validation: x and y have other prompts, or read them differently"


def lines(change: Json, fronts: tuple[Json, Json] = ({}, {})) -> list[str]:
    return measured_differently("x", "y", {"x": SPEC, "y": {**SPEC, **change}}, dict(zip("xy", fronts, strict=True)))


@pytest.mark.parametrize(
    ("data", "sums", "told"),
    [
        ({"train": "other.jsonl"}, None, []),
        ({"validation": "w.jsonl"}, None, [SPLIT]),
        ({"validation": "w.jsonl"}, ("1", "1"), []),  # the same file, elsewhere
        ({}, ("1", "2"), [SPLIT]),  # another file, at the same place
        ({"columns": {"prompt": "q"}}, ("1", "1"), [SPLIT]),
        ({"validation": {"share": 0.1}}, None, [SPLIT]),
    ],
)
def test_splits_are_the_same_by_what_is_in_them(data: Json, sums: tuple[str, str] | None, told: list[str]) -> None:
    fronts = tuple({"split_sha256": {"validation": found}} for found in sums) if sums else ({}, {})
    assert lines({"data": {**SPEC["data"], **data}}, fronts) == told  # type: ignore[arg-type]


def test_options_count_with_their_defaults_and_what_is_long_is_not_said() -> None:
    def rewarded(**options: Any) -> Json:
        return {"objectives": [{**SPEC["objectives"][0], "reward": {"name": "conciseness", "options": options}}]}

    assert lines(rewarded(max_tokens=None)) == []
    assert lines(rewarded(max_tokens=50)) == ["a.reward: not the same in x and y"]
    assert lines({"evaluation": {"temperature": 0.0}}) == ["evaluation.temperature: 1.0 in x, 0.0 in y"]
    cut = {name: {**SPEC, "rollout": {"top_k": top_k, "min_p": 0.0}} for name, top_k in (("x", 0), ("y", 50))}
    assert measured_differently("x", "y", cut, {"x": {}, "y": {}}) == ["evaluation.top_k: 0 in x, 50 in y"]
    cut["x"]["evaluation"] = {"temperature": 1.0, "top_k": 50}
    assert measured_differently("x", "y", cut, {"x": {}, "y": {}}) == []
    assert lines({"evaluation": {}}) == []  # a spec of an older version does not say it


def test_what_else_two_jobs_differ_in_is_said_by_field() -> None:
    """Of the spec what both say, and of what they were made of what both records tell."""
    objective = SPEC["objectives"][0]
    rules = {"x": {"name": "dara", "cap": 5.0}, "y": {"name": "saw", "rate": 0.1}}
    specs = {
        "x": {**SPEC, "name": "one", "seed": 0, "weighting": rules["x"], "objectives": [objective | {"weight": 1.0}]},
        "y": {**SPEC, "name": "two", "seed": 1, "weighting": rules["y"], "objectives": [objective | {"weight": 2.0}]},
    }
    told = {"code": {"version": "1", "commit": "c"}, "versions": {"torch": "2.9"}, "device": "AMD", "plugins": []}
    made_of = {"x": told, "y": {**told, "device": "Intel", "data_sha256": {"train": "1"}}}
    assert set_differently("x", "y", specs, made_of) == [
        "objectives.a.weight: 1.0 in x, 2.0 in y",
        "seed: 0 in x, 1 in y",
        "weighting.name: dara in x, saw in y",
        "device: AMD in x, Intel in y",
    ]
    assert set_differently("x", "x", specs, {}) == []
    assert set_differently("x", "y", {"x": SPEC, "y": SPEC}, {"x": told, "y": {}}) == []
