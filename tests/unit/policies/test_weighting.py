"""Weighting strategies: what each claims, one value of each by hand, and the traps of the published forms."""

import copy
import dataclasses
import inspect
import json
import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from orchestrator.specs.weightings import WeightingSpec
from policies.pareto import Archive, Point, hypervolume
from policies.types import FrontStats, Objectives, StepStats, UpdateOutcome
from policies.weighting import WEIGHTINGS, Fixed, GradientInfluence, HypervolumeGuided, hv_gradient
from policies.weighting.covariance import CovarianceTarget, group_covariance
from policies.weighting.dara import SignalShare
from policies.weighting.gradient import influence
from policies.weighting.hv_gradient import HypervolumeGradient, hypervolume_gradient
from policies.weighting.lagrangian import Lagrangian
from policies.weighting.pama import LeastAdvantage
from policies.weighting.saturation import SaturationAware
from policies.weighting.saw import CoefficientOfVariation
from policies.weighting.schedule import Schedule
from policies.weighting.tchebycheff import Tchebycheff

NAN = float("nan")
SPECS = {spec.model_fields["name"].default: spec for spec in get_args(get_args(WeightingSpec)[0])}

# --- what each rule claims -------------------------------------------------------------------------------------------

FROM_REWARDS = ["saw", "dara", "saturation", "covariance", "lagrangian", "log_volume"]
# w proportional to preference * factor
MULTIPLIERS = ["saw", "dara", "saturation", "covariance", "hv_gradient", "log_volume"]
NO_PERMUTATION = ["gramian:pcgrad"]  # its order is drawn by position


def names_of(count):
    return tuple(f"o{k}" for k in range(count))


def objectives_of(count, *, ranges=None, targets=None, signs=None):
    return Objectives(
        names=names_of(count),
        ranges_K2=torch.tensor(ranges or [[0.0, 1.0]] * count, dtype=torch.float64),
        targets_K=torch.tensor(targets or [NAN] * count, dtype=torch.float64),
        target_signs_K=torch.tensor(signs or [1.0] * count, dtype=torch.float64),
    )


def stats(step=1, *, preference, gramian=None, front=None, rewards=None, advantages=None, objectives=None, **other):
    count = len(preference)
    rewards = torch.rand(2, 4, count) if rewards is None else torch.as_tensor(rewards)
    return StepStats(
        step=step,
        objectives=objectives or objectives_of(count),
        rewards_PGK=rewards,
        advantages_PGK=torch.nan_to_num(rewards) if advantages is None else torch.as_tensor(advantages),
        preference_K=torch.tensor(preference, dtype=torch.float32),
        gramian_KK=gramian,
        front=front,
        **other,
    )


def front_of(step, growth, points=2, objectives=3):
    points_NK = torch.rand(points, objectives, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return FrontStats(step=step, growth=growth, points_NK=points_NK, current_K=points_NK[-1])


def gramian_of(count, seed, scale=1.0):
    gradients = scale * torch.randn(count, 50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return gradients @ gradients.T


def rich_stats(step, count, *, preference=None):
    """A step with everything measured; every second objective has a target."""
    generator = torch.Generator().manual_seed(1000 * count + step)
    rewards = torch.rand(3, 4, count, generator=generator)
    if preference is None:
        preference = torch.softmax(torch.randn(count, generator=torch.Generator().manual_seed(count)), 0).tolist()
    return stats(
        step,
        preference=preference,
        rewards=rewards,
        advantages=rewards - rewards.mean(dim=1, keepdim=True),
        gramian=gramian_of(count, step),
        front=front_of(step, 0.01 * (step % 3), points=3, objectives=count),
        objectives=objectives_of(
            count,
            targets=[0.6 if k % 2 else NAN for k in range(count)],
            signs=[-1.0 if k % 4 == 3 else 1.0 for k in range(count)],
        ),
    )


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


# --- properties of all -----------------------------------------------------------------------------------------------


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


# --- one value of each, by hand --------------------------------------------------------------------------------------


def two(first, second):
    """One prompt's rewards of two objectives."""
    return torch.tensor([first, second], dtype=torch.float64).T[None]


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


class TestHypervolume:
    def test_pinned_multipliers(self):
        """m = 0.5 + 1.5 tanh(d / tau), tau = median of past positive d (itself at first)."""
        strategy = HypervolumeGuided()
        seen = []
        for step, growth in enumerate([0.3, 0.02, 0.04, 0.0, 0.03]):
            stat = front_of(step, growth, points=step + 1)
            seen.append(strategy.update(stats(step, preference=[0.5, 0.5], front=stat)).advantage_scale)
        expected = [1.0, 0.5 + 1.5 * math.tanh(1), 0.5 + 1.5 * math.tanh(2), 0.5, 0.5 + 1.5 * math.tanh(1)]
        assert seen == pytest.approx(expected)

    def test_holds_until_the_next_evaluation(self):
        strategy = HypervolumeGuided()
        first = strategy.update(stats(1, preference=[1.0], front=front_of(5, 0.1))).advantage_scale
        again = strategy.update(stats(2, preference=[1.0], front=front_of(5, 0.1))).advantage_scale
        assert first == again != 1.0

    def test_acts_on_advantages_and_faithful_on_rewards(self):
        for faithful in (False, True):
            choice = HypervolumeGuided(faithful=faithful).update(stats(1, preference=[1.0], front=front_of(5, 0.1)))
            assert (choice.reward_scale != 1.0) is faithful
            assert (choice.advantage_scale != 1.0) is not faithful

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
    def test_the_multiplier_stays_within_base_and_base_plus_gain(self, growths):
        strategy = HypervolumeGuided()
        for step, growth in enumerate(growths, start=1):
            scale = strategy.update(stats(step, preference=[1.0], front=front_of(step, growth))).advantage_scale
            assert 0.5 <= scale <= 2.0

    def test_raw_units_saturate(self):
        """Trap 2: accuracy in 0..1 and length in hundreds of tokens. tanh of the raw volume's growth is 1 for a big and
        for a small step alike; ours, on normalised volumes and by their own median, tells them apart.
        """
        runs = [(0.30, 200.0), (0.40, 230.0), (0.41, 232.0), (0.60, 300.0)]
        volumes = np.maximum.accumulate([accuracy * length for accuracy, length in runs])
        naive = np.tanh(np.diff(volumes))
        assert naive.min() > 0.99

        archive, strategy = Archive({"accuracy": (0.0, 1.0), "length": (0.0, 1000.0)}), HypervolumeGuided()
        ours = []
        for step, (accuracy, length) in enumerate(runs):
            growth = archive.add(Point(step=step, objectives={"accuracy": accuracy, "length": length}, mean_tokens=1.0))
            points = torch.from_numpy(archive.normalised(archive.points))
            now = FrontStats(step=step, growth=growth, points_NK=points, current_K=points[-1])
            ours.append(strategy.update(stats(step, preference=[0.5, 0.5], front=now)).advantage_scale)
        assert ours[2] < 0.8 < 1.6 < ours[1] < ours[3]


class TestHypervolumeGradient:
    def test_pinned(self):
        """In direction 0 nothing at or above 0.5 but (0.8, 0.1): 0.6 - 0.1; in direction 1 (0.2, 0.8): 0.5 - 0.2."""
        points = np.array([[0.2, 0.8], [0.8, 0.1], [0.5, 0.6]])
        assert hypervolume_gradient(points, points[-1]) == pytest.approx([0.5, 0.3])
        now = FrontStats(step=1, growth=0.0, points_NK=torch.from_numpy(points), current_K=torch.from_numpy(points[-1]))
        weights = HypervolumeGradient().update(stats(preference=[0.3, 0.7], front=now)).weights_K
        assert weights.tolist() == pytest.approx([0.15 / 0.36, 0.21 / 0.36])

    @pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
    @pytest.mark.parametrize("seed", range(5))
    def test_is_the_slope_of_the_hypervolume(self, count, seed):
        rng = np.random.default_rng(seed)
        points, step = rng.random((8, count)), 1e-7
        current = np.clip(points[-1] + 0.3, 0.05, 0.95)
        points[-1] = current

        def volume(k, move):
            return hypervolume(np.vstack([points[:-1], current + move * np.eye(count)[k]]))

        slopes = [(volume(k, step) - volume(k, -step)) / (2 * step) for k in range(count)]
        assert hypervolume_gradient(points, current) == pytest.approx(slopes, abs=1e-6)

    @pytest.mark.parametrize(("count", "points"), [(3, 14), (8, 12), (9, 12), (9, 5)])
    def test_the_three_ways_agree(self, count, points, monkeypatch):
        rng = np.random.default_rng(count + points)
        cloud = rng.random((points, count)) ** 0.3
        current = cloud.mean(axis=0) + 0.05
        ours = hypervolume_gradient(cloud, current)
        monkeypatch.setattr(hv_gradient, "FEW", 40)
        monkeypatch.setattr(hv_gradient, "nondominated", lambda rows: np.ones(len(rows), dtype=bool))
        by_subsets = hypervolume_gradient(cloud, current)
        box = max(np.delete(current, k).prod() for k in range(count))
        assert np.abs(ours - by_subsets).max() <= (0.03 if count > 8 and points > 8 else 1e-9) * box

    def test_a_dominated_point_has_the_preference(self):
        points = torch.tensor([[0.9, 0.9], [0.4, 0.5]])
        now = FrontStats(step=1, growth=0.0, points_NK=points, current_K=points[-1])
        weights = HypervolumeGradient().update(stats(preference=[0.3, 0.7], front=now)).weights_K
        assert weights.tolist() == pytest.approx([0.3, 0.7])

    def test_holds_until_the_next_evaluation(self):
        strategy = HypervolumeGradient()
        first = strategy.update(stats(1, preference=[0.5, 0.5], front=front_of(5, 0.1, objectives=2))).weights_K
        absent = strategy.update(stats(2, preference=[0.5, 0.5])).weights_K
        assert torch.equal(first, absent)


class TestGradient:
    def test_pinned_first_step(self):
        """Orthogonal gradients of norms 0.5 and 2 (clipped to 1): I = (0.25, 1), log w += 0.1 I from (.5, .5)."""
        gramian = torch.diag(torch.tensor([0.25, 4.0]))
        weights = GradientInfluence(floor=0.0).update(stats(preference=[0.5, 0.5], gramian=gramian)).weights_K
        first = math.exp(0.025) / (math.exp(0.025) + math.exp(0.1))
        assert weights.tolist() == pytest.approx([first, 1 - first], abs=1e-6)

    def test_influence_is_the_row_sum_of_clipped_gradients(self):
        gradients = torch.tensor([[3.0, 4.0], [0.3, 0.0]], dtype=torch.float64)
        clipped = torch.tensor([[0.6, 0.8], [0.3, 0.0]], dtype=torch.float64)
        expected = (clipped @ clipped.T).sum(dim=1)
        torch.testing.assert_close(influence(gradients @ gradients.T), expected)

    def test_influence_alone_will_do(self):
        gramian = gramian_of(3, 1, 0.1)
        whole = GradientInfluence().update(stats(preference=[0.5, 0.3, 0.2], gramian=gramian))
        alone = GradientInfluence().update(stats(preference=[0.5, 0.3, 0.2], influence_K=influence(gramian)))
        assert torch.equal(whole.weights_K, alone.weights_K)

    def test_a_step_without_a_measurement_keeps_the_weights(self):
        strategy = GradientInfluence()
        assert strategy.update(stats(preference=[0.3, 0.7])).weights_K.tolist() == pytest.approx([0.3, 0.7])
        moved = strategy.update(stats(preference=[0.3, 0.7], gramian=torch.diag(torch.tensor([1.0, 0.1])))).weights_K
        assert torch.equal(strategy.update(stats(preference=[0.3, 0.7])).weights_K, moved)

    def test_rich_get_richer_without_a_floor(self):
        """Trap 8: influences 1.2, 0.75 and 0.3 with step 0.1 leave the third objective 0.05 after 30 steps."""
        published, bounded = GradientInfluence(floor=0.0), GradientInfluence(floor=0.15, ceiling=0.5)
        gramian = torch.tensor([[1.0, 0.3, -0.1], [0.3, 0.75, -0.3], [-0.1, -0.3, 0.7]], dtype=torch.float64)
        assert influence(gramian).tolist() == pytest.approx([1.2, 0.75, 0.3])
        third = [1 / 3] * 3
        for step in range(30):
            poor = published.update(stats(step, preference=third, gramian=gramian)).weights_K
            kept = bounded.update(stats(step, preference=third, gramian=gramian)).weights_K
        assert float(poor[2]) < 0.06
        assert float(poor[0]) > 0.7
        assert float(kept.min()) == pytest.approx(0.15, abs=1e-6)
        assert float(kept.max()) == pytest.approx(0.5, abs=1e-6)

    def test_decay_pulls_back_to_the_preference(self):
        gramian = torch.diag(torch.tensor([1.0, 0.1]))
        free, held = GradientInfluence(floor=0.0), GradientInfluence(floor=0.0, decay=0.2)
        for step in range(60):
            far = free.update(stats(step, preference=[0.3, 0.7], gramian=gramian)).weights_K
            near = held.update(stats(step, preference=[0.3, 0.7], gramian=gramian)).weights_K
        assert float(far[0]) > 0.9
        assert float(near[0]) < 0.5

    def test_a_new_preference_is_a_new_start(self):
        strategy = GradientInfluence()
        for step in range(20):
            strategy.update(stats(step, preference=[0.5, 0.5], gramian=torch.diag(torch.tensor([1.0, 0.0]))))
        steered = strategy.update(stats(21, preference=[0.1, 0.9], gramian=torch.zeros(2, 2)))
        assert steered.weights_K.tolist() == pytest.approx([0.1, 0.9])

    def test_zero_gradients_change_nothing(self):
        weights = GradientInfluence().update(stats(preference=[0.2, 0.3, 0.5], gramian=torch.zeros(3, 3))).weights_K
        assert weights.tolist() == pytest.approx([0.2, 0.3, 0.5])

    def test_the_length_of_gradients_matters_below_1_and_not_above(self):
        """No invariance to a factor on all gradients, unlike the Gramian rules."""
        weights = [
            GradientInfluence(floor=0.0).update(stats(preference=[0.5, 0.5], gramian=scale * torch.eye(2) * diagonal))
            for scale, diagonal in ((1.0, torch.tensor([0.1, 0.9])), (100.0, torch.tensor([0.1, 0.9])))
        ]
        assert not torch.allclose(weights[0].weights_K, weights[1].weights_K, atol=1e-3)


class TestSaw:
    def test_pinned(self):
        """CV 1 and 0.5, so u moves a tenth of the way from 1 to (4/3, 2/3)."""
        rewards = two([0.0, 1.0], [0.25, 0.75])
        weights = CoefficientOfVariation().update(stats(preference=[0.5, 0.5], rewards=rewards)).weights_K
        assert weights.tolist() == pytest.approx([31 / 60, 29 / 60])

    def test_the_floor_keeps_a_constant_objective(self):
        rewards, strategy = two([0.0, 1.0], [0.5, 0.5]), CoefficientOfVariation()
        for step in range(100):
            weights = strategy.update(stats(step, preference=[0.5, 0.5], rewards=rewards)).weights_K
        assert weights.tolist() == pytest.approx([2 / 2.25, 0.25 / 2.25], abs=1e-4)

    def test_rewards_are_shifted_by_the_range(self):
        """[-3, 3] as the published code has it: CV of -3 and 3 is 1."""
        objectives = objectives_of(2, ranges=[[-3.0, 3.0], [0.0, 1.0]])
        stat = stats(preference=[0.5, 0.5], rewards=two([-3.0, 3.0], [0.25, 0.75]), objectives=objectives)
        weights = CoefficientOfVariation(rate=1.0, floor=0.0).update(stat).weights_K
        assert weights.tolist() == pytest.approx([2 / 3, 1 / 3])


class TestDara:
    def test_pinned(self):
        """Objective 0 varies in all four groups, 1 in one of them: factors 1 and 2."""
        rewards = torch.zeros(4, 2, 2)
        rewards[:, 0, 0] = 1.0
        rewards[2, 1, 1] = 1.0
        weights = SignalShare().update(stats(preference=[0.5, 0.5], rewards=rewards)).weights_K
        assert weights.tolist() == pytest.approx([1 / 3, 2 / 3])

    def test_the_cap(self):
        rewards = two([0.0, 1.0], [0.5, 0.5])
        weights = SignalShare(cap=4.0).update(stats(preference=[0.5, 0.5], rewards=rewards)).weights_K
        assert weights.tolist() == pytest.approx([0.2, 0.8])

    def test_any_increasing_transform_of_rewards_is_the_same(self):
        stat = rich_stats(1, 3)
        cubed = dataclasses.replace(stat, rewards_PGK=stat.rewards_PGK**3)
        assert torch.equal(SignalShare().update(stat).weights_K, SignalShare().update(cubed).weights_K)


class TestSaturation:
    def test_pinned(self):
        stat = stats(preference=[0.5, 0.5], rewards=two([0.5, 1.0], [0.0, 0.0]))
        assert SaturationAware().update(stat).weights_K.tolist() == pytest.approx([1 / 3, 2 / 3])

    def test_all_saturated_is_the_preference(self):
        stat = stats(preference=[0.3, 0.7], rewards=two([1.0, 1.0], [2.0, 1.0]))
        assert SaturationAware().update(stat).weights_K.tolist() == pytest.approx([0.3, 0.7])

    def test_a_saturated_objective_yields(self):
        stat = stats(preference=[0.3, 0.7], rewards=two([1.0, 1.0], [0.2, 0.4]))
        assert SaturationAware().update(stat).weights_K.tolist() == pytest.approx([0.0, 1.0])


class TestCovariance:
    def test_pinned(self):
        """Cov 0.5 and -0.5, wanted 0.1: log u = (0, 0.1 * 0.6)."""
        rewards = two([0.0, 1.0], [1.0, 0.0])
        strategy = CovarianceTarget(eta=0.1, target_covariance=0.1)
        assert strategy.update(stats(preference=[0.5, 0.5], rewards=rewards)).weights_K.tolist() == [0.5, 0.5]
        strategy.observe(UpdateOutcome(rewards_PGK=rewards, credit_PG=torch.tensor([[-1.0, 1.0]])))
        weights = strategy.update(stats(preference=[0.5, 0.5], rewards=rewards)).weights_K
        assert weights.tolist() == pytest.approx([1 / (1 + math.exp(0.06)), 1 / (1 + math.exp(-0.06))])

    def test_is_off_once_the_target_is_met(self):
        rewards, objectives = two([0.0, 1.0], [1.0, 0.0]), objectives_of(2, targets=[NAN, 0.5])
        strategy = CovarianceTarget()
        strategy.observe(UpdateOutcome(rewards_PGK=rewards, credit_PG=torch.tensor([[-1.0, 1.0]])))
        stat = stats(preference=[0.5, 0.5], rewards=rewards, objectives=objectives)
        assert strategy.update(stat).weights_K.tolist() == [0.5, 0.5]
        missed = dataclasses.replace(stat, objectives=objectives_of(2, targets=[NAN, 0.6]))
        assert float(strategy.update(missed).weights_K[1]) > 0.5

    def test_what_was_not_measured_does_not_count(self):
        rewards = torch.tensor([[[0.0], [1.0], [NAN]], [[0.7], [NAN], [NAN]]])
        credit = torch.tensor([[-1.0, 1.0, 99.0], [3.0, 4.0, 5.0]])
        assert group_covariance(rewards, credit).tolist() == pytest.approx([0.5])

    def test_an_exponential_mean(self):
        strategy = CovarianceTarget(rate=0.25)
        for sign in (1.0, -1.0):
            credit = sign * torch.tensor([[-1.0, 1.0]])
            strategy.observe(UpdateOutcome(rewards_PGK=torch.tensor([[[0.0], [1.0]]]), credit_PG=credit))
        assert strategy.state_dict()["covariance"] == pytest.approx([0.25])


class TestPama:
    def test_pinned(self):
        """Means of the positive parts: 0.5, 0.25 and 0 (which takes no part)."""
        advantages = torch.tensor([[[1.0, 0.5, 0.0], [-1.0, -0.5, 0.0]]])
        stat = stats(preference=[0.4, 0.3, 0.3], rewards=torch.rand(1, 2, 3), advantages=advantages)
        assert LeastAdvantage().update(stat).weights_K.tolist() == [0.0, 1.0, 0.0]

    def test_ties_share_by_preference(self):
        advantages = two([1.0, -1.0], [-1.0, 1.0])
        stat = stats(preference=[0.3, 0.7], rewards=torch.rand(1, 2, 2), advantages=advantages)
        assert LeastAdvantage().update(stat).weights_K.tolist() == pytest.approx([0.3, 0.7])

    def test_without_preference_no_weight(self):
        advantages = two([1.0, -1.0], [0.1, -0.1])
        stat = stats(preference=[1.0, 0.0], rewards=torch.rand(1, 2, 2), advantages=advantages)
        assert LeastAdvantage().update(stat).weights_K.tolist() == [1.0, 0.0]

    def test_the_scalar_form_loses_whose_doing_it_was(self):
        """Trap 7: the published scalar is the same for every rollout; ours is the arg-min objective's own A_k."""
        advantages = torch.tensor([[[2.0, -0.4], [-2.0, 0.3], [0.0, 0.1]]])
        stat = stats(preference=[0.5, 0.5], rewards=torch.rand(1, 3, 2), advantages=advantages)
        naive = advantages.clamp_min(0).mean(dim=(0, 1)).min().expand(1, 3)
        assert float(naive.std()) == 0
        combined = (LeastAdvantage().update(stat).weights_K * advantages).sum(dim=-1)
        assert torch.equal(combined, advantages[:, :, 1])

    def test_the_weights_are_the_least_of_the_quadratic(self):
        """min over the simplex of (w.a)^2 for a >= 0."""
        stat = rich_stats(3, 3)
        gains = stat.advantages_PGK.clamp_min(0).mean(dim=(0, 1))
        ours = float(LeastAdvantage().update(stat).weights_K @ gains)
        others = torch.distributions.Dirichlet(torch.ones(3)).sample((200,)) @ gains
        assert ours <= float(others.min())


class TestTchebycheff:
    def test_pinned(self):
        """z = (0.8, 0.9): gaps 0.3 and 0, so softmax(0.5 * 0.3 / 0.1, 0) with equal preferences."""
        points = torch.tensor([[0.8, 0.2], [0.5, 0.9]])
        now = FrontStats(step=1, growth=0.0, points_NK=points, current_K=points[-1])
        weights = Tchebycheff(mu=0.1).update(stats(preference=[0.5, 0.5], front=now)).weights_K
        assert weights.tolist() == pytest.approx([1 / (1 + math.exp(-1.5)), 1 / (1 + math.exp(1.5))])

    def test_is_the_slope_of_the_smoothed_maximum(self):
        front = front_of(3, 0.0, points=4)
        preference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
        current = front.current_K.clone().requires_grad_()
        best = front.points_NK.amax(dim=0) + 0.05
        (-0.2 * torch.logsumexp(preference * (best - current) / 0.2, dim=0)).backward()
        weights = Tchebycheff(mu=0.2, margin=0.05).update(stats(preference=preference.tolist(), front=front)).weights_K
        torch.testing.assert_close(weights.double(), current.grad / current.grad.sum(), atol=1e-6, rtol=1e-6)

    def test_at_the_utopia_point_the_preference(self):
        points = torch.tensor([[0.1, 0.2], [0.5, 0.9]])
        now = FrontStats(step=1, growth=0.0, points_NK=points, current_K=points[-1])
        weights = Tchebycheff().update(stats(preference=[0.3, 0.7], front=now)).weights_K
        assert weights.tolist() == pytest.approx([0.3, 0.7])


class TestLagrangian:
    def run(self, strategy, *, mean, target, sign, steps=1, preference=(0.6, 0.2, 0.2)):
        objectives = objectives_of(
            3, ranges=[[0.0, 1.0], [0.0, 1.0], [0.0, 100.0]], targets=[NAN, NAN, target], signs=[1.0, 1.0, sign]
        )
        rewards = torch.tensor([[[0.1, 0.2, mean - 5.0], [0.4, 0.2, mean + 5.0]]])
        for step in range(steps):
            stat = stats(step, preference=list(preference), rewards=rewards, objectives=objectives)
            choice = strategy.update(stat)
        return choice

    def test_pinned_at_least(self):
        """lam = 0.1 * (80 - 30) / 100 a step; the others share 1 as 0.6 to 0.2."""
        choice = self.run(Lagrangian(), mean=30.0, target=80.0, sign=1.0, steps=2)
        assert choice.weights_K.tolist() == pytest.approx([0.75 / 1.1, 0.25 / 1.1, 0.1 / 1.1])
        assert choice.signs_K.tolist() == [1.0, 1.0, 1.0]

    def test_pinned_at_most(self):
        choice = self.run(Lagrangian(), mean=80.0, target=30.0, sign=-1.0, steps=2)
        assert choice.weights_K.tolist() == pytest.approx([0.75 / 1.1, 0.25 / 1.1, 0.1 / 1.1])
        assert choice.signs_K.tolist() == [1.0, 1.0, -1.0]

    @pytest.mark.parametrize(("mean", "sign"), [(90.0, 1.0), (10.0, -1.0)])
    def test_a_kept_target_costs_nothing(self, mean, sign):
        choice = self.run(Lagrangian(), mean=mean, target=50.0, sign=sign, steps=3)
        assert choice.weights_K.tolist() == pytest.approx([0.75, 0.25, 0.0])

    def test_the_multiplier_stops_at_its_largest(self):
        choice = self.run(Lagrangian(eta=10.0, lam_max=4.0), mean=0.0, target=100.0, sign=1.0, steps=5)
        assert float(choice.weights_K[2]) == pytest.approx(0.8)

    @pytest.mark.parametrize(("mean", "sign"), [(30.0, 1.0), (70.0, -1.0)])
    def test_equality_pushes_from_both_sides(self, mean, sign):
        choice = self.run(Lagrangian(form="equality", lam_max=2.0), mean=mean, target=50.0, sign=1.0, steps=3)
        value = 2.0 * math.tanh(3 * 0.1 * 0.2)
        assert choice.weights_K.tolist() == pytest.approx([0.75 / (1 + value), 0.25 / (1 + value), value / (1 + value)])
        assert choice.signs_K.tolist() == [1.0, 1.0, sign]

    @pytest.mark.parametrize("form", ["inequality", "equality"])
    def test_starts_at_lam_init(self, form):
        choice = self.run(Lagrangian(lam_init=1.0, form=form), mean=50.0, target=50.0, sign=1.0)
        assert float(choice.weights_K[2]) == pytest.approx(0.5)

    def test_a_new_preference_acts_at_once_among_those_without_a_target(self):
        choice = self.run(Lagrangian(), mean=90.0, target=50.0, sign=1.0, preference=(0.1, 0.3, 0.6))
        assert choice.weights_K.tolist() == pytest.approx([0.25, 0.75, 0.0])

    def test_no_preference_for_what_is_maximised(self):
        choice = self.run(Lagrangian(), mean=90.0, target=50.0, sign=1.0, preference=(0.0, 0.0, 1.0))
        assert choice.weights_K.tolist() == pytest.approx([0.0, 0.0, 1.0])


# --- as a spec names them --------------------------------------------------------------------------------------------

ADAPTER = TypeAdapter(WeightingSpec)


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
