"""A hub id without a commit is, for all of a job's life, the one that its branch had at the start."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from orchestrator.pinning import at_one_commit
from orchestrator.spec import JobSpec
from tests.support import small_spec

FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of earlier downloads, which is all that there is of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub" / "models--some--model"


def publish(hub: Path, commit: str, branch: str = "main") -> None:
    (hub / "snapshots" / commit).mkdir(parents=True)
    (hub / "snapshots" / commit / "config.json").write_text("{}")
    (hub / "refs").mkdir(exist_ok=True)
    (hub / "refs" / branch).write_text(commit)


def job(**policy: str) -> JobSpec:
    spec = small_spec("some/model")
    return spec.model_copy(update={"policy": spec.policy.model_copy(update=policy)})


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_later_commit_is_not_taken_by_a_resume(hub: Path, tmp_path: Path, revision: str | None) -> None:
    spec = job() if revision is None else job(revision=revision)
    publish(hub, FIRST)
    assert at_one_commit(spec, "some/model", tmp_path / "data").policy.revision == FIRST
    publish(hub, SECOND)
    assert at_one_commit(spec, "some/model", tmp_path / "data").policy.revision == FIRST
    assert at_one_commit(spec, "some/model", tmp_path / "another").policy.revision == SECOND
    assert spec.policy.revision == revision


@pytest.mark.usefixtures("hub")
def test_what_has_no_commit_to_find_stays_as_it_was(tmp_path: Path) -> None:
    named = job(revision=SECOND)
    assert at_one_commit(named, "some/model", tmp_path / "data") is named
    assert at_one_commit(job(), "some/model", tmp_path / "data").policy.revision is None  # nor in the cache
    assert at_one_commit(job(), str(tmp_path), tmp_path / "data").policy.revision is None  # a directory
    assert not (tmp_path / "data").exists()
