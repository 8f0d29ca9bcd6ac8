"""The catalogue has every rule that a spec takes, with every option, and its examples are specs."""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from orchestrator.rules import NEEDS, Rule, RuleKind, find_rules, rules
from orchestrator.spec import parse_spec
from orchestrator.specs.estimators import BuiltInEstimator
from orchestrator.specs.gramian import GramianSpec
from orchestrator.specs.sampling import BudgetSpec, TailSpec, ZeroSignalSpec
from orchestrator.specs.transforms import TransformSpec
from orchestrator.specs.weightings import BuiltInWeighting
from policies.estimators import ESTIMATORS
from policies.gramian import Mode
from policies.weighting import WEIGHTINGS
from rewards.transforms import TRANSFORMS

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
ALL = [pytest.param(rule, id=f"{rule.kind}-{rule.name}") for rule in rules()]
MEMBERS = {
    RuleKind.ESTIMATOR: BuiltInEstimator,
    RuleKind.WEIGHTING: BuiltInWeighting,
    RuleKind.TRANSFORM: get_args(TransformSpec)[0],
    RuleKind.ZERO_SIGNAL: get_args(ZeroSignalSpec)[0],
    RuleKind.BUDGET: get_args(BudgetSpec)[0],
    RuleKind.TAIL: get_args(TailSpec)[0],
}


def names(kind: RuleKind) -> list[str]:
    return [rule.name for rule in rules(kind)]


def merged(document: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The first objective is completed by the example's, everything else is the example's."""
    objectives = [{**document["objectives"][0], **change.get("objectives", [{}])[0]}, *document["objectives"][1:]]
    return {**document, **change, "objectives": objectives}


def test_every_rule_of_the_code_is_there() -> None:
    assert names(RuleKind.ESTIMATOR) == list(ESTIMATORS)
    assert names(RuleKind.WEIGHTING) == list(WEIGHTINGS)
    assert names(RuleKind.TRANSFORM) == list(TRANSFORMS)
    assert names(RuleKind.ZERO_SIGNAL) == ["keep", "drop", "refill", "copo"]
    assert names(RuleKind.BUDGET) == ["uniform", "knapsack"]
    assert names(RuleKind.TAIL) == ["wait", "defer"]
    assert names(RuleKind.GRAMIAN) == list(get_args(Mode))
    assert len(rules()) == sum(len(rules(kind)) for kind in RuleKind)


@pytest.mark.parametrize("kind", MEMBERS)
def test_every_option_is_there(kind: RuleKind) -> None:
    for member, rule in zip(get_args(MEMBERS[kind]), rules(kind), strict=True):
        fields = {key: field for key, field in member.model_fields.items() if key != "name"}
        assert [option.name for option in rule.options] == list(fields)
        assert [option.required for option in rule.options] == [field.is_required() for field in fields.values()]


def test_the_gramian_options_are_those_of_its_branch() -> None:
    documented = {option.name for rule in rules(RuleKind.GRAMIAN) for option in rule.options}
    assert documented == set(GramianSpec.model_fields) - {"mode"}


@pytest.mark.parametrize("rule", ALL)
def test_a_rule_says_all_that_a_person_needs(rule: Rule) -> None:
    assert rule.summary
    assert "\n" not in rule.summary
    assert rule.description.startswith(rule.summary)
    assert rule.source
    assert rule.cost
    assert set(rule.needs) <= NEEDS.keys()
    for option in rule.options:
        assert option.description
        assert option.allowed not in ("", "anything")
    json.dumps(dataclasses.asdict(rule), allow_nan=False)


@pytest.mark.parametrize("rule", ALL)
def test_its_example_is_a_spec_that_selects_it(rule: Rule) -> None:
    document = {
        "name": "small",
        "steps": 4,
        "policy": {"model": "quickstart"},
        "data": {"type": "quickstart"},
        "objectives": [{"name": name, "reward": {"name": "math"}} for name in ("accuracy", "brevity")],
    }
    found: Any = parse_spec(merged(document, yaml.safe_load(rule.example))).model_dump()
    for part in rule.kind.path.replace("[]", ".0").split("."):
        found = found[int(part)] if part.isdigit() else found[part]
    assert (found if rule.kind is RuleKind.GRAMIAN else found["name"]) == rule.name


@pytest.mark.parametrize("rule", ALL)
def test_the_readme_names_it(rule: Rule) -> None:
    assert f"`{rule.name}`" in README


def test_bounds_are_told() -> None:
    (softmin,) = find_rules("softmin")
    assert {option.name: option.allowed for option in softmin.options}["kappa_start"] == "number >= 0.001, <= 100"
    (cosine,) = find_rules("cosine")
    told = {option.name: (option.required, option.default, option.allowed) for option in cosine.options}
    assert told["max_tokens"] == (True, None, "integer >= 1")
    assert told["correct"] == (False, [2.0, 1.0], "[number, number]")
    (lagrangian,) = find_rules("lagrangian")
    assert {option.name: option.allowed for option in lagrangian.options}["form"] == "inequality, equality"
    (knapsack,) = find_rules("knapsack")
    assert {option.name: option.allowed for option in knapsack.options}["max_rollouts"].endswith("or null")


def test_rules_are_found_by_name() -> None:
    (found,) = find_rules("gramian:upgrad")
    assert (found.kind, found.needs) == (RuleKind.WEIGHTING, ("gramian",))
    assert [rule.kind for rule in find_rules("sketch")] == [RuleKind.GRAMIAN]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gradent", ", did you mean 'gradient'"),
        ("mgda", ", did you mean 'gramian:mgda'?"),
        ("zzz", "; `equipoise rules` lists all"),
        ("", "lists all"),
        ("x" * 5000, r"'x{61}\.\.\.'"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        find_rules(name)
