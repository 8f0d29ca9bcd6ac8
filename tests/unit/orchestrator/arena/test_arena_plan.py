"""Which runs there are: entries, grids, tasks, order, and what makes a run the same as another."""

import itertools
from typing import Any

import pytest

from orchestrator.arena.entries import entries, grid
from orchestrator.arena.plan import Planned, digest, plan
from orchestrator.arena.protocol import PRESETS, VERSION
from orchestrator.arena.tasks import TASKS
from orchestrator.spec import JobSpec
from orchestrator.specs.estimators import BuiltInEstimator
from orchestrator.specs.weightings import BuiltInWeighting

FULL = PRESETS["full"]


def run_of(entry: str, task: str = "sums3", seed: int = 0) -> Planned:
    found = {e.name: e for e in entries(len(TASKS[task].objectives))}[entry]
    return Planned(task=TASKS[task], entry=found, preset=FULL, seed=seed, steps=40)


def mark(planned: Planned, runs: Any = ()) -> str:
    spec = planned.spec(runs)
    assert spec is not None
    return digest(spec, planned.task, planned.policy_seed)


def test_every_rule_takes_part_but_those_that_are_a_persons_plan_or_need_an_option() -> None:
    names = {cls.model_fields["name"].default for cls in BuiltInWeighting.__args__}
    assert names - {entry.weighting["name"] for entry in entries(3)} == {"schedule"}
    estimators = {cls.model_fields["name"].default for cls in BuiltInEstimator.__args__}
    assert estimators - {entry.estimator for entry in entries(3)} == {"cond_gdpo"}  # has a condition to choose


@pytest.mark.parametrize("task", TASKS.values(), ids=str)
def test_every_entry_is_a_job_of_every_task(task: Any) -> None:
    found = entries(len(task.objectives))
    assert len({entry.name for entry in found}) == len(found)
    for entry in found:
        targets = {o["name"]: o["range"][0] for o in task.objectives[1:]} if entry.targets_from_statics else {}
        spec = task.spec(entry, FULL, seed=3, steps=40, targets=targets)
        assert (spec.estimator.name, spec.weighting.name) == (entry.estimator, entry.weighting["name"])
        assert all(o.reference == o.range[0] for o in spec.objectives)


@pytest.mark.parametrize(("objectives", "points"), [(2, 4), (3, 9), (4, 7), (5, 9)])
def test_the_grid_has_other_weights_than_the_centre_and_none_twice(objectives: int, points: int) -> None:
    found = list(grid(objectives))
    assert len(found) == points
    shares = {tuple(round(part / sum(row), 6) for part in row) for row in found}
    assert len(shares) == points
    assert all(len(row) == objectives and min(row) > 0 and len(set(row)) > 1 for row in found)
    if objectives <= 3:  # no order of the objectives is preferred
        assert {tuple(row) for given in found for row in itertools.permutations(given)} == set(found)


def test_statics_differ_in_their_weights_alone() -> None:
    heavy, centre = run_of("gdpo/static(4,1,1)").spec(()), run_of("gdpo/fixed").spec(())
    assert heavy is not None
    assert centre is not None
    assert heavy.preference == pytest.approx({"accuracy": 2 / 3, "conciseness": 1 / 6, "clarity": 1 / 6})
    assert len(set(centre.preference.values())) == 1  # exactly: nearly equal weights invent a signal under grpo
    changed = {key for key in heavy.model_dump() if getattr(heavy, key) != getattr(centre, key)}
    assert changed == {"name", "objectives"}


def test_seed_by_seed_and_task_by_task() -> None:
    found = plan(FULL, rules=["saw", "grpo/fixed"], seeds=2)
    assert [(r.seed, r.task.name, r.entry.name) for r in found] == [
        (seed, task, entry)
        for seed in (0, 1)
        for task in ("sums3", "sums4", "sums5")
        for entry in ("grpo/fixed", "gdpo/saw")
    ]  # fmt: skip


def test_seeds_begin_where_they_are_told_to() -> None:
    whole = plan(FULL, rules=["saw"], seeds=5)
    assert plan(FULL, rules=["saw"], seeds=3) + plan(FULL, rules=["saw"], seeds=2, first_seed=3) == whole


def test_what_takes_its_targets_from_others_comes_last_of_its_task() -> None:
    found = plan(FULL, tasks=["sums3"], seeds=1)
    assert found[-1].entry.name == "gdpo/lagrangian"
    assert len(found) == len(entries(3))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rules": ["gdpo/gradent"]}, "--rules: no entry 'gdpo/gradent'.*gdpo/gradient"),
        ({"tasks": ["sums6"]}, "--tasks: no task 'sums6'.*sums"),
        ({"tasks": ["held_out"]}, "--tasks: held_out is kept for the end.*--held-out"),
    ],
)
def test_what_is_not_there_is_named(options: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan(FULL, **options)


def test_the_held_out_task_runs_when_it_is_asked_for_alone() -> None:
    assert {run.task.name for run in plan(FULL, seeds=1)} == {"sums3", "sums4", "sums5"}
    assert {run.task.name for run in plan(FULL, seeds=1, held_out=True)} == {"held_out"}


# ------------------------------------------------------------------------------------------------------------ digests


def test_a_digest_is_of_what_decides_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = run_of("gdpo/saw")
    spec = planned.spec(())
    assert spec is not None
    first = digest(spec, planned.task, 0)
    others = {
        digest(spec.model_copy(update={"steps": 41}), planned.task, 0),
        digest(spec.model_copy(update={"seed": 1}), planned.task, 0),
        digest(spec.model_copy(update={"optimizer": spec.optimizer.model_copy(update={"lr": 2e-4})}), planned.task, 0),
        digest(spec, planned.task, 1),  # another policy
        digest(spec, TASKS["held_out"], 0),  # another recipe
        mark(run_of("gdpo/dara")),
    }
    monkeypatch.setattr("orchestrator.arena.plan.VERSION", VERSION + 1)
    others.add(digest(spec, planned.task, 0))
    assert len(others | {first}) == 8


def test_a_rule_that_changed_has_another_digest_and_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: mark(run_of(name)) for name in ("gdpo/saw", "softmin/dara", "gdpo/dara")}
    monkeypatch.setattr("orchestrator.arena.protocol.RULES", {"dara": 2})
    after = {name: mark(run_of(name)) for name in before}
    assert {name for name in before if before[name] != after[name]} == {"softmin/dara", "gdpo/dara"}
    monkeypatch.setattr("orchestrator.arena.protocol.RULES", {"dara": 2, "softmin": 2})
    assert mark(run_of("softmin/dara")) not in (before["softmin/dara"], after["softmin/dara"])
    assert mark(run_of("gdpo/dara")) == after["gdpo/dara"]


def test_a_digest_is_not_of_names_and_threads() -> None:
    planned = run_of("gdpo/saw")
    spec = planned.spec(())
    assert spec is not None
    renamed = spec.model_copy(update={"name": "x", "metadata": {"a": "b"}, "priority": 3})
    threads = spec.model_copy(update={"resources": spec.resources.model_copy(update={"learner_threads": 7})})
    assert {digest(s, planned.task, 0) for s in (spec, renamed, threads)} == {digest(spec, planned.task, 0)}


def test_a_digest_is_not_of_what_a_document_leaves_to_specs() -> None:
    """A field that specs get tomorrow leaves stored runs what they are."""
    planned = run_of("gdpo/saw")
    spec = planned.spec(())
    assert spec is not None
    assert digest(spec, planned.task, 0) == "8cf63f7042282ab9", "stored runs would be lost: is that meant?"


def test_what_the_protocol_holds_where_it_was_is_in_no_digest() -> None:
    """A mode is: an entry that names one has runs of its own."""
    planned = run_of("gdpo/gradient")
    spec = planned.spec(())
    assert spec is not None
    assert (spec.gramian.response_share, spec.optimizer.share_prompts) == (1.0, False)
    assert {"gramian", "optimizer"} <= spec.model_fields_set
    unsaid = JobSpec.model_validate(spec.model_dump(exclude_unset=True, exclude={"gramian"}))
    assert unsaid.gramian.response_share < 1
    assert digest(unsaid, planned.task, 0) == digest(spec, planned.task, 0)
    sketched = JobSpec.model_validate(spec.model_dump(exclude_unset=True) | {"gramian": {"mode": "sketch"}})
    assert digest(sketched, planned.task, 0) != digest(spec, planned.task, 0)


# ------------------------------------------------------------------------------------------------------------ targets


def static_runs(values: dict[str, list[tuple[float, float, float]]], seed: int = 0) -> list[dict[str, Any]]:
    """Finished static runs of gdpo on sums3: all of them, those of `values` with such validated policies."""
    runs = []
    for entry in entries(3):
        if entry.role != "static" or entry.estimator != "gdpo":
            continue
        points = values.get(entry.name, [(0.1, 0.1, 0.1)])
        names = ("accuracy", "conciseness", "clarity")
        validation = [{"objectives": dict(zip(names, point, strict=True))} for point in points]
        runs.append(
            {
                "entry": entry.name,
                "digest": mark(run_of(entry.name, seed=seed)),
                "status": "done",
                "validation": validation,
            }
        )
    return runs


def test_lagrangian_gets_what_the_best_static_policy_reached_in_all_but_the_first_objective() -> None:
    planned = run_of("gdpo/lagrangian")
    runs = static_runs({"gdpo/static(4,1,1)": [(0.9, 0.2, 0.9), (0.8, 0.6, 0.9)], "gdpo/fixed": [(0.2, 0.9, 0.9)]})
    spec = planned.spec(runs)
    assert spec is not None
    found = {o.name: o.target and (o.target.op, o.target.value) for o in spec.objectives}
    assert found == {"accuracy": None, "conciseness": (">=", 0.6), "clarity": (">=", 0.9)}
    assert mark(planned, runs) != mark(planned, static_runs({"gdpo/fixed": [(0.5, 0.5, 0.5)]}))


def test_lagrangian_waits_for_every_static_run_of_its_own_seed() -> None:
    planned, runs = run_of("gdpo/lagrangian"), static_runs({})
    assert planned.spec(runs[:-1]) is None
    assert planned.spec(static_runs({}, seed=1)) is None
    assert planned.spec([*runs[:-1], runs[-1] | {"status": "failed", "validation": []}]) is not None
    assert planned.spec([run | {"status": "failed"} for run in runs]) is None
