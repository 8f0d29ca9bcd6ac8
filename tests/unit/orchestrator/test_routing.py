"""Domains: which objectives apply to which prompts, what the data must have for that, and what people see of it."""

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checks.dataset_check import MAX_PROBLEMS, check, shown
from orchestrator.checks.preflight import preflight
from orchestrator.inputs import Splits, load_splits
from orchestrator.rollouts.batch import reward_batch
from orchestrator.rollouts.prompts import Contents, DatasetError, Prompt, load_prompts
from orchestrator.rollouts.samples import read_samples
from orchestrator.routing import Routes, problems
from orchestrator.spec import JobSpec, SpecError, parse_spec
from orchestrator.specs.data import Columns
from orchestrator.storage.datasets import Datasets
from tests.loop_fakes import make_spec, resume, start
from tests.support import make_policy

KIND = Columns(domain="meta.kind", details=("schema", "meta.limits"))
OBJECTIVES: list[dict[str, Any]] = [
    {"name": "accuracy", "reward": {"name": "math"}, "domains": ["math", "logic"]},
    {"name": "brevity", "reward": {"name": "conciseness"}, "domains": ["chat"]},
]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(kind: Any = "math", **more: Any) -> dict[str, Any]:
    return {"prompt": "1+1", "answer": "2", "meta": {"kind": kind}, **more}


def document(**changes: Any) -> dict[str, Any]:
    data = {"type": "files", "train": "a.jsonl", "validation": "b.jsonl", "columns": {"domain": "meta.kind"}}
    base = {"name": "x", "steps": 2, "policy": {"model": "org/model"}, "data": data, "objectives": OBJECTIVES}
    return copy.deepcopy(base | changes)


def refusal(**changes: Any) -> str:
    with pytest.raises(SpecError) as error:
        parse_spec(document(**changes))
    return str(error.value)


# ------------------------------------------------------------------------------------------ rows


def test_a_prompt_keeps_its_chat_its_domain_and_its_details(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    path = write(
        tmp_path / "a.jsonl",
        row(schema={"type": "object"}),
        {"prompt": chat, "answer": 1, "meta": {"limits": [1, 2]}},
    )
    first, second = load_prompts(path, KIND)
    assert (first.domain, first.details, first.messages) == (
        "math",
        {"schema": {"type": "object"}},
        [{"role": "user", "content": "1+1"}],
    )
    assert (second.domain, second.details, second.messages, second.text) == (None, {"limits": [1, 2]}, chat, "Hi")


def test_a_reward_gets_what_the_row_says(tmp_path: Path) -> None:
    from policies.types import Rollout

    prompts = load_prompts(write(tmp_path / "a.jsonl", row(schema=1), row(None)), KIND)
    rollout = Rollout(prompt_tokens=(1,), tokens=(2,), logprobs=(0.0,), text="2", truncated=False, policy_version=0)
    batch = reward_batch(prompts, [2, 1], [rollout] * 3, 9)
    assert batch.domains == ("math", "math", None)
    assert batch.details == ({"schema": 1}, {"schema": 1}, {})
    assert batch.messages == ([{"role": "user", "content": "1+1"}],) * 3


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("so 2</think>\n\n2", "2"),
        ("</think>a</think>b", "a</think>b"),
        ("so 2, or rather", ""),
        ("2</think>", ""),
    ],
)
def test_rewards_see_what_follows_the_thoughts(tmp_path: Path, text: str, seen: str) -> None:
    from policies.types import Rollout

    prompts = load_prompts(write(tmp_path / "a.jsonl", row()), KIND)
    rollout = Rollout(
        prompt_tokens=(1,), tokens=(2, 3), logprobs=(0.0, 0.0), text=text, truncated=True, policy_version=0
    )
    batch = reward_batch(prompts, [1], [rollout], 9, "</think>")
    assert (batch.completions, batch.completion_tokens, batch.truncated) == ((seen,), (2,), (True,))
    assert reward_batch(prompts, [1], [rollout], 9).completions == (text,)


@pytest.mark.parametrize(
    ("value", "found"), [(3, "got int"), (["math"], "got list"), ("ma\nth", "another text"), ("x" * 65, "another text")]
)
def test_a_domain_that_is_none_is_an_error_of_its_row(tmp_path: Path, value: Any, found: str) -> None:
    with pytest.raises(DatasetError, match=r"row 2: 'meta.kind': expected a domain of") as error:
        load_prompts(write(tmp_path / "a.jsonl", row(), row(value)), KIND)
    assert str(error.value).endswith(found)


def test_an_empty_cell_of_csv_is_no_domain(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,answer,kind\nhi,1,\nho,2,chat\n")
    assert [prompt.domain for prompt in load_prompts(path, Columns(domain="kind"))] == [None, "chat"]


def test_what_json_has_no_words_for_is_no_detail(tmp_path: Path) -> None:
    import datetime

    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    day = datetime.date(2026, 1, 2)
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"], "answer": ["1"], "schema": [day]}), path)
    with pytest.raises(DatasetError, match="row 1: 'schema': expected text, finite numbers"):
        load_prompts(path, KIND)


def test_details_count_in_what_a_file_may_hold() -> None:
    prompt = Prompt(content="ab", text="ab", answer="c", row=1, details={"k": "dd"})
    assert prompt.characters == 3 + len('{"k": "dd"}')


def test_two_columns_that_a_reward_could_not_tell_apart_are_refused() -> None:
    data = document()["data"] | {"columns": {"details": ["a.schema", "b.schema"]}}
    assert refusal(data=data, objectives=[{"name": "a", "reward": {"name": "math"}}]).startswith(
        "data.columns.details.1: rewards would find two columns under one name"
    )


# ------------------------------------------------------------------------------------------ uploads


def test_an_upload_keeps_its_columns_and_is_checked_with_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", row(schema={"a": 1}), row(None))
    assert check(path, Columns(domain="meta.kind", details=("schema",))) == (2, [])
    assert shown(path, KIND, after=0, limit=5) == [
        {"row": 1, "prompt": "1+1", "answer": "2", "domain": "math", "details": {"schema": {"a": 1}}},
        {"row": 2, "prompt": "1+1", "answer": "2"},
    ]
    assert check(path, KIND)[1] == ["no row has 'meta.limits'"]
    assert check(path, Columns(domain="kind"))[1] == ["no row has 'kind'"]
    many = write(tmp_path / "b.jsonl", *(row(f"d{i}") for i in range(1100)))
    problems = check(many, KIND)[1]
    assert problems[0].startswith("row 1001: more than 1000 domains")
    assert len(problems) == MAX_PROBLEMS

    datasets = Datasets(tmp_path / "state", "me")
    made = []
    for columns in (Columns(), KIND):
        draft = datasets.draft("jsonl")
        draft.write(path.read_bytes())
        draft.close()
        made.append(datasets.keep(draft, name="x", columns=columns, rows=2)[0])
    assert made[0].id != made[1].id
    assert datasets.get(made[1].id).columns == KIND


# ------------------------------------------------------------------------------------------ specs


def test_routing_without_domains_in_the_data_is_refused() -> None:
    data = document()["data"]
    for changed in ({"type": "quickstart"}, {**data, "columns": {}}):
        assert refusal(data=changed) == (
            "objectives.0.domains: no prompt has a domain; name the column in data.columns.domain"
        )
    assert parse_spec(document(data={**data, "columns": {}, "train": "dataset:ds-0123456789ab"}))


def test_a_gate_by_an_objective_of_other_domains_is_refused() -> None:
    gated = [OBJECTIVES[0], OBJECTIVES[1] | {"gate": {"objective": "accuracy", "at_least": 1}}]
    assert refusal(objectives=gated).startswith(
        "objectives.1.gate.objective: 'accuracy' applies to no domain of 'brevity'"
    )
    gated[1]["domains"] = ["chat", "math"]
    assert parse_spec(document(objectives=gated))


@pytest.mark.parametrize("domains", [[], [""], ["a\nb"], ["x" * 65], "math"])
def test_domains_are_words(domains: Any) -> None:
    assert "objectives.0.domains" in refusal(objectives=[OBJECTIVES[0] | {"domains": domains}])


def said(spec: JobSpec, **splits: set[str | None]) -> list[tuple[str, str]]:
    return list(problems(spec, {name: Contents(domains=domains) for name, domains in splits.items()}))


def test_what_the_rows_leave_without_a_use_is_named() -> None:
    spec = parse_spec(document())
    whole: set[str | None] = {"math", "logic", "chat"}
    assert said(spec, train=whole, validation={"math", "chat"}) == []
    assert said(spec, train=whole, validation={"math"}) == [
        (
            "objectives.1.domains",
            "no row of the validation split has domain 'chat', so 'brevity' has no figure there",
        )
    ]
    assert said(spec, train={"math", "chta"}, validation={"math", "chta"})[:2] == [
        ("objectives.0.domains.1", "no row of the data has domain 'logic'; domains are chta, math"),
        ("objectives.1.domains.0", "no row of the data has domain 'chat', did you mean 'chta'?"),
    ]
    assert said(spec, train=whole | {None}, validation=whole | {"art"}) == [
        ("data.train", "rows without a domain are there, but no objective applies to them; leave them out"),
        ("data.validation", "rows of domain 'art' are there, but no objective applies to them; leave them out"),
    ]
    assert ("data.columns.domain", "no row of the data has this column") in said(spec, train={None}, validation={None})


def test_a_detail_that_no_row_has_is_named() -> None:
    data = document()["data"] | {"columns": {"domain": "meta.kind", "details": ["schema", "meta.limits"]}}
    contents = Contents(domains={"math", "logic", "chat"}, details={"limits"})
    assert list(problems(parse_spec(document(data=data)), {"train": contents, "validation": contents})) == [
        ("data.columns.details.0", "no row of the data has this column")
    ]


def test_the_check_of_a_submission_and_the_driver_say_the_same(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", row(), row("logic"), row("chat"))
    validation = write(tmp_path / "b.jsonl", row(), row("chat"))
    data = {"train": str(train), "validation": str(validation), "columns": {"domain": "meta.kind"}}
    model = str(make_policy(tmp_path / "policy"))
    changes: dict[str, Any] = {"policy": {"model": model}, "data": {"type": "files", **data}}
    changes["rollout"] = {"max_tokens": 8}
    spec = parse_spec(document(**changes))

    def splits(spec: JobSpec) -> Splits:
        return load_splits(spec, tmp_path, model=model, encoder=lambda _: [1])

    assert preflight(spec) == []
    assert splits(spec).train[2].domain == "chat"
    changes["evaluation"] = {"prompts": 1}  # the driver counts what is used
    with pytest.raises(DatasetError, match=r"objectives.1.domains: no row of the validation split has domain 'chat'"):
        splits(parse_spec(document(**changes)))
    write(validation, row())
    spec = parse_spec(document(**changes))
    ((field, message),) = preflight(spec)
    with pytest.raises(DatasetError) as error:
        splits(spec)
    assert str(error.value) == f"{field}: {message}"


# ------------------------------------------------------------------------------------------ scores


@given(domains=st.lists(st.sampled_from(["math", "chat", "art", None])))
def test_an_objective_has_scores_where_it_applies_and_nowhere_else(domains: list[str | None]) -> None:
    routes = Routes({"a": ["math", "art"], "b": None, "c": ["chat"]})
    scores: list[float | None] = [float(i) for i in range(len(domains))]
    masked = routes.mask({"a": scores, "b": scores, "c": scores}, domains)
    assert masked["b"] == scores
    for name, wanted in (("a", {"math", "art"}), ("c", {"chat"})):
        assert masked[name] == [s if d in wanted else None for s, d in zip(scores, domains, strict=True)]


def routed_run(directory: Path, **sections: Any) -> Any:
    """The loop of the fakes over a batch of two kinds of prompts."""
    data = {"type": "files", "train": "a", "validation": "b", "test": "c", "columns": {"domain": "kind"}}
    model = {"policy": {"model": "org/model"}, "data": data}
    objectives = [
        {"name": "accuracy", "reward": {"name": "math"}, "domains": ["math"]},
        {"name": "brevity", "reward": {"name": "conciseness"}, "domains": ["chat", "math"]},
    ]
    run = start(directory, make_spec(**model, objectives=objectives, **sections))
    _give_domains(run)
    return run


def _give_domains(run: Any) -> None:
    for split in ("train", "validation", "test"):
        prompts = getattr(run.loop.parts.splits, split)
        prompts[:] = [
            dataclasses.replace(prompt, domain="math" if i % 3 == 0 else "chat") for i, prompt in enumerate(prompts)
        ]


def test_what_people_see_of_objectives_that_apply_to_some_prompts(tmp_path: Path) -> None:
    run = routed_run(tmp_path / "job", samples={"every": 1, "prompts": 3})
    assert run.loop.run() == "succeeded"
    text = json.dumps([*run.journal.records.values(), *run.journal.fronts, run.loop.samples, run.journal.events])
    assert "NaN" not in text
    train = run.loop.parts.splits.train
    seen: set[bool] = set()
    for step, record in run.journal.records.items():
        rows = read_samples(run.loop.keeper.directory, step)
        applies = [train[row["prompt_index"]].domain == "math" for row in rows]
        assert [row["rewards"]["accuracy"] is not None for row in rows] == applies
        assert all(row["rewards"]["brevity"] is not None for row in rows)
        figures = record["objectives"]["accuracy"]
        assert (figures["mean"] is not None) == any(applies)
        if any(applies):
            known = [row["rewards"]["accuracy"] for row in rows if row["rewards"]["accuracy"] is not None]
            assert figures["mean"] == pytest.approx(math.fsum(known) / len(known))
        seen.add(any(applies))
    assert seen == {True, False}  # the seed gives steps with and without
    evaluation = run.journal.named("evaluated")[0]
    start_ = run.loop.state.samples
    known = [sample["rewards"]["accuracy"] for sample in start_.values()]
    assert known[0] is not None
    assert known[1] is None
    assert 0 < evaluation["objectives"]["accuracy"] < 1


def test_a_guardrail_has_no_reading_where_its_objective_did_not_apply(tmp_path: Path) -> None:
    rail = {"metric": "objectives.accuracy.mean", "min": 0.0}
    run = routed_run(tmp_path / "job", guardrails=[rail])
    run.loop.run()
    assert any(record["objectives"]["accuracy"]["mean"] is None for record in run.journal.records.values())
    assert run.journal.named("guardrail.breached") == []


def test_a_killed_run_with_domains_ends_with_the_same_figures(tmp_path: Path) -> None:
    from tests.loop_fakes import Killed

    whole = routed_run(tmp_path / "whole")
    whole.loop.run()
    cut = routed_run(tmp_path / "cut")
    cut.journal.die_at = ("after commit", 4)
    with pytest.raises(Killed):
        cut.loop.run()
    again = resume(cut, cut.loop.spec)
    _give_domains(again)
    again.loop.run()
    assert again.figures() == whole.figures()
