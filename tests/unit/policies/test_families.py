"""Families of models that people align: what the learner says of a rollout is what the plain model says of it."""

import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from policies.learner import Learner, LearnerSettings
from policies.lora import Lora
from policies.types import Rollout
from tests.tiny_policy import make_tokenizer

SIZES = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES = {
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "mistral": {"sliding_window": 6},
    "gemma2": SLIDING | {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "gemma3_text": SLIDING | {"query_pre_attn_scalar": 8},
    "phi3": {},
    "olmo2": {},
    "granite": {"logits_scaling": 0.5, "attention_multiplier": 0.3, "residual_multiplier": 0.5},
    "gpt_oss": SLIDING | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": EXPERTS | {"num_experts": 4, "head_dim": 8},
    "glm4_moe": EXPERTS | {"n_routed_experts": 4, "first_k_dense_replace": 1, "head_dim": 8},
}
UNPACKED = {"gpt_oss"}  # its packed rows are refused


def make_rollouts():
    rng = random.Random(0)
    texts = [tuple(rng.randrange(4, 100) for _ in range(30)) for _ in range(4)]
    cuts = [(9, 24), (9, 20), (5, 22), (3, 8)]
    return [
        Rollout(
            prompt_tokens=text[:prompt], tokens=text[prompt:end], logprobs=(0.0,) * (end - prompt), text="",
            truncated=False, policy_version=0,
        )
        for text, (prompt, end) in zip([texts[0], texts[0], *texts[2:]], cuts, strict=True)
    ]  # fmt: skip


ROLLOUTS = make_rollouts()


@torch.no_grad()
def plain(directory):
    """Log-probabilities from transformers' own reading of what is saved there, all operations written out."""
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()
    found = []
    for one in ROLLOUTS:
        ids, prompt = torch.tensor([one.prompt_tokens + one.tokens]), len(one.prompt_tokens)
        scores = torch.log_softmax(model(ids, use_cache=False).logits[0], dim=-1)
        found.append(scores[prompt - 1 : -1].gather(-1, ids[0, prompt:, None]).squeeze(-1))
    return torch.cat(found)


def said(learner):
    return torch.cat([torch.tensor(scores) for scores in learner.logprobs(ROLLOUTS)])


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(name, directory) of a model whose layers all matter to what it says."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **SIZES | FAMILIES[request.param]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (0.15 if parameter.dim() > 1 else 0.05) * torch.randn_like(parameter)
    directory = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return request.param, directory


def make_learner(directory, **changes):
    settings = {"tokens_per_microbatch": 60, "chunk_logits": 300, "lr": 1e-2} | changes
    return Learner(LearnerSettings(model=str(directory), threads=1, **settings))


def test_a_rollout_is_as_likely_as_the_model_says(family):
    """Whole logits or chunks of them, padded rows or packed ones."""
    name, directory = family
    learner, expected = make_learner(directory), plain(directory)
    assert float(expected.std()) > 0.3
    torch.testing.assert_close(said(learner), expected, atol=2e-5, rtol=1e-5)
    if name not in UNPACKED:
        packed = make_learner(directory, packing=True, share_prompts=False)
        torch.testing.assert_close(said(packed), expected, atol=2e-5, rtol=1e-5)


def test_what_an_adapter_has_learned_is_in_what_is_saved(family, tmp_path):
    _, directory = family
    learner = make_learner(directory, lora=Lora(rank=2, alpha=4.0, merge=True), gradient_checkpointing=True)
    before = said(learner)
    learner.learn(ROLLOUTS, torch.tensor([1.0, -1.0, 0.5, -0.5]))
    after = said(learner)
    assert float((after - before).abs().max()) > 0.01
    learner.save_policy(tmp_path)
    torch.testing.assert_close(after, plain(tmp_path), atol=5e-5, rtol=1e-4)
