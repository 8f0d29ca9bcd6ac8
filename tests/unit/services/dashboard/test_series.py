"""Long series for charts: bounded, true to the whole, and sent once."""

from __future__ import annotations

import math
import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dashboard.series import Column, Columns, Tail, closer, rows, stride


def _columns(values: list[float | None]) -> Columns:
    columns = Columns()
    for step, value in enumerate(values, start=1):
        columns.append(step, {"a": value})
    return columns


@given(st.integers(1, 20_000), st.integers(1, 600))
def test_there_are_never_more_buckets_than_asked_for(count: int, most: int) -> None:
    width = stride(count, most)
    assert -(-count // width) <= most
    assert width == 1 or -(-count // (width // 2)) > most, "no wider than need be"
    assert math.log2(width).is_integer()


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=1, max_size=300), st.integers(1, 64))
def test_a_bucket_is_the_mean_of_what_is_known(values: list[float | None], most: int) -> None:
    found = rows(_columns(values), ["a"], most=most)
    width = stride(len(values), most)
    assert [row[0] for row in found] == [min((i + 1) * width, len(values)) for i in range(len(found))]
    for i, (_, mean) in enumerate(found):
        known = [value for value in values[i * width : (i + 1) * width] if value is not None]
        assert mean == (pytest.approx(math.fsum(known) / len(known)) if known else None)


def test_a_spike_is_within_the_extremes_of_its_bucket() -> None:
    columns = _columns([50.0 if step == 2046 else None if step == 2047 else 1.0 for step in range(1, 2049)])
    assert rows(columns, ["a"], extremes=True)[-1] == [2048, pytest.approx(52 / 3), 1.0, 49.0]
    assert rows(_columns([1.0, None]), ["a"], extremes=True) == [[1, 1.0, None, None], [2, None, None, None]]


@given(st.integers(1, 3000), st.integers(-9, 3100), st.integers(-9, 3100), st.integers(1, 64))
def test_a_closer_look_is_at_whole_buckets_in_smaller_ones(count: int, first: int, last: int, most: int) -> None:
    columns, width = _columns([float(step) for step in range(1, count + 1)]), stride(count, most)
    found = closer(columns, ["a"], first, last, most=most)
    if found is None:
        seen = min(last, count) - max(first, 1) + 1
        assert width == 1 or seen <= 0 or seen >= (most / 2 - 2) * width, "else smaller ones would do"
        return
    begin, end, new = found
    whole = [0, *(step for step, _ in rows(columns, ["a"], most=most))]
    assert begin - 1 in whole
    assert end in whole
    assert begin <= max(1, first) <= min(last, count) <= end
    assert len(new) <= most
    assert new[-1][0] == end
    assert int(new[0][0] or 0) - begin + 1 < width


@pytest.mark.parametrize("most", [4, 7, 512])
def test_what_was_sent_piece_by_piece_is_what_is_drawn_at_once(most: int) -> None:
    chance, columns, tail, drawn = random.Random(0), Columns(), Tail(), []
    for step in range(1, 200):
        columns.append(step, {"a": float(step), **({"late": 1.0} if step > 50 else {})})
        if chance.random() < 0.5:
            continue
        sent = tail.next_rows(columns, ["a", "late"], 0, most=most)
        if sent is not None:
            start, new = sent
            drawn = drawn[:start] + new
        assert drawn == rows(columns, ["a", "late"], most=most)


def test_nothing_new_is_not_sent() -> None:
    columns, tail = _columns([1.0, 2.0]), Tail()
    assert tail.next_rows(columns, ["a"], 0) == (0, [[1, 1.0], [2, 2.0]])
    assert tail.next_rows(columns, ["a"], 0) is None
    columns.append(3, {"a": 3.0})
    assert tail.next_rows(columns, ["a"], 0) == (2, [[3, 3.0]])


def test_steps_that_are_taken_back_are_sent_anew() -> None:
    columns, tail = _columns([1.0, 2.0, 3.0]), Tail()
    tail.next_rows(columns, ["a"], 0)
    columns.truncate(1)
    columns.append(2, {"a": 20.0})
    columns.append(3, {"a": 30.0})
    assert tail.next_rows(columns, ["a"], 1) == (0, [[1, 1.0], [2, 20.0], [3, 30.0]])


def test_names_come_and_go() -> None:
    columns = _columns([1.0])
    columns.append(2, {"b": 5})
    assert rows(columns, ["a", "b", "none"]) == [[1, 1.0, None, None], [2, None, 5, None]]


@given(st.lists(st.one_of(st.none(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False)), max_size=20))
def test_a_column_gives_back_what_it_was_given(values: list[float | int | None]) -> None:
    column = Column()
    for value in values:
        column.append(value)
    assert (
        list(column)
        == column[:]
        == [None if value is None else type(column[i])(value) for i, value in enumerate(values)]
    )
    if not any(isinstance(value, float) for value in values) and all(abs(value or 0) < 2**63 for value in values):
        assert not any(isinstance(value, float) for value in column), "a version is no 2.0"
    del column[3:]
    assert len(column) == min(3, len(values))


def test_a_long_series_takes_eight_bytes_a_figure() -> None:
    tracemalloc.start()
    columns, before = Columns(), tracemalloc.get_traced_memory()[0]
    for step in range(1, 5001):
        columns.append(step, {f"figure {i}": step / (i + 1) for i in range(20)})
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert taken < 5000 * (20 * 8 * 1.3 + 80)
