"""Advantage estimators: properties that each rule claims, and one pinned value each, worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.estimators import ESTIMATORS, Gdpo, Grpo, Reinforce, Rloo
from policies.estimators.base import combine, whiten, whitening_factor

SCALE_INVARIANT = ("grpo", "reinforce", "gdpo")  # a positive factor on every reward changes nothing
SHIFT_INVARIANT = tuple(ESTIMATORS)
UNWEIGHTED_SCALE = ("gdpo",)  # a positive factor on one reward alone changes nothing


@st.composite
def batches(draw, max_objectives=8):
    prompts, groups, objectives = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, max_objectives))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rewards = torch.rand(prompts, groups, objectives, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        rewards = rewards.round()
    weights = torch.rand(objectives, generator=generator, dtype=torch.float64) + 0.01
    return rewards, weights / weights.sum()


@pytest.mark.parametrize("name", ESTIMATORS)
@settings(max_examples=40, deadline=None)
@given(batch=batches(max_objectives=32))
def test_finite_and_shaped(name, batch):
    rewards, weights = batch
    advantages = ESTIMATORS[name]()(rewards, weights)
    assert advantages.shape == rewards.shape[:2]
    assert torch.isfinite(advantages).all()


@pytest.mark.parametrize("name", ESTIMATORS)
@settings(max_examples=30, deadline=None)
@given(batch=batches(), seed=st.integers(0, 1000))
def test_permuting_rollouts_permutes_advantages(name, batch, seed):
    rewards, weights = batch
    order = torch.randperm(rewards.shape[1], generator=torch.Generator().manual_seed(seed))
    whole, permuted = ESTIMATORS[name]()(rewards, weights), ESTIMATORS[name]()(rewards[:, order], weights)
    torch.testing.assert_close(permuted, whole[:, order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ESTIMATORS)
@settings(max_examples=30, deadline=None)
@given(batch=batches(), seed=st.integers(0, 1000))
def test_permuting_objectives_with_their_weights_changes_nothing(name, batch, seed):
    rewards, weights = batch
    order = torch.randperm(len(weights), generator=torch.Generator().manual_seed(seed))
    whole = ESTIMATORS[name]()(rewards, weights)
    torch.testing.assert_close(ESTIMATORS[name]()(rewards[..., order], weights[order]), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SHIFT_INVARIANT)
@settings(max_examples=30, deadline=None)
@given(batch=batches(), shift=st.floats(-10, 10))
def test_a_constant_on_every_reward_changes_nothing(name, batch, shift):
    rewards, weights = batch
    whole = ESTIMATORS[name]()(rewards, weights)
    torch.testing.assert_close(ESTIMATORS[name]()(rewards + shift, weights), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SCALE_INVARIANT)
@settings(max_examples=30, deadline=None)
@given(batch=batches(), scale=st.floats(0.1, 10))
def test_a_positive_factor_is_cancelled(name, batch, scale):
    """Trap 1: under these rules a multiplier on the rewards does nothing, so it must act on the advantages."""
    rewards, weights = batch
    whole = ESTIMATORS[name]()(rewards, weights)
    torch.testing.assert_close(ESTIMATORS[name]()(scale * rewards, weights), whole, atol=1e-4, rtol=1e-4)


def test_rloo_feels_a_positive_factor():
    rewards, weights = torch.tensor([[[1.0], [0.0], [0.0]]]), torch.ones(1)
    torch.testing.assert_close(Rloo()(2 * rewards, weights), 2 * Rloo()(rewards, weights))


@settings(max_examples=30, deadline=None)
@given(batch=batches(), scale=st.floats(0.5, 100))
def test_gdpo_ignores_the_unit_of_one_objective(batch, scale):
    rewards, weights = batch
    rescaled = rewards.clone()
    rescaled[..., 0] *= scale
    torch.testing.assert_close(Gdpo()(rescaled, weights), Gdpo()(rewards, weights), atol=1e-4, rtol=1e-4)


def test_grpo_does_not_ignore_the_unit_of_one_objective():
    rewards = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.5]]])
    rescaled = rewards * torch.tensor([1.0, 100.0])
    weights = torch.tensor([0.5, 0.5])
    assert not torch.allclose(Grpo()(rescaled, weights), Grpo()(rewards, weights), atol=0.1)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 3), (3, 4, 2), (1, 8, 32)])
def test_no_spread_no_signal(name, shape):
    weights = torch.full((shape[2],), 1 / shape[2])
    assert torch.equal(ESTIMATORS[name]()(torch.full(shape, 0.7), weights), torch.zeros(shape[:2]))


def test_nearly_equal_weights_invent_no_signal():
    """Trap 3: sums that tie up to the weights' rounding carry none with a floor on the spread."""
    rewards = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    weights = torch.tensor([0.334, 0.333, 0.333])
    assert Grpo(std_floor=1e-6)(rewards, weights).abs().max() > 1  # the trap
    assert torch.equal(Grpo(std_floor=1e-3)(rewards, weights), torch.zeros(1, 3))
    assert torch.equal(Grpo()(rewards, torch.full((3,), 1 / 3)), torch.zeros(1, 3))


def test_a_group_without_spread_in_the_sum_still_teaches_under_gdpo():
    """Trap 6: the sum ties, the objectives do not."""
    rewards = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]])
    per_objective = Gdpo().per_objective(rewards)
    assert (per_objective[0].abs() > 0.9).all()
    assert torch.equal(Grpo()(rewards, torch.tensor([0.5, 0.5]))[0], torch.zeros(2))


def test_monotone_transform_of_a_binary_reward_is_cancelled():
    """Trap 4: standardising a two-valued reward forgets the values."""
    rewards = torch.tensor([[[1.0], [0.0], [0.0], [1.0]]])
    transformed = torch.nn.functional.logsigmoid(3 * rewards)
    torch.testing.assert_close(Gdpo().per_objective(rewards), Gdpo().per_objective(transformed))


@settings(max_examples=40, deadline=None)
@given(batch=batches())
def test_gdpo_is_one_factor_times_the_weighted_sum(batch):
    """What makes the objectives' gradients also the parts of the update."""
    rewards, weights = batch
    parts = Gdpo().per_objective(rewards)
    combined = whitening_factor(parts, weights) * combine(parts, weights)
    torch.testing.assert_close(Gdpo()(rewards, weights).double(), combined, atol=1e-5, rtol=1e-5)


REWARDS = torch.tensor([[[1.0, 0.2], [0.0, 0.6], [0.0, 0.4]]])
WEIGHTS = torch.tensor([0.75, 0.25])
SUMS = (0.8, 0.15, 0.1)  # by hand


def test_grpo_pinned():
    mean = sum(SUMS) / 3
    std = math.sqrt(sum((value - mean) ** 2 for value in SUMS) / 3)
    expected = torch.tensor([[(value - mean) / std for value in SUMS]])
    torch.testing.assert_close(Grpo()(REWARDS, WEIGHTS), expected)


def test_rloo_pinned():
    expected = torch.tensor([[0.8 - 0.125, 0.15 - 0.45, 0.1 - 0.475]])
    torch.testing.assert_close(Rloo()(REWARDS, WEIGHTS), expected)


def test_reinforce_pinned_over_two_prompts():
    rewards = torch.tensor([[[1.0]], [[0.0]]])
    torch.testing.assert_close(Reinforce()(rewards, torch.ones(1)), torch.tensor([[1.0], [-1.0]]))


def test_gdpo_pinned():
    first = [math.sqrt(2), -1 / math.sqrt(2), -1 / math.sqrt(2)]
    second = [-math.sqrt(1.5), math.sqrt(1.5), 0.0]
    sums = [0.75 * a + 0.25 * b for a, b in zip(first, second, strict=True)]
    std = math.sqrt(sum(value**2 for value in sums) / 3)
    torch.testing.assert_close(Gdpo()(REWARDS, WEIGHTS), torch.tensor([[value / std for value in sums]]))


def test_whiten_has_mean_zero_and_spread_one():
    whitened = whiten(torch.rand(4, 5, dtype=torch.float64))
    assert abs(float(whitened.mean())) < 1e-9
    assert abs(float(whitened.std(correction=0)) - 1) < 1e-6
