"""What is told of other trainers' fields, and the guide for people who come with their recipes."""

import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec import JobSpec
from orchestrator.specs.data import FilesData
from orchestrator.specs.evaluation import EvaluationSpec
from orchestrator.specs.foreign import FOREIGN, NOWHERE
from orchestrator.specs.optimizer import LossSpec, OptimizerSpec
from orchestrator.specs.policy import LoraSpec

GUIDE = (Path(__file__).parents[3] / "orchestrator/specs/README.md").read_text(encoding="utf-8")


def test_foreign_fields_are_none_of_ours_and_name_some_that_are() -> None:
    """Also those in the words after the first."""
    sections = "|".join(name for name in JobSpec.model_fields if name not in ("data", "steps", "name", "seed", "kind"))
    for theirs, words in {**FOREIGN, **NOWHERE}.items():
        named = re.findall(rf"(?<![\w.])(?:{sections})\.\w+(?:\.\w+)*", words)
        ours = [re.split("[,;:]", words)[0]] if theirs in FOREIGN else []
        assert [path for path in [*ours, *named] if not is_field(path)] == [], theirs
        assert not is_field(theirs)
    assert not FOREIGN.keys() & NOWHERE.keys()


@pytest.mark.parametrize("row", re.findall(r"^\| ((?:`|none).*) \|$", GUIDE, re.MULTILINE))
def test_a_row_of_the_guide_has_what_is_told_of_a_recipe(row: str) -> None:
    ours, *theirs = row.split("|")
    of_verl = [re.sub(r"`(?=(model|actor|rollout)\.)", "`actor_rollout_ref.", theirs[1])]
    named = re.findall(r"`([^`]+)`", "".join([*theirs[:1], *of_verl, *theirs[2:]]))
    assert named
    if ours.startswith("none"):
        assert set(named) <= NOWHERE.keys()
        return
    field = re.findall(r"`([^`]+)`", ours)[0]
    assert is_field(field)
    assert [name for name in named if not re.search(rf"(?<![\w.]){field}(?![\w.])", FOREIGN.get(name, ""))] == []


def test_the_defaults_that_the_guide_names() -> None:
    loss, optimizer, evaluation = LossSpec(), OptimizerSpec(), EvaluationSpec()
    assert "`clip_high` .28 (theirs: as the lower), `dual_clip` off (verl 3), `betas` .9 and .95" in GUIDE
    assert (loss.clip_high, loss.dual_clip, optimizer.betas) == (0.28, None, (0.9, 0.95))
    assert "`weight_decay` 0" in GUIDE
    assert "`schedule` constant" in GUIDE
    assert "`kl_coef` 0, held-out temperature 1" in GUIDE
    assert (optimizer.weight_decay, optimizer.schedule, loss.kl_coef, evaluation.temperature) == (0, "constant", 0, 1)


def is_field(path: str) -> bool:
    """Of a job on files, with an adapter."""
    chosen = {"data": FilesData, "policy.lora": LoraSpec}
    place: Any = JobSpec
    parts = path.split(".")
    for i, part in enumerate(parts, start=1):
        if part not in getattr(place, "model_fields", {}):
            return False
        place = chosen.get(".".join(parts[:i]), place.model_fields[part].annotation)
    return True
