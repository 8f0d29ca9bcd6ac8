"""Reading the spec of a job that was accepted once, perhaps by another version, or beside other plug-ins."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.errors import OtherVersion
from orchestrator.spec import JobSpec, parse_job
from orchestrator.spec_errors import SpecError
from orchestrator.specs.reward_job import RewardJobSpec

BEFORE: Mapping[str, Any] = {
    "policy.lora.merge": True,
    "gramian.response_share": 1.0,
    "optimizer.share_prompts": False,
    "checkpoints.front": 256,
}
"""What was done before there was such a field, where its default is something else."""
BEFORE_OF_RULES: Mapping[str, Mapping[str, Any]] = {
    "hv_gradient": {"least": 0.0},
    "covariance": {"cap": 1e9},
}
"""The same of a weighting's fields, by its name."""


def read_stored(text: str) -> JobSpec | RewardJobSpec:
    """As it was accepted. Raises OtherVersion where this version refuses it: nothing of the job is at fault."""
    document = json.loads(text)
    try:
        return parse_job(_filled(document, absent_fields(document)))
    except (SpecError, RuntimeError) as error:  # RuntimeError: a plug-in that is there and does not load
        raise OtherVersion(str(error).partition("\n")[0]) from error


def absent_fields(document: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that came after the job, by their paths, with what was done before them."""
    if document.get("kind", "alignment") != "alignment":
        return {}
    rule = (document.get("weighting") or {}).get("name")
    rules = {f"weighting.{field}": value for field, value in BEFORE_OF_RULES.get(str(rule), {}).items()}
    return {path: value for path, value in {**BEFORE, **rules}.items() if _lacks(document, path)}


def to_repeat(document: Mapping[str, Any], events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """A job's resolved spec as it is to be submitted to be made again: its policy at the hub's commit that it had.

    `events`: the job's, from its first one, as far as they are needed.
    """
    repeated = copy.deepcopy(dict(document))
    made_of = next((event.get("data") or {} for event in events if event.get("type") == "job.software"), {})
    if commit := (made_of.get("policy") or {}).get("commit"):
        repeated["policy"] = {**(repeated.get("policy") or {}), "revision": commit}
    return repeated


def _lacks(document: Mapping[str, Any], path: str) -> bool:
    """Whether the branch is there without the field."""
    branch: Any = document
    *above, field = path.split(".")
    for part in above:
        branch = branch.get(part) if isinstance(branch, Mapping) else None
    return isinstance(branch, Mapping) and field not in branch


def _filled(document: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    filled = copy.deepcopy(dict(document))
    for path, value in fields.items():
        branch = filled
        *above, field = path.split(".")
        for part in above:
            branch = branch[part]
        branch[field] = value
    return filled
