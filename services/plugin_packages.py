"""A small package with a plug-in that works: what `equipoise plugins new` writes, to be changed by whoever asked."""

from __future__ import annotations

import keyword
import re
from enum import StrEnum
from pathlib import Path
from string import Template

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_LONGEST = 60


class Kind(StrEnum):
    """What the package offers."""

    REWARD = "reward"
    RULE = "rule"  # a weighting


def write_package(folder: Path, name: str, kind: Kind) -> list[Path]:
    """The files, in a folder that must not be there. Raises ValueError for a name that is none, and OSError."""
    if _NAME.fullmatch(name) is None or len(name) > _LONGEST or keyword.iskeyword(_class_of(name)):
        raise ValueError(f"expected a name such as worst_first: small letters, digits and _, at most {_LONGEST}")
    words = {
        "name": name,
        "module": f"equipoise_{name}",
        "package": f"equipoise-{name.replace('_', '-')}",
        "cls": _class_of(name),
        "kind": kind.value,
        "group": "equipoise.rewards" if kind is Kind.REWARD else "equipoise.weightings",
        "use": _USES[kind],
        "try_it": _TRIES[kind],
    }
    module, test = (_REWARD, _REWARD_TEST) if kind is Kind.REWARD else (_RULE, _RULE_TEST)
    texts = {
        "pyproject.toml": _PYPROJECT,
        "README.md": _README,
        f"{words['module']}.py": module,
        f"test_{words['module']}.py": test,
    }
    folder.mkdir(parents=True)
    for file, text in texts.items():
        filled = Template(Template(text).safe_substitute(words)).safe_substitute(words)  # what is put in has names too
        (folder / file).write_text(filled, encoding="utf-8")
    return [folder / file for file in texts]


def _class_of(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


_USES = {
    Kind.REWARD: "objectives: [{name: $name, reward: {name: $name, options: {words: [thank]}}, weight: 0.2}, ...]",
    Kind.RULE: "weighting: {name: $name, options: {sharpness: 2}}",
}
_TRIES = {
    Kind.REWARD: "equipoise rewards run $name --input in.jsonl --output out.jsonl",
    Kind.RULE: "equipoise rules $name",
}

_PYPROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "$package"
version = "0.1"

[tool.setuptools]
py-modules = ["$module"]

[project.entry-points."$group"]
$name = "$module:$cls"

[tool.pytest.ini_options]
pythonpath = ["."]
"""

_README = """\
# $package

The $kind `$name` for Equipoise. In Equipoise's environment, in this folder:

    python -m pytest                                    # its test
    python -m pip install --no-build-isolation -e .
    equipoise plugins                                   # is it there, and can it be used?
    $try_it

Start server and worker anew, as they look for plug-ins once. A spec then asks for it:

    $use
"""

_REWARD = '''\
"""The reward $name."""

from typing import ClassVar

from pydantic import Field

from rewards.base import RewardBatch, RewardOptions


class $cls:
    """Share of the words that occur in the completion."""

    class Options(RewardOptions):
        words: list[str] = Field(["thank", "please"], min_length=1, description="looked for, whatever their case")

    name: ClassVar[str] = "$name"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(self, options: Options) -> None:
        self.words = [word.lower() for word in options.words]

    def score(self, batch: RewardBatch) -> list[float | None]:
        """A finite number for each completion, or None where the reward does not apply."""
        return [self._share(completion.lower()) for completion in batch.completions]

    def _share(self, completion: str) -> float:
        return sum(word in completion for word in self.words) / len(self.words)
'''

_REWARD_TEST = """\
from $module import $cls

from rewards.base import RewardBatch


def test_it_scores_every_completion() -> None:
    completions = ("Thank you!", "Please, and thank you.", "No.")
    batch = RewardBatch(
        prompts=("Hi.",) * 3,
        completions=completions,
        answers=(None,) * 3,
        completion_tokens=(4, 6, 2),
        truncated=(False,) * 3,
        max_tokens=8,
    )
    assert $cls($cls.Options()).score(batch) == [0.5, 1.0, 0.0]
"""

_RULE = '''\
"""The weighting rule $name."""

import torch

from policies.types import StepStats, Weights
from policies.weighting import Weighting


class $cls(Weighting):
    """More weight to the objectives whose mean is lowest in their range; sharpness 0 is the preference."""

    def __init__(self, *, sharpness: float = 4.0) -> None:
        if sharpness < 0:
            raise ValueError(f"sharpness must be at least 0, got {sharpness:g}")
        self.sharpness = sharpness

    def update(self, stats: StepStats) -> Weights:
        """What a spec's preference and this step's rewards make of the K weights, which sum to 1."""
        means_K = torch.nanmean(stats.rewards_PGK.double().flatten(0, 1), dim=0)
        places_K = torch.nan_to_num(stats.objectives.normalise(means_K), nan=1.0)
        weights_K = torch.softmax(stats.preference_K.double().log() - self.sharpness * places_K, dim=0)
        return Weights(weights_K=weights_K.float())
'''

_RULE_TEST = """\
import torch
from $module import $cls

from policies.types import Objectives, StepStats


def test_the_worst_objective_gets_more() -> None:
    objectives = Objectives(
        names=("good", "bad"),
        ranges_K2=torch.tensor([[0.0, 1.0], [0.0, 1.0]]),
        targets_K=torch.full((2,), torch.nan),
        target_signs_K=torch.ones(2),
    )
    rewards_PGK = torch.tensor([[[0.9, 0.1], [0.7, 0.3]]])  # a prompt, two completions, two objectives
    stats = StepStats(
        step=1,
        objectives=objectives,
        rewards_PGK=rewards_PGK,
        advantages_PGK=torch.zeros(1, 2, 2),
        preference_K=torch.tensor([0.5, 0.5]),
    )
    weights_K = $cls(sharpness=2).update(stats).weights_K
    assert weights_K[1] > weights_K[0]
    assert torch.isclose(weights_K.sum(), torch.tensor(1.0))
"""
