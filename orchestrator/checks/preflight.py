"""What can be found wrong with a job before it is accepted: files, rows, the model's directory, judges' profiles.

Light on purpose: no torch, no model. What only the real tokenizer or a GPU can tell, the driver finds, and the
job then fails with the same kind of line.
"""

from __future__ import annotations

import contextlib
import functools
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator import routing
from orchestrator.actors.placement import machine_problems, transport_problem
from orchestrator.checks.access import HUB_ID, Access
from orchestrator.checks.dataset_check import Outcome, Reading, Seen, outcomes_of, read
from orchestrator.rollouts.prompts import Contents, DatasetError
from orchestrator.rollouts.split_files import is_pattern, matching
from orchestrator.spec import JobSpec
from orchestrator.spec_errors import nearest
from orchestrator.specs.data import SETS, Columns, FilesData, detail_name
from orchestrator.specs.objectives import RewardSpec
from orchestrator.specs.reward_job import RewardJobSpec
from orchestrator.specs.rollout import MAX_RANKS
from orchestrator.storage.datasets import is_reference, locate
from orchestrator.storage.remote import RemoteAway, is_url
from orchestrator.storage.remote_data import TooLarge, fetch, files_of
from policies.models import (
    ModelError,
    adapter_base,
    check_chat,
    check_directory,
    context_length,
    ranks_that_share,
    template_file,
)
from policies.quickstart import chat_template
from policies.sizes import ModelSize, linear_layers, quickstart_config, quickstart_size, size_of
from rewards import registry

MAX_FETCHED_BYTES = 64 << 20  # of a URL: what is larger, the driver checks


def preflight(spec: JobSpec | RewardJobSpec, access: Access | None = None) -> list[tuple[str, str]]:
    """(dotted path of the field, what is wrong and what to do) for each problem; empty where the job can run.

    As `look`.
    """
    return look(spec, access).problems


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The problems, as `preflight` has them, and what splits hold, as far as they were read."""

    problems: list[tuple[str, str]]
    contents: Mapping[str, Contents]


def look(spec: JobSpec | RewardJobSpec, access: Access | None = None) -> Findings:
    """What is wrong with the job, and what its rows are.

    `access` says whose datasets there are, and which paths; what it refuses is not opened. With it this is a server:
    files are a stranger's, and are read in a child process. May then raise ChildBusy.
    """
    problems = [] if access is None else access.problems(spec)
    if isinstance(spec, RewardJobSpec):
        return Findings(problems=problems or _training_files(spec), contents={})
    refused = [field for field, _ in problems]
    for field, reward in _rewards(spec).items():
        if any(place.startswith(f"{field}.options.") for place in refused):
            continue  # its model is not looked at
        found = registry.problems(reward.name, reward.options)
        problems += [(f"{field}.options.{option}", problem) for option, problem in found]
        if reward.options.get("device") == "cuda" and not reward.hosting.num_gpus:
            told = "cuda is asked for, and no GPU is reserved; set hosting.num_gpus, or leave this out to score on CPU"
            problems.append((f"{field}.options.device", told))
    problems += _stops(spec)
    problems += machine_problems(spec)
    problems += _unmeasured(spec)
    if problems:
        return Findings(problems=problems, contents={})
    if problem := transport_problem(spec, spec.resources.device):  # where it is auto, a dry run tells
        problems.append(("rollout.transport", f"{problem}; use auto"))
    model = _model(spec, problems)
    contents = _data(spec, spec.data, model, problems, access) if isinstance(spec.data, FilesData) else {}
    return Findings(problems=problems, contents=contents)


def _training_files(spec: RewardJobSpec) -> list[tuple[str, str]]:
    """What is there; the rows, the trainer reads first."""
    problems = []
    for split in ("train", "validation"):
        for i, name in enumerate(getattr(spec.training, split)):
            if not is_url(name) and not _is_file(_path(name)):
                problems.append((f"training.{split}.{i}", "no such file"))
    model = spec.training.model
    if model.startswith((".", "/", "~")) and not _path(model).is_dir():
        problems.append(("training.model", "no such directory"))
    return problems


def _stops(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Not in the spec's own checks: jobs that were accepted with it go on."""
    rollout = spec.rollout
    if rollout.include_stop and not rollout.stop:
        yield "rollout.include_stop", "there is no stop text to include; set rollout.stop, or leave this out"
    for i, stop in enumerate(rollout.stop):
        if rollout.thoughts_end is not None and rollout.thoughts_end in stop and not rollout.include_stop:
            said = "takes rollout.reasoning.end out of the completions that it ends, so rewards would see no text"
            yield f"rollout.stop.{i}", f"{said}; set include_stop, or use another text"


def _unmeasured(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Guardrails that would never be breached. Not in the spec's own checks: jobs that were accepted with one go on."""
    for i, guardrail in enumerate(spec.guardrails):
        if guardrail.metric == "kl" and spec.loss.kl_coef == 0:
            told = "kl is not measured without a reference; set loss.kl_coef above 0 (1e-6 is enough), which loads one"
            yield f"guardrails.{i}.metric", told


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # what no path can be
        return False


def _model(spec: JobSpec, problems: list[tuple[str, str]]) -> Path | None:
    """The policy's directory, as far as it is on this machine and nothing is wrong with it."""
    if spec.init_checkpoint is None and spec.policy.model == "quickstart":
        if _has_room(spec, quickstart_config(), problems):
            _ranks(spec, quickstart_config(), problems)
            _lora(spec, quickstart_size, problems)
            _chat(spec, chat_template(), problems)
        return None
    field, value = "policy.model", spec.policy.model
    if spec.init_checkpoint is not None:
        field, value = "init_checkpoint", spec.init_checkpoint
    path: Path | None
    path = named = _path(value)
    try:
        path = _whole_policy(named) if field == "init_checkpoint" else _policy(value, named)
        if path is None:
            return None
        config = check_directory(path)
        has_room = _has_room(spec, config, problems)
    except (ModelError, OSError) as error:
        problems.append((field, _unnamed(getattr(error, "strerror", None) or str(error), str(path))))
        return None
    if not has_room:
        return None
    _ranks(spec, config, problems)
    _lora(spec, functools.partial(size_of, path), problems)
    _chat(spec, template_file(path), problems)
    return path


def _has_room(spec: JobSpec, config: dict[str, Any], problems: list[tuple[str, str]]) -> bool:
    """For prompts beside completions."""
    limit = min(value for value in (context_length(config), spec.policy.max_model_len, 2**31) if value)
    if spec.rollout.max_tokens < limit:
        return True
    problems.append(
        (
            "rollout.max_tokens",
            f"{spec.rollout.max_tokens} leaves no room for a prompt in a context of {limit} tokens; "
            "lower it or raise policy.max_model_len",
        )
    )
    return False


def _policy(value: str, path: Path) -> Path | None:
    """The directory; None of a hub id. Raises ModelError of what is neither."""
    found = _unless_hub_id(value, path)
    if found is None and not HUB_ID.fullmatch(value):
        raise ModelError("neither a directory nor a hub id such as Qwen/Qwen3-1.7B; give one of them, or 'quickstart'")
    return found


def _whole_policy(path: Path) -> Path | None:
    """The directory, or that of the base of the adapter in it; None where that is a hub id's. Raises ModelError."""
    if not path.is_dir():
        raise ModelError("this path is no directory; give that of an exported checkpoint")
    base = adapter_base(path)
    if base is None:
        return path
    whole = _unless_hub_id(base.model, _path(base.model))
    if whole is not None and not whole.is_dir():
        raise ModelError("its adapter's base is not on this machine; put it back, or merge the adapter first")
    return whole


def _unless_hub_id(value: str, path: Path) -> Path | None:
    """The path, unless it is a hub id, as far as can be told from here."""
    return path if path.exists() or value.startswith((".", "/", "~")) else None


def _ranks(spec: JobSpec, config: dict[str, Any], problems: list[tuple[str, str]]) -> None:
    """Engines with more or fewer ranks than can share the policy's heads would not start."""
    fitting = ranks_that_share(config, MAX_RANKS)
    if spec.rollout.tensor_parallel not in fitting:
        said = f"the policy's attention heads can't be shared evenly among {spec.rollout.tensor_parallel}"
        problems.append(("rollout.tensor_parallel", f"{said}; use {' or '.join(map(str, fitting))}"))


def _lora(spec: JobSpec, size: Callable[[], ModelSize], problems: list[tuple[str, str]]) -> None:
    """Targets that the policy has no layer for, as far as its files tell; all else is for the start of the job."""
    if spec.policy.lora is None or spec.policy.lora.targets is None:
        return
    with contextlib.suppress(ModelError):
        there = linear_layers(size())
        for i, target in enumerate(spec.policy.lora.targets):
            if there and target not in there:
                said = f"no linear layer '{target}' in the policy's blocks{nearest(target, there)}"
                problems.append((f"policy.lora.targets.{i}", f"{said}; there are {', '.join(there)}"))


def _chat(spec: JobSpec, template: str | None, problems: list[tuple[str, str]]) -> None:
    """What the policy's chat template would not notice; one that is not found here the driver looks for."""
    if template is None:
        return
    try:
        check_chat(template, spec.policy.chat.system, spec.policy.chat.template_kwargs)
    except ModelError as error:
        field, _, message = str(error).partition(": ")
        problems.append((field, message))


def _data(
    spec: JobSpec, data: FilesData, model: Path | None, problems: list[tuple[str, str]], access: Access | None
) -> dict[str, Contents]:
    """What the splits hold that could be read here."""
    names = [name for split in data.splits for name in data.names(split)]
    if data.columns.answer is None and not all(map(is_reference, names)):
        _needs_answers(spec, "data.columns.answer is null", problems)
    room = None if model is None or data.overlong == "drop" else _room(spec, model)
    refused: dict[str, tuple[str, str]] = {}  # field and why
    files: dict[str, Located] = {}
    readings: dict[str, Reading] = {}
    with contextlib.ExitStack() as held:
        for split in data.splits:
            if split == "validation" and data.held_back is not None:
                if "train" in readings:
                    readings[split] = replace(readings["train"], is_held_out=True, is_train=False)
                    files[split] = files["train"]
                continue
            try:
                files[split], columns = _located(spec, data, split, access, held, problems)
            except TooLarge:  # the driver reads it
                continue
            except _Refused as error:
                refused[split] = error.field, error.message
                continue
            tokenizer, tokens = room or (None, 0)
            readings[split] = Reading(
                paths=tuple(files[split]),
                columns=columns,
                limit=data.limit,
                share=data.held_back if split == "train" else None,
                tokenizer=tokenizer,
                room=tokens,
                system=spec.policy.chat.system,
                is_train=split == "train",
                rewards=_comparing(spec),
            )
        problems += _unnamed_columns(spec, readings)
        found = (
            _read_here(readings.values()) if access is None else outcomes_of([*readings.values()], owner=access.owner)
        )
    contents: dict[str, Contents] = {}
    for (split, reading), outcome in zip(readings.items(), found, strict=True):
        if isinstance(outcome, str):
            if not (reading.is_held_out and "train" in refused):  # told of the train split already
                refused[split] = _placed(f"data.{split}", outcome, files[split])
        elif outcome is not None:
            contents[split] = outcome
    for split in filter(refused.__contains__, data.splits):
        field, message = refused[split]
        problems.append((field, _fields(message, data)))
    if contents.keys() == {*data.splits}:  # else the driver tells
        problems += routing.problems(spec, contents)
    problems += _unusable_answers(spec, contents)
    return contents


Located = dict[Path, tuple[str, str]]
"""The files of a split, each with the field and the name that it is from."""


class _Refused(Exception):
    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field, self.message = field, message


def _located(
    spec: JobSpec,
    data: FilesData,
    split: str,
    access: Access | None,
    held: contextlib.ExitStack,
    problems: list[tuple[str, str]],
) -> tuple[Located, Columns]:
    """The split's files, what URLs give for as long as `held` is open, and their columns. _Refused, TooLarge."""
    files: Located = {}
    columns = data.columns
    for field, name in data.fields(split).items():
        try:
            if is_reference(name):
                if access is None:
                    raise DatasetError(f"{name}: only a server has datasets")
                found, columns = locate(name, data.columns, access.owner, access.state_dir)
                if columns.answer is None:
                    _needs_answers(spec, f"the dataset of {field} was uploaded without answers", problems)
            elif is_url(name):
                if access is None:
                    raise DatasetError(f"{name}: only a server fetches data")
                found = held.enter_context(_fetched(name, data.hub_split(split)))
            else:
                found = matching(name)
        except (RemoteAway, DatasetError) as error:
            raise _Refused(field, _unnamed(str(error), str(_path(name)), name, name[:64])) from None
        files |= dict.fromkeys(found, (field, name))
    return files, columns


def _placed(field: str, message: str, files: Located) -> tuple[str, str]:
    """(field, message) of what is wrong with a file. One of a pattern is named: who sent that does not know which."""
    if message.startswith("data."):
        field, _, message = message.partition(": ")
    for path, (place, name) in files.items():
        if message.startswith(f"{path}: "):
            told = _unnamed(message, str(path), name, name[:64])
            return place, f"{path.name}: {told}" if is_pattern(name) and path != _path(name) else told
    return field, message


def _read_here(readings: Iterable[Reading]) -> list[Outcome]:
    found: list[Outcome] = []
    seen = Seen()
    for reading in readings:
        try:
            found.append(read(reading, seen))
        except DatasetError as error:
            found.append(str(error))
    return found


def _fields(message: str, data: FilesData) -> str:
    """With columns called by their fields, as their names are the caller's."""
    fields: list[tuple[str, str | None]] = [
        (field, getattr(data.columns, field)) for field in ("prompt", "answer", "domain")
    ]
    fields += [(f"details.{i}", column) for i, column in enumerate(data.columns.details)]
    for field, column in fields:
        if column not in (None, field):  # else it is the default's name
            message = message.replace(f"'{column}'", f"data.columns.{field}")
    return message


@contextlib.contextmanager
def _fetched(url: str, split: str) -> Iterator[list[Path]]:
    """Copies of what a URL gives for a split, for as long as they are looked at."""
    with tempfile.TemporaryDirectory(prefix="equipoise-") as name:
        folder, left, found = Path(name), MAX_FETCHED_BYTES, list[Path]()
        for each in files_of(url, split, folder, pauses_s=(1.0,)):
            found.append(fetch(each, folder, most_bytes=left, pauses_s=(1.0,)))
            left -= found[-1].stat().st_size
        yield found


def _needs_answers(spec: JobSpec, why: str, problems: list[tuple[str, str]]) -> None:
    for field, reward in _rewards(spec).items():
        if registry.needs_answer(reward.name, reward.options):
            problems.append((f"{field}.name", f"'{reward.name}' compares with a ground truth, but {why}"))


def _unnamed_columns(spec: JobSpec, readings: Mapping[str, Reading]) -> Iterator[tuple[str, str]]:
    """What rewards read and no row would bring along. A further set may be of rows that they do not apply to."""
    own = [reading.columns for split, reading in readings.items() if not split.startswith(SETS)]
    brought = [{detail_name(column) for column in columns.details} for columns in own]
    for field, reward in _rewards(spec).items():
        for column in registry.columns_read(reward.name, reward.options):
            if not all(column in columns for columns in brought):
                place = "options.column" if reward.options.get("column") == column else "name"
                what = "this column" if place == "options.column" else f"the column '{column}'"
                told = f"'{reward.name}' reads {what}, which data.columns.details (of an upload, its further columns)"
                yield f"{field}.{place}", f"{told} has to name; it is called by the last part of its name"


def _comparing(spec: JobSpec) -> tuple[str, ...]:
    """Rewards that can tell which ground truths no completion could meet."""
    needing = {r.name for r in _rewards(spec).values() if registry.needs_answer(r.name, r.options)}
    return tuple(sorted(name for name in needing if registry.truth_check(name) is not None))


def _unusable_answers(spec: JobSpec, contents: Mapping[str, Contents]) -> Iterator[tuple[str, str]]:
    """More rows than a reward may leave out, which would stop the job; the first row of each split."""
    for split, found in contents.items():
        for field, reward in _rewards(spec).items():
            if not registry.needs_answer(reward.name, reward.options):
                continue
            options = registry.parse_options(reward.name, reward.options)
            blank = found.unanswered if getattr(options, "missing", "") == "error" else {}
            if row := _too_many(spec, split, field, blank, found.rows):
                said = f"row {row}: the answer is empty, and '{reward.name}' compares with it"
                yield f"data.{split}", f"{said}; fill it in, or set {field}.options.missing to skip"
                break
            check = registry.truth_check(reward.name)
            if check and (row := _too_many(spec, split, field, found.unmeetable.get(reward.name, {}), found.rows)):
                said = f"row {row}: '{reward.name}' needs a ground truth that is {check[1]}, and no completion meets"
                yield f"data.{split}", f"{said} this one; change the answers, or name another column"
                break


def _too_many(
    spec: JobSpec, split: str, field: str, unusable: Mapping[str | None, tuple[int, int]], rows: int
) -> int | None:
    """The first of the rows that the reward can't score, by domain, where they are more than it may leave out."""
    domains = {f"objectives.{i}.reward": objective.domains for i, objective in enumerate(spec.objectives)}
    wanted = domains.get(field) or unusable
    counts = [counted for domain, counted in unusable.items() if domain in wanted]
    if split == "validation" and spec.evaluation.prompts is not None:  # its other rows are not used
        if not _is_one_file(spec.data, split):  # a row's number is not its place; the driver tells
            return None
        counts = [(first, count) for first, count in counts if first <= spec.evaluation.prompts]
    if sum(count for _, count in counts) <= _rewards(spec)[field].hosting.max_bad_share * rows:
        return None
    return min(counts)[0]


def _is_one_file(data: object, split: str) -> bool:
    """Whether the split is all rows of a file, and nothing else."""
    named = getattr(data, split)
    return isinstance(named, str) and not is_pattern(named)


def _rewards(spec: JobSpec) -> dict[str, RewardSpec]:
    """By field."""
    rewards = {f"objectives.{i}.reward": objective.reward for i, objective in enumerate(spec.objectives)}
    return rewards | ({} if spec.gold is None else {"gold.reward": spec.gold.reward})


def _unnamed(message: str, *paths: str) -> str:
    """Without what was sent: who sent it knows the field, and nobody else is to read it."""
    for path in sorted(paths, key=len, reverse=True):
        message = message.removeprefix(f"{path}: ")
        message = re.sub(rf"(?<![\w./-]){re.escape(path)}(?![\w-])", "this path", message)
    return message


def _path(name: str) -> Path:
    """With the home directory filled in, where it is known."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def _room(spec: JobSpec, model: Path) -> tuple[Path, int] | None:
    """The tokenizer's file, and how many tokens of prompt fit; None where that can't be told without loading it."""
    file = model / "tokenizer.json"
    limits = [limit for limit in (context_length(check_directory(model)), spec.policy.max_model_len) if limit]
    if not file.is_file() or not limits:
        return None
    return file, min(limits) - spec.rollout.max_tokens
