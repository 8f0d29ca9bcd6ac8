"""Specs that older versions accepted, as they stored them: tests/data/accepted, to which files are only ever added.

`test_loop.py` reads the states there.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import OtherVersion
from orchestrator.spec import JobSpec
from orchestrator.stored_spec import absent_fields, read_stored

ACCEPTED = sorted((Path(__file__).parents[2] / "data" / "accepted").glob("spec-*.json"))

AS_BEFORE = frozenset({
    "kind", "policy.cpu_offload", "policy.compile", "policy.lora", "policy.chat", "data.columns.domain",
    "data.columns.details", "data.sets", "objectives.*.reward.hosting", "objectives.*.domains", "rollout.top_k",
    "rollout.min_p", "rollout.stop", "rollout.include_stop", "rollout.reasoning", "rollout.stall_s", "rollout.mode",
    "rollout.sleep", "rollout.max_staleness", "sampling.tail", "loss.ratio", "loss.dual_clip",
    "loss.mask_truncated", "optimizer.max_skipped_steps", "optimizer.min_lr_ratio", "optimizer.packing",
    "checkpoints.asynchronous", "gold", "resources.learner_ranks", "resources.learner_timeout_s", "data.overlong",
    "evaluation.top_p", "evaluation.top_k", "evaluation.min_p", "loss.form", "objectives.*.transform.decay",
})  # fmt: skip
"""Fields that are newer than the stored specs, whose default is what was done before there were any."""


def stored(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def missing(new: Any, old: Any, path: str = "") -> Iterator[str]:
    """Paths that are in `new` alone, the uppermost of each branch."""
    if isinstance(new, dict) and isinstance(old, dict):
        for name, value in new.items():
            place = f"{path}.{name}" if path else name
            if name in old:
                yield from missing(value, old[name], place)
            else:
                yield place
    elif isinstance(new, list) and isinstance(old, list):
        for one, other in zip(new, old, strict=True):
            yield from missing(one, other, f"{path}.*")


@pytest.mark.parametrize("path", ACCEPTED, ids=lambda path: path.stem)
def test_what_was_accepted_is_read_as_it_was_meant(path: Path) -> None:
    """If this fails for a field of yours: is its default what was done before? A line in AS_BEFORE, else in BEFORE."""
    document = stored(path)
    spec = read_stored(path.read_text())
    assert isinstance(spec, JobSpec)
    added = absent_fields(document)
    assert set(missing(spec.model_dump(mode="json"), document)) <= AS_BEFORE | added.keys()
    for place, value in added.items():
        found: Any = spec
        for part in place.split("."):
            found = getattr(found, part)
        assert found == value, place
    assert read_stored(spec.to_json()) == spec
    assert absent_fields(json.loads(spec.to_json())) == {}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("spec-20-nov", {"optimizer.share_prompts": False}),
        ("spec-20-nov-hv-gradient", {"optimizer.share_prompts": False, "weighting.least": 0.0}),
        ("spec-29-nov-lora", {"policy.lora.merge": True}),
    ],
)
def test_what_was_done_before_there_was_a_field(name: str, more: dict[str, Any]) -> None:
    document = next(stored(path) for path in ACCEPTED if path.stem == name)
    assert absent_fields(document) == {"gramian.response_share": 1.0, "checkpoints.front": 256} | more


def test_a_merged_adapter_stays_one() -> None:
    lora = next(path for path in ACCEPTED if path.stem == "spec-29-nov-lora").read_text()
    spec = read_stored(lora)
    assert isinstance(spec, JobSpec)
    assert spec.merges


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("rollout", "invented"), 32, "rollout.invented: unknown field"),
        (("rollout", "mode"), "invented", "rollout.mode: "),
        (("weighting", "name"), "invented", "weighting.name: expected one of "),
        (("objectives", 0, "reward", "name"), "invented", "objectives.0.reward.name: unknown reward 'invented'"),
        (("steps",), 0, "steps: "),
        (("kind",), "invented", "kind: expected alignment or reward_model"),
    ],
)
def test_what_this_version_refuses_is_no_fault_of_the_jobs(
    place: tuple[str | int, ...], value: Any, words: str
) -> None:
    document: Any = stored(ACCEPTED[0])
    branch = document
    for part in place[:-1]:
        branch = branch[part]
    branch[place[-1]] = value
    with pytest.raises(OtherVersion) as refused:
        read_stored(json.dumps(document))
    assert refused.value.refused.startswith(words)
    assert "\n" not in str(refused.value)


def test_a_plug_in_that_does_not_load_is_no_fault_of_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Any) -> JobSpec:
        raise RuntimeError("the plug-in for weighting 'theirs' (theirs:Rule) does not load: ImportError: torch")

    monkeypatch.setattr("orchestrator.stored_spec.parse_job", broken)
    with pytest.raises(OtherVersion, match="the plug-in for weighting 'theirs'"):
        read_stored(ACCEPTED[0].read_text())
