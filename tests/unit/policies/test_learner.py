"""The learner against plain transformers forwards and plain autograd, one sequence at a time, on random policies."""

import datetime
import errno
import gc
import json
import math
import os
import random
import shutil
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._dynamo
import torch._dynamo.utils
import torch._functorch.config
import torch.distributed as dist
import torch.multiprocessing
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen3ForCausalLM

from policies import learner as learner_module
from policies import learner_state
from policies.batching import minibatches
from policies.estimators import Gdpo
from policies.estimators.base import whitening_factor
from policies.learner import Learner, LearnerSettings, learning_rate
from policies.lora import Lora
from policies.losses import ClippedSurrogate
from policies.models import ModelError
from policies.ranks import Ranks
from policies.types import ObjectiveAdvantages, Rollout
from tests.support import make_policy

PROMPTS, GROUP, OBJECTIVES = 3, 4, 3
CONTEXT, VOCABULARY = 48, 100
POLICIES = {
    f"{architecture}-{'tied' if tied else 'untied'}": (architecture, tied)
    for architecture in ("llama", "qwen3")
    for tied in (True, False)
}


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    return {
        name: str(make_policy(folder / name, architecture=architecture, tied=tied, context=CONTEXT))
        for name, (architecture, tied) in POLICIES.items()
    }


@pytest.fixture(scope="module")
def policy(policies):
    return policies["qwen3-tied"]


def rollout(rng, prompt, completion):
    return Rollout(
        prompt_tokens=tuple(rng.randrange(VOCABULARY) for _ in range(prompt)),
        tokens=tuple(rng.randrange(VOCABULARY) for _ in range(completion)),
        logprobs=tuple(-4.6 + rng.uniform(-0.9, 0.9) for _ in range(completion)),  # around those of a random policy
        text="",
        truncated=False,
        policy_version=0,
    )


def make_rollouts(seed=0, count=PROMPTS * GROUP):
    """Of all lengths: a single token, one that fills the context, and others between."""
    rng = random.Random(seed)
    sizes = [(5, 1), (4, CONTEXT - 4), *((rng.randint(1, 9), rng.randint(2, 14)) for _ in range(count - 2))]
    return [rollout(rng, *size) for size in sizes]


ROLLOUTS = make_rollouts()
ADVANTAGES = torch.linspace(-1.5, 2, len(ROLLOUTS))


def make_learner(model, **changes):
    """Of rollouts in padded rows of their own; test_shared_prompts.py holds the other layout against these."""
    settings = LearnerSettings(model=model, threads=1, lr=1e-2, max_grad_norm=1e9, share_prompts=False)
    return Learner(replace(settings, **changes))


@pytest.mark.parametrize(
    ("ranks", "changes", "whole"),
    [(1, {}, True), (2, {}, False), (2, {"kl_coef": 0.1}, False), (1, {"cpu_offload": True}, False)],
)
def test_a_gpu_has_the_whole_policy_only_where_it_keeps_it(policy, ranks, changes, whole, monkeypatch):
    """Else it is sharded from the host, block by block: the policy may be larger than a GPU, and the reference too."""
    moved = []

    class Among(Ranks):
        def __init__(self, device, *, offload=False):
            self.device, self.rank, self.size, self.offload = device, 0, ranks, offload

        def shard(self, root, blocks, dtype):
            pass

    monkeypatch.setattr("policies.learner.Ranks", Among)
    monkeypatch.setattr(Qwen3ForCausalLM, "to", lambda model, device: moved.append(device) or model)
    learner = make_learner(policy, **changes)
    assert moved == ([learner.device] if whole else [])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by torch's tracing
@torch._dynamo.config.patch(recompile_limit=8)  # put back what the learner sets
@torch._functorch.config.patch(donated_buffer=True)
@pytest.mark.parametrize(
    "changes",
    [
        {"gramian": None},
        {"gramian": "step_response", "minibatches": 2},
        {"gramian": "step_response", "response_share": 1.0},
        {"gramian": "last_block", "kl_coef": 0.1},
        {"gramian": None, "lora": Lora(rank=2, alpha=4), "kl_coef": 0.1},
        {"gramian": None, "gradient_checkpointing": True},
    ],
)
def test_compiled_blocks_learn_the_same(policy, changes, monkeypatch):
    """By torch's tracing and autograd without a code generator, which a CPU has not always."""
    monkeypatch.setattr("policies.learner.COMPILER", "aot_eager")
    parts = ObjectiveAdvantages(advantages_BK=torch.stack([ADVANTAGES, -ADVANTAGES], dim=1), weights_K=None)
    plain, compiled = (make_learner(policy, compile=compile, **changes) for compile in (False, True))
    blocks = compiled.model.model.layers
    fused = [block._compiled_call_impl is not None for block in blocks]
    assert fused == [True] * (len(blocks) - 1) + [changes["gramian"] != "last_block"]
    for _ in range(2):
        stats = [
            one.learn(ROLLOUTS, ADVANTAGES, parts=parts if changes["gramian"] else None) for one in (plain, compiled)
        ]
    assert stats[1].loss == pytest.approx(stats[0].loss, rel=1e-4)
    for one, other in zip(plain.parameters, compiled.parameters, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def compiled_rank(rank, policy, folder):
    """One of two: what it has after two updates with compiled blocks, and with others."""
    learner_module.COMPILER = "aot_eager"
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    patience = datetime.timedelta(seconds=300)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2, timeout=patience)
    parts = ObjectiveAdvantages(advantages_BK=torch.stack([ADVANTAGES, -ADVANTAGES], dim=1), weights_K=None)
    weights = []
    for compile in (False, True):
        learner = make_learner(policy, compile=compile, gramian="last_block", dtype="bfloat16")
        for _ in range(2):
            learner.learn(ROLLOUTS, ADVANTAGES, parts=parts)
        weights.append([parameter.full_tensor() for parameter in learner.parameters])
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    assert [block._compiled_call_impl is not None for block in learner.model.model.layers] == [True, False]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    dist.destroy_process_group()


def test_ranks_with_compiled_blocks_learn_the_same(policy, tmp_path):
    """Each block's weights are gathered around what was compiled of it."""
    torch.multiprocessing.spawn(compiled_rank, args=(policy, str(tmp_path)), nprocs=2)


def record_gradients(learner):
    """One flat gradient for each update, as the optimiser sees it."""
    seen = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad.flatten().clone() for p in learner.parameters]))
    )
    return seen


def parameters_of(learner):
    return {name: p.detach().clone() for name, p in learner.model.named_parameters()}


def assert_identical(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def relative_distance(one, other):
    return float((one - other).norm() / other.norm())


# What the learner should be: one sequence at a time, no padding, TRL's GRPO formula, autograd.


def naive_logprobs(model, one, temperature=1.0):
    sequence = torch.tensor([one.prompt_tokens + one.tokens])
    scores = torch.log_softmax(model(sequence).logits[0].float() / temperature, dim=-1)
    first = len(one.prompt_tokens) - 1
    return scores[range(first, first + len(one.tokens)), list(one.tokens)]


def naive_token_losses(new, old, one, advantage, surrogate):
    ratio = naive_ratio(new, old, surrogate)
    clipped = ratio.clamp(1 - surrogate.clip_low, 1 + surrogate.clip_high)
    gains = torch.min(ratio * advantage, clipped * advantage)
    if surrogate.dual_clip is not None and advantage < 0:
        gains = torch.max(gains, surrogate.dual_clip * advantage)
    if surrogate.form == "cispo":
        gains = clipped.detach() * advantage * (1 + new - new.detach())
    importance = (old - torch.tensor(one.logprobs)).exp().clamp(max=surrogate.importance_cap)
    return -gains * importance


def naive_ratio(new, old, surrogate):
    return (new - old).exp() if surrogate.ratio == "token" else (new - old).mean().exp().expand(len(new))


def naive_gradient(model, rollouts, advantages, aggregation="token_mean"):
    """(flat gradient, loss) of a first update: the old log-probabilities are the policy's own."""
    rows = []
    for one, advantage in zip(rollouts, advantages, strict=True):
        new = naive_logprobs(model, one)
        rows.append(naive_token_losses(new, new.detach(), one, advantage, ClippedSurrogate()))
    if aggregation == "token_mean":
        loss = torch.cat(rows).sum() / sum(len(row) for row in rows)
    elif aggregation == "sequence_mean":
        loss = sum(row.mean() for row in rows) / len(rows)
    else:
        loss = torch.cat(rows).sum() / (len(rows) * 1024)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients]), loss.item()


def plain_model(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


# ------------------------------------------------------------------------------------------------- forward


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_a_plain_forward(policies, name, temperature):
    learner = make_learner(policies[name], temperature=temperature, tokens_per_microbatch=100)
    model = plain_model(policies[name])
    with torch.no_grad():
        for one, found in zip(ROLLOUTS, learner.logprobs(ROLLOUTS), strict=True):
            torch.testing.assert_close(
                torch.tensor(found), naive_logprobs(model, one, temperature), atol=1e-5, rtol=1e-5
            )


NOISE = {
    "opt": {"dropout": 0.5, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "mixtral": {"router_jitter_noise": 0.5, "num_key_value_heads": 2, "intermediate_size": 24, "num_local_experts": 4},
}


@pytest.fixture
def noisy(policy, tmp_path, request):
    """A policy whose config asks for dropout, with or without modules for it, or for noise before its experts."""
    directory = Path(shutil.copytree(policy, tmp_path / "noisy"))
    if request.param == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": CONTEXT, "vocab_size": VOCABULARY}
        dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.5)
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(**sizes, **dropout, bos_token_id=1, eos_token_id=2)).save_pretrained(directory)
    elif request.param in NOISE:
        sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": VOCABULARY}
        config = AutoConfig.for_model(request.param, **sizes, **NOISE[request.param], max_position_embeddings=CONTEXT)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    else:
        config = json.loads((directory / "config.json").read_text()) | {"attention_dropout": 0.5}
        (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("noisy", ["qwen3", "gpt2", *NOISE], indirect=True)
def test_dropout_is_off(noisy, checkpointing):
    """With it the ratio would not be 1 on fresh rollouts."""
    model = plain_model(noisy)
    learner = make_learner(noisy, gradient_checkpointing=checkpointing)
    with torch.no_grad():
        for one, found in zip(ROLLOUTS, learner.logprobs(ROLLOUTS), strict=True):
            torch.testing.assert_close(torch.tensor(found), naive_logprobs(model, one), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("max_model_len", "sound"), [(None, True), (16, True), (17, False)])
def test_positions_that_depend_on_the_texts_beside_are_refused(policy, tmp_path, max_model_len, sound):
    """A short text has the short factors beside a long one too, as far as engines' contexts go."""
    directory = shutil.copytree(policy, tmp_path / "phi3")
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    config = AutoConfig.for_model(
        "phi3", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, intermediate_size=24,
        vocab_size=VOCABULARY, pad_token_id=0, max_position_embeddings=64, original_max_position_embeddings=16,
        rope_parameters=rope | {"original_max_position_embeddings": 16},
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    if not sound:
        with pytest.raises(ModelError, match=r"^policy\.max_model_len: .*\(longrope\).*; set it to 16 or less$"):
            make_learner(str(directory), max_model_len=max_model_len)
        return
    learner = make_learner(str(directory), max_model_len=max_model_len)
    short, long = rollout(random.Random(0), 3, 4), rollout(random.Random(0), 6, 10)
    assert learner.logprobs([short, long])[0] == pytest.approx(learner.logprobs([short])[0], abs=1e-5)


# ------------------------------------------------------------------------------------------------ gradient


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_one_update_is_autograd_on_the_formula(policy, aggregation):
    learner = make_learner(policy, aggregation=aggregation, tokens_per_microbatch=100)
    seen = record_gradients(learner)
    stats = learner.learn(ROLLOUTS, ADVANTAGES)
    expected, loss = naive_gradient(plain_model(policy), ROLLOUTS, ADVANTAGES, aggregation)
    assert relative_distance(seen[0], expected) < 1e-5
    assert stats.loss == pytest.approx(loss, rel=1e-4)
    assert stats.grad_norm == pytest.approx(float(expected.norm()), rel=1e-5)
    assert (stats.updates, stats.clip_share, stats.kl) == (1, 0, None)


@pytest.mark.parametrize(
    ("surrogate", "layout"),
    [
        ({}, {}),
        ({"dual_clip": 1.02}, {"packing": True}),
        ({"form": "cispo"}, {"packing": True}),
        ({"ratio": "sequence", "clip_low": 3e-3}, {}),
        ({"ratio": "sequence", "clip_low": 3e-3, "dual_clip": 1.002}, {"packing": True, "tokens_per_microbatch": 60}),
        ({"ratio": "sequence", "clip_low": 3e-3}, {"share_prompts": True, "chunk_logits": 300}),
    ],
)
def test_the_second_minibatch_measures_its_ratio_from_before_the_first(policy, surrogate, layout):
    """The whole algorithm once more in plain torch: two minibatches, clip, KL, AdamW."""
    surrogate = ClippedSurrogate(**{"clip_low": 0.02, "clip_high": 0.03, **surrogate})
    changes = {"lr": 3e-3, "minibatches": 2, "kl_coef": 0.5, "surrogate": surrogate}
    learner = make_learner(policy, **changes, **layout)
    seen = record_gradients(learner)
    stats = learner.learn(ROLLOUTS, ADVANTAGES)

    model, reference = plain_model(policy), plain_model(policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    with torch.no_grad():
        old = [naive_logprobs(model, one) for one in ROLLOUTS]
    order = torch.randperm(len(ROLLOUTS), generator=torch.Generator().manual_seed(0)).tolist()
    losses, clipped, tokens = [], 0, 0
    for update, part in enumerate(minibatches(len(ROLLOUTS), count=2, order=order)):
        rollouts, advantages = [ROLLOUTS[i] for i in part], ADVANTAGES[part]
        model.zero_grad()
        rows = []
        for one, advantage, i in zip(rollouts, advantages, part, strict=True):
            new = naive_logprobs(model, one)
            with torch.no_grad():
                reference_T = naive_logprobs(reference, one)
                ratio = naive_ratio(new, old[i], surrogate)
                outside = (ratio < 1 - surrogate.clip_low) | (ratio > (surrogate.dual_clip or math.inf))
                found = (ratio > 1.03) if advantage > 0 else outside
                clipped += int((found if surrogate.form == "ppo" else outside | (ratio > 1.03)).sum())
            difference = reference_T - new
            losses_T = naive_token_losses(new, old[i], one, advantage, surrogate)
            rows.append(losses_T + 0.5 * (difference.exp() - difference - 1))
        loss = torch.cat(rows).sum() / sum(map(len, rows))
        loss.backward()
        losses.append(loss.item())
        tokens += sum(map(len, rows))
        expected = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert relative_distance(seen[update], expected) < 1e-3
        optimizer.step()
    assert len(seen) == stats.updates == 2
    assert stats.loss == pytest.approx(sum(losses) / 2, rel=1e-3)
    assert clipped > 0
    assert stats.clip_share == pytest.approx(clipped / tokens, abs=1.5 / tokens)


@pytest.mark.parametrize("budget", [1, 30, 64, 200, 16_384])
def test_the_token_budget_changes_nothing(policy, budget):
    """How a batch is cut for memory is no part of the algorithm."""
    whole, cut = make_learner(policy), make_learner(policy, tokens_per_microbatch=budget)
    expected, seen = record_gradients(whole), record_gradients(cut)
    one, other = whole.learn(ROLLOUTS, ADVANTAGES), cut.learn(ROLLOUTS, ADVANTAGES)
    assert relative_distance(seen[0], expected[0]) < 1e-5
    for name in ("loss", "grad_norm", "entropy", "importance_mean", "sampler_gap"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-4, abs=1e-6)


def test_the_order_of_rollouts_changes_nothing(policy):
    order = random.Random(1).sample(range(len(ROLLOUTS)), len(ROLLOUTS))
    whole, permuted = make_learner(policy), make_learner(policy)
    expected, seen = record_gradients(whole), record_gradients(permuted)
    stats = whole.learn(ROLLOUTS, ADVANTAGES)
    other = permuted.learn([ROLLOUTS[i] for i in order], ADVANTAGES[order])
    assert relative_distance(seen[0], expected[0]) < 1e-5
    assert other.loss == pytest.approx(stats.loss, rel=1e-4)


@pytest.mark.parametrize("noisy", ["qwen3", "opt"], indirect=True)
def test_checkpointed_activations_change_nothing(noisy):
    whole, thrifty = make_learner(noisy), make_learner(noisy, gradient_checkpointing=True)
    expected, seen = record_gradients(whole), record_gradients(thrifty)
    for learner in (whole, thrifty):
        learner.gramian(ROLLOUTS, torch.stack([ADVANTAGES, -ADVANTAGES], dim=1))
        learner.learn(ROLLOUTS, ADVANTAGES, parts=only_weights(torch.tensor([1.5, 0.5])))
        learner.learn(ROLLOUTS, ADVANTAGES)
    for one, other in zip(seen, expected, strict=True):
        assert relative_distance(one, other) < 1e-4


@pytest.mark.parametrize(("checkpointing", "calls"), [(False, 1), (True, 2)])
def test_checkpointed_activations_are_computed_again(policy, checkpointing, calls):
    learner = make_learner(policy, gradient_checkpointing=checkpointing)
    seen = []
    learner.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    learner.learn(ROLLOUTS[:1], ADVANTAGES[:1])
    assert seen == [True] * calls


def test_figures_are_token_means(policy):
    learner = make_learner(policy)
    model = plain_model(policy)
    with torch.no_grad():
        scores = torch.cat([naive_logprobs(model, one) for one in ROLLOUTS])
    gap = scores - torch.tensor([value for one in ROLLOUTS for value in one.logprobs])
    stats = make_learner(policy, tokens_per_microbatch=10**6).learn(ROLLOUTS, ADVANTAGES)
    assert stats.sampler_gap == pytest.approx(float(gap.abs().mean()), rel=1e-4)
    assert stats.importance_mean == pytest.approx(float(gap.exp().mean()), rel=1e-4)
    assert 0.9 * math.log(VOCABULARY) < stats.entropy <= math.log(VOCABULARY)
    lengths = [len(one.prompt_tokens) + len(one.tokens) for one in ROLLOUTS]
    assert stats.padding_share == pytest.approx(1 - sum(lengths) / (max(lengths) * len(lengths)))
    alone = learner.learn(ROLLOUTS[:1], torch.ones(1))
    assert alone.padding_share == 0


# ----------------------------------------------------------------------------------------------- gramian


def rewards(seed=3):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(PROMPTS, GROUP, OBJECTIVES, generator=generator)
    values[..., 0] = values[..., 0].round()  # as a verifier's
    return values


WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def only_weights(weights):
    """The weights of an update whose gradients `gramian` kept: the advantages are not looked at again."""
    return ObjectiveAdvantages(advantages_BK=torch.empty(0), weights_K=weights)


def test_gramian_is_the_inner_products_of_the_objectives_gradients(policy):
    advantages = Gdpo().per_objective(rewards()).flatten(0, 1).float()
    found = make_learner(policy, tokens_per_microbatch=100).gramian(ROLLOUTS, advantages)
    model = plain_model(policy)
    gradients = torch.stack([naive_gradient(model, ROLLOUTS, advantages[:, k])[0] for k in range(OBJECTIVES)]).double()
    torch.testing.assert_close(found, gradients @ gradients.T, rtol=1e-4, atol=1e-5 * float(found.abs().max()))
    assert torch.equal(found, found.T)
    assert found.dtype == torch.float64


@pytest.mark.parametrize("minibatches", [1, 2])
@pytest.mark.parametrize("kl_coef", [0.0, 0.2])
def test_the_weighted_sum_of_gradients_is_the_update(policy, kl_coef, minibatches):
    """The exactness claim: with gdpo, sum_k c w_k g_k is the gradient of the combined advantages' loss."""
    estimator, raw = Gdpo(), rewards()
    parts, combined = estimator.per_objective(raw), estimator(raw, WEIGHTS).flatten()
    learners = [make_learner(policy, kl_coef=kl_coef, minibatches=minibatches) for _ in range(2)]
    for learner in learners:
        learner.learn(ROLLOUTS, ADVANTAGES)  # away from the reference, so that the penalty has a gradient
    plain, weighted = learners
    expected, seen = record_gradients(plain), record_gradients(weighted)
    one = plain.learn(ROLLOUTS, combined)
    weighted.gramian(ROLLOUTS, parts.flatten(0, 1).float())
    factor = whitening_factor(parts, WEIGHTS)
    other = weighted.learn(ROLLOUTS, combined, parts=only_weights(factor * WEIGHTS))
    assert relative_distance(seen[0], expected[0]) < 1e-5
    assert len(seen) == len(expected) == minibatches
    assert bool(one.kl) == (kl_coef > 0)
    assert (one.kl is None) == (other.kl is None) == (kl_coef == 0)
    for name in ("loss", "grad_norm", "entropy", "importance_mean", "sampler_gap", "lr", *(["kl"] if kl_coef else [])):
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-3, abs=1e-6), name


def test_a_gramian_without_weights_leaves_the_update_as_it_is(policy):
    plain, looked = make_learner(policy), make_learner(policy)
    looked.gramian(ROLLOUTS, torch.stack([ADVANTAGES, ADVANTAGES**2], dim=1))
    assert plain.learn(ROLLOUTS, ADVANTAGES) == looked.learn(ROLLOUTS, ADVANTAGES)
    assert_identical(parameters_of(plain), parameters_of(looked))


def test_a_silent_objective_has_a_zero_row(policy):
    found = make_learner(policy).gramian(ROLLOUTS, torch.stack([ADVANTAGES, torch.zeros_like(ADVANTAGES)], dim=1))
    assert found[0, 0] > 0
    assert torch.equal(found[1], torch.zeros(2, dtype=torch.float64))


# ----------------------------------------------------------------------------------------------- updates


def test_the_policy_moves_towards_what_was_better(policy):
    learner = make_learner(policy)
    before = [sum(scores) for scores in learner.logprobs(ROLLOUTS)]
    for _ in range(3):
        learner.learn(ROLLOUTS, ADVANTAGES)
    after = [sum(scores) for scores in learner.logprobs(ROLLOUTS)]
    assert after[-1] > before[-1]  # the largest advantage
    assert after[0] < before[0]  # the smallest


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_minibatch_makes_an_update(policy, count):
    learner = make_learner(policy, minibatches=count)
    seen = record_gradients(learner)
    assert learner.learn(ROLLOUTS, ADVANTAGES).updates == count == len(seen)
    assert learner.scheduler.last_epoch == count


def test_kl_is_zero_at_the_start_and_positive_later(policy):
    learner = make_learner(policy, kl_coef=0.1)
    assert learner.learn(ROLLOUTS, ADVANTAGES).kl == pytest.approx(0, abs=1e-9)
    later = learner.learn(ROLLOUTS, ADVANTAGES).kl
    assert later > 1e-4
    model, reference = learner.model, plain_model(policy)
    with torch.no_grad():
        difference = torch.cat([naive_logprobs(reference, one) - naive_logprobs(model, one) for one in ROLLOUTS])
    assert learner.learn(ROLLOUTS, ADVANTAGES).kl == pytest.approx(
        float((difference.exp() - difference - 1).mean()), rel=1e-3
    )


@pytest.mark.parametrize("changes", [{}, {"packing": True}, {"lora": Lora(rank=2, alpha=4)}, {"gramian": "exact"}])
def test_a_token_that_the_policy_gave_up_does_not_end_the_run(policy, changes, monkeypatch):
    """Its log-ratio to the reference is 200: e^200 is infinite. Of the padding and the others none is counted."""
    learner = make_learner(policy, kl_coef=0.1, **changes)
    asked = learner._reference_logprobs

    def far_for_one(rows):
        reference = asked(rows)
        if 1 in rows.index:
            reference[rows.index.index(1), 3] += 200
        return reference

    monkeypatch.setattr(learner, "_reference_logprobs", far_for_one)
    if changes.get("gramian") == "exact":
        learner.gramian(ROLLOUTS, ADVANTAGES[:, None])
        stats = learner.learn(ROLLOUTS, ADVANTAGES, parts=only_weights(torch.ones(1)))
    else:
        stats = learner.learn(ROLLOUTS, ADVANTAGES)
    assert stats.kl_bounded == 1
    assert stats.kl == pytest.approx((math.exp(20) - 21) / sum(len(one.tokens) for one in ROLLOUTS), rel=1e-3)
    assert math.isfinite(stats.grad_norm)
    assert stats.grad_norm < 1e3
    monkeypatch.undo()
    assert learner.learn(ROLLOUTS, ADVANTAGES).kl_bounded == 0


def test_no_reference_is_loaded_without_a_penalty(policy):
    learner = make_learner(policy)
    assert learner.reference is None
    assert learner.learn(ROLLOUTS, ADVANTAGES).kl_bounded is None


def test_gradients_are_clipped_and_their_norm_is_reported(policy):
    learner = make_learner(policy, max_grad_norm=0.01)
    seen = record_gradients(learner)
    stats = learner.learn(ROLLOUTS, ADVANTAGES)
    assert float(seen[0].norm()) == pytest.approx(0.01, rel=1e-3)
    assert stats.grad_norm > 0.1


@pytest.mark.parametrize(
    ("schedule", "least", "factors"),
    [
        ("constant", 0, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]),
        ("constant", 0.5, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]),
        ("linear", 0, [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25, 0, 0]),
        ("linear", 0.2, [0.25, 0.5, 0.75, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2]),
        ("cosine", 0, [0.25, 0.5, 0.75, 1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0, 0]),
        ("cosine", 0.5, [0.25, 0.5, 0.75, 1, 1, (3 + math.sqrt(0.5)) / 4, 0.75, (3 - math.sqrt(0.5)) / 4, 0.5, 0.5]),
    ],
)
def test_learning_rate_by_hand(schedule, least, factors):
    settings = LearnerSettings(model="", warmup_steps=4, schedule=schedule, min_lr_ratio=least, total_updates=8)
    factor = learning_rate(settings)
    assert [factor(n) for n in range(len(factors))] == pytest.approx(factors)


def test_the_rate_reported_is_the_rate_used(policy):
    learner = make_learner(policy, warmup_steps=2, schedule="linear", total_updates=4, lr=0.01)
    used = []
    learner.optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    reported = [learner.learn(ROLLOUTS[:2], ADVANTAGES[:2]).lr for _ in range(5)]
    assert used == pytest.approx([0.005, 0.01, 0.01, 0.005, 0.0])
    assert reported == used


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_advantages_that_are_not_finite_are_refused(policy, bad):
    learner = make_learner(policy)
    before = parameters_of(learner)
    advantages = ADVANTAGES.clone()
    advantages[3] = bad
    with pytest.raises(ValueError, match="not finite"):
        learner.learn(ROLLOUTS, advantages)
    assert_identical(parameters_of(learner), before)
    assert learner.scheduler.last_epoch == 0


SKIPPED = {
    "plain": {},
    "exact": {"gramian": "exact"},
    "sketch": {"gramian": "sketch"},
    "step_response": {"gramian": "step_response"},
    "adapter": {"lora": Lora(rank=2, alpha=4), "gramian": None},
    "penalty": {"kl_coef": 0.1, "gramian": None},
    "packed": {"packing": True, "gramian": None},
}


@pytest.mark.parametrize("case", SKIPPED)
def test_an_update_whose_gradient_is_not_finite_is_skipped_and_leaves_nothing(policy, case):
    """Weights, moments and schedule are as they were, and so is every later update."""
    learner, fresh = (make_learner(policy, **{"gramian": None, **SKIPPED[case]}) for _ in range(2))
    for one in (learner, fresh):
        one.learn(ROLLOUTS, ADVANTAGES)
    before, moments = parameters_of(learner), learner.optimizer.state_dict()["state"]
    bad = torch.full((len(ROLLOUTS),), 3e38)
    parts = ObjectiveAdvantages(advantages_BK=torch.stack([bad, ADVANTAGES], dim=1), weights_K=torch.ones(2))
    if case == "exact":
        assert not learner.gramian(ROLLOUTS, parts.advantages_BK).isfinite().all()
    stats = learner.learn(ROLLOUTS, bad, parts=parts if learner.settings.gramian else None)
    assert (stats.updates, stats.updates_not_finite) == (0, 1)
    assert all(math.isnan(value) for value in (stats.loss, stats.grad_norm, stats.entropy, stats.sampler_gap))
    assert stats.surviving_B == (0.0,) * len(ROLLOUTS)
    assert (stats.gramian_KK, stats.influence_K) == (None, None)
    assert stats.lr == 1e-2
    assert_identical(parameters_of(learner), before)
    for name, state in learner.optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, moments[name][key]) for key, value in state.items())
    assert learner.scheduler.last_epoch == 1
    assert learner.learn(ROLLOUTS, ADVANTAGES) == fresh.learn(ROLLOUTS, ADVANTAGES)
    assert_identical(parameters_of(learner), parameters_of(fresh))


def test_a_loss_that_is_not_finite_is_enough(policy, monkeypatch):
    learner, fresh = make_learner(policy), make_learner(policy)
    surrogate = learner._surrogate
    monkeypatch.setattr(learner, "_surrogate", lambda *arguments: surrogate(*arguments) + math.inf)
    assert learner.learn(ROLLOUTS, ADVANTAGES).updates_not_finite == 1
    monkeypatch.undo()
    assert learner.learn(ROLLOUTS, ADVANTAGES) == fresh.learn(ROLLOUTS, ADVANTAGES)


def test_the_other_minibatches_of_a_batch_are_learned_from(policy):
    learner = make_learner(policy, minibatches=3)
    order = make_learner(policy, minibatches=3)._shuffled(len(ROLLOUTS))
    middle = minibatches(len(ROLLOUTS), count=3, order=order)[1]
    advantages = ADVANTAGES.clone()
    advantages[middle] = 3e38
    stats = learner.learn(ROLLOUTS, advantages)
    assert (stats.updates, stats.updates_not_finite, learner.scheduler.last_epoch) == (2, 1, 2)
    assert [i for i, share in enumerate(stats.surviving_B) if share == 0] == sorted(middle)
    assert all(map(math.isfinite, (stats.loss, stats.grad_norm, stats.entropy, stats.sampler_gap)))


# ------------------------------------------------------------------------------- completions without a share


CUT = [replace(one, truncated=i % 3 == 1) for i, one in enumerate(ROLLOUTS)]  # the longest among them


@pytest.mark.parametrize(
    "layout", [{}, {"packing": True}, {"share_prompts": True}, {"tokens_per_microbatch": 60, "gramian": "sketch"}]
)
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_masked_completions_have_no_share_in_the_loss(policy, aggregation, layout):
    """Nor in the KL penalty. By trl/trainer/grpo_trainer.py: a mean over tokens is of those that are left (bnpo, dapo),
    means over completions (grpo) and the constant (dr_grpo) divide by all.
    """
    learner = make_learner(policy, mask_truncated=True, aggregation=aggregation, kl_coef=0.2, **layout)
    seen = record_gradients(learner)
    parts = ObjectiveAdvantages(advantages_BK=torch.stack([ADVANTAGES, ADVANTAGES**2], dim=1), weights_K=torch.ones(2))
    stats = learner.learn(CUT, ADVANTAGES, parts=parts if learner.settings.gramian == "sketch" else None)
    model = plain_model(policy)
    kept = [(one, advantage) for one, advantage in zip(CUT, ADVANTAGES, strict=True) if not one.truncated]
    rows = []
    for one, advantage in kept:
        new = naive_logprobs(model, one)
        rows.append(naive_token_losses(new, new.detach(), one, advantage, ClippedSurrogate()))
    loss = {
        "token_mean": lambda: torch.cat(rows).mean(),
        "sequence_mean": lambda: sum(row.mean() for row in rows) / len(CUT),
        "constant": lambda: torch.cat(rows).sum() / (len(CUT) * 1024),
    }[aggregation]()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert relative_distance(seen[0], expected) < 1e-5
    assert stats.loss == pytest.approx(loss.item(), rel=1e-4)
    assert (stats.updates, stats.updates_masked) == (1, 0)
    assert [share == 0 for share in stats.surviving_B] == [one.truncated for one in CUT]
    plain = make_learner(policy).learn(ROLLOUTS, ADVANTAGES)
    for name in ("entropy", "importance_mean", "sampler_gap"):  # are measured on all
        assert getattr(stats, name) == pytest.approx(getattr(plain, name), rel=1e-4)


@pytest.mark.parametrize("mode", ["exact", "sketch", "last_block", "step_response"])
def test_objectives_gradients_are_of_what_is_learned_from(policy, mode):
    """A batch with masked completions measures what the batch of the others does."""
    parts_BK = torch.stack([ADVANTAGES, ADVANTAGES**2], dim=1)
    kept = torch.tensor([i for i, one in enumerate(CUT) if not one.truncated])
    measured = []
    for batch, index in ((CUT, torch.arange(len(CUT))), ([CUT[i] for i in kept], kept)):
        learner = make_learner(policy, gramian=mode, mask_truncated=True, response_share=1.0)
        if mode == "exact":
            measured.append(learner.gramian(batch, parts_BK[index]))
            continue
        parts = ObjectiveAdvantages(advantages_BK=parts_BK[index], weights_K=torch.ones(2))
        stats = learner.learn(batch, ADVANTAGES[index], parts=parts)
        measured.append(torch.tensor(stats.influence_K or stats.gramian_KK))
    torch.testing.assert_close(*measured, rtol=2e-3, atol=1e-3 * float(measured[1].abs().max()))


@pytest.mark.parametrize("seed", range(3))
def test_a_response_is_not_measured_on_prompts_whose_completions_are_all_masked(policy, seed):
    """One that is drawn would say nothing, and the step's influence would be 0."""
    cut = [replace(one, truncated=i != 2) for i, one in enumerate(ROLLOUTS)]  # each has a prompt of its own
    parts = ObjectiveAdvantages(advantages_BK=torch.stack([ADVANTAGES, 2 * ADVANTAGES], dim=1), weights_K=torch.ones(2))
    settings = {"gramian": "step_response", "mask_truncated": True, "seed": seed}
    part, whole = (
        make_learner(policy, response_share=share, **settings).learn(cut, ADVANTAGES, parts=parts)
        for share in (0.25, 1.0)
    )
    assert min(whole.influence_K) > 0
    assert part.influence_K == pytest.approx(whole.influence_K, rel=1e-3)


@pytest.mark.parametrize("minibatches", [1, 2])
@pytest.mark.parametrize("changes", [{}, {"gramian": "exact"}, {"gramian": "sketch"}, {"gramian": "step_response"}])
def test_nothing_is_learned_where_all_are_masked(policy, changes, minibatches):
    """Momentum and weight decay would move the policy all the same. The figures are those of the completions."""
    settings = {"gramian": None, "weight_decay": 0.1, "kl_coef": 0.1, "mask_truncated": True, **changes}
    learner, fresh = (make_learner(policy, minibatches=minibatches, **settings) for _ in range(2))
    for one in (learner, fresh):
        one.learn(ROLLOUTS, ADVANTAGES)
    before = parameters_of(learner)
    all_cut = [replace(one, truncated=True) for one in ROLLOUTS]
    parts = ObjectiveAdvantages(advantages_BK=ADVANTAGES[:, None], weights_K=torch.ones(1))
    if changes.get("gramian") == "exact":
        assert learner.gramian(all_cut, parts.advantages_BK).tolist() == [[0.0]]
    stats = learner.learn(all_cut, ADVANTAGES, parts=parts if changes else None)
    assert (stats.updates, stats.updates_masked, stats.updates_not_finite) == (0, minibatches, 0)
    assert (stats.loss, stats.grad_norm) == (0, 0)
    assert all(value > 0 for value in (stats.entropy, stats.kl, stats.sampler_gap, stats.lr))
    assert stats.surviving_B == (0.0,) * len(ROLLOUTS)
    assert_identical(parameters_of(learner), before)
    assert learner.scheduler.last_epoch == minibatches
    fresh.generator.set_state(learner.generator.get_state())
    assert learner.learn(ROLLOUTS, ADVANTAGES) == fresh.learn(ROLLOUTS, ADVANTAGES)


def test_a_minibatch_of_masked_completions_makes_no_update(policy):
    learner = make_learner(policy, minibatches=3, mask_truncated=True)
    order = make_learner(policy, minibatches=3)._shuffled(len(ROLLOUTS))
    middle = minibatches(len(ROLLOUTS), count=3, order=order)[1]
    surrogate = learner._surrogate
    learner._surrogate = lambda rows, *rest: surrogate(rows, *rest) + (math.inf if {*rows.index} <= {*middle} else 0)
    stats = learner.learn([replace(one, truncated=i in middle) for i, one in enumerate(ROLLOUTS)], ADVANTAGES)
    assert (stats.updates, stats.updates_masked, stats.updates_not_finite) == (2, 1, 0)
    assert learner.scheduler.last_epoch == 2
    assert math.isfinite(stats.loss)
    assert [i for i, share in enumerate(stats.surviving_B) if share == 0] == sorted(middle)


def test_without_the_mask_it_does_not_matter_who_was_cut(policy):
    one, other = make_learner(policy), make_learner(policy)
    assert one.learn(CUT, ADVANTAGES) == other.learn(ROLLOUTS, ADVANTAGES)
    assert_identical(parameters_of(one), parameters_of(other))


def skipping_rank(rank, policy, folder):
    """One of two, of which the second alone has a loss that is no number."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    patience = datetime.timedelta(seconds=300)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2, timeout=patience)
    for changes in ({}, {"lora": Lora(rank=2, alpha=4)}, {"dtype": "bfloat16", "packing": True}):
        learner, fresh = (make_learner(policy, gramian=None, **changes) for _ in range(2))
        surrogate = learner._surrogate
        factor = math.nan if rank == 1 else 1.0
        learner._surrogate = lambda *arguments, surrogate=surrogate, factor=factor: surrogate(*arguments) * factor
        before = [parameter.full_tensor().clone() for parameter in learner.parameters]
        stats = learner.learn(ROLLOUTS, ADVANTAGES)
        assert (stats.updates, stats.updates_not_finite, learner.scheduler.last_epoch) == (0, 1, 0)
        assert stats.surviving_B == (0.0,) * len(ROLLOUTS)
        for parameter, was in zip(learner.parameters, before, strict=True):
            assert torch.equal(parameter.full_tensor(), was)
        assert not learner.optimizer.state
        del learner._surrogate
        assert learner.learn(ROLLOUTS, ADVANTAGES) == fresh.learn(ROLLOUTS, ADVANTAGES)
        for one, other in zip(learner.parameters, fresh.parameters, strict=True):
            assert torch.equal(one.full_tensor(), other.full_tensor())
    masked, kept = make_learner(policy, mask_truncated=True, minibatches=1), make_learner(policy)
    assert masked.learn([replace(one, truncated=True) for one in ROLLOUTS], ADVANTAGES).updates_masked == 1
    assert not masked.optimizer.state
    left = [i for i, one in enumerate(CUT) if not one.truncated]
    stats, expected = masked.learn(CUT, ADVANTAGES), kept.learn([CUT[i] for i in left], ADVANTAGES[left])
    assert stats.loss == pytest.approx(expected.loss, rel=1e-4)
    assert stats.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
    assert [share == 0 for share in stats.surviving_B] == [one.truncated for one in CUT]
    dist.destroy_process_group()


def test_all_ranks_skip_what_one_can_not_learn_from(policy, tmp_path):
    torch.multiprocessing.spawn(skipping_rank, args=(policy, str(tmp_path)), nprocs=2)


def test_a_refused_batch_leaves_no_gradients_for_the_next(policy):
    learner, fresh = make_learner(policy), make_learner(policy)
    learner.gramian(ROLLOUTS, ADVANTAGES[:, None])
    with pytest.raises(ValueError, match="not finite"):
        learner.learn(ROLLOUTS, ADVANTAGES * float("nan"), parts=only_weights(torch.ones(1)))
    others = make_rollouts(seed=7, count=5)
    assert learner.learn(others, ADVANTAGES[:5]) == fresh.learn(others, ADVANTAGES[:5])


@pytest.mark.parametrize("minibatches", [1, 2])
def test_empty_completions_teach_nothing(policy, minibatches):
    """A completion without a token, and a batch of nothing else."""
    empty = rollout(random.Random(0), 4, 0)
    learner = make_learner(policy, minibatches=minibatches, kl_coef=0.1)
    before = parameters_of(learner)
    stats = learner.learn([empty] * 4, torch.tensor([1.0, -1.0, 0.5, 2.0]))
    assert (stats.loss, stats.grad_norm, stats.entropy) == (0, 0, 0)
    assert_identical(parameters_of(learner), before)

    mixed, alone = make_learner(policy), make_learner(policy)
    expected, seen = record_gradients(alone), record_gradients(mixed)
    mixed.learn([empty, *ROLLOUTS], torch.cat([torch.ones(1), ADVANTAGES]))
    alone.learn(ROLLOUTS, ADVANTAGES)
    assert relative_distance(seen[0], expected[0]) < 1e-5
    assert mixed.logprobs([empty, ROLLOUTS[0]])[0] == []


# ------------------------------------------------------------------------------------------------- state


def train(learner, steps):
    """A few steps with gramians, as a gradient-guided job makes them; the figures of each."""
    found = []
    for step in steps:
        batch = make_rollouts(seed=step)
        parts = Gdpo().per_objective(rewards(step))
        learner.gramian(batch, parts.flatten(0, 1).float())
        combined = Gdpo()(rewards(step), WEIGHTS).flatten()
        factor = whitening_factor(parts, WEIGHTS)
        found.append(learner.learn(batch, combined, parts=only_weights(factor * WEIGHTS) if step % 2 else None))
    return found


@pytest.mark.parametrize("name", ["llama-tied", "qwen3-untied"])
@pytest.mark.parametrize("minibatches", [1, 2])
def test_a_resumed_run_is_the_uninterrupted_one(policies, tmp_path, name, minibatches):
    """Bit for bit: weights, moments, schedule, order of minibatches."""
    settings = {
        "minibatches": minibatches,
        "kl_coef": 0.1,
        "warmup_steps": 3,
        "schedule": "cosine",
        "total_updates": 10,
        "weight_decay": 0.1,
    }
    whole = make_learner(policies[name], **settings)
    train(whole, range(2))
    whole.save_state(tmp_path)
    expected = train(whole, range(2, 4))

    resumed = make_learner(policies[name], **settings, seed=99)
    resumed.load_state(tmp_path)
    assert train(resumed, range(2, 4)) == expected
    assert_identical(parameters_of(resumed), parameters_of(whole))

    whole.load_state(tmp_path)  # and back, in the same process
    assert train(whole, range(2, 4)) == expected
    assert_identical(parameters_of(whole), parameters_of(resumed))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", POLICIES)
def test_an_exported_policy_is_loaded_to_be_evaluated(policies, tmp_path, name, dtype):
    """Engines are sent what they were sent when it was saved; moments of other weights are not kept."""
    learner = make_learner(policies[name], dtype=dtype)
    train(learner, range(2))
    learner.save_policy(Path(shutil.copytree(policies[name], tmp_path / "policy")))  # which has the tokenizer
    sent = learner.weights()
    train(learner, range(2))
    learner.load_policy(tmp_path)
    assert_identical(learner.weights(), sent)
    assert {p.dtype for p in learner.parameters} == {torch.float32}
    assert not learner.optimizer.state


def test_back_to_the_state_before_the_first_update(policy, tmp_path):
    """It has no moments, so the later ones must go."""
    learner = make_learner(policy)
    learner.save_state(tmp_path)
    expected = train(learner, range(2))
    weights = parameters_of(learner)
    learner.load_state(tmp_path)
    assert train(learner, range(2)) == expected
    assert_identical(parameters_of(learner), weights)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("in_parts", [False, True])
def test_moments_follow_their_names_where_a_model_has_its_layers_in_another_order(policy, tmp_path, in_parts):
    """As of another transformers: many are of one shape."""
    learner = make_learner(policy)
    train(learner, range(2))
    learner.save_state(tmp_path)
    if in_parts:
        tensors = load_file(tmp_path / "learner.safetensors")
        learner_state.save(tensors, checkpoint_id=tmp_path / learner_state.PARTS, no_dist=True)
    other = make_learner(policy, seed=99)
    other.trained = dict(reversed(other.trained.items()))
    other.parameters = list(other.trained.values())
    other.load_state(tmp_path)
    for name, parameter in learner.trained.items():
        moments = other.optimizer.state[other.trained[name]]
        assert_identical(moments, learner.optimizer.state[parameter])


def test_a_state_of_before_names_were_kept_is_read_in_the_models_order(policy, tmp_path):
    learner = make_learner(policy)
    train(learner, range(2))
    learner.save_state(tmp_path)
    tensors = load_file(tmp_path / "learner.safetensors")
    del tensors[learner_state.NAMES]
    save_file(tensors, tmp_path / "learner.safetensors")
    other = make_learner(policy, seed=99)
    other.load_state(tmp_path)
    assert train(other, range(2, 4)) == train(learner, range(2, 4))


def test_a_save_beside_the_next_updates_is_of_the_state_before_them(policy, tmp_path, monkeypatch):
    """The disk holds it back until two more updates are made."""
    learner, ready = make_learner(policy), threading.Event()
    train(learner, range(2))
    learner.save_policy(tmp_path / "then")
    monkeypatch.setattr(
        "policies.learner_state.save_file",
        lambda tensors, path: ready.wait(60) and save_file(tensors, path),
    )
    save_pretrained = learner.model.save_pretrained
    monkeypatch.setattr(
        learner.model, "save_pretrained", lambda *args, **options: ready.wait(60) and save_pretrained(*args, **options)
    )
    saving = learner.begin_save(tmp_path / "policy", tmp_path)
    expected = train(learner, range(2, 4))
    assert not saving.done()
    ready.set()
    saving.result(60)
    resumed = make_learner(policy, seed=99)
    resumed.load_state(tmp_path)
    assert train(resumed, range(2, 4)) == expected
    assert_identical(parameters_of(resumed), parameters_of(learner))
    then, now = (load_file(tmp_path / name / "model.safetensors") for name in ("then", "policy"))
    assert_identical(now, then)
    assert (tmp_path / "policy" / "config.json").read_text() == (tmp_path / "then" / "config.json").read_text()


def test_a_save_beside_the_next_updates_keeps_the_disks_own_words(policy, tmp_path):
    learner = make_learner(policy)
    (tmp_path / "learner.safetensors").mkdir()
    saving = learner.begin_save(tmp_path / "policy", tmp_path)
    with pytest.raises(OSError, match="irectory") as refused:
        saving.result(60)
    assert refused.value.errno == errno.EISDIR


@pytest.mark.parametrize("in_the_way", ["learner.safetensors", "policy/model.safetensors", None])
def test_a_save_beside_the_next_updates_keeps_no_copy(policy, tmp_path, monkeypatch, in_the_way):
    """Whether it failed or not, before anybody asked how it went, and without Python's search for cycles."""
    learner, copies = make_learner(policy), []
    train(learner, range(1))

    def copied(tensor, copied=learner_state._copied):
        made = copied(tensor)
        copies.append(weakref.ref(made))
        return made

    monkeypatch.setattr(learner_state, "_copied", copied)
    if in_the_way:
        (tmp_path / in_the_way).mkdir(parents=True)
    gc.collect()
    gc.disable()
    try:
        saving = learner.begin_save(tmp_path / "policy", tmp_path)
        assert (saving.exception(60) is None) is (in_the_way is None)
        learner._beside.submit(int).result(60)  # its thread is done with it
        left = sum(copy() is not None for copy in copies)
    finally:
        gc.enable()
    assert len(copies) > 2 * len(learner.parameters)
    assert left == 0


def test_the_random_states_are_part_of_the_state(policy, tmp_path):
    learner = make_learner(policy)
    learner.save_state(tmp_path)
    drawn = torch.rand(3), torch.rand(3, generator=learner.generator)
    learner.load_state(tmp_path)
    assert torch.equal(torch.rand(3), drawn[0])
    assert torch.equal(torch.rand(3, generator=learner.generator), drawn[1])


@pytest.mark.parametrize(("saved", "loading"), [("llama-tied", "qwen3-tied"), ("qwen3-tied", "llama-tied")])
def test_the_state_of_another_model_is_refused(policies, tmp_path, saved, loading):
    """Whichever of the two has more weights (Qwen3 has norms that Llama lacks); nothing is half loaded."""
    make_learner(policies[saved], seed=1).save_state(tmp_path)
    learner = make_learner(policies[loading])
    before = parameters_of(learner)
    with pytest.raises(KeyError, match="another model"):
        learner.load_state(tmp_path)
    assert_identical(parameters_of(learner), before)


# ------------------------------------------------------------------------------------------------ export


def stored(directory):
    with safe_open(Path(directory) / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_exported_policy_is_a_plain_directory(policies, tmp_path, name, dtype):
    learner = make_learner(policies[name], dtype=dtype)
    learner.learn(ROLLOUTS, ADVANTAGES)
    before = parameters_of(learner)
    learner.save_policy(tmp_path)
    assert_identical(parameters_of(learner), before)

    files = stored(tmp_path)
    assert files.keys() == stored(policies[name]).keys()  # the names that vLLM loads; tied tensors once
    assert_identical(files, learner.weights())
    assert {tensor.dtype for tensor in files.values()} == {getattr(torch, dtype)}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    tied = POLICIES[name][1]
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert ("lm_head.weight" in files) != tied
    inputs = torch.tensor([ROLLOUTS[1].tokens])
    if dtype == "float32":
        with torch.no_grad():
            assert torch.equal(loaded.eval()(inputs).logits, learner.model.eval()(inputs).logits)


def test_an_export_is_as_good_a_start_as_any(policy, tmp_path):
    learner = make_learner(policy)
    learner.learn(ROLLOUTS, ADVANTAGES)
    exported = shutil.copytree(policy, tmp_path / "exported")  # for the tokenizer
    learner.save_policy(exported)
    assert make_learner(str(exported)).logprobs(ROLLOUTS) == learner.logprobs(ROLLOUTS)


def test_bfloat16_keeps_its_weights_in_float32(policy):
    """Updates too small for bfloat16 add up."""
    learner = make_learner(policy, dtype="bfloat16", lr=1e-6, weight_decay=0.0)
    before, exported = parameters_of(learner), learner.weights()
    learner.learn(ROLLOUTS, ADVANTAGES)
    assert {p.dtype for p in learner.parameters} == {torch.float32}
    assert {tensor.dtype for tensor in exported.values()} == {torch.bfloat16}
    after = parameters_of(learner)
    assert any(not torch.equal(after[name], before[name]) for name in before)
    for name in before:
        torch.testing.assert_close(exported[name], before[name].bfloat16(), rtol=0, atol=0)


def test_bfloat16_scores_are_near_those_of_float32(policy):
    exact, rounded = make_learner(policy).logprobs(ROLLOUTS), make_learner(policy, dtype="bfloat16").logprobs(ROLLOUTS)
    difference = max(
        abs(a - b) for one, other in zip(exact, rounded, strict=True) for a, b in zip(one, other, strict=True)
    )
    assert 0 < difference < 0.05
