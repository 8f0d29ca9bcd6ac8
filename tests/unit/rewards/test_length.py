from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.verifiers.length import (
    Conciseness,
    ConcisenessOptions,
    Length,
    LengthOptions,
    LengthWithin,
    LengthWithinOptions,
)

TOKENS = st.lists(st.integers(0, 300), min_size=1, max_size=20)


def score(make_batch, tokens, **options):
    batch = make_batch(*["text"] * len(tokens), tokens=tokens, max_tokens=100)
    return Conciseness(ConcisenessOptions(**options)).score(batch)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1.0, 0.8, 0.5, 0.0, 0.0]),
        ({"free_tokens": 20}, [1.0, 1.0, 0.625, 0.0, 0.0]),
        ({"max_tokens": 50}, [1.0, 0.6, 0.0, 0.0, 0.0]),
        ({"max_tokens": 50, "free_tokens": 20}, [1.0, 1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_it_falls_linearly_from_free_tokens_to_max_tokens(make_batch, options, expected):
    assert score(make_batch, [0, 20, 50, 100, 150], **options) == pytest.approx(expected)


@given(tokens=TOKENS, free_tokens=st.integers(0, 99))
def test_scores_are_in_range_and_longer_never_scores_higher(make_batch, tokens, free_tokens):
    scores = score(make_batch, sorted(tokens), free_tokens=free_tokens)
    assert all(0.0 <= value <= 1.0 for value in scores)
    assert scores == sorted(scores, reverse=True)


def test_a_limit_that_leaves_no_room_above_free_tokens_is_an_error(make_batch):
    with pytest.raises(ValueError, match=r"free_tokens \(100\) must be below max_tokens \(100\)"):
        score(make_batch, [1], free_tokens=100)


def test_length_is_the_plain_number_of_tokens_with_the_sign_of_what_is_better(make_batch):
    batch = make_batch("a", "b", tokens=[0, 7])
    assert Length(LengthOptions()).score(batch) == [0.0, -7.0]
    assert Length(LengthOptions(better="longer")).score(batch) == [0.0, 7.0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1.0, 1.0, 1.0, 0.0]),
        ({"max_tokens": 20}, [1.0, 1.0, 0.0, 0.0]),
        ({"min_tokens": 20}, [0.0, 1.0, 1.0, 0.0]),
        ({"min_tokens": 20, "max_tokens": 20}, [0.0, 1.0, 0.0, 0.0]),
    ],
)
def test_thresholds_are_inclusive_and_what_was_cut_off_is_outside(make_batch, options, expected):
    batch = make_batch(*"abcd", tokens=[10, 20, 30, 20], truncated=[False, False, False, True])
    assert LengthWithin(LengthWithinOptions(**options)).score(batch) == expected
