"""Jobs with an adapter, and jobs that start from the adapter that another job's checkpoint has."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer

from orchestrator.checks.estimate import model_size
from orchestrator.checks.preflight import preflight
from orchestrator.inputs import resolve_model
from orchestrator.process_settings import learner_settings
from orchestrator.spec import JobSpec, parse_spec
from policies import merging
from policies.learner import Learner, LearnerSettings
from policies.lora import Lora
from policies.models import ADAPTER_CONFIG, ModelError
from tests.support import make_policy, small_spec


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policy") / "base")


@pytest.fixture
def checkpoint(base: Path, tmp_path: Path) -> Path:
    """The policy of a checkpoint whose adapter has learned something."""
    directory = tmp_path / "checkpoint"
    learner = Learner(LearnerSettings(model=str(base), threads=1, lora=Lora(rank=2, alpha=4)))
    for parameter in learner.parameters:
        parameter.data += 0.01
    AutoTokenizer.from_pretrained(base).save_pretrained(directory)
    learner.save_policy(directory)
    return directory


def job(model: Path | str, **changes: Any) -> JobSpec:
    return small_spec(model, **changes)


def start(base: Path, checkpoint: Path, **changes: Any) -> JobSpec:
    return parse_spec({**job(base, **changes).model_dump(mode="json"), "init_checkpoint": str(checkpoint)})


def heard(spec: JobSpec, directory: Path) -> tuple[Path, list[str]]:
    stages: list[str] = []
    return Path(resolve_model(spec, directory, data_dir=directory / "data", on_stage=stages.append)), stages


def test_the_home_directory_is_filled_in(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(base.parent))
    assert heard(start(base, Path("~", base.name)), tmp_path) == (base, [])
    with pytest.raises(ModelError, match=r"^init_checkpoint: .*/absent is no directory; give that of an exported"):
        heard(start(base, Path("~/absent")), tmp_path)


def test_the_adapter_is_merged_once_and_stays_what_it_was(base: Path, checkpoint: Path, tmp_path: Path) -> None:
    """A resumed job finds the base that its own adapter may have; another adapter gets another directory."""
    spec = start(base, checkpoint)
    made, stages = heard(spec, tmp_path)
    assert stages == ["merging the adapter that the job starts from"]
    assert made.parent == tmp_path / "data"
    before = (made / "model.safetensors").stat()
    again, stages = heard(spec, tmp_path)
    assert (again, stages) == (made, [])
    assert (made / "model.safetensors").stat().st_ino == before.st_ino
    plain, merged = (load_file(path / "model.safetensors") for path in (base, made))
    assert any(bool((plain[name] != merged[name]).any()) for name in plain)

    learner = Learner(LearnerSettings(model=str(base), threads=1, lora=Lora(rank=2, alpha=4)))
    learner.save_policy(checkpoint)  # another one, in its place
    assert heard(spec, tmp_path)[0] not in (made, checkpoint)


def test_a_merge_that_failed_is_tried_again(
    base: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(merging, "save_whole", fails)
        with pytest.raises(ModelError, match="No space left"):
            heard(start(base, checkpoint), tmp_path)
    assert (heard(start(base, checkpoint), tmp_path)[0] / "model.safetensors").is_file()


def test_its_size_is_the_bases_and_a_dry_run_reads_no_weights(base: Path, checkpoint: Path) -> None:
    assert model_size(start("quickstart", checkpoint)) == model_size(job(base))


def test_an_adapter_whose_base_is_gone_is_refused_before_the_job_is_accepted(base: Path, checkpoint: Path) -> None:
    assert preflight(start(base, checkpoint)) == []
    config = json.loads((checkpoint / ADAPTER_CONFIG).read_text())
    (checkpoint / ADAPTER_CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "/no/such/base"}))
    says = "its adapter's base is not on this machine; put it back, or merge the adapter first"
    assert preflight(start(base, checkpoint)) == [("init_checkpoint", says)]
    (checkpoint / ADAPTER_CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "some/hub-id"}))
    assert preflight(start(base, checkpoint)) == []


def test_an_adapter_is_no_policy_model_and_the_message_says_what_to_do(checkpoint: Path) -> None:
    ((field, message),) = preflight(job(checkpoint))
    assert field == "policy.model"
    assert message == "this path has an adapter alone; make a whole policy of it: equipoise merge ADAPTER DIRECTORY"


@pytest.mark.parametrize(
    ("lora", "forked", "merges"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"merge": True}, False, True),
        ({"merge": False}, True, False),
        (None, False, True),
    ],
)
def test_checkpoints_have_the_whole_policy_where_nobody_else_keeps_its_base(
    base: Path, lora: dict[str, Any] | None, forked: bool, merges: bool
) -> None:
    spec = job(base, policy={"model": str(base), "lora": lora})
    if forked:
        spec = parse_spec({**spec.model_dump(mode="json"), "init_checkpoint": str(base)})
    assert spec.merges is merges
    found = learner_settings(spec, str(base), "cpu").lora
    assert found == (None if lora is None else replace(Lora(rank=16, alpha=32.0), merge=merges))
