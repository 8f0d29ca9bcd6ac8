"""Our own rule: what it climbs, by autograd, and by hand."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from policies.estimators import Gdpo
from policies.types import Objectives, StepStats
from policies.weighting.log_volume import LogVolume

NAN = float("nan")


def step_of(rewards_PGK: Tensor, preference: list[float], ranges: list[list[float]] | None = None) -> StepStats:
    count = len(preference)
    return StepStats(
        step=1,
        objectives=Objectives(
            names=tuple(f"o{k}" for k in range(count)),
            ranges_K2=torch.tensor(ranges or [[0.0, 1.0]] * count, dtype=torch.float64),
            targets_K=torch.full((count,), NAN, dtype=torch.float64),
            target_signs_K=torch.ones(count, dtype=torch.float64),
        ),
        rewards_PGK=rewards_PGK,
        advantages_PGK=torch.nan_to_num(rewards_PGK),
        preference_K=torch.tensor(preference),
    )


@given(seed=st.integers(0, 10_000), count=st.integers(2, 6), rollouts=st.integers(3, 12))
@settings(max_examples=50, deadline=None)
def test_gdpo_under_its_weights_climbs_the_log_of_the_volume(seed: int, count: int, rollouts: int) -> None:
    """A policy that picks one of G answers at equal odds: autograd says which way is up."""
    generator = torch.Generator().manual_seed(seed)
    rewards_GK = 0.1 + 0.9 * torch.rand(rollouts, count, generator=generator, dtype=torch.float64)
    preference_K = torch.softmax(torch.randn(count, generator=generator, dtype=torch.float64), 0)
    logits_G = torch.zeros(rollouts, dtype=torch.float64, requires_grad=True)
    places_K = torch.softmax(logits_G, 0) @ rewards_GK
    (preference_K * places_K.log()).sum().backward()

    weights_K = LogVolume().update(step_of(rewards_GK[None], preference_K.tolist())).weights_K.double()
    advantages_G = Gdpo()(rewards_GK[None], weights_K)[0]
    assert logits_G.grad is not None
    cosine = torch.nn.functional.cosine_similarity(advantages_G.double(), logits_G.grad, dim=0)
    assert float(cosine) == pytest.approx(1.0, abs=1e-5)


def test_by_hand() -> None:
    """Spreads .2 and .1, places .4 and .8: factors .5 and .125, and with preferences .25 and .75 the weights 4 : 3."""
    rewards_PGK = torch.tensor([[[0.2, 0.7], [0.6, 0.9]]], dtype=torch.float64)
    weights_K = LogVolume().update(step_of(rewards_PGK, [0.25, 0.75])).weights_K
    torch.testing.assert_close(weights_K, torch.tensor([4 / 7, 3 / 7]))


def test_ranges_are_units() -> None:
    rewards_PGK = torch.tensor([[[0.2, 70.0], [0.6, 90.0]]], dtype=torch.float64)
    weights_K = LogVolume().update(step_of(rewards_PGK, [0.25, 0.75], [[0, 1], [0, 100]])).weights_K
    torch.testing.assert_close(weights_K, torch.tensor([4 / 7, 3 / 7]))


def test_a_solved_objective_asks_for_nothing() -> None:
    rewards_PGK = torch.tensor([[[0.2, 1.0], [0.6, 1.0]]], dtype=torch.float64)
    assert LogVolume().update(step_of(rewards_PGK, [0.5, 0.5])).weights_K.tolist() == [1.0, 0.0]


def test_what_is_far_behind_asks_for_more_up_to_a_bound() -> None:
    """One right answer in many: 1 / q alone would give it all the weight there is."""
    rewards_PGK = torch.zeros(1, 1000, 2, dtype=torch.float64)
    rewards_PGK[0, 0, 0] = 1.0
    rewards_PGK[0, ::2, 1] = 1.0
    weights = LogVolume(least=0.05).update(step_of(rewards_PGK, [0.5, 0.5])).weights_K.tolist()
    spread = (0.001 * 0.999) ** 0.5
    assert weights[0] / weights[1] == pytest.approx((spread / 0.05) / (0.5 / 0.5), rel=1e-5)


def test_means_move_by_the_rate() -> None:
    """Spread .2 at place .5, then spread .1 at place .7: at rate .5 the means .15 and .6."""
    rule = LogVolume(rate=0.5)
    still = torch.tensor([[0.25], [0.75]], dtype=torch.float64)  # spread .25 at place .5, both times
    for low, high in ((0.3, 0.7), (0.6, 0.8)):
        moving = torch.tensor([[low], [high]], dtype=torch.float64)
        weights = rule.update(step_of(torch.cat([moving, still], dim=1)[None], [0.5, 0.5])).weights_K.tolist()
    assert weights[0] / weights[1] == pytest.approx((0.15 / 0.6) / (0.25 / 0.5), rel=1e-6)


def test_groups_that_an_objective_does_not_apply_to_count_for_nothing() -> None:
    rewards_PGK = torch.tensor([[[0.2, 0.7], [0.6, 0.9]], [[0.2, NAN], [0.6, NAN]]], dtype=torch.float64)
    weights_K = LogVolume().update(step_of(rewards_PGK, [0.25, 0.75])).weights_K
    torch.testing.assert_close(weights_K, torch.tensor([4 / 7, 3 / 7]))


def test_one_that_was_not_measured_keeps_its_means_through_a_restart() -> None:
    first = torch.tensor([[[0.2, 0.7], [0.6, 0.9]]], dtype=torch.float64)
    without = torch.tensor([[[0.2, NAN], [0.6, NAN]]], dtype=torch.float64)
    rule = LogVolume()
    rule.update(step_of(first, [0.25, 0.75]))
    other = LogVolume()
    other.load_state_dict(json.loads(json.dumps(rule.state_dict())))
    for each in (rule, other):
        weights_K = each.update(step_of(without, [0.25, 0.75])).weights_K
        torch.testing.assert_close(weights_K, torch.tensor([4 / 7, 3 / 7]))


def test_one_that_was_never_measured_gets_no_weight() -> None:
    without = torch.tensor([[[0.2, NAN], [0.6, NAN]]], dtype=torch.float64)
    assert LogVolume().update(step_of(without, [0.25, 0.75])).weights_K.tolist() == [1.0, 0.0]


def test_where_nothing_varies_the_preference_stands() -> None:
    weights = LogVolume().update(step_of(torch.full((2, 4, 2), 0.5), [0.25, 0.75])).weights_K.tolist()
    assert weights == [0.25, 0.75]
