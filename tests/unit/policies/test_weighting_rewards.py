"""The rules that read rewards or advantages: one value of each by hand, and the traps of the published forms."""

import dataclasses
import json
import math

import pytest
import torch

from orchestrator.figures import objective_figures
from policies.types import UpdateOutcome
from policies.weighting.covariance import CovarianceTarget, group_covariance
from policies.weighting.dara import SignalShare
from policies.weighting.gradient import GradientInfluence
from policies.weighting.lagrangian import Lagrangian
from policies.weighting.pama import LeastAdvantage
from policies.weighting.saturation import SaturationAware
from policies.weighting.saw import CoefficientOfVariation
from policies.weighting.tilt import batch_mean
from tests.weighting_stats import NAN, objectives_of, rich_stats, stats, two


def test_a_prompt_counts_once_however_many_rollouts_it_was_given():
    """Of the prompts half are always solved, of the rollouts a quarter."""
    rewards = torch.tensor([[[1.0], [NAN], [NAN]], [[0.0], [0.0], [0.0]], [[NAN], [NAN], [NAN]]])
    assert batch_mean(rewards).tolist() == [0.5]
    assert objective_figures(rewards[..., 0])["mean"] == 0.5
    assert batch_mean(torch.full((2, 2, 1), NAN)).isnan().all()


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


@pytest.mark.parametrize("strategy", [CoefficientOfVariation, SignalShare])
def test_what_has_no_preference_does_not_move_the_others_weights(strategy):
    """The third varies most, and everywhere: it would press saw's factors to the floor and dara's to the cap."""
    rewards = torch.zeros(30, 2, 3)
    rewards[:, 0, 2] = 1.0
    rewards[0, 0, 0] = rewards[:10, 1, 1] = 1.0
    alone, beside = strategy(), strategy()
    for step in range(30):
        two_K = alone.update(stats(step, preference=[0.5, 0.5], rewards=rewards[:, :, :2])).weights_K
        three_K = beside.update(stats(step, preference=[0.5, 0.5, 0.0], rewards=rewards)).weights_K
    assert three_K.tolist() == pytest.approx([*two_K.tolist(), 0.0])


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

    def test_what_met_its_target_for_long_comes_back_soon(self):
        """Its weight goes down to a `cap`-th of the other's, and not on for as long as the target is met."""
        rewards, met = two([0.4, 0.6], [0.0, 1.0]), objectives_of(2, targets=[0.5, NAN])
        strategy, unbounded = CovarianceTarget(eta=1.0, cap=4.0), CovarianceTarget(eta=1.0, cap=1e9)
        stat = stats(preference=[0.5, 0.5], rewards=rewards, objectives=met)
        for one in (strategy, unbounded):
            one.observe(UpdateOutcome(rewards_PGK=rewards, credit_PG=torch.tensor([[0.01, -0.01]])))
            for _ in range(60):
                weights = one.update(stat).weights_K
        assert float(weights[0]) < 0.01
        assert strategy.update(stat).weights_K.tolist() == pytest.approx([0.2, 0.8])
        missed = dataclasses.replace(stat, objectives=objectives_of(2, targets=[0.6, 0.0]))
        for _ in range(14):  # log 4, by a tenth a step
            weights = strategy.update(missed).weights_K
        assert float(weights[0]) > 0.5

    def test_what_no_rollout_varies_in_is_not_pushed(self):
        """Neither from the start nor once it has stopped to vary; beside another group its 0 counts."""
        flat, moving, strategy = two([0.5, 0.5], [0.0, 1.0]), two([0.0, 1.0], [0.0, 1.0]), CovarianceTarget(eta=1.0)
        for rewards, credit in ((flat, 0.1), (moving, -0.1), (flat, 0.1)):
            pushed = strategy.update(stats(preference=[0.5, 0.5], rewards=flat)).weights_K
            assert float(pushed[0]) <= 0.5
            strategy.observe(UpdateOutcome(rewards_PGK=rewards, credit_PG=torch.tensor([[-credit, credit]])))
        assert strategy.state_dict()["covariance"][0] == pytest.approx(-0.05)
        both, credit = torch.cat([flat, moving]), torch.tensor([[-0.1, 0.1], [-0.1, 0.1]])
        assert group_covariance(both, credit).tolist() == pytest.approx([0.025, 0.05])

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


HANDED_BACK = {
    "gradient": lambda: GradientInfluence(step_size=0.1),
    "covariance": lambda: CovarianceTarget(eta=0.1, target_covariance=0.5),
    "at least": lambda: Lagrangian(eta=0.1),
    "equality": lambda: Lagrangian(eta=0.02, form="equality"),
}


@pytest.mark.parametrize("rule", HANDED_BACK)
@pytest.mark.parametrize("before", [0, 30])
def test_what_is_handed_back_begins_where_the_person_steered(rule, before):
    """After many steps whose weights were the person's, and whose targets were missed: nothing has wound up."""
    targeted = objectives_of(2, targets=[0.9, NAN], signs=[1.0, 0.0])
    shared = {"rewards": two([0.0, 1.0], [0.25, 0.75]), "influence_K": torch.tensor([1.2, 0.3]), "objectives": targeted}
    strategy = HANDED_BACK[rule]()
    outcome = UpdateOutcome(rewards_PGK=shared["rewards"], credit_PG=torch.tensor([[0.1, -0.1]]))
    for step in range(before + 100):
        own = step < before
        preference = [0.5, 0.5] if own else [0.3, 0.7]
        found = strategy.update(stats(step, preference=preference, decides=own, **shared))
        strategy.observe(outcome)
        if not own:
            assert found.weights_K.tolist() == pytest.approx([0.3, 0.7])
    restored = HANDED_BACK[rule]()
    restored.load_state_dict(json.loads(json.dumps(strategy.state_dict())))
    for one in (strategy, restored):
        found = one.update(stats(200, preference=[0.3, 0.7], **shared))
        assert found.weights_K.tolist() == pytest.approx([0.3, 0.7], abs=0.03)


@pytest.mark.parametrize("form", ["inequality", "equality"])
@pytest.mark.parametrize(
    ("preference", "weights"),
    [([0.3, 0.7], [0.3, 0.7]), ([0.0, 1.0], [0.0, 1.0]), ([1.0, 0.0], [1.0, 0.0]), ([0.95, 0.05], [5 / 6, 1 / 6])],
)
def test_multipliers_of_a_persons_weights(form, preference, weights):
    """As far as lam_max, 5, lets them."""
    targeted = objectives_of(2, targets=[0.9, NAN], signs=[1.0, 0.0])
    found = Lagrangian(form=form).update(stats(preference=preference, objectives=targeted, decides=False))
    assert found.weights_K.tolist() == pytest.approx(weights, abs=1e-3)
