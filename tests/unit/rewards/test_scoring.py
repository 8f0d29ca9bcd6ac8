"""The pool over replicas in threads: what it gives, what it tries again, what it leaves out and when it gives up."""

from __future__ import annotations

import itertools
import os
import random
import sys
import threading
import time
from collections import Counter
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rewards import registry
from rewards.base import (
    RewardBatch,
    RewardDataError,
    RewardDeadlineError,
    RewardFailedError,
    RewardUnavailableError,
)
from rewards.host import Host
from rewards.hosting import (
    SINGLE,
    ActorReplica,
    Answer,
    Failure,
    Hosting,
    LocalReplica,
    RewardActor,
    actor_replica,
    answer,
)
from rewards.pool import RewardPool, Scored, local_pool, pieces

QUICK = Hosting(deadline_s=5.0, backoff_s=0.001)


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


def lengths(batch):
    return [float(len(text)) for text in batch.completions]


@pytest.fixture
def pool_of():
    """Builds pools of functions from a batch to scores, and closes them."""
    pools = []

    def build(hosting=QUICK, **outcomes):
        pools.append(local_pool({name: partial(Fixed, outcome) for name, outcome in outcomes.items()}, hosting))
        return pools[-1]

    yield build
    for pool in pools:
        pool.close()


@pytest.fixture
def batch(make_batch):
    return make_batch("a", "b")


def rows_of(make_batch, size):
    return make_batch(*[f"row {i}" for i in range(size)])


def hosting(**changes):
    return Hosting(**{"deadline_s": 5.0, "backoff_s": 0.001, **changes})


# ---------------------------------------------------------------------------------------------- scores


def test_scores_are_keyed_by_objective(pool_of, batch):
    pool = pool_of(first=[0.0, 1.0], second=ones, third=[None, 2])
    scored = pool.score(batch)
    assert scored.scores == {"first": [0.0, 1.0], "second": [1.0, 1.0], "third": [None, 2.0]}
    assert (scored.dropped, scored.rows, pool.told()) == ((), 2, [])
    pool.close()
    pool.close()


def test_objectives_are_scored_at_the_same_time(pool_of, batch):
    together = threading.Barrier(3, timeout=5)

    def meet(batch):
        together.wait()
        return ones(batch)

    assert set(pool_of(a=meet, b=meet, c=meet).score(batch).scores) == {"a", "b", "c"}


def test_replicas_score_at_the_same_time(pool_of, make_batch):
    together = threading.Barrier(3, timeout=5)

    def meet(batch):
        together.wait()
        return lengths(batch)

    pool = pool_of(hosting(replicas=3, batch_size=2), a=meet)
    assert pool.score(rows_of(make_batch, 6)).scores == {"a": [5.0] * 6}


class Headed:
    passes: ClassVar[Counter] = Counter()

    def __init__(self, label):
        self.label = label

    def score(self, _batch):
        raise AssertionError("one pass gives all heads")

    def score_heads(self, batch):
        self.passes[self.label] += 1
        return {"length": lengths(batch), "one": ones(batch), "odd": [float("nan")] * len(batch)}


def headed(label, **heads):
    return RewardPool([Host("model", heads, [LocalReplica(partial(Headed, label))], QUICK)])


def test_objectives_of_one_reward_share_a_pass(make_batch):
    pool = headed("shared", size="length", unit="one", again="length")
    assert pool.score(make_batch("a", "bcd")).scores == {"size": [1.0, 3.0], "unit": [1.0, 1.0], "again": [1.0, 3.0]}
    assert Headed.passes["shared"] == 1  # and the head that nobody asked for is not looked at
    pool.close()


def test_a_head_that_is_not_there_is_named_with_those_that_are(make_batch):
    pool = headed("unknown", size="lenght")
    with pytest.raises(
        RewardFailedError, match="objective 'size': the reward has no head 'lenght'; it has length, odd"
    ):
        pool.score(make_batch("a"))
    assert Headed.passes["unknown"] == 1
    pool.close()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 20))
def test_pieces_hold_every_row_once_and_whole_groups_where_they_fit(counts, size):
    cut = pieces(counts, size)
    assert list(itertools.chain.from_iterable(cut)) == list(range(sum(counts)))
    assert all(1 <= len(rows) <= size for rows in cut)
    starts = set(itertools.accumulate(counts, initial=0))
    if max(counts) <= size:
        assert all(rows.start in starts for rows in cut)


def test_without_a_batch_size_a_call_has_a_group_or_some_small_ones():
    assert Hosting().together([16, 20]) == 20
    assert Hosting().together([1] * 50) == 8
    assert Hosting(batch_size=3).together([16]) == 3


def sizes_behind_a_held_call(pool_of, make_batch, hosting):
    """Rows of each call, where the first is held until ten groups of eight wait behind it."""
    sizes, begun, waiting = [], threading.Event(), threading.Event()

    def hold(batch):
        sizes.append(len(batch))
        begun.set()
        assert waiting.wait(5)
        return lengths(batch)

    pool = pool_of(hosting, a=hold)
    whole = make_batch(*["x" * (i % 7) for i in range(88)])
    round_ = pool.begin([8] * 11)
    for group in range(11):
        round_.add(group, whole.rows(range(8 * group, 8 * group + 8)))
        assert begun.wait(5)
    waiting.set()
    assert round_.finish().scores == {"a": [float(i % 7) for i in range(88)]}
    return sizes


def test_what_waits_goes_into_one_call_where_rows_are_scored_by_themselves(pool_of, make_batch):
    assert sizes_behind_a_held_call(pool_of, make_batch, hosting()) == [8] * 11
    assert sizes_behind_a_held_call(pool_of, make_batch, hosting(rowwise=True)) == [8, 64, 16]
    assert sizes_behind_a_held_call(pool_of, make_batch, hosting(rowwise=True, batch_size=8)) == [8] * 11


def test_what_failed_is_tried_again_by_itself(pool_of, make_batch):
    """The row of the trouble is found, and costs no other row, as without merging."""

    def picky(batch):
        if "bad" in batch.completions:
            raise ValueError
        return lengths(batch)

    pool = pool_of(hosting(rowwise=True, max_bad_share=0.1), a=picky)
    texts = ["bad" if i == 21 else "good" for i in range(40)]
    scored = pool.score(make_batch(*texts))
    assert scored.dropped == (21,)
    assert scored.scores == {"a": [None if text == "bad" else 4.0 for text in texts]}


def test_what_the_first_call_would_wait_for_is_done_before_it(make_batch):
    class Slow:
        warm = False

        def warm_up(self):
            self.warm = True

        def score(self, batch):
            return [float(self.warm)] * len(batch)

    assert RewardActor(Slow).answer(make_batch("a"), (SINGLE,)).columns == {SINGLE: [1.0]}


@pytest.mark.parametrize(
    ("options", "sees"),
    [({}, ""), ({"num_gpus": 0}, ""), ({"num_gpus": 0.5}, "0,1"), ({"num_gpus": 0, "sees_gpus": True}, "0,1")],
)
def test_a_process_sees_the_gpus_that_it_has_reserved_alone(options, sees, monkeypatch):
    """Where a task reserves none, Ray leaves the variable as the machine has it: all GPUs, which are others'."""
    seen = []

    def build():
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
        return Fixed(ones)

    class Made(RewardActor):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            answered = SimpleNamespace(result=lambda _: True)
            self.ready = SimpleNamespace(remote=lambda: SimpleNamespace(future=lambda: answered))

    remote = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=Made))
    ray = SimpleNamespace(remote=lambda _: remote, kill=None, exceptions=SimpleNamespace(RayError=OSError))
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert actor_replica(build, **options).start(5) is None
    assert seen == [sees]


class Sensitive:
    """A score that depends on its company in the last digits, as a model's on how its batch is padded."""

    def score(self, batch):
        return [len(text) / 3 + len(batch) * 1e-9 + row * 1e-10 for row, text in enumerate(batch.completions)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=8),
    st.integers(1, 12),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
@example([2, 3, 1], 4, 2, random.Random(0))
def test_the_order_in_which_groups_end_changes_nothing(counts, size, replicas, chance):
    total = sum(counts)
    whole = RewardBatch(
        prompts=("p",) * total, completions=tuple("x" * (7 * i % 13) for i in range(total)), answers=(None,) * total,
        completion_tokens=(1,) * total, truncated=(False,) * total, max_tokens=9,
    )  # fmt: skip
    starts = list(itertools.accumulate(counts, initial=0))
    found = []
    for how in ("in order", "at random"):
        pool = local_pool({"a": Sensitive, "b": Sensitive}, hosting(batch_size=size, replicas=replicas))
        round_ = pool.begin(counts)
        order = list(range(len(counts)))
        if how == "at random":
            chance.shuffle(order)
        for p in order:
            round_.add(p, whole.rows(range(starts[p], starts[p + 1])))
        found.append(round_.finish())
        pool.close()
    assert found[0] == found[1]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=8),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
@example([2, 3, 1], 4, random.Random(1))
def test_groups_that_do_not_come_are_left_out_and_no_other_is(counts, size, chance):
    total = sum(counts)
    whole = RewardBatch(
        prompts=("p",) * total, completions=tuple(f"{row}" for row in range(total)), answers=(None,) * total,
        completion_tokens=(1,) * total, truncated=(False,) * total, max_tokens=9,
    )  # fmt: skip
    starts = list(itertools.accumulate(counts, initial=0))
    there = sorted(chance.sample(range(len(counts)), chance.randint(1, len(counts))))
    rows = [row for p in there for row in range(starts[p], starts[p + 1])]
    bad = chance.choice(rows) if len(rows) > 1 else None

    def score(batch):
        if str(bad) in batch.completions:
            raise ValueError("an odd row")
        return [float(text) for text in batch.completions]

    pool = local_pool({"a": lambda: SimpleNamespace(score=score)}, hosting(batch_size=size, max_bad_share=0.5))
    round_ = pool.begin(counts)
    for p in chance.sample(there, len(there)):
        round_.add(p, whole.rows(range(starts[p], starts[p + 1])))
    scored = round_.finish(there)
    pool.close()
    assert scored.scores == {"a": [None if row == bad else float(row) for row in rows]}
    assert scored.dropped == (() if bad is None else (rows.index(bad),))
    assert scored.rows == len(rows)


@pytest.mark.parametrize("batch_size", [4, 20])  # scored before it is known that the others don't come, and after it
def test_rows_that_did_not_come_count_in_no_share(pool_of, make_batch, batch_size):
    """Of 20 rows a tenth may be bad, of the 4 that came none."""

    def picky(batch):
        if "bad" in batch.completions:
            raise ValueError
        return lengths(batch)

    pool = pool_of(hosting(max_bad_share=0.1, batch_size=batch_size), a=picky)
    round_ = pool.begin([4] * 5)
    round_.add(2, make_batch("bad", "bad", "good", "good"))
    time.sleep(0.2)
    with pytest.raises(RewardDataError, match="2 of 4 rows"):
        round_.finish([2])


def test_a_group_is_scored_while_others_are_still_to_come(pool_of, make_batch):
    scored = threading.Event()

    def tell(batch):
        scored.set()
        return ones(batch)

    pool = pool_of(hosting(batch_size=2), a=tell)
    round_ = pool.begin([2, 2])
    round_.add(1, make_batch("a", "b"))
    assert scored.wait(5)
    time.sleep(0.02)
    round_.add(0, make_batch("c", "d"))
    assert round_.finish().scores == {"a": [1.0] * 4}
    health = pool.health()["a"]
    assert health["calls"] == 2
    assert 0 <= health["latency_s_p50"] <= health["latency_s_p95"] < 5
    assert health["retries"] == health["restarts"] == health["dropped"] == 0
    assert pool.health()["a"]["calls"] == 0  # told once


def test_what_was_done_before_the_rollouts_ended_is_hidden(pool_of, make_batch):
    """By halves: one piece is scored before the end, one as long after it."""

    def slow(batch):
        time.sleep(0.1)
        return ones(batch)

    pool = pool_of(hosting(batch_size=2), a=slow)
    round_ = pool.begin([2, 2])
    round_.add(0, make_batch("a", "b"))
    time.sleep(0.3)
    round_.add(1, make_batch("c", "d"))
    round_.finish()
    health = pool.health()["a"]
    assert health["score_busy_s"] >= 0.2
    assert 0 < health["hidden_share"] < 1


# -------------------------------------------------------------------------------------------- bad rows


def bad_at(rows, what, calls=None):
    """Scores 1, but for some rows of "row N": these are `what`, or raise it."""

    def score(batch):
        if calls is not None:
            calls.append(batch.completions)
        bad = [text in {f"row {row}" for row in rows} for text in batch.completions]
        if isinstance(what, BaseException):
            if any(bad):
                raise what
            return ones(batch)
        return [what if wrong else 1.0 for wrong in bad]

    return score


BAD = [float("nan"), float("inf"), float("-inf"), "1", True, 1e39, 10**400, ZeroDivisionError("row 7"), SystemExit(3)]


@pytest.mark.parametrize("what", BAD, ids=lambda what: type(what).__name__ + str(what)[:5])
def test_a_row_that_cannot_be_scored_is_left_out_under_every_objective(pool_of, make_batch, what):
    calls = []
    pool = pool_of(good=lengths, bad=bad_at([7], what, calls))
    scored = pool.score(rows_of(make_batch, 20))
    assert scored.dropped == (7,)
    assert scored.scores["bad"] == [1.0] * 7 + [None] + [1.0] * 12
    assert scored.scores["good"] == [5.0] * 7 + [None] + [5.0] * 2 + [6.0] * 10
    (told,) = pool.told()
    assert (told.type, told.level) == ("reward.rows_dropped", "warning")
    assert {key: told.data[key] for key in ("reward", "objectives", "rows", "count", "of", "attempts")} == {
        "reward": "bad", "objectives": ["bad"], "rows": [7], "count": 1, "of": 20, "attempts": 2,
    }  # fmt: skip
    assert "row 7" not in str(told.data)  # nor what a reward says, which may quote it
    alone = 2 if isinstance(what, BaseException) else 1  # a value is known to be that row's in company too
    assert calls.count(("row 7",)) == alone
    assert pool.health()["bad"]["dropped"] == 1
    assert pool.health()["bad"]["retries"] == 0


def test_where_a_reward_raised_is_told_without_its_words(pool_of, make_batch):
    pool = pool_of(bad=bad_at([1], KeyError("secret")))
    pool.score(rows_of(make_batch, 20))
    (problem,) = pool.told()[0].data["problems"]
    assert problem.startswith("KeyError at test_scoring.py:")


@pytest.mark.parametrize(
    ("name", "options", "details", "problem"),
    [
        ("math", {}, {}, "has no ground truth; this reward needs an answer for every prompt"),
        ("regex", {"column": "shape"}, {}, "has nothing in the column 'shape', which this reward reads"),
        ("regex", {"column": "shape"}, {"shape": "(secret"}, "has a pattern that can't be used"),
        (
            "json_schema",
            {"column": "shape"},
            {"shape": {"type": "secret"}},
            "needs a JSON schema in the column 'shape'",
        ),
        ("instructions", {}, {"instruction_id_list": ["secret"]}, "has constraints that can't be checked"),
    ],
)
def test_what_a_row_lacks_is_told_without_what_it_has(make_batch, name, options, details, problem):
    pool = local_pool({"a": partial(registry.build, name, options)}, QUICK)
    good = {
        "shape": {} if name == "json_schema" else ".",
        "instruction_id_list": ["detectable_format:title"],
        "kwargs": [{}],
    }
    answers = ["1"] * 3 + [None if name == "math" else "1"]
    batch = make_batch(*["text"] * 4, answers=answers, details=[*[good] * 3, details])
    assert pool.score(batch).dropped == (3,)
    (told,) = pool.told()
    assert told.data["problems"] == {problem: 1}
    pool.close()


def test_what_fails_in_company_alone_is_told(pool_of, make_batch):
    def padded(batch):
        if len(batch) > 1:
            raise ValueError("lengths differ")
        return ones(batch)

    pool = pool_of(hosting(batch_size=8), a=padded)
    assert pool.score(rows_of(make_batch, 8)).scores == {"a": [1.0] * 8}
    (told,) = pool.told()
    assert (told.type, told.level, told.data["failures"]) == ("reward.recovered", "warning", {"raised": 7})
    pool.close()


@pytest.mark.parametrize("scores", [[1.0], [1.0] * 50])
def test_a_wrong_length_is_no_score_for_any_row(pool_of, make_batch, scores):
    pool = pool_of(good=ones, bad=scores)
    size = 40 if scores == [1.0] else 20
    if scores == [1.0]:  # right for a single row: halving finds all of them in the end
        assert pool.score(rows_of(make_batch, size)).dropped == ()
        (told,) = pool.told()
        assert (told.type, told.data["failures"]) == ("reward.recovered", {"length": 35})
        return
    with pytest.raises(RewardDataError, match="objective 'bad': 2 of 20 rows could not be scored") as caught:
        pool.score(rows_of(make_batch, size))
    assert caught.value.rows == (0, 1)


async def later(batch):
    return ones(batch)


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        (later, r"coroutine: score\(\) must be a plain method, without async"),
        (lambda batch: np.ones(len(batch)), r"ndarray: return its \.tolist\(\)"),
        (None, "NoneType"),
        ("11", "str"),
        ((number for number in ()), "generator"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_list_is_the_codes_fault_and_ends_the_round_at_once(make_batch, scores, found):
    calls = []

    def score(batch):
        calls.append(len(batch))
        return scores(batch) if callable(scores) else scores

    pool = local_pool({"bad": partial(Fixed, score)}, hosting(batch_size=20))
    with pytest.raises(RewardFailedError, match=f"^objective 'bad': expected a list of 20 numbers, got {found}$"):
        pool.score(rows_of(make_batch, 20))
    assert calls == [20]
    (told,) = pool.told()
    assert (told.type, told.data["failures"]) == ("reward.failed", {"broken": 1})
    pool.close()


def test_heads_without_names_are_the_codes_fault(batch):
    reward = SimpleNamespace(score_heads=ones)
    failure = answer(reward, batch, ("a",)).failure
    assert failure is not None
    assert (failure.kind, failure.text) == (
        "broken", "expected score_heads() to return every head's scores by name, got list",
    )  # fmt: skip


@pytest.mark.parametrize("what", BAD, ids=lambda what: type(what).__name__ + str(what)[:5])
def test_too_many_bad_rows_are_an_error_that_names_them(pool_of, make_batch, what):
    pool = pool_of(good=ones, bad=bad_at(range(40), what))
    with pytest.raises(RewardDataError, match="objective 'bad'") as caught:
        pool.score(rows_of(make_batch, 40))
    assert len(caught.value.rows) >= 3
    (told,) = pool.told()
    assert (told.type, told.data["count"], told.data["of"]) == ("reward.failed", len(caught.value.rows), 40)
    assert told.data["rows"] == list(caught.value.rows)
    assert told.data["failures"] == {}
    assert "row" not in str(told.data["problems"])


@settings(max_examples=30, deadline=None)
@given(
    st.sets(st.integers(0, 39), max_size=12),
    st.sampled_from([0.0, 0.05, 0.12, 0.3, 1.0]),
    st.booleans(),
    st.integers(1, 40),
)
def test_exactly_the_bad_rows_are_left_out_up_to_the_limit(bad, share, raises, size):
    what = ZeroDivisionError() if raises else float("nan")
    batch = RewardBatch(
        prompts=("p",) * 40, completions=tuple(f"row {i}" for i in range(40)), answers=(None,) * 40,
        completion_tokens=(1,) * 40, truncated=(False,) * 40, max_tokens=9,
    )  # fmt: skip
    calls: list[tuple[str, ...]] = []
    pool = local_pool(
        {"good": partial(Fixed, ones), "bad": partial(Fixed, bad_at(bad, what, calls))},
        hosting(batch_size=size, max_bad_share=share),
    )
    try:
        if len(bad) > {0.0: 0, 0.05: 2, 0.12: 5, 0.3: 12, 1.0: 40}[share]:
            with pytest.raises(RewardDataError) as caught:
                pool.score(batch)
            assert set(caught.value.rows) <= bad
            return
        scored = pool.score(batch)
        assert scored.dropped == tuple(sorted(bad))
        for column in scored.scores.values():
            assert [row for row, score in enumerate(column) if score is None] == sorted(bad)
        if raises:  # alone, twice; in company, once for each halving
            assert all(calls.count((f"row {row}",)) == 2 for row in bad)
    finally:
        pool.close()


def test_a_row_that_is_scored_at_the_second_try_stays(pool_of, make_batch):
    calls = []

    def flaky(batch):
        calls.append(batch.completions)
        return [float("nan") if "row 3" in calls[-1] and len(calls) == 1 else 1.0 for _ in calls[-1]]

    pool = pool_of(bad=flaky)
    scored = pool.score(rows_of(make_batch, 8))
    assert (scored.dropped, len(calls), pool.told()) == ((), 2, [])


def test_rows_of_earlier_rounds_count_towards_the_limit(pool_of, make_batch):
    pool = pool_of(bad=bad_at([0], float("nan")))
    first = pool.score(rows_of(make_batch, 20))
    assert first.by_host == {"bad": 1}
    round_ = pool.begin([10], before=[first])  # 5 % of 30, rounded up, are 2
    round_.add(0, rows_of(make_batch, 10))
    second = round_.finish()
    assert second.dropped == (0,)
    assert pool.told()[-1].data["rows"] == [20]  # of the step
    round_ = pool.begin([5], before=[first, second])
    round_.add(0, rows_of(make_batch, 5))
    with pytest.raises(RewardDataError, match="1 of 35 rows") as caught:
        round_.finish()
    assert caught.value.rows == (30,)


def test_where_no_row_is_left_there_are_no_scores(pool_of, make_batch):
    """However much a person tolerates, and whichever objective took which row."""
    pool = pool_of(hosting(max_bad_share=1.0), bad=bad_at([0, 1], float("nan")))
    with pytest.raises(RewardDataError, match="2 of 2 rows"):
        pool.score(rows_of(make_batch, 2))
    pool = pool_of(hosting(max_bad_share=1.0), one=bad_at([0], float("nan")), other=bad_at([1], float("nan")))
    with pytest.raises(RewardDataError, match="every row"):
        pool.score(rows_of(make_batch, 2))


@pytest.mark.parametrize("bad", [{"one": [0, 1]}, {"one": [0], "other": [1]}])
def test_a_round_without_a_row_that_can_be_scored_may_be_one_of_a_step(pool_of, make_batch, bad):
    """What counts are the step's rows: six good ones and two bad."""
    pool = pool_of(hosting(max_bad_share=0.25), **{name: bad_at(rows, float("nan")) for name, rows in bad.items()})
    first = pool.score(make_batch(*["good"] * 6))
    round_ = pool.begin([2], before=[first])
    round_.add(0, rows_of(make_batch, 2))
    second = round_.finish()
    assert (second.dropped, second.scores) == ((0, 1), {name: [None, None] for name in bad})
    assert [told.type for told in pool.told()] == ["reward.rows_dropped"] * len(bad)


def test_where_earlier_rounds_left_no_row_either_there_are_no_scores(pool_of, make_batch):
    pool = pool_of(hosting(max_bad_share=1.0), bad=bad_at([0, 1], float("nan")))
    nothing = Scored(scores={"bad": [None, None]}, dropped=(0, 1), by_host={"bad": 2})
    round_ = pool.begin([2], before=[nothing])
    round_.add(0, rows_of(make_batch, 2))
    with pytest.raises(RewardDataError, match="2 of 4 rows"):
        round_.finish()


# -------------------------------------------------------------------------------------- infrastructure


class Scripted:
    """A replica that does what the list says, call by call, and then scores 1; "start" entries are for `start`."""

    def __init__(self, script=(), starts=()):
        self.script, self.starts = list(script), list(starts)
        self.calls: list[int] = []
        self.started = self.killed = 0

    def start(self, _timeout_s):
        self.started += 1
        return self.starts.pop(0) if self.starts else None

    def call(self, batch, _heads, _timeout_s):
        self.calls.append(len(batch))
        step = self.script.pop(0) if self.script else None
        if isinstance(step, Failure):
            return Answer(failure=step)
        return Answer(columns={SINGLE: [1.0] * len(batch)})

    def kill(self):
        self.killed += 1


DIED = Failure(kind="died", text="the process died")
LATE = Failure(kind="deadline", text="no scores within 5 s")
AWAY = Failure(kind="connection", text="ConnectionError: refused")
FULL = Failure(kind="memory", text="MemoryError")
BROKEN = Failure(kind="broken", text="OSError: no such weights")


def scripted(*replicas, **changes):
    return RewardPool([Host("reward", {"a": SINGLE}, replicas, hosting(replicas=len(replicas), **changes))])


@pytest.mark.parametrize("failure", [DIED, LATE, FULL, AWAY], ids=lambda failure: failure.kind)
def test_a_call_that_fails_is_tried_again_and_told(failure, batch):
    replica = Scripted([failure, failure])
    pool = scripted(replica)
    assert pool.score(batch).scores == {"a": [1.0, 1.0]}
    restarts = 0 if failure is AWAY else 2  # a process that lost its connection is kept
    tries = [2, 1, 1, 1] if failure is LATE else [2, 2, 2]  # what was late goes on in less
    assert (replica.calls, replica.started, replica.killed) == (tries, 1 + restarts, restarts)
    (told,) = pool.told()
    assert (told.type, told.data["failures"]) == ("reward.recovered", {failure.kind: 2})
    assert (told.data["retries"], told.data["restarts"]) == (2, restarts)
    health = pool.health()["reward"]
    assert (health["failures"], health["retries"], health["restarts"], health["dropped"]) == (2, 2, restarts, 0)
    pool.close()


class Priced:
    """A reward whose calls cost something, or whose `figures` are something else."""

    name = "priced"

    def __init__(self, figures: Any) -> None:
        self.figures, self.spent = (figures or (lambda: {"cost": self.spent})), 3.0  # by others before

    def score(self, batch: RewardBatch) -> list[float]:
        self.spent += 0.25 * len(batch)
        return [1.0] * len(batch)


def test_what_a_reward_cost_is_in_its_health(batch):
    pool = RewardPool([Host("priced", {"a": SINGLE}, [LocalReplica(lambda: Priced(None))], QUICK)])
    for _ in range(2):
        pool.score(batch)
        assert pool.health()["priced"]["cost"] == 0.25 * len(batch)  # of each step alone
    assert pool.cost == 2 * 0.25 * len(batch)  # of all
    pool.close()


@pytest.mark.parametrize("figures", [7, lambda: 7, lambda: {"cost": "much"}, lambda: 1 / 0, lambda: {"cost": -1}])
def test_figures_that_are_no_cost_cost_nothing(batch, figures):
    found = answer(Priced(figures), batch, (SINGLE,))
    assert (found.cost, found.failure) == (0.0, None)


@pytest.mark.parametrize(
    ("failure", "error"), [(DIED, RewardFailedError), (LATE, RewardDeadlineError), (AWAY, RewardFailedError)]
)
def test_after_its_tries_a_call_is_an_error(failure, error, batch):
    replica = Scripted([failure] * 9)
    pool = scripted(replica)
    with pytest.raises(error, match=rf"objective 'a': {failure.text} \(5 times\)"):
        pool.score(batch)
    assert len(replica.calls) == 5
    (told,) = pool.told()
    assert (told.type, told.level, told.data["failures"]) == ("reward.failed", "error", {failure.kind: 5})
    replica.script.clear()
    assert pool.score(batch).scores == {"a": [1.0, 1.0]}  # ready again for the next round
    pool.close()


class Slow(Scripted):
    """Is late with more than two slow rows, whatever the others."""

    def call(self, batch, heads, timeout_s):
        found = super().call(batch, heads, timeout_s)
        return Answer(failure=LATE) if batch.completions.count("slow") > 2 else found


@pytest.mark.parametrize("slow", [range(0, 64, 8), range(8), range(30, 38), range(64)], ids=str)
def test_what_is_late_together_is_scored_in_less(make_batch, slow):
    replica = Slow()
    pool = scripted(replica, batch_size=64)
    batch = make_batch(*["slow" if row in slow else "quick" for row in range(64)])
    assert pool.score(batch).scores == {"a": [1.0] * 64}
    assert {told.type for told in pool.told()} == {"reward.recovered"}
    pool.close()


def test_what_hangs_alone_has_as_many_tries_as_ever(make_batch):
    replica = Scripted([LATE] * 9)
    pool = scripted(replica, batch_size=64)
    with pytest.raises(RewardDeadlineError, match=r"5 s \(5 times\)"):
        pool.score(rows_of(make_batch, 64))
    assert replica.calls == [64, 16, 4, 1, 1]
    pool.close()


def test_a_round_that_was_late_merges_no_more_and_the_next_does(make_batch):
    begun, waiting = threading.Event(), threading.Event()

    class Held(Scripted):
        def call(self, batch, heads, timeout_s):
            begun.set()
            assert waiting.wait(5)
            return super().call(batch, heads, timeout_s)

    replica = Held([LATE])
    pool = scripted(replica, rowwise=True)
    for sizes in ([8, 2, 2, 2, 2, 8, 8], [8, 16]):
        begun.clear()
        waiting.clear()
        round_ = pool.begin([8] * 3)
        for group in range(3):
            round_.add(group, rows_of(make_batch, 8))
            assert begun.wait(5)
        waiting.set()
        round_.finish()
        assert replica.calls == sizes
        replica.calls.clear()
    pool.close()


def test_another_replica_takes_over(batch):
    bad, good = Scripted([AWAY] * 9), Scripted()
    pool = scripted(bad, good, backoff_s=30.0)
    for _ in range(4):
        assert pool.score(batch).scores == {"a": [1.0, 1.0]}
    assert len(bad.calls) <= 1  # it has a pause of half a minute
    pool.close()


@pytest.mark.parametrize("starts", [1, 3])
def test_a_start_that_fails_is_tried_again(starts, batch):
    replica = Scripted(starts=[BROKEN] * starts)
    pool = scripted(replica)
    assert pool.score(batch).scores == {"a": [1.0, 1.0]}
    assert replica.started == starts + 1
    pool.close()


def test_a_reward_that_never_starts_is_an_error_with_the_reason(batch):
    pool = scripted(Scripted(starts=[BROKEN] * 99))
    with pytest.raises(RewardFailedError, match="objective 'a': OSError: no such weights"):
        pool.wait_ready()
    with pytest.raises(RewardFailedError, match=r"objective 'a': OSError: no such weights \(5 times\)"):
        pool.score(batch)
    pool.close()
    pool = scripted(Scripted(starts=[DIED, DIED]))
    pool.wait_ready()
    pool.close()


def test_every_replica_is_waited_for_where_that_is_asked(monkeypatch):
    monkeypatch.setattr("rewards.host.LOOK_EVERY_S", 0.01)
    late = Scripted(starts=[DIED] * 2)
    pool = scripted(Scripted(), late)
    pool.wait_ready(every=True)
    assert late.started == 3
    pool.close()
    pool = scripted(Scripted(), Scripted(starts=[DIED] * 99))  # one that never starts is not waited for for ever
    pool.wait_ready(every=True)
    pool.close()


def test_somebody_hears_that_a_start_takes_its_time_and_may_end_it(monkeypatch):
    monkeypatch.setattr("rewards.host.LOOK_EVERY_S", 0.01)
    pool = scripted(Scripted(starts=[DIED]), backoff_s=30.0)
    heard = []

    def on_wait():
        heard.append(None)
        if len(heard) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.wait_ready(on_wait)
    pool.close()


def test_the_two_budgets_do_not_count_against_each_other(make_batch):
    """Four failures of the process and one of the row: neither is used up."""
    replica = Scripted([DIED, DIED, Failure(kind="raised", text="ValueError"), DIED, DIED])
    pool = scripted(replica)
    assert pool.score(make_batch("a")).scores == {"a": [1.0]}
    assert len(replica.calls) == 6
    pool.close()


def test_a_hang_is_an_error_at_the_deadline_and_the_next_batch_is_scored(pool_of, batch):
    release = threading.Event()
    calls = []

    def hang_once(batch):
        calls.append(len(batch))
        if len(calls) == 1:
            release.wait(20)
        return [float(len(calls))] * len(batch)

    pool = pool_of(hosting(deadline_s=0.2, attempts=1), good=ones, stuck=hang_once)
    started = time.monotonic()
    with pytest.raises(RewardDeadlineError, match=r"objective 'stuck': no scores within 0.2 s"):
        pool.score(batch)
    assert 0.2 <= time.monotonic() - started < 15
    assert pool.score(batch).scores == {"good": [1.0, 1.0], "stuck": [2.0, 2.0]}
    release.set()


def test_an_error_does_not_wait_for_the_other_objectives(pool_of, batch):
    release = threading.Event()
    pool = pool_of(hosting(max_bad_share=0.0), slow=lambda batch: release.wait(20) and ones(batch), bad=[1.0, None, 3])
    with pytest.raises(RewardDataError, match="objective 'bad'"):
        pool.score(batch)
    release.set()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError("at row 3"), "memory"),
        (ConnectionRefusedError("refused"), "connection"),
        (TimeoutError("read"), "connection"),
        (RewardUnavailableError("the judge answers 503"), "connection"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), "memory"),
        (ValueError("row"), "raised"),
        (RuntimeError("row"), "raised"),
    ],
)
def test_what_a_reward_raises_is_of_a_kind(batch, error, kind):
    failure = answer(Fixed(error), batch, (SINGLE,)).failure
    assert failure is not None
    assert failure.kind == kind


class FakeHandle:
    """Stands for a Ray actor's method: `actor.answer.remote(batch).future()`."""

    def __init__(self, outcome):
        self.ready = self.answer = self
        self._actor = RewardActor(lambda: Fixed(outcome))
        self._outcome = outcome

    def remote(self, *arguments):
        self._arguments = arguments
        return self

    def future(self):
        return self

    def result(self, _timeout_s):
        if isinstance(self._outcome, ConnectionAbortedError) and self._arguments:
            raise self._outcome
        return self._actor.answer(*self._arguments) if self._arguments else True


def test_an_actor_answers_or_is_gone(batch):
    ended = []
    replica = ActorReplica(lambda: FakeHandle(ones), ended.append, ConnectionAbortedError)
    replica.kill()
    assert replica.start(1.0) is None
    assert replica.call(batch, (SINGLE,), 1.0).columns == {SINGLE: [1.0, 1.0]}
    replica.kill()
    assert len(ended) == 1
    replica = ActorReplica(lambda: FakeHandle(ConnectionAbortedError("gone")), ended.append, ConnectionAbortedError)
    assert replica.start(1.0) is None
    assert replica.call(batch, (SINGLE,), 1.0).failure == Failure(kind="died", text="gone")


@pytest.mark.parametrize("deadline_s", [0, -1, float("nan"), float("inf")])
def test_a_pool_needs_a_deadline_and_an_objective(deadline_s):
    with pytest.raises(ValueError, match="deadline_s"):
        Hosting(deadline_s=deadline_s)
    with pytest.raises(ValueError, match="at least one objective"):
        RewardPool([])
