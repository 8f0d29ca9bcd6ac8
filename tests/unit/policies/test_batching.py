"""Microbatches under a token budget, minibatches, and rows whose kept positions predict the right tokens."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.batching import make_rows, microbatches, minibatches, pad
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
    assert rows.input_ids_bt.tolist() == [[7, 8, 1, 2, 3], [9, 4, 0, 0, 0]]
    assert rows.attention_bt.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert rows.keep == 5  # the first token of the shortest prompt's completion is predicted at place 0
    assert rows.position_bT.tolist() == [[1, 2, 3], [0, 0, 0]]
    assert rows.target_bT.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert rows.mask_bT.tolist() == [[True, True, True], [True, False, False]]
    torch.testing.assert_close(rows.sampler_logprobs_bT, torch.tensor([[-0.5, -0.6, -0.7], [-0.5, 0.0, 0.0]]))


@settings(max_examples=100, deadline=None)
@given(batch=rollouts())
def test_kept_positions_predict_the_completion(batch):
    """As a full forward without padding: place n predicts token n + 1, here of a model that sees one token back."""
    table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    rows = make_rows(batch, list(range(len(batch))), CPU)
    kept = table[rows.input_ids_bt][:, -rows.keep :]
    predicted = kept.gather(1, rows.position_bT.unsqueeze(-1).expand(-1, -1, VOCABULARY))
    found = predicted.gather(2, rows.target_bT.unsqueeze(-1)).squeeze(-1)
    for i, one in enumerate(batch):
        sequence = one.prompt_tokens + one.tokens
        expected = table[list(sequence[:-1]), list(sequence[1:])][len(one.prompt_tokens) - 1 :]
        assert torch.equal(found[i][rows.mask_bT[i]], expected)
        assert int(rows.attention_bt[i].sum()) == len(sequence)


@settings(max_examples=50, deadline=None)
@given(batch=rollouts())
def test_no_more_is_kept_than_some_row_needs(batch):
    rows = make_rows(batch, list(range(len(batch))), CPU)
    assert rows.keep <= rows.input_ids_bt.shape[1]
    if any(one.tokens for one in batch):
        shortest = min(len(one.prompt_tokens) for one in batch)
        assert rows.keep == rows.input_ids_bt.shape[1] - shortest + 1


def test_large_token_ids_survive_the_padding():
    rows = make_rows([rollout([1], [262_143, 2]), rollout([1], [3])], [0, 1], CPU)
    assert rows.target_bT.tolist() == [[262_143, 2], [3, 0]]


def test_pad():
    assert torch.equal(pad([torch.ones(1), torch.ones(3)], 3), torch.tensor([[1.0, 0, 0], [1, 1, 1]]))
