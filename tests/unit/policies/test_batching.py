"""Microbatches under a token budget, minibatches, and rows whose kept positions predict the right tokens."""

import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.batching import make_rows, microbatches, minibatches, packing, pad, shards
from policies.types import Rollout

VOCABULARY = 11
CPU = torch.device("cpu")


def rollout(prompt, tokens, logprobs=None):
    return Rollout(
        prompt_tokens=tuple(prompt),
        tokens=tuple(tokens),
        logprobs=tuple(-0.5 - 0.1 * i for i in range(len(tokens))) if logprobs is None else logprobs,
        text="",
        truncated=False,
        policy_version=0,
    )


@st.composite
def rollouts(draw):
    rng = random.Random(draw(st.integers(0, 2**31)))
    sizes = draw(st.lists(st.tuples(st.integers(1, 7), st.integers(0, 7)), min_size=1, max_size=6))
    return [
        rollout(*([rng.randrange(VOCABULARY) for _ in range(size)] for size in (prompt, tokens)))
        for prompt, tokens in sizes
    ]


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), max_size=30), budget=st.integers(1, 120))
def test_every_index_once_and_within_the_budget(lengths, budget):
    groups = microbatches(lengths, token_budget=budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30), budget=st.integers(1, 120))
def test_like_lengths_stand_together(lengths, budget):
    longest_first = [lengths[i] for group in microbatches(lengths, token_budget=budget) for i in group]
    assert longest_first == sorted(lengths, reverse=True)


def test_a_row_longer_than_the_budget_goes_alone():
    assert microbatches([3, 100, 3, 3], token_budget=12) == [[1], [0, 2, 3]]


def test_rows_of_unlike_length_are_not_padded_to_each_other():
    assert microbatches([10, 10, 7, 7, 7], token_budget=80) == [[0, 1], [2, 3, 4]]
    assert microbatches([10, 7], token_budget=80) == [[0, 1]]  # too few to be worth a forward pass of their own


def test_ties_keep_their_order():
    assert microbatches([5, 5, 5, 5], token_budget=10) == [[0, 1], [2, 3]]


@settings(max_examples=100, deadline=None)
@given(size=st.integers(0, 40), count=st.integers(1, 12), seed=st.integers(0, 1000))
def test_minibatches_partition(size, count, seed):
    order = random.Random(seed).sample(range(size), size)
    parts = minibatches(size, count=count, order=order)
    assert [i for part in parts for i in part] == order
    assert len(parts) == count
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_minibatches_take_only_a_permutation():
    with pytest.raises(AssertionError):
        minibatches(3, count=1, order=[0, 0, 1])


def test_rows_by_hand():
    rows = make_rows([rollout([7, 8], [1, 2, 3]), rollout([9], [4])], [5, 2], CPU)
    assert rows.index == [5, 2]
    assert rows.input_ids_rt.tolist() == [[7, 8, 1, 2, 3], [9, 4, 0, 0, 0]]
    assert rows.attention_rt.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert rows.place_bT.tolist() == [[1, 2, 3], [5, 0, 0]]
    assert (rows.position_ids_rt, rows.owner_rt, rows.real) == (None, None, 7)
    assert rows.target_bT.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert rows.mask_bT.tolist() == [[True, True, True], [True, False, False]]
    torch.testing.assert_close(rows.sampler_logprobs_bT, torch.tensor([[-0.5, -0.6, -0.7], [-0.5, 0.0, 0.0]]))


def test_packed_rows_by_hand():
    batch = [rollout([7, 8], [1, 2]), rollout([9], [4]), rollout([5], [6])]
    rows = make_rows(batch, [5, 2, 3], CPU, packed=[[0], [2, 1]])
    assert rows.input_ids_rt.tolist() == [[7, 8, 1, 2], [5, 6, 9, 4]]
    assert rows.position_ids_rt.tolist() == [[0, 1, 2, 3], [0, 1, 0, 1]]
    assert rows.owner_rt.tolist() == [[0, 0, 0, 0], [2, 2, 1, 1]]
    assert rows.place_bT.tolist() == [[1, 2], [6, 0], [4, 0]]
    assert rows.attention_rt is None  # transformers would not look at the positions


@settings(max_examples=100, deadline=None)
@given(batch=rollouts(), width=st.integers(1, 30), packed=st.booleans())
def test_places_predict_the_completion(batch, width, packed):
    """As a full forward without padding: place n predicts token n + 1, here of a model that sees one token back."""
    table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    lengths = [len(one.prompt_tokens) + len(one.tokens) for one in batch]
    layout = packing(lengths, width=width) if packed else None
    rows = make_rows(batch, list(range(len(batch))), CPU, packed=layout)
    predicted = table[rows.input_ids_rt].flatten(0, 1)[rows.place_bT]
    found = predicted.gather(2, rows.target_bT.unsqueeze(-1)).squeeze(-1)
    assert rows.real == sum(lengths)
    for i, one in enumerate(batch):
        sequence = one.prompt_tokens + one.tokens
        expected = table[list(sequence[:-1]), list(sequence[1:])][len(one.prompt_tokens) - 1 :]
        assert torch.equal(found[i][rows.mask_bT[i]], expected)


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), max_size=30), width=st.integers(1, 120))
def test_packing_takes_each_once_and_stays_within_the_row(lengths, width):
    rows = packing(lengths, width=width)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    filled = [sum(lengths[i] for i in row) for row in rows]
    assert all(tokens <= width or len(row) == 1 for row, tokens in zip(rows, filled, strict=True))
    assert all(sum(pair) > width for pair in itertools.combinations(filled, 2))  # no two rows would go into one


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), max_size=30), ranks=st.integers(1, 5))
def test_ranks_have_about_as_many_tokens(lengths, ranks):
    parts = shards(lengths, ranks=ranks)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in part) for part in parts]
    assert len(parts) == ranks
    assert max(loads) - min(loads) <= max(lengths, default=0)


def test_large_token_ids_survive_the_padding():
    rows = make_rows([rollout([1], [262_143, 2]), rollout([1], [3])], [0, 1], CPU)
    assert rows.target_bT.tolist() == [[262_143, 2], [3, 0]]


def test_pad():
    assert torch.equal(pad([torch.ones(1), torch.ones(3)], 3), torch.tensor([[1.0, 0, 0], [1, 1, 1]]))
