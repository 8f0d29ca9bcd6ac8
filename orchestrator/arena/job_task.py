"""A person's own job as a task: does a rule do better on what it is wanted for?

The job is as it is written, but for the rule, the weights, and what a comparison can't have: bounds and targets of
objectives, steering, guardrails, gold, and rollouts beside the learning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from orchestrator.arena.entries import Entry
from orchestrator.arena.protocol import Preset
from orchestrator.arena.tasks import TASKS, Task
from orchestrator.checks.preflight import look
from orchestrator.rollouts.split_files import matching
from orchestrator.spec import JobSpec
from orchestrator.spec_errors import SpecError
from orchestrator.specs.data import SETS, FilesData
from orchestrator.specs.objectives import ObjectiveSpec
from policies.disk import sha256_of
from rewards import registry

MAX_NAME = 40  # characters, as a run's own name has the entry's beside it
_SECTIONS = ("policy", "data", "rollout", "gramian", "sampling", "loss", "optimizer", "evaluation", "init_checkpoint")
_TIMEOUTS = ("learner_timeout_s", "reward_timeout_s")  # of its resources: a run is given as long as the job
_OBJECTIVE = ("name", "reward", "transform", "gate", "domains")


@dataclass(frozen=True, kw_only=True)
class JobTask(Task):
    """`base` are the job's sections, `sums` those of its files, `own` its amounts of everything."""

    base: Mapping[str, Any]
    sums: Mapping[str, list[str]]
    own: Mapping[str, Any]

    def preset(self, preset: Preset) -> Preset:
        """With the job's own steps, prompts and evaluations."""
        return replace(preset, **self.own)

    def document(
        self,
        entry: Entry,
        preset: Preset,
        *,
        seed: int,
        steps: int,
        targets: Mapping[str, float] = MappingProxyType({}),
    ) -> dict[str, Any]:
        del preset
        ruled = self.ruled(entry, seed, targets)
        document: dict[str, Any] = {
            "name": ruled["name"],
            "seed": seed,
            "steps": steps,
            **self.base,
            **ruled,
            "checkpoints": {"every": steps},
            "collapse": {"action": "off"},  # every point counts
            "samples": {"every": 0},
        }
        for section, fields in entry.sections.items():
            document[section] = {**document.get(section, {}), **fields}
        return document

    def digest(self, policy_seed: int) -> str:
        made = self.recipe.digest(policy_seed) if self.base["policy"]["model"] == "quickstart" else ""
        return hashlib.sha256(json.dumps([made, self.sums], sort_keys=True).encode()).hexdigest()[:16]


def job_task(spec: JobSpec) -> JobTask:
    """Raises SpecError with everything that is wrong with the job, or that the arena lacks."""
    findings = look(spec)
    if problems := findings.problems or list(_lacking(spec)):
        raise SpecError(problems)
    said = spec.model_dump(mode="json", exclude_unset=True)
    base = {section: said[section] for section in _SECTIONS if section in said}
    if "data" in base:  # what is reported alone decides nothing
        base["data"] = {field: value for field, value in base["data"].items() if field != "sets"}
    rollout = {field: value for field, value in base.get("rollout", {}).items() if field not in ("sleep", "mode")}
    base["rollout"] = {**rollout, "mode": "sync"}
    if waits := {field: value for field, value in said.get("resources", {}).items() if field in _TIMEOUTS}:
        base["resources"] = waits
    base["evaluation"] = {**base.get("evaluation", {}), "greedy": False, "test_points": 6}
    files = spec.data if isinstance(spec.data, FilesData) else None
    rows = {
        split: findings.contents[split].rows if files is not None else getattr(spec.data, split)
        for split in ("validation", "test")
    }
    return JobTask(
        name=spec.name,
        what="a job of your own",
        objectives=tuple(map(_objective, spec.objectives)),
        base=base,
        sums={}
        if files is None
        else {split: _sums(files.names(split)) for split in files.splits if not split.startswith(SETS)},
        own={
            "steps": spec.steps,
            "prompts_per_step": spec.rollout.prompts_per_step,
            "rollouts_per_prompt": spec.rollout.rollouts_per_prompt,
            "validation": min(rows["validation"], spec.evaluation.prompts or rows["validation"]),
            "test": rows["test"],
            "evaluate_every": spec.evaluation.every,
            "policy_for_each_seed": spec.policy.model == "quickstart" and spec.init_checkpoint is None,
        },
    )


def _sums(names: Iterable[str]) -> list[str]:
    return [sha256_of(path) for name in names for path in matching(name)]


def _lacking(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """(field, what the arena needs)."""
    if spec.name in TASKS or len(spec.name) > MAX_NAME:
        yield "name", f"stands in every run; use one of at most {MAX_NAME} characters that is no task of the arena"
    if len(spec.objectives) < 2:
        yield "objectives", "the arena compares how objectives are traded off; a task has at least two"
    if isinstance(spec.data, FilesData) and spec.data.test is None:
        yield "data.test", "the arena chooses on validation and reports on test; name a test split"
    if spec.resources.device == "cuda":
        yield "resources.device", "the arena's runs are on CPU; use auto or cpu"
    for i, objective in enumerate(spec.objectives):
        low, high = registry.range_of(objective.reward.name, objective.reward.options)
        if "range" not in objective.model_fields_set and not objective.range[0] <= low < high <= objective.range[1]:
            said = f"volumes are measured in it, and '{objective.reward.name}' has no bounds of its own"
            yield f"objectives.{i}.range", f"{said}; give the lowest and highest score that can be expected"


def _objective(objective: ObjectiveSpec) -> dict[str, Any]:
    said = objective.model_dump(mode="json", exclude_unset=True)
    low, high = objective.range
    reference = low if objective.reference is None else objective.reference
    kept = {field: said[field] for field in _OBJECTIVE if field in said}
    return {**kept, "range": [low, high], "reference": reference}
