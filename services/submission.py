"""A spec file on its way to the server."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
import yaml

from orchestrator.errors import OtherVersion
from orchestrator.spec import JobSpec, load_spec, parse_job
from orchestrator.spec_errors import SpecError
from orchestrator.specs.reward_job import RewardJobSpec
from orchestrator.storage.datasets import is_reference
from orchestrator.storage.remote import is_url
from orchestrator.stored_spec import read_stored, to_repeat
from rewards import registry
from services.client import ApiError, Client
from services.follow import follow_to_end
from services.tables import estimate_view, judge_line
from services.terminal import Document, beside_output, fail, output, print_json
from services.text import plain

_EXIT_MISFIT = 1


def load(path: Path, name: str | None = None) -> dict[str, Any]:
    """The document to submit, its files named so that the server finds them from wherever it runs. Or `fail`."""
    try:
        document = anchored(load_spec(path))
        if name is not None:
            document["name"] = name
            parse_job(document)
    except SpecError as error:
        fail(*str(error).splitlines())
    except RuntimeError as error:  # an installed plug-in does not load; its name is in the message
        fail(str(error))
    return document


def again(spec: Mapping[str, Any], events: Iterable[Mapping[str, Any]]) -> str:
    """The spec of a job in YAML, to make the job again, with what its version did where the spec says nothing.

    `events` are the job's, from its first one. Or `fail`.
    """
    try:
        document = read_stored(json.dumps(spec)).model_dump(mode="json")
    except OtherVersion as error:
        fail(f"this version does not take its spec: {error}")
    return yaml.safe_dump(to_repeat(document, events), sort_keys=False, allow_unicode=True)


def send(
    client: Client,
    document: Document,
    *,
    dry_run: bool,
    follow_it: bool,
    as_json: bool = False,
    gpus: int | None = None,
    gpu_gib: float | None = None,
    memory_gib: float | None = None,
) -> None:
    """Queues a job and prints its id; or, as a dry run, prints what would run, on a machine such as the last three.

    A dry run of a job that fits nowhere raises typer.Exit with code 1.
    """
    with naming_files(document):
        if dry_run:
            plan = client.plan(document, gpus=gpus, gpu_gib=gpu_gib, memory_gib=memory_gib)
            (print_json if as_json else print_plan)(plan)
            if _fits_nowhere(plan):
                raise typer.Exit(_EXIT_MISFIT)
            return
        job = client.submit(document)
        if as_json:
            print_json(job)
        else:
            print(job["id"], flush=True)
        if follow_it:
            follow_to_end(client, job["id"], beside_output())


def _fits_nowhere(plan: Document) -> bool:
    """No for one that nobody can tell of: it may fit."""
    layouts = (plan.get("estimate") or {}).get("layouts", ())
    return bool(layouts) and all(layout["fits"] is False for layout in layouts)


def anchored(spec: JobSpec | RewardJobSpec) -> dict[str, Any]:
    """What the caller wrote; its defaults are the server's. Relative paths are the caller's: they are made absolute."""
    document: dict[str, Any] = spec.model_dump(mode="json", exclude_unset=True)
    if isinstance(spec, RewardJobSpec):
        training = document["training"]
        for split in training.keys() & {"train", "validation"}:
            training[split] = [name if is_url(name) else _absolute(name) for name in training[split]]
        training["model"] = _absolute_model(training["model"])
        return document
    return anchored_changes(document)


def anchored_changes(document: Mapping[str, Any]) -> dict[str, Any]:
    """The same of some fields of an alignment's spec, whatever they hold: what is wrong with them the server says."""
    found: dict[str, Any] = copy.deepcopy(dict(document))
    for split in ("train", "validation", "test"):
        names = _at(found, "data", split)
        if isinstance(names, str):
            found["data"][split] = _absolute_data(names)
        elif isinstance(names, list):
            found["data"][split] = [_absolute_data(name) for name in names]
    if isinstance(sets := _at(found, "data", "sets"), dict):
        for name, named in sets.items():
            sets[name] = [_absolute_data(each) for each in named] if isinstance(named, list) else _absolute_data(named)
    if isinstance(found.get("init_checkpoint"), str):
        found["init_checkpoint"] = _absolute(found["init_checkpoint"])
    model = _at(found, "policy", "model")
    if isinstance(model, str) and model != "quickstart":
        found["policy"]["model"] = _absolute_model(model)
    for reward in _rewards(found).values():
        for option, model in _models(reward).items():
            reward["options"][option] = _absolute_model(str(model))
    return found


def _rewards(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of an alignment, by field."""
    objectives = document.get("objectives")
    listed = enumerate(objectives) if isinstance(objectives, list) else ()
    found = {f"objectives.{i}.reward": _at({"": objective}, "", "reward") for i, objective in listed}
    found["gold.reward"] = _at(document, "gold", "reward")
    return {field: reward for field, reward in found.items() if isinstance(reward, dict)}


def _models(reward: Mapping[str, Any]) -> dict[str, object]:
    """The options of a reward that name a model; none of one that nobody knows."""
    name, options = reward.get("name"), reward.get("options")
    if not isinstance(options, dict) or name not in registry.names():
        return {}
    return registry.named_models(str(name), options)


def _at(document: Mapping[str, Any], part: str, field: str) -> Any:
    """None where there is no such branch."""
    branch = document.get(part)
    return branch.get(field) if isinstance(branch, dict) else None


@contextmanager
def naming_files(document: Mapping[str, Any]) -> Iterator[None]:
    """The server's answer never repeats what it was sent: here, where that is known, a refused file is named."""
    try:
        yield
    except ApiError as error:
        message = error.message
        for field, value in _files(document).items():
            if isinstance(value, str):
                named = f"{field}: {value}: "
                message = re.sub(rf"(^|; ){re.escape(field)}: ", lambda found: found[1] + named, message)  # noqa: B023
        told: dict[str, Any] = {"retry_after_s": error.retry_after_s, "request_id": error.request_id}
        named_error = type(error)(error.status, error.code, message, error.param, **told)
        named_error.idempotency_key = error.idempotency_key
        raise named_error from None


def _files(document: Mapping[str, Any]) -> dict[str, Any]:
    """What names a file or a model, by field."""
    files: dict[str, Any] = {"init_checkpoint": document.get("init_checkpoint")}
    for part, names in (("policy", ("model",)), ("data", ("train", "validation", "test"))):
        for name in names:
            files |= _named(f"{part}.{name}", _at(document, part, name))
    if isinstance(sets := _at(document, "data", "sets"), dict):
        for name, value in sets.items():
            files |= _named(f"data.sets.{name}", value)
    for field, reward in _rewards(document).items():
        files |= {f"{field}.options.{option}": model for option, model in _models(reward).items()}
    return files


def _named(field: str, value: Any) -> dict[str, Any]:
    """One name, or several in a list, each by its field too."""
    each = {f"{field}.{i}": name for i, name in enumerate(value)} if isinstance(value, list) else {}
    return {**each, field: value}


def print_plan(plan: Document) -> None:
    """What a dry run found."""
    spec = plan["spec"]
    if spec.get("kind") == "reward_model":
        _print_training(spec)
        return
    names = ", ".join(plain(objective["name"]) for objective in spec["objectives"])
    console = output()
    for line in (
        f"{plain(spec['name'])}: valid",
        f"policy       {plain(spec['policy']['model'])}",
        f"objectives   {names}",
        f"weighting    {spec['weighting']['name']}, steering {spec['steering']['mode']}",
        f"estimator    {spec['estimator']['name']}",
        f"steps        {spec['steps']} of {plan['rollouts_per_step']} completions, {plan['rollouts']} in all",
        f"evaluations  {plan['evaluations']}",
    ):
        console.print(line, markup=False)
    for judge in plan.get("judges", ()):
        console.print(f"judges       {judge_line(judge)}", markup=False)
    for doubt in plan.get("doubts", ()):
        console.print(f"is it meant?  {doubt['param']}: {plain(doubt['message'])}", markup=False, style="yellow")
    console.print(estimate_view(plan["estimate"]))


def _print_training(spec: Document) -> None:
    training = spec["training"]
    heads = ", ".join(plain(head["name"]) for head in training["heads"]) or "one score"
    console = output()
    for line in (
        f"{plain(spec['name'])}: valid",
        f"backbone     {plain(training['model'])}",
        f"objective    {training['objective']}, {heads}",
        f"train        {', '.join(map(plain, training['train']))}",
        f"validation   {', '.join(map(plain, training['validation'])) or 'none'}",
    ):
        console.print(line, markup=False)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _absolute_data(name: Any) -> Any:
    return _absolute(name) if isinstance(name, str) and not is_reference(name) and not is_url(name) else name


def _absolute_model(model: str) -> str:
    """Unless it is a hub id."""
    if model.startswith((".", "/", "~")) or os.path.isdir(model):  # noqa: PTH112  # False of what no path can be
        return _absolute(model)
    return model
