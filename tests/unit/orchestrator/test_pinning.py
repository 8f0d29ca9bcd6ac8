"""A hub id without a commit is, for all of a job's life, the one that its branch had at the start."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from orchestrator import driver
from orchestrator.errors import DoesNotFit
from orchestrator.journal import StoreJournal, Wishes
from orchestrator.pinning import at_one_commit, trained_commit
from orchestrator.spec import JobSpec
from orchestrator.state.records import Checkpoint
from orchestrator.storage.checkpoint_store import CheckpointStore, Remote
from orchestrator.storage.checkpoints import STATE, STATE_FORMAT, Unreadable, write_checkpoint, write_json
from tests.loop_fakes import make_spec, start
from tests.support import small_spec
from tests.unit.orchestrator.test_driver import CLAIM, LEASE, FakeStore

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


def test_a_checkpoint_of_a_later_format_is_heard_of_before_anything_is_built(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    later = {"format": STATE_FORMAT + 1}
    path, manifest = write_checkpoint(root, step=3, fence=1, fill=lambda folder: write_json(folder / STATE, later))
    known = [Checkpoint(step=3, path=str(path), digest=manifest.digest, metrics={}, on_front=False)]
    with pytest.raises(Unreadable, match="it waits for the version that wrote it"):
        trained_commit(CheckpointStore(root), known)


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
    assert at_one_commit(spec, "some/model", tmp_path / "another job").policy.revision == SECOND
    assert spec.policy.revision == revision


def test_another_machine_takes_the_commit_of_the_checkpoints(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has none of the files of the machine that is gone, or those of a try that came to nothing."""
    journal = StoreJournal(FakeStore(), LEASE, Wishes)  # type: ignore[arg-type]
    store, url = journal.store, f"file://{tmp_path}/store"
    publish(hub, FIRST)
    spec = make_spec(steps=1)
    first = at_one_commit(job(), "some/model", tmp_path / "one")
    run = start(tmp_path / "one", spec, store=CheckpointStore(tmp_path / "one", Remote(url, "local", "job")))
    run.loop.parts = replace(run.loop.parts, policy_commit=first.policy.revision)
    run.loop.run()
    store.registered = [  # type: ignore[attr-defined]
        Checkpoint(step=step, path="", digest=entry["digest"], metrics={}, on_front=False)
        for step, entry in run.journal.registered.items()
    ]
    publish(hub, SECOND)
    built: list[str | None] = []

    def build(_spec: JobSpec, *_arguments: Any, data_dir: Path, trained_commit: str | None, **options: Any) -> Any:
        assert options["is_resumed"]
        for _ in range(2):  # the second time the file has it
            built.append(at_one_commit(job(), "some/model", data_dir, trained=trained_commit).policy.revision)
        raise DoesNotFit("no more of the job is needed")

    monkeypatch.setattr("orchestrator.build.build", build)
    here = tmp_path / "two" / "jobs" / "job"
    for there_already in (False, True):
        if there_already:
            (here / "data" / "policy-commit").write_text(SECOND)
        checkpoints = CheckpointStore(here / "checkpoints", Remote(url, "local", "job"))
        with pytest.raises(DoesNotFit):
            driver.align(spec, store, journal, CLAIM, checkpoints, ray_address=None)
    assert built == [FIRST] * 4


@pytest.mark.usefixtures("hub")
def test_what_has_no_commit_to_find_stays_as_it_was(tmp_path: Path) -> None:
    named = job(revision=SECOND)
    assert at_one_commit(named, "some/model", tmp_path / "data") is named
    assert at_one_commit(job(), "some/model", tmp_path / "data").policy.revision is None  # nor in the cache
    assert at_one_commit(job(), str(tmp_path), tmp_path / "data").policy.revision is None  # a directory
    assert not (tmp_path / "data").exists()
