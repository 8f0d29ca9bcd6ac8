"""The copies of a checkpoint's policy that forks start from, and what a crash leaves of them.

A fork's copy is in its own directory, JOB/init, so that the parent's retention can't take it away. One that goes on
with its parent's run has the parent's checkpoints in JOB/checkpoints instead, where its driver finds them as after a
loss of Redis.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.fork_plans import PLAN_TTL_S
from orchestrator.state.store import Checkpoint, JobStore
from orchestrator.storage.checkpoints import (
    MANIFEST,
    STATE,
    CheckpointError,
    directory_name,
    parse_manifest,
    parse_state,
    verify,
)
from orchestrator.storage.recovery import GOES_ON, Survey, survey
from policies.disk import flush

ORPHAN_AGE_S = 3600.0
REFERENCES = "references.jsonl"  # beside the checkpoints, which have its digest


def copy_policy(
    checkpoint: Checkpoint,
    targets: Sequence[Path],
    *,
    find: Callable[[Checkpoint], Path] = lambda found: Path(found.path),
) -> None:
    """The checkpoint's policy, verified and flushed, at every target; those that are there stay.

    `find` says where this machine has the checkpoint. One copy is made, the others are links to its files where the
    disk has them. Raises CheckpointError, and NoRoom.
    """
    missing = [target for target in targets if not target.exists()]
    if not missing:
        return
    source = find(checkpoint)
    if verify(source, under="policy/").digest != checkpoint.digest:
        raise CheckpointError(f"step {checkpoint.step} is not the checkpoint that was registered; take another")
    try:
        _copy(source / "policy", missing[0], link=False)
        for target in missing[1:]:
            _copy(missing[0], target, link=True)
    except OSError as error:
        if is_full(error):
            raise NoRoom from error
        raise CheckpointError(
            f"can't copy the policy of step {checkpoint.step}: {error.strerror or 'a file failed'}; "
            "take another checkpoint if this one was dropped meanwhile"
        ) from error


def copy_run(parent: Path, checkpoints: Sequence[Checkpoint], target: Path) -> None:
    """All that the newest of a job's checkpoints goes on from, in the directory of another job.

    The others come along where they are here: the policies of the front. `parent` is the job's directory. Files are
    linked where the disk can, as nothing writes into a checkpoint. Raises CheckpointError, and NoRoom.
    """
    newest, *older = sorted(checkpoints, key=lambda found: found.step, reverse=True)
    source = _place(parent, newest)
    manifest = verify(source)
    if manifest.digest != newest.digest:
        raise CheckpointError(f"step {newest.step} is not the checkpoint that was registered")
    if manifest.gone:
        raise CheckpointError(f"of step {newest.step} the policy alone is kept")
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        (target / GOES_ON).touch()
        for folder in ("init", "data"):  # what a URL gave at first, it may give no more
            if (parent / folder).is_dir() and not (target / folder).exists():
                _copy(parent / folder, target / folder, link=True)
        _copy_references(source, parent, target)
        for found in (newest, *(found for found in older if _is_here(_place(parent, found), found))):
            if not _place(target, found).exists():
                _copy(_place(parent, found), _place(target, found), link=True)
    except OSError as error:
        if is_full(error):
            raise NoRoom from error
        raise CheckpointError(
            f"can't copy the run up to step {newest.step}: {error.strerror or 'a file failed'}"
        ) from error


def _place(job: Path, found: Checkpoint) -> Path:
    return job / "checkpoints" / directory_name(found.step)


def _is_here(directory: Path, found: Checkpoint) -> bool:
    try:
        return parse_manifest((directory / MANIFEST).read_bytes()).digest == found.digest
    except (OSError, ValueError):
        return False


def _copy_references(checkpoint: Path, parent: Path, target: Path) -> None:
    """What transforms compare with, if any: no link, as it may be written to. Raises CheckpointError."""
    state = parse_state((checkpoint / STATE).read_text(encoding="utf-8"))
    if (state.get("collector") or {}).get("references") is None:
        return
    if not (parent / REFERENCES).is_file():
        raise CheckpointError(f"{REFERENCES}, which it relies on, is not here")
    shutil.copy2(parent / REFERENCES, target / REFERENCES)
    flush(target / REFERENCES)


class NoRoom(Exception):
    """The disk, or a quota on it, is full."""


def is_full(error: OSError | shutil.Error) -> bool:
    """Also of what copytree raises: an error with those of many files in it, as text."""
    full = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, shutil.Error):
        return any(f"[Errno {code}]" in str(why) for _, _, why in error.args[0] for code in full)
    return error.errno in full


@contextlib.contextmanager
def forking(state_dir: Path) -> Iterator[None]:
    """From the first copy until the jobs are queued: what is copied here is nobody's yet, and stays."""
    with _locked(state_dir, fcntl.LOCK_SH):
        yield


def drop_orphans(
    state_dir: Path, store: JobStore, *, older_than_s: float = ORPHAN_AGE_S, found: Survey | None = None
) -> list[str]:
    """Deletes copies that a crash left between copy and submission, and returns the ids of their jobs.

    Only a directory with nothing but a fork's copies in it, which no owner has a job for, nor a job that names it, nor
    a plan that may be asked for again. Nothing while a fork is under way, nor with a Redis that does not know the jobs
    of the other directories (`found`; looked at here if absent): to one that was emptied, the copies of all forks that
    wait would be nobody's.
    """
    jobs = state_dir / "jobs"
    try:
        with _locked(state_dir, fcntl.LOCK_EX | fcntl.LOCK_NB):
            candidates = [path for path in jobs.iterdir() if _is_bare_copy(path, older_than_s)] if jobs.is_dir() else []
            if not candidates or not (found or survey(store, state_dir)).fits:
                return []
            wanted = _named_jobs(store, {path.name for path in candidates}) | _planned_jobs(state_dir)
            orphans = [path for path in candidates if path.name not in wanted]
            for path in orphans:
                shutil.rmtree(path, ignore_errors=True)
            return [path.name for path in orphans]
    except BlockingIOError:
        return []


def _is_bare_copy(directory: Path, older_than_s: float) -> bool:
    """By the inodes' own times, since a copy has its files' dates."""
    if directory.is_symlink() or not directory.is_dir():
        return False
    names = [path.name for path in directory.iterdir()]
    copied = {"init", "data", "checkpoints", REFERENCES} if GOES_ON in names else {"init"}
    if not all(name in copied or name.startswith((".init-", ".data-")) for name in names):
        return False
    newest = max(path.lstat().st_ctime for path in [directory, *directory.rglob("*")])
    return time.time() - newest > older_than_s


def _named_jobs(store: JobStore, job_ids: set[str]) -> set[str]:
    """Those of the ids that are a job of some owner's, or stand in the spec of one as a path."""
    found: set[str] = set()
    for owner in store.owners():
        reader = store.of_owner(owner)
        after, more = None, True
        while more:
            page = reader.jobs(after=after, limit=100)
            for job in page.items:
                spec = reader.spec(job.job_id)
                found |= {job_id for job_id in job_ids if job_id == job.job_id or f"/{job_id}/" in spec}
            after, more = page.last, page.has_more
    return found


def _planned_jobs(state_dir: Path) -> set[str]:
    """Those of the plans that are kept: who asks again gets what is missing of them."""
    found: set[str] = set()
    for path in (state_dir / "forks").glob("*.json"):
        with contextlib.suppress(FileNotFoundError, ValueError):
            if time.time() - path.stat().st_mtime <= PLAN_TTL_S:
                document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
                found |= {job["id"] for job in document.get("jobs", [])}  # an answer has none
    return found


@contextlib.contextmanager
def _locked(state_dir: Path, how: int) -> Iterator[None]:
    """Between processes; the system unlocks for one that dies. Raises BlockingIOError with LOCK_NB."""
    (state_dir / "forks").mkdir(parents=True, exist_ok=True)
    with (state_dir / "forks" / "lock").open("a") as file:
        fcntl.flock(file, how)
        yield


def _copy(source: Path, target: Path, *, link: bool) -> None:
    """Whole or not there; whoever comes first with the same target wins."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    hidden = target.with_name(f".{target.name}-{secrets.token_hex(8)}")
    try:
        shutil.copytree(source, hidden, copy_function=_link if link else shutil.copy2)
        for path in [*hidden.rglob("*"), hidden]:
            flush(path)
        try:
            hidden.rename(target)
        except OSError:
            if not target.exists():
                raise
        for folder in (target.parent, target.parent.parent):
            flush(folder)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
