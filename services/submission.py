"""A spec file on its way to the server."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.datasets import is_reference
from orchestrator.remote import is_url
from orchestrator.spec import JobSpec, load_spec, parse_job
from orchestrator.specs.data import FilesData
from orchestrator.specs.reward_job import RewardJobSpec
from rewards import registry
from services.client import ApiError
from services.tables import estimate_view
from services.terminal import Document, output
from services.text import plain


def read(path: Path, name: str | None = None) -> dict[str, Any]:
    """The document to submit, its files named so that the server finds them from wherever it runs. Raises SpecError."""
    document = anchored(load_spec(path))
    if name is not None:
        document["name"] = name
        parse_job(document)
    return document


def anchored(spec: JobSpec | RewardJobSpec) -> dict[str, Any]:
    """Relative paths are the caller's, so they are made absolute here."""
    document: dict[str, Any] = spec.model_dump(mode="json")
    if isinstance(spec, RewardJobSpec):
        training = document["training"]
        for split in ("train", "validation"):
            training[split] = [name if is_url(name) else _absolute(name) for name in training[split]]
        training["model"] = _absolute_model(training["model"])
        return document
    if isinstance(spec.data, FilesData):
        for split in ("train", "validation", "test"):
            name = document["data"][split]
            if name is not None and not is_reference(name) and not is_url(name):
                document["data"][split] = _absolute(document["data"][split])
    if spec.init_checkpoint is not None:
        document["init_checkpoint"] = _absolute(spec.init_checkpoint)
    if spec.policy.model != "quickstart":
        document["policy"]["model"] = _absolute_model(spec.policy.model)
    for reward in _rewards(document).values():
        for option, model in registry.named_models(reward["name"], reward["options"]).items():
            reward["options"][option] = _absolute_model(str(model))
    return document


def _rewards(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of an alignment, by field."""
    rewards = {f"objectives.{i}.reward": found["reward"] for i, found in enumerate(document.get("objectives", ()))}
    return rewards | ({"gold.reward": document["gold"]["reward"]} if document.get("gold") else {})


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
        raise type(error)(error.status, error.code, message, error.param) from None


def _files(document: Mapping[str, Any]) -> dict[str, Any]:
    """What names a file or a model, by field."""
    files: dict[str, Any] = {"init_checkpoint": document.get("init_checkpoint")}
    for part, names in (("policy", ("model",)), ("data", ("train", "validation", "test"))):
        files |= {f"{part}.{name}": document.get(part, {}).get(name) for name in names}
    for field, reward in _rewards(document).items():
        models = registry.named_models(reward["name"], reward["options"])
        files |= {f"{field}.options.{option}": model for option, model in models.items()}
    return files


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


def _absolute_model(model: str) -> str:
    """Unless it is a hub id."""
    if model.startswith((".", "/", "~")) or os.path.isdir(model):  # noqa: PTH112  # False of what no path can be
        return _absolute(model)
    return model
