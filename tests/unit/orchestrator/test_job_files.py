"""A job's directory is taken away whole, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.storage.job_files import hide, sweep
from orchestrator.storage.recovery import keep_document


def made(state_dir: Path, name: str, *, owner: str = "acme") -> Path:
    directory = state_dir / "jobs" / name
    (directory / "checkpoints").mkdir(parents=True)
    (directory / "checkpoints" / "file").write_text(name)
    keep_document(directory, owner=owner, spec="{}")
    return directory


def test_it_goes_out_of_sight_at_once_and_what_a_kill_left_is_swept(tmp_path: Path) -> None:
    for name in ("job-1", "job-2"):
        made(tmp_path, name)
    for _ in range(2):  # again after a kill before the record was deleted
        assert hide(tmp_path, "job-1", owner="acme") == tmp_path / "jobs" / ".job-1-removed"
        assert not (tmp_path / "jobs" / "job-1").exists()
    sweep(tmp_path)
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["job-2"]
    assert hide(tmp_path, "job-1", owner="acme") is None
    assert hide(tmp_path / "absent", "job-1", owner="acme") is None
    sweep(tmp_path / "absent")


def test_nothing_but_the_jobs_own_directory_goes(tmp_path: Path) -> None:
    theirs, outside = made(tmp_path, "job-1", owner="other"), tmp_path / "outside"
    with pytest.raises(PermissionError, match="another owner's"):
        hide(tmp_path, "job-1", owner="acme")
    outside.mkdir()
    (tmp_path / "jobs" / "job-2").symlink_to(outside)
    assert hide(tmp_path, "job-2", owner="acme") is None
    (made(tmp_path, "job-3") / "link").symlink_to(outside)
    hide(tmp_path, "job-3", owner="acme")
    sweep(tmp_path)
    assert outside.is_dir()
    assert (theirs / "checkpoints" / "file").is_file()
    for wrong in ("..", ".", "a/b", ""):
        with pytest.raises(AssertionError):
            hide(tmp_path, wrong, owner="acme")
