"""Where a fork starts, what it changes, and what is kept of a plan."""

import os
from pathlib import Path

import pytest

from orchestrator.lineage import PlanConflict, best_step, keep_plan, kept_plan, lineage, merged, plan_path
from orchestrator.store import Checkpoint


def test_changes_are_merged_branch_by_branch() -> None:
    spec = {"steps": 1, "loss": {"a": 1, "b": 2}, "weighting": {"name": "fixed", "x": 1}, "list": [1, 2]}
    changes = {"loss": {"b": 3}, "weighting": {"name": "other", "y": 2}, "list": [3], "new": {"c": None}}
    expected = {"steps": 1, "loss": {"a": 1, "b": 3}, "weighting": {"name": "other", "y": 2}, "list": [3]}
    assert merged(spec, changes) == {**expected, "new": {"c": None}}
    assert spec["loss"] == {"a": 1, "b": 2}


def test_the_best_is_on_the_front_and_counts_places_in_the_range() -> None:
    def kept(step: int, on_front: bool, **objectives: float) -> Checkpoint:
        return Checkpoint(step=step, path="", digest="", on_front=on_front, metrics={"objectives": objectives})

    ranges = {"a": (0.0, 1.0), "b": (0.0, 100.0)}
    found = [kept(1, True, a=0.9, b=10), kept(2, True, a=0.2, b=50), kept(3, False, a=1, b=100), kept(4, True)]
    assert best_step(found, ranges, {"a": 0.5, "b": 0.5}) == 1
    assert best_step(found, ranges, {"a": 0.0, "b": 1.0}) == 2
    assert best_step(found[2:], ranges, {"a": 0.0, "b": 1.0}) is None


def test_a_lineage_is_read_from_the_metadata() -> None:
    metadata = {"equipoise.parent": "job-1", "equipoise.parent_step": "40"}
    assert lineage({"metadata": metadata}) == {"parent": "job-1", "step": 40}
    for other in ({}, {"metadata": {}}, {"metadata": {**metadata, "equipoise.parent_step": "x"}}):
        assert lineage(other) is None


def test_the_first_plan_of_a_key_is_everyones_for_a_day(tmp_path: Path) -> None:
    path = plan_path(tmp_path, "owner", "job-1", "key")
    assert kept_plan(path, {"a": 1}) is None
    first = keep_plan(path, {"a": 1}, {"jobs": ["x"]})
    assert keep_plan(path, {"a": 1}, {"jobs": ["y"]}) == kept_plan(path, {"a": 1}) == first
    with pytest.raises(PlanConflict):
        kept_plan(path, {"a": 2})
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    os.utime(path, (0, 0))
    keep_plan(plan_path(tmp_path, "owner", "job-1", "other"), {}, {})
    assert not path.exists()
    assert len({plan_path(tmp_path, *names) for names in (("a", "bc", "d"), ("ab", "c", "d"), ("a", "b", "cd"))}) == 3
