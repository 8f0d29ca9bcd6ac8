"""Several files of a split, and prompts that are held back: the same ones always, and what goes wrong."""

import json
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from orchestrator.checks.access import Access
from orchestrator.checks.doubts import doubts
from orchestrator.checks.preflight import look, preflight
from orchestrator.inputs import load_splits
from orchestrator.lineage import fork_document
from orchestrator.rollouts import split_files
from orchestrator.rollouts.prompts import DatasetError, Prompt, preview
from orchestrator.rollouts.split_files import SplitFiles, each_of, holds_back, matching
from orchestrator.spec import JobSpec, parse_spec
from orchestrator.spec_errors import SpecError
from orchestrator.specs.data import Columns, FilesData, Share
from policies.disk import sha256_of
from services.submission import anchored, anchored_changes
from tests.loop_fakes import Killed, start

KIND = Columns(domain="kind", details=("schema",))


def put(path: Path, *rows: dict[str, Any]) -> Path:
    """As its name ends; every row with an answer."""
    answered = [{"answer": "1", **row} for row in rows]
    path.parent.mkdir(exist_ok=True, parents=True)
    if path.suffix == ".parquet":
        parquet.write_table(arrow.Table.from_pylist(answered), path)
    elif path.suffix == ".csv":
        lines = [",".join(answered[0]), *(",".join(map(str, row.values())) for row in answered)]
        path.write_text("\n".join(lines))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in answered))
    return path


def prompts(start_at: int, count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"what is {i}+1?", **more} for i in range(start_at, start_at + count)]


def spec_of(**data: Any) -> JobSpec:
    objectives = [
        {"name": "accuracy", "reward": {"name": "exact"}},
        {"name": "brevity", "reward": {"name": "conciseness"}},
    ]
    document = {"name": "x", "steps": 4, "policy": {"model": "someone/model"}, "objectives": objectives}
    shape = {"prompts_per_step": 3, "rollouts_per_prompt": 4, "max_tokens": 9}
    return parse_spec({**document, "rollout": shape, "data": {"type": "files", **data}})


def loaded(spec: JobSpec, folder: Path, **options: Any) -> Any:
    return load_splits(spec, folder, model="none", encoder=lambda _: [1], data_dir=folder / "data", **options)


def texts(found: list[Prompt]) -> list[str]:
    return [prompt.text for prompt in found]


def test_a_job_with_a_checkpoint_goes_on_with_calls_of_tools_that_new_jobs_may_not_have(tmp_path: Path) -> None:
    asked, called = {"role": "user", "content": "?"}, {"role": "assistant", "content": ""}
    rows = [{"prompt": [asked, {**called, "tool_calls": [{"id": "1"}]}, asked]}]
    spec = spec_of(train=str(put(tmp_path / "a.jsonl", *rows)), validation=str(tmp_path / "a.jsonl"))
    with pytest.raises(DatasetError, match="message 2: it has tool_calls"):
        loaded(spec, tmp_path)
    assert loaded(spec, tmp_path, is_resumed=True).train[0].messages == [asked, called, asked]
    (shown,) = preview(tmp_path / "a.jsonl", Columns(), after=0, limit=1)
    assert shown.messages == [asked, called, asked], "an upload of an earlier version is not damaged"


def test_a_job_with_a_checkpoint_goes_on_with_prompts_that_new_jobs_may_not_have(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chat = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    rows = [{"prompt": chat, "answer": "2"}] * 2
    train, other = put(tmp_path / "train.jsonl", *rows), put(tmp_path / "other.jsonl", *prompts(9, 1, answer="10"))
    spec = spec_of(train=str(train), validation=str(other), test=str(other))
    ((field, message),) = preflight(spec)
    assert (field, "the last message is the assistant's" in message) == ("data.train", True)
    with pytest.raises(DatasetError, match="the last message is the assistant's"):
        loaded(spec, tmp_path)
    found = loaded(spec, tmp_path, is_resumed=True)
    assert [prompt.messages for prompt in found.train] == [chat, chat]
    assert [record.message for record in caplog.records] == [
        "prompts of train end with the assistant's turn, which new jobs may not have"
    ]


def test_prompts_have_to_fit_into_the_context_of_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"max_position_embeddings": 10}))  # and a completion has up to 9
    asked: list[Any] = []

    def download(hub_id: str, name: str, *, revision: str | None) -> str:
        asked.append((hub_id, name, revision))
        return str(config)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    spec = spec_of(train=str(put(tmp_path / "a.jsonl", *prompts(0, 2))), validation=str(tmp_path / "a.jsonl"))
    options: dict[str, Any] = {"model": "someone/model", "data_dir": tmp_path / "data"}
    assert len(load_splits(spec, tmp_path, encoder=lambda _: [1], **options).train) == 2
    with pytest.raises(DatasetError, match="row 1: the prompt has 2 tokens, but the context leaves room for 1 beside"):
        load_splits(spec, tmp_path, encoder=lambda _: [1, 1], **options)
    assert asked == [("someone/model", "config.json", None)] * 2
    assert len(load_splits(spec, tmp_path, encoder=lambda _: [1, 1], is_resumed=True, **options).train) == 2


def test_prompts_that_are_too_long_are_dropped_where_that_is_asked_for(tmp_path: Path) -> None:
    rows = [{"prompt": "x" * length} for length in (3, 9, 4, 12, 5)]
    data = {"train": str(put(tmp_path / "a.jsonl", *rows)), "validation": str(put(tmp_path / "b.jsonl", rows[0]))}
    options: dict[str, Any] = {"model": "none", "encoder": lambda text: [1] * len(text), "data_dir": tmp_path / "data"}
    document = spec_of(**data, overlong="drop").model_dump()
    fitting = parse_spec({**document, "policy": {"model": "none", "max_model_len": 17}})  # 9 of them for a completion
    splits = load_splits(fitting, tmp_path, **options)
    assert [len(prompt.tokens) for prompt in splits.train] == [3, 4, 5]
    shape = {"median_tokens": 3, "longest_tokens": 3}
    assert splits.figures() == {
        "train": {"prompts": 3, "dropped": 2, "median_tokens": 4, "longest_tokens": 5},
        "validation": {"prompts": 1, "dropped": 0, **shape},
    }
    with pytest.raises(
        DatasetError, match=r"row 2: the prompt has 9 tokens.*data.overlong: drop \(2 rows are too long"
    ):
        load_splits(parse_spec({**fitting.model_dump(), "data": spec_of(**data).data}), tmp_path, **options)
    short = parse_spec({**document, "policy": {"model": "none", "max_model_len": 16}, "rollout": {"max_tokens": 14}})
    with pytest.raises(DatasetError, match=r"data\.train: each of its 5 prompts has more than 2 tokens"):
        load_splits(short, tmp_path, **options)


# -------------------------------------------------------------------------- several files


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("how", ["list", "pattern", "both"])
def test_several_files_are_one_split(tmp_path: Path, ending: str, how: str) -> None:
    first = put(tmp_path / f"train-0.{ending}", *prompts(0, 3))
    second = put(tmp_path / f"train-1.{ending}", *prompts(3, 2))
    other = put(tmp_path / f"other.{ending}", *prompts(90, 2))
    pattern = str(tmp_path / f"train-?.{ending}")
    names: Any = {"list": [str(first), str(second)], "pattern": pattern, "both": [pattern, str(second)]}[how]
    spec = spec_of(train=names, validation=str(other), test=[str(other)])
    assert preflight(spec) == []
    found = loaded(spec, tmp_path)
    assert texts(found.train) == [f"what is {i}+1?" for i in range(5)]
    assert found.sha256["train"] == sha256_of(first, second)
    assert found.sha256["validation"] == sha256_of(other)
    assert look(spec).contents["train"].rows == 5


@pytest.mark.parametrize(("limit", "expected"), [(1, 1), (3, 3), (4, 4), (9, 5)])
def test_the_limit_counts_over_all_files(tmp_path: Path, limit: int, expected: int) -> None:
    put(tmp_path / "a" / "0.jsonl", *prompts(0, 3))
    put(tmp_path / "a" / "1.jsonl", *prompts(3, 2))
    spec = spec_of(train=f"{tmp_path}/a/*", validation=f"{tmp_path}/a/0.jsonl", limit=limit)
    assert len(loaded(spec, tmp_path).train) == expected
    assert look(spec).contents["train"].rows == expected


def test_a_name_with_the_signs_of_a_pattern_is_a_file_where_there_is_one(tmp_path: Path) -> None:
    path = put(tmp_path / "train[1].jsonl", *prompts(0, 2))
    put(tmp_path / "train1.jsonl", *prompts(5, 2))
    assert matching(str(path)) == [path]


@pytest.mark.parametrize("name", ["none-*.jsonl", "deep/*/x.jsonl", "folder*", "a\0*"])
def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path, name: str) -> None:
    put(tmp_path / "x.jsonl", *prompts(0, 2))
    (tmp_path / "folder").mkdir()
    spec = spec_of(train=[f"{tmp_path}/x.jsonl", f"{tmp_path}/{name}"], validation=f"{tmp_path}/x.jsonl")
    expected = "no file matches; expected some that end in .jsonl, .csv or .parquet"
    assert preflight(spec) == [("data.train.1", expected)]
    with pytest.raises(DatasetError, match="no file matches"):
        loaded(spec, tmp_path)


def test_more_files_than_a_split_may_have_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_files, "MAX_FILES", 2)
    for i in range(3):
        put(tmp_path / f"{i}.jsonl", *prompts(i, 1))
    with pytest.raises(DatasetError, match="more than 2 files match; name fewer"):
        matching(f"{tmp_path}/*.jsonl")


@pytest.mark.parametrize(("bare", "full"), [(0, 1), (1, 0)])
@pytest.mark.parametrize(("column", "field"), [("kind", "data.columns.domain"), ("schema", "data.columns.details.0")])
def test_files_with_other_columns_are_refused(tmp_path: Path, bare: int, full: int, column: str, field: str) -> None:
    both = {"kind": "math", "schema": "s"}
    put(tmp_path / f"{full}.jsonl", *prompts(0, 2, **both))
    lacking = put(tmp_path / f"{bare}.jsonl", *prompts(2, 2, **{name: both[name] for name in both if name != column}))
    spec = spec_of(
        train=f"{tmp_path}/*.jsonl",
        validation=f"{tmp_path}/{full}.jsonl",
        columns={"domain": "kind", "details": ["schema"]},
    )
    message = "which rows of another file of the split have; a split's files need the same columns"
    assert preflight(spec) == [("data.train", f"{bare}.jsonl: no row has {field}, {message}")]
    with pytest.raises(DatasetError) as caught:
        loaded(spec, tmp_path)
    assert str(caught.value) == f"{lacking}: no row has '{column}', {message}"


def test_a_file_without_the_prompts_column_is_named(tmp_path: Path) -> None:
    good = put(tmp_path / "a.jsonl", *prompts(0, 2))
    bad = put(tmp_path / "b.jsonl", {"question": "1"})
    expected = "row 1: no 'prompt'; found answer, question"
    spec = spec_of(train=[str(good), str(bad)], validation=str(good))
    assert preflight(spec) == [("data.train.1", expected)]
    assert preflight(spec_of(train=f"{tmp_path}/*.jsonl", validation=str(good))) == [
        ("data.train", f"b.jsonl: {expected}")
    ]
    with pytest.raises(DatasetError, match=r"b\.jsonl: row 1: no 'prompt'"):
        loaded(spec, tmp_path)


def test_a_file_that_the_limit_cuts_may_lack_a_column(tmp_path: Path) -> None:
    put(tmp_path / "0.jsonl", *prompts(0, 2, kind="math"))
    put(tmp_path / "1.jsonl", *prompts(2, 1), *prompts(3, 1, kind="math"))
    paths = (tmp_path / "0.jsonl", tmp_path / "1.jsonl")
    assert len([*each_of(SplitFiles(paths=paths, columns=KIND, limit=3))]) == 3


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"train": []}, "data.train: Tuple should have at least 1 item after validation, not 0"),
        ({"train": ["a.jsonl", 3]}, "data.train.1: Input should be a valid string"),
        ({"train": 3}, "data.train: Input should be a valid string"),
        ({"test": ["a.jsonl", None]}, "data.test.1: Input should be a valid string"),
        ({"train": ["a.jsonl", "dataset:ds-0123456789ab"]}, "data.train.1: a dataset is a split of its own"),
        ({"validation": {"share": 0}}, "data.validation.share: Input should be greater than 0"),
        ({"validation": {"share": 1}}, "data.validation.share: Input should be less than 1"),
        ({"validation": {"part": 0.1}}, "data.validation.share: Field required"),
        ({"validation": {"share": 0.1, "sed": 1}}, "data.validation.sed: unknown field, did you mean 'seed'?"),
        ({"train": {"share": 0.1}}, "data.train: Input should be a valid string"),
    ],
)
def test_what_a_split_can_not_be(data: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_of(**{"train": "a.jsonl", "validation": "b.jsonl", **data})
    assert told in str(caught.value)


def test_further_sets_are_read_and_bounded_as_the_validation_split(tmp_path: Path) -> None:
    train, validation = put(tmp_path / "t.jsonl", *prompts(0, 4)), put(tmp_path / "v.jsonl", *prompts(4, 2))
    hard = [put(tmp_path / f"hard-{i}.jsonl", *prompts(10 * i, 2)) for i in (1, 2)]
    easy = put(tmp_path / "easy.csv", *prompts(50, 3))
    data = {"train": str(train), "validation": str(validation)}
    spec = spec_of(**data, sets={"hard": [str(path) for path in hard], "easy-1": str(easy)})
    assert isinstance(spec.data, FilesData)
    assert spec.data.fields("sets.hard") == {f"data.sets.hard.{i}": str(path) for i, path in enumerate(hard)}
    assert parse_spec(spec.model_dump(mode="json")) == spec
    splits = loaded(spec, tmp_path)
    assert {name: [prompt.text for prompt in found] for name, found in splits.sets.items()} == {
        "sets.hard": [f"what is {i}+1?" for i in (10, 11, 20, 21)],
        "sets.easy-1": [f"what is {i}+1?" for i in (50, 51, 52)],
    }
    assert splits.sha256["sets.hard"] == sha256_of(*hard)
    plain = loaded(spec_of(**data), tmp_path)
    assert (plain.train, plain.validation, plain.sets) == (splits.train, splits.validation, {})
    assert preflight(spec) == []
    (tmp_path / "open").mkdir()
    bounded = Access(owner="me", state_dir=tmp_path / "state", roots=(tmp_path / "open",))
    fields = ["data.train", "data.validation", "data.sets.hard.0", "data.sets.hard.1", "data.sets.easy-1"]
    assert [field for field, _ in bounded.problems(spec)] == fields
    hard[1].unlink()
    easy.write_text("prompt\n1\n")
    assert [field for field, _ in preflight(spec)] == ["data.sets.hard.1", "data.sets.easy-1"]


def test_a_further_set_may_be_of_one_kind_of_prompts(tmp_path: Path) -> None:
    """An objective that has no rows there has no figure there; rows that none is for are refused as elsewhere."""
    both = put(tmp_path / "t.jsonl", *prompts(0, 2, kind="math"), *prompts(2, 2, kind="code"))
    code, other = (
        put(tmp_path / "c.jsonl", *prompts(9, 2, kind="code")),
        put(tmp_path / "o.jsonl", *prompts(7, 1, kind="x")),
    )
    document = spec_of(train=str(both), validation=str(both), sets={"code": str(code)}).model_dump(mode="json")
    document["data"]["columns"]["domain"] = "kind"
    for objective, kind in zip(document["objectives"], ("math", "code"), strict=True):
        objective["domains"] = [kind]
    assert preflight(parse_spec(document)) == []
    document["data"]["sets"]["other"] = str(other)
    ((field, message),) = preflight(parse_spec(document))
    assert (field, message[:22]) == ("data.sets.other", "rows of domain 'x' are")


def test_a_spec_keeps_the_form_in_which_it_came() -> None:
    for data in ({"validation": "b.jsonl"}, {"validation": ["b.jsonl"]}, {"validation": {"share": 0.5, "seed": 3}}):
        document = spec_of(train=["a.jsonl", "c.jsonl"], **data).model_dump(mode="json")
        assert document["data"] | data == document["data"]
        assert parse_spec(document).model_dump(mode="json") == document


def test_relative_names_are_the_callers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    url, kept = "hf://datasets/a/b/c.parquet", "dataset:ds-0123456789ab"
    data = anchored(spec_of(train=["a-*.jsonl", url], validation={"share": 0.5}, test=kept))["data"]
    assert data["train"] == [f"{tmp_path}/a-*.jsonl", url]
    assert data["validation"] == {"share": 0.5}
    assert data["test"] == kept
    sets = {"x": ["a.jsonl", url], "y": "b.jsonl", "z": 3}
    sent = {"x": [f"{tmp_path}/a.jsonl", url], "y": f"{tmp_path}/b.jsonl", "z": 3}
    assert anchored_changes({"data": {"sets": sets}})["data"]["sets"] == sent
    assert anchored_changes({"data": {"train": ["a", 3]}})["data"]["train"] == [f"{tmp_path}/a", 3]


# ------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("open/x*.jsonl", True),
        ("open/none-*.jsonl", True),  # nothing is there, which is another mistake
        ("*/x.jsonl", False),
        ("secret/*.jsonl", False),
        ("open/*/../../secret/x.jsonl", False),
        ("open/../secret/*.jsonl", False),
        ("open/links/*.jsonl", False),
        ("open/link*/x.jsonl", False),
        ("open/link*/none.jsonl", False),  # nor is it told what is there
        ("open/to*.jsonl", False),
        ("open/gone*.jsonl", False),
    ],
)
def test_a_pattern_reaches_nothing_that_was_not_allowed(tmp_path: Path, name: str, allowed: bool) -> None:
    put(tmp_path / "open" / "x.jsonl", *prompts(0, 2))
    put(tmp_path / "secret" / "x.jsonl", *prompts(0, 2))
    (tmp_path / "open" / "links").symlink_to(tmp_path / "secret")
    (tmp_path / "open" / "to.jsonl").symlink_to(tmp_path / "secret" / "x.jsonl")
    (tmp_path / "open" / "gone.jsonl").symlink_to(tmp_path / "secret" / "none.jsonl")
    bounded = Access(owner="me", state_dir=tmp_path / "state", roots=(tmp_path / "open",))
    spec = spec_of(train=[f"{tmp_path}/open/x.jsonl", f"{tmp_path}/{name}"], validation={"share": 0.5})
    found = bounded.problems(spec)
    assert [field for field, _ in found] == ([] if allowed else ["data.train.1"])


# -------------------------------------------------------------------------------- share


def test_a_share_holds_prompts_back_by_their_words(tmp_path: Path) -> None:
    rows = [*prompts(0, 200), *prompts(0, 200)]  # each twice
    path = put(tmp_path / "train.jsonl", *rows)
    spec = spec_of(train=str(path), validation={"share": 0.25})
    assert preflight(spec) == []
    found = loaded(spec, tmp_path)
    train, validation = texts(found.train), texts(found.validation)
    assert sorted(train + validation) == sorted(row["prompt"] for row in rows)
    assert not {*train} & {*validation}
    assert len(validation) == 2 * len({*validation})
    assert 60 <= len(validation) <= 140  # binomial: 100, with a spread of 12
    assert found.sha256 == {"train": sha256_of(path)}
    contents = look(spec).contents
    assert (contents["train"].rows, contents["validation"].rows) == (len(train), len(validation))
    (doubt,) = [doubt for doubt in doubts(spec, contents) if doubt[0].startswith("data.validation")]
    twice = len(validation) // 2
    assert doubt[1].startswith(f"{twice} of its {len(validation)} prompts are in it before")


def test_a_share_is_pinned() -> None:
    """Another choice would move prompts of jobs that go on, and of forks, to the other side."""
    told = [Prompt(content=f"{i}+1", text=f"{i}+1", answer="1", row=1) for i in range(40)]
    held = [i for i, prompt in enumerate(told) if holds_back(Share(share=0.2), prompt)]
    assert held == [10, 11, 18, 36]
    assert held != [i for i, prompt in enumerate(told) if holds_back(Share(share=0.2, seed=1), prompt)]
    more = {i for i, prompt in enumerate(told) if holds_back(Share(share=0.4), prompt)}
    assert more > {*held}  # a larger share moves none of them back
    chat = Prompt(content=[{"role": "user", "content": "0+1"}], text="0+1", answer="2", row=9)
    assert holds_back(Share(share=0.5), chat) == holds_back(Share(share=0.5), told[0])


@pytest.mark.parametrize(("share", "kept", "change"), [(1e-9, "none", "raise"), (1 - 1e-9, "all", "lower")])
def test_a_share_that_leaves_a_split_empty_is_refused(tmp_path: Path, share: float, kept: str, change: str) -> None:
    path = put(tmp_path / "train.jsonl", *prompts(0, 4))
    spec = spec_of(train=str(path), validation={"share": share})
    message = f"{share:g} holds back {kept} of the 4 prompts; {change} it, or name a file"
    for access in (None, Access(owner="me", state_dir=tmp_path, roots=None)):
        assert preflight(spec, access) == [("data.validation.share", message)]
    with pytest.raises(DatasetError, match=r"^data\.validation\.share: ") as caught:
        loaded(spec, tmp_path)
    assert str(caught.value) == f"data.validation.share: {message}"


def test_blank_answers_of_rows_that_may_not_be_evaluated_are_left_to_the_driver(tmp_path: Path) -> None:
    put(tmp_path / "0.jsonl", *prompts(0, 2))
    put(tmp_path / "1.jsonl", *prompts(2, 2, answer=""))
    document = spec_of(train=f"{tmp_path}/0.jsonl", validation=f"{tmp_path}/[01].jsonl").model_dump(mode="json")
    few = parse_spec({**document, "evaluation": {"prompts": 2}})
    assert preflight(few) == []
    ((field, message),) = preflight(parse_spec(document))
    assert (field, message[:26]) == ("data.validation", "row 1: the answer is empty")


def test_what_is_wrong_with_the_rows_is_told_once(tmp_path: Path) -> None:
    path = put(tmp_path / "train.jsonl", *prompts(0, 4), {"question": "1"})
    ((field, message),) = preflight(spec_of(train=str(path), validation={"share": 0.5}))
    assert (field, message) == ("data.train", "row 5: no 'prompt'; found answer, question")
    ((field, message),) = preflight(spec_of(train=f"{tmp_path}/none.jsonl", validation={"share": 0.5}))
    assert (field, message) == ("data.train", "no such file")


def test_a_fork_and_a_resumed_job_have_the_same_split(tmp_path: Path) -> None:
    path = put(tmp_path / "train.jsonl", *prompts(0, 60))
    spec = spec_of(train=str(path), validation={"share": 0.3, "seed": 5})
    first = loaded(spec, tmp_path)
    forked = parse_spec({**fork_document(spec, name="y", weights=None, init=tmp_path / "init"), "seed": 77})
    assert loaded(forked, tmp_path) == first
    put(path, *prompts(50, 30), *prompts(0, 50))  # grown, and in another order
    again = loaded(forked, tmp_path)
    known = {*texts(first.train), *texts(first.validation)}
    assert {*texts(again.validation)} & known == {*texts(first.validation)}

    run = start(tmp_path, spec)
    run.loop.parts.splits.sha256.update(first.sha256)
    run.journal.die_at = ("before commit", 3)
    with pytest.raises(Killed):
        run.loop.run()
    changed = start(tmp_path, spec, journal=run.journal, fence=2)
    changed.loop.parts.splits.sha256.update(again.sha256)
    with pytest.raises(ValueError, match=r"data\.train: .*train\.jsonl: it has another content"):
        changed.loop.resume(max(run.journal.registered), sorted(run.journal.registered))


def test_a_share_of_several_files(tmp_path: Path) -> None:
    put(tmp_path / "0.jsonl", *prompts(0, 50))
    put(tmp_path / "1.jsonl", *prompts(50, 50))
    found = loaded(spec_of(train=f"{tmp_path}/*.jsonl", validation={"share": 0.2}, limit=80), tmp_path)
    assert len(found.train) + len(found.validation) == 80
    assert {prompt.text for prompt in found.validation} - {f"what is {i}+1?" for i in range(50)}


def test_domains_of_an_upload_count_for_what_it_holds_back() -> None:
    data = FilesData(train="dataset:ds-0123456789ab", validation=Share(share=0.1))
    assert data.may_have_domains
    assert data.names("validation") == ("dataset:ds-0123456789ab",)
