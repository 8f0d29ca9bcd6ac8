"""Directories of jobs that no store knows: of forks that a quota refused or a kill cut short, of jobs long deleted."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

from orchestrator import checkpoints


def collect_orphans(state_dir: Path, known: Collection[str], *, older_than_s: float) -> list[str]:
    """Remove STATE/jobs/ID of every job that is not `known` and in which nothing changed for that long; their ids.

    `known` must be the jobs of all owners that share the directory. A fork's directory is made before its job is
    queued, so `older_than_s` must be above what an Idempotency-Key lives.
    """
    removed = []
    for directory in sorted((state_dir / "jobs").glob("*")):
        if directory.name in known or directory.is_symlink() or not directory.is_dir():
            continue
        try:
            changed = max(path.stat().st_mtime for path in (directory, *directory.iterdir()))
        except OSError:  # it goes, or someone writes to it, just now
            continue
        if time.time() - changed > older_than_s:
            checkpoints.remove(directory)
            removed.append(directory.name)
    return removed
