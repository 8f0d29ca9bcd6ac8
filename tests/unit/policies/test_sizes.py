"""A model's size from its files, against the model itself."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from policies.lora import Lora, attach, layers
from policies.models import ModelError, load_model
from policies.quickstart import Recipe, _make_model, _make_tokenizer
from policies.sizes import Dimensions, adapter_size, linear_layers, quickstart_config, quickstart_size, size_of
from tests.support import make_policy

MADE = [("llama", True), ("llama", False), ("qwen3", True), ("qwen3", False)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policy") / "llama", tied=False)


@pytest.fixture
def copy(policy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(policy, tmp_path / "copy"))


@pytest.mark.parametrize(("architecture", "tied"), MADE)
def test_parameters_are_those_of_the_loaded_model(architecture: str, tied: bool, tmp_path: Path) -> None:
    directory = make_policy(tmp_path / "policy", architecture=architecture, tied=tied)
    size, model = size_of(directory), load_model(str(directory))
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert {name for name, _ in model.named_parameters()} == size.shapes.keys()
    assert size.largest == max(parameter.numel() for parameter in model.parameters())
    block = [p.numel() for name, p in model.named_parameters() if name.startswith("model.layers.1.")]
    assert size.last_block == math.fsum(block)
    assert size.context == 128
    assert size.dimensions == Dimensions(
        layers=2,
        hidden=64,
        query=64,
        key_value=32,
        intermediate=96,
        vocabulary=model.config.vocab_size,
        normed_heads=architecture == "qwen3",
    )


def test_the_quickstart_policy_is_known_before_it_is_made() -> None:
    model = _make_model(Recipe(), _make_tokenizer(), seed=0)
    size = quickstart_size()
    assert sorted(size.shapes.values()) == sorted(tuple(parameter.shape) for parameter in model.parameters())
    assert size.last_block == sum(p.numel() for name, p in model.named_parameters() if "layers.2." in name)
    assert size.context == model.config.max_position_embeddings
    assert size.dimensions is not None
    assert size.dimensions.vocabulary == model.config.vocab_size
    assert quickstart_config().items() <= model.config.to_dict().items()


@pytest.mark.parametrize("targets", [None, ("q_proj", "down_proj")])
def test_an_adapter_has_the_parameters_that_learn(policy: Path, targets: tuple[str, ...] | None) -> None:
    size, model = size_of(policy), load_model(str(policy))
    attach(model, Lora(rank=3, alpha=3, targets=targets))
    trained = adapter_size(size, rank=3, targets=targets)
    found = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    assert {name.replace(".default.weight", ""): shape for name, shape in found.items()} == trained.shapes
    assert trained.last_block == trained.parameters / 2


MIXTURES = {
    "MixtralForCausalLM": ("MixtralConfig", {"num_local_experts": 4}),
    "Qwen2MoeForCausalLM": ("Qwen2MoeConfig", {"num_experts": 4, "moe_intermediate_size": 32}),
    "Qwen3MoeForCausalLM": ("Qwen3MoeConfig", {"num_experts": 4, "moe_intermediate_size": 32}),
    "OlmoeForCausalLM": ("OlmoeConfig", {"num_experts": 4}),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_and_what_routes_to_them_are_not_adapted(name: str, policy: Path, tmp_path: Path) -> None:
    """Though their files have a matrix for each."""
    import transformers

    config, options = MIXTURES[name]
    made = getattr(transformers, config)(
        hidden_size=64, num_hidden_layers=2, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, **options,
    )  # fmt: skip
    model = getattr(transformers, name)(made)
    model.save_pretrained(tmp_path)
    shutil.copy(policy / "tokenizer.json", tmp_path)
    size = size_of(tmp_path)
    assert size.has_experts
    attach(model, Lora(rank=2, alpha=2))
    assert set(linear_layers(size)) == {path.rpartition(".")[2] for path in layers(model)}
    assert adapter_size(size, rank=2).parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_quickstart_policys_layers_are_known_by_their_names() -> None:
    model = _make_model(Recipe(), _make_tokenizer(), seed=0)
    attach(model, Lora(rank=2, alpha=2))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapter_size(quickstart_size(), rank=2).parameters == trained
    assert set(linear_layers(quickstart_size())) == {name.rpartition(".")[2] for name in layers(model)}


def test_a_head_that_is_written_twice_counts_once(copy: Path) -> None:
    whole = size_of(copy).parameters
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert size_of(copy).parameters == whole - config["vocab_size"] * config["hidden_size"]


def test_shards_are_added_up(copy: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole = size_of(copy).shapes
    model = AutoModelForCausalLM.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="60KB")
    assert len(list(copy.glob("model-*.safetensors"))) > 1
    assert size_of(copy).shapes == whole


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"num_experts": 8}, "mixture of experts"),
        ({"kv_lora_rank": 512}, "latent attention"),
        ({"attn_logit_softcapping": 50.0}, "attention with a bound"),
        ({"hidden_size": None}, "does not say hidden_size"),
        ({"num_hidden_layers": "two"}, "does not say num_hidden_layers"),
        ({"vocab_size": True}, "does not say vocab_size"),
    ],
)
def test_other_architectures_have_parameters_but_no_dimensions(changes: dict, why: str, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    size = size_of(copy)
    assert (size.dimensions, size.last_block) == (None, 0)
    assert size.parameters > 0
    assert why in size.no_dimensions


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("model.safetensors", b"no tensors", "its safetensors can't be read"),
        ("model.safetensors.index.json", b"[]", "can't be read"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../other/model.safetensors"}}', "outside"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "absent.safetensors"}}', "its safetensors can't"),
        ("other.safetensors", b"", "neither model.safetensors nor"),
    ],
)
def test_what_is_wrong_with_the_files_is_said_without_their_path(
    name: str, content: bytes, why: str, copy: Path
) -> None:
    (copy / "model.safetensors").rename(copy / "kept.safetensors")
    (copy / name).write_bytes(content)
    with pytest.raises(ModelError, match=why) as raised:
        size_of(copy)
    assert str(copy) not in str(raised.value)


@pytest.mark.parametrize("config", [{"text_config": [1]}, {"text_config": {"max_position_embeddings": "many"}}])
def test_a_config_of_wrong_types_is_no_crash(config: dict, copy: Path) -> None:
    kept = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(kept | config))
    assert size_of(copy).parameters > 0
