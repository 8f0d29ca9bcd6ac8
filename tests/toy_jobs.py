"""Toy jobs and their oracle: what a job must have committed, replayed offline from its spec and its steering log."""

from __future__ import annotations

import itertools
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.spec import JobSpec
from orchestrator.state.records import Event, SteeringEntry
from orchestrator.state.states import is_terminal
from orchestrator.state.store import JobStore
from orchestrator.steering import Steering, initial_steering
from tests.loop_fakes import make_spec, start

EVERY = 3  # K, the checkpoint interval


def toy_spec(*, steps: int = 9, step_s: float = 0.02, seed: int = 7, every: int = EVERY, **sections: Any) -> JobSpec:
    checkpoints = {"every": every, **sections.pop("checkpoints", {})}
    return make_spec(
        name=f"toy-{seed}", steps=steps, seed=seed, checkpoints=checkpoints, evaluation={"every": 2 * every},
        metadata={"toy.step_s": str(step_s)}, **sections,
    )  # fmt: skip


def submit(store: JobStore, spec: JobSpec, job_id: str | None = None) -> str:
    job_id = job_id or f"job-{secrets.token_hex(6)}"
    store.submit(spec.to_json(), name=spec.name, job_id=job_id, steering=initial_steering(spec).model_dump(mode="json"))
    return job_id


def weights(share: float) -> dict[str, Any]:
    """A change of steering: accuracy gets this share."""
    return {"mode": "manual", "weights": {"accuracy": share, "brevity": 1.0 - share}}


def replay(spec: JobSpec, log: tuple[SteeringEntry, ...], directory: Path) -> dict[int, str]:
    """The digest of every step of an undisturbed run under the same steering."""
    run = start(directory / f"replay-{secrets.token_hex(4)}", spec)
    run.journal.log = [(entry.version, entry.effective_step, Steering.model_validate(entry.state)) for entry in log]
    run.loop.checkpoint = lambda **_: run.loop.kept.add(run.loop.state.step)  # type: ignore[method-assign]
    run.loop.evaluator.test_front = lambda _loop: None  # type: ignore[method-assign]
    run.loop.run()
    return run.figures()


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What one job shows. `violations` are words for people; a good job has none."""

    violations: tuple[str, ...]
    steps: int  # in the final lineage
    rerun: int
    max_rerun: int  # by one claim
    claims: int
    mismatches: int
    duplicates: int


def events_of(store: JobStore, job_id: str) -> list[Event]:
    events: list[Event] = []
    while True:
        page = store.events(job_id, after=events[-1].seq if events else 0, limit=1000)
        events += page.items
        if not page.has_more:
            return events


def audit(store: JobStore, job_id: str, spec: JobSpec, directory: Path, *, every: int = EVERY) -> Audit:
    """Invariants I1 to I5 and I7 of one job, and at most K steps re-run by each claim."""
    said: list[str] = []
    job, events, log = store.job(job_id), events_of(store, job_id), store.steering(job_id).log
    raw = store.raw_steps(job_id)
    ids = [(fence, step) for fence, step, _ in raw]
    duplicates = len(ids) - len(set(ids))
    if any(one >= other for one, other in itertools.pairwise(ids)):  # I1, I2, and I4 by the order of ids
        said.append(f"the ledger does not rise: {ids}")
    claimed = {event.data["fence"]: event for event in events if event.type == "job.claimed"}
    for (fence, step), (_, _, record) in zip(ids, raw, strict=True):  # I4 by the server's clock
        later = [event for other, event in claimed.items() if other > fence]
        if any(record["at"] > event.at for event in later):
            said.append(f"step {step} was committed under fence {fence} after a higher one was given out")

    lineage = store.steps(job_id)
    if [record["step"] for record in lineage] != list(range(1, job.step + 1)):
        said.append(f"the lineage has a gap or a repeat: {[record['step'] for record in lineage]} to {job.step}")
        duplicates += len(lineage) - len({record["step"] for record in lineage})
    expected = replay(spec, log, directory)
    wrong = [record["step"] for record in lineage if record["digest"] != expected[record["step"]]]
    if wrong:  # I3
        said.append(f"steps {wrong} are not what spec and steering log give")
    if job.status == "succeeded" and job.step != spec.steps:
        said.append(f"succeeded at step {job.step} of {spec.steps}")

    if not is_terminal(job.status) and job.status not in ("queued", "paused") and not is_held(store, job_id):  # I5
        said.append(f"{job.status}, and nobody holds it")
    ends = [event.type for event in events if event.type in ("job.succeeded", "job.failed", "job.cancelled")]
    if len(ends) != is_terminal(job.status):
        said.append(f"{job.status}, and its ends are {ends}")
    if [event.seq for event in events] != list(range(1, len(events) + 1)):
        said.append("the events have a gap")
    if [entry.version for entry in log] != list(range(1, len(log) + 1)):  # I7
        said.append("the steering log has a gap")
    if sorted(entry.effective_step for entry in log) != [entry.effective_step for entry in log]:
        said.append("the steering log's steps do not rise")
    damaged = [event.data for event in events if event.type == "checkpoint.damaged"]
    if damaged:
        said.append(f"a registered checkpoint was not whole: {damaged[0]}")
    reruns = [event.data["from"] - event.data["to"] for event in claimed.values()]
    if max(reruns, default=0) > every:
        said.append(f"a claim re-ran {max(reruns)} steps, more than {every}")
    return Audit(
        violations=tuple(said), steps=len(lineage), rerun=sum(reruns), max_rerun=max(reruns, default=0),
        claims=len(claimed), mismatches=len(wrong), duplicates=duplicates,
    )  # fmt: skip


def is_held(store: JobStore, job_id: str) -> bool:
    """Whether a live lease is on it, by the server's clock."""
    seconds, _ = store.calls.command("TIME")
    expiry = store.calls.command("ZSCORE", f"mo:{store.owner}:leases", job_id)
    return expiry is not None and float(expiry) > 1000 * int(seconds)


def conserved(store: JobStore, submitted: set[str]) -> list[str]:
    """I6: every job that was accepted is there, and nothing else is."""
    found = {job.job_id for job in store.jobs(limit=10_000).items}
    return [f"jobs lost: {submitted - found}, jobs made up: {found - submitted}"] if found != submitted else []
