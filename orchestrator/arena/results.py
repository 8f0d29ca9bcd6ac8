"""What runs left behind: one JSON object per line, read strictly, so that no figure rests on half a record."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from orchestrator.arena.entries import Role
from orchestrator.arena.ledger import SCHEMA
from orchestrator.arena.protocol import FIRST, PRESETS

Json = dict[str, Any]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class ObjectiveRange(_Part):
    """Where an objective's values lie, and the corner from which the hypervolume is measured."""

    range: tuple[float, float]
    reference: float | None = None

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if not self.range[0] < self.range[1]:
            raise ValueError(f"range must rise, got {list(self.range)}")
        return self


class Evaluation(_Part):
    """Held-out prompts at a step; `hypervolume` is that of the run's archive by then."""

    step: int = Field(ge=0)
    objectives: dict[str, float]
    mean_tokens: float | None = None
    on_front: bool = False
    hypervolume: float = Field(ge=0)


class Test(_Part):
    """The test split at a checkpoint that validation chose, or at the last step."""

    __test__ = False  # no test case, whatever pytest thinks of the name

    step: int = Field(ge=0)
    objectives: dict[str, float]
    stderr: dict[str, float] = {}
    mean_tokens: float | None = None
    prompts: int | None = None


class Run(_Part):
    """One entry on one task with one seed. A failed run has a reason and may lack every figure."""

    task: str
    entry: str
    role: Role
    estimator: str
    weighting: str
    rule_version: int = 1
    packages: list[str] = []  # of plug-ins, with their versions
    preference: dict[str, float] = {}
    seed: int
    steps: int = Field(ge=1)
    digest: str = ""
    status: Literal["done", "failed"]
    reason: str | None = None
    objectives: dict[str, ObjectiveRange] = {}
    started: str = ""
    seconds: dict[str, float] = {}
    step_seconds: list[float] = []
    workers: int = 1
    machine: Json = {}
    versions: Json = {}
    code: Json = {}
    validation: list[Evaluation] = []
    test: list[Test] = []
    chosen_step: int | None = None
    weights: list[list[float]] = []
    conditions: Json = dict(FIRST)  # that its preset gave it
    warnings: list[str] = []

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.status == "failed":
            return self
        names = set(self.objectives)
        for field in ("objectives", "validation", "test", "step_seconds"):
            if not getattr(self, field):
                raise ValueError(f"{field} is empty, though the run is done")
        if set(self.preference) != names or min(self.preference.values()) < 0 or sum(self.preference.values()) <= 0:
            raise ValueError(f"preference must give each of {sorted(names)} a weight >= 0, got {self.preference}")
        for field in ("validation", "test"):
            points: list[Evaluation] | list[Test] = getattr(self, field)
            for point in points:
                if set(point.objectives) != names:
                    raise ValueError(f"{field} at step {point.step} has objectives {sorted(point.objectives)}, "
                                     f"expected {sorted(names)}")  # fmt: skip
            steps = [point.step for point in points]
            if len(set(steps)) < len(steps):
                raise ValueError(f"{field} has a step twice: {steps}")
        if any(len(weights_K) != len(names) for weights_K in self.weights):
            raise ValueError(f"weights must have {len(names)} columns, one for each objective")
        return self

    @property
    def budget(self) -> dict[str, Any]:
        """What has to be the same of runs that are compared, as far as the record tells it."""
        told: dict[str, Any] = {"steps": self.steps, **self.conditions}
        if self.status == "done":
            told["evaluations"] = len(self.validation)
            if prompts := {point.prompts for point in self.test if point.prompts is not None}:
                told["test prompts"] = min(prompts)
        return told

    @property
    def gap(self) -> str | None:
        """What a finished run's figures lack, so that it is not compared."""
        if self.status == "failed":
            return None
        if "checkpoint.failed" in self.warnings:
            return "a checkpoint could not be written, so its front may lack points"
        if self.chosen_step not in {point.step for point in self.test}:
            return f"the step that it chose, {self.chosen_step}, has no test figures"
        return None


@dataclass(frozen=True, kw_only=True)
class Results:
    """Runs that can be compared with each other, those that failed, and what was left out and why."""

    done: list[Run]
    failed: list[Run]
    left_out: list[str]


def read_results(path: Path) -> Results:
    """Every run of a file of lines, `.gz` or plain.

    The last line may be cut short by a kill, and is then left out, as are runs whose conditions (steps, prompts,
    evaluations, protocol) are not those that most runs of their task have together, those of an older version of a rule
    where the task has runs of a newer one (of a plug-in: of another one than its last), and those whose figures have a
    gap.
    Of two finished runs of the same entry, task and seed the later counts, if their digests are the same, and else the
    first. `ValueError` names the line and the field that does not fit.
    """
    lines, left_out = whole_lines(path)
    runs = [_run(line, f"{path.name}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not runs:
        raise ValueError(f"{path.name} has no runs; `equipoise arena` writes them")
    _check_ranges([run for run in runs if run.status == "done"], path.name)
    return _comparable(runs, left_out)


def whole_lines(path: Path) -> tuple[list[str], list[str]]:
    """The file's lines, and what was left out of them: a last one that was cut short. ValueError of a broken .gz."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path.name}: expected a whole gzip file, got one that is not ({error}); copy it again"
                             ) from None  # fmt: skip
    lines = data.decode("utf-8", errors="replace").split("\n")
    if lines[-1].strip() and not _is_json(lines[-1]):
        return lines[:-1], [f"line {len(lines)}: cut short, as by a kill while it was written"]
    return lines, []


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    return True


def _run(line: str, where: str) -> Run:
    try:
        document = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(document, dict):
        raise ValueError(f"{where}: expected an object, got {type(document).__name__}")
    if document.get("schema") != SCHEMA:
        raise ValueError(f"{where}: schema: this version reads {SCHEMA} alone, got {document.get('schema')!r}")
    try:
        return Run.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "run"
        raise ValueError(f"{where}: {field}: {first['msg'].removeprefix('Value error, ')}") from None


def _check_ranges(done: list[Run], name: str) -> None:
    """Hypervolumes of different boxes are not compared."""
    first: dict[str, Run] = {}
    for run in done:
        other = first.setdefault(run.task, run)
        if run.objectives != other.objectives:
            raise ValueError(
                f"{name}: {run.task}: {run.entry} (seed {run.seed}) has other objectives, ranges or references than "
                f"{other.entry} (seed {other.seed}); keep runs of different protocols in files of their own"
            )


def _comparable(runs: list[Run], left_out: list[str]) -> Results:
    usual = {task: _usual_budget([run for run in runs if run.task == task]) for task in {run.task for run in runs}}
    newest: dict[tuple[str, str], int] = {}
    last: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        if run.status == "done":
            last[run.task, run.entry] = run.packages
            newest[run.task, run.entry] = max(run.rule_version, newest.get((run.task, run.entry), 1))
    kept: dict[tuple[str, str, int], Run] = {}
    for run in runs:
        key = (run.task, run.entry, run.seed)
        other = kept.get(key)
        name = f"{run.task} {run.entry} seed {run.seed}"
        if reason := run.gap or _other_budget(run, usual[run.task]):
            left_out.append(f"{name}: {reason}")
            continue
        if run.rule_version < (version := newest.get((run.task, run.entry), 1)):
            left_out.append(f"{name}: made by version {run.rule_version} of the rule; version {version} ran as well")
            continue
        if run.packages != (packages := last.get((run.task, run.entry), run.packages)):
            left_out.append(f"{name}: made by {', '.join(run.packages)}; {', '.join(packages)} ran later")
            continue
        if other is not None and other.status == "done":
            if run.status == "failed" or _same(run, other):
                continue
            if run.digest != other.digest:
                digests = f"digest {run.digest}, not {other.digest}"
                left_out.append(f"{name}: run again with other settings ({digests}); the first one counts")
                continue
            left_out.append(f"{name}: run twice; the later one counts")
        kept[key] = run
    return Results(
        done=[run for run in kept.values() if run.status == "done"],
        failed=[run for run in kept.values() if run.status == "failed"],
        left_out=left_out,
    )


def _usual_budget(runs: list[Run]) -> dict[str, Any]:
    """What more finished runs than any other have together; of equally many, the full preset's."""
    counts = Counter(tuple(sorted(run.budget.items())) for run in runs if run.status == "done")
    preset = {"steps": PRESETS["full"].steps, **PRESETS["full"].conditions}
    ranked = sorted(counts, key=lambda told: (-counts[told], not preset.items() <= set(told)))
    return dict(ranked[0]) if ranked else {}


def _other_budget(run: Run, usual: Mapping[str, Any]) -> str | None:
    for name, value in run.budget.items():
        if value != usual.get(name, value):
            return f"{name}: {value}, where the compared runs of {run.task} have {usual[name]}"
    return None


def _same(run: Run, other: Run) -> bool:
    """One record, read twice, as where files of runs were joined."""
    return (run.digest, run.started) == (other.digest, other.started)
