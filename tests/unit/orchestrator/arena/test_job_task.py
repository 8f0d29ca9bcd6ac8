"""A person's own job as a task of the arena: what stays of it, what it must have, and what makes its runs the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.arena.conduct import heading
from orchestrator.arena.entries import entries
from orchestrator.arena.job_task import JobTask, job_task
from orchestrator.arena.plan import Planned, digest, plan
from orchestrator.arena.protocol import PRESETS
from orchestrator.spec import parse_spec
from orchestrator.spec_errors import SpecError
from orchestrator.specs.data import FilesData

SMOKE = PRESETS["smoke"]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    named = {}
    for split, rows in (("train", 6), ("validation", 4), ("test", 3)):
        path = tmp_path / f"{split}.jsonl"
        path.write_text("".join(json.dumps({"prompt": f"{split} {i}", "answer": "1"}) + "\n" for i in range(rows)))
        named[split] = str(path)
    return named


def document(files: dict[str, str], **changes: Any) -> dict[str, Any]:
    return {
        "name": "my job",
        "steps": 12,
        "seed": 5,
        "policy": {"model": "someone/model", "dtype": "float32"},
        "data": {"type": "files", **files},
        "objectives": [
            {"name": "accuracy", "reward": {"name": "math"}, "weight": 3, "bounds": [0.5, 1], "target": {"value": 0.8}},
            {"name": "brevity", "reward": {"name": "length"}, "range": [-500, 0], "transform": {"name": "zscore"}},
        ],
        "rollout": {"prompts_per_step": 4, "mode": "overlapped", "temperature": 0.8},
        "loss": {"kl_coef": 0.1},
        "evaluation": {"every": 3, "prompts": 2},
        "steering": {"mode": "manual"},
        "guardrails": [{"metric": "kl", "max": 1.0}],
        "gold": {"reward": {"name": "math"}},
        **changes,
    }


def task_of(files: dict[str, str], **changes: Any) -> JobTask:
    return job_task(parse_spec(document(files, **changes)))


def run_of(task: JobTask, entry: str, seed: int = 0) -> Planned:
    (planned,) = plan(SMOKE, own=task, rules=[entry], seeds=1, first_seed=seed)
    return planned


def mark(planned: Planned) -> str:
    spec = planned.spec(())
    assert spec is not None
    return digest(spec, planned.task, planned.policy_seed)


def test_further_sets_are_left_out(files: dict[str, str], tmp_path: Path) -> None:
    """They decide nothing: a run is the same with and without them."""
    (tmp_path / "more.jsonl").write_text(json.dumps({"prompt": "1", "answer": "1"}) + "\n")
    data = {"type": "files", **files, "sets": {"more": str(tmp_path / "more.jsonl")}}
    with_sets, without = (
        run_of(task_of(files, data=found), "gdpo/saw") for found in (data, {"type": "files", **files})
    )
    assert mark(with_sets) == mark(without)
    spec = with_sets.spec(())
    assert spec is not None
    assert isinstance(spec.data, FilesData)
    assert spec.data.sets == {}


def test_a_run_is_the_job_but_for_the_rule(files: dict[str, str]) -> None:
    planned = run_of(task_of(files), "dr_grpo/aggregate", seed=2)
    spec = planned.spec(())
    assert spec is not None
    assert (spec.name, spec.steps, spec.seed) == ("arena my job dr_grpo/aggregate seed 2", 12, 2)
    assert (spec.estimator.name, spec.weighting.name) == ("dr_grpo", "fixed")
    assert (spec.loss.aggregation, spec.loss.kl_coef) == ("constant", 0.1)
    assert (spec.rollout.prompts_per_step, spec.rollout.mode, spec.rollout.temperature) == (4, "sync", 0.8)
    assert (spec.steering.mode, spec.guardrails, spec.gold, spec.collapse.action) == ("auto", (), None, "off")
    accuracy, brevity = spec.objectives
    assert (accuracy.weight, accuracy.bounds, accuracy.target) == (brevity.weight, (0.0, 1.0), None)
    assert [(o.range, o.reference) for o in spec.objectives] == [((0.0, 1.0), 0.0), ((-500.0, 0.0), -500.0)]
    assert brevity.transform.name == "zscore"
    told = heading(planned, spec)
    assert (told["steps"], told["conditions"]) == (
        12,
        {
            "protocol version": 1, "prompts a step": 4, "rollouts a prompt": 8, "validation prompts": 2,
            "steps between evaluations": 3, "a policy for each seed": False,
        },
    )  # fmt: skip


def test_a_run_is_as_patient_as_the_job_and_no_less_the_same(files: dict[str, str]) -> None:
    patient = run_of(task_of(files, resources={"reward_timeout_s": 600, "learner_threads": 7}), "gdpo/saw")
    spec = patient.spec(())
    assert spec is not None
    assert (spec.resources.reward_timeout_s, spec.resources.learner_threads) == (600, None)
    assert mark(patient) == mark(run_of(task_of(files), "gdpo/saw"))


def test_every_entry_is_there_and_steps_can_be_chosen(files: dict[str, str]) -> None:
    task = task_of(files)
    found = plan(PRESETS["full"], own=task, seeds=1, steps=7)
    assert {planned.entry.name for planned in found} == {entry.name for entry in entries(2)}
    assert {planned.steps for planned in found} == {7}


def test_an_entry_that_does_not_fit_is_left_out_or_named(files: dict[str, str]) -> None:
    alone = {"rollout": {"prompts_per_step": 4, "rollouts_per_prompt": 1}}
    base = document(files, estimator={"name": "reinforce"}, **alone)
    task = job_task(parse_spec(base))
    left_out: list[str] = []
    found = plan(SMOKE, own=task, rules=["*"], seeds=1, on_left_out=left_out.append)
    assert {planned.entry.estimator for planned in found} == {"reinforce"}
    assert any(
        line.startswith("gdpo/fixed can't take part in my job: rollout.rollouts_per_prompt") for line in left_out
    )
    with pytest.raises(ValueError, match=r"^--rules: gdpo/fixed can't take part in my job"):
        plan(SMOKE, own=task, rules=["gdpo/fixed"])


def test_runs_are_the_same_while_the_job_and_its_files_are(files: dict[str, str]) -> None:
    first = mark(run_of(task_of(files), "gdpo/saw"))
    assert mark(run_of(task_of(files, name="renamed", priority=3), "gdpo/saw")) == first
    assert mark(run_of(task_of(files, loss={"kl_coef": 0.2}), "gdpo/saw")) != first
    with Path(files["train"]).open("a") as file:
        file.write(json.dumps({"prompt": "another", "answer": "1"}) + "\n")
    assert mark(run_of(task_of(files), "gdpo/saw")) != first


def test_the_quickstart_has_a_policy_for_each_seed(files: dict[str, str]) -> None:
    quickstart = {"policy": {"model": "quickstart"}, "data": {"type": "quickstart", "test": 7, "validation": 9}}
    task = task_of(files, rollout={"max_tokens": 64}, evaluation={}, **quickstart)
    full = plan(PRESETS["full"], own=task, rules=["gdpo/saw"], seeds=2)
    assert [planned.policy_seed for planned in full] == [0, 1]
    assert len({mark(planned) for planned in full}) == 2
    assert (task.own["validation"], task.own["test"]) == (9, 7)


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"name": "sums3"}, "name", "no task of the arena"),
        ({"name": "x" * 41}, "name", "at most 40 characters"),
        ({"objectives": [{"name": "a", "reward": {"name": "math"}}]}, "objectives", "at least two"),
        ({"data": {"test": None}}, "data.test", "name a test split"),
        ({"data": {"test": "/no/such.jsonl"}}, "data.test", "no such file"),
        ({"resources": {"device": "cuda"}}, "resources.device", "use auto or cpu"),
        (
            {"objectives": [{"name": "a", "reward": {"name": "math"}}, {"name": "b", "reward": {"name": "length"}}]},
            "objectives.1.range",
            "'length' has no bounds of its own; give the lowest and highest",
        ),
    ],
)
def test_what_a_task_needs(files: dict[str, str], changes: dict[str, Any], field: str, words: str) -> None:
    if "data" in changes:
        changes = {"data": {"type": "files", **files, **changes["data"]}}
    with pytest.raises(SpecError) as caught:
        task_of(files, **changes)
    assert [name for name, _ in caught.value.problems] == [field]
    assert words in caught.value.problems[0][1]
