"""What a job's directory is worth when Redis has lost it: emptied, or put back from an older copy.

    JOB/job.json            owner, spec and a fork's origin, written by its first driver, and how it ended, by its last
                            one or by the worker (`survey`)
    JOB/checkpoints/        the places to restart from, each with its manifest

`recover` submits again the jobs that Redis does not know. The next driver of a job sees that the disk or the checkpoint
store is ahead of Redis, claims with a fence above all that wrote there, and registers what is whole. Ledger, events and
the steering log are gone; the steering that the newest checkpoint followed is kept, as the new version 1.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from orchestrator.errors import IllegalTransition, JobNotFound, OtherVersion
from orchestrator.journal import StoreJournal
from orchestrator.state.keys import Keys, is_name
from orchestrator.state.states import JobStatus, is_terminal
from orchestrator.state.store import Claim, JobStore, Origin
from orchestrator.steering import initial_steering
from orchestrator.storage.checkpoint_store import CheckpointStore, StoreAway, open_store
from orchestrator.storage.checkpoints import STATE, CheckpointError, Manifest, Unreadable, directory_name, parse_state
from orchestrator.stored_spec import read_stored

DOCUMENT = "job.json"
GOES_ON = ".init-whole"  # in the directory of a fork that goes on with its parent's run, until its driver told so
_CHUNK = 500  # jobs read per round trip


class Finding(StrEnum):
    """What became of a directory."""

    KNOWN = "known"  # Redis has the job: nothing to do
    RECOVERED = "recovered"  # paused, to go on from its newest checkpoint
    FINISHED = "finished"  # it had ended: its report and checkpoints stay where they are
    LOST = "lost"  # nothing tells what it was


@dataclass(frozen=True, kw_only=True)
class Found:
    """One directory. `step` is the checkpoint that a recovered job goes on from, 0 for its beginning."""

    job_id: str
    finding: Finding
    owner: str | None = None
    step: int = 0
    note: str = ""


def keep_document(
    directory: Path, *, owner: str, spec: str, origin: Origin | None = None, by: str | None = None
) -> None:
    """Write down what the job is. A disk that does not take it costs only this way back."""
    if not (directory / DOCUMENT).exists():
        forked = {} if origin is None else {"origin": {"parent": origin.parent, "step": origin.step}}
        submitted = {} if by is None else {"by": by}
        _write(directory, {"owner": owner, "spec": spec, **submitted, **forked})


def keep_ending(directory: Path, status: JobStatus) -> None:
    """Write down that the job has ended, so that nobody takes it up again."""
    with contextlib.suppress(OSError, ValueError):
        _write(directory, {**json.loads((directory / DOCUMENT).read_text(encoding="utf-8")), "ended": str(status)})


def _write(directory: Path, document: Mapping[str, object]) -> None:
    hidden = directory / f".{DOCUMENT}-{secrets.token_hex(8)}"  # a driver and its worker may write at the same time
    with contextlib.suppress(OSError):
        try:
            with hidden.open("w", encoding="utf-8") as file:
                json.dump(document, file)
                file.flush()
                os.fsync(file.fileno())
            hidden.rename(directory / DOCUMENT)
        finally:
            hidden.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What this Redis knows of the jobs that drivers have been at."""

    known: int
    missing: tuple[str, ...]  # jobs that it does not know, and that had not ended

    @property
    def fits(self) -> bool:
        """False of a Redis that was emptied, put back from an older copy, or is another installation's."""
        return self.known > 0 and not self.missing


def survey(any_store: JobStore, state_dir: Path, ended: dict[str, str] | None = None) -> Survey:
    """Also writes down how jobs ended whose driver could not: cancelled while they waited, say, or given up.

    `ended` keeps the owners of jobs that are over, for who asks often: their documents are read once.
    """
    entries, known, missing = list(_entries(state_dir, {} if ended is None else ended)), 0, []
    for start in range(0, len(entries), _CHUNK):
        chunk = entries[start : start + _CHUNK]
        commands = [("HGET", Keys(owner).job(directory.name), "status") for directory, owner, _ in chunk]
        for (directory, _, has_ended), status in zip(chunk, any_store.calls.reads(commands), strict=True):
            if status is not None:
                known += 1
                if not has_ended and is_terminal(JobStatus(status)):
                    keep_ending(directory, JobStatus(status))
            elif not has_ended:
                missing.append(directory.name)
    return Survey(known=known, missing=tuple(missing))


def _entries(state_dir: Path, ended: dict[str, str]) -> Iterator[tuple[Path, str, bool]]:
    """(directory, owner, whether it says how the job ended), of each that says what it is."""
    for directory in _directories(state_dir):
        if directory.name in ended:
            yield directory, ended[directory.name], True
            continue
        try:
            document = json.loads((directory / DOCUMENT).read_text(encoding="utf-8"))
            owner, has_ended = str(document["owner"]), "ended" in document
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if is_name(owner):
            if has_ended:
                ended[directory.name] = owner
            yield directory, owner, has_ended


def register_found(store: JobStore, journal: StoreJournal, claim: Claim, checkpoints: CheckpointStore) -> None:
    """After a claim that started above what is registered: register the whole checkpoints that Redis has lost.

    Raises Unreadable where there are none: an earlier holder, which found what the claim says, was elsewhere. Where
    some are here, the job goes on from these; the event says how far it had come `elsewhere`.
    """
    newest = max((checkpoint.step for checkpoint in store.checkpoints(journal.lease.job_id)), default=-1)
    if claim.step <= max(newest, 0):
        return
    found = checkpoints.found(above=newest, upto=claim.step)
    if newest < 0 and not found:
        raise Unreadable(f"no checkpoint up to step {claim.step} is in {checkpoints.root}; another machine had one")
    for manifest in found:
        journal.checkpoint(checkpoints.root / directory_name(manifest.step), manifest)
    step = found[-1].step if found else newest
    mark = checkpoints.root.with_name(GOES_ON)
    if mark.exists() and (origin := store.job(journal.lease.job_id).origin) is not None:
        journal.event("job.continued", step=step, parent=origin.parent)
        mark.unlink(missing_ok=True)
        return
    elsewhere: dict[str, Any] = {"elsewhere": claim.step} if step < claim.step else {}
    journal.event("job.recovered", level="warning", step=step, fence=journal.lease.fence, **elsewhere)


def recover(store: JobStore, state_dir: Path, *, dry: bool = False) -> Iterator[Found]:
    """Every job's directory; with `dry`, what would become of it. Recovered jobs are paused: a person resumes them.

    Raises StoreAway where the checkpoint store does not tell how far a job was: the next call goes on there.
    """
    for directory in _directories(state_dir):
        yield _recover(store, directory, dry=dry)


def _directories(state_dir: Path) -> list[Path]:
    return sorted(path for path in (state_dir / "jobs").glob("*") if path.is_dir() and is_name(path.name))


def _recover(any_store: JobStore, directory: Path, *, dry: bool) -> Found:
    job_id = directory.name
    try:
        document = json.loads((directory / DOCUMENT).read_text(encoding="utf-8"))
        owner, text = str(document["owner"]), str(document["spec"])
        store = any_store.of_owner(owner)
        spec, origin = read_stored(text), _origin(document)
    except OtherVersion as error:  # whose job it may be
        if known := _known(store, job_id, owners=[owner]):
            return known
        return Found(
            job_id=job_id, finding=Finding.LOST, owner=owner, note=f"not yet: its spec is refused: {error.refused}"
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if known := _known(any_store, job_id):  # a fork has a directory before its first driver has written there
            return known
        note = f"{DOCUMENT} is missing or damaged ({type(error).__name__}); its files stay"
        return Found(job_id=job_id, finding=Finding.LOST, note=note)
    if known := _known(store, job_id, owners=[owner]):
        return known
    if ended := document.get("ended"):
        return Found(job_id=job_id, finding=Finding.FINISHED, owner=owner, note=f"{ended}; its files stay")
    checkpoints = open_store(directory / "checkpoints", owner, job_id)
    try:
        newest = checkpoints.newest()
        steering = _steering(checkpoints, newest) or initial_steering(spec).model_dump(mode="json")
    except StoreAway:
        raise
    except Unreadable as error:
        return Found(job_id=job_id, finding=Finding.LOST, owner=owner, note=f"not yet: {error}")
    step = 0 if newest is None else newest.step
    if not dry:
        store.submit(
            text,
            name=spec.name,
            job_id=job_id,
            steering=steering,
            origin=origin,
            priority=spec.priority,
            by=str(document.get("by") or "recover"),
            # Whatever its owner's quota: if it is used up, the job is paused again once it has GPUs.
        )
        with contextlib.suppress(IllegalTransition):
            store.request_pause(job_id)
    note = f"from step {step}" if step else "without a checkpoint: from its beginning"
    return Found(job_id=job_id, finding=Finding.RECOVERED, owner=owner, step=step, note=note)


def _known(store: JobStore, job_id: str, *, owners: Sequence[str] | None = None) -> Found | None:
    """What Redis says of the job, whichever of the owners it is of: all of them if None."""
    for owner in store.owners() if owners is None else owners:
        with contextlib.suppress(JobNotFound):
            job = store.of_owner(owner).job(job_id)
            return Found(job_id=job_id, finding=Finding.KNOWN, owner=owner, step=job.step, note=str(job.status))
    return None


def _origin(document: Mapping[str, Any]) -> Origin | None:
    """Where the job was forked. Raises KeyError, TypeError or ValueError for what keep_document did not write."""
    found = document.get("origin")
    return None if found is None else Origin(parent=str(found["parent"]), step=int(found["step"]))


def _steering(checkpoints: CheckpointStore, newest: Manifest | None) -> dict[str, object] | None:
    """What the newest checkpoint followed. One of a reward model has none. Raises Unreadable.

    None as well of one that is damaged: the job's driver names it, and goes on from the one before.
    """
    if newest is None or STATE not in newest.files:
        return None
    try:
        state = checkpoints.read(newest.step, newest.digest, STATE)
    except Unreadable:
        raise
    except CheckpointError:
        return None
    steering: dict[str, object] | None = parse_state(state).get("steering")
    return steering
