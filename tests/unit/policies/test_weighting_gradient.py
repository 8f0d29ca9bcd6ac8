"""The rule that reads the gradients' influence: values by hand, and how the rich get richer."""

import math

import pytest
import torch

from policies.weighting import GradientInfluence
from policies.weighting.gradient import influence
from tests.weighting_stats import gramian_of, stats


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

    def test_the_defaults_keep_every_objective_at_work(self):
        """Trap 8, for a job that names no floor."""
        strategy = GradientInfluence()
        for step in range(40):
            strategy.update(stats(step, preference=[0.5, 0.5], influence_K=torch.tensor([1.2, 0.3])))
        weights = strategy.update(stats(40, preference=[0.5, 0.5])).weights_K
        assert weights.tolist() == pytest.approx([0.95, 0.05], abs=1e-6)

    @pytest.mark.parametrize(
        ("options", "preference", "influence", "expected"),
        [
            ({"ceiling": 0.6}, [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]),
            ({"floor": 0.0, "step_size": 10.0}, [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]),
            ({"floor": 0.0, "decay": 0.5}, [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]),
            ({"floor": 0.2, "ceiling": 0.4}, [0.5, 0.5, 0.0], [1.0, 0.1, 5.0], [0.5, 0.5, 0.0]),
            ({"floor": 0.2, "ceiling": 0.7}, [0.5, 0.5, 0.0], [1.0, 0.1, 5.0], [0.7, 0.3, 0.0]),
            ({"floor": 0.3}, [0.5, 0.5, 0.0], [1.0, 0.1, 5.0], [0.7, 0.3, 0.0]),
        ],
    )
    def test_without_preference_an_objective_never_gets_weight(self, options, preference, influence, expected):
        strategy = GradientInfluence(**options)
        for step in range(120):
            weights = strategy.update(stats(step, preference=preference, influence_K=torch.tensor(influence))).weights_K
        assert weights.tolist() == pytest.approx(expected, abs=1e-6)

    def test_what_has_no_preference_has_no_say_either(self):
        """c helps a and hinders b: with a say it would make all of the difference between two that are alike."""
        gramian = torch.tensor([[1.0, 0.0, 0.9], [0.0, 1.0, -0.9], [0.9, -0.9, 1.7]])
        strategy = GradientInfluence()
        for step in range(20):
            weights = strategy.update(stats(step, preference=[0.5, 0.5, 0.0], gramian=gramian)).weights_K
        assert weights.tolist() == pytest.approx([0.5, 0.5, 0.0])

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
