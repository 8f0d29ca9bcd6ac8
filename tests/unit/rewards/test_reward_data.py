"""The generated data says of its completions what a person would."""

from __future__ import annotations

import pytest

from tests.reward_data import QUICKSTART_HEADS, pairs, quickstart_ratings, quickstart_rows, utility


@pytest.mark.parametrize(
    ("completion", "correctness", "clarity"),
    [
        ("-1=29\n+6=35\n\\boxed{35}", 1.0, 0.5),
        ("first we get 30-1=29\nthen we get 29+6=35\n\\boxed{35}", 1.0, 1.0),
        ("-1+6=35\n\\boxed{35}", 0.0, 0.0),  # merged: no operation has a line of its own
        ("-1=29\n\\boxed{35}", 0.5, 0.25),
        ("+6=36\n-1=35\n\\boxed{35}", 0.5, 0.5),  # not in order
        ("-1=29\n+6=35\n", 0.0, 0.25),  # no answer
        ("\\boxed{35}", 0.0, 0.0),
    ],
)
def test_quickstart_ratings_follow_the_work_that_is_shown(completion, correctness, clarity):
    known = quickstart_ratings("30-1+6=", completion)
    assert tuple(known) == QUICKSTART_HEADS
    assert (known["correctness"], known["clarity"]) == (correctness, clarity)


def test_quickstart_rows_are_rated_within_the_range_and_differ():
    rows = quickstart_rows(200)
    for head in QUICKSTART_HEADS:
        values = [row["ratings"][head] for row in rows]
        assert 0 <= min(values) < 0.3 < 0.7 < max(values) <= 1
    assert rows == quickstart_rows(200)
    assert not {row["prompt"] for row in rows} & {row["prompt"] for row in quickstart_rows(200, seed=1, held_out=True)}


def test_the_chosen_completion_is_the_better_one_as_often_as_the_slope_says():
    assert all(utility(r["domain"], r["chosen"]) >= utility(r["domain"], r["rejected"]) for r in pairs(200))
    assert all(len(row["rejected"]) == 3 for row in pairs(20, rejected=3))
    noisy = [utility(r["domain"], r["chosen"]) >= utility(r["domain"], r["rejected"]) for r in pairs(400, slope=12.0)]
    assert 0.75 < sum(noisy) / 400 < 0.98
