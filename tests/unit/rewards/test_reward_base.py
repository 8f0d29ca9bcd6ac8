from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.base import (
    RewardBatch,
    RewardDeadlineError,
    RewardError,
    RewardLengthError,
    RewardValueError,
    check_scores,
)

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("column", ["prompts", "completions", "answers", "completion_tokens", "truncated"])
def test_a_batch_refuses_columns_of_different_lengths(make_batch, column):
    batch = make_batch("a", "b")
    with pytest.raises(ValueError, match=f"{column} 1"):
        replace(batch, **{column: getattr(batch, column)[:1]})


def test_columns_that_are_absent_say_nothing(make_batch):
    batch = make_batch("a", "b")
    assert batch.domains == (None, None)
    assert batch.details == ({}, {})
    assert [chat[0]["content"] for chat in batch.messages] == list(batch.prompts)


def test_rows_keep_every_column_in_the_order_asked_for(make_batch):
    batch = replace(make_batch("a", "b", "c", answers=["1", "2", "3"]), domains=("x", "y", "z"))
    chosen = batch.rows([2, 0])
    assert chosen.completions == ("c", "a")
    assert chosen.answers == ("3", "1")
    assert chosen.domains == ("z", "x")
    assert chosen.max_tokens == batch.max_tokens
    assert len(batch.rows([])) == 0


def test_a_batch_refuses_a_limit_below_one_token(make_batch):
    with pytest.raises(ValueError, match="max_tokens"):
        make_batch("a", max_tokens=0)


def test_a_batch_is_immutable_keyword_only_and_crosses_processes(make_batch):
    batch = make_batch("a", "b", answers=["1", None])
    assert pickle.loads(pickle.dumps(batch)) == batch  # noqa: S301
    assert len(batch) == 2
    assert len(make_batch()) == 0
    with pytest.raises(FrozenInstanceError):
        batch.max_tokens = 5
    with pytest.raises(TypeError):
        RewardBatch((), (), (), (), (), 1)  # type: ignore[misc]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32) | st.integers(-(2**53), 2**53)))
def test_finite_numbers_pass_unchanged(scores):
    assert check_scores("accuracy", scores, len(scores)) == scores


def test_what_does_not_apply_stays_none():
    assert check_scores("accuracy", [1, None, 0.5], 3) == [1.0, None, 0.5]


@pytest.mark.parametrize("one", [1, 1.0, np.float32(1), np.float64(1), np.int64(1), Fraction(1)])
def test_any_real_number_becomes_a_float(one):
    checked = check_scores("accuracy", (one,), 1)
    assert checked == [1.0]
    assert type(checked[0]) is float


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (NAN, "nan"),
        (INF, "inf"),
        (-INF, "-inf"),
        (np.float32("nan"), "nan"),
        (1e39, "1e\\+39"),  # finite here, infinite in the learner's float32
        (10**400, "inf"),
        (True, "a bool"),
        (np.bool_(True), "a bool"),
        ("0.5", "a str"),
        (1j, "a complex"),
        ([1.0], "a list"),
    ],
)
@pytest.mark.parametrize("row", [0, 2])
def test_a_score_that_is_no_finite_number_names_the_objective_and_the_first_such_row(bad, found, row):
    scores = [0.5] * row + [bad, bad]
    message = f"objective 'accuracy': expected a finite number for row {row}, got {found}"
    with pytest.raises(RewardValueError, match=message) as caught:
        check_scores("accuracy", scores, len(scores))
    assert (caught.value.reward, caught.value.row) == ("accuracy", row)


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        ([], "got 0"),
        ([1.0], "got 1"),
        ([1.0] * 3, "got 3"),
        (None, "got NoneType"),
        (0.5, "got float"),
        ("ab", "got str"),
        (np.zeros(2), r"got ndarray: return its \.tolist\(\)"),
        ({0: 1.0, 1: 1.0}, "got dict"),
    ],
)
def test_not_one_score_per_completion_names_the_objective_and_the_length(scores, found):
    with pytest.raises(RewardLengthError, match=f"objective 'tone': expected .*2.*{found}") as caught:
        check_scores("tone", scores, 2)
    assert caught.value.reward == "tone"


@pytest.mark.parametrize(
    "error", [RewardError("tone", "x"), RewardValueError("tone", "x", 3), RewardDeadlineError("tone", "x")]
)
def test_errors_cross_processes(error):
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copy) is type(error)
    assert str(copy) == "objective 'tone': x"
    assert copy.__dict__ == error.__dict__
