"""Intervals, tests and Holm's correction, held against SciPy 1.17 and a textbook's example."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.arena.statistics import bootstrap_interval, holm, mean_over, paired, t_quantile, t_tail

DIFFERENCES = [0.021, 0.034, -0.004, 0.018, 0.027]
SEEDS = dict(enumerate(DIFFERENCES))
ZEROS = dict.fromkeys(range(5), 0.0)

values = st.lists(st.floats(-1, 1), min_size=2, max_size=12)
p_values = st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=12)


@pytest.mark.parametrize(("t", "degrees", "p"), [
    (0.5, 1, 0.7048327646991335), (2.2, 2, 0.15880897580794018), (1.7, 3, 0.18769064155341003),
    (3.1, 4, 0.03622111103743915), (2.5, 7, 0.04099221858575289), (-4.0, 9, 0.0031104283103858543),
])  # fmt: skip
def test_t_tail_is_scipys(t: float, degrees: int, p: float) -> None:
    assert t_tail(t, degrees) == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 12.70620474), (4, 2.77644511), (9, 2.26215716)])
def test_t_quantile_is_scipys(degrees: int, quantile: float) -> None:
    assert t_quantile(degrees) == pytest.approx(quantile, rel=1e-8)


def test_paired_differences_are_scipys() -> None:
    """scipy.stats.ttest_1samp, and scipy.stats.bootstrap with method percentile and 200,000 resamples.

    Resampled means of five values lie on a lattice, here 0.0006 apart near the ends: both may stop at neighbours.
    """
    found = paired(SEEDS, ZEROS)
    assert found is not None
    assert found.p == pytest.approx(0.0402017302067935, rel=1e-9)
    assert found.t_interval == pytest.approx((0.0013917503682042663, 0.037008249631795734), rel=1e-7)
    assert found.interval == pytest.approx((0.0066, 0.0288), abs=6.1e-4)
    assert found.above
    assert not found.below


def test_bootstrap_of_two_values_by_hand() -> None:
    """Means of two draws of {0, 1} are 0, 1/2, 1 with chances 1/4, 1/2, 1/4, so both ends lie at the values."""
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)


def test_one_seed_has_no_interval() -> None:
    found = paired({3: 0.5}, {3: 0.4})
    assert found is not None
    assert (found.interval, found.t_interval, found.p) == (None, None, None)
    assert not found.above
    assert not found.below
    assert mean_over({3: 0.5}).interval is None  # type: ignore[union-attr]


def test_seeds_of_one_side_are_dropped_and_told() -> None:
    found = paired({0: 1.0, 1: 2.0, 4: 9.0}, {0: 0.5, 1: 1.5, 2: 7.0})
    assert found is not None
    assert found.seeds == (0, 1)
    assert found.dropped == (2, 4)
    assert found.mean == 0.5
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_same_runs_do_not_differ_and_a_constant_shift_does() -> None:
    same, shifted = paired(SEEDS, SEEDS), paired({s: v + 0.01 for s, v in SEEDS.items()}, SEEDS)
    assert same is not None
    assert shifted is not None
    assert (same.mean, same.p) == (0.0, 1.0)
    assert shifted.p == 0.0


def test_holm_by_hand() -> None:
    """Sorted .005 .01 .03 .04 times 4, 3, 2, 1; the last is lifted to the one before it."""
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})


@settings(deadline=None)
@given(p_values)
def test_holm_lies_between_the_plain_p_and_bonferronis(ps: dict[str, float]) -> None:
    adjusted = holm(ps)
    assert list(adjusted) == list(ps)
    for name, p in ps.items():
        assert p <= adjusted[name] <= 1
    smallest = min(ps, key=lambda name: ps[name])
    assert adjusted[smallest] == min(1.0, len(ps) * ps[smallest])
    order = sorted(ps, key=lambda name: ps[name])
    assert all(adjusted[a] <= adjusted[b] for a, b in itertools.pairwise(order))


@settings(max_examples=50, deadline=None)
@given(values, st.floats(-5, 5))
def test_intervals_move_with_the_values(told: list[float], shift: float) -> None:
    low, high = bootstrap_interval(told) or (math.nan, math.nan)
    assert min(told) - 1e-9 <= low <= high <= max(told) + 1e-9
    moved = bootstrap_interval([value + shift for value in told])
    assert moved == pytest.approx((low + shift, high + shift), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.integers(0, 9), st.floats(-1, 1), min_size=2),
    st.dictionaries(st.integers(0, 9), st.floats(-1, 1)),
)
def test_differences_change_sign_with_the_sides(one: dict[int, float], other: dict[int, float]) -> None:
    found, turned = paired(one, other), paired(other, one)
    if found is None or turned is None:
        assert not set(one) & set(other)
        return
    assert found.mean == pytest.approx(-turned.mean, abs=1e-12)
    assert found.above == turned.below
    if found.p is not None:
        assert found.p == pytest.approx(turned.p, abs=1e-9)
