"""Why a step's weights are what they are: what the record says, and the words that are made of it."""

import json
from typing import Any

import pytest
import torch

from orchestrator.figures import MOST_REASONS, gates_open, objective_figures, weights_because
from orchestrator.spec import MAX_OBJECTIVES, parse_spec
from orchestrator.steering import Steering, apply_directions
from orchestrator.why import FIELDS, reasons
from policies.types import Weights
from policies.weighting import WEIGHTINGS

Json = dict[str, Any]
NAMES = ("accuracy", "conciseness")
NAN = float("nan")


def pair(values: tuple[Any, Any]) -> Json:
    return dict(zip(NAMES, values, strict=True))


def record(
    figures: dict[str, tuple[Any, Any]] | None = None,
    *,
    weights: tuple[float, float] = (0.73, 0.27),
    strategy: tuple[float, float] | None = None,
    preference: tuple[float, float] = (0.5, 0.5),
    mode: str = "auto",
    share: float = 0.0,
    because: Json | None = None,
    **more: Any,
) -> Json:
    told = {"preference": preference, **(figures or {})}
    return {
        "step": 12,
        "steering_version": 3,
        "weights": {"strategy": pair(strategy or weights), "applied": pair(weights)},
        "weights_because": {
            "mode": mode, "share": share, "figures": {figure: pair(values) for figure, values in told.items()},
            "held": {}, "gates": {}, **(because or {}),
        },
        **more,
    }  # fmt: skip


BEFORE = record(weights=(0.79, 0.21))
GRAMIAN = (
    record({"coefficient": (0.73, 0.27), "length": (1.0, 2.0), "cosine": (-0.4, -0.4)}),
    "the rule's combination of the gradients leans on it most (coefficient .73, conciseness .27); "
    "its gradient pulls against another's (least cosine -.40)",
    "the rule's combination of the gradients leans on it less than on accuracy (coefficient .27, accuracy .73); "
    "its gradient pulls against another's (least cosine -.40)",
)
RULES: dict[str, Any] = {
    "hv_gradient": (
        record({"slope": (0.011, 0.034)}),
        "one more unit of it adds less to the hypervolume than one of conciseness (slope .011, conciseness .034)",
        "one more unit of it adds most to the hypervolume (slope .034, accuracy .011)",
    ),
    "hypervolume": (
        record(multiplier=1.4),
        "the preference as it is (steering version 3); the whole batch counts 1.40 times, by how the front moves",
        "the preference as it is (steering version 3); the whole batch counts 1.40 times, by how the front moves",
    ),
    "fixed": (record(), *["the preference as it is (steering version 3)"] * 2),
    "schedule": (
        record({"before": (0.8, 0.2), "after": (0.6, 0.4)}),
        "the schedule's, on the way from .80 to .60",
        "the schedule's, on the way from .20 to .40",
    ),
    "gradient": (
        record({"influence": (1.2, 0.3), "before": (0.7, 0.3), "limit": (0.0, -1.0)}, preference=(0.6, 0.4)),
        "at this step its gradient helps all objectives together most "
        "(influence 1.20, conciseness .30; preference .60)",
        "at this step its gradient helps all objectives together less than that of accuracy "
        "(influence .30, accuracy 1.20; preference .40); the rule's own floor keeps it from less",
    ),
    "lagrangian": (
        record({"multiplier": (1.0, 0.5), "below_target": (None, 0.12), "limit": (None, 0.0)}),
        "it has no target: its part is 1.00, of 1.50 with the multipliers",
        "12% of its range below its target: its multiplier is .50, of 1.50 together",
    ),
    "saw": (
        record({"variation": (0.4, 0.5), "factor": (1.3, 0.25), "limit": (0.0, -1.0)}),
        "its rewards have differed most between rollouts, for their size (factor 1.30, conciseness .25)",
        "its rewards have differed less between rollouts, for their size, than those of accuracy "
        "(factor .25, accuracy 1.30); the rule's own floor keeps it from less",
    ),
    "dara": (
        record({"signal_share": (0.8, 0.02), "factor": (1.0, 5.0), "limit": (0.0, 1.0)}),
        "more groups vary in it than in conciseness (groups with signal 80%, conciseness 2%)",
        "fewest groups vary in it (groups with signal 2%, accuracy 80%); the rule's own ceiling keeps it from more",
    ),
    "saturation": (
        record({"place": (0.95, 0.36), "factor": (0.22, 0.8)}),
        "it is nearer to the upper end of its range than conciseness (place .95, conciseness .36)",
        "it is farthest from the upper end of its range (place .36, accuracy .95)",
    ),
    "covariance": (
        record({"covariance": (0.2, 0.01), "push": (0.0, 0.09), "factor": (0.9, 1.1)}),
        "the updates have followed it better so far than conciseness (factor .90, conciseness 1.10)",
        "the updates have followed it least so far (factor 1.10, accuracy .90)",
    ),
    "pama": (
        record({"gain": (0.4, 0.12)}, weights=(0.0, 1.0)),
        "it has more to gain from the batch than conciseness, which has all (gain .40, conciseness .12)",
        "it has least to gain from the batch, and the rule gives that all (gain .12, accuracy .40)",
    ),
    "tchebycheff": (
        record({"gap": (0.0, 0.12), "factor": (0.3, 0.7)}),
        "it is the best seen (gap 0, conciseness .12)",
        "it is furthest below the best seen (gap .12, accuracy 0)",
    ),
    "log_volume": (
        record({"place": (0.5, 0.02), "spread": (0.0, 0.1), "factor": (0.0, 2.0), "limit": (0.0, 1.0)}),
        "no rollout changes it, and so it asks for nothing (factor 0, conciseness 2.00)",
        "its own improvement adds most to the volume below the policy's point (factor 2.00, accuracy 0); "
        "the rule's own ceiling keeps it from more",
    ),
    **{name: GRAMIAN for name in WEIGHTINGS if name.startswith("gramian:")},
    "worst_first": (
        record({"mean": (0.4, None)}),
        "by the rule worst_first (mean .40)",
        "by the rule worst_first (mean not measured)",
    ),
}


def test_every_strategy_is_told() -> None:
    assert set(RULES) == {*WEIGHTINGS, "worst_first"}


@pytest.mark.parametrize("rule", RULES)
def test_what_led_a_rule(rule: str) -> None:
    told, *words = RULES[rule]
    found = reasons(told, None, rule)
    assert [reason.words for reason in found] == words
    assert {reason.decided_by for reason in found} == {"rule"}


@pytest.mark.parametrize(
    ("before", "weight", "said"),
    [(BEFORE, 0.27, ".21 -> .27"), (BEFORE, 0.2104, "stays at .21"), (None, 0.27, ".27"), ({}, 1.0, "1.00")],
)
def test_a_sentence_begins_with_the_weight(before: Json | None, weight: float, said: str) -> None:
    (_, reason) = reasons(record(weights=(1 - weight, weight)), before, "fixed")
    assert reason.sentence == f"conciseness {said}: the preference as it is (steering version 3)"


@pytest.mark.parametrize(
    ("rule", "told", "words"),
    [
        ("hv_gradient", record(weights=(0.5, 0.5)), "nothing is measured yet, so the preference counts"),
        ("gradient", record(), "nothing is measured at this step, so it stays"),
        (
            "hv_gradient",
            record({"slope": (0.0, 0.0)}, weights=(0.5, 0.5)),
            "more of it adds nothing to the hypervolume, and so for all: the preference counts "
            "(slope 0, conciseness 0)",
        ),
        (
            "dara",
            record({"signal_share": (0.5, 0.5), "factor": (1.0, 1.0)}, preference=(0.6, 0.4)),
            "nothing tells the objectives apart, so the preference counts "
            "(groups with signal 50%, conciseness 50%; preference .60)",
        ),
        ("dara", record({"signal_share": (0.0, 0.0)}, weights=(0.5, 0.5)), None),
        (
            "gramian:mgda",
            record({"length": (1.0, 1.0), "cosine": (-1.0, -1.0)}, weights=(0.5, 0.5)),
            "no direction serves all objectives, so the preference counts; "
            "its gradient pulls against another's (least cosine -1.00)",
        ),
        (
            "log_volume",
            record({"factor": (None, 0.3)}, weights=(0.0, 1.0)),
            "it was never measured, and so it asks for nothing (factor not measured, conciseness .30)",
        ),
        (
            "saturation",
            record({"place": (0.1, 0.2), "factor": (0.9, 0.8)}, weights=(0.0, 1.0), preference=(0.0, 1.0)),
            "without preference the rule gives it nothing",
        ),
        ("pama", record({"gain": (0.0, 0.0)}), "no objective has anything to gain from the batch, so the preference "
         "counts"),
        ("pama", record({"gain": (0.0, 0.2)}, weights=(0.0, 1.0)), "it has nothing to gain from the batch "
         "(gain 0, conciseness .20)"),
        (
            "lagrangian",
            record(
                {"multiplier": (-2.0, 1.0), "below_target": (-0.3, None), "limit": (1.0, None)}, falling=["accuracy"]
            ),
            "30% of its range above its target: its multiplier is -2.00, the largest that it may have, of 3.00 together"
            ", and pushes it down",
        ),
        ("lagrangian", record(), "nothing is measured yet, so the preference counts"),
        ("schedule", record({"before": (0.8, 0.2), "after": (0.8, 0.2)}), "the schedule's"),
        ("worst_first", record(), "by the rule worst_first, which says no more"),
    ],
)  # fmt: skip
def test_where_figures_say_little(rule: str, told: Json, words: str | None) -> None:
    found = reasons(told, None, rule)[0].words
    assert words is None or found == words


def test_a_multiplier_is_told_with_what_it_was() -> None:
    figures = {"multiplier": (1.0, 0.5), "below_target": (None, None), "limit": (None, 0.0)}
    before = record({"multiplier": (1.0, 0.4)})
    words = reasons(record(figures), before, "lagrangian")[1].words
    assert words == "not measured in this batch: its multiplier is .50 (before .40), of 1.50 together"


BY_RULE = "one more unit of it adds most to the hypervolume (slope .034, accuracy .011)"


@pytest.mark.parametrize(
    ("more", "decided", "words"),
    [
        ({"mode": "manual", "share": 1.0}, "person", "a person decides, mode manual (steering version 3)"),
        (
            {"mode": "blend", "share": 0.3, "strategy": (0.7, 0.3)},
            "blend",
            f"30% of it a person's .50 (steering version 3), the rest the rule's .30: {BY_RULE}",
        ),
        (
            {"ramp": {"step": 4, "of": 20, "target": {"accuracy": 0.3, "conciseness": 0.7}}},
            "ramp",
            "a gradual change decides, step 4 of 20 on the way to .70 (steering version 3)",
        ),
        ({"ramp": {"step": 20, "of": 20, "target": {}}}, "rule", BY_RULE),
        (
            {"because": {"held": {"conciseness": "floor"}, "unbounded": {"accuracy": 0.8, "conciseness": 0.2}}},
            "floor",
            f"its floor holds it, in place of .20 (steering version 3); {BY_RULE}",
        ),
        (
            {"because": {"held": {"accuracy": "ceiling"}, "unbounded": {"accuracy": 0.8, "conciseness": 0.2}}},
            "bounds",
            f"the ceiling of accuracy moved it from .20 (steering version 3); {BY_RULE}",
        ),
        (
            {
                "because": {"gates": {"conciseness": 0.12}},
                "objectives": {"conciseness": {"zero_share": 0.98}, "accuracy": {"zero_share": 0.3}},
            },
            "rule",
            f"{BY_RULE}; only 2% of its groups have signal; its gate is open in 12% of the rollouts",
        ),
    ],
)
def test_who_decided(more: Json, decided: str, words: str) -> None:
    found = reasons(record({"slope": (0.011, 0.034)}, **more), BEFORE, "hv_gradient")[1]
    assert (found.decided_by, found.words) == (decided, words)


def test_a_record_of_an_older_version_tells_nothing() -> None:
    older = {key: value for key, value in record().items() if key != "weights_because"}
    assert reasons(older, None, "fixed") == []
    assert reasons(record(weights=(0.2, 0.8)), older, "fixed")[0].before == 0.73


# What the record says -------------------------------------------------------------------------------------------------


def steering_of(**more: Any) -> Steering:
    free = dict.fromkeys(NAMES, (0.0, 1.0))
    return Steering.model_validate({"mode": "auto", "blend": 0.5, "weights": pair((0.5, 0.5)), "bounds": free, **more})


def because_of(choice: Weights, steering: Steering) -> Json:
    target, _ = apply_directions(steering, NAMES, choice)
    return weights_because(steering, NAMES, choice, target, gates={})


def test_what_a_rule_gives_is_kept_by_name() -> None:
    slopes = torch.tensor([0.5, NAN], dtype=torch.float64)
    choice = Weights(weights_K=torch.tensor([0.8, 0.2]), because={"slope": slopes, "whole": torch.tensor([1, 2])})
    assert because_of(choice, steering_of()) == {
        "mode": "auto", "share": 0.0, "held": {}, "gates": {},
        "figures": {
            "preference": {"accuracy": 0.5, "conciseness": 0.5}, "slope": {"accuracy": 0.5, "conciseness": None},
            "whole": {"accuracy": 1.0, "conciseness": 2.0},
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("bounds", "held"),
    [({"conciseness": (0.3, 1.0)}, {"conciseness": "floor"}), ({"accuracy": (0.0, 0.6)}, {"accuracy": "ceiling"})],
)
def test_what_bounds_did(bounds: Json, held: Json) -> None:
    steering = steering_of(bounds=dict.fromkeys(NAMES, (0.0, 1.0)) | bounds)
    found = because_of(Weights(weights_K=torch.tensor([0.8, 0.2])), steering)
    assert found["held"] == held
    assert found["unbounded"] == pytest.approx(pair((0.8, 0.2)))
    idle = because_of(Weights(weights_K=torch.tensor([0.5, 0.5])), steering)
    assert (idle["held"], "unbounded" in idle) == ({}, False)


def test_its_size_is_bounded_whatever_a_plugin_gives() -> None:
    names = [f"objective_{k:02d}" + "x" * 20 for k in range(MAX_OBJECTIVES)]
    even = dict.fromkeys(names, 1 / len(names))
    steering = steering_of(weights=even, bounds={})
    values_K = torch.rand(len(names), dtype=torch.float64)
    many: Any = {f"figure {i} {'y' * 100}": values_K for i in range(500)} | {"none": None}
    choice = Weights(weights_K=torch.tensor(list(even.values())), because=many)
    found = weights_because(steering, names, choice, even, gates=even)
    assert len(found["figures"]) == 1 + MOST_REASONS
    assert len(json.dumps(found)) < 64 * (MOST_REASONS + 2) * MAX_OBJECTIVES
    wrong: Any = {"scalar": torch.tensor(1.0), "short": torch.ones(2), "text": "?"}
    choice = Weights(weights_K=choice.weights_K, because=wrong)
    assert weights_because(steering, names, choice, even, gates={})["figures"].keys() == {"preference"}


def test_how_often_a_gate_is_open() -> None:
    document = {
        "name": "gated", "steps": 1, "policy": {"model": "quickstart"}, "data": {"type": "quickstart"},
        "objectives": [
            {"name": "accuracy", "reward": {"name": "math"}},
            {"name": "brevity", "reward": {"name": "conciseness"}, "gate": {"objective": "accuracy", "at_least": 1.0}},
        ],
    }  # fmt: skip
    objectives = parse_spec(document).objectives
    rewards_PGK = torch.tensor([[[1.0, 0.2], [0.0, 0.3], [0.5, 0.4], [NAN, 0.4], [0.0, NAN]]], dtype=torch.float64)
    assert gates_open(objectives, rewards_PGK) == {"brevity": 0.5}
    assert gates_open(objectives, torch.full((1, 2, 2), NAN)) == {"brevity": None}
    assert gates_open(objectives[:1], rewards_PGK) == {}


def test_spread_within_groups_is_apart_from_that_between_them() -> None:
    """The second prompt is hard, the third was not scored: rollouts differ, those of a prompt hardly."""
    rewards_PG = torch.tensor([[0.8, 1.0], [0.1, 0.1], [NAN, NAN]], dtype=torch.float64)
    found = objective_figures(rewards_PG)
    assert found["group_std"] == pytest.approx(0.05)
    assert found["zero_share"] == 0.5
    assert found["std"] == pytest.approx(0.4062, abs=1e-4)
    assert set(objective_figures(torch.full((1, 2), NAN)).values()) == {None}


def test_the_fields_that_words_are_made_of_are_a_records() -> None:
    assert set(record(multiplier=1.0, objectives={}, falling=[], ramp={})) - {"step"} == set(FIELDS)
