"""Weighting rules as a spec names them, and the two that hold to what it says: the preference and a schedule."""

import inspect
import math
from typing import get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from orchestrator.specs.weightings import WeightingSpec
from policies.weighting import WEIGHTINGS, Fixed
from policies.weighting.schedule import Schedule
from tests.weighting_stats import stats

ADAPTER = TypeAdapter(WeightingSpec)
SPECS = {spec.model_fields["name"].default: spec for spec in get_args(get_args(WeightingSpec)[0])}


def minimal(name):
    points = {"points": [{"step": 0, "weights": {"a": 1, "b": 2}}]} if name == "schedule" else {}
    return ADAPTER.validate_python({"name": name, **points})


def problems(document, objectives=("a", "b"), targets=frozenset()):
    return list(ADAPTER.validate_python(document).problems(objectives, frozenset(targets)))


class TestSpecs:
    def test_every_rule_has_a_spec_and_every_spec_a_rule(self):
        assert set(SPECS) == set(WEIGHTINGS)

    @pytest.mark.parametrize("name", WEIGHTINGS)
    def test_spec_and_class_agree(self, name):
        spec, rule = SPECS[name], WEIGHTINGS[name]
        assert spec.needs == rule.needs
        signature = inspect.signature(rule.__init__).parameters.values()
        arguments = {p.name: p.default for p in signature if p.kind is inspect.Parameter.KEYWORD_ONLY}
        fields = {key: field.default for key, field in spec.model_fields.items() if key != "name"}
        if name == "schedule":
            assert set(arguments) == set(fields) == {"points"}
        else:
            assert arguments == fields

    @pytest.mark.parametrize("name", WEIGHTINGS)
    def test_builds_from_its_spec(self, name):
        assert isinstance(WEIGHTINGS[name](**minimal(name).arguments(("a", "b"))), WEIGHTINGS[name])

    @pytest.mark.parametrize("name", SPECS)
    def test_says_what_it_is(self, name):
        spec = SPECS[name]
        assert inspect.getdoc(spec).splitlines()[0].endswith(".")
        assert spec.source
        assert spec.cost
        assert all(field.description for key, field in spec.model_fields.items() if key != "name")

    @pytest.mark.parametrize("name", SPECS)
    def test_two_objectives_one_with_a_target_suit_all(self, name):
        assert list(minimal(name).problems(("a", "b"), frozenset({"b"}))) == []

    @pytest.mark.parametrize("name", [name for name in SPECS if name.startswith("g")])
    def test_gradient_rules_need_two_objectives(self, name):
        (problem,) = minimal(name).problems(("a",), frozenset())
        assert problem == (
            "name",
            "a Gramian rule weighs objectives against each other and needs at least 2; use 'fixed'",
        )

    @pytest.mark.parametrize(
        ("document", "objectives", "targets", "field"),
        [
            ({"name": "gradient", "floor": 0.4}, "abc", "", "floor"),
            ({"name": "gradient", "ceiling": 0.4}, "ab", "", "ceiling"),
            ({"name": "lagrangian"}, "ab", "", "name"),
            ({"name": "lagrangian"}, "ab", "ab", "name"),
            ({"name": "lagrangian", "lam_init": 6}, "ab", "a", "lam_init"),
            ({"name": "schedule", "points": [{"step": 0, "weights": {"a": 1}}]}, "ab", "", "points.0.weights"),
            ({"name": "schedule", "points": [{"step": 0, "weights": {"a": 1, "x": 1}}]}, "ab", "", "points.0.weights"),
        ],
    )
    def test_problems_of_a_job(self, document, objectives, targets, field):
        assert [path for path, _ in problems(document, tuple(objectives), targets)] == [field]

    @pytest.mark.parametrize(
        "points",
        [
            [],
            [{"step": -1, "weights": {"a": 1}}],
            [{"step": 0, "weights": {}}],
            [{"step": 0, "weights": {"a": 0, "b": 0}}],
            [{"step": 0, "weights": {"a": -1, "b": 2}}],
            [{"step": 0, "weights": {"a": math.inf, "b": 2}}],
            [{"step": 5, "weights": {"a": 1}}, {"step": 5, "weights": {"a": 1}}],
            [{"step": 5, "weights": {"a": 1}}, {"step": 4, "weights": {"a": 1}}],
        ],
    )
    def test_schedules_that_are_refused(self, points):
        with pytest.raises(ValidationError):
            ADAPTER.validate_python({"name": "schedule", "points": points})


def test_fixed_is_the_preference():
    assert torch.equal(Fixed().update(stats(preference=[0.7, 0.3])).weights_K, torch.tensor([0.7, 0.3]))


class TestSchedule:
    def test_pinned(self):
        strategy = Schedule(points=[(10, {"o0": 2.0, "o1": 2.0}), (20, {"o1": 0.0, "o0": 5.0})])
        seen = [strategy.update(stats(step, preference=[0.1, 0.9])).weights_K[0] for step in (0, 10, 13, 15, 20, 99)]
        assert [float(weight) for weight in seen] == pytest.approx([0.5, 0.5, 0.65, 0.75, 1.0, 1.0])

    def test_one_point_is_constant(self):
        strategy = Schedule(points=[(5, {"o0": 1.0, "o1": 3.0})])
        assert all(
            strategy.update(stats(step, preference=[0.5, 0.5])).weights_K.tolist() == [0.25, 0.75] for step in (0, 5, 9)
        )

    def test_no_points(self):
        with pytest.raises(ValueError, match="at least one point"):
            Schedule(points=[])
