"""The rules that read the front: values by hand, the slopes that they are, and a trap of raw units."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.pareto import Archive, Point, hypervolume
from policies.types import FrontStats
from policies.weighting import HypervolumeGuided, hv_gradient
from policies.weighting.hv_gradient import HypervolumeGradient, hypervolume_gradient
from policies.weighting.tchebycheff import Tchebycheff
from tests.weighting_stats import front_of, stats


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

    def test_collapsed_points_are_no_growth(self):
        """They are not among the archive's points, so that the initial policy's stays the only one."""
        strategy, seen = HypervolumeGuided(), []
        for step in (0, 5, 10):
            now = dataclasses.replace(front_of(0, 0.3 if step == 0 else 0.0, points=1), step=step)
            seen.append(strategy.update(stats(step + 1, preference=[0.5, 0.5], front=now)).advantage_scale)
        assert seen == [1.0, 0.5, 0.5]

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

    @pytest.mark.parametrize("count", [2, 3, 4])
    @pytest.mark.parametrize("seed", range(8))
    def test_among_equals_is_the_slope_upwards(self, count, seed):
        """Of places that are multiples of .2, many are shared: what an objective gains is what lies above it."""
        rng = np.random.default_rng(seed)
        points, step = rng.integers(1, 5, (8, count)) / 5, 1e-7
        current = points[-1]
        assert (points[:-1] == current).any()

        def volume(k, move):
            return hypervolume(np.vstack([points[:-1], current + move * np.eye(count)[k]]))

        slopes = [(volume(k, step) - volume(k, 0.0)) / step for k in range(count)]
        assert hypervolume_gradient(points, current) == pytest.approx(slopes, abs=1e-6)

    def test_an_objective_that_stalls_keeps_its_weight(self):
        """By hand: between (.42, .5) and (.42 + e, .6) the volume grows by .6 e, though the first shares its .42."""
        points = np.array([[0.42, 0.5], [0.42, 0.6]])
        assert hypervolume_gradient(points, points[-1]) == pytest.approx([0.6, 0.42])

    def test_at_its_upper_end_an_objective_has_no_more_than_what_it_holds_alone(self):
        points = np.array([[1.0, 0.5], [1.0, 0.6]])
        assert hypervolume_gradient(points, points[-1]) == pytest.approx([0.1, 1.0])

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

    def test_an_objective_at_the_bottom_does_not_get_all_the_weight(self):
        """As if it were at .05: facets .6 x .5, .05 x .5 and .05 x .6. Its own low point covers nothing of them."""
        points = torch.tensor([[0.0, 0.6, 0.5]])
        now = FrontStats(step=1, growth=0.0, points_NK=points, current_K=points[-1])
        weights = HypervolumeGradient().update(stats(preference=[1 / 3] * 3, front=now)).weights_K
        assert weights.tolist() == pytest.approx([0.3 / 0.355, 0.025 / 0.355, 0.03 / 0.355])
        near = torch.tensor([[0.02, 0.6, 0.5]])
        now = FrontStats(step=1, growth=0.0, points_NK=near, current_K=near[-1])
        again = HypervolumeGradient().update(stats(preference=[1 / 3] * 3, front=now)).weights_K
        assert again.tolist() == pytest.approx(weights.tolist())

    def test_holds_until_the_next_evaluation(self):
        strategy = HypervolumeGradient()
        first = strategy.update(stats(1, preference=[0.5, 0.5], front=front_of(5, 0.1, objectives=2))).weights_K
        absent = strategy.update(stats(2, preference=[0.5, 0.5])).weights_K
        assert torch.equal(first, absent)


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
