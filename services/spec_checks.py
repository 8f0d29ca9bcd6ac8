"""A spec that is submitted: read without leniency, and its files looked at, before it becomes a job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from orchestrator.checks.access import Access
from orchestrator.checks.preflight import look
from orchestrator.rollouts.prompts import Contents
from orchestrator.spec import JobSpec, check_new, parse_job, validated
from orchestrator.specs.reward_job import RewardJobSpec
from orchestrator.steering import initial_steering
from rewards.verifiers.json_schema import schemas_within
from services.errors import ApiProblem, spec_problem

_MAX_SPEC_BYTES = 256 << 10


def checked_spec(document: Any, access: Access) -> JobSpec | RewardJobSpec:
    """A spec that can run here: its fields fit, and so do the files that it names, which `access` allows."""
    spec = strict_spec(document)
    check_files(spec, access)
    return spec


def check_files(spec: JobSpec | RewardJobSpec, access: Access) -> Mapping[str, Contents]:
    """What the files of its splits hold, as far as they were read."""
    found = look(spec, access)
    if found.problems:
        raise spec_problem(found.problems)
    return found.contents


@schemas_within()
def strict_spec(document: Any) -> JobSpec | RewardJobSpec:
    """Without YAML's leniency, which takes the text 1e-6 for a number: in JSON a number is one, and true is not."""
    kind = document.get("kind", "alignment") if isinstance(document, dict) else None
    try:
        text = json.dumps(document)
        if kind == "alignment":
            return check_new(validated(JobSpec, lambda: JobSpec.model_validate_json(text, strict=True)))
        if kind == "reward_model":
            return check_new(validated(RewardJobSpec, lambda: RewardJobSpec.model_validate_json(text, strict=True)))
        return parse_job(document)  # which says what is wrong
    except RuntimeError as error:  # an installed reward plugin is broken, which the spec's author can't help
        raise ApiProblem(500, "plugin_broken", str(error)) from error


def text_of(spec: JobSpec | RewardJobSpec) -> str:
    """The document that is kept, with every default. Redis holds it in memory for as long as the job is known."""
    text = spec.to_json()
    if (size := len(text.encode())) > _MAX_SPEC_BYTES:
        message = f"the spec has {size} bytes with its defaults, expected at most {_MAX_SPEC_BYTES}; "
        message += "shorten its texts, or name files by a pattern"
        raise ApiProblem(413, "spec_too_large", message)
    return text


def first_steering(spec: JobSpec | RewardJobSpec) -> dict[str, Any]:
    """Version 1: whole, so that every later change has something to stand on."""
    try:
        return initial_steering(spec).model_dump(mode="json")
    except OverflowError:
        raise spec_problem([("objectives", "the weights are too large to be scaled")]) from None
