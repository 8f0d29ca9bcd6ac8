"""Objectives' gradients read off one backward pass, against a backward pass for each."""

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from policies.capture import Capture, UnsupportedLayerError
from policies.gramian import FullGradients, SketchedGradients, backward_passes, inner_products, separable

ROLLOUTS, TOKENS, OBJECTIVES = 6, 10, 3
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),  # biases
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),  # norms of single heads
}


def make_model(family="llama", *, tied=True, **changes):
    config_type, model_type = FAMILIES[family]
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    return model_type(config_type(**sizes, **heads, tie_word_embeddings=tied, **changes))


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 50, (ROLLOUTS, TOKENS), generator=generator)  # padding tokens among them
    return ids, torch.randn(ROLLOUTS, OBJECTIVES, generator=generator)


def unit_losses(model, ids):
    """One loss for each rollout, which its advantage multiplies."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    logprobs = torch.log_softmax(logits.float(), dim=-1).gather(2, ids[:, 1:, None]).squeeze(-1)
    return -torch.exp(logprobs - logprobs.detach()).sum(dim=1) / ids.numel()


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def separate(model, ids, advantages):
    losses = unit_losses(model, ids)
    return backward_passes([(losses * advantages[:, k]).sum() for k in range(OBJECTIVES)], trainable(model))


def captured(model, ids, advantages):
    sink = FullGradients(trainable(model), OBJECTIVES)
    with Capture(model).recording(sink, advantages, weight_gradients=False):
        unit_losses(model, ids).sum().backward()
    return sink


def furthest(one, other):
    """Largest difference relative to the largest entry."""
    largest = max(float(part.abs().max()) for parts in other for part in parts)
    pairs = ((a, b) for ours, theirs in zip(one, other, strict=True) for a, b in zip(ours, theirs, strict=True))
    return max(float((a - b).abs().max()) for a, b in pairs) / largest


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_gives_what_k_passes_give(family, tied):
    model = make_model(family, tied=tied)
    ids, advantages = batch()
    expected = separate(model, ids, advantages)
    sink = captured(model, ids, advantages)
    assert furthest(sink.gradients, expected) < 1e-5
    torch.testing.assert_close(sink.gramian(), inner_products(expected), rtol=1e-5, atol=1e-12)


def test_with_checkpointed_activations():
    model = make_model()
    ids, advantages = batch()
    expected = separate(model, ids, advantages)
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert furthest(captured(model, ids, advantages).gradients, expected) < 1e-5


def test_in_bfloat16_as_good_as_autograd():
    """Both are rounded to bfloat16 on the way, neither more than the other."""
    model = make_model("qwen3")
    ids, advantages = batch()
    exact = separate(model, ids, advantages)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = separate(model, ids, advantages)
        sink = captured(model, ids, advantages)
    assert furthest(sink.gradients, exact) < 2 * furthest(rounded, exact)


@pytest.mark.parametrize("trained_head", [False, True])
def test_adapters_of_peft(trained_head):
    """Only the low-rank parts are trained (and, with `modules_to_save`, a copy of the head)."""
    from peft import LoraConfig, get_peft_model

    saved = ["lm_head"] if trained_head else None
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, modules_to_save=saved)
    model = get_peft_model(make_model("qwen3", tied=False), config)
    assert len(trainable(model)) == 12 + trained_head
    ids, advantages = batch()
    expected = separate(model, ids, advantages)
    sink = captured(model, ids, advantages)
    assert furthest(sink.gradients, expected) < 1e-5
    torch.testing.assert_close(sink.gramian(), inner_products(expected), rtol=1e-5, atol=1e-12)


def test_the_update_beside_it_is_the_plain_one():
    model = make_model("qwen3")
    ids, advantages = batch()
    combined = advantages.sum(dim=1)
    (unit_losses(model, ids) * combined).sum().backward()
    expected = [p.grad.clone() for p in trainable(model)]
    model.zero_grad()
    made, ratios = separable(combined, advantages)
    sink = FullGradients(trainable(model), OBJECTIVES)
    with Capture(model).recording(sink, ratios):
        (unit_losses(model, ids) * made).sum().backward()
    assert furthest([[p.grad for p in trainable(model)]], [expected]) < 1e-5
    model.zero_grad()
    assert furthest(sink.gradients, separate(model, ids, advantages)) < 1e-4


def test_a_rollout_in_which_objectives_cancel_still_speaks():
    """Its combined advantage is 0, so nothing of it would reach the layers."""
    advantages = torch.tensor([[1.0, -1.0], [0.5, 0.5], [0.0, 0.0]])
    made, ratios = separable(advantages.sum(dim=1), advantages)
    assert 0 < abs(float(made[0])) <= 1e-6
    torch.testing.assert_close(made[:, None] * ratios, advantages)
    assert float(made[2]) == 0
    assert separable(torch.zeros(3), advantages) is None


def test_the_model_is_as_it_was_afterwards():
    model = make_model()
    ids, advantages = batch()
    before = model(input_ids=ids).logits
    with pytest.raises(RuntimeError, match="stop"), Capture(model).recording(object(), advantages):
        raise RuntimeError("stop")
    captured(model, ids, advantages)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert not any("forward" in vars(module) for module in model.modules())


def test_muted_backward_passes_report_nothing_and_make_gradients():
    model = make_model()
    ids, advantages = batch()
    unit_losses(model, ids).sum().backward()
    expected = [p.grad.clone() for p in trainable(model)]
    model.zero_grad()
    capture, sink = Capture(model), FullGradients(trainable(model), OBJECTIVES)
    with capture.recording(sink, advantages, weight_gradients=False):
        loss = unit_losses(model, ids).sum()
        with capture.muted():
            loss.backward()
    assert furthest([[p.grad for p in trainable(model)]], [expected]) < 1e-5
    assert not inner_products(sink.gradients).any()


def test_a_layer_that_is_not_known_is_refused():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=16))
    with pytest.raises(UnsupportedLayerError, match=r"Conv1D|LayerNorm"):
        Capture(model)


def test_a_layer_that_mixes_rollouts_is_refused():
    mixing = nn.Sequential(nn.Flatten(0, 1), nn.Linear(4, 2, bias=False))
    sink = FullGradients(list(mixing.parameters()), 2)
    with (
        pytest.raises(UnsupportedLayerError, match="mixes rollouts"),
        Capture(mixing).recording(sink, torch.ones(3, 2)),
    ):
        mixing(torch.ones(3, 5, 4)).sum().backward()


class TestSketch:
    def sketched(self, model, ids, advantages, width, seed):
        sink = SketchedGradients(trainable(model), width=width, seed=seed)
        with Capture(model).recording(sink, advantages, weight_gradients=False):
            unit_losses(model, ids).sum().backward()
        return sink.gramian()

    def test_unbiased_and_closer_with_more_columns(self):
        model = make_model("qwen3")
        ids, advantages = batch()
        exact = captured(model, ids, advantages).gramian()
        errors = {}
        for width in (4, 16):
            found = torch.stack([self.sketched(model, ids, advantages, width, seed) for seed in range(16)])
            errors[width] = float((found - exact).norm(dim=(1, 2)).mean() / exact.norm())
            mean_error = float((found.mean(dim=0) - exact).norm() / exact.norm())
            assert mean_error < 2.5 * errors[width] / 16**0.5
        assert errors[16] < 0.5 * errors[4]

    def test_the_seed_decides(self):
        model = make_model()
        ids, advantages = batch()
        one, again, other = (self.sketched(model, ids, advantages, 8, seed) for seed in (1, 1, 2))
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
