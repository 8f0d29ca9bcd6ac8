"""What engines are sent has the names, the shapes and the numbers of the policy's own checkpoint."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from policies.learner import Learner, LearnerSettings
from policies.lora import Lora
from tests.tiny_policy import make_tokenizer

SIZES = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES = {
    "llama": {},
    "qwen3": {"head_dim": 8, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 8},
    "phi3": {"pad_token_id": 0},
    "mixtral": {"num_local_experts": 4},
    "phimoe": {"num_local_experts": 4},
    "granitemoe": {"num_local_experts": 4},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 16},
    "qwen3_moe": EXPERTS | {"head_dim": 8},
    "glm4_moe": EXPERTS | {"n_routed_experts": 4, "first_k_dense_replace": 1, "head_dim": 8},
}


def write(family, folder):
    """A policy's directory; the weights in it."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES | FAMILIES[family]))
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_engines_are_sent_what_the_checkpoint_has(family, tmp_path):
    saved = write(family, tmp_path / "policy")
    learner = Learner(LearnerSettings(model=str(tmp_path / "policy"), threads=1))
    sent = learner.weights()
    assert sent.keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(sent[name], tensor), name
    # vLLM's own transports are told of them first, in the order in which they come.
    assert learner.weight_kinds() == [(name, t.dtype, tuple(t.shape)) for name, t in learner.each_weight()]
    save_file(sent, tmp_path / "sent")  # it refuses tensors that share their memory


def test_what_does_not_learn_is_sent_and_saved_as_it_is(tmp_path):
    """What the choice of experts rests on keeps its own type, as rounded it would choose others."""
    write("glm4_moe", tmp_path)
    learner = Learner(LearnerSettings(model=str(tmp_path), threads=1, dtype="bfloat16"))
    balance = learner.model.model.layers[1].mlp.gate.e_score_correction_bias
    balance.copy_(torch.tensor([0.1, 0.2, 0.3, 1 / 3]))
    learner.save_policy(tmp_path / "saved")
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    for weights in (learner.weights(), load_file(tmp_path / "saved" / "model.safetensors")):
        assert torch.equal(weights[name], balance)
        assert weights["model.norm.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_so_they_are_with_an_adapter_merged(dtype, tmp_path):
    saved = write("mixtral", tmp_path)
    learner = Learner(LearnerSettings(model=str(tmp_path), threads=1, dtype=dtype, lora=Lora(rank=2, alpha=4)))
    with torch.no_grad():
        for parameter in learner.parameters:
            parameter.fill_(0.1)
    sent = learner.weights()
    changed = {name for name, tensor in saved.items() if not torch.equal(sent[name], tensor.to(sent[name].dtype))}
    assert sent.keys() == saved.keys()
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert learner.weight_kinds() == [(name, t.dtype, tuple(t.shape)) for name, t in sent.items()]
