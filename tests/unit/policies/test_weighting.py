"""Weighting strategies: what all of them claim, and what each claims of preferences and units."""

import copy
import dataclasses
import json
import math

import pytest
import torch

from policies.types import Objectives, UpdateOutcome
from policies.weighting import WEIGHTINGS
from policies.weighting.tilt import under_preference
from tests.weighting_stats import NAN, gramian_of, names_of, objectives_of, rich_stats

FROM_REWARDS = ["saw", "dara", "saturation", "covariance", "lagrangian", "log_volume"]
# w proportional to preference * factor
MULTIPLIERS = ["saw", "dara", "saturation", "covariance", "hv_gradient", "log_volume"]
MULTIPLIERS += [f"gramian:{name}" for name in ("mgda", "cagrad", "nash_mtl", "imtl_g", "fairgrad", "aligned_mtl")]
NO_PERMUTATION = ["gramian:pcgrad"]  # its order is drawn by position


def credit_of(stat):
    generator = torch.Generator().manual_seed(stat.step)
    return UpdateOutcome(
        rewards_PGK=stat.rewards_PGK, credit_PG=torch.randn(stat.rewards_PGK.shape[:2], generator=generator)
    )


def build(name, count):
    points = [(1, dict.fromkeys(names_of(count), 1.0)), (6, {key: 1.0 + k for k, key in enumerate(names_of(count))})]
    options = {"schedule": {"points": points}, "gradient": {"floor": 0.01}}
    return WEIGHTINGS[name](**options.get(name, {}))


def drive(strategy, steps):
    """Updates and outcomes in order, as a job has them."""
    choices = []
    for stat in steps:
        choices.append(strategy.update(stat))
        strategy.observe(credit_of(stat))
    return choices


def assert_on_the_simplex(choice):
    weights = choice.weights_K
    assert torch.isfinite(weights).all()
    assert (weights >= 0).all()
    assert abs(float(weights.sum()) - 1) < 1e-5
    assert choice.signs_K is None or set(choice.signs_K.tolist()) <= {-1.0, 1.0}
    assert math.isfinite(choice.advantage_scale)
    assert math.isfinite(choice.reward_scale)
    for values in choice.because.values():  # told to people: a number for each, or NaN for none
        assert values.shape == weights.shape
        assert not torch.isinf(values).any()


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("count", [1, 2, 3, 8, 32])
def test_weights_stay_on_the_simplex(name, count):
    for choice in drive(build(name, count), [rich_stats(step, count) for step in range(1, 9)]):
        assert_on_the_simplex(choice)


def spread(stat, rewards):
    return dataclasses.replace(stat, rewards_PGK=rewards, advantages_PGK=torch.nan_to_num(rewards - rewards.mean()))


def with_gramian(make):
    return lambda stat: dataclasses.replace(stat, gramian_KK=make(len(stat.preference_K), stat.step))


def every_third_missing(stat):
    rewards = stat.rewards_PGK.clone()
    rewards.view(-1)[::3] = NAN
    return spread(stat, rewards)


def first_never_measured(stat):
    rewards = stat.rewards_PGK.clone()
    rewards[:, :, 0] = NAN
    return spread(stat, rewards)


def first_without_preference(stat):
    preference = stat.preference_K.clone()
    preference[0] = 0.0 if len(preference) > 1 else 1.0
    return dataclasses.replace(stat, preference_K=preference / preference.sum())


ADVERSE = {
    "no variance in the groups": lambda stat: spread(stat, stat.rewards_PGK[:, :1].expand(-1, 4, -1).clone()),
    "all rewards equal": lambda stat: spread(stat, torch.full_like(stat.rewards_PGK, 0.5)),
    "all rewards at the top": lambda stat: spread(stat, torch.ones_like(stat.rewards_PGK)),
    "all rewards at the bottom": lambda stat: spread(stat, torch.zeros_like(stat.rewards_PGK)),
    "rewards out of range": lambda stat: spread(stat, 50 * stat.rewards_PGK - 70),
    "one rollout a group": lambda stat: spread(stat, stat.rewards_PGK[:, :1].clone()),
    "missing entries": every_third_missing,
    "an objective not measured": first_never_measured,
    "nothing measured": lambda stat: spread(stat, torch.full_like(stat.rewards_PGK, NAN)),
    "no preference for one": first_without_preference,
    "no gramian and no front": lambda stat: dataclasses.replace(stat, gramian_KK=None, front=None),
    "zero gramian": with_gramian(lambda count, _: torch.zeros(count, count)),
    "rank-1 gramian": with_gramian(lambda count, _: torch.outer(*[torch.linspace(-1, 1.2, count)] * 2)),
    "identical gradients": with_gramian(lambda count, _: torch.full((count, count), 0.3)),
    "tiny gramian": with_gramian(lambda count, seed: gramian_of(count, seed, 1e-6)),
    "huge gramian": with_gramian(lambda count, seed: gramian_of(count, seed, 1e6)),
    "single-precision gramian": with_gramian(lambda count, seed: gramian_of(count, seed).float()),
    "one gradient 0": with_gramian(lambda count, seed: gramian_of(count, seed) * (torch.arange(count) > 0).outer(
        torch.arange(count) > 0)),
    "gramian not finite": with_gramian(lambda count, _: torch.full((count, count), NAN)),
    "opposite gradients": with_gramian(lambda count, _: torch.outer(*[(-1.0) ** torch.arange(count)] * 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("case", ADVERSE)
def test_adverse_steps_stay_on_the_simplex(name, case):
    for count in (1, 2, 3, 8, 32):
        steps = [ADVERSE[case](rich_stats(step, count)) for step in range(1, 4)]
        for choice in drive(build(name, count), [*steps, rich_stats(4, count)]):
            assert_on_the_simplex(choice)


def permuted(stat, order):
    objectives = Objectives(
        names=tuple(stat.objectives.names[k] for k in order),
        ranges_K2=stat.objectives.ranges_K2[order],
        targets_K=stat.objectives.targets_K[order],
        target_signs_K=stat.objectives.target_signs_K[order],
    )
    front = dataclasses.replace(
        stat.front, points_NK=stat.front.points_NK[:, order], current_K=stat.front.current_K[order]
    )
    return dataclasses.replace(
        stat,
        objectives=objectives,
        rewards_PGK=stat.rewards_PGK[:, :, order],
        advantages_PGK=stat.advantages_PGK[:, :, order],
        preference_K=stat.preference_K[order],
        gramian_KK=stat.gramian_KK[order][:, order],
        front=front,
    )


@pytest.mark.parametrize("name", [name for name in WEIGHTINGS if name not in NO_PERMUTATION])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_permuting_objectives_permutes_weights(name, count):
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    steps = [rich_stats(step, count) for step in range(1, 6)]
    whole = drive(build(name, count), steps)
    other = drive(build(name, count), [permuted(stat, order) for stat in steps])
    for choice, moved in zip(whole, other, strict=True):
        torch.testing.assert_close(moved.weights_K, choice.weights_K[order], atol=1e-5, rtol=1e-5)
        if choice.signs_K is not None:
            assert torch.equal(moved.signs_K, choice.signs_K[order])


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_state_round_trip_continues_identically(name):
    steps = [rich_stats(step, 3) for step in range(1, 11)]
    steps[0] = first_never_measured(steps[0])
    whole, first, second = (build(name, 3) for _ in range(3))
    expected = drive(whole, steps)[5:]
    drive(first, steps[:5])
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    for choice, other in zip(drive(second, steps[5:]), expected, strict=True):
        assert torch.equal(choice.weights_K, other.weights_K)
        assert choice.advantage_scale == other.advantage_scale
        if other.signs_K is not None:
            assert torch.equal(choice.signs_K, other.signs_K)


def tensors_of(stat):
    parts = [stat, stat.objectives, stat.front]
    return [value for part in parts for f in dataclasses.fields(part)
            if isinstance(value := getattr(part, f.name), torch.Tensor)]  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_strategies_change_nothing_they_are_given(name):
    steps = [rich_stats(step, 3) for step in range(1, 4)]
    kept = copy.deepcopy(steps)
    state = torch.random.get_rng_state()
    drive(build(name, 3), steps)
    for stat, before in zip(steps, kept, strict=True):
        for tensor, old in zip(tensors_of(stat), tensors_of(before), strict=True):
            assert torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(old))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", MULTIPLIERS)
def test_a_new_preference_acts_at_once(name):
    """The factor stays, the preference changes under it."""
    strategy = build(name, 3)
    drive(strategy, [rich_stats(step, 3, preference=[0.5, 0.3, 0.2]) for step in range(1, 10)])
    other = copy.deepcopy(strategy)
    before = strategy.update(rich_stats(10, 3, preference=[0.5, 0.3, 0.2])).weights_K
    after = other.update(rich_stats(10, 3, preference=[0.1, 0.2, 0.7])).weights_K
    expected = before * torch.tensor([0.1, 0.2, 0.7]) / torch.tensor([0.5, 0.3, 0.2])
    torch.testing.assert_close(after, expected / expected.sum())


@pytest.mark.parametrize("name", [*MULTIPLIERS, "pama", "fixed", "hypervolume"])
def test_what_a_choice_would_have_been_under_another_preference_is_what_it_is(name):
    strategy = build(name, 3)
    given, wanted = [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]
    drive(strategy, [rich_stats(step, 3, preference=given) for step in range(1, 10)])
    other = copy.deepcopy(strategy)
    choice_K, preference_K, wanted_K = (
        torch.as_tensor(row, dtype=torch.float64)
        for row in (strategy.update(rich_stats(10, 3, preference=given)).weights_K, given, wanted)
    )
    told_K = under_preference(type(strategy), choice_K, preference_K, wanted_K)
    torch.testing.assert_close(told_K.float(), other.update(rich_stats(10, 3, preference=wanted)).weights_K)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_under_the_same_preference_a_choice_stays(name):
    given = [0.5, 0.3, 0.2]
    strategy = build(name, 3)
    choice_K = drive(strategy, [rich_stats(step, 3, preference=given) for step in range(1, 5)])[-1].weights_K.double()
    preference_K = torch.tensor(given, dtype=torch.float64)
    torch.testing.assert_close(
        under_preference(type(strategy), choice_K, preference_K, preference_K), choice_K, atol=1e-7, rtol=0
    )


@pytest.mark.parametrize("name", MULTIPLIERS)
def test_what_had_no_preference_is_not_left_without_a_choice(name):
    """Its factor is not known: it counts as the mean of the others, by the preference."""
    rows = torch.tensor([[0.8, 0.2, 0.0], [0.5, 0.5, 0.0], [0.4, 0.4, 0.2]], dtype=torch.float64)
    told_K = under_preference(WEIGHTINGS[name], *rows)
    torch.testing.assert_close(told_K, torch.tensor([0.64, 0.16, 0.2], dtype=torch.float64))


@pytest.mark.parametrize("name", FROM_REWARDS)
def test_the_unit_of_a_reward_does_not_matter(name):
    """Rewards, range and target in another unit: the same weights."""

    def in_other_unit(stat):
        factor, shift = torch.tensor([300.0, 0.01, 7.0]), torch.tensor([-80.0, 3.0, 0.0])
        objectives = dataclasses.replace(
            stat.objectives,
            ranges_K2=stat.objectives.ranges_K2 * factor[:, None] + shift[:, None],
            targets_K=stat.objectives.targets_K * factor + shift,
        )
        return dataclasses.replace(stat, objectives=objectives, rewards_PGK=stat.rewards_PGK.double() * factor + shift)

    steps = [rich_stats(step, 3) for step in range(1, 8)]
    plain = drive(build(name, 3), steps)
    other = drive(build(name, 3), [in_other_unit(stat) for stat in steps])
    for choice, moved in zip(plain, other, strict=True):
        torch.testing.assert_close(moved.weights_K, choice.weights_K, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FROM_REWARDS)
def test_a_shift_within_the_range(name):
    """dara and, without targets, covariance claim that a constant added to a reward changes nothing."""

    def shifted(stat):
        return dataclasses.replace(stat, rewards_PGK=0.5 * stat.rewards_PGK + torch.tensor([0.0, 0.4, 0.2]))

    def halved(stat):
        return dataclasses.replace(stat, rewards_PGK=0.5 * stat.rewards_PGK)

    steps = [rich_stats(step, 3, preference=[0.3, 0.4, 0.3]) for step in range(1, 6)]
    if name == "covariance":
        steps = [dataclasses.replace(stat, objectives=objectives_of(3)) for stat in steps]
    plain = drive(build(name, 3), [halved(stat) for stat in steps])[-1].weights_K
    moved = drive(build(name, 3), [shifted(stat) for stat in steps])[-1].weights_K
    assert torch.allclose(plain, moved, atol=1e-6) is (name in {"dara", "covariance"})
    if name == "covariance":  # the shift does not matter, but a factor does
        whole = drive(build(name, 3), steps)[-1].weights_K
        assert not torch.allclose(plain, whole, atol=1e-6)
