"""What a person's change makes of the steering, and what the steering makes of a strategy's weights."""

import importlib
import math
import pkgutil
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.spec import parse_spec
from orchestrator.steering import (
    Steering,
    SteeringError,
    apply_directions,
    apply_steering,
    idle_parts,
    initial_steering,
    merge,
)
from policies import weighting
from policies.types import Weights

NAMES = ("accuracy", "brevity", "clarity")
CURRENT = {
    "mode": "auto",
    "blend": 0.5,
    "weights": {"accuracy": 0.5, "brevity": 0.3, "clarity": 0.2},
    "bounds": {"accuracy": [0.1, 0.9], "brevity": [0.0, 1.0], "clarity": [0.0, 1.0]},
}


def steering(**changes: Any) -> Steering:
    return Steering.model_validate({**CURRENT, "bounds": {}, **changes})


def refusal(change: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(SteeringError) as caught:
        merge(CURRENT, change, NAMES)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(caught.value.field)
    return caught.value.field, caught.value.message


def test_the_first_version_is_what_the_spec_asks_for() -> None:
    spec = parse_spec(
        {
            "name": "x",
            "steps": 1,
            "policy": {"model": "quickstart"},
            "data": {"type": "quickstart"},
            "objectives": [
                {"name": "accuracy", "reward": {"name": "math"}, "weight": 3, "bounds": [0.2, 0.9]},
                {"name": "brevity", "reward": {"name": "conciseness"}},
            ],
            "steering": {"mode": "blend", "blend": 0.25},
        }
    )
    assert initial_steering(spec) == Steering(
        mode="blend",
        blend=0.25,
        weights={"accuracy": 0.75, "brevity": 0.25},
        bounds={"accuracy": (0.2, 0.9), "brevity": (0.0, 1.0)},
    )


# ----------------------------------------------------------------------- merge


def test_what_is_not_mentioned_stays() -> None:
    merged = merge(CURRENT, {"mode": "manual"}, NAMES)
    assert merged.mode == "manual"
    assert merged.model_dump(mode="json") == {**CURRENT, "mode": "manual"}


def test_bounds_of_others_stay() -> None:
    merged = merge(CURRENT, {"bounds": {"brevity": [0.2, 0.4]}}, NAMES)
    assert merged.bounds == {"accuracy": (0.1, 0.9), "brevity": (0.2, 0.4), "clarity": (0.0, 1.0)}
    assert merged.weights == CURRENT["weights"]


def test_weights_are_scaled_and_put_in_order() -> None:
    merged = merge(CURRENT, {"weights": {"clarity": 2, "brevity": 0, "accuracy": 6}}, NAMES)
    assert list(merged.weights.items()) == [("accuracy", 0.75), ("brevity", 0.0), ("clarity", 0.25)]


@given(sent=st.lists(st.floats(0.001, 1e6), min_size=3, max_size=3), factor=st.floats(0.001, 1000))
def test_the_same_change_again_changes_nothing(sent, factor):
    """Whatever its scale: a last digit that moved would be a new preference to all that starts anew with one."""
    change = {"mode": "blend", "weights": dict(zip(NAMES, sent, strict=True))}
    once = merge(CURRENT, change, NAMES)
    current = once.model_dump(mode="json")
    assert merge(current, change, NAMES) == once
    assert merge(current, {"weights": once.weights}, NAMES) == once
    assert merge(current, {"weights": {name: factor * weight for name, weight in once.weights.items()}}, NAMES) == once


def test_nothing_given_is_changed() -> None:
    change = {"weights": {"accuracy": 1.0, "brevity": 1.0, "clarity": 2.0}}
    merge(CURRENT, change, NAMES)
    assert change == {"weights": {"accuracy": 1.0, "brevity": 1.0, "clarity": 2.0}}
    assert CURRENT["weights"]["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"weigths": {}}, "weigths", "did you mean 'weights'?"),
        ({"xyz": 1}, "xyz", "fields are mode, blend, weights, bounds"),
        ({"weights": {"acuracy": 1}}, "weights.acuracy", "did you mean 'accuracy'?"),
        ({"bounds": {"lenght": [0, 1]}}, "bounds.lenght", "objectives are accuracy, brevity, clarity"),
        ({"weights": {"accuracy": 1, "brevity": 1}}, "weights", "clarity is missing"),
        ({"weights": {}}, "weights", "accuracy, brevity, clarity is missing"),
        ({"weights": {"accuracy": -1, "brevity": 1, "clarity": 1}}, "weights.accuracy", "greater than or equal to 0"),
        ({"weights": {"accuracy": math.nan, "brevity": 1, "clarity": 1}}, "weights.accuracy", "finite|greater"),
        ({"weights": {"accuracy": math.inf, "brevity": 1, "clarity": 1}}, "weights.accuracy", "finite"),
        ({"weights": dict.fromkeys(NAMES, 0)}, "weights", "above 0"),
        ({"weights": dict.fromkeys(NAMES, 1e308)}, "weights", "too large"),
        ({"weights": [1, 2, 3]}, "weights", "expected a mapping"),
        ({"weights": 5}, "weights", "expected a mapping"),
        ({"weights": None}, "weights", "expected a mapping"),
        ({"bounds": [[0, 1]]}, "bounds", "expected a mapping"),
        ({"bounds": {"accuracy": [0.5]}}, "bounds.accuracy.1", "required"),
        ({"bounds": {"accuracy": [0.5, 0.4]}}, "bounds.accuracy", "floor <= ceiling"),
        ({"bounds": {"accuracy": [0.5, 2]}}, "bounds.accuracy.1", "less than or equal to 1"),
        ({"bounds": {name: [0.5, 1] for name in NAMES}}, "bounds", "floors sum to 1.5"),
        ({"bounds": {name: [0, 0.2] for name in NAMES}}, "bounds", "ceilings to 0.6"),
        ({"bounds": {"accuracy": [0, 0], "brevity": [0, 0], "clarity": [0, 0.5]}}, "bounds", "ceilings to 0.5"),
        ({"mode": "automatic"}, "mode", "'auto'"),
        ({"blend": 1.5}, "blend", "less than or equal to 1"),
        ({"blend": math.nan}, "blend", "finite|less"),
    ],
)
def test_what_is_refused(change: dict[str, Any], field: str, words: str) -> None:
    found, message = refusal(change)
    assert found == field
    assert any(word in message for word in words.split("|"))


# ------------------------------------------------------------- what moves nothing

OTHER = {"weights": {"accuracy": 3.0, "brevity": 1.0, "clarity": 1.0}}


@pytest.mark.parametrize(
    ("change", "rule", "told"),
    [
        (OTHER, "gradient", []),
        (OTHER, "schedule", ["weights: in mode auto they are the schedule's"]),
        (OTHER, "lagrangian", ["weights: in mode auto those of objectives with a target (brevity) are"]),
        ({**OTHER, "mode": "manual"}, "schedule", []),
        ({**OTHER, "mode": "blend"}, "lagrangian", []),
        ({"blend": 0.9}, "fixed", ["blend: counts in mode blend alone, and the mode is auto"]),
        ({"blend": 0.9, "mode": "blend"}, "fixed", []),
        ({"bounds": {"accuracy": [0.2, 0.9]}}, "schedule", []),
        ({"blend": 0.9, "mode": "manual"}, "fixed", []),
        ({"mode": "auto"}, "fixed", ["nothing changes"]),
        ({"weights": {"accuracy": 5.0, "brevity": 3.0, "clarity": 2.0}}, "schedule", ["nothing changes"]),
    ],
)
def test_what_moves_no_weights_is_told(change: dict[str, Any], rule: str, told: list[str]) -> None:
    objectives = [{"name": name, "target": {"at_least": 1} if name == "brevity" else None} for name in NAMES]
    spec = {"weighting": {"name": rule}, "objectives": objectives}
    notes = idle_parts(spec, CURRENT, merge(CURRENT, change, NAMES).model_dump(mode="json"), change)
    assert [note[: len(words)] for note, words in zip(notes, told, strict=True)] == told


def test_every_rule_that_does_not_follow_the_preference_is_told_of() -> None:
    names = [found.name for found in pkgutil.iter_modules(weighting.__path__)]
    modules = [importlib.import_module(f"{weighting.__name__}.{name}") for name in names]
    kinds = {kind for module in modules for kind in vars(module).values() if isinstance(kind, type)}
    deaf = {kind.__name__.lower() for kind in kinds if not getattr(kind, "follows_preference", True)}
    assert deaf == {"schedule", "lagrangian"}
    objectives = [{"name": name, "target": {"at_least": 1}} for name in NAMES]
    after = merge(CURRENT, OTHER, NAMES).model_dump(mode="json")
    for rule in deaf:
        assert idle_parts({"weighting": {"name": rule}, "objectives": objectives}, CURRENT, after, OTHER), rule


# ----------------------------------------------------------------------- apply

STRATEGY = {"accuracy": 0.2, "brevity": 0.2, "clarity": 0.6}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mode": "auto"}, [0.2, 0.2, 0.6]),
        ({"mode": "manual"}, [0.5, 0.3, 0.2]),
        ({"mode": "blend", "blend": 0.5}, [0.35, 0.25, 0.4]),
        ({"mode": "blend", "blend": 0.0}, [0.2, 0.2, 0.6]),
        ({"mode": "blend", "blend": 1.0}, [0.5, 0.3, 0.2]),
        # clarity is capped at 0.4: the 0.2 that it loses goes to the others in equal parts
        ({"mode": "auto", "bounds": {"clarity": [0, 0.4]}}, [0.3, 0.3, 0.4]),
        # accuracy is raised to 0.5: the others give 0.15 each
        ({"mode": "auto", "bounds": {"accuracy": [0.5, 1]}}, [0.5, 0.05, 0.45]),
        ({"mode": "manual", "bounds": {"accuracy": [0, 0], "brevity": [0, 0]}}, [0, 0, 1]),
    ],
)
def test_applied_weights_by_hand(changes: dict[str, Any], expected: list[float]) -> None:
    applied = apply_steering(steering(**changes), STRATEGY)
    assert list(applied) == list(STRATEGY)
    assert list(applied.values()) == pytest.approx(expected, abs=1e-12)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Steering, dict[str, float]]:
    names = [f"o{i}" for i in range(draw(st.integers(1, 6)))]
    simplex = st.lists(st.floats(0, 1), min_size=len(names), max_size=len(names)).filter(lambda w: sum(w) > 1e-3)
    person, strategy, inside = (draw(simplex) for _ in range(3))
    bounds = {}
    for name, share in zip(names, inside, strict=True):  # around a point of the simplex, so that there is a solution
        share /= sum(inside)
        bounds[name] = (share * draw(st.floats(0, 1)), min(1.0, share + (1 - share) * draw(st.floats(0, 1))))
    made = Steering(
        mode=draw(st.sampled_from(["auto", "blend", "manual"])),
        blend=draw(st.floats(0, 1)),
        weights={name: weight / sum(person) for name, weight in zip(names, person, strict=True)},
        bounds=bounds,
    )
    return made, {name: weight / sum(strategy) for name, weight in zip(names, strategy, strict=True)}


@given(cases())
def test_applied_weights_are_on_the_bounded_simplex(case: tuple[Steering, dict[str, float]]) -> None:
    made, strategy = case
    applied = apply_steering(made, strategy)
    assert sum(applied.values()) == pytest.approx(1, abs=1e-9)
    for name, (floor, ceiling) in made.bounds.items():
        assert floor - 1e-9 <= applied[name] <= ceiling + 1e-9
    assert apply_steering(made.model_copy(update={"mode": "auto"}), applied) == pytest.approx(applied, abs=1e-9)


class TestDirections:
    """A strategy that may push objectives down, under each mode."""

    def steering(self, mode, blend=0.5, weights=(0.5, 0.5)):
        return Steering(mode=mode, blend=blend, weights=dict(zip("ab", weights, strict=True)), bounds={})

    def choice(self, weights, signs, directions=None):
        as_tensor = lambda values: None if values is None else torch.tensor(values)  # noqa: E731
        return Weights(weights_K=torch.tensor(weights), signs_K=as_tensor(signs), directions_K=as_tensor(directions))

    def test_auto_is_the_strategys_own(self):
        found = apply_directions(self.steering("auto"), ["a", "b"], self.choice([0.25, 0.75], [1.0, -1.0]))
        assert found == ({"a": 0.25, "b": 0.75}, {"a": 1.0, "b": -1.0})

    def test_manual_pushes_where_the_target_lies(self):
        choice = self.choice([1.0, 0.0], [1.0, -1.0], [1.0, -1.0])
        applied, signs = apply_directions(self.steering("manual", weights=(0.4, 0.6)), ["a", "b"], choice)
        assert applied == pytest.approx({"a": 0.4, "b": 0.6})
        assert signs == {"a": 1.0, "b": -1.0}

    def test_a_blend_mixes_signed_weights(self):
        """.5 * (.5, -.5) + .5 * (.5, .5) = (.5, 0): what pulls apart cancels."""
        choice = self.choice([0.5, 0.5], [1.0, -1.0], [1.0, 1.0])
        applied, signs = apply_directions(self.steering("blend"), ["a", "b"], choice)
        assert applied == pytest.approx({"a": 1.0, "b": 0.0})
        assert signs["a"] == 1.0

    def test_a_multiplier_that_crosses_zero_turns_nothing_over(self):
        near = [
            apply_directions(self.steering("blend"), ["a", "b"], self.choice([1 - size, size], [1.0, sign], [1.0, 1.0]))
            for size, sign in ((1e-6, 1.0), (1e-6, -1.0))
        ]
        (one, up), (other, down) = near
        assert up == down == {"a": 1.0, "b": 1.0}
        assert one == pytest.approx(other, abs=1e-5)
