"""Which runs there are, in which order, and what makes one run the same as another.

Seed by seed, and in each seed all entries of the first task, then of the second: wherever it stops, what is there is
paired by seed and nearly whole.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.arena.entries import Entry, entries, plugins
from orchestrator.arena.job_task import JobTask
from orchestrator.arena.protocol import FIRST, VERSION, Preset, rule_version
from orchestrator.arena.tasks import TASKS, Task
from orchestrator.spec import JobSpec
from orchestrator.spec_errors import nearest
from orchestrator.specs.base import RuleSpec
from orchestrator.specs.plugins import PluginSpec
from policies.pareto import normalise
from policies.plugins import plugin_package

Json = dict[str, Any]
UNDECIDED: Mapping[str, set[str] | bool] = {
    **dict.fromkeys(("name", "metadata", "priority", "resources"), True),
    "optimizer": {"share_prompts"},
    "gramian": {"response_share"},
}
"""Fields of a spec that decide nothing of what a run comes to, or that the protocol holds where they were."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A run to be made."""

    task: Task
    entry: Entry
    preset: Preset
    seed: int
    steps: int

    @property
    def policy_seed(self) -> int:
        return self.seed if self.preset.policy_for_each_seed else 0

    @property
    def title(self) -> str:
        return f"{self.task.name} {self.entry.name} seed {self.seed}"

    def spec(self, runs: Iterable[Mapping[str, Any]]) -> JobSpec | None:
        """The job. None where it waits for others among the `runs`: targets come from the static ones."""
        targets: Mapping[str, float] = {}
        if self.entry.targets_from_statics:
            found = self._targets(runs)
            if found is None:
                return None
            targets = found
        return self.task.spec(self.entry, self.preset, seed=self.seed, steps=self.steps, targets=targets)

    def is_of_targets(self, run: Mapping[str, Any], spec: JobSpec) -> bool:
        """Whether a stored run is this one by its targets, whose digest may be of more digits than were stored.

        The targets stand for the rest of the digest: they come from runs that are known by theirs.
        """
        if not self.entry.targets_from_statics:
            return False
        mine = (self.task.name, self.entry.name, self.seed, self.steps, self.preset.conditions)
        its = (*(run[key] for key in ("task", "entry", "seed", "steps")), run.get("conditions", FIRST))
        version = rule_version(spec.estimator.name, spec.weighting.name)
        if mine != its or run.get("rule_version", 1) != version:
            return False
        wanted, has = {o.name: o.target.value for o in spec.objectives if o.target}, run.get("targets", {})
        return wanted.keys() == has.keys() and all(math.isclose(wanted[k], has[k], rel_tol=1e-3) for k in wanted)

    def _targets(self, runs: Iterable[Mapping[str, Any]]) -> dict[str, float] | None:
        """What the first objective is maximised under: in all others, what the best static policy reached.

        Of all policies that the statics of the same estimator, task and seed validated, the one whose normalised
        objectives have the highest mean: so that the targets can be reached together. With 4 digits, so that figures
        that are stored with six make the same targets.
        """
        wanted = {e.name for e in entries(len(self.task.objectives)) if self._is_static_of_mine(e)}
        digests = {
            name: digest(
                self.task.spec(entry, self.preset, seed=self.seed, steps=self.steps), self.task, self.policy_seed
            )
            for entry in entries(len(self.task.objectives))
            if (name := entry.name) in wanted
        }
        mine = [run for run in runs if digests.get(run["entry"]) == run["digest"]]
        if wanted - {run["entry"] for run in mine}:
            return None
        names = [objective["name"] for objective in self.task.objectives]
        spans = [objective["range"] for objective in self.task.objectives]
        reached = [
            [point["objectives"][name] for name in names]
            for run in mine
            if run["status"] == "done"
            for point in run["validation"]
        ]
        if not reached:
            return None
        best = max(reached, key=lambda values_K: float(normalise(values_K, spans).mean()))
        return {name: float(f"{value:.4g}") for name, value in zip(names[1:], best[1:], strict=True)}

    def _is_static_of_mine(self, entry: Entry) -> bool:
        return entry.role == "static" and entry.estimator == self.entry.estimator


def digest(spec: JobSpec, task: Task, policy_seed: int) -> str:
    """Of everything that decides what a run comes to: its spec, how its policy was made, the protocol's version, and
    the rule's where it is above 1, or that of the package that it is from.

    Of the spec what its document says: runs stay what they were when specs learn to say more. Whoever changes what is
    meant where a document says nothing raises VERSION.
    """
    document = spec.model_dump(mode="json", exclude=UNDECIDED, exclude_unset=True)
    deciding = {section: said for section, said in document.items() if said != {}}
    rule = rule_version(spec.estimator.name, spec.weighting.name)
    changed = [rule] if rule > 1 else []
    text = json.dumps([VERSION, task.digest(policy_seed), deciding, *changed, *packages(spec)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def packages(spec: JobSpec) -> list[str]:
    """Those that the job's rules are from, with their versions."""
    rules: tuple[RuleSpec, ...] = (spec.estimator, spec.weighting)
    return [plugin_package(rule.group, rule.rule_name) for rule in rules if isinstance(rule, PluginSpec)]


def plan(
    preset: Preset,
    *,
    tasks: Sequence[str] | None = None,
    rules: Sequence[str] | None = None,
    seeds: int | None = None,
    first_seed: int = 0,
    steps: int | None = None,
    held_out: bool = False,
    own: JobTask | None = None,
    on_left_out: Callable[[str], None] = lambda _: None,
) -> list[Planned]:
    """Every run, in order: `seeds` of them from `first_seed`. What is None is the preset's.

    `own` is a job in the place of the tasks. Plug-ins take part where `rules` are named. What matches a pattern and
    does not fit its task is left out, and told of. Raises ValueError naming the option that can't be.
    """
    if own is not None:
        chosen: list[Task] = [own]
        preset = own.preset(preset)
    else:
        chosen = [_task(name, held_out) for name in (tasks if tasks is not None else _usual(preset, held_out))]
    patterns = rules if rules is not None else preset.rules
    offered = list(plugins()) if rules is not None else []
    by_task = {task.name: entries(len(task.objectives)) + offered for task in chosen}
    for pattern in rules or ():
        names = [entry.name for found in by_task.values() for entry in found]
        if not any(_matches(name, pattern) for name in names):
            raise ValueError(
                f"--rules: no entry '{pattern}'{nearest(pattern, names)}; `equipoise arena --list` has all, "
                "`equipoise plugins` those of installed packages"
            )
    steps = preset.steps if steps is None else steps
    for task in chosen:
        mine = [entry for entry in by_task[task.name] if any(_matches(entry.name, pattern) for pattern in patterns)]
        by_task[task.name] = [entry for entry in mine if _takes_part(task, entry, preset, steps, patterns, on_left_out)]
    return [
        Planned(task=task, entry=entry, preset=preset, seed=seed, steps=steps)
        for seed in range(first_seed, first_seed + (preset.seeds if seeds is None else seeds))
        for task in chosen
        for entry in sorted(by_task[task.name], key=lambda entry: entry.targets_from_statics)
    ]


def _takes_part(
    task: Task,
    entry: Entry,
    preset: Preset,
    steps: int,
    patterns: Sequence[str],
    on_left_out: Callable[[str], None],
) -> bool:
    """Whether the entry's job can be; ours are of all of our tasks. ValueError where one was asked for by its name."""
    if not entry.plugin and task.name in TASKS:
        return True
    targets = {o["name"]: o["range"][0] for o in task.objectives[1:]} if entry.targets_from_statics else {}
    try:
        task.spec(entry, preset, seed=0, steps=steps, targets=targets)
    except (ValueError, RuntimeError) as error:  # RuntimeError: a plug-in that does not load
        said = f"{entry.name} can't take part in {task.name}: {str(error).splitlines()[0]}"
        if {entry.name, entry.name.partition("/")[2]} & {*patterns}:
            raise ValueError(f"--rules: {said}") from None
        on_left_out(said)
        return False
    return True


def _usual(preset: Preset, held_out: bool) -> list[str]:
    return [task.name for task in TASKS.values() if task.held_out] if held_out else list(preset.tasks)


def _task(name: str, held_out: bool) -> Task:
    if name not in TASKS:
        raise ValueError(f"--tasks: no task '{name}'{nearest(name, list(TASKS))}; there are {', '.join(TASKS)}")
    if TASKS[name].held_out and not held_out:
        raise ValueError(
            f"--tasks: {name} is kept for the end, so that no rule is tuned to it; once all is decided, add --held-out"
        )
    return TASKS[name]


def _matches(name: str, pattern: str) -> bool:
    """As in a shell (`gdpo/*`), or the part behind the estimator alone."""
    return fnmatch.fnmatchcase(name, pattern) or name == pattern or name.partition("/")[2] == pattern
