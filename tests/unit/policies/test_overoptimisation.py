"""The watch tells a proxy that is over-optimised from noise, from a bad run and from a good one."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.overoptimisation import OveroptimisationWatch, rank_correlation

SHARES = st.floats(0, 1).map(lambda x: round(x, 3))
READINGS = st.lists(st.tuples(SHARES, SHARES | st.none(), SHARES), max_size=30)


def watch(window=1, drop=0.1, rise=0.05):
    return OveroptimisationWatch(["a", "b"], window=window, drop=drop, rise=rise)


def steps(one, readings, start=1):
    """(step, objective) of each that begins."""
    return [
        (found.step, found.objective)
        for step, (gold, a, b) in enumerate(readings, start=start)
        for found in one.observe(step, gold, {"a": a, "b": b})
    ]


def test_a_worked_example():
    """Gold rises with proxy a at first, then falls while a goes on: with pairs averaged, from the fifth reading."""
    one = watch(window=2)
    told = [
        one.observe(step, gold, {"a": a, "b": 0.5})
        for step, (gold, a) in enumerate([(0.5, 0.4), (0.7, 0.5), (0.7, 0.6), (0.6, 0.7), (0.5, 0.8)], start=1)
    ]
    # Levels of gold: -, .6, .7, .65, .55. Of a: -, .45, .55, .65, .75. The best is at step 3; at step 4 gold is down
    # by .05, at step 5 by .15 while a is up by .20.
    assert told[:4] == [[], [], [], []]
    ((found,),) = told[4:]
    assert (found.step, found.objective, found.best_step) == (5, "a", 3)
    assert (found.gold_best, found.gold_now) == pytest.approx((0.7, 0.55))
    assert (found.before, found.now) == pytest.approx((0.55, 0.75))
    assert found.describe() == (
        "a rose from 0.55 to 0.75 while the gold reward fell from 0.70 to 0.55; it was at its best at step 3"
    )


def test_it_is_told_once_and_ends_at_half_of_either_threshold():
    gold = [0.8, 0.7, 0.74, 0.69, 0.76, 0.70]  # falls of .1, .06, .11, .04, .1
    assert steps(watch(), [(g, 0.5 + 0.1 * i, 0.5) for i, g in enumerate(gold)]) == [(2, "a"), (6, "a")]
    a = [0.5, 0.6, 0.53, 0.56, 0.52, 0.54, 0.55]  # rises of .1, .03, .06, .02 (over), .04, .05
    one = watch()
    found = steps(one, [(0.9 if not i else 0.5, value, 0.5) for i, value in enumerate(a)])
    assert found == [(2, "a"), (7, "a")]
    assert one.active == ("a",)
    assert steps(one, [(0.95, 0.99, 0.5)], start=8) == []  # a new best of gold ends it
    assert one.active == ()


def test_what_falls_together_is_no_over_optimisation():
    assert steps(watch(), [(0.9 - 0.1 * i, 0.9 - 0.1 * i, 0.5) for i in range(9)]) == []


def drawn(rng, chance, count=64):
    """Mean and standard error of independent rollouts of a 0/1 reward."""
    mean = rng.binomial(count, chance) / count
    return mean, math.sqrt(mean * (1 - mean) / (count - 1))


def told_at(rng, golds, proxies, **options):
    """Step of the first alarm, by the defaults of a spec's gold."""
    one = OveroptimisationWatch(["a"], **({"window": 5, "drop": 0.05, "rise": 0.02} | options))
    for step, (gold, proxy) in enumerate(zip(golds, proxies, strict=True)):
        (mean, error), (a, a_error) = drawn(rng, gold), drawn(rng, proxy)
        if one.observe(step, mean, {"a": a}, {"a": a_error}, error):
            return step
    return None


@pytest.mark.parametrize(
    ("slope", "readings", "runs"), [(0.0, 200, 200), (0.002, 200, 200), (0.0002, 2500, 5)], ids=["no", "yes", "long"]
)
def test_gold_that_does_not_change_is_hardly_ever_told_to_fall(slope, readings, runs):
    """In at most 5% of runs of 200 readings of 64 rollouts, whether or not the objective rises; so in long runs."""
    rng = np.random.default_rng(0)
    proxies = [0.4 + slope * step for step in range(readings)]
    alarms = sum(told_at(rng, [0.5] * readings, proxies) is not None for _ in range(runs))
    assert alarms <= 0.05 * runs


def test_gold_that_falls_while_the_objective_rises_is_seen():
    """.6 -> .3 within 100 readings after 20 good ones: told before the end in 95% of runs."""
    rng = np.random.default_rng(0)
    golds = [0.6] * 20 + [0.6 - 0.003 * step for step in range(100)]
    proxies = [0.4] * 20 + [0.4 + 0.003 * step for step in range(100)]
    told = [told_at(rng, golds, proxies) for _ in range(100)]
    assert sum(step is not None for step in told) >= 95
    assert sum(step is not None and step < 20 for step in told) == 0


def test_what_is_told_has_its_errors():
    one = watch()
    one.observe(1, 0.9, {"a": 0.4, "b": 0.5}, {"a": 0.03, "b": None}, 0.03)
    (found,) = one.observe(2, 0.5, {"a": 0.7, "b": 0.5}, {"a": 0.04, "b": None}, 0.04)
    assert (found.rise_error, found.fall_error) == pytest.approx((0.05, 0.05))
    assert "fell from 0.90 to 0.50 (standard errors 0.05 and 0.05); it was" in found.describe()
    assert one.observe(3, 0.84, {"a": 0.46, "b": 0.5}, {"a": 0.04, "b": None}, 0.04) == []
    assert one.active == ("a",)  # within the errors, and not within half of the thresholds


def test_a_checkpoint_of_levels_without_errors_goes_on():
    one, other = watch(), watch()
    for step, (gold, a) in enumerate([(0.8, 0.4), (0.7, 0.42)]):
        one.observe(step, gold, {"a": a, "b": 0.5})
    state = one.state_dict()
    state["recent"] = [{"gold": 0.7, "proxies": {"a": 0.42, "b": 0.5}}]
    state["best"] = {"step": 0, "gold": 0.8, "levels": {"a": 0.4, "b": 0.5}}
    other.load_state_dict(state)
    assert steps(other, [(0.6, 0.5, 0.5)], start=2) == steps(one, [(0.6, 0.5, 0.5)], start=2) == [(2, "a")]


def test_a_single_outlier_is_averaged_away():
    readings = [(0.6, 0.5 + 0.02 * i, 0.5) for i in range(12)]
    readings[6] = (0.35, 0.62, 0.5)
    assert steps(watch(window=5), readings) == []
    assert steps(watch(window=1), readings) == [(7, "a")]


def test_an_objective_that_did_not_apply_has_no_reading():
    one = watch()
    assert steps(one, [(0.8, None, 0.5), (0.5, 0.9, 0.5), (0.5, None, None), (0.5, 0.94, 0.9)]) == [(4, "b")]
    assert one.trends() == {"a": None, "b": pytest.approx(-0.5)}


def test_an_objective_without_a_reading_at_the_best_is_compared_with_its_first_one_after_it():
    readings = [(0.9, None, 0.5), (0.7, 0.3, 0.5), (0.5, 0.6, 0.5), (0.3, 0.95, 0.5)]
    one = watch()
    assert steps(one, readings) == [(3, "a")]
    assert one.active == ("a",)
    assert steps(one, [(0.95, 0.97, 0.5), (0.5, 0.98, 0.5)], start=5) == []  # compared with the new best's reading


def test_a_reading_without_the_objective_does_not_end_it():
    one = watch()
    values = [0.3, 0.5, None, 0.5, None, 0.5]
    assert steps(one, [(0.7 if i else 0.9, a, 0.5) for i, a in enumerate(values)]) == [(2, "a")]
    assert steps(one, [(0.86, None, 0.5)], start=7) == []  # gold is back
    assert one.active == ()
    assert steps(one, [(0.7, 0.5, 0.5)], start=8) == [(8, "a")]


@given(readings=READINGS, window=st.integers(1, 4))
def test_it_begins_only_where_gold_fell_and_the_objective_rose(readings, window):
    one = watch(window=window)
    before: tuple[str, ...] = ()
    best = -math.inf
    for step, (gold, a, b) in enumerate(readings, start=1):
        began = one.observe(step, gold, {"a": a, "b": b})
        if step >= window:
            level = math.fsum(row[0] for row in readings[step - window : step]) / window
            best = max(best, level)
        for found in began:
            assert step >= window
            assert found.objective not in before
            assert found.gold_best == pytest.approx(best)
            assert found.gold_now == pytest.approx(level)
            assert found.gold_best - found.gold_now >= 0.1 - 1e-6
            assert found.now - found.before >= 0.05 - 1e-6
        before = one.active


@given(readings=READINGS)
def test_gold_that_only_rises_tells_nothing(readings):
    rising = sorted(row[0] for row in readings)
    assert steps(watch(), [(g, a, b) for g, (_, a, b) in zip(rising, readings, strict=True)]) == []


@given(readings=READINGS, cut=st.integers(0, 30), window=st.integers(1, 4))
def test_a_resumed_watch_tells_what_an_undisturbed_one_would(readings, cut, window):
    whole, first, second = watch(window=window), watch(window=window), watch(window=window)
    expected = steps(whole, readings)
    told = steps(first, readings[:cut])
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert told + steps(second, readings[cut:], start=len(readings[:cut]) + 1) == expected
    assert second.state_dict() == whole.state_dict()


def test_the_state_of_other_objectives_is_refused():
    with pytest.raises(ValueError, match="the checkpoint watches a, b, not c"):
        OveroptimisationWatch(["c"], window=1, drop=0.1, rise=0.1).load_state_dict(watch().state_dict())


def test_the_rank_correlation_is_that_of_the_books():
    """Kendall's example of ten people's IQ and hours of television: rho = -29 / 165."""
    iq = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110]
    hours = [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    assert rank_correlation(iq, hours) == pytest.approx(-29 / 165)
    assert rank_correlation([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))  # a tie
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    assert rank_correlation([1.0, None], [1.0, 2.0]) is None
    assert rank_correlation([1.0, None, 3.0, 2.0], [1.0, 2.0, None, 5.0]) == pytest.approx(1.0)


@given(pairs=st.lists(st.tuples(SHARES, SHARES), min_size=2, max_size=20))
def test_the_rank_correlation_reads_only_the_order(pairs):
    one, other = (list(column) for column in zip(*pairs, strict=True))
    found = rank_correlation(one, other)
    stretched = rank_correlation([math.exp(3 * x) for x in one], other)
    assert (found is None) == (stretched is None)
    if found is not None:
        assert -1 <= found <= 1
        assert stretched == pytest.approx(found)
        assert rank_correlation(one, [-x for x in other]) == pytest.approx(-found)


@given(pairs=st.lists(st.tuples(SHARES, SHARES), min_size=3, max_size=20))
def test_the_trend_is_the_correlation_of_all_readings(pairs):
    one = watch()
    for step, (gold, a) in enumerate(pairs):
        one.observe(step, gold, {"a": a, "b": gold})
    golds, proxies = [gold for gold, _ in pairs], [a for _, a in pairs]
    means = math.fsum(golds) / len(golds), math.fsum(proxies) / len(proxies)
    xx, yy = (math.fsum((v - m) ** 2 for v in vs) for vs, m in zip((golds, proxies), means, strict=True))
    xy = math.fsum((g - means[0]) * (p - means[1]) for g, p in pairs)
    found = one.trends()["a"]
    if xx < 1e-9 or yy < 1e-9:
        assert found is None or abs(found) <= 1
    else:
        assert found == pytest.approx(xy / math.sqrt(xx * yy), abs=1e-6)
