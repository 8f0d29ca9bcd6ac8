"""Uploaded files, their checks and who may name which path, without a server."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from orchestrator import children
from orchestrator.checks.access import Access
from orchestrator.checks.dataset_check import Reading, check, outcomes_of, shown
from orchestrator.inputs import load_splits
from orchestrator.rollouts.prompts import (
    NO_ANSWERS,
    Contents,
    DatasetError,
    each_prompt,
    examine,
    in_bounds,
    load_prompts,
    preview,
)
from orchestrator.spec import parse_spec
from orchestrator.specs.data import Columns
from orchestrator.storage.datasets import Datasets, find, locate, resolve

ROW = b'{"prompt": "1+1", "answer": "2"}\n'


def kept(state_dir: Path, owner: str, content: bytes = ROW) -> str:
    datasets = Datasets(state_dir, owner)
    draft = datasets.draft("jsonl")
    draft.write(content)
    draft.close()
    dataset, _ = datasets.keep(draft, name="x", columns=Columns(), rows=1)
    draft.discard()
    return dataset.id


def test_a_dataset_is_its_owners(tmp_path: Path) -> None:
    made = kept(tmp_path, "me")
    assert resolve(f"dataset:{made}", "me", tmp_path).read_bytes() == ROW
    assert find(f"dataset:{made}", "me", tmp_path).rows == 1
    with pytest.raises(DatasetError, match=f"dataset:{made}: no such dataset"):
        resolve(f"dataset:{made}", "you", tmp_path)


@pytest.mark.parametrize("wrong", ["", "ds-", "ds-00000000000g", "../me", "ds-000000000000/..", "ds-000000000000\n"])
def test_a_reference_is_an_id_alone(tmp_path: Path, wrong: str) -> None:
    kept(tmp_path, "me")
    with pytest.raises(DatasetError, match="no such dataset"):
        resolve(f"dataset:{wrong}", "me", tmp_path)


@pytest.mark.parametrize("owner", ["", "..", "a/b", "a\0"])
def test_an_owner_is_a_name(tmp_path: Path, owner: str) -> None:
    with pytest.raises(ValueError, match="owner"):
        Datasets(tmp_path, owner)


def test_keeping_the_same_again_gives_the_first(tmp_path: Path) -> None:
    assert kept(tmp_path, "me") == kept(tmp_path, "me")
    assert len(Datasets(tmp_path, "me").all()) == 1
    assert len(list((tmp_path / "datasets" / "me").iterdir())) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": 1}'])
def test_a_damaged_manifest_is_no_dataset(tmp_path: Path, text: str) -> None:
    made = kept(tmp_path, "me")
    (tmp_path / "datasets" / "me" / made / "manifest.json").write_text(text)
    assert Datasets(tmp_path, "me").all() == []
    with pytest.raises(DatasetError, match="damaged; upload the file again"):
        resolve(f"dataset:{made}", "me", tmp_path)
    assert kept(tmp_path, "me") == made  # uploaded again, it is whole
    assert find(f"dataset:{made}", "me", tmp_path).rows == 1
    assert [each.name for each in (tmp_path / "datasets" / "me").iterdir()] == [made]


def test_a_manifest_of_a_later_version_is_read(tmp_path: Path) -> None:
    made = kept(tmp_path, "me")
    manifest = tmp_path / "datasets" / "me" / made / "manifest.json"
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**document, "licence": "MIT", "columns": {**document["columns"], "images": None}}))
    assert find(f"dataset:{made}", "me", tmp_path).columns == Columns()
    assert len(Datasets(tmp_path, "me").all()) == 1


@pytest.mark.parametrize("has_links", [True, False])
def test_a_job_that_began_with_a_dataset_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:
        monkeypatch.setattr(Path, "hardlink_to", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    made, folder = kept(tmp_path, "me"), tmp_path / "jobs" / "job-1" / "data"
    (folder / made).mkdir(parents=True)  # a start that was cut short
    began = locate(f"dataset:{made}", Columns(), "me", tmp_path, folder)
    Datasets(tmp_path, "me").delete(made)
    assert locate(f"dataset:{made}", Columns(), "me", tmp_path, folder) == began
    assert began[0][0].read_bytes() == ROW
    with pytest.raises(DatasetError, match="no such dataset"):
        locate(f"dataset:{made}", Columns(), "me", tmp_path, folder.with_name("other"))
    with pytest.raises(DatasetError, match="no such dataset"):
        locate("dataset:../data", Columns(), "me", tmp_path, folder)


def test_a_jobs_splits_outlive_their_datasets(tmp_path: Path) -> None:
    data = {
        "type": "files",
        "train": f"dataset:{kept(tmp_path, 'me')}",
        "validation": f"dataset:{kept(tmp_path, 'me')}",
    }
    objectives = [{"name": "a", "reward": {"name": "math"}}]
    spec = parse_spec({"name": "x", "steps": 1, "policy": {"model": "a/b"}, "data": data, "objectives": objectives})
    options: dict[str, Any] = {"model": "none", "encoder": lambda _: [1], "owner": "me"}
    began = load_splits(spec, tmp_path, data_dir=tmp_path / "data", **options)
    Datasets(tmp_path, "me").delete(data["train"].removeprefix("dataset:"))
    assert load_splits(spec, tmp_path, data_dir=tmp_path / "data", **options) == began


def test_a_path_keeps_the_columns_of_the_spec(tmp_path: Path) -> None:
    columns = Columns(prompt="q", answer=None)
    assert locate("/x/y.csv", columns, "me", tmp_path) == ([Path("/x/y.csv")], columns)


def test_csv_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'\xef\xbb\xbfprompt,answer\r\n"two\nlines",1\r\n\r\n2+2,\r\n')
    assert [(p.content, p.answer, p.row) for p in load_prompts(path, Columns())] == [
        ("two\nlines", "1", 1),
        ("2+2", "", 2),
    ]
    assert [p.row for p in preview(path, Columns(), after=1, limit=9)] == [2]


def test_problems_are_collected_up_to_a_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ROW + b"{\n[]\n" + ROW + b'{"prompt": "x"}\n')
    rows, problems = examine(path, Columns(), most=9)
    assert rows == 5
    assert [problem.partition(": ")[2].partition(":")[0] for problem in problems] == ["row 2", "row 3", "row 5"]
    assert len(examine(path, Columns(), most=2)[1]) == 2


def test_a_row_without_end_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    rows, problems = check(path, Columns())
    assert (rows, problems) == (0, ["row 1: longer than 16 MiB"])


def test_what_only_huge_memory_holds_is_refused(tmp_path: Path) -> None:
    text = arrow.DictionaryArray.from_arrays(
        [0] * 2048, ["x" * (8 << 20)]
    )  # 8 MiB once, 8 GiB a batch when written out
    path = tmp_path / "rows.parquet"
    parquet.write_table(arrow.table({"prompt": text, "answer": ["1"] * 2048}), path)
    assert path.stat().st_size < 64 << 20
    rows, problems = check(path, Columns())
    assert problems, rows


def test_hub_ids_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    objectives = [{"name": "a", "reward": {"name": "math"}}]
    access = Access(owner="me", state_dir=tmp_path, roots=(tmp_path / "open",))
    for model, allowed in (
        ("someone/model-1.5B", True),
        ("gpt2", True),
        ("quickstart", True),
        (str(tmp_path / "open" / "m"), True),
        (str(tmp_path / "openly"), False),
        ("someone/../x", False),
        ("../x", False),
        ("~/x", False),
        ("a/b/c", False),
        ("here", False),
        ("a\0b", False),
    ):
        document = {"name": "x", "steps": 1, "policy": {"model": model}, "data": {"type": "quickstart"}}
        problems = access.problems(parse_spec({**document, "objectives": objectives}))
        assert (problems == []) is allowed, model
        if model == "quickstart":
            continue
        learned = {"name": "b", "reward": {"name": "regression", "options": {"model": model}}, "range": [0, 1]}
        gold = {"reward": learned["reward"]}
        document |= {"policy": {"model": "quickstart"}, "objectives": [*objectives, learned], "gold": gold}
        fields = [field for field, _ in access.problems(parse_spec(document))]
        refused = ["objectives.1.reward.options.model", "gold.reward.options.model"]
        assert fields == ([] if allowed else refused), model


def swollen(path: Path, *, characters: int, rows: int) -> Path:
    """A Parquet file that says one long text over and over in few bytes."""
    text = arrow.DictionaryArray.from_arrays(arrow.array([0] * rows, arrow.int32()), arrow.array(["x" * characters]))
    parquet.write_table(arrow.table({"prompt": text, "answer": arrow.array(["1"] * rows)}), path, compression="zstd")
    return path


def test_a_small_file_of_much_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = swollen(tmp_path / "data.parquet", characters=10_000, rows=3000)
    assert path.stat().st_size < 2000
    assert examine(path, Columns(), most=9) == (3000, [])
    monkeypatch.setattr("orchestrator.rollouts.prompts.MAX_CHARACTERS", 1_000_000)
    rows, (problem,) = examine(path, Columns(), most=9)
    assert rows == 100  # 10,001 characters each: it stops where there are too many
    assert problem.endswith("row 100: more than 1000000 characters of text so far; use fewer rows")
    with pytest.raises(DatasetError, match="row 100: more than"):
        list(in_bounds((path, prompt) for prompt in each_prompt(path, Columns())))
    rows = ((path, prompt) for prompt in each_prompt(path, Columns(), limit=99))
    assert len(list(in_bounds(rows))) == 99


def test_what_a_child_says_of_a_jobs_files(tmp_path: Path) -> None:
    good, bad = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    good.write_text('{"prompt": "1+1", "answer": "2"}\n')
    bad.write_text('{"prompt": "1+1"}\n')
    found = outcomes_of([Reading(paths=(path,), columns=Columns()) for path in (good, bad)])
    assert found == [Contents(domains={None}, rows=1), f"{bad}: row 1: no 'answer'; found prompt; {NO_ANSWERS}"]
    assert shown(good, Columns(), after=0, limit=5) == [{"row": 1, "prompt": "1+1", "answer": "2"}]
    with pytest.raises(DatasetError, match="no 'answer'"):
        shown(bad, Columns(), after=0, limit=5)


def test_a_child_that_fails_is_a_problem_of_the_file_that_it_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = [Reading(paths=(tmp_path / name,), columns=Columns()) for name in ("a.jsonl", "b.jsonl")]

    def ask(_: str, question: dict[str, Any], **__: float) -> list[Any]:
        if any(document["paths"][0].endswith("b.jsonl") for document in question["read"]):
            raise children.ChildError
        return [
            {
                "problem": None,
                "domains": ["math"],
                "details": [],
                "unanswered": [[None, [3, 1]]],
                "unmeetable": [["math", [["math", [1, 2]]]]],
                "rows": 4,
                "repeated": 2,
                "validated": 1,
                "twice": 3,
                "boxed": 2,
            }
            for _ in question["read"]
        ]

    monkeypatch.setattr(children, "ask", ask)
    first, second = outcomes_of(readings)
    unmeetable = {"math": {"math": (1, 2)}}
    counts = {"rows": 4, "repeated": 2, "validated": 1, "twice": 3, "boxed": 2}
    assert first == Contents(domains={"math"}, unanswered={None: (3, 1)}, unmeetable=unmeetable, **counts)
    assert isinstance(second, str)
    assert "within the memory that the server has for it" in second
    for error, expected in ((children.ChildTimeout, [None, None]), (children.ChildBusy, None)):
        monkeypatch.setattr(children, "ask", Mock(side_effect=error))
        if expected is None:
            with pytest.raises(error):
                outcomes_of(readings)
        else:
            assert outcomes_of(readings) == expected
