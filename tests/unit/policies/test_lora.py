"""Adapters: the base with the adapter off, one policy whether merged or not, and only the adapter learns."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from policies.learner import Learner, LearnerSettings
from policies.lora import Lora, base_parameters, is_adapter, merged, switched_off
from policies.types import ObjectiveAdvantages
from tests.support import make_policy
from tests.unit.policies.test_learner import ROLLOUTS, assert_identical

LORA = Lora(rank=4, alpha=8)
ADVANTAGES_B = torch.linspace(-1.5, 2, len(ROLLOUTS))
MODES = ("exact", "sketch", "last_block", "step_response")
IDS = torch.arange(4, 20).reshape(2, 8)


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    kinds = {"tied": ("qwen3", True), "untied": ("llama", False)}
    return {
        name: str(make_policy(folder / name, architecture=architecture, tied=tied, context=48))
        for name, (architecture, tied) in kinds.items()
    }


@pytest.fixture(scope="module")
def policy(policies):
    return policies["tied"]


def make_learner(model, **changes):
    return Learner(replace(LearnerSettings(model=model, threads=1, lr=1e-2, max_grad_norm=1e9, lora=LORA), **changes))


def updated(model, **changes):
    learner = make_learner(model, **changes)
    for _ in range(2):
        learner.learn(ROLLOUTS, ADVANTAGES_B)
    return learner


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


def largest(one, other):
    return float((one - other).abs().max())


# ------------------------------------------------------------------ the base, and what learns


def test_with_the_adapter_off_the_logits_are_exactly_the_bases(policy):
    learner = updated(policy)
    base = logits(AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32))
    assert largest(logits(learner.model), base) > 1e-3
    with switched_off(learner.model):
        assert torch.equal(logits(learner.model), base)
    assert largest(logits(learner.model), base) > 1e-3


def test_an_adapter_that_has_not_learned_is_the_base(policy):
    assert torch.equal(logits(make_learner(policy).model), logits(AutoModelForCausalLM.from_pretrained(policy)))


def test_only_the_adapter_learns(policy):
    learner = make_learner(policy)
    before = {name: tensor.clone() for name, tensor in base_parameters(learner.model)}
    learner.learn(ROLLOUTS, ADVANTAGES_B)
    assert_identical(dict(base_parameters(learner.model)), before)
    linear = 7 * 2  # of each of the two blocks
    assert len(learner.parameters) == len(learner.optimizer.state) == 2 * linear
    assert all(".lora_" in name for name in learner.trained)


def test_the_reference_is_the_base_and_no_second_model(policy):
    """The KL penalty of a learner with a model beside it, which has the same adapter in its policy."""
    learner = make_learner(policy, kl_coef=0.3)
    assert learner.reference is learner.scorer
    assert learner.learn(ROLLOUTS, ADVANTAGES_B).kl == 0
    kl = learner.learn(ROLLOUTS, ADVANTAGES_B).kl
    other = make_learner(policy, kl_coef=0.3)
    other.reference = Learner(LearnerSettings(model=policy, threads=1)).scorer
    other.learn(ROLLOUTS, ADVANTAGES_B)
    assert other.learn(ROLLOUTS, ADVANTAGES_B).kl == pytest.approx(kl, rel=1e-5)
    assert kl > 1e-5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "changes", [{}, {"packing": True, "chunk_logits": 300}, {"gradient_checkpointing": True, "kl_coef": 0.1}]
)
def test_every_gramian_mode_updates_as_a_plain_update_does(policy, mode, changes):
    advantages_BK = torch.randn(len(ROLLOUTS), 3, generator=torch.Generator().manual_seed(1))
    weights_K = torch.tensor([0.5, 0.3, 0.2])
    parts = ObjectiveAdvantages(advantages_BK=advantages_BK, weights_K=weights_K.double())
    plain, measured = make_learner(policy, gramian=None), make_learner(policy, gramian=mode, **changes)
    if "kl_coef" in changes:
        plain = make_learner(policy, gramian=None, kl_coef=changes["kl_coef"])
    for _ in range(2):  # with B = 0 only B learns
        gramian_KK = measured.gramian(ROLLOUTS, advantages_BK) if mode == "exact" else None
        stats = measured.learn(ROLLOUTS, advantages_BK @ weights_K, parts=parts)
        plain.learn(ROLLOUTS, advantages_BK @ weights_K)
    found = gramian_KK if mode == "exact" else stats.influence_K if mode == "step_response" else stats.gramian_KK
    assert found is not None
    assert bool((torch.as_tensor(found) != 0).any())
    for one, other in zip(measured.parameters, plain.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=2e-3)


# ------------------------------------------------------------------ merging


@given(st.integers(1, 4), st.floats(-4, 4, width=32), st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_merged_is_the_sum_of_both_passes(rank, scale, seed):
    """x W'^T = x W^T + s x A^T B^T, and what is not adapted stays what it is."""
    generator = torch.Generator().manual_seed(seed)
    weight_mn, a_rn, b_mr, x_n = (
        torch.randn(size, generator=generator) for size in ((5, 6), (rank, 6), (5, rank), (6,))
    )
    adapter = {"a.b.lora_A": a_rn, "a.b.lora_B": b_mr, "a.b.lora_scale": torch.tensor(scale)}
    found = dict(merged({"a.b.weight": weight_mn, "a.c.weight": weight_mn}.items(), adapter))
    expected = x_n @ weight_mn.T + scale * (x_n @ a_rn.T @ b_mr.T)
    torch.testing.assert_close(x_n @ found["a.b.weight"].T, expected, rtol=1e-4, atol=1e-4)
    assert found["a.c.weight"] is weight_mn
    assert is_adapter(adapter)
    assert not is_adapter(found)


def test_a_pinned_merge():
    """By hand: W = I, A = (1 2), B = (3 4)^T, s = 2 gives W + 2 B A = ((7, 12), (8, 17))."""
    adapter = {
        "w.lora_A": torch.tensor([[1.0, 2.0]]),
        "w.lora_B": torch.tensor([[3.0], [4.0]]),
        "w.lora_scale": torch.tensor(2.0),
    }
    found = dict(merged([("w.weight", torch.eye(2))], adapter))
    assert found["w.weight"].tolist() == [[7, 12], [8, 17]]


def test_an_adapter_of_another_model_is_refused():
    adapter = {name: torch.ones(1, 1) for name in ("gone.lora_A", "gone.lora_B")} | {
        "gone.lora_scale": torch.tensor(1.0)
    }
    with pytest.raises(ValueError, match="another model: it has no layer gone"):
        list(merged([("there.weight", torch.ones(1, 1))], adapter))


@pytest.mark.parametrize("name", ["tied", "untied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_exported_is_what_engines_are_sent_and_what_the_learner_computes(policies, name, dtype, tmp_path):
    """Merged in the folder, in the whole weights, and by an engine from the base and the adapter alone."""
    learner = updated(policies[name], dtype=dtype, lora=replace(LORA, merge=True))
    learner.save_policy(tmp_path / "policy")
    exported = load_file(tmp_path / "policy" / "model.safetensors")
    sent = learner.weights()
    engine = dict(merged(((n, t.to(sent[n].dtype)) for n, t in _base(policies[name])), learner.adapter()))
    assert_identical(engine, sent)
    assert_identical({key: exported[key] for key in sent}, sent)
    assert {tensor.dtype for tensor in exported.values()} == {getattr(torch, dtype)}
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype=torch.float32)
    assert largest(logits(plain), logits(learner.model.float())) < (1e-5 if dtype == "float32" else 0.02)


def _base(policy):
    return Learner(LearnerSettings(model=policy, threads=1)).model.named_parameters()


@pytest.mark.parametrize(("merge", "place"), [(False, "policy"), (True, "adapter")])
def test_peft_loads_the_adapter_that_is_kept(policy, tmp_path, merge, place):
    from peft import PeftModel

    learner = updated(policy, lora=replace(LORA, targets=("q_proj", "down_proj"), merge=merge))
    learner.save_policy(tmp_path / "policy")
    kept = tmp_path / place
    config = json.loads((kept / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["target_modules"]) == (policy, ["down_proj", "q_proj"])
    with safe_open(kept / "adapter_model.safetensors", framework="pt") as file:
        assert file.metadata()["base_sha256"] == learner.base_sha256.hex()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32), kept)
    torch.testing.assert_close(logits(model), logits(learner.model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("written", "merge"), [(False, False), (True, True), (True, False), (False, True)])
def test_an_exported_adapter_is_loaded_to_be_evaluated(policies, tmp_path, written, merge, dtype):
    """Whichever way it was written: a job may go on under a version that takes its spec in another way."""
    learner = updated(policies["tied"], dtype=dtype, lora=replace(LORA, merge=merge))
    learner.settings = replace(learner.settings, lora=replace(LORA, merge=written))
    learner.save_policy(tmp_path / "policy")
    learner.settings = replace(learner.settings, lora=replace(LORA, merge=merge))
    sent = {name: tensor.clone() for name, tensor in learner.adapter().items()}
    learner.learn(ROLLOUTS, ADVANTAGES_B)
    assert any(not torch.equal(sent[name], now) for name, now in learner.adapter().items())
    learner.load_policy(tmp_path)
    assert_identical(learner.adapter(), sent)
    with pytest.raises(KeyError, match="other base weights"):
        make_learner(policies["untied"], lora=replace(LORA, merge=merge)).load_policy(tmp_path)


def test_the_base_is_kept_in_the_policys_type_and_the_adapter_in_float32(policy):
    learner = make_learner(policy, dtype="bfloat16")
    assert {tensor.dtype for _, tensor in base_parameters(learner.model)} == {torch.bfloat16}
    assert {parameter.dtype for parameter in learner.parameters} == {torch.float32}
    learner.learn(ROLLOUTS, ADVANTAGES_B)
    assert {tensor.dtype for tensor in learner.adapter().values() if tensor.dim()} == {torch.bfloat16}


def test_an_adapter_is_a_small_part_of_what_engines_were_sent(policy):
    """4 of 64 dimensions: r (m + n) numbers in place of m n."""
    learner = make_learner(policy, lora=replace(LORA, targets=("q_proj",)))
    sizes = [sum(t.numel() for t in found.values()) for found in (learner.adapter(), learner.weights())]
    assert sizes[0] == 2 * (4 * (64 + 64) + 1)
    assert sizes[0] < sizes[1] / 20


# ------------------------------------------------------------------ state


@pytest.mark.parametrize("minibatches", [1, 3])
def test_a_resumed_adapter_goes_on_bit_for_bit(policy, tmp_path, minibatches):
    learner = updated(policy, minibatches=minibatches, kl_coef=0.1)
    learner.save_state(tmp_path)
    other = make_learner(policy, minibatches=minibatches, kl_coef=0.1, seed=5)
    other.load_state(tmp_path)
    stats = [one.learn(ROLLOUTS, ADVANTAGES_B) for one in (learner, other)]
    assert stats[0] == stats[1]
    assert_identical(other.weights(), learner.weights())


def test_a_fork_begins_where_its_parent_was_with_an_adapter_of_its_own(policy, tmp_path):
    """From the merged policy, as every fork does; the parent is then the base, and the KL reference."""
    from transformers import AutoTokenizer

    parent = updated(policy, lora=replace(LORA, merge=True))
    parent.save_policy(tmp_path / "policy")
    AutoTokenizer.from_pretrained(policy).save_pretrained(tmp_path / "policy")
    fork = make_learner(str(tmp_path / "policy"), lora=Lora(rank=2, alpha=2), kl_coef=0.1)
    assert largest(logits(fork.model), logits(parent.model)) < 1e-5
    assert fork.learn(ROLLOUTS, ADVANTAGES_B).kl == 0.0
    assert largest(logits(fork.model), logits(parent.model)) > 1e-4
    with switched_off(fork.model):
        assert largest(logits(fork.model), logits(parent.model)) < 1e-5


def test_only_the_adapters_state_is_kept(policy, tmp_path):
    learner = updated(policy)
    learner.save_state(tmp_path)
    kept = load_file(tmp_path / "learner.safetensors")
    assert {name for name in kept if name.startswith("weights.")} == {f"weights.{name}" for name in learner.trained}
    assert bytes(kept["base.sha256"].tolist()) == learner.base_sha256


def test_the_base_is_told_by_its_numbers(policy):
    """As hashlib has it, from the folder's own tensors."""
    digest = hashlib.sha256()
    for name, tensor in _base(policy):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode() + tensor.detach().numpy().tobytes())
    assert make_learner(policy).base_sha256 == digest.digest()


@pytest.mark.parametrize("changes", [{}, {"lora": None}], ids=["other base", "no adapter"])
def test_the_state_of_another_base_is_refused(policy, tmp_path, changes):
    make_learner(policy).save_state(tmp_path)
    other = make_learner(str(make_policy(tmp_path / "other", architecture="qwen3", context=48, seed=1)), **changes)
    before = other.weights()
    with pytest.raises(KeyError, match=r"another model|other base weights"):
        other.load_state(tmp_path)
    assert_identical(other.weights(), before)


# ------------------------------------------------------------------ errors


def test_an_unknown_target_names_those_that_there_are(policy):
    with pytest.raises(
        ValueError, match=r"policy.lora.targets: no linear layer 'query'.*there are down_proj, .*q_proj"
    ):
        make_learner(policy, lora=replace(LORA, targets=("q_proj", "query")))


def test_the_head_is_no_target(policies):
    with pytest.raises(ValueError, match="no linear layer 'lm_head'"):
        make_learner(policies["untied"], lora=replace(LORA, targets=("lm_head",)))


def test_a_policy_without_linear_layers_is_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    from policies.lora import attach

    with pytest.raises(ValueError, match=r"policy.lora: .*no plain linear layers.*train it in full"):
        attach(GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=8, vocab_size=20)), LORA)
