"""A prompt that goes through the model once for all its rollouts, against one plain forward for each of them."""

import itertools
import random
import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from policies.batching import consecutive, make_shared_rows
from policies.learner import Learner, LearnerSettings
from policies.lora import Lora
from policies.rank_rows import rank_rows
from policies.scorer import Scorer
from policies.types import ObjectiveAdvantages, Rollout
from tests.support import make_policy

CPU = torch.device("cpu")
VOCABULARY = 100
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    return {
        name: str(make_policy(folder / name, architecture=name, tied=name == "qwen3")) for name in ("llama", "qwen3")
    }


def group(rng, *, rollouts, prompt=(1, 12), tokens=(1, 20)):
    first = tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(*prompt)))
    made = []
    for _ in range(rollouts):
        ids = tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(*tokens)))
        old = tuple(-4.6 + rng.uniform(-0.3, 0.3) for _ in ids)
        made.append(Rollout(prompt_tokens=first, tokens=ids, logprobs=old, text="", truncated=False, policy_version=0))
    return made


def batch_of(seed, *sizes, **ranges):
    """Groups of these sizes, mixed up."""
    rng = random.Random(seed)
    made = [one for size in sizes for one in group(rng, rollouts=size, **ranges)]
    rng.shuffle(made)
    return made


def alone(model, one, temperature=1.0):
    logits = model(torch.tensor([one.prompt_tokens + one.tokens])).logits[0] / temperature
    scores = torch.log_softmax(logits[len(one.prompt_tokens) - 1 : -1], dim=-1)
    return scores[range(len(one.tokens)), list(one.tokens)]


def gradient(model, values):
    """Of a loss in which every token has a weight of its own."""
    model.zero_grad()
    flat = torch.cat(values)
    (flat * torch.linspace(-1, 2, len(flat))).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["llama", "qwen3"]),
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    longest=st.sampled_from([1, 6, 60]),
    chunk=st.sampled_from([1, 8, 10**6]),
    attention_tokens=st.sampled_from([8, 64, 4096]),
)
def test_scores_and_gradients_are_those_of_each_rollout_alone(
    policies, name, seed, sizes, longest, chunk, attention_tokens
):
    """Whoever shares its prompt or stands beside it, and whoever attends in the same call."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(policies[name], dtype=torch.float32)
    batch = batch_of(seed, *sizes, tokens=(1, longest))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("policies.batching.ATTENTION_TOKENS", attention_tokens)
        rows = make_shared_rows(batch, list(range(len(batch))), CPU)
    scorer = Scorer(model, temperature=0.7, chunk_logits=chunk * len(batch) * VOCABULARY, share_prompts=True)
    assert scorer.shares_prompts
    logprobs_bT, _ = scorer(rows)
    assert not logprobs_bT[~rows.mask_bT].any()
    values = [row[mask] for row, mask in zip(logprobs_bT, rows.mask_bT, strict=True)]
    expected = [alone(model, one, 0.7) for one in batch]
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)
    found, reference = gradient(model, values), gradient(model, expected)
    assert float((found - reference).norm() / reference.norm()) < 1e-5


def test_each_prompt_stands_once_and_nothing_is_padding():
    batch = batch_of(1, 3, 4)
    rows = make_shared_rows(batch, list(range(7)), CPU)
    prompts = {one.prompt_tokens for one in batch}
    assert rows.input_ids_rt.numel() == sum(map(len, prompts)) + sum(len(one.tokens) for one in batch) == rows.real


@pytest.mark.parametrize("mutant", ["all completions seen", "positions that go on", "another's prompt"])
def test_contamination_would_be_seen(policies, mutant):
    """The checks above are ones that rollouts which see the wrong tokens fail."""
    model = AutoModelForCausalLM.from_pretrained(policies["llama"], dtype=torch.float32)
    batch = batch_of(3, 2, 2, prompt=(4, 4), tokens=(5, 5))
    rows = make_shared_rows(batch, [0, 1, 2, 3], CPU)
    scorer = Scorer(model, share_prompts=True)
    if mutant == "positions that go on":
        rows = replace(rows, position_ids_rt=torch.arange(rows.real)[None])
    else:
        *prompts, completions = rows.shared_prompts.parts
        if mutant == "all completions seen":
            keys_bs = torch.arange(rows.real).expand(4, -1)
            mask_b1qs = torch.ones(4, 1, completions.query_bq.shape[1], rows.real, dtype=torch.bool)
        else:
            keys_bs = completions.key_bs.clone()
            keys_bs[:, :4] = keys_bs[:, :4].flip(0)
            assert not torch.equal(keys_bs, completions.key_bs)
            mask_b1qs = completions.mask_b1qs
        wrong = replace(completions, key_bs=keys_bs, mask_b1qs=mask_b1qs)
        rows = replace(rows, shared_prompts=replace(rows.shared_prompts, parts=(*prompts, wrong)))
    with torch.no_grad():
        found_bT, _ = scorer(rows)
        worst = max(float((found_bT[i] - alone(model, one)).abs().max()) for i, one in enumerate(batch))
    assert worst > 1e-3


# -------------------------------------------------------------------------------------------------------- the learner

BATCH = batch_of(9, 4, 5, 3, prompt=(6, 9), tokens=(2, 20))
ADVANTAGES_BK = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
WEIGHTS_K = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def learned(policy, *, share_prompts, **changes):
    """(what the gradients' measurement found, weights after two updates, tokens that the model was given)"""
    defaults = {"threads": 1, "lr": 1e-2, "gramian": None, "tokens_per_microbatch": 90}
    learner = Learner(LearnerSettings(model=policy, share_prompts=share_prompts, **{**defaults, **changes}))
    assert learner.scorer.shares_prompts == share_prompts
    seen = []
    learner.model.get_input_embeddings().register_forward_hook(lambda _module, ids, _out: seen.append(ids[0].numel()))
    mode = learner.settings.gramian
    parts = None if mode is None else ObjectiveAdvantages(advantages_BK=ADVANTAGES_BK, weights_K=WEIGHTS_K)
    for _ in range(2):
        gramian_KK = learner.gramian(BATCH, ADVANTAGES_BK) if mode == "exact" else None
        stats = learner.learn(BATCH, ADVANTAGES_BK @ WEIGHTS_K.float(), parts=parts)
    measured = gramian_KK if mode == "exact" else stats.influence_K if mode == "step_response" else stats.gramian_KK
    weights = torch.cat([weight.flatten() for weight in learner.weights().values()])
    return None if measured is None else torch.as_tensor(measured).double(), weights, sum(seen)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gramian": "exact", "minibatches": 2, "kl_coef": 0.1},
        {"gramian": "sketch", "sketch_width": 64},
        {"gramian": "last_block", "minibatches": 2},
        {"gramian": "step_response", "kl_coef": 0.1},
        {"gradient_checkpointing": True, "chunk_logits": 600},
        {"lora": Lora(rank=2, alpha=4), "kl_coef": 0.1},
        {"packing": True},
    ],
    ids=lambda changes: ",".join(changes) or "plain",
)
def test_a_learner_learns_the_same(policies, name, changes):
    found, weights, tokens = learned(policies[name], share_prompts=True, **changes)
    expected, reference, plain_tokens = learned(policies[name], share_prompts=False, **changes)
    assert (weights - reference).norm() / reference.norm() < 1e-4
    if expected is not None:
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    told_apart = changes.get("gramian") in ("sketch", "last_block", "exact") and "minibatches" not in changes
    assert tokens == plain_tokens if told_apart else tokens < 0.85 * plain_tokens


def test_a_batch_with_little_to_share_is_put_through_as_ever(policies):
    """Rows of its own for each rollout, padded, which is what attention's own kernels are made for."""
    learner = Learner(LearnerSettings(model=policies["llama"], threads=1))
    even = batch_of(1, 1, 1, 1, tokens=(20, 20), prompt=(5, 5))
    pair = batch_of(2, 2, prompt=(2, 2), tokens=(30, 32))
    uneven = batch_of(2, 1, 1, 1, tokens=(5, 20))
    for batch, shares in ((even, False), (pair, False), (uneven, True), (BATCH, True)):
        rows = list(rank_rows(batch, list(range(len(batch))), learner.settings, learner.ranks, share=True))
        assert all((one.shared_prompts is not None) == shares for one in rows)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    budget=st.integers(20, 400),
    ranks=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_ranks_share_a_batch_whole_and_within_the_budget(sizes, budget, ranks, seed):
    batch = batch_of(seed, *sizes, prompt=(5, 20))
    length = [len(one.prompt_tokens) + len(one.tokens) for one in batch]
    settings = LearnerSettings(model="", tokens_per_microbatch=budget)
    shares = [
        list(rank_rows(batch, list(range(len(batch))), settings, one_of(rank, ranks), share=True))
        for rank in range(ranks)
    ]
    assert len({len(rows) for rows in shares}) == 1, "a rank would wait for another for ever"
    busy = [[rows for rows in share if not rows.idle] for share in shares]
    taken = sorted(i for share in busy for rows in share for i in rows.index)
    assert taken == list(range(len(batch)))
    for share in busy:
        for rows in share:
            assert len(rows.index) == 1 or rows.real <= budget
            assert len(rows.index) == 1 or rows.shared_prompts is None or sum(length[i] for i in rows.index) <= budget


def test_large_groups_are_divided_so_that_ranks_are_even():
    batch = batch_of(0, 32, prompt=(5, 5), tokens=(20, 20))
    settings = LearnerSettings(model="")
    shares = [list(rank_rows(batch, list(range(32)), settings, one_of(rank, 4), share=True)) for rank in range(4)]
    assert [sum(rows.real for rows in share) for share in shares] == [5 + 8 * 20] * 4


def one_of(rank, size):
    class Ranks:
        device = CPU

    ranks = Ranks()
    ranks.rank, ranks.size = rank, size
    return ranks


@given(st.lists(st.integers(1, 30), max_size=20), st.integers(1, 60))
def test_consecutive_runs_keep_order_and_limit(sizes, limit):
    runs = consecutive(sizes, limit=limit)
    assert [i for run in runs for i in run] == list(range(len(sizes)))
    assert all(len(run) == 1 or sum(sizes[i] for i in run) <= limit for run in runs)
    for run, after in itertools.pairwise(runs):
        assert sum(sizes[i] for i in run) + sizes[after[0]] > limit, "cut without need"


# ---------------------------------------------------------------------------------------------- models that can't


def model_of(kind, **changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SIZES | changes))).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("mistral", {"sliding_window": 40}, "sliding_window"),
        ("phimoe", {"sliding_window": 40}, "sliding_window"),  # which its attention is not told of, only its mask
        ("llama4_text", {"attention_chunk_size": 40}, "its layers are chunked_attention"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "its layers are conv"),
        ("nemotron", {}, "does not hand on"),
        ("llama", {"attn_implementation": "eager"}, "does not ask transformers for sdpa"),
    ],
)
def test_a_model_that_can_not_share_is_left_as_it_was(kind, changes, reason, dtype, caplog):
    model = model_of(kind, **changes).to(dtype)
    implementation = model.config._attn_implementation
    ids = torch.arange(20)[None]
    before = model(ids).logits
    with caplog.at_level("INFO", "policies.scorer"):
        assert not Scorer(model, share_prompts=True).shares_prompts
    assert reason in caplog.text
    assert model.config._attn_implementation == implementation
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_mix_neighbours_are_seen(dtype, caplog):
    """Whatever the config says: what stands beside a rollout must not change it."""
    model = model_of("llama").to(dtype)
    model.model.layers[0].mlp.register_forward_hook(lambda _module, _inputs, out: out + 0.1 * out.roll(1, dims=1))
    with caplog.at_level("INFO", "policies.scorer"):
        assert not Scorer(model, share_prompts=True).shares_prompts
    assert "with the rollout beside" in caplog.text
    assert model.config._attn_implementation == "sdpa"


def test_an_adapter_on_a_base_of_less_precision_shares(policies):
    learner = Learner(LearnerSettings(model=policies["qwen3"], threads=1, dtype="bfloat16", lora=Lora(rank=2, alpha=4)))
    assert learner.scorer.shares_prompts
    scores = learner.logprobs(BATCH)
    learner.scorer.shares_prompts = False
    for one, other in zip(scores, learner.logprobs(BATCH), strict=True):
        assert one == pytest.approx(other, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["qwen2", "gemma", "gpt2", "mixtral"])
def test_other_families_share(kind, dtype):
    scorer = Scorer(model_of(kind).to(dtype), share_prompts=True)
    assert scorer.shares_prompts
    assert not scorer.model.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "packs"),
    [("qwen2", True), ("gemma2", True), ("mixtral", True), ("lfm2", False), ("bloom", False), ("opt", False)],
)
def test_layers_that_mix_the_rollouts_of_a_row_are_not_given_one(kind, packs, dtype):
    layers = {"layer_types": ["conv", "full_attention"]} if kind == "lfm2" else {}
    model = model_of(kind, pad_token_id=0, initializer_range=0.3, init_std=0.3, **layers).to(dtype)
    if packs:
        Scorer(model, packing=True)
    else:
        with pytest.raises(ValueError, match=r"^optimizer\.packing: .* set it to false \(its predictions would"):
            Scorer(model, packing=True)
    Scorer(model)


def test_attention_in_chunks_of_a_row_is_not_given_several_rollouts():
    """A rollout that begins late in a row would lose its beginning where a chunk ends."""
    with pytest.raises(ValueError, match=r"^optimizer\.packing: .* \(its attention is in chunks of a row\)"):
        Scorer(model_of("llama4_text", attention_chunk_size=8192), packing=True)


def test_a_learner_does_not_pack_what_would_mix(policies, tmp_path):
    directory = shutil.copytree(policies["llama"], tmp_path / "lfm2")
    model_of("lfm2", layer_types=["conv", "full_attention"], initializer_range=0.3).save_pretrained(directory)
    with pytest.raises(ValueError, match=r"^optimizer\.packing: "):
        Learner(LearnerSettings(model=str(directory), threads=1, packing=True))


def test_what_is_saved_does_not_name_our_attention(policies, tmp_path):
    learner = Learner(LearnerSettings(model=policies["qwen3"], threads=1))
    assert learner.scorer.shares_prompts
    learner.save_policy(tmp_path)
    assert "shared_prompts" not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_compiled_blocks_do_not_share(policies, monkeypatch):
    """Every batch would be another form to compile."""
    monkeypatch.setattr("policies.learner.COMPILER", "eager")
    learner = Learner(LearnerSettings(model=policies["llama"], threads=1, compile=True))
    assert not learner.scorer.shares_prompts
