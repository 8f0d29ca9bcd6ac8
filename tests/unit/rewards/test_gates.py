"""Gates: what counts is the raw reward of the other objective, whatever the order."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.gates import Gates

SCORES = {"accuracy": [1.0, 0.0, 0.5], "brevity": [0.9, 0.8, -0.7], "clarity": [0.3, 0.4, 0.5]}


def test_no_gates_leave_the_scores() -> None:
    assert Gates({}).apply(SCORES) == SCORES


def test_a_gate_zeroes_where_the_other_stays_below() -> None:
    gated = Gates({"clarity": ("accuracy", 1.0)}).apply(SCORES)
    assert gated == {**SCORES, "clarity": [0.3, 0.0, 0.0]}


def test_failing_a_gate_is_never_the_better_choice() -> None:
    """A penalty of -0.7 that passes would else be worse than a failure's 0."""
    assert Gates({"brevity": ("accuracy", 0.5)}).apply(SCORES)["brevity"] == [0.9, -0.7, -0.7]
    assert Gates({"brevity": ("clarity", 9.0)}).apply(SCORES)["brevity"] == [-0.7, -0.7, -0.7]


def test_the_threshold_itself_is_enough() -> None:
    assert Gates({"clarity": ("accuracy", 0.5)}).apply(SCORES)["clarity"] == [0.3, 0.0, 0.5]


@pytest.mark.parametrize("order", list(itertools.permutations(["accuracy", "brevity", "clarity"])))
def test_chained_gates_look_at_raw_rewards_in_any_order(order: tuple[str, ...]) -> None:
    gates = {"accuracy": ("clarity", 0.35), "brevity": ("accuracy", 0.5), "clarity": ("brevity", 0.85)}
    gated = Gates({name: gates[name] for name in order}).apply(SCORES)
    assert gated == {"accuracy": [0.0, 0.0, 0.5], "brevity": [0.9, -0.7, -0.7], "clarity": [0.3, 0.0, 0.0]}


def test_the_raw_scores_stay_as_they_are() -> None:
    scores = {name: list(values) for name, values in SCORES.items()}
    gated = Gates({"brevity": ("accuracy", 2.0)}).apply(scores)
    gated["accuracy"].append(9.0)
    assert scores == SCORES


def test_a_gate_on_nothing_is_an_error() -> None:
    with pytest.raises(KeyError):
        Gates({"brevity": ("absent", 0.0)}).apply(SCORES)


@given(
    st.integers(0, 20).flatmap(
        lambda n: st.lists(st.lists(st.floats(-9, 9), min_size=n, max_size=n), min_size=3, max_size=3)
    ),
    st.floats(-9, 9),
)
def test_each_score_is_kept_or_the_least_and_gating_again_changes_nothing(
    columns: list[list[float]], at_least: float
) -> None:
    scores = dict(zip("abc", columns, strict=True))
    gates = Gates({"a": ("b", at_least)})
    gated = gates.apply(scores)
    assert list(gated) == list(scores)
    least = min([0.0, *scores["a"]])
    assert all(new in (old, least) for new, old in zip(gated["a"], scores["a"], strict=True))
    assert all(new == old for new, old, judge in zip(gated["a"], *columns[:2], strict=True) if judge >= at_least)
    assert {name: gated[name] for name in "bc"} == {name: scores[name] for name in "bc"}
    assert gates.apply(gated) == gated


def test_what_does_not_apply_is_not_gated_and_gates_nothing():
    gates = Gates({"length": ("accuracy", 1.0)})
    scores = {"accuracy": [1.0, None, 0.0, 0.0], "length": [0.5, 0.5, None, 0.5]}
    assert gates.apply(scores)["length"] == [0.5, 0.5, None, 0.0]
