"""Places in a range: which way an objective is better."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.places import Scale, counted_values, read_scales

LARGER = Scale(low=0.0, high=1000.0)
SMALLER = Scale(low=0.0, high=1000.0, better="smaller")
NEARER = Scale(low=0.0, high=1000.0, better="nearer", target=400.0)


@pytest.mark.parametrize(
    ("scale", "places", "worst"),
    [
        (LARGER, {-5: 0.0, 0: 0.0, 400: 0.4, 1000: 1.0, 2000: 1.0}, 0.0),
        (SMALLER, {-5: 1.0, 0: 1.0, 400: 0.6, 1000: 0.0, 2000: 0.0}, 1000.0),
        (NEARER, {0: 1 / 3, 400: 1.0, 700: 0.5, 1000: 0.0, 2000: 0.0}, 1000.0),
        (Scale(low=0.0, high=1.0, better="nearer", target=3.0), {0: 0.0, 0.5: 0.5, 1: 1.0, 3: 1.0}, 0.0),
        (Scale(low=2.0, high=6.0, better="nearer", target=3.0), {2: 2 / 3, 3: 1.0, 4.5: 0.5, 6: 0.0}, 6.0),
        (Scale(low=2.0, high=6.0, better="nearer", target=5.0), {2: 0.0, 5: 1.0, 6: 2 / 3}, 2.0),
    ],
)
def test_places_by_hand(scale, places, worst):
    assert {value: scale.place(value) for value in places} == pytest.approx(places)
    assert scale.worst == worst
    assert scale.place(scale.worst) == 0


@given(value=st.floats(-10, 10), target=st.floats(-10, 10), better=st.sampled_from(["larger", "smaller", "nearer"]))
def test_places_lie_in_the_unit_interval(value, target, better):
    scale = Scale(low=-2.0, high=3.0, better=better, target=target if better == "nearer" else None)
    assert 0 <= scale.place(value) <= 1
    assert read_scales({"a": [-2, 3]}, {"a": scale.direction}) == {"a": scale}


def test_a_document_without_directions_is_of_a_time_when_larger_was_better():
    assert read_scales({"a": [0, 1000]}, None) == {"a": LARGER}


def test_nothing_is_measured_from_where_nothing_is_better():
    assert (LARGER.corner(None), LARGER.corner(300.0)) == (0.0, 300.0)
    assert (SMALLER.corner(0.0), SMALLER.corner(300.0)) == (1000.0, 300.0)


def test_raw_and_gated_means_are_never_mixed():
    old, new = {"objectives": {"a": 0.9}}, {"objectives": {"a": 0.8}, "counted": {"a": 0.1}}
    assert counted_values([new]) == [{"a": 0.1}]
    assert counted_values([old, new]) == [{"a": 0.9}, {"a": 0.8}]
