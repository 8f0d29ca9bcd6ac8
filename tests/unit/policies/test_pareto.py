"""Hypervolume and dominance against definitions written out, and the archive that rests on them."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.figures import front_document
from policies import pareto
from policies.pareto import Archive, Point, hypervolume, nondominated, normalise

RANGES = {"accuracy": (0.0, 1.0), "tokens": (-200.0, 0.0)}
COORDINATE = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.25, 0.5, 1.0]))  # ties are the difficult part


@st.composite
def point_sets(draw, max_points=5):
    objectives = draw(st.integers(1, 4))
    rows = draw(st.lists(st.lists(COORDINATE, min_size=objectives, max_size=objectives), max_size=max_points))
    return np.array(rows, dtype=np.float64).reshape(len(rows), objectives)


def inclusion_exclusion(points):
    """Of the boxes from 0 to each point: a set of boxes meets in the box to their smallest coordinates."""
    subsets = itertools.chain.from_iterable(itertools.combinations(points, size) for size in range(1, len(points) + 1))
    return math.fsum((-1) ** (len(subset) + 1) * math.prod(np.min(subset, axis=0)) for subset in subsets)


def point(step, accuracy, tokens=-100.0, **fields):
    return Point(step=step, objectives={"accuracy": accuracy, "tokens": tokens}, mean_tokens=-tokens, **fields)


def archive_of(*points):
    archive = Archive(RANGES)
    growth = [archive.add(one) for one in points]
    return archive, growth


@pytest.mark.parametrize(
    ("points", "volume"),
    [
        ([[0.3], [0.7]], 0.7),
        ([[0.5, 0.8], [0.9, 0.2]], 0.5 * 0.8 + 0.4 * 0.2),
        ([[1.0, 1.0, 1.0]], 1.0),
        ([[0.5, 0.5, 0.5], [1.0, 0.2, 0.1]], 0.125 + 0.02 - 0.5 * 0.2 * 0.1),
        ([[0.9, 0.0]], 0.0),  # on the corner's own plane
        ([[0.0, 0.0], [0.0, 0.0]], 0.0),
    ],
)
def test_hypervolume_by_hand(points, volume):
    assert hypervolume(np.array(points)) == pytest.approx(volume, abs=1e-12)


def test_the_box_above_the_references_is_measured_from_them():
    """tokens -150 is .25 of its range, so that -100, at .5, is a third of what is left above it."""
    archive = Archive(RANGES, {"tokens": -150.0})
    archive.add(point(0, 0.4, -100.0))
    archive.add(point(1, 0.0, -180.0))
    archive.add(point(2, 1.0, 0.0))
    box_NK = archive.above_reference(archive.points)
    assert box_NK == pytest.approx(np.array([[0.4, 1 / 3], [0.0, 0.0], [1.0, 1.0]]))


def test_no_points_no_volume():
    assert hypervolume(np.zeros((0, 3))) == 0
    assert nondominated(np.zeros((0, 3))).tolist() == []


@settings(max_examples=150, deadline=None)
@given(points=point_sets())
def test_hypervolume_is_inclusion_exclusion(points):
    assert hypervolume(points) == pytest.approx(inclusion_exclusion(points), abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(points=point_sets(max_points=8))
def test_nondominated_is_its_definition(points):
    def beaten(i):
        return any(
            (other >= points[i]).all() and ((other > points[i]).any() or j < i)
            for j, other in enumerate(points)
            if j != i
        )

    assert nondominated(points).tolist() == [not beaten(i) for i in range(len(points))]


@settings(max_examples=80, deadline=None)
@given(points=point_sets(max_points=8))
def test_the_front_alone_has_the_whole_volume(points):
    assert hypervolume(points[nondominated(points)]) == pytest.approx(hypervolume(points), abs=1e-9)


def test_normalise_maps_ranges_and_clips():
    """Trap 2: in raw units the volume would follow the tokens alone."""
    ranges = [(0.0, 1.0), (-200.0, 0.0), (2.0, 4.0)]
    np.testing.assert_allclose(normalise([0.25, -50.0, 3.0], ranges), [0.25, 0.75, 0.5])
    np.testing.assert_allclose(normalise([-1.0, 10.0, 2.0], ranges), [0.0, 1.0, 0.0])


def test_growth_is_the_gain_in_volume():
    archive, growth = archive_of(point(0, 0.5), point(5, 0.8), point(10, 0.4, -150.0), point(15, 0.4, -20.0))
    assert growth == pytest.approx([0.25, 0.15, 0.0, 0.4 * 0.4])
    assert archive.hypervolume == pytest.approx(0.8 * 0.5 + 0.4 * 0.4)
    assert [one.step for one in archive.front] == [5, 15]


def test_the_same_step_again_replaces_its_point():
    """A resumed run evaluates a step a second time: its first point must not count, nor spoil the growth."""
    archive, _ = archive_of(point(0, 0.5), point(5, 0.9))
    assert archive.add(point(5, 0.7)) == pytest.approx(0.2 * 0.5)
    assert [(one.step, one.objectives["accuracy"]) for one in archive.points] == [(0, 0.5), (5, 0.7)]
    assert archive.hypervolume == pytest.approx(0.35)


def test_points_stand_in_the_order_of_steps():
    archive, _ = archive_of(point(10, 0.7), point(0, 0.5), point(5, 0.6))
    assert [one.step for one in archive.points] == [0, 5, 10]
    assert archive.hypervolume_base == pytest.approx(0.25)


def test_a_collapsed_point_is_kept_but_never_on_the_front():
    archive, growth = archive_of(point(0, 0.5), point(5, 0.9, -10.0, collapsed=True))
    assert growth[1] == 0
    assert [one.step for one in archive.front] == [0]
    assert [one.step for one in archive.points] == [0, 5]
    assert archive.hypervolume == pytest.approx(0.25)
    assert archive.hypervolume_by_step() == [(0, pytest.approx(0.25))]


def test_of_equal_points_the_first_is_on_the_front():
    archive, growth = archive_of(point(0, 0.5), point(5, 0.5))
    assert growth[1] == 0
    assert [one.step for one in archive.front] == [0]


def test_volumes_of_the_base_and_over_it():
    """Over the base counts only what is better in every objective, as a share of the room above it."""
    archive, _ = archive_of(point(0, 0.5, -100.0))
    assert archive.hypervolume_base == pytest.approx(0.25)
    assert archive.hypervolume_over_base == 0
    archive.add(point(5, 1.0, -150.0))  # better in one, worse in the other
    assert archive.hypervolume_over_base == 0
    archive.add(point(10, 0.75, -50.0))
    assert archive.hypervolume_over_base == pytest.approx(0.5 * 0.5)
    archive.add(point(15, 1.0, 0.0))
    assert archive.hypervolume_over_base == pytest.approx(1)
    assert archive.hypervolume_base == pytest.approx(0.25)


def test_a_base_at_the_top_of_a_range_leaves_nothing_above_it():
    archive, _ = archive_of(point(0, 1.0), point(5, 1.0, -50.0))
    assert archive.hypervolume_over_base == pytest.approx(0, abs=1e-9)


def test_an_empty_archive_has_no_volume():
    archive = Archive(RANGES)
    assert (archive.hypervolume, archive.hypervolume_base, archive.hypervolume_over_base) == (0, 0, 0)
    assert archive.front == []
    assert archive.hypervolume_by_step() == []


def test_other_objectives_are_refused():
    with pytest.raises(ValueError, match="accuracy"):
        Archive(RANGES).add(Point(step=0, objectives={"accuracy": 0.5}, mean_tokens=1.0))


@settings(max_examples=80, deadline=None)
@given(values=st.lists(st.tuples(COORDINATE, COORDINATE, COORDINATE, st.booleans()), min_size=1, max_size=10))
def test_volume_by_step_never_falls(values):
    archive = Archive(dict.fromkeys("abc", (0.0, 1.0)))
    growth = [
        archive.add(Point(step=i, objectives=dict(zip("abc", row, strict=False)), mean_tokens=1, collapsed=row[3]))
        for i, row in enumerate(values)
    ]
    volumes = [volume for _, volume in archive.hypervolume_by_step()]
    assert volumes == sorted(volumes)
    assert min(growth) >= 0
    assert sum(growth) == pytest.approx(archive.hypervolume, abs=1e-9)
    if volumes:
        assert volumes[-1] == pytest.approx(archive.hypervolume, abs=1e-9)


def test_state_round_trip_through_json():
    archive, _ = archive_of(point(0, 0.5), point(5, 0.9, -30.0, collapsed=True), point(10, 0.6, extra={"weights": [1]}))
    other = Archive({})
    other.load_state_dict(json.loads(json.dumps(archive.state_dict())))
    assert other.points == archive.points
    assert other.ranges == RANGES
    assert other.hypervolume == archive.hypervolume
    assert other.add(point(15, 0.95, -10.0)) == archive.add(point(15, 0.95, -10.0))


def sphere(points, objectives):
    """Of which none dominates another."""
    rows_NK = np.random.default_rng(0).random((points, objectives))
    return rows_NK / np.linalg.norm(rows_NK, axis=1, keepdims=True)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_volume_is_computed_once(monkeypatch, resumed):
    """A job of thousands of evaluations tells of each: with every volume anew its GPUs would wait for hours."""
    archive = Archive(dict.fromkeys("abc", (0.0, 1.0)))
    for step, row_K in enumerate(sphere(60, 3).tolist()):
        archive.add(Point(step=step, objectives=dict(zip("abc", row_K, strict=True)), mean_tokens=1.0))
    anew = Archive(archive.ranges)
    anew.points = archive.points
    by_step = anew.hypervolume_by_step()
    if resumed:
        state = json.loads(json.dumps(archive.state_dict()))
        archive = Archive({})
        archive.load_state_dict(state)
    computed = []
    real = pareto.hypervolume
    monkeypatch.setattr(pareto, "hypervolume", lambda *args: computed.append(args) or real(*args))
    assert front_document(archive, set())["hypervolume_by_step"] == [list(pair) for pair in by_step]
    assert len(computed) == 2, "from the base and over it"
    archive.add(replace(archive.points[30], step=30))
    assert archive.hypervolume_by_step() == by_step


@pytest.mark.parametrize(("points", "exact"), [(50, True), (151, False)])
def test_exact_volumes_that_take_long_are_approximated(points, exact):
    """300 points in 7 objectives take seconds, and more points minutes. Those that another dominates are quick."""
    points_NK = sphere(points, 7)
    points_NK = np.concatenate([points_NK, points_NK / 2, points_NK / 3])
    assert hypervolume(points_NK) == hypervolume(points_NK, exact=exact)


def test_a_front_in_as_many_objectives_as_a_spec_may_have_has_a_volume():
    from orchestrator.spec import MAX_OBJECTIVES

    points_NK = np.random.default_rng(0).uniform(0.4, 0.9, size=(5, MAX_OBJECTIVES))
    assert 0 < hypervolume(points_NK) < 1


DOWN = {"tokens": {"better": "smaller", "target": None}}


def test_where_smaller_is_better_the_front_and_its_volume_are_turned():
    archive = Archive({"accuracy": (0.0, 1.0), "tokens": (0.0, 1000.0)}, directions=DOWN)
    for step, (accuracy, tokens) in enumerate([(0.6, 900.0), (0.6, 700.0), (0.59, 390.0), (0.595, 300.0)]):
        archive.add(Point(step=step, objectives={"accuracy": accuracy, "tokens": tokens}, mean_tokens=tokens))
    assert [found.step for found in archive.front] == [1, 3]
    assert archive.corner == {"accuracy": 0.0, "tokens": 1000.0}
    assert archive.hypervolume == pytest.approx(0.6 * 0.3 + 0.595 * (0.7 - 0.3))
    assert [found.objectives["tokens"] for found in archive.points] == [900.0, 700.0, 390.0, 300.0]


def test_a_state_of_before_directions_keeps_none_of_the_collapses_that_were_seen_the_wrong_way():
    old, _ = archive_of(point(0, 0.5), point(5, 0.5, -150.0, collapsed=True))
    state = {key: value for key, value in old.state_dict().items() if key != "directions"}
    turned, same = Archive(RANGES, directions=DOWN), Archive(RANGES)
    for archive in (turned, same):
        archive.load_state_dict(json.loads(json.dumps(state)))
    assert [found.step for found in turned.front] == [5]
    assert [found.step for found in same.front] == [0]


def test_points_count_with_what_is_left_after_the_gates_where_all_of_them_say_it():
    archive, _ = archive_of(
        point(0, 0.22, -10.0, counted={"accuracy": 0.22, "tokens": -160.0}),
        point(5, 0.44, -150.0, counted={"accuracy": 0.44, "tokens": -150.0}),
    )
    assert [found.step for found in archive.front] == [5]
    archive.add(point(10, 0.3, -190.0))  # of an older version
    assert [found.step for found in archive.front] == [0, 5]
