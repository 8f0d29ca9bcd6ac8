"""Where a fork starts, what it changes, and what is kept of a plan."""

import errno
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import references
from orchestrator.comparison import TooManyPoints, compared, front_as_told
from orchestrator.fork_copies import REFERENCES, drop_orphans, forking, is_full
from orchestrator.fork_plans import PlanConflict, keep_answer, keep_plan, kept_answer, kept_plan, plan_path
from orchestrator.lineage import best_step, holds_back_trained, merged, steered
from orchestrator.specs.data import FilesData
from orchestrator.state.redis_calls import connect
from orchestrator.state.states import JobStatus
from orchestrator.state.store import Checkpoint, JobStore
from orchestrator.steering import initial_steering
from orchestrator.storage.recovery import GOES_ON, keep_document, keep_ending
from policies.pareto import hypervolume
from policies.places import Scale
from tests.loop_fakes import make_spec


def test_changes_are_merged_branch_by_branch() -> None:
    spec = {"steps": 1, "loss": {"a": 1, "b": 2}, "weighting": {"name": "fixed", "x": 1}, "list": [1, 2]}
    changes = {"loss": {"b": 3}, "weighting": {"name": "other", "y": 2}, "list": [3], "new": {"c": None}}
    expected = {"steps": 1, "loss": {"a": 1, "b": 3}, "weighting": {"name": "other", "y": 2}, "list": [3]}
    assert merged(spec, changes) == {**expected, "new": {"c": None}}
    assert spec["loss"] == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("train", "validation", "fork", "expected"),
    [
        ("a", {"share": 0.1, "seed": 3}, {"share": 0.1, "seed": 3}, False),
        ("a", {"share": 0.1, "seed": 3}, {"share": 0.05, "seed": 3}, False),  # some of the same
        ("a", {"share": 0.1, "seed": 3}, {"share": 0.2, "seed": 3}, True),
        ("a", {"share": 0.1, "seed": 3}, {"share": 0.1, "seed": 4}, True),
        ("a", "v", {"share": 0.1, "seed": 3}, True),
        (["b", "a"], ["v"], {"share": 0.1, "seed": 3}, True),
        ("b", "v", {"share": 0.1, "seed": 3}, False),  # other prompts
        ("a", "v", "w", False),
    ],
)
def test_a_fork_holds_back_what_no_ancestor_learnt(train: Any, validation: Any, fork: Any, expected: bool) -> None:
    data = FilesData.model_validate({"train": "a", "validation": fork})
    ancestor = {"data": {"type": "files", "train": train, "validation": validation}}
    assert holds_back_trained(data, ancestor) is expected
    assert not holds_back_trained(data, {"data": {"type": "quickstart", "train": 100}})


def test_the_best_is_on_the_front_and_counts_places_in_the_range() -> None:
    def kept(step: int, on_front: bool, **objectives: float) -> Checkpoint:
        return Checkpoint(step=step, path="", digest="", on_front=on_front, metrics={"objectives": objectives})

    scales = {"a": Scale(low=0, high=1), "b": Scale(low=0, high=100)}
    found = [kept(1, True, a=0.9, b=10), kept(2, True, a=0.2, b=50), kept(3, False, a=1, b=100), kept(4, True)]
    assert best_step(found, scales, {"a": 0.5, "b": 0.5}) == 1
    assert best_step(found, scales, {"a": 0.0, "b": 1.0}) == 2
    assert best_step(found[2:], scales, {"a": 0.0, "b": 1.0}) is None
    smaller = {**scales, "b": Scale(low=0, high=100, better="smaller")}
    assert best_step(found, smaller, {"a": 0.0, "b": 1.0}) == 1
    found[1].metrics["places"] = {"a": 0.2, "b": 0.0}  # what the job's own archive says of it goes first
    assert best_step(found, scales, {"a": 0.0, "b": 1.0}) == 1


@pytest.mark.parametrize("reference", [None, 0.2])
def test_a_front_of_an_older_job_has_its_first_policy_and_the_corner_apart(reference: float | None) -> None:
    objectives = [{"name": "a", "range": [-1.0, 4.0]}, {"name": "b", "reference": reference}]
    first, corner = {"a": 0.4, "b": 0.7}, {"a": -1.0, "b": reference or 0.0}
    older = {"points": [{"step": 0, "objectives": first}], "reference": first}
    told = front_as_told(older, {"objectives": objectives})
    assert told == {**older, "reference": corner, "initial": first}
    assert front_as_told(told, {"objectives": []}) == told


def test_a_full_disk_is_told_from_other_failures() -> None:
    """Also in what copytree gathers from many files."""
    full, gone = OSError(errno.ENOSPC, "No space left"), OSError(errno.ENOENT, "No such file")
    assert is_full(full)
    assert not is_full(gone)
    assert is_full(shutil.Error([("a", "b", str(gone)), ("a", "c", str(full))]))
    assert not is_full(shutil.Error([("a", "b", str(gone))]))


@pytest.mark.parametrize("objectives", [5, 7])
def test_a_comparison_of_many_points_is_approximated_and_stays_quick(objectives: int) -> None:
    """Exactly, 1,500 points in 5 objectives take half a second, and in 7 minutes."""
    names = [f"o{i}" for i in range(objectives)]
    scale = {name: [0.0, 1.0, 0.0] for name in names}
    values = np.abs(np.random.default_rng(0).normal(size=(1500, objectives)))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    points = [
        {"step": i, "collapsed": False, "objectives": dict(zip(names, map(float, row), strict=True))}
        for i, row in enumerate(values)
    ]
    found = compared(scale, {"a": points[:1490], "b": points[1490:], "c": []})
    assert found["hypervolume"] >= found["jobs"]["a"]["hypervolume"] > found["jobs"]["b"]["hypervolume"] > 0
    assert len(found["front"]) == 1500
    assert found["jobs"]["c"]["adds"] == 0
    if objectives == 5:  # near the exact one
        few = compared(scale, {"a": points[:900]})["hypervolume"]
        assert few == pytest.approx(hypervolume(values[:900], exact=False), rel=0.01)
    with pytest.raises(TooManyPoints):
        compared(scale, {"a": points, "b": points, "c": points})


def test_what_a_run_goes_on_with_has_the_names_that_its_driver_reads() -> None:
    assert REFERENCES == references.FILE


def test_only_copies_that_are_nobodys_are_dropped(redis_url: str, tmp_path: Path) -> None:
    with connect(redis_url) as client:
        store = JobStore(client, owner=f"orphans-{uuid.uuid4().hex}")
        other = store.of_owner(f"orphans-{uuid.uuid4().hex}")
        names = ("orphan", "planned", "mine", "theirs", "named", "trained")
        ids = {name: f"job-{uuid.uuid4().hex[:12]}" for name in names}
        for job_id in ids.values():
            (tmp_path / "jobs" / job_id / "init").mkdir(parents=True)
            (tmp_path / "jobs" / job_id / "init" / "config.json").write_text("{}")
        keep_document(tmp_path / "jobs" / ids["trained"], owner=store.owner, spec="{}")
        (tmp_path / "jobs" / "job-half" / ".init-x").mkdir(parents=True)
        for name in ("job-half-run", "job-run"):  # a fork that goes on, and a job whose document is lost
            (tmp_path / "jobs" / name / "checkpoints" / "step-000001").mkdir(parents=True)
        (tmp_path / "jobs" / "job-half-run" / GOES_ON).touch()
        for folder in ("data", ".data-x"):
            (tmp_path / "jobs" / "job-half-run" / folder).mkdir()
        store.submit("{}", name="x", job_id=ids["trained"], steering={})
        store.submit("{}", name="x", job_id=ids["mine"], steering={})
        other.submit("{}", name="x", job_id=ids["theirs"], steering={})
        named = json.dumps({"init_checkpoint": f"{tmp_path}/jobs/{ids['named']}/init"})
        other.submit(named, name="x", job_id=f"job-{uuid.uuid4().hex[:12]}", steering={})
        path = plan_path(tmp_path, store.owner, ids["trained"], "key")
        plan = keep_plan(path, {}, {"jobs": [{"id": ids["planned"]}]})
        keep_answer(path, plan, {"data": []})

        assert drop_orphans(tmp_path, store, older_than_s=3600) == []
        with forking(tmp_path):
            assert drop_orphans(tmp_path, store, older_than_s=0) == []
        assert set(drop_orphans(tmp_path, store, older_than_s=0)) == {ids["orphan"], "job-half", "job-half-run"}
        left = {path.name for path in (tmp_path / "jobs").iterdir()}
        assert left == {*ids.values(), "job-run"} - {ids["orphan"]}
        assert drop_orphans(tmp_path / "none", store, older_than_s=0) == []
        os.utime(path, (0, 0))  # nobody can ask for it again
        assert drop_orphans(tmp_path, store, older_than_s=0) == [ids["planned"]]


@pytest.mark.parametrize("lost", ["all", "ended", "one"])
def test_a_redis_that_lost_jobs_takes_no_copy_of_a_fork_that_waits(redis_url: str, tmp_path: Path, lost: str) -> None:
    with connect(redis_url) as client:
        store = JobStore(client, owner=f"orphans-{uuid.uuid4().hex}")
        known, parent, fork = (f"job-{uuid.uuid4().hex[:12]}" for _ in range(3))
        (tmp_path / "jobs" / fork / "init").mkdir(parents=True)
        for job_id in (known, parent):
            (tmp_path / "jobs" / job_id).mkdir()
            keep_document(tmp_path / "jobs" / job_id, owner=store.owner, spec="{}")
        if lost == "one":
            store.submit("{}", name="x", job_id=known, steering={})
        if lost == "ended":
            for job_id in (known, parent):
                keep_ending(tmp_path / "jobs" / job_id, JobStatus.SUCCEEDED)
        assert drop_orphans(tmp_path, store, older_than_s=0) == []


def test_the_first_answer_to_a_plan_is_everyones_and_no_other_plans(tmp_path: Path) -> None:
    path = plan_path(tmp_path, "owner", "job-1", "key")
    plan, next_plan = ({"jobs": [{"id": job_id}]} for job_id in ("x", "y"))
    keep_plan(path, {}, plan)
    assert kept_answer(path, plan) is None
    assert keep_answer(path, plan, {"data": 1}) == keep_answer(path, plan, {"data": 2}) == {"data": 1}
    assert kept_answer(path, plan) == {"data": 1}
    assert kept_answer(path, next_plan) is None
    for file in path.parent.iterdir():
        os.utime(file, (0, 0))
    keep_plan(plan_path(tmp_path, "owner", "job-1", "other"), {}, {})
    assert kept_answer(path, plan) is None


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


def test_a_fork_begins_with_the_guardrails_that_hold() -> None:
    spec = make_spec(guardrails=[{"metric": "entropy", "min": 0.1}])
    steering = initial_steering(spec).model_dump(mode="json")
    assert steered(spec, steering)["guardrails"][0]["min"] == 0.1
    moved = {"metric": "loss", "min": None, "max": 3.0, "for_steps": 1, "action": "pause"}
    assert steered(spec, {**steering, "guardrails": [moved]})["guardrails"] == [moved]
    assert steered(spec, {**steering, "guardrails": None})["guardrails"][0]["min"] == 0.1
