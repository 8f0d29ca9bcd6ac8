"""How a job's figures come about: what two must share for them to say which policy is better, and what else differs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from orchestrator.specs.evaluation import CUTS
from rewards import registry

Json = Mapping[str, Any]
_LONGEST_CHARS = 40  # of a value that is said
_MOST = 100  # lines
_UNDECIDING = ("name", "metadata", "priority", "init_checkpoint")
_FIELDS = {
    "evaluation": ("temperature", "prompts", "rollouts_per_prompt"),
    "rollout": ("max_tokens", "stop", "include_stop", "reasoning"),
    "policy": ("chat",),
}


def measured_differently(first: str, other: str, specs: Mapping[str, Json], fronts: Mapping[str, Json]) -> list[str]:
    """A line for each thing that two jobs with the same objectives do not measure alike."""
    one, two = (_measurement(specs[job_id]) for job_id in (first, other))
    lines = [_line(what, one[what], two[what], first, other) for what in one if what in two and one[what] != two[what]]
    if _split(specs[first], fronts[first], fronts[other]) != _split(specs[other], fronts[other], fronts[first]):
        lines.append(f"data.validation: {first} and {other} have other prompts, or read them differently")
    return lines


def set_differently(first: str, other: str, specs: Mapping[str, Json], made_of: Mapping[str, Json]) -> list[str]:
    """A line for each field in which two jobs' specs differ, and for what they were made of (`job.software`) otherwise.

    What only one of them says, such as an option of its rule, is not compared; a fork's beginning is in its lineage.
    """
    one, two = ({**_flat(_named(specs[job])), **_made_of(made_of.get(job) or {})} for job in (first, other))
    unlike = [what for what in one if what in two and one[what] != two[what]]
    return [_line(what, one[what], two[what], first, other) for what in unlike[:_MOST]]


def _named(spec: Json) -> Json:
    """With objectives by their names, and without what decides nothing."""
    kept = {field: value for field, value in spec.items() if field not in _UNDECIDING}
    return {**kept, "objectives": {objective["name"]: objective for objective in spec["objectives"]}}


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """By dotted path; a list is one value."""
    if not isinstance(value, Mapping) or not value:
        return {path: value}
    found: dict[str, Any] = {}
    for field, inner in value.items():
        found |= _flat(inner, f"{path}.{field}" if path else str(field))
    return found


def _made_of(told: Json) -> dict[str, Any]:
    """What a job's own record says; nothing of what an older one does not say."""
    code = told.get("code") or {}
    found = {"equipoise": code.get("commit") or code.get("version")} if code else {}
    found |= told.get("versions") or {}
    found |= {name: told[name] for name in ("plugins", "device") if name in told}
    found |= {"policy's commit": commit} if (commit := (told.get("policy") or {}).get("commit")) else {}
    return found | {f"data.{split}'s sha256": digest for split, digest in (told.get("data_sha256") or {}).items()}


def _measurement(spec: Json) -> dict[str, Any]:
    """By field. What a spec of an older version does not say is not compared."""
    found = {}
    for objective in spec["objectives"]:
        name = objective["name"]
        found[f"{name}.reward"] = _reward(objective["reward"])
        found |= {f"{name}.{key}": objective[key] for key in ("gate", "domains") if key in objective}
    for branch, fields in _FIELDS.items():
        said = spec.get(branch) or {}
        found |= {f"{branch}.{field}": said[field] for field in fields if field in said}
    return found | {f"evaluation.{cut}": value for cut, value in held_out_cuts(spec).items()}


def held_out_cuts(spec: Json) -> dict[str, Any]:
    """top_p, top_k and min_p of held-out sampling, as far as the spec says them."""
    own, rollout = spec.get("evaluation") or {}, spec.get("rollout") or {}
    found = {cut: rollout.get(cut) if own.get(cut) is None else own[cut] for cut in CUTS}
    return {cut: value for cut, value in found.items() if value is not None}


def _reward(reward: Json) -> Json:
    """Name and options, with the defaults, where they can still be read."""
    try:
        options = registry.parse_options(reward["name"], reward.get("options") or {}).model_dump(mode="json")
    except ValueError:
        options = reward.get("options") or {}
    return {"name": reward["name"], "options": options}


def _split(spec: Json, mine: Json, others: Json) -> Any:
    """What decides on the validation prompts: files by their sums, where both fronts tell them, else by their names."""
    data = {key: value for key, value in spec["data"].items() if key not in ("train", "test", "sets")}
    sums, theirs = mine.get("split_sha256") or {}, others.get("split_sha256") or {}
    of = "train" if isinstance(data.get("validation"), Mapping) else "validation"  # a share of the train prompts
    if data.get("type") == "files":
        data["files"] = sums[of] if of in sums and of in theirs else spec["data"][of]
        if of == "validation":
            del data["validation"]
    return data


def _line(what: str, one: Any, two: Any, first: str, other: str) -> str:
    said = [_said(value) for value in (one, two)]
    if said[0] == said[1] or max(map(len, said)) > _LONGEST_CHARS:
        return f"{what}: not the same in {first} and {other}"
    return f"{what}: {said[0]} in {first}, {said[1]} in {other}"


def _said(value: Any) -> str:
    if isinstance(value, Mapping) and "options" in value:
        value = value["name"]
    return "none" if value is None else json.dumps(value, ensure_ascii=False).strip('"')
