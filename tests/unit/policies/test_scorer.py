"""Log-probabilities from chunks of the head and from packed rows, against one plain forward for each sequence."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from policies.batching import make_rows, packing
from policies.learner import Learner, LearnerSettings
from policies.lora import Lora, attach
from policies.scorer import Scorer, _HeadInChunks
from policies.types import ObjectiveAdvantages, Rollout
from tests.support import make_policy

CPU = torch.device("cpu")
VOCABULARY = 100


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    kinds = {"llama": ("llama", False), "qwen3": ("qwen3", True)}
    return {
        name: str(make_policy(folder / name, architecture=architecture, tied=tied))
        for name, (architecture, tied) in kinds.items()
    }


@pytest.fixture(scope="module")
def models(policies):
    torch.set_num_threads(1)  # quicker for models as small as these
    return {name: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for name, path in policies.items()}


def rollouts(seed, count):
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        ids = tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(2, 24)))
        cut = rng.randint(1, len(ids) - 1)
        old = tuple(-4.6 + rng.uniform(-0.5, 0.5) for _ in ids[cut:])
        made.append(
            Rollout(prompt_tokens=ids[:cut], tokens=ids[cut:], logprobs=old, text="", truncated=False, policy_version=0)
        )
    return made


def plain(model, batch, temperature):
    """(log-probabilities, entropies) of each rollout alone, from all of its logits."""
    found = []
    for one in batch:
        logits = model(torch.tensor([one.prompt_tokens + one.tokens])).logits[0] / temperature
        scores = torch.log_softmax(logits[len(one.prompt_tokens) - 1 : -1], dim=-1)
        entropy = -(scores.exp() * scores).sum(dim=-1)
        found.append((scores[range(len(one.tokens)), list(one.tokens)], entropy))
    return found


def gradients(model, values):
    """Of a loss in which every token has a weight of its own."""
    model.zero_grad()
    flat = torch.cat(values)
    (flat * torch.linspace(-1, 2, len(flat))).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(["llama", "qwen3"]),
    seed=st.integers(0, 10**6),
    count=st.integers(1, 5),
    chunk=st.sampled_from([1, 3, 8, 10**6]),
    temperature=st.sampled_from([1.0, 0.6]),
    width=st.sampled_from([None, 1, 40, 200]),
)
def test_scores_and_gradients_are_those_of_each_sequence_alone(models, name, seed, count, chunk, temperature, width):
    """Whatever the chunks of the head are, and whoever stands beside it in a row."""
    model, batch = models[name], rollouts(seed, count)
    lengths = [len(one.prompt_tokens) + len(one.tokens) for one in batch]
    layout = None if width is None else packing(lengths, width=width)
    rows = make_rows(batch, list(range(count)), CPU, packed=layout)
    scorer = Scorer(model, temperature=temperature, chunk_logits=chunk * count * VOCABULARY)
    assert scorer.splits
    logprobs_bT, entropy_bT = scorer(rows)
    values = [row[mask] for row, mask in zip(logprobs_bT, rows.mask_bT, strict=True)]
    entropies = [row[mask] for row, mask in zip(entropy_bT, rows.mask_bT, strict=True)]
    expected, expected_entropies = zip(*plain(model, batch, temperature), strict=True)
    torch.testing.assert_close(values, list(expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies, list(expected_entropies), atol=1e-5, rtol=1e-5)
    found = gradients(model, values)
    reference = gradients(model, list(expected))
    assert float((found - reference).norm() / reference.norm()) < 1e-5


@pytest.mark.parametrize("mutant", ["positions that go on", "one long sequence"])
def test_contamination_would_be_seen(models, mutant):
    """The check above is one that rows which see each other fail."""
    batch = rollouts(3, 4)
    rows = make_rows(batch, [0, 1, 2, 3], CPU, packed=[[0, 1, 2, 3]])
    went_on = torch.arange(rows.input_ids_rt.shape[1])[None]
    if mutant == "one long sequence":  # the positions are right, and the mask that would follow from them is not made
        rows = replace(rows, attention_rt=torch.ones_like(rows.input_ids_rt))
    else:
        rows = replace(rows, position_ids_rt=went_on)
    with torch.no_grad():
        logprobs_bT, _ = Scorer(models["llama"])(rows)
        expected = plain(models["llama"], batch, 1.0)
    assert torch.allclose(logprobs_bT[0][rows.mask_bT[0]], expected[0][0], atol=1e-5)  # nothing stands before it
    assert max(float((logprobs_bT[i][rows.mask_bT[i]] - expected[i][0]).abs().max()) for i in (1, 2, 3)) > 1e-3


def test_a_head_is_never_given_more_than_a_chunk(models):
    """In either pass, with the tokens' last chunk shorter than the others."""
    model, batch = models["llama"], rollouts(5, 3)
    rows = make_rows(batch, [0, 1, 2], CPU)
    seen = []
    scorer = Scorer(model, chunk_logits=4 * 3 * VOCABULARY)
    handle = model.lm_head.register_forward_hook(lambda _module, _inputs, logits: seen.append(tuple(logits.shape)))
    scorer(rows)[0].sum().backward()
    handle.remove()
    tokens = rows.mask_bT.shape[1]
    chunks = -(-tokens // 4)
    assert chunks > 1
    assert len(seen) == 2 * chunks
    assert max(shape[1] for shape in seen) <= 4
    assert sum(shape[1] for shape in seen) == 2 * tokens


class Logits(TorchDispatchMode):
    """The most logits that any tensor had."""

    def __init__(self, hidden):
        super().__init__()
        self.most, self.hidden = 0, hidden

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (VOCABULARY,) and not self.is_weight(tensor):
                self.most = max(self.most, tensor.numel())
        return out

    def is_weight(self, tensor):
        """The head's, transposed."""
        return tuple(tensor.shape) == (self.hidden, VOCABULARY)


def test_a_bare_head_never_makes_more_than_a_chunk(models):
    model, batch = models["llama"], rollouts(5, 3)
    rows = make_rows(batch, [0, 1, 2], CPU)
    scorer = Scorer(model, chunk_logits=4 * 3 * VOCABULARY)
    with Logits(model.config.hidden_size) as logits:
        scorer(rows)[0].sum().backward()
    assert logits.most == 4 * 3 * VOCABULARY
    with Logits(model.config.hidden_size) as logits:
        Scorer(model)(rows)[0].sum().backward()
    assert logits.most == rows.mask_bT.numel() * VOCABULARY


@pytest.mark.parametrize("trained", [True, False], ids=["the head learns", "it does not"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bare_head_and_one_that_is_called_agree(models, trained, dtype):
    """Under autocast too, up to its precision: a bare head's gradient is summed over the chunks in float32."""
    model, batch = models["llama"], rollouts(5, 3)
    rows = make_rows(batch, [0, 1, 2], CPU)
    scorer = Scorer(model, temperature=0.7, chunk_logits=4 * 3 * VOCABULARY)
    found = []
    for hear in (False, True):
        handle = model.lm_head.register_forward_hook(lambda *_: None) if hear else None
        model.lm_head.requires_grad_(trained)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            values, entropies = scorer(rows)
        model.zero_grad()
        (values.flatten() * torch.linspace(-1, 2, values.numel())).sum().backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
        found.append((values.detach(), entropies, grads))
        if handle:
            handle.remove()
    model.lm_head.requires_grad_(True)
    assert entropies.requires_grad is False
    torch.testing.assert_close(found[0][:2], found[1][:2])
    error = (found[0][2] - found[1][2]).norm() / found[1][2].norm()
    assert float(error) < (1e-6 if dtype == torch.float32 else 1e-2)


def test_the_gradient_of_a_head_in_bfloat16_is_rounded_once():
    """A sharded model's is one; under autocast the same sum stays as it is, in the weight's float32."""
    torch.manual_seed(0)
    hidden_Nn, target_N = torch.randn(96, 32).bfloat16(), torch.randint(0, VOCABULARY, (96,))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        weight = (torch.randn(VOCABULARY, 32, generator=torch.Generator().manual_seed(1)) / 6).bfloat16().to(dtype)
        weight.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            values_N, _ = _HeadInChunks.apply(hidden_Nn, target_N, weight, 1.0, 8)
        (gradient,) = torch.autograd.grad(values_N.sum(), weight)
        assert gradient.dtype == dtype
        found.append(gradient)
    assert torch.equal(found[1], found[0].bfloat16())


def test_a_graph_that_is_kept_gives_the_same_gradients_again(models):
    """The first backward pass uses up the last chunk's softmax, and must not be what the second one sees."""
    model, batch = models["llama"], rollouts(5, 3)
    rows = make_rows(batch, [0, 1, 2], CPU)
    values, _ = Scorer(model, chunk_logits=4 * 3 * VOCABULARY)(rows)
    loss, head = (values.flatten() * torch.linspace(-1, 2, values.numel())).sum(), model.lm_head.weight
    (first,), (second,) = torch.autograd.grad(loss, head, retain_graph=True), torch.autograd.grad(loss, head)
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("share", [False, True])
def test_a_model_is_tried_where_it_is_whatever_it_is_to_learn_on(policies, share):
    """One that a GPU gets block by block is on the host then, where a GPU's autocast joins no two types."""
    model = AutoModelForCausalLM.from_pretrained(policies["qwen3"], dtype=torch.bfloat16)
    attach(model, Lora(rank=2, alpha=4))
    scorer = Scorer(model, share_prompts=share)
    assert (scorer.splits, scorer.shares_prompts) == (True, share)


class Halved(LlamaForCausalLM):
    """Of which no config tells."""

    def forward(self, *inputs, **named):
        found = super().forward(*inputs, **named)
        found.logits = found.logits / 2
        return found


@pytest.mark.parametrize(
    ("kind", "changes", "splits"),
    [
        ("gemma2", {"final_logit_softcapping": 0.1, "attn_implementation": "eager"}, True),
        ("granite", {"logits_scaling": 0.01}, True),
        ("cohere2", {"logit_scale": 50.0}, True),
        (Halved, {"initializer_range": 0.5}, False),
    ],
)
def test_what_a_model_does_to_its_logits_is_done_to_each_chunk_or_it_is_asked_for_them(kind, changes, splits):
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0}
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if kind is Halved:
        model = Halved(LlamaConfig(**sizes, **changes)).eval()
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **changes)).eval()
    batch = rollouts(1, 3)
    scorer = Scorer(model, chunk_logits=1)
    assert scorer.splits == splits
    rows = make_rows(batch, [0, 1, 2], CPU)
    logprobs_bT, entropy_bT = scorer(rows)
    for i, (expected, spread) in enumerate(plain(model, batch, 1.0)):
        torch.testing.assert_close(logprobs_bT[i][rows.mask_bT[i]], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(entropy_bT[i][rows.mask_bT[i]], spread, atol=1e-5, rtol=1e-5)
    found, wanted = (
        torch.autograd.grad(value, model.get_input_embeddings().weight)[0]
        for value in (logprobs_bT.sum(), sum(expected.sum() for expected, _ in plain(model, batch, 1.0)))
    )
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


BATCH = rollouts(9, 12)
ADVANTAGES_BK = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
WEIGHTS_K = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def learned(policy, mode, **changes):
    """(gramian or influence, log-probabilities after two updates) of a learner."""
    settings = LearnerSettings(
        model=policy, threads=1, lr=1e-2, gramian=mode, sketch_width=64, kl_coef=0.1, share_prompts=False
    )
    learner = Learner(replace(settings, **changes))
    combined_B = ADVANTAGES_BK @ WEIGHTS_K.float()
    parts = ObjectiveAdvantages(advantages_BK=ADVANTAGES_BK, weights_K=WEIGHTS_K)
    for _ in range(2):
        gramian_KK = learner.gramian(BATCH, ADVANTAGES_BK) if mode == "exact" else None
        stats = learner.learn(BATCH, combined_B, parts=parts)
    seen = stats.influence_K if mode == "step_response" else stats.gramian_KK
    return gramian_KK if seen is None else torch.tensor(seen), torch.cat([*map(torch.tensor, learner.logprobs(BATCH))])


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("mode", ["exact", "sketch", "last_block", "step_response"])
@pytest.mark.parametrize(
    "changes", [{"chunk_logits": 12 * 3 * VOCABULARY}, {"packing": True}], ids=["chunks", "packed"]
)
def test_every_gramian_mode_measures_the_same(policies, name, mode, changes):
    expected, scores = learned(policies[name], mode)
    found, after = learned(policies[name], mode, **changes)
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    torch.testing.assert_close(after, scores, atol=1e-4, rtol=1e-4)


def test_packed_rows_have_less_padding(policies):
    figures = [
        Learner(LearnerSettings(model=policies["llama"], threads=1, packing=packs, share_prompts=False)).learn(
            BATCH, ADVANTAGES_BK[:, 0]
        )
        for packs in (False, True)
    ]
    assert figures[1].padding_share < figures[0].padding_share
    assert figures[1].loss == pytest.approx(figures[0].loss, rel=1e-4)
