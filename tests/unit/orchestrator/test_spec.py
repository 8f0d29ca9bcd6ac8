"""A spec is read completely or refused with one clear line for each wrong field."""

import copy
import inspect
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from orchestrator import spec_yaml
from orchestrator.spec import JobSpec, check_new, load_spec, parse_job, parse_spec, scaled
from orchestrator.spec_errors import SpecError, nearest
from orchestrator.specs.base import RuleSpec
from orchestrator.specs.estimators import BuiltInEstimator
from orchestrator.specs.sampling import BudgetSpec, TailSpec, ZeroSignalSpec
from orchestrator.specs.transforms import TransformSpec
from orchestrator.specs.weightings import BuiltInWeighting

PROJECT = Path(__file__).parents[3]
EXAMPLES = sorted((PROJECT / "deploy" / "jobs").glob("*.yaml"))
FILES = {"type": "files", "train": "train.jsonl", "validation": "validation.jsonl"}
ABSENT = object()
TARGET = {"value": 0.8}
REINFORCE = {"name": "reinforce"}
ESTIMATOR_NAMES = [
    "cond_gdpo", "corr_grpo", "dr_grpo", "dvao", "gd2po", "gdpo", "grpo", "hvo", "mo_grpo", "reinforce", "rloo",
    "softmin",
]  # fmt: skip


def document(**changes: Any) -> dict[str, Any]:
    """A small valid document with some places changed, named by path: objectives__0__weight=3."""
    whole = {
        "name": "small",
        "steps": 4,
        "policy": {"model": "some/model"},
        "data": copy.deepcopy(FILES),
        "objectives": [
            {"name": "accuracy", "reward": {"name": "math"}, "weight": 3.0},
            {"name": "brevity", "reward": {"name": "conciseness"}},
        ],
    }
    for path, value in changes.items():
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("__"))
        place: Any = whole
        for part in parents:
            place = place[part] if isinstance(part, int) else place.setdefault(part, {})
        if value is ABSENT:
            del place[last]
        else:
            place[last] = value
    return whole


def problems(changed: Any) -> dict[str, str]:
    """What parse_spec says, by path. Each is one line."""
    with pytest.raises(SpecError) as caught:
        parse_spec(changed)
    assert str(caught.value).count("\n") == len(caught.value.problems) - 1
    return dict(caught.value.problems)


def models(kind: Any = JobSpec) -> set[type[BaseModel]]:
    """Every model in the tree."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {kind}.union(*(models(field.annotation) for field in kind.model_fields.values()))
    return set().union(*(models(part) for part in get_args(kind)))


def numeric(annotation: Any) -> bool:
    if get_args(annotation):
        return any(numeric(part) for part in get_args(annotation))
    return annotation in (int, float)


# ------------------------------------------------------------------------ good


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_load_and_survive_json(path: Path) -> None:
    spec = load_spec(path)
    assert parse_job(json.loads(spec.to_json())) == spec
    assert parse_job(yaml.safe_load(spec.to_json())) == spec


@given(
    weights=st.lists(st.floats(0, 1e6), min_size=1, max_size=6).filter(any),
    steps=st.integers(1, 1000),
    temperature=st.floats(0.01, 5),
    estimator=st.sampled_from([name for name in ESTIMATOR_NAMES if name != "cond_gdpo"]),
    weighting=st.sampled_from(["fixed", "hypervolume", "hv_gradient", "saw", "dara", "pama", "tchebycheff"]),
)
def test_json_round_trip(weights, steps, temperature, estimator, weighting) -> None:
    objectives = [{"name": f"o{i}", "reward": {"name": "math"}, "weight": weight} for i, weight in enumerate(weights)]
    changed = document(
        objectives=objectives,
        steps=steps,
        rollout__temperature=temperature,
        estimator__name=estimator,
        weighting__name=weighting,
    )
    spec = parse_spec(changed)
    assert parse_spec(json.loads(spec.to_json())) == spec
    assert math.isclose(sum(spec.preference.values()), 1)


def test_preference_is_scaled() -> None:
    assert parse_spec(document()).preference == {"accuracy": 0.75, "brevity": 0.25}


def test_names_in_the_order_of_the_document() -> None:
    assert parse_spec(document()).objective_names == ("accuracy", "brevity")


def test_rules_that_are_not_named() -> None:
    spec = parse_spec(document())
    assert (spec.estimator.name, spec.weighting.name) == ("gdpo", "hv_gradient")
    written = json.loads(spec.to_json())  # what a job is stored as: it keeps its rules whatever the defaults become
    assert (written["estimator"]["name"], written["weighting"]["name"]) == ("gdpo", "hv_gradient")


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_spec(document()).steps = 5


# ------------------------------------------------------------- unknown and misspelt


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("stepz", "steps"),
        ("policy.modle", "model"),
        ("data.trian", "train"),
        ("data.columns.anwser", "answer"),
        ("objectives.1.wieght", "weight"),
        ("objectives.0.reward.optoins", "options"),
        ("objectives.0.gate.at_leest", "at_least"),
        ("objectives.0.target.vaule", "value"),
        ("rollout.max_token", "max_tokens"),
        ("estimator.std_flor", "std_floor"),
        ("weighting.flor", "floor"),
        ("steering.mod", "mode"),
        ("loss.clip_hi", "clip_high"),
        ("optimizer.warmup_step", "warmup_steps"),
        ("evaluation.evry", "every"),
        ("checkpoints.evry", "every"),
        ("collapse.dorp", "drop"),
        ("resources.devise", "device"),
    ],
)
def test_a_misspelt_field_gets_the_nearest_name_and_its_path(path: str, right: str) -> None:
    changed = document(estimator={"name": "gdpo"}, weighting={"name": "gradient"}, data__columns={})
    changed["objectives"][0] |= {"gate": {"objective": "brevity", "at_least": 0}, "target": {"value": 1}}
    place: Any = changed
    *parents, last = path.split(".")
    for part in parents:
        place = place[int(part)] if part.isdigit() else place.setdefault(part, {})
    place[last] = 1
    assert problems(changed) == {path: f"unknown field, did you mean '{right}'?"}


def test_an_unknown_field_near_nothing_lists_the_fields() -> None:
    assert problems(document(checkpoints__xyz=1)) == {
        "checkpoints.xyz": "unknown field; fields are every, front, asynchronous"
    }


def test_the_fields_of_a_place_are_listed_once() -> None:
    found = problems(document(zzz=1, yyy=2, checkpoints__xyz=1, checkpoints__xyw=1) | {"zz.z": 1})
    assert [path for path, message in found.items() if message.startswith("unknown field; fields are ")] == [
        "checkpoints.xyz",
        "zzz",
    ]
    assert {found[path] for path in ("checkpoints.xyw", "yyy", "zz.z")} == {"unknown field"}


def test_fields_of_other_trainers_are_told_with_ours() -> None:
    """A GRPOConfig as YAML, a configuration of verl, whole and as one dotted key."""
    found = problems(
        document(
            learning_rate=1e-6,
            num_generations=8,
            reward_weights=[1.0],
            actor_rollout_ref={"rollout": {"n": 8, "name": "vllm"}, "actor": {"optim": {"lr": 1e-6}}},
            data__train_files="train.parquet",
        )
        | {"algorithm.adv_estimator": "grpo"}
    )
    assert found == {
        "learning_rate": "unknown field; here it is optimizer.lr",
        "num_generations": "unknown field; here it is rollout.rollouts_per_prompt",
        "reward_weights": "unknown field; here it is objectives, the weight of each; with weighting: {name: fixed} "
        "they stay as they are",
        "actor_rollout_ref.rollout.n": "unknown field; here it is rollout.rollouts_per_prompt",
        "actor_rollout_ref.rollout.name": "unknown field; there is none here: engines are always vLLM's, and go where "
        "GPUs are: a dry run tells",
        "actor_rollout_ref.actor.optim.lr": "unknown field; here it is optimizer.lr",
        "data.train_files": "unknown field; here it is data.train",
        "algorithm.adv_estimator": "unknown field; here it is estimator, such as {name: grpo}; {name: reinforce, "
        "baseline: group} for reinforce_plus_plus_baseline",
    }


def test_what_there_is_not_is_told_with_what_is_so_instead() -> None:
    """Of NeMo-RL, whose `policy` is one of ours too, and of an API's body."""
    policy = {"model": "org/m", "precision": "bfloat16", "optimizer": {"name": "AdamW", "kwargs": {"lr": 3e-7}}}
    method = {"type": "reinforcement", "reinforcement": {"hyperparameters": {"n_epochs": 2, "eval_interval": 5}}}
    found = problems(document(policy=policy, method=method, logger={"wandb_enabled": True}))
    assert {place: message.partition("; ")[2].partition(";")[0] for place, message in found.items()} == {
        "policy.precision": "here it is policy.dtype",
        "policy.optimizer.kwargs.lr": "here it is optimizer.lr",
        "method.reinforcement.hyperparameters.n_epochs": "here it is steps",
        "method.reinforcement.hyperparameters.eval_interval": "here it is evaluation.every",
        "logger": "there is none here: trackers are told from beside: equipoise follow JOB --wandb, --mlflow or "
        "--tensorboard",
    }


def test_every_wrong_field_is_named() -> None:
    found = problems(document(steps=0, polcy=1, objectives__0__weight=-1))
    assert set(found) == {"steps", "polcy", "objectives.0.weight"}


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"estimator": {"name": "gdop"}}, "estimator.name", "did you mean 'gdpo'?"),
        ({"estimator": {"name": "ppo"}}, "estimator.name", f"expected one of {', '.join(ESTIMATOR_NAMES)}"),
        ({"estimator": {}}, "estimator.name", f"expected one of {', '.join(ESTIMATOR_NAMES)}"),
        ({"estimator": "grpo"}, "estimator", "expected a mapping such as {name: grpo}"),
        ({"estimator": 3}, "estimator", f"expected a mapping such as {{name: {ESTIMATOR_NAMES[0]}}}"),
        ({"weighting": "gradeint"}, "weighting", "expected a mapping such as {name: gradient}"),
        ({"objectives__0__transform": "clip"}, "objectives.0.transform", "such as {name: clip}"),
        ({"sampling__zero_signal": "drop"}, "sampling.zero_signal", "such as {name: drop}"),
        ({"sampling__budget": "knapsack"}, "sampling.budget", "such as {name: knapsack}"),
        ({"data": "quickstart"}, "data", "expected a mapping such as {type: quickstart}"),
        ({"weighting": {"name": "gradent"}}, "weighting.name", "did you mean 'gradient'?"),
        ({"data": {"type": "file"}}, "data.type", "did you mean 'files'?"),
        ({"data": {"train": "x"}}, "data.type", "expected one of quickstart, files"),
        ({"policy": "some/model"}, "policy", "expected a mapping of fields: model"),
        ({"policy": ABSENT}, "policy", "Field required"),
        ({"name": "a" * 129}, "name", "at most 128"),
        ({"objectives__0__reward": {"name": "mth"}}, "objectives.0.reward.name", "did you mean 'math'?"),
        ({"objectives__0__reward__options": {"boxed": 1}}, "objectives.0.reward.options.boxed", "no such option; "),
        (
            {"objectives__1__reward": {"name": "conciseness", "options": {"max_tokens": 0, "free_tokens": "x"}}},
            "objectives.1.reward.options.max_tokens",
            "than or equal to 1; options.free_tokens: Input should",
        ),
        (
            {"objectives__1__reward": {"name": "length_within", "options": {"min_tokens": 9, "max_tokens": 8}}},
            "objectives.1.reward.options",
            "must not exceed max_tokens",
        ),
        ({"objectives__0__name": "two words"}, "objectives.0.name", "pattern"),
        ({"objectives": []}, "objectives", "at least 1"),
        ({"objectives__0__weight": -0.1}, "objectives.0.weight", "greater than or equal to 0"),
        ({"objectives__0__weight": math.nan}, "objectives.0.weight", "finite"),
        ({"objectives__0__weight": math.inf}, "objectives.0.weight", "finite"),
        ({"objectives__0__weight": -math.inf}, "objectives.0.weight", "greater|finite"),
        ({"objectives__0__weight": 0, "objectives__1__weight": 0}, "objectives", "at least one weight"),
        ({"objectives__0__weight": 1e308, "objectives__1__weight": 1e308}, "objectives", "too large"),
        ({"objectives__1__name": "accuracy"}, "objectives.1.name", "'accuracy' stands twice"),
        ({"objectives__0__gate": {"objective": "brevty", "at_least": 0}}, "objectives.0.gate.objective", "'brevity'?"),
        ({"objectives__1__gate": {"objective": "brevity", "at_least": 0}}, "objectives.1.gate.objective", "itself"),
        ({"objectives__0__gate": {"objective": "brevity", "at_least": math.nan}}, "objectives.0.gate.at_least", "fin"),
        ({"objectives__0__bounds": [0.6, 1], "objectives__1__bounds": [0.6, 1]}, "objectives", "floors sum to 1.2"),
        ({"objectives__0__bounds": [0, 0.2], "objectives__1__bounds": [0, 0.2]}, "objectives", "ceilings to 0.4"),
        ({"objectives__0__bounds": [0.6, 0.5]}, "objectives.0.bounds", "floor <= ceiling"),
        ({"objectives__0__bounds": [-0.1, 0.5]}, "objectives.0.bounds.0", "greater"),
        ({"objectives__0__range": [1, 1]}, "objectives.0.range", "lo < hi"),
        ({"objectives__0__range": [2, 1]}, "objectives.0.range", "lo < hi"),
        ({"objectives__0__range": [0, math.inf]}, "objectives.0.range.1", "finite"),
        ({"weighting": {"name": "gradient", "floor": 0.6}}, "weighting.floor", "more than 1"),
        ({"weighting": {"name": "gradient", "ceiling": 0.4}}, "weighting.ceiling", "less than 1"),
        ({"weighting": {"name": "gramian:mgd"}}, "weighting.name", "did you mean 'gramian:mgda'?"),
        ({"weighting": {"name": "gradient"}, "objectives__1": ABSENT}, "weighting.name", "at least 2"),
        ({"weighting": {"name": "gramian:upgrad"}, "objectives__1": ABSENT}, "weighting.name", "at least 2"),
        ({"weighting": {"name": "gramian:upgrad"}, "gramian__mode": "step_response"}, "gramian.mode", "use exact,"),
        ({"gramian__mode": "scetch"}, "gramian.mode", "'sketch'"),
        ({"rollout__top_k": -1}, "rollout.top_k", "greater than or equal to 0"),
        ({"rollout__min_p": 1.1}, "rollout.min_p", "less than or equal to 1"),
        ({"loss__ratio": "sentence"}, "loss.ratio", "'token' or 'sequence'"),
        ({"loss__dual_clip": 1}, "loss.dual_clip", "greater than 1"),
        ({"loss__dual_clip": math.inf}, "loss.dual_clip", "finite"),
        ({"loss": {"form": "cispo", "dual_clip": 3}}, "loss.dual_clip", "cispo keeps every token"),
        ({"loss": {"form": "cispo", "ratio": "sequence"}}, "loss.ratio", "cispo keeps every token"),
        ({"gramian__response_share": 0}, "gramian.response_share", "greater than 0"),
        ({"gramian__response_share": 1.01}, "gramian.response_share", "less than or equal to 1"),
        ({"gramian__response_share": math.nan}, "gramian.response_share", "finite"),
        ({"gramian__response_share": "half"}, "gramian.response_share", "number"),
        ({"weighting": {"name": "lagrangian"}}, "weighting.name", "needs a target on at least one"),
        (
            {"weighting": {"name": "lagrangian"}, "objectives__0__target": TARGET, "objectives__1__target": TARGET},
            "weighting.name",
            "an objective without a target",
        ),
        (
            {"weighting": {"name": "lagrangian", "lam_init": 6}, "objectives__0__target": TARGET},
            "weighting.lam_init",
            "more than lam_max",
        ),
        (
            {"weighting": {"name": "schedule", "points": [{"step": 0, "weights": {"accuracy": 1}}]}},
            "weighting.points.0.weights",
            "a weight for each of accuracy, brevity",
        ),
        (
            {"weighting": {"name": "schedule", "points": [{"step": 0, "weights": {"accuracy": 1, "brevty": 1}}]}},
            "weighting.points.0.weights",
            "got accuracy, brevty",
        ),
        ({"weighting": {"name": "schedule", "points": []}}, "weighting.points", "at least 1"),
        ({"weighting": {"name": "schedule"}}, "weighting.points", "Field required"),
        ({"objectives__0__reference": 1.0}, "objectives.0.reference", "no point of the range beats a higher one"),
        ({"objectives__0__reference": -0.1}, "objectives.0.reference", "lo <= reference < hi"),
        ({"estimator": {"name": "softmin", "kappa_start": 0}}, "estimator.kappa_start", "greater than or equal"),
        ({"estimator": {"name": "softmin", "kappa_end": -1}}, "estimator.kappa_end", "greater than or equal"),
        ({"estimator": {"name": "cond_gdpo", "at_least": 1}}, "estimator.condition", "Field required"),
        (
            {
                "weighting": {"name": "lagrangian"},
                "objectives__1__target": {"op": "<=", "value": 0.5},
                "objectives__1__gate": {"objective": "accuracy", "at_least": 1},
            },
            "objectives.1.gate",
            "may push 'brevity' down",
        ),
        (
            {
                "weighting": {"name": "lagrangian", "form": "equality"},
                "objectives__1__target": {"value": 0.5},
                "estimator": {"name": "cond_gdpo", "condition": "brevity", "at_least": 0.5},
            },
            "estimator.condition",
            "may push 'brevity' down",
        ),
        (
            {"estimator": {"name": "cond_gdpo", "condition": "acuracy", "at_least": 1}},
            "estimator.condition",
            "no objective 'acuracy'",
        ),
        ({"objectives__0__transform": {"name": "clipp"}}, "objectives.0.transform.name", "did you mean 'clip'?"),
        ({"objectives__0__transform": {"name": "clip"}}, "objectives.0.transform", "expected lo, hi or both"),
        ({"sampling__zero_signal": {"name": "dropp"}}, "sampling.zero_signal.name", "did you mean 'drop'?"),
        (
            {"sampling__zero_signal": {"name": "refill"}, "rollout__rollouts_per_prompt": 1, "estimator": REINFORCE},
            "sampling.zero_signal.name",
            "at least 2 rollouts",
        ),
        (
            {"sampling__budget": {"name": "knapsack", "objective": "acuracy"}},
            "sampling.budget.objective",
            "did you mean 'accuracy'?",
        ),
        (
            {"sampling__budget": {"name": "knapsack", "objective": "accuracy", "min_rollouts": 9}},
            "sampling.budget.min_rollouts",
            "more than the budget of 8",
        ),
        (
            {"sampling__budget": {"name": "knapsack", "objective": "accuracy", "max_rollouts": 4}},
            "sampling.budget.max_rollouts",
            "less than the budget of 8",
        ),
        ({"rollout__rollouts_per_prompt": 1}, "rollout.rollouts_per_prompt", "'reinforce' with the batch's baseline"),
        (
            {"rollout__rollouts_per_prompt": 1, "estimator": REINFORCE | {"baseline": "group"}},
            "rollout.rollouts_per_prompt",
            "estimator 'reinforce' compares the rollouts of a prompt and needs at least 2",
        ),
        (
            {"objectives__1__reward__options": {"free_tokens": 64}, "rollout__max_tokens": 64},
            "objectives.1.reward.options.free_tokens",
            "below rollout.max_tokens, which is 64",
        ),
        ({"optimizer__minibatches": 300}, "optimizer.minibatches", "more than there are rollouts"),
        ({"policy__lora": {"rank": 0}}, "policy.lora.rank", "greater than or equal to 1"),
        ({"policy__lora": {"rnk": 4}}, "policy.lora.rnk", "did you mean 'rank'?"),
        ({"policy__lora": {"alpha": 0}}, "policy.lora.alpha", "greater than 0"),
        ({"policy__lora": {"targets": []}}, "policy.lora.targets", "name a layer at least"),
        ({"policy__lora": {"targets": ["q_proj", "q_proj"]}}, "policy.lora.targets", "'q_proj' stands twice"),
        ({"policy__lora": {"targets": ["model.*"]}}, "policy.lora.targets.0", "match pattern"),
        ({"policy__chat": {"system": ""}}, "policy.chat.system", "at least 1 character"),
        ({"policy__chat": {"template": "none", "system": "x"}}, "policy.chat.template", "neither a system message nor"),
        ({"policy__chat": {"template_kwargs": {"tokenize": False}}}, "policy.chat.template_kwargs", "leave it out"),
        ({"policy__chat": {"template_kwargs": {"a b": 1}}}, "policy.chat.template_kwargs", "'a b' is no variable"),
        ({"rollout__stop": ["a", ""]}, "rollout.stop.1", "at least 1 character"),
        (
            {"rollout__stop": ["\n\n", "think>"], "rollout__reasoning": {}},
            "rollout.stop.1",
            "rewards would see no text",
        ),
        ({"rollout__sleep": True, "rollout__mode": "async"}, "rollout.sleep", "use mode: sync"),
        (
            {"policy__cpu_offload": True, "weighting": {"name": "gradient"}, "gramian__mode": "sketch"},
            "policy.cpu_offload",
            "use gramian.mode: step_response",
        ),
        (
            {"policy__compile": True, "weighting": {"name": "gradient"}, "gramian__mode": "sketch"},
            "policy.compile",
            "use gramian.mode: last_block or step_response",
        ),
        ({"policy__compile": True, "policy__cpu_offload": True}, "policy.compile", "policy.cpu_offload: false"),
        ({"resources__learner_ranks": 0}, "resources.learner_ranks", "greater than or equal to 1"),
        ({"optimizer__betas": [0.9, 1.0]}, "optimizer.betas.1", "less than 1"),
        ({"rollout__gpu_memory_utilization": 1.5}, "rollout.gpu_memory_utilization", "0.98"),
        ({"rollout__temperature": 0}, "rollout.temperature", "greater than 0"),
        ({"policy__model": "quickstart"}, "data.type", "quickstart"),
        ({"name": "two\nlines"}, "name", "pattern"),
        ({"seed": 2**31}, "seed", "less than"),
        ({"metadata": {"key": "x" * 513}}, "metadata.key", "512"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], path: str, words: str) -> None:
    found = problems(document(**changes))
    assert list(found) == [path]
    assert any(word in found[path] for word in words.split("|"))


def test_blocks_of_several_ranks_may_be_compiled() -> None:
    assert parse_spec(document(policy__compile=True, resources__learner_ranks=2)).policy.compile


def test_a_list_whose_only_item_is_wrong_is_not_called_short() -> None:
    wrong = document(objectives=[{"name": "accuracy", "reward": {"name": "mth"}}])
    with pytest.raises(SpecError) as caught:
        parse_spec(wrong)
    assert [path for path, _ in caught.value.problems] == ["objectives.0.reward.name"]
    with pytest.raises(SpecError) as caught:
        parse_spec(document(objectives=[]))
    assert [path for path, _ in caught.value.problems] == ["objectives"]


def test_a_condition_needs_only_its_own_reward_raw() -> None:
    estimator = {"name": "cond_gdpo", "condition": "brevity", "at_least": 1}
    check_new(parse_spec(document(estimator=estimator, weighting={"name": "hypervolume"})))
    check_new(parse_spec(document(estimator=estimator, objectives__0__transform={"name": "zscore"})))


def test_one_rollout_is_enough_for_reinforce() -> None:
    parse_spec(document(rollout__rollouts_per_prompt=1, estimator={"name": "reinforce"}))


@pytest.mark.parametrize(("value", "kind"), [([], "a list"), ("text", "text"), (None, "an empty document"), (3, "int")])
def test_not_a_mapping(value: Any, kind: str) -> None:
    assert problems(value)[""].endswith(f"got {kind}")


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_document_is_refused_politely(anything: Any) -> None:
    for key in ("objectives", "data", "estimator", "rollout", "metadata"):
        with pytest.raises(SpecError):
            parse_spec(document(steps=0, **{key: anything}))


# ------------------------------------------------------------------------ files


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "got an empty document"),
        (b"# only a comment\n", "got an empty document"),
        (b"- a\n- b\n", "got a list"),
        (b"name: [\n", "not valid YAML"),
        (b"a: b: c", "not valid YAML"),
        (b"name: 2024-13-45", "not valid YAML: month"),
        (b"seed: " + b"9" * 5000, "not valid YAML"),
        (b"[" * 3000, "nested too deeply"),
        (b"x: !!python/object/apply:os.system [ls]", "not valid YAML"),
        (b"name: \xff\xfe", "not UTF-8 text"),
        (
            b"steps: 50\nname: x\nsteps: 7\n",
            ": line 3: the key 'steps' stands twice, first in line 1; keep one of them",
        ),
        (b'{"steps": 50, "policy": {"model": "a", "model": "b"}}', ": line 1: the key 'model' stands twice"),
        (b"a: &a {x: 1}\nb:\n  <<: *a\n  x: 2\n  x: 3\n", ": line 5: the key 'x' stands twice, first in line 4"),
    ],
    ids=range(13),
)
def test_a_file_that_is_no_spec(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_merges_are_no_keys_that_stand_twice() -> None:
    text = """
    outer: {inner: &both {<<: [&base {x: 1, y: 1}, {z: 1}], x: 2}}
    plain: {<<: *base, <<: *both, y: 3}
    """
    assert spec_yaml.load(text) == yaml.safe_load(text)
    assert spec_yaml.load(text)["plain"] == {"x": 2, "y": 3, "z": 1}


@pytest.mark.parametrize(
    ("reward", "fields", "expected"),
    [
        ("worded", {}, (-10.0, 20.0)),
        ("worded", {"range": [0, 9]}, (0.0, 9.0)),
        ("worded", {"range": [0, 1]}, (0.0, 1.0)),  # as a stored one says
        ("worded", {"reference": 0.5}, (0.0, 1.0)),
        ("length", {}, (0.0, 1.0)),  # its own is infinite
        ("conciseness", {}, (0.0, 1.0)),
    ],
)
def test_an_objective_without_a_range_has_its_rewards(reward: str, fields: dict[str, Any], expected: Any) -> None:
    changed = document(objectives__1={"name": "other", "reward": {"name": reward}, **fields})
    spec = parse_spec(changed)
    assert spec.objectives[1].range == expected
    assert JobSpec.model_validate_json(json.dumps(changed), strict=True) == spec  # what the API reads
    assert JobSpec.model_validate_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        *(({"name": f"a{mark}b"}, "name", "leave them out") for mark in "\x9b\u2028\u202e\u2066"),
        ({"metadata": {"k" * 513: "v"}}, "metadata", "a key has more than 512 characters"),
        ({"metadata": {f"k{i}": "\u4e2d" * 171 for i in range(16)}}, "metadata", "at most 16384 are allowed"),
        (
            {"weighting": {"name": "covariance"}, "objectives__1__target": {"op": "<=", "value": 0.5}},
            "objectives.1.target.op",
            "which '<=' would turn round",
        ),
        (
            {"estimator": {"name": "reinforce"}, "sampling": {"zero_signal": {"name": "copo"}}},
            "sampling.zero_signal",
            "would count that twice",
        ),
        (
            {
                "estimator": {"name": "cond_gdpo", "condition": "brevity", "at_least": 1},
                "objectives__1__transform": {"name": "zscore"},
            },
            "objectives.1.transform",
            "use identity for the condition",
        ),
        (
            {
                "estimator": {"name": "cond_gdpo", "condition": "brevity", "at_least": 1},
                "weighting": {"name": "hypervolume", "faithful": True},
            },
            "weighting.faithful",
            "use faithful: false",
        ),
    ],
)
def test_a_new_job_is_asked_for_more_than_one_that_is_stored(
    changes: dict[str, Any], field: str, says: str, tmp_path: Path
) -> None:
    stored = parse_job(json.loads(parse_spec(document(**changes)).to_json()))
    (tmp_path / "job.json").write_text(json.dumps(document(**changes)))
    for refuse in (lambda: check_new(stored), lambda: load_spec(tmp_path / "job.json")):
        with pytest.raises(SpecError) as refused:
            refuse()
        ((place, message),) = refused.value.problems
        assert place == field
        assert says in message


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"absent\.yaml: No such file"):
        load_spec(tmp_path / "absent.yaml")


# ----------------------------------------------------------- the spec and the code agree


def classes() -> dict[str, dict[str, Any]]:
    """What the code has of each kind, by the name in a spec."""
    from policies.budget import Knapsack, Uniform
    from policies.estimators import ESTIMATORS
    from policies.estimators.copo import Copo
    from policies.weighting import WEIGHTINGS
    from rewards.transforms import TRANSFORMS

    return {
        "estimator": ESTIMATORS,
        "weighting": WEIGHTINGS,
        "transform": TRANSFORMS,
        "zero_signal": {"keep": None, "drop": None, "refill": None, "copo": Copo},  # but for copo, no class of its own
        "budget": {"uniform": Uniform, "knapsack": Knapsack},
        "tail": {"wait": None, "defer": None},  # the order of prompts is one class
    }


UNIONS = {
    "estimator": BuiltInEstimator,
    "weighting": BuiltInWeighting,
    "transform": get_args(TransformSpec)[0],
    "zero_signal": get_args(ZeroSignalSpec)[0],
    "budget": get_args(BudgetSpec)[0],
    "tail": get_args(TailSpec)[0],
}
RULES = [
    pytest.param(kind, member, id=f"{kind}-{member.model_fields['name'].default}")
    for kind, union in UNIONS.items()
    for member in get_args(union)
]
REQUIRED: dict[str, dict[str, Any]] = {  # what has no default
    "schedule": {"points": [{"step": 5, "weights": {"accuracy": 1, "brevity": 3}}]},
    "cond_gdpo": {"condition": "brevity", "at_least": 1},
    "clip": {"lo": 0},
    "soft_overlong": {"max_tokens": 10, "buffer_tokens": 5},
    "cosine": {"max_tokens": 10},
    "knapsack": {"objective": "accuracy"},
}
OF_THE_JOB = {"inner": None, "rollouts_per_prompt": 8}  # arguments that a rule's spec does not have
OF_THE_CALLER = {
    "knapsack": {"objective", "success_at"},
    "refill": {"max_rounds"},
    "defer": {"over_sampling"},
}  # fields that the class does not see


@pytest.mark.parametrize("kind", UNIONS)
def test_names_are_those_of_the_code(kind: str) -> None:
    names = [get_args(member.model_fields["name"].annotation)[0] for member in get_args(UNIONS[kind])]
    assert names == list(classes()[kind])


@pytest.mark.parametrize(("kind", "member"), RULES)
def test_fields_and_defaults_are_the_arguments_of_the_class(kind: str, member: type[RuleSpec]) -> None:
    name = member.model_fields["name"].default
    rule = classes()[kind][name]
    fields = {
        key: field.default
        for key, field in member.model_fields.items()
        if key not in {"name", *OF_THE_CALLER.get(name, ())}
    }
    arguments = {} if rule is None else inspect.signature(rule).parameters
    assert fields == {
        key: PydanticUndefined if argument.default is inspect.Parameter.empty else argument.default
        for key, argument in arguments.items()
        if key not in OF_THE_JOB
    }


@pytest.mark.parametrize(("kind", "member"), RULES)
def test_a_rule_is_built_from_its_spec(kind: str, member: type[RuleSpec]) -> None:
    name = member.model_fields["name"].default
    if (rule := classes()[kind][name]) is None:
        return
    of_the_job = {key: value for key, value in OF_THE_JOB.items() if key in inspect.signature(rule).parameters}
    arguments = member(**REQUIRED.get(name, {})).arguments(("accuracy", "brevity"))
    built = rule(**of_the_job, **arguments)
    if name == "cond_gdpo":
        assert built.condition == 1
    if name == "schedule":
        assert built.points == [(5, {"accuracy": 1.0, "brevity": 3.0})]


@pytest.mark.parametrize(("kind", "member"), RULES)
def test_a_rule_says_what_it_is_for_and_from_where(kind: str, member: type[RuleSpec]) -> None:
    rule = classes()[kind][member.model_fields["name"].default]
    summary = (member.__doc__ or "").partition("\n")[0]
    assert summary.endswith(".")
    assert len(summary) <= 100
    assert member.source
    assert member.cost
    assert member.needs == getattr(rule, "needs", frozenset())
    assert all(field.description for key, field in member.model_fields.items() if key != "name")


def test_every_number_says_what_it_is() -> None:
    silent = [
        f"{model.__name__}.{name}"
        for model in models()
        for name, field in model.model_fields.items()
        if numeric(field.annotation) and not field.description
    ]
    assert not silent


def test_every_model_says_what_it_is() -> None:
    assert all(model.__doc__ for model in models())


def test_a_spec_is_read_without_torch_and_soon() -> None:
    code = (
        "import sys, time; began = time.process_time(); import orchestrator.spec; "
        "heavy = {'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules); "
        "print(sorted(heavy), time.process_time() - began)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT).stdout
    heavy, _, seconds = out.strip().rpartition(" ")
    assert heavy == "[]"
    assert float(seconds) < 3  # of the processor, whatever else the machine does


# ---------------------------------------------------------------------- helpers


def test_nearest() -> None:
    assert nearest("wieght", ["weight", "name"]) == ", did you mean 'weight'?"
    assert nearest("zzz", ["weight", "name"]) == ""


def test_scaled() -> None:
    assert scaled({"a": 1.0, "b": 3.0}) == {"a": 0.25, "b": 0.75}
    assert scaled({"a": 5e-324, "b": 0.0}) == {"a": 1.0, "b": 0.0}
    with pytest.raises(ValueError, match="above 0"):
        scaled({"a": 0.0})
    with pytest.raises(ValueError, match="too large"):
        scaled({"a": 1e308, "b": 1e308})
