"""One commit of a policy on the hub for all of a job's life: what its branch has at a later resume may be another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from orchestrator.spec import JobSpec
from orchestrator.state.records import Checkpoint
from orchestrator.storage.checkpoint_store import CheckpointStore
from orchestrator.storage.checkpoints import STATE, CheckpointError, Unreadable, parse_state

FILE = "policy-commit"  # in the folder of what the job fetches
_COMMIT = re.compile(r"[0-9a-f]{40}")


def trained_commit(checkpoints: CheckpointStore, known: Sequence[Checkpoint]) -> str | None:
    """The commit that registered checkpoints stand on: on another machine, they are all that tells it.

    Raises Unreadable. What is damaged is for who restores it to name.
    """
    for found in sorted(known, key=lambda found: found.step, reverse=True):
        try:
            state = parse_state(checkpoints.read(found.step, found.digest, STATE))
        except Unreadable:
            raise
        except CheckpointError:
            continue
        commit = state.get("policy_commit")
        return commit if commit and _COMMIT.fullmatch(commit) else None
    return None


def at_one_commit(spec: JobSpec, model: str, data_dir: Path, *, trained: str | None = None) -> JobSpec:
    """The spec with the commit that its revision of a hub id meant when the job first started.

    `model` is what is loaded; a directory has no revision. `trained`: the commit that the job's checkpoints stand on,
    if there are any. Where no commit can be told, the spec is as it was.
    """
    if model != spec.policy.model or Path(model).exists() or _COMMIT.fullmatch(spec.policy.revision or ""):
        return spec
    file = data_dir / FILE
    kept = file.read_text(encoding="utf-8") if file.exists() else None
    commit = trained or kept or _commit(model, spec.policy.revision)
    if commit is None:
        return spec
    if commit != kept:
        data_dir.mkdir(parents=True, exist_ok=True)
        hidden = file.with_name(f".{FILE}")
        hidden.write_text(commit, encoding="utf-8")
        hidden.rename(file)
    return spec.model_copy(update={"policy": spec.policy.model_copy(update={"revision": commit})})


def _commit(hub_id: str, revision: str | None) -> str | None:
    """None where the hub does not tell; loading the model then says why."""
    from huggingface_hub import hf_hub_download

    try:
        found = Path(hf_hub_download(hub_id, "config.json", revision=revision)).parent.name
    except (OSError, ValueError):
        return None
    return found if _COMMIT.fullmatch(found) else None
