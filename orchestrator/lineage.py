"""New jobs from a checkpoint of another: where they start, and what they change.

Where a fork comes from stands in its record, which no document that a user sends can say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.spec import JobSpec
from orchestrator.specs.data import FilesData
from orchestrator.state.store import Checkpoint, JobRecord
from orchestrator.steering import initial_steering
from policies.places import Scale

Json = dict[str, Any]
MAX_FORKS = 32
_KINDS = ("name", "type")  # what says which variant of a branch is meant


def lineage(record: JobRecord) -> Json | None:
    """{parent, step} of a job that was forked."""
    return None if record.origin is None else {"parent": record.origin.parent, "step": record.origin.step}


def merged(document: Mapping[str, Any], changes: Mapping[str, Any]) -> Json:
    """A document with some fields changed, branch by branch; lists are replaced.

    A branch that becomes another variant (another `name` or `type`) keeps nothing of the old one's options.
    """
    result = dict(document)
    for key, change in changes.items():
        old = result.get(key)
        if not (isinstance(change, Mapping) and isinstance(old, Mapping)):
            result[key] = change
        elif any(kind in change and change[kind] != old.get(kind) for kind in _KINDS):
            result[key] = dict(change)
        else:
            result[key] = merged(old, change)
    return result


def fork_document(spec: JobSpec, *, name: str, weights: Mapping[str, float] | None, init: Path) -> Json:
    """The spec of one fork. `init`: where its first policy will be."""
    document: Json = spec.model_dump(mode="json")
    document |= {"name": name, "init_checkpoint": str(init)}
    for objective in document["objectives"]:
        if weights is not None:
            objective["weight"] = weights[objective["name"]]
    return document


def holds_back_trained(data: FilesData, ancestor: Mapping[str, Any]) -> bool:
    """Whether prompts that a fork holds back for validation are some that a job of this spec was trained on."""
    its = ancestor.get("data", {})
    if data.held_back is None or its.get("type") != "files":
        return False
    trained = {its["train"]} if isinstance(its["train"], str) else {*its["train"]}
    share = its["validation"] if isinstance(its["validation"], Mapping) else {"share": 0.0}
    is_within = share.get("seed") == data.held_back.seed and data.held_back.share <= share["share"]
    return bool(trained & {*data.names("train")}) and not is_within


def steered(spec: JobSpec, steering: Mapping[str, Any]) -> Json:
    """The document of a job that begins with what another one is steered with."""
    document: Json = spec.model_dump(mode="json")
    if steering == initial_steering(spec).model_dump(mode="json"):
        return document
    for objective in document["objectives"]:
        name = objective["name"]
        objective |= {"weight": steering["weights"][name], "bounds": steering["bounds"][name]}
    document["steering"] |= {"mode": steering["mode"], "blend": steering["blend"]}
    if steering.get("guardrails") is not None:
        document["guardrails"] = steering["guardrails"]
    return document


def best_step(
    checkpoints: Sequence[Checkpoint], scales: Mapping[str, Scale], preference: Mapping[str, float]
) -> int | None:
    """Of the checkpoints on the front, the one that is `best_of` them on the validation split."""
    found = {
        checkpoint.step: _places(checkpoint.metrics, scales)
        for checkpoint in checkpoints
        if checkpoint.on_front and checkpoint.metrics.get("objectives", {}).keys() >= scales.keys()
    }
    return best_of(found, preference)


def best_of(places: Mapping[int, Mapping[str, float]], preference: Mapping[str, float]) -> int | None:
    """The step with the highest preference-weighted total of places; of equal ones the latest, None of none."""
    totals = {
        step: sum(preference.get(name, 0.0) * place for name, place in found.items()) for step, found in places.items()
    }
    return max(totals, key=lambda step: (totals[step], step), default=None)


def _places(metrics: Mapping[str, Any], scales: Mapping[str, Scale]) -> dict[str, float]:
    """As the job's archive says; an older one says raw means alone."""
    told = metrics.get("places") or {}
    return {
        name: told[name] if name in told else scale.place(metrics["objectives"][name]) for name, scale in scales.items()
    }
