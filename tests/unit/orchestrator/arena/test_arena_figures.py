"""Figures of one run, by hand; and attainment over seeds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.arena.attainment import attainment_stairs
from orchestrator.arena.comparison import rank_correlation
from orchestrator.arena.results import Run
from orchestrator.arena.run_figures import RunFigures, union_hypervolume
from tests.arena_records import record

PAIR = ("a", "b")


def run(
    validation: list[tuple[int, float, float, bool]], test: list[tuple[int, float, float]], **more: object
) -> RunFigures:
    """A run of two objectives in ranges [0, 10] and [0, 1], measured from 2 and 0, from (step, a, b, on front)."""
    stderr = more.pop("stderr", {})
    whole = record(objectives=PAIR) | {
        "objectives": {"a": {"range": [0.0, 10.0], "reference": 2.0}, "b": {"range": [0.0, 1.0], "reference": None}},
        "validation": [{"step": s, "objectives": {"a": a, "b": b}, "on_front": on, "hypervolume": 0.1 * i}
                       for i, (s, a, b, on) in enumerate(validation)],
        "test": [{"step": s, "objectives": {"a": a, "b": b}, "stderr": stderr, "prompts": 500}
                 for s, a, b in test],
        "chosen_step": test[-1][0],
    }  # fmt: skip
    return RunFigures(Run.model_validate(whole | more))


THREE = [(0, 2.0, 0.2, False), (10, 4.0, 0.8, True), (20, 8.0, 0.5, True)]


def test_hypervolume_of_the_test_front_by_hand() -> None:
    """From the corner (.2, 0) in a box of .8 x 1: (.6 - .2) * .5 + (.4 - .2) * (.9 - .5) = .28, and .28 / .8 = .35."""
    found = run(THREE, [(0, 9.9, 0.99), (10, 4.0, 0.9), (20, 6.0, 0.5)])
    assert found.hypervolume == pytest.approx(0.35)
    assert len(found.front_NK) == 2  # validation did not keep step 0, whatever the test says of it


def test_the_standard_error_of_a_hypervolume_by_hand() -> None:
    """One point (.6, .5), errors .1 and .1: a box of .4 x .5 changes by .1 * .5 and .4 * .1, in a whole of .8."""
    found = run(THREE, [(20, 6.0, 0.5)], stderr={"a": 1.0, "b": 0.1})
    assert found.hypervolume_error == pytest.approx(np.hypot(0.05, 0.04) / 0.8)


def test_the_standard_error_is_what_resampling_finds() -> None:
    """Two points of a front, the errors of an objective shared by its checkpoints."""
    tested = [(10, 4.0, 0.9), (20, 6.0, 0.5)]
    found = run(THREE, tested, stderr={"a": 0.2, "b": 0.01})
    rng = np.random.default_rng(0)
    drawn = [
        run(THREE, [(s, a + 0.2 * shift_a, b + 0.01 * shift_b) for s, a, b in tested]).hypervolume
        for shift_a, shift_b in rng.standard_normal((2000, 2))
    ]
    assert found.hypervolume_error == pytest.approx(np.std(drawn), rel=0.08)


def test_noise_adds_to_the_volume_of_several_points() -> None:
    """The better of two that are equal but for normal errors is sd / sqrt(pi) above them; one alone is not above."""
    twice = run(THREE, [(10, 6.0, 0.5), (20, 6.0, 0.5)], stderr={"b": 0.05})
    assert twice.noise_gain == pytest.approx(0.5 * 0.05 / np.sqrt(np.pi), rel=0.25)
    assert run(THREE, [(20, 6.0, 0.5)], stderr={"b": 0.05}).noise_gain == pytest.approx(0.0, abs=1e-9)


def test_runs_that_tell_no_errors_have_none() -> None:
    assert run(THREE, [(20, 6.0, 0.5)]).hypervolume_error is None
    assert run(THREE, [(20, 6.0, 0.5)]).noise_gain is None


def test_values_outside_the_range_are_clipped() -> None:
    assert run(THREE, [(20, 50.0, 3.0)]).hypervolume == pytest.approx(1.0)


def test_area_counts_what_was_reached_until_then() -> None:
    """Volumes 0, .1, .2 at steps 0, 10, 20 of 40: (10 * 0 + 10 * .1 + 20 * .2) / 40."""
    assert run(THREE, [(20, 6.0, 0.5)], steps=40).area == pytest.approx(0.125)


def test_worst_and_calibration_by_hand() -> None:
    found = run(THREE, [(20, 6.0, 0.5)], preference={"a": 3.0, "b": 1.0}, weights=[[1.0, 0.0], [0.0, 1.0]])
    assert found.worst == pytest.approx(0.5)
    moved, asked = np.array([0.6, 0.3]), np.array([0.75, 0.25])  # validation, from step 0 to 20
    assert found.outcome_calibration == pytest.approx(moved @ asked / np.linalg.norm(moved) / np.linalg.norm(asked))
    assert found.weight_calibration == pytest.approx(0.75)  # (.5, .5) is .25 away from (.75, .25)


def test_nothing_moved_has_no_calibration() -> None:
    found = run([(0, 2.0, 0.2, True)], [(0, 2.0, 0.2)], weights=[])
    assert found.outcome_calibration is None
    assert found.weight_calibration is None


def test_reaching_a_volume_or_not() -> None:
    found = run(THREE, [(20, 6.0, 0.5)], step_seconds=[2.0] * 20)
    assert found.reached(0.1) == 10
    assert found.seconds_until(10) == 20.0
    assert found.reached(0.21) is None


def test_reaching_a_volume_between_evaluations() -> None:
    """Volumes 0, .1, .2 at steps 0, 10, 20."""
    found = run(THREE, [(20, 6.0, 0.5)])
    reached = [found.reached_between(volume) for volume in (0.0, 0.05, 0.1, 0.19, 0.2, 0.21)]
    assert reached[:-1] == pytest.approx([0, 5, 10, 19, 20])
    assert reached[-1] is None


def test_points_of_the_front_that_were_not_tested_are_counted() -> None:
    assert run(THREE, [(10, 4.0, 0.9), (20, 6.0, 0.5)]).untested == 0
    assert run(THREE, [(20, 6.0, 0.5)]).untested == 1


def test_union_is_chosen_on_validation() -> None:
    """The second run's point is dominated on validation, so that its lucky test values do not count."""
    first = run([(20, 8.0, 0.8, True)], [(20, 6.0, 0.5)])
    lucky = run([(20, 7.0, 0.7, True)], [(20, 10.0, 1.0)])
    assert union_hypervolume([first, lucky]) == pytest.approx(first.hypervolume)
    other = run([(20, 4.0, 0.9, True)], [(20, 4.0, 0.9)])
    assert union_hypervolume([first, other]) == pytest.approx(0.35)


def test_rank_correlation_is_scipys() -> None:
    """scipy.stats.spearmanr([1, 2, 2, 4, 5], [3, 1, 2, 5, 5])."""
    found = rank_correlation(np.array([1.0, 2, 2, 4, 5]), np.array([3.0, 1, 2, 5, 5]))
    assert found == pytest.approx(0.6315789473684211)
    assert rank_correlation(np.ones(3), np.arange(3.0)) is None


def test_attainment_by_hand() -> None:
    fronts = [np.array([[0.2, 0.8], [0.5, 0.5]]), np.array([[0.3, 0.6]]), np.array([[0.4, 0.4]])]
    edges = attainment_stairs(fronts, 0, 1)
    assert np.array(edges["any"]) == pytest.approx(
        np.array([(0, 0.8), (0, 0.8), (0.2, 0.8), (0.2, 0.6), (0.3, 0.6), (0.3, 0.5), (0.5, 0.5), (0.5, 0)])
    )
    corners = {(round(x, 6), round(y, 6)) for x, y in edges["median"]}
    assert {(0.2, 0.6), (0.3, 0.5), (0.4, 0.4)} <= corners
    assert np.array(edges["every"][-2:]) == pytest.approx(np.array([(0.3, 0.4), (0.3, 0)]))


def test_a_seed_without_a_front_attains_nothing() -> None:
    edges = attainment_stairs([np.array([[0.5, 0.5]]), np.empty((0, 2))], 0, 1)
    assert edges["every"] == [(0.0, 0.0), (0.0, 0.0)]
    assert max(edges["any"]) == pytest.approx((0.5, 0.5))
    assert attainment_stairs([np.empty((0, 2))], 0, 1) == {}


front = st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)), min_size=1, max_size=6).map(np.array)


@settings(max_examples=50, deadline=None)
@given(st.lists(front, min_size=1, max_size=5))
def test_bands_are_nested_and_fall(fronts: list[np.ndarray]) -> None:
    edges = attainment_stairs(fronts, 0, 1)

    def height(name: str, x: float) -> float:
        return max((y for at, y in edges[name] if at >= x), default=0.0)

    for x in np.linspace(0.005, 0.995, 23):
        heights = [height(name, x) for name in ("every", "median", "any")]
        assert heights == sorted(heights)
        by_seed = [max((p[1] for p in one if p[0] >= x), default=0.0) for one in fronts]
        assert heights[0] == pytest.approx(min(by_seed), abs=1e-9)
        assert heights[2] == pytest.approx(max(by_seed), abs=1e-9)
