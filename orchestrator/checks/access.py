"""Which files and URLs a spec may name, for whom it was submitted."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from orchestrator.rollouts.split_files import is_pattern, matches
from orchestrator.spec import JobSpec
from orchestrator.specs.data import MAX_FILES, FilesData
from orchestrator.specs.reward_job import RewardJobSpec
from orchestrator.state.keys import OWN_OWNER
from orchestrator.storage.datasets import is_reference
from orchestrator.storage.remote import RemoteError, is_under, is_url, parts_of
from rewards import registry

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
HUB = "hf://datasets"  # below it lie the hub's datasets, as huggingface_hub opens them
_OTHER_MODELS = "use a model of GET /v1/models or a hub id"


@dataclass(frozen=True, kw_only=True)
class Access:
    """Of one owner: its datasets and its own jobs' checkpoints always, other paths where the operator allows them."""

    owner: str
    state_dir: Path
    roots: tuple[Path, ...] | None
    """Directories that data and models may be read from; None is any."""
    urls: tuple[str, ...] = ()
    """What is below these URLs may be data; no other URL may."""
    model_roots: tuple[Path, ...] = ()
    """The same for models alone."""
    own_job: Callable[[str], bool] = lambda _: False

    @property
    def is_own(self) -> bool:
        """The installation's own owner, whom its token of the hub serves."""
        return self.owner == OWN_OWNER

    def problems(self, spec: JobSpec | RewardJobSpec) -> list[tuple[str, str]]:
        """(dotted path of the field, what to do) for each path that is out of bounds. No file is opened."""
        problems = []
        if isinstance(spec, RewardJobSpec):
            return self._problems_of_training(spec)
        if isinstance(spec.data, FilesData):
            for split in spec.data.splits:
                found = {field: self._problem_of_data(name) for field, name in spec.data.fields(split).items()}
                problems += [(field, problem) for field, problem in found.items() if problem]
        if self.roots is None:
            return problems
        if spec.init_checkpoint is not None and not self._is_open(spec.init_checkpoint):
            problems.append(("init_checkpoint", self._refusal(_OTHER_MODELS)))
        models = {"policy.model": spec.policy.model, **_reward_models(spec)}
        found = {field: self.problem_of_model(value) for field, value in models.items() if value != "quickstart"}
        return problems + [(field, problem) for field, problem in found.items() if problem]

    def problem_of_model(self, model: str) -> str | None:
        """What to do instead, where this directory may not be read. A hub id may be."""
        if self.roots is None or _is_hub_id(model) or self._is_open(model):
            return None
        return self._refusal(_OTHER_MODELS)

    def _problems_of_training(self, spec: RewardJobSpec) -> list[tuple[str, str]]:
        problems = []
        for split in ("train", "validation"):
            for i, name in enumerate(getattr(spec.training, split)):
                if is_reference(name):
                    problem: str | None = "uploads are prompts, not ratings or pairs; expected a path or a URL"
                else:
                    problem = self._problem_of_data(name, "put the file there, or name a URL that is open to you")
                if problem:
                    problems.append((f"training.{split}.{i}", problem))
        if problem := self.problem_of_model(spec.training.model):
            problems.append(("training.model", problem))
        return problems

    def _problem_of_data(self, name: str, instead: str = "upload the file, and name it as dataset:ID") -> str | None:
        if is_reference(name):
            return None
        if not is_url(name):
            return None if self.roots is None or _all_inside(name, self.roots) else self._refusal(instead)
        try:
            if any(_is_below(name, root) for root in self.urls):
                return None
        except RemoteError as error:
            return str(error)
        return f"this URL is not under one that the operator allowed; {instead}"

    def _refusal(self, instead: str) -> str:
        if self.roots:
            return f"this path is not under a directory that the operator allowed; {instead}"
        return f"paths on the server's machine are not open to this owner; {instead}"

    def _is_open(self, model: str) -> bool:
        """A directory of a model, where roots bound what may be read."""
        return _inside(model, (*(self.roots or ()), *self.model_roots)) or self._is_of_own_job(model)

    def _is_of_own_job(self, value: str) -> bool:
        jobs, path = self.state_dir.resolve() / "jobs", _resolved(value)
        return path is not None and path.is_relative_to(jobs) and path != jobs and self.own_job(_first(path, jobs))


def _reward_models(spec: JobSpec) -> dict[str, str]:
    """By field."""
    rewards = {f"objectives.{i}.reward": objective.reward for i, objective in enumerate(spec.objectives)}
    rewards |= {} if spec.gold is None else {"gold.reward": spec.gold.reward}
    return {
        f"{field}.options.{option}": str(value)
        for field, reward in rewards.items()
        for option, value in registry.named_models(reward.name, reward.options).items()
    }


def _is_below(url: str, root: str) -> bool:
    """On this machine's disk, also with symbolic links followed. Raises RemoteError."""
    scheme, host, segments = parts_of(url)
    if not is_under(url, root):
        return False
    if scheme not in ("file", "local"):
        return True
    return not host and _inside("/" + "/".join(segments), [Path("/", *parts_of(root)[2])])


def _first(path: Path, base: Path) -> str:
    return path.relative_to(base).parts[0]


def _is_hub_id(value: str) -> bool:
    there = os.path.exists(value)  # noqa: PTH110  # False of what no path can be
    return HUB_ID.fullmatch(value) is not None and not there


def _inside(name: str, roots: Iterable[Path]) -> bool:
    """With symbolic links followed."""
    path = _resolved(name)
    return path is not None and any(path.is_relative_to(root.resolve()) for root in roots)


def _all_inside(name: str, roots: Iterable[Path]) -> bool:
    """A path, or everything that a pattern matches in one folder. Nothing outside is listed, nor told."""
    if not is_pattern(name):
        return _inside(name, roots)
    folder = str(Path(name).parent)
    if is_pattern(folder) or not _inside(folder, roots):
        return False
    return all(_inside(str(path), roots) for path in (Path(name), *islice(matches(name), MAX_FILES + 1)))


def _resolved(name: str) -> Path | None:
    try:
        return Path(name).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, no home directory, a NUL
        return None
