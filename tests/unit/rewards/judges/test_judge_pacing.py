"""When the next call may be made, on a clock that the tests turn."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from rewards.judges.pacing import LONGEST_BACKOFF_S, Breaker, Pace, backoff_s, retry_after_s


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_breaker_opens_tries_once_and_closes() -> None:
    clock = Clock()
    breaker = Breaker(3, 10.0, clock)
    for _ in range(2):
        breaker.failed()
    assert breaker.wait_s() == 0
    breaker.succeeded()  # not in a row
    for _ in range(3):
        assert breaker.wait_s() == 0
        breaker.failed()
    assert (breaker.wait_s(), breaker.opened) == (10.0, 1)
    breaker.failed()  # of a call that was under way: no longer wait for that
    clock.now += 9.5
    assert breaker.wait_s() == pytest.approx(0.5)
    clock.now += 0.5
    assert breaker.wait_s() == 0  # this call tries
    assert breaker.wait_s() > 0  # others wait for its end
    breaker.failed()
    assert (breaker.wait_s(), breaker.opened) == (10.0, 2)
    clock.now += 10
    assert breaker.wait_s() == 0
    breaker.left()  # it was given up: another may try
    assert breaker.wait_s() == 0
    breaker.succeeded()
    assert [breaker.wait_s() for _ in range(3)] == [0, 0, 0]


def test_the_pace_is_even() -> None:
    clock = Clock()
    pace = Pace(60, clock)
    assert [pace.wait_s() for _ in range(3)] == [0, 1, 2]
    clock.now += 10
    assert [pace.wait_s() for _ in range(2)] == [0, 1]
    assert [Pace(None, clock).wait_s() for _ in range(3)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("attempt", "asked", "draw", "wait"),
    [
        (0, None, 0.0, 0.25), (0, None, 1.0, 0.5), (3, None, 1.0, 4.0), (3, 1.0, 0.0, 2.0), (0, 7.0, 1.0, 7.0),
        (50, None, 1.0, LONGEST_BACKOFF_S),
    ],
)  # fmt: skip
def test_the_wait_doubles_within_bounds(attempt: int, asked: float | None, draw: float, wait: float) -> None:
    assert backoff_s(attempt, 0.5, asked, lambda: draw) == wait


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None), ("0", 0), (" 12 ", 12), ("Wed, 21 Oct 2026 07:28:10 GMT", 10),
        ("Wed, 21 Oct 2026 07:27:00 GMT", 0),
        ("Wed, 21 Oct 2026 07:28:10 -0000", 10), ("soon", None), ("-5", None), ("1.5", None), ("", None),
        ("9" * 5000, None), ("٣", None), ("nan", None), ("Wed, 99 Oct 2026 99:99:99 GMT", None),
    ],
)  # fmt: skip
def test_retry_after_is_a_number_or_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header, lambda: datetime(2026, 10, 21, 7, 28, tzinfo=UTC)) == seconds
