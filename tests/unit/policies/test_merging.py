"""Adapters alone: small files, and a whole policy of them and their base that is what engines were sent, to the bit."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from policies import merging
from policies.learner import Learner
from policies.merging import merge_adapter
from policies.models import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ModelError, adapter_base, check_directory, load_model
from tests.support import make_policy
from tests.unit.policies.test_learner import assert_identical
from tests.unit.policies.test_lora import LORA, logits, updated


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("policies")
    kinds = {"tied": ("qwen3", True), "untied": ("llama", False)}
    return {
        name: str(make_policy(folder / name, architecture=architecture, tied=tied, context=48))
        for name, (architecture, tied) in kinds.items()
    }


def saved(learner: Learner, directory: Path) -> Path:
    """As a checkpoint has it: with the tokenizer."""
    AutoTokenizer.from_pretrained(learner.settings.model).save_pretrained(directory)
    learner.save_policy(directory)
    return directory


@pytest.fixture
def adapter(policies, tmp_path) -> Path:
    return saved(updated(policies["tied"]), tmp_path / "adapter alone")


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.parametrize("name", ["tied", "untied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [3, 4])
def test_a_merged_adapter_is_the_checkpoint_that_merges_file_by_file(policies, name, dtype, rank, tmp_path):
    """alpha / rank is no binary fraction for rank 3."""
    lora = replace(LORA, rank=rank)
    learner = updated(policies[name], dtype=dtype, lora=lora)
    alone = saved(learner, tmp_path / "alone")
    learner.settings = replace(learner.settings, lora=replace(lora, merge=True))
    whole = saved(learner, tmp_path / "whole" / "policy")
    made = merge_adapter(alone, tmp_path / "made")
    assert files(made) == files(whole)
    for file in whole.iterdir():
        assert (made / file.name).read_bytes() == file.read_bytes(), file.name
    sent = learner.weights()
    assert_identical({key: value for key, value in load_file(made / "model.safetensors").items() if key in sent}, sent)


def test_an_adapter_alone_is_small_and_has_its_base_and_the_tokenizer(policies, adapter):
    assert "config.json" not in files(adapter)
    assert "model.safetensors" not in files(adapter)
    assert "tokenizer.json" in files(adapter)
    assert adapter_base(adapter) == (policies["tied"], None)
    whole = Path(policies["tied"], "model.safetensors").stat().st_size
    assert (adapter / ADAPTER_WEIGHTS).stat().st_size < whole / 2


def test_a_merged_policy_has_its_base_s_processor(policies, tmp_path):
    base = Path(shutil.copytree(policies["tied"], tmp_path / "base"))
    learner = updated(str(base))
    (base / "preprocessor_config.json").write_text("{}")
    target = merge_adapter(saved(learner, tmp_path / "alone"), tmp_path / "whole")
    assert (target / "preprocessor_config.json").read_text() == "{}"


def test_transformers_loads_an_adapter_alone_with_its_base(policies, tmp_path):
    learner = updated(policies["untied"])
    alone = saved(learner, tmp_path / "alone")
    model = AutoModelForCausalLM.from_pretrained(alone, dtype=torch.float32)
    torch.testing.assert_close(logits(model), logits(learner.model), rtol=1e-5, atol=1e-5)


def test_a_base_that_moved_is_named(policies, adapter, tmp_path):
    base = shutil.copytree(policies["tied"], tmp_path / "moved")
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(ModelError, match=r"the adapter's base: can't load .*gone.*--base"):
        merge_adapter(adapter, tmp_path / "made")
    assert check_directory(merge_adapter(adapter, tmp_path / "made", base=str(base)))


def test_another_base_is_refused_and_nothing_is_left(adapter, tmp_path):
    other = make_policy(tmp_path / "other", architecture="qwen3", tied=True, context=48, seed=3)
    with pytest.raises(ModelError, match="other is not the base that the adapter was trained on"):
        merge_adapter(adapter, tmp_path / "made" / "model", base=str(other))
    assert not (tmp_path / "made").exists()


def test_an_adapter_of_pefts_own_is_merged_as_peft_merges_it(policies, tmp_path):
    """Without a sum of its base, and with no tokenizer: the base's."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    model = get_peft_model(load_model(policies["untied"]), config)
    model.save_pretrained(tmp_path / "peft")
    made = merge_adapter(tmp_path / "peft", tmp_path / "made")
    found = load_model(str(made))
    torch.testing.assert_close(logits(found), logits(model.merge_and_unload()), rtol=1e-5, atol=1e-6)
    assert AutoTokenizer.from_pretrained(made).eos_token_id is not None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_dora": True}, "no plain LoRA adapter"),
        ({"use_rslora": True}, "no plain LoRA adapter"),
        ({"modules_to_save": ["lm_head"]}, "no plain LoRA adapter"),
        ({"init_lora_weights": "pissa"}, "no plain LoRA adapter"),
        ({"loftq_config": {"bits": 4}}, "no plain LoRA adapter"),
        ({"something_new": 3}, "no plain LoRA adapter"),
        ({"r": 0}, "no plain LoRA adapter"),
        ({"peft_type": "IA3"}, "no plain LoRA adapter"),
        ({"base_model_name_or_path": None}, "does not name the adapter's base"),
        ({"base_model_name_or_path": ["a"]}, "does not name the adapter's base"),
    ],
)
def test_what_is_no_plain_adapter_is_refused(adapter, tmp_path, changes, says):
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(config | changes))
    with pytest.raises(ModelError, match=says):
        merge_adapter(adapter, tmp_path / "made")


@pytest.mark.parametrize("text", ["{", "[]", "null", "\\xff"])
def test_a_damaged_config_is_told(adapter, text):
    (adapter / ADAPTER_CONFIG).write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match="does not name the adapter's base"):
        adapter_base(adapter)


def test_damaged_weights_are_told(adapter, tmp_path):
    os.truncate(adapter / ADAPTER_WEIGHTS, 100)
    with pytest.raises(ModelError, match="can't read the adapter"):
        merge_adapter(adapter, tmp_path / "made")


def test_a_layer_that_the_base_lacks_and_half_an_adapter_are_told(adapter, tmp_path):
    tensors = load_file(adapter / ADAPTER_WEIGHTS)
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    renamed = {name.replace("layers.1.mlp.up_proj", "layers.7.mlp.up_proj"): t for name, t in tensors.items()}
    save_file(renamed, adapter / ADAPTER_WEIGHTS, metadata)
    with pytest.raises(ModelError, match=r"it has no layer .*layers\.7\.mlp\.up_proj"):
        merge_adapter(adapter, tmp_path / "made")
    half = {name: tensor for name, tensor in tensors.items() if "layers.1.mlp.up_proj.lora_A" not in name}
    save_file(half, adapter / ADAPTER_WEIGHTS, metadata)
    with pytest.raises(ModelError, match="A and B"):
        merge_adapter(adapter, tmp_path / "made")


def test_a_target_that_is_taken_stays(adapter, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("x")
    with pytest.raises(ModelError, match="taken exists already; name a new directory"):
        merge_adapter(adapter, taken)
    assert files(taken) == {"mine"}


def test_a_whole_policy_is_no_adapter(policies, tmp_path):
    assert adapter_base(Path(policies["tied"])) is None
    with pytest.raises(ModelError, match=r"has no adapter, or a whole policy beside it; name what `export`"):
        merge_adapter(Path(policies["tied"]), tmp_path / "made")
    with pytest.raises(ModelError, match=r"nowhere is no directory; name what `export`"):
        merge_adapter(tmp_path / "nowhere", tmp_path / "made")


def test_a_full_disk_leaves_nothing(adapter, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(merging, "save_whole", full)
    with pytest.raises(ModelError, match=r"can't write .*: No space left on device; free space"):
        merge_adapter(adapter, tmp_path / "there" / "made")
    assert files(tmp_path / "there") == set()


def test_an_adapter_alone_is_no_policy_to_start_from_and_says_what_to_do(adapter):
    with pytest.raises(ModelError, match="has an adapter alone; make a whole policy of it: equipoise merge"):
        check_directory(adapter)


@pytest.mark.parametrize(
    ("temperature", "cut", "drawn"),
    [
        (1.0, {}, {"temperature": 1.0, "top_p": 1.0, "top_k": 0}),
        (0.6, {"top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9, "top_k": 0}),
        (0.6, {"top_k": 50, "min_p": 0.05}, {"temperature": 0.6, "top_p": 1.0, "top_k": 50, "min_p": 0.05}),
        (0.0, {"top_p": 0.9, "top_k": 5, "min_p": 0.1}, {"top_k": 1}),  # greedy
    ],
)
def test_a_policy_is_served_as_it_was_evaluated_and_not_as_its_base_was(
    policies: dict[str, str], temperature: float, cut: dict[str, float], drawn: dict[str, float], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(policies["untied"], base)
    habits = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1}
    ends = {"eos_token_id": [1, 2]}
    (base / "generation_config.json").write_text(json.dumps({**habits, **ends}))
    learner = updated(str(base))
    cuts = {f"evaluated_{name}": value for name, value in cut.items()}
    learner.settings = replace(learner.settings, evaluated_temperature=temperature, **cuts)
    alone = saved(learner, tmp_path / "alone")
    made = merge_adapter(alone, tmp_path / "made")
    for directory in (alone, made):
        found = json.loads((directory / "generation_config.json").read_text())
        assert found == {**ends, "do_sample": True, **drawn}
    AutoModelForCausalLM.from_pretrained(made).save_pretrained(tmp_path / "again")  # as a fork does
    (alone / "generation_config.json").unlink()
    older = json.loads((merge_adapter(alone, tmp_path / "older") / "generation_config.json").read_text())
    assert older == {**ends, "do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
