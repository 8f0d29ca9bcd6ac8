"""Rollouts sorted, grouped, and by the conflict of two objectives."""

from __future__ import annotations

from typing import Any

import pytest

from services.dashboard.rollout_rows import by_group, conflict, ordered, prompt_text

NAMES = ["a", "b"]


def _row(number: int, a: float | None, b: float | None, group: int = 0) -> Any:
    return {"number": number, "group": group, "prompt": f"p{group}", "completion": "c", "rewards": {"a": a, "b": b},
            "advantage": None if a is None else -a, "tokens": number}  # fmt: skip


ROWS = [_row(1, 0.0, 0.0), _row(2, 1.0, 0.0), _row(3, 1.0, 1.0, 1), _row(4, None, 0.5, 1)]


@pytest.mark.parametrize(
    ("sort", "numbers"),
    [("", [1, 2, 3, 4]), ("r.a", [1, 2, 3, 4]), ("-r.a", [2, 3, 1, 4]), ("-r.b", [3, 4, 1, 2]), ("advantage", [2, 3, 1, 4]),
     ("-tokens", [4, 3, 2, 1]), ("-r.none", [1, 2, 3, 4])],
)  # fmt: skip
def test_an_order_with_the_unmeasured_last(sort: str, numbers: list[int]) -> None:
    assert [row["number"] for row in ordered(ROWS, sort, "", NAMES)] == numbers


def test_conflict_is_high_where_one_is_good_and_the_other_bad() -> None:
    rows = [_row(1, 1.0, 0.0), _row(2, 0.0, 0.0), _row(3, 1.0, 1.0), _row(4, 0.0, 1.0), _row(5, None, 1.0)]
    scores = conflict(rows, "a", "b")
    assert scores == pytest.approx({1: 1.0, 2: -1.0, 3: -1.0, 4: 1.0})
    shown = [row["number"] for row in ordered(rows, "-r.a", "a|b", NAMES)]
    assert set(shown[:2]) == {1, 4}
    assert shown[-1] == 5
    assert conflict([_row(1, 1.0, 1.0), _row(2, 1.0, 0.0)], "a", "b") == pytest.approx({1: 0.0, 2: 0.0}), "no spread"
    assert conflict(rows[:1], "a", "b") == {}
    assert [row["number"] for row in ordered(rows, "", "a|gone", NAMES)] == [1, 2, 3, 4, 5]


def test_groups_have_means_of_what_was_measured() -> None:
    first, second = by_group(ROWS, NAMES)
    assert (first["count"], first["r.a"], first["r.b"], first["spread"]) == (2, 0.5, 0.0, 1.0)
    assert (second["count"], second["r.a"], second["r.b"], second["spread"]) == (2, 1.0, 0.75, 0.5)


def test_prompts_of_every_kind_are_text() -> None:
    assert prompt_text("x") == "x"
    assert prompt_text([{"role": "user", "content": "hi"}, "odd"]) == "user: hi\nodd"
    assert prompt_text(None) == "None"
