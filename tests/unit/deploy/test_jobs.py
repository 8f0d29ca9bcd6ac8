"""The example jobs can be run as they are: their data are what deploy/example_data.py makes of the hub's."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from huggingface_hub.utils import filter_repo_objects

from deploy import example_data
from orchestrator.checks.preflight import preflight
from orchestrator.spec import load_spec

PROJECT = Path(__file__).parents[3]
JOBS = sorted((PROJECT / "deploy" / "jobs").iterdir())


def hub(folder: Path) -> Path:
    """What the hub's repositories hold, in small and in the same columns."""
    problems = [{"problem": f"{i} + 1?", "answer": f"{i + 1}", "level": 1, "solution": "s"} for i in range(510)]
    (folder / "data").mkdir(parents=True)
    unanswered = {"problem": "?", "answer": "", "level": 1, "solution": "s"}
    for split, rows in (("train", [*problems, unanswered]), ("test", problems[:5])):
        parquet.write_table(arrow.Table.from_pylist(rows), folder / "data" / f"{split}-00000-of-00001.parquet")
    rated = {"prompt": "c#", "response": "A language.", "helpfulness": 3, "correctness": 4, "coherence": 4}
    for split in ("train", "validation"):
        with gzip.open(folder / f"{split}.jsonl.gz", "wt") as file:
            file.write(json.dumps({**rated, "complexity": 2, "verbosity": 1}) + "\n")
    return folder


@pytest.mark.parametrize("job", JOBS, ids=[job.name for job in JOBS])
def test_an_example_has_its_data_where_its_comment_says(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = hub(tmp_path / "hub")
    monkeypatch.chdir(tmp_path)
    spec = load_spec(job)
    for row in [line.lstrip("# ") for line in job.read_text().splitlines() if line.startswith("#   {")]:  # as it says
        Path("train.jsonl").write_text("".join(row.replace("12", str(i)) + "\n" for i in range(40)))
    named = [name for name in example_data.SETS if f"deploy/example_data.py {name}" in job.read_text()]
    if named:
        assert preflight(spec)  # before they are fetched
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(source))
    if named:
        example_data.main(named)
    assert preflight(spec) == []


def test_no_more_is_fetched_than_is_read(tmp_path: Path) -> None:
    """The hub's `*` takes folders too."""
    source = hub(tmp_path)
    (source / "preference").mkdir()
    (source / "preference" / "preference.jsonl.gz").write_bytes(b"")
    held = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
    fetched = filter_repo_objects(held, allow_patterns=example_data.SETS["ratings"][1])
    assert set(fetched) == {"train.jsonl.gz", "validation.jsonl.gz"}


def test_math_holds_some_of_the_training_set_back(tmp_path: Path) -> None:
    example_data.math(hub(tmp_path / "hub"), tmp_path)
    rows: dict[str, list[Any]] = {
        split: [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "validation", "test")
    }
    assert {split: len(found) for split, found in rows.items()} == {"train": 10, "validation": 500, "test": 5}
    assert not {row["prompt"] for row in rows["train"]} & {row["prompt"] for row in rows["validation"]}
    assert rows["test"][0] == {"prompt": f"0 + 1?{example_data.ASK}", "answer": "1"}


def test_ratings_are_what_the_job_learns_from(tmp_path: Path) -> None:
    spec: Any = load_spec(PROJECT / "deploy" / "jobs" / "reward_model.yaml")
    example_data.ratings(hub(tmp_path / "hub"), tmp_path)
    (row,) = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert row["ratings"].keys() == {head.name for head in spec.training.heads}
    assert row == {
        "prompt": "c#", "completion": "A language.", "ratings": {"helpfulness": 3, "coherence": 4, "verbosity": 1}
    }  # fmt: skip
