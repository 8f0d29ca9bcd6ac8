"""The directory of a job that is deleted with its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from orchestrator.state.keys import is_name
from orchestrator.storage.recovery import DOCUMENT

_REMOVED = "-removed"


def hide(state_dir: Path, job_id: str, *, owner: str) -> Path | None:
    """Out of sight in one rename, also of what a deletion left that a kill cut short; None where there is none.

    Nothing but JOB itself: a link stays, and what it names. PermissionError where the directory says that it is another
    owner's; OSError.
    """
    assert is_name(job_id)
    directory = state_dir / "jobs" / job_id
    hidden = directory.with_name(f".{job_id}{_REMOVED}")
    if directory.is_symlink() or not directory.is_dir():
        return hidden if hidden.is_dir() else None
    if _owner_of(directory) not in (None, owner):
        raise PermissionError(f"{directory} is another owner's")
    shutil.rmtree(hidden, ignore_errors=True)
    directory.rename(hidden)
    return hidden


def sweep(state_dir: Path) -> None:
    """What kills left of such directories."""
    for hidden in (state_dir / "jobs").glob(f".*{_REMOVED}"):
        shutil.rmtree(hidden, ignore_errors=True)


def _owner_of(directory: Path) -> str | None:
    try:
        return str(json.loads((directory / DOCUMENT).read_text(encoding="utf-8"))["owner"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
