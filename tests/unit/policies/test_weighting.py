"""Weighting strategies and the bounded simplex."""

import copy
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.types import FrontStats, StepStats
from policies.weighting import WEIGHTINGS, Fixed, GradientInfluence, HypervolumeGuided
from policies.weighting.gradient import influence
from policies.weighting.simplex import project


def stats(step=1, *, preference, gramian=None, front=None, rewards=None):
    objectives = len(preference)
    return StepStats(
        step=step,
        rewards_PGK=torch.rand(2, 4, objectives) if rewards is None else rewards,
        preference_K=torch.tensor(preference, dtype=torch.float32),
        gramian_KK=torch.eye(objectives, dtype=torch.float64) if gramian is None else gramian,
        front=front,
    )


def gramian_of(objectives, seed, scale=1.0):
    gradients = scale * torch.randn(objectives, 50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return gradients @ gradients.T


def front(step, growth, points=2, objectives=3):
    return FrontStats(step=step, growth=growth, points_NK=torch.rand(points, objectives))


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("objectives", [1, 2, 3, 8, 32])
def test_weights_stay_on_the_simplex(name, objectives):
    strategy = WEIGHTINGS[name](**({"floor": 0.01} if name == "gradient" else {}))
    preference = [1 / objectives] * objectives
    for step in range(1, 30):
        weights = strategy.update(
            stats(step, preference=preference, gramian=gramian_of(objectives, step), front=front(step, 0.01))
        ).weights_K
        assert torch.isfinite(weights).all()
        assert (weights >= 0).all()
        assert abs(float(weights.sum()) - 1) < 1e-5


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_permuting_objectives_permutes_weights(name):
    order = torch.tensor([2, 0, 1])
    preference = torch.tensor([0.5, 0.3, 0.2])
    gramian = gramian_of(3, 7)
    whole = WEIGHTINGS[name]().update(stats(preference=preference.tolist(), gramian=gramian)).weights_K
    permuted = WEIGHTINGS[name]().update(stats(preference=preference[order].tolist(), gramian=gramian[order][:, order]))
    torch.testing.assert_close(permuted.weights_K, whole[order])


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_state_round_trip_continues_identically(name):
    def run(strategy, steps):
        return [
            strategy.update(
                stats(step, preference=[0.4, 0.3, 0.3], gramian=gramian_of(3, step), front=front(step, 0.01 * step))
            )
            for step in steps
        ]

    whole, first, second = WEIGHTINGS[name](), WEIGHTINGS[name](), WEIGHTINGS[name]()
    expected = run(whole, range(1, 11))[5:]
    run(first, range(1, 6))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for choice, other in zip(run(second, range(6, 11)), expected, strict=True):
        assert torch.equal(choice.weights_K, other.weights_K)
        assert choice.advantage_scale == other.advantage_scale


def test_fixed_is_the_preference():
    assert torch.equal(Fixed().update(stats(preference=[0.7, 0.3])).weights_K, torch.tensor([0.7, 0.3]))


class TestHypervolume:
    def test_pinned_multipliers(self):
        """m = 0.5 + 1.5 tanh(d / tau), tau = median of past positive d (itself at first)."""
        strategy = HypervolumeGuided()
        seen = []
        for step, growth in enumerate([0.3, 0.02, 0.04, 0.0, 0.03]):
            stat = front(step, growth, points=step + 1)
            seen.append(strategy.update(stats(step, preference=[0.5, 0.5], front=stat)).advantage_scale)
        expected = [1.0, 0.5 + 1.5 * math.tanh(1), 0.5 + 1.5 * math.tanh(2), 0.5, 0.5 + 1.5 * math.tanh(1)]
        assert seen == pytest.approx(expected)

    def test_holds_until_the_next_evaluation(self):
        strategy = HypervolumeGuided()
        first = strategy.update(stats(1, preference=[1.0], front=front(5, 0.1))).advantage_scale
        again = strategy.update(stats(2, preference=[1.0], front=front(5, 0.1))).advantage_scale
        assert first == again != 1.0

    def test_acts_on_advantages_and_faithful_on_rewards(self):
        for faithful in (False, True):
            choice = HypervolumeGuided(faithful=faithful).update(stats(1, preference=[1.0], front=front(5, 0.1)))
            assert (choice.reward_scale != 1.0) is faithful
            assert (choice.advantage_scale != 1.0) is not faithful

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
    def test_the_multiplier_stays_within_base_and_base_plus_gain(self, growths):
        strategy = HypervolumeGuided()
        for step, growth in enumerate(growths, start=1):
            scale = strategy.update(stats(step, preference=[1.0], front=front(step, growth))).advantage_scale
            assert 0.5 <= scale <= 2.0


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

    def test_rich_get_richer_without_a_floor(self):
        """Trap 8: influences 1.2, 0.75 and 0.3 with step 0.1 take a third to 0.77 and 0.05 ... in 30 steps."""
        published, floored = GradientInfluence(floor=0.0), GradientInfluence(floor=0.15)
        gramian = torch.tensor([[1.0, 0.3, -0.1], [0.3, 0.75, -0.3], [-0.1, -0.3, 0.7]], dtype=torch.float64)
        assert influence(gramian).tolist() == pytest.approx([1.2, 0.75, 0.3])
        third = [1 / 3] * 3
        for step in range(30):
            poor = published.update(stats(step, preference=third, gramian=gramian)).weights_K
            kept = floored.update(stats(step, preference=third, gramian=gramian)).weights_K
        assert float(poor[2]) < 0.06
        assert float(kept.min()) == pytest.approx(0.15, abs=1e-6)

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


@st.composite
def bounded(draw):
    size = draw(st.integers(1, 8))
    numbers = st.floats(0, 1, allow_nan=False)
    weights = draw(st.lists(st.floats(-2, 2), min_size=size, max_size=size))
    floors = [value / size for value in draw(st.lists(numbers, min_size=size, max_size=size))]
    ceilings = [floor + (1 - floor) * draw(numbers) for floor in floors]
    return [torch.tensor(values, dtype=torch.float64) for values in (weights, floors, ceilings)]


class TestSimplex:
    @settings(max_examples=200, deadline=None)
    @given(bounded(), st.integers(0, 2**31))
    def test_projection_is_feasible_and_nearest(self, case, seed):
        weights, floors, ceilings = case
        if float(ceilings.sum()) < 1:
            with pytest.raises(ValueError, match="no weights that sum to 1"):
                project(weights, floors, ceilings)
            return
        point = project(weights, floors, ceilings)
        assert abs(float(point.sum()) - 1) < 1e-9
        assert (point >= floors - 1e-12).all()
        assert (point <= ceilings + 1e-12).all()
        # Nearest: no feasible direction, found by moving mass between two coordinates, comes closer.
        distance = float((point - weights).norm())
        generator = torch.Generator().manual_seed(seed)
        for _ in range(20):
            i, j = torch.randint(len(point), (2,), generator=generator).tolist()
            step = min(float(ceilings[i] - point[i]), float(point[j] - floors[j])) * 0.5
            other = point.clone()
            other[i] += step
            other[j] -= step
            assert float((other - weights).norm()) >= distance - 1e-9

    def test_pinned(self):
        floors, ceilings = torch.tensor([0.2, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.3])
        point = project(torch.tensor([0.0, 0.5, 0.5]), floors, ceilings)
        assert point.tolist() == pytest.approx([0.2, 0.5, 0.3])

    def test_a_feasible_point_stays(self):
        point = torch.tensor([0.25, 0.75], dtype=torch.float64)
        assert torch.equal(project(point, torch.zeros(2), torch.ones(2)), point)


def test_strategies_do_not_change_what_they_are_given():
    given_stats = stats(preference=[0.5, 0.5], gramian=gramian_of(2, 1))
    kept = copy.deepcopy(given_stats.gramian_KK)
    GradientInfluence().update(given_stats)
    assert torch.equal(given_stats.gramian_KK, kept)
