from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from functools import partial

import pytest

from rewards.base import (
    RewardDeadlineError,
    RewardError,
    RewardFailedError,
    RewardLengthError,
    RewardValueError,
)
from rewards.pool import ActorScorer, LocalScorer, RewardActor, RewardPool


class Fixed:
    """A reward that returns, or raises, what a test wants."""

    def __init__(self, outcome):
        self._outcome = outcome

    def score(self, batch):
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome(batch) if callable(self._outcome) else self._outcome


def ones(batch):
    return [1.0] * len(batch)


def pool_of(*, deadline_s=5.0, **outcomes):
    scorers = {name: LocalScorer(partial(Fixed, outcome)) for name, outcome in outcomes.items()}
    return RewardPool(scorers, deadline_s=deadline_s)


@pytest.fixture
def batch(make_batch):
    return make_batch("a", "b")


def test_scores_are_keyed_by_objective(batch):
    pool = pool_of(first=[0.0, 1.0], second=ones)
    assert pool.score(batch) == {"first": [0.0, 1.0], "second": [1.0, 1.0]}
    assert set(pool.timings_s) == {"first", "second"}
    assert all(0 <= seconds < 5 for seconds in pool.timings_s.values())
    pool.close()
    pool.close()


def test_objectives_are_scored_at_the_same_time(batch):
    together = threading.Barrier(3, timeout=5)

    def meet(batch):
        together.wait()
        return ones(batch)

    assert set(pool_of(a=meet, b=meet, c=meet).score(batch)) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("outcome", "error", "message"),
    [
        ([1.0, float("nan")], RewardValueError, "row 1, got nan"),
        ([float("inf"), 1.0], RewardValueError, "row 0, got inf"),
        ([1.0, True], RewardValueError, "row 1, got a bool"),
        ([1.0, "1"], RewardValueError, "row 1, got a str"),
        ([1.0], RewardLengthError, "expected 2 scores, one per completion, got 1"),
        (None, RewardLengthError, "got NoneType"),
        (ZeroDivisionError("oh no"), RewardFailedError, "ZeroDivisionError: oh no"),
        (SystemExit(3), RewardFailedError, "SystemExit: 3"),
    ],
)
def test_a_bad_reward_is_named_and_nothing_is_returned(batch, outcome, error, message):
    pool = pool_of(good=ones, bad=outcome)
    with pytest.raises(error, match=f"objective 'bad': .*{message}") as caught:
        pool.score(batch)
    assert caught.value.reward == "bad"


def test_an_exception_keeps_its_cause(batch):
    with pytest.raises(RewardFailedError) as caught:
        pool_of(bad=ZeroDivisionError("oh no")).score(batch)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_the_first_failure_is_raised_and_the_others_are_its_notes(batch):
    with pytest.raises(RewardError) as caught:
        pool_of(a=ones, b=[1.0], c=ZeroDivisionError("oh no")).score(batch)
    assert caught.value.reward == "b"
    assert caught.value.__notes__ == ["also objective 'c': ZeroDivisionError: oh no"]


def test_a_hang_is_an_error_at_the_deadline_and_the_next_batch_is_scored(batch):
    release = threading.Event()
    calls = []

    def hang_once(batch):
        calls.append(len(batch))
        if len(calls) == 1:
            release.wait(20)
        return [float(len(calls))] * len(batch)

    pool = pool_of(good=ones, stuck=hang_once, deadline_s=0.2)
    started = time.monotonic()
    with pytest.raises(RewardDeadlineError, match=r"objective 'stuck': no scores within 0.2 s"):
        pool.score(batch)
    assert time.monotonic() - started < 2
    assert set(pool.timings_s) == {"good"}
    assert pool.score(batch) == {"good": [1.0, 1.0], "stuck": [2.0, 2.0]}
    release.set()


def test_a_reward_that_hung_is_built_anew_and_one_that_raised_is_kept():
    built = []

    def build(outcome):
        built.append(outcome)
        return Fixed(outcome)

    scorer = LocalScorer(lambda: build(ones))
    scorer.recover(ValueError("bad data"))
    assert len(built) == 1
    scorer.recover(None)
    assert len(built) == 2


class FakeActor:
    """Stands for a Ray actor handle: `actor.score.remote(batch).future()`."""

    def __init__(self, outcome):
        self._actor = RewardActor(lambda: Fixed(outcome))
        self.score = self
        self.killed = 0

    def remote(self, batch):
        self._future: Future = Future()
        try:
            self._future.set_result(self._actor.score(batch))
        except Exception as error:
            self._future.set_exception(error)
        return self

    def future(self):
        return self._future


@pytest.mark.parametrize(
    ("error", "replaced"), [(None, True), (ConnectionError("it is gone"), True), (ValueError("data"), False)]
)
def test_an_actor_is_replaced_when_it_hangs_or_is_gone_and_else_kept(batch, error, replaced):
    started, killed = [], []

    def start():
        started.append(FakeActor(ones))
        return started[-1]

    scorer = ActorScorer(start, killed.append, ConnectionError)
    assert scorer.submit(batch).result() == [1.0, 1.0]
    scorer.recover(error)
    assert killed == (started[:1] if replaced else [])
    assert len(started) == (2 if replaced else 1)
    scorer.close()
    assert killed[-1] is started[-1]


@pytest.mark.parametrize("deadline_s", [0, -1, float("nan"), float("inf")])
def test_a_pool_needs_a_deadline_and_an_objective(deadline_s):
    with pytest.raises(ValueError, match="deadline_s"):
        pool_of(a=ones, deadline_s=deadline_s)
    with pytest.raises(ValueError, match="at least one objective"):
        pool_of()
