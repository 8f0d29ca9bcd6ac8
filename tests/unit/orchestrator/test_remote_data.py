"""Data by URL: only below what the operator allowed, and the same bytes for a job's whole life."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem

from orchestrator.checks.access import HUB, Access
from orchestrator.checks.preflight import preflight
from orchestrator.inputs import load_splits
from orchestrator.rollouts.prompts import DatasetError
from orchestrator.spec import JobSpec, parse_spec
from orchestrator.storage import remote, remote_data
from orchestrator.storage.remote import RemoteAway, RemoteError, is_under
from orchestrator.storage.remote_data import TooLarge, fetch, files_of
from policies.disk import sha256_of
from services.settings import Limits
from services.submission import anchored
from tests.loop_fakes import Killed, resume, start

ROWS = "".join(json.dumps({"prompt": f"{i}+1", "answer": str(i + 1)}) + "\n" for i in range(4))


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(remote.time, "sleep", lambda _: None)


@pytest.fixture(params=["memory", "file"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        (tmp_path / "open").mkdir()
        yield f"file://{tmp_path}/open"
        return
    name = f"memory://{secrets.token_hex(8)}"
    yield name
    if fsspec.filesystem("memory").exists(name):
        fsspec.filesystem("memory").rm(name, recursive=True)


def put(url: str, text: str = ROWS) -> str:
    with fsspec.open(url, "w") as file:
        file.write(text)
    return url


def spec_of(train: str, validation: str | None = None) -> JobSpec:
    objectives = [
        {"name": "accuracy", "reward": {"name": "math"}},
        {"name": "brevity", "reward": {"name": "conciseness"}},
    ]
    document = {"name": "x", "steps": 4, "policy": {"model": "someone/model"}, "objectives": objectives}
    return parse_spec({**document, "data": {"type": "files", "train": train, "validation": validation or train}})


def access(tmp_path: Path, *urls: str, roots: tuple[Path, ...] | None = None) -> Access:
    return Access(owner="me", state_dir=tmp_path / "state", roots=roots, urls=urls)


# -------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("s3://bucket/data/x.jsonl", True),
        ("S3://bucket/data/deep/x.jsonl", True),
        ("s3://bucket/data", True),
        ("s3://bucket/data-evil/x.jsonl", False),
        ("s3://bucket/other/x.jsonl", False),
        ("s3://bucket-evil/data/x.jsonl", False),
        ("s3://bucket", False),
        ("gs://bucket/data/x.jsonl", False),
        ("http://bucket/data/x.jsonl", False),
        ("s3://bucket/data/../secret/x.jsonl", None),
        ("s3://bucket/data/%2e%2e/secret/x.jsonl", None),
        ("s3://bucket/data/a%2Fb.jsonl", None),
        ("s3://bucket/data/..\\x.jsonl", None),
        ("s3://bucket/data//x.jsonl", None),
        ("s3://bucket//data/x.jsonl", None),
        ("s3://bucket/data/./x.jsonl", None),
        ("s3://key:secret@bucket/data/x.jsonl", None),
        ("s3://bucket/data/x.jsonl?versionId=1", None),
        ("s3://bucket/data/x.jsonl#a", None),
        ("s3://bucket/data/x\n.jsonl", None),
        ("simplecache::s3://bucket/data/x.jsonl", None),
        ("zip://x.jsonl::s3://bucket/data/x.zip", None),
        ("/bucket/data/x.jsonl", None),
    ],
)
def test_what_is_below_a_url(url: str, allowed: bool | None) -> None:
    for base in ("s3://bucket/data", "s3://bucket/data/"):
        if allowed is None:
            with pytest.raises(RemoteError):
                is_under(url, base)
        else:
            assert is_under(url, base) is allowed


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_url_that_was_not_allowed_is_a_problem_of_its_field(tmp_path: Path, split: str) -> None:
    good = "s3://bucket/data/x.jsonl"
    for bad, reason in (
        ("s3://bucket-evil/data/x.jsonl", "not under one that the operator allowed"),
        ("s3://bucket/data/../x.jsonl", "must not have empty parts"),
        ("s3://a:hunter2@bucket/data/x.jsonl", "must not hold credentials"),
        ("file:///etc/passwd", "not under one that the operator allowed"),
    ):
        spec = spec_of(bad, good) if split == "train" else spec_of(good, bad)
        for roots in (None, (), (tmp_path,)):  # whoever it is, and whatever paths they may name
            ((field, message),) = access(tmp_path, "s3://bucket/data", roots=roots).problems(spec)
            assert field == f"data.{split}"
            assert reason in message
            assert "hunter2" not in message
    assert access(tmp_path, "s3://bucket/data", roots=()).problems(spec_of(good)) == []
    assert len(access(tmp_path).problems(spec_of(good))) == 2


def test_datasets_of_the_hub_are_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of the hub's own filesystem, which says what is there; here nobody reaches it."""
    url = "hf://datasets/org/name/data/train-00000.parquet"
    filesystem, path = remote.open_filesystem(url)
    assert type(filesystem).__name__ == "HfFileSystem"
    assert path == "datasets/org/name/data/train-00000.parquet"
    own = access(tmp_path, HUB)
    assert own.problems(spec_of(url)) == []
    for other in ("hf://buckets/org/name/x.parquet", "hf://org/model/x.parquet", "hf://datasets/../org/x.parquet"):
        assert [field for field, _ in own.problems(spec_of(url, other))] == ["data.validation"], other
    assert len(access(tmp_path).problems(spec_of(url))) == 2

    def missing(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError(url)

    monkeypatch.setattr(type(filesystem), "open", missing)
    assert preflight(spec_of(url), own) == [("data.train", "no such file"), ("data.validation", "no such file")]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in the hub's place, as nobody reaches that here: `datasets/ORG/NAME` below it are repositories."""
    folder = tmp_path / "hub"
    there = DirFileSystem(str(folder), fsspec.filesystem("file"))
    monkeypatch.setattr(remote_data, "open_filesystem", lambda url: (there, url.removeprefix("hf://")))
    return folder


def keep(repository: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(f'{{"prompt": "{i}", "answer": "{i}"}}\n')


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (("README.md", "train.jsonl", "train_more.jsonl", "test.jsonl"), "train", ["train.jsonl"]),
        (("data/train-00001-of-00002.jsonl", "data/train-00000-of-00002.jsonl", "data/train.csv"), "train",
         ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"]),
        (("data/train.csv", "x/train.jsonl", "y/train.parquet"), "train", ["y/train.parquet"]),
        (("m/test/a.csv", "m/train/a.csv", "m/train/b.csv"), "train", ["m/train/a.csv", "m/train/b.csv"]),
        (("a.b/validation.jsonl",), "validation", ["a.b/validation.jsonl"]),
    ],
)  # fmt: skip
def test_a_dataset_of_the_hub_is_named_without_a_path(
    hub: Path, tmp_path: Path, names: tuple[str, ...], split: str, expected: list[str]
) -> None:
    repository = hub / "datasets/org/name@v1"
    keep(repository, *names)
    base = "hf://datasets/org/name@v1"
    found = [f"{base}/{name}" for name in expected]
    assert files_of(base, split, tmp_path / "data") == found
    assert files_of(f"{base}:{split}", "test", tmp_path / "else") == found
    shutil.rmtree(repository)
    assert files_of(base, split, tmp_path / "data") == found, "what it meant is kept with the job"
    for other in (f"{base}/{names[0]}", "s3://bucket/name", "hf://datasets/org/x.jsonl"):
        assert files_of(other, split, tmp_path / "data") == [other]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("data.jsonl", "x.bin"), r"is called after the split 'train'; name a split .* there are data.jsonl$"),
        (("a/train.jsonl", "b/train.jsonl"), r"files of 'train' are in several folders \(a, b\); name the files"),
        ((), "the hub knows no such dataset, or keeps it private|there are none"),
    ],
)
def test_a_dataset_whose_split_can_not_be_told_is_refused(
    hub: Path, tmp_path: Path, names: tuple[str, ...], says: str
) -> None:
    keep(hub / "datasets/org/name", *names)
    url = "hf://datasets/org/name"
    with pytest.raises(DatasetError, match=says) as caught:
        files_of(url, "train", tmp_path / "data")
    assert str(caught.value).startswith(f"{url}: ")
    ((field, message), _) = preflight(spec_of(url), access(tmp_path, HUB))
    assert field == "data.train"
    assert url not in message
    assert not (tmp_path / "data").exists()


def test_a_job_has_the_splits_of_a_dataset_of_the_hub(hub: Path, tmp_path: Path) -> None:
    """The share of the train split too; and the same rows when it goes on, whatever became of the dataset."""
    url, names = "hf://datasets/org/name", ("data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl")
    keep(hub / "datasets/org/name", *names, "data/validation.jsonl")
    spec, options = spec_of(url), {"model": "none", "encoder": lambda _: [1], "data_dir": tmp_path / "data"}
    assert preflight(spec, access(tmp_path, HUB)) == []
    first = load_splits(spec, tmp_path, **options)  # type: ignore[arg-type]
    assert [prompt.text for prompt in first.train] == ["0", "1"]
    assert [prompt.text for prompt in first.validation] == ["2"]
    keep(hub / "datasets/org/name", "data/validation-00000-of-00001.jsonl")
    assert load_splits(spec, tmp_path, **options) == first  # type: ignore[arg-type]
    document = spec.model_dump(mode="json")
    document["data"]["validation"] = {"share": 0.5, "seed": 0}
    shared = load_splits(parse_spec(document), tmp_path, **options)  # type: ignore[arg-type]
    assert sorted(p.text for p in [*shared.train, *shared.validation]) == ["0", "1"]


def test_a_link_out_of_a_root_on_disk_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "open" / "link").symlink_to(tmp_path / "secret")
    allowed = access(tmp_path, f"file://{tmp_path}/open")
    assert allowed.problems(spec_of(f"file://{tmp_path}/open/x.jsonl")) == []
    assert len(allowed.problems(spec_of(f"file://{tmp_path}/open/link/x.jsonl"))) == 2


def test_urls_come_from_the_environment() -> None:
    assert Limits.from_environment({}).data_urls == ()
    found = Limits.from_environment({"EQUIPOISE_DATA_URLS": "memory://a  file:///b"})
    assert found.data_urls == ("memory://a", "file:///b")
    for text in ("nothing://x", "/a/path", "s3://a:b@c/d", "s3://bucket"):  # the last for want of s3fs
        with pytest.raises(ValueError, match=r"^EQUIPOISE_DATA_URLS: "):
            Limits.from_environment({"EQUIPOISE_DATA_URLS": text})


def test_a_client_leaves_urls_as_they_are() -> None:
    assert anchored(spec_of("s3://bucket/x.jsonl"))["data"]["train"] == "s3://bucket/x.jsonl"


# ------------------------------------------------------------------------- before the job


def test_rows_are_checked_before_a_job_is_accepted(tmp_path: Path, root: str) -> None:
    good = put(f"{root}/x.jsonl")
    assert preflight(spec_of(good), access(tmp_path, root)) == []
    for name, text, reason in (
        ("bad.jsonl", '{"prompt": "1"}\n', "row 1: no 'answer'"),
        ("absent.jsonl", None, "no such file"),
        ("x.txt", "x", "expected a .jsonl, .csv or .parquet file"),
    ):
        url = f"{root}/{name}"
        if text is not None:
            put(url, text)
        ((field, message),) = preflight(spec_of(good, url), access(tmp_path, root))
        assert field == "data.validation"
        assert message.startswith(reason)
        assert url not in message  # who sent it knows it, nobody else is to read it
    assert [field for field, _ in preflight(spec_of(good))] == ["data.train", "data.validation"]


def test_what_is_large_is_left_to_the_driver(tmp_path: Path, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.checks.preflight.MAX_FETCHED_BYTES", 100)
    url = put(f"{root}/x.jsonl", "x" * 101)
    assert preflight(spec_of(url), access(tmp_path, root)) == []
    with pytest.raises(TooLarge):
        fetch(url, tmp_path / "data", most_bytes=100)
    assert list((tmp_path / "data").iterdir()) == []
    put(url, "x" * 100)
    assert preflight(spec_of(url), access(tmp_path, root)) != []


# -------------------------------------------------------------------------------- the job


def test_a_job_reads_the_bytes_that_it_began_with(tmp_path: Path, root: str) -> None:
    url = put(f"{root}/x.jsonl")
    spec, options = spec_of(url), {"model": "none", "encoder": lambda _: [1], "data_dir": tmp_path / "data"}
    first = load_splits(spec, tmp_path, **options)  # type: ignore[arg-type]
    assert [prompt.text for prompt in first.train] == ["0+1", "1+1", "2+1", "3+1"]
    (kept,) = (tmp_path / "data").iterdir()
    assert first.sha256 == {"train": sha256_of(kept), "validation": sha256_of(kept)}
    put(url, ROWS.replace("3+1", "4+1"))
    assert load_splits(spec, tmp_path, **options) == first  # type: ignore[arg-type]
    kept.write_text("damaged")
    again = load_splits(spec, tmp_path, **options)  # type: ignore[arg-type]
    assert again.train[3].text == "4+1"
    assert again.sha256 != first.sha256  # which the checkpoint's state tells


def test_the_driver_speaks_of_the_url(tmp_path: Path, root: str) -> None:
    url = put(f"{root}/x.jsonl", "{}\n")
    with pytest.raises(DatasetError) as caught:
        load_splits(spec_of(url), tmp_path, model="none", encoder=lambda _: [1], data_dir=tmp_path / "data")
    assert str(caught.value).startswith(f"{url}: row 1: no 'prompt'")


def test_who_does_not_answer_and_who_does_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, tries = f"file://{tmp_path}/x.jsonl", []

    def failing(error: Exception) -> Any:
        def download(*_: Any) -> None:
            tries.append(error)
            raise error

        return download

    monkeypatch.setattr(remote_data, "_download", failing(ConnectionError("reset")))
    with pytest.raises(RemoteAway, match="reset"):
        fetch(url, tmp_path / "data", pauses_s=(1, 1))
    assert len(tries) == 3
    monkeypatch.setattr(remote_data, "_download", failing(PermissionError()))
    with pytest.raises(DatasetError, match="credentials do not open it"):
        fetch(url, tmp_path / "data", pauses_s=(1, 1))
    assert len(tries) == 4
    assert list((tmp_path / "data").iterdir()) == []


def test_changed_data_is_refused_when_a_job_goes_on(tmp_path: Path) -> None:
    document = spec_of("s3://bucket/x.jsonl").model_dump(mode="json")
    spec = parse_spec({**document, "rollout": {"prompts_per_step": 3, "rollouts_per_prompt": 4, "max_tokens": 9}})
    run = start(tmp_path, spec)
    run.loop.parts.splits.sha256.update({"train": "a" * 64, "validation": "b" * 64})
    run.journal.die_at = ("before commit", 3)
    with pytest.raises(Killed):
        run.loop.run()
    with pytest.raises(ValueError, match=r"data\.train: s3://bucket/x\.jsonl: it has another content"):
        resume(run, spec)  # of a machine where it has no, that is another, sum
    again = start(tmp_path, spec, journal=run.journal, fence=2)
    again.loop.parts.splits.sha256.update({"train": "a" * 64, "validation": "b" * 64})
    again.loop.resume(max(run.journal.registered), sorted(run.journal.registered))
    assert again.loop.state.step == max(run.journal.registered)
