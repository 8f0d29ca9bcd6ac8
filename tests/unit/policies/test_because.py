"""What a rule says of its choice: numbers for each objective that make the weights again, and few of them."""

import dataclasses

import pytest
import torch

from orchestrator.figures import LONGEST_NAME, MOST_REASONS
from policies.types import FrontStats
from policies.weighting import WEIGHTINGS
from policies.weighting.gramian_rules import GRAMIAN_RULES
from policies.weighting.simplex import project
from tests.unit.policies.test_weighting import build, drive
from tests.weighting_stats import NAN, objectives_of, rich_stats, stats, two

FIGURES = {
    "fixed": set(),
    "hypervolume": set(),
    "schedule": {"before", "after"},
    "hv_gradient": {"slope"},
    "gradient": {"influence", "before", "limit"},
    "lagrangian": {"multiplier", "below_target", "limit"},
    "saw": {"variation", "factor", "limit"},
    "dara": {"signal_share", "factor", "limit"},
    "saturation": {"place", "factor"},
    "covariance": {"covariance", "push", "factor"},
    "pama": {"gain"},
    "tchebycheff": {"gap", "factor"},
    "log_volume": {"place", "spread", "factor", "limit"},
    **{f"gramian:{name}": {"length", "cosine", "coefficient"} for name in GRAMIAN_RULES},
}


def shared(values_K):
    return values_K / values_K.sum()


def from_coefficients(preference_K, told):
    on_the_simplex_K = project(told["coefficient"], torch.zeros(3), torch.ones(3))
    return shared(on_the_simplex_K * preference_K)


# The weights by the formula in each rule's docstring, from the preference and what it told alone.
FORMULAS = {
    "fixed": lambda preference_K, _: preference_K,
    "hypervolume": lambda preference_K, _: preference_K,
    "schedule": lambda _, told: torch.lerp(told["before"], told["after"], 3 / 5),  # step 4, of points at 1 and 6
    "hv_gradient": lambda preference_K, told: shared(preference_K * told["slope"]),
    "gradient": lambda _, told: project(
        torch.softmax(told["before"].log() + 0.1 * told["influence"], 0), torch.full((3,), 0.01), torch.ones(3)
    ),
    "lagrangian": lambda _, told: shared(told["multiplier"].abs()),
    "saw": lambda preference_K, told: shared(preference_K * told["factor"]),
    "dara": lambda preference_K, told: shared(
        preference_K * (told["signal_share"].max() / told["signal_share"]).sqrt().clamp_max(5.0)
    ),
    "saturation": lambda preference_K, told: shared(preference_K * (1 - told["place"]).sqrt()),
    "covariance": lambda preference_K, told: shared(preference_K * told["factor"]),
    "pama": lambda _, told: (told["gain"] == told["gain"].min()).double(),
    "tchebycheff": lambda preference_K, told: shared(
        preference_K * torch.softmax(preference_K * told["gap"] / 0.1, dim=0)
    ),
    "log_volume": lambda preference_K, told: shared(preference_K * told["spread"] / told["place"].clamp_min(0.05)),
    **{
        f"gramian:{name}": from_coefficients
        if not rule.scales_gradients
        else lambda _, told: project(told["coefficient"], torch.zeros(3), torch.ones(3))
        for name, rule in GRAMIAN_RULES.items()
    },
}


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_what_a_rule_was_led_by_makes_its_weights_again(name):
    points_NK = torch.tensor([[0.9, 0.1, 0.2], [0.2, 0.8, 0.3]], dtype=torch.float64)
    front = FrontStats(step=4, growth=0.01, points_NK=points_NK, current_K=torch.tensor([0.6, 0.5, 0.4]).double())
    steps = [rich_stats(step, 3, preference=[0.5, 0.3, 0.2]) for step in (1, 2, 3, 4)]
    steps[-1] = dataclasses.replace(steps[-1], front=front)
    choice = drive(build(name, 3), steps)[-1]
    assert choice.because.keys() == FIGURES[name]
    assert len(choice.because) <= MOST_REASONS
    assert all(len(figure) <= LONGEST_NAME for figure in choice.because)
    again_K = FORMULAS[name](steps[-1].preference_K.double(), choice.because)
    torch.testing.assert_close(choice.weights_K, again_K.float(), atol=1e-6, rtol=0)


VARIES, FLAT = [0.0, 1.0], [0.5, 0.5]


@pytest.mark.parametrize(
    ("name", "options", "stat", "limits"),
    [
        ("dara", {"cap": 4.0}, stats(preference=[0.5, 0.5], rewards=two(VARIES, FLAT)), [0, 1]),
        ("saw", {"rate": 1.0}, stats(preference=[0.5, 0.5], rewards=two(VARIES, FLAT)), [0, -1]),
        ("log_volume", {}, stats(preference=[0.5, 0.5], rewards=two(VARIES, [0.0, 0.04])), [0, 1]),
        (
            "gradient",
            {"floor": 0.15, "ceiling": 0.6},
            stats(preference=[0.7, 0.2, 0.1], influence_K=torch.zeros(3)),
            [1, 0, -1],
        ),
        (
            "lagrangian",
            {"lam_max": 0.01},
            stats(preference=[0.5, 0.5], rewards=two(VARIES, FLAT), objectives=objectives_of(2, targets=[NAN, 0.9])),
            [NAN, 1],
        ),
    ],
)
def test_what_a_limit_of_the_rule_holds(name, options, stat, limits):
    told = WEIGHTINGS[name](**options).update(stat).because["limit"].tolist()
    assert told == pytest.approx(limits, nan_ok=True)
