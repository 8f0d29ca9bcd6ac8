"""The Gramian rules: TorchJD's values, what each claims of the gradients, and the solvers behind them."""

import numpy as np
import pytest
import torch
from torchjd.aggregation import AlignedMTLWeighting, IMTLGWeighting, MGDAWeighting, PCGradWeighting

from policies.types import Objectives, StepStats
from policies.weighting.gramian_rules import GRAMIAN_RULES, CaGrad, FairGrad, Mgda, NashMtl
from policies.weighting.gramian_solvers import (
    alpha_fair,
    conflict_averse,
    least_norm,
    nonnegative_quadratic,
)

# Every answer of TorchJD 0.18.0, with quadprog 0.1.14, CVXPY 1.9.3 (Clarabel 0.11.1, ECOS 2.0.14) and SciPy 1.17.1, for
# the Gramian of these gradients, scaled to sum 1. nash_mtl is NashMTL(n_tasks=3, max_norm=0) on the gradients
# themselves; FairGradWeighting(1.0) gives the same seven digits.
GRADIENTS = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0], [1.0, -2.0, 3.0]], dtype=torch.float64)
TORCHJD = {
    "mgda": [0.5615385, 0.3615385, 0.0769231],
    "upgrad": [0.4808250, 0.3178539, 0.2013211],
    "cagrad": [0.4365796, 0.2817102, 0.2817102],  # c = 0.4
    "nash_mtl": [0.4901391, 0.3074045, 0.2024564],
    "imtl_g": [0.5760661, 0.3911540, 0.0327799],
    "fairgrad": [0.5150928, 0.3237926, 0.1611146],  # alpha = 2
    "aligned_mtl": [0.4784562, 0.3298293, 0.1917145],
    "dualproj": [0.4097420, 0.2951290, 0.2951290],
}

NO_CONFLICT = ["mgda", "upgrad", "dualproj", "cagrad large"]
SCALED_BY_PREFERENCE = ["upgrad", "pcgrad", "dualproj"]  # the gradients are; the others' answer is multiplied
RULES = {**GRAMIAN_RULES, "cagrad large": lambda: CaGrad(c=50.0), "fairgrad small": lambda: FairGrad(alpha=0.1)}
MULTIPLIED = [name for name in RULES if name not in SCALED_BY_PREFERENCE]


def weigh(rule, gramian, preference=None, step=1):
    count = len(gramian)
    preference = torch.full((count,), 1 / count) if preference is None else torch.as_tensor(preference)
    objectives = Objectives(
        names=tuple(f"o{k}" for k in range(count)),
        ranges_K2=torch.tensor([[0.0, 1.0]] * count),
        targets_K=torch.full((count,), torch.nan),
        target_signs_K=torch.ones(count),
    )
    return rule.update(
        StepStats(
            step=step,
            objectives=objectives,
            rewards_PGK=torch.zeros(1, 1, count),
            advantages_PGK=torch.zeros(1, 1, count),
            preference_K=preference,
            gramian_KK=gramian,
        )
    ).weights_K.double()


def gradients_of(count, seed, dimension=50, pull=0.0):
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(count, dimension, generator=generator, dtype=torch.float64)
    lengths = torch.exp(torch.randn(count, 1, generator=generator, dtype=torch.float64))
    return lengths * (gradients + pull * torch.randn(1, dimension, generator=generator, dtype=torch.float64))


def gramian_of(count, seed, dimension=50, pull=0.0):
    gradients = gradients_of(count, seed, dimension, pull)
    return gradients @ gradients.T


def scaled(weights):
    return weights / weights.sum()


@pytest.mark.parametrize("name", TORCHJD)
def test_pinned(name):
    weights = weigh(GRAMIAN_RULES[name](), GRADIENTS @ GRADIENTS.T)
    assert weights.tolist() == pytest.approx(TORCHJD[name], abs=1e-6 if name != "cagrad" else 1e-4)


@pytest.mark.parametrize("name", ["imtl_g", "aligned_mtl", "pcgrad"])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_as_torchjd_called_directly(name, count):
    torchjd = {"imtl_g": IMTLGWeighting, "aligned_mtl": AlignedMTLWeighting, "pcgrad": PCGradWeighting}[name]()
    for step in range(5):
        gramian = gramian_of(count, step, pull=2.0)
        gramian = gramian / gramian.trace()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step)
            expected = torchjd(gramian)
        torch.testing.assert_close(GRAMIAN_RULES[name]().combine(gramian, step), expected)


@pytest.mark.parametrize("name", GRAMIAN_RULES)
@pytest.mark.parametrize("count", [2, 3, 8, 32])
@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_the_length_of_all_gradients_does_not_matter(name, count, factor):
    gramian = gramian_of(count, count, pull=1.0)
    plain, other = weigh(GRAMIAN_RULES[name](), gramian), weigh(GRAMIAN_RULES[name](), factor * gramian)
    torch.testing.assert_close(other, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", GRAMIAN_RULES)
def test_the_length_of_one_gradient(name):
    """nash_mtl and fairgrad with alpha 1 take it out altogether: their direction stays. mgda's does not."""
    gradients = gradients_of(4, 3, pull=1.0)
    lengths = torch.tensor([1.0, 5.0, 0.3, 2.0], dtype=torch.float64)
    longer = lengths[:, None] * gradients
    before = scaled(weigh(GRAMIAN_RULES[name](), gradients @ gradients.T))
    after = scaled(weigh(GRAMIAN_RULES[name](), longer @ longer.T) * lengths)
    same = torch.allclose(before, after, atol=1e-5)
    assert same is (name in {"nash_mtl", "imtl_g"})


@pytest.mark.parametrize("name", NO_CONFLICT)
@pytest.mark.parametrize("count", [2, 3, 8, 32])
@pytest.mark.parametrize("pull", [0.0, 1.0])
def test_no_objective_loses(name, count, pull):
    """G w >= 0 with equal preferences, up to the projector's ridge of 1e-4 of the trace."""
    rule = CaGrad(c=50.0) if name == "cagrad large" else GRAMIAN_RULES[name]()
    for seed in range(5):
        gramian = gramian_of(count, seed, pull=pull)
        gramian = gramian / gramian.trace()
        assert float((gramian @ weigh(rule, gramian)).min()) >= -2e-4


def test_the_mean_gradient_is_no_such_direction():
    gramian = GRADIENTS @ GRADIENTS.T
    assert float((gramian @ torch.full((3,), 1 / 3, dtype=torch.float64)).min()) < 0


@pytest.mark.parametrize("name", SCALED_BY_PREFERENCE)
def test_preference_scales_the_gradients(name):
    preference = torch.tensor([0.5, 0.3, 0.2])
    gramian = gramian_of(3, 5, pull=1.0)
    scales = 3 * preference.double()
    inner = weigh(GRAMIAN_RULES[name](), scales[:, None] * gramian * scales[None, :])
    outer = weigh(GRAMIAN_RULES[name](), gramian, preference)
    torch.testing.assert_close(outer, scaled(scales * inner), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MULTIPLIED)
@pytest.mark.parametrize("pull", [0.0, 1.0, 3.0])  # with 3 some rules have negative coefficients
def test_preference_multiplies_the_answer(name, pull):
    preference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    for seed in range(5):
        gramian = gramian_of(3, seed, pull=pull)
        expected = scaled(preference * weigh(RULES[name](), gramian))
        torch.testing.assert_close(weigh(RULES[name](), gramian, preference), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_without_conflict_and_of_one_length_the_weights_are_the_preference(name):
    preference = [0.1, 0.2, 0.7]
    weights = weigh(RULES[name](), torch.eye(3, dtype=torch.float64), preference)
    assert weights.tolist() == pytest.approx(preference, abs=1e-5)


@pytest.mark.parametrize("name", MULTIPLIED)
@pytest.mark.parametrize("pull", [0.0, 1.0, 3.0])
def test_more_preference_is_no_less_weight(name, pull):
    steps = torch.linspace(0.1, 0.9, 9).tolist()
    for seed in range(5):
        gramian = gramian_of(3, seed, dimension=6, pull=pull)
        rising = [float(weigh(RULES[name](), gramian, [p, 0.4 * (1 - p), 0.6 * (1 - p)])[0]) for p in steps]
        assert rising == sorted(rising)


@pytest.mark.parametrize("name", GRAMIAN_RULES)
class TestPreference:
    def test_a_new_one_acts_at_once(self, name):
        gramian = gramian_of(3, 5, pull=1.0)
        rule = GRAMIAN_RULES[name]()
        first = weigh(rule, gramian)
        second = weigh(rule, gramian, [0.1, 0.2, 0.7])
        fresh = weigh(GRAMIAN_RULES[name](), gramian, [0.1, 0.2, 0.7])
        assert torch.equal(second, fresh)
        assert not torch.allclose(first, second, atol=1e-3)

    def test_none_for_an_objective_is_no_weight(self, name):
        weights = weigh(GRAMIAN_RULES[name](), gramian_of(3, 5), [0.0, 0.4, 0.6])
        pair = weigh(GRAMIAN_RULES[name](), gramian_of(3, 5)[1:, 1:], [0.4, 0.6])
        assert weights.tolist() == pytest.approx([0.0, *pair.tolist()], abs=1e-6)

    def test_without_gradient_an_objective_keeps_its_preference(self, name):
        """A gradient of 0 is otherwise mgda's answer, and nothing would be learned."""
        gramian = gramian_of(3, 5)
        gramian[0] = gramian[:, 0] = 0.0
        weights = weigh(GRAMIAN_RULES[name](), gramian, [0.2, 0.3, 0.5])
        pair = weigh(GRAMIAN_RULES[name](), gramian[1:, 1:], [0.375, 0.625])
        assert weights.tolist() == pytest.approx([0.2, *(0.8 * pair).tolist()], abs=1e-6)

    @pytest.mark.parametrize("gramian", [None, torch.zeros(3, 3), torch.full((3, 3), torch.nan)])
    def test_is_the_answer_where_nothing_is_known(self, name, gramian):
        rule = GRAMIAN_RULES[name]()
        if gramian is None:
            stats = StepStats(
                step=1,
                objectives=None,
                rewards_PGK=torch.zeros(1, 1, 3),
                advantages_PGK=torch.zeros(1, 1, 3),
                preference_K=torch.tensor([0.2, 0.3, 0.5]),
            )
            weights = rule.update(stats).weights_K
        else:
            weights = weigh(rule, gramian, [0.2, 0.3, 0.5])
        assert weights.tolist() == pytest.approx([0.2, 0.3, 0.5])

    def test_identical_gradients_are_equal(self, name):
        weights = weigh(GRAMIAN_RULES[name](), torch.full((4, 4), 0.7, dtype=torch.float64))
        assert weights.tolist() == pytest.approx([0.25] * 4, abs=1e-5)


def test_pcgrad_draws_its_order_from_the_step():
    gramian, rule = gramian_of(5, 2), GRAMIAN_RULES["pcgrad"]()
    drawn = [weigh(rule, gramian, step=step) for step in (7, 8, 7)]
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


class TestSolvers:
    @pytest.mark.parametrize("count", [2, 3, 8, 32])
    def test_nonnegative_quadratic_is_optimal(self, count):
        """x >= 0, Mx - c >= 0, and one of the two 0 in every coordinate."""
        for seed in range(5):
            matrix = gramian_of(count, seed, dimension=max(2, count // 2)).numpy() + 1e-3 * np.eye(count)
            linear = np.random.default_rng(seed).normal(size=(count, count))
            x = nonnegative_quadratic(matrix, linear)
            slope = x @ matrix - linear
            assert (x >= 0).all()
            assert slope.min() >= -1e-8
            assert np.abs(x * slope).max() <= 1e-7

    @pytest.mark.parametrize("count", [2, 3, 8, 32])
    def test_least_norm_is_no_longer_than_torchjds(self, count):
        for seed in range(3):
            gramian = gramian_of(count, seed, pull=0.5)
            gramian = gramian / gramian.trace()
            ours, theirs = torch.from_numpy(least_norm(gramian.numpy())), MGDAWeighting()(gramian)
            assert float(ours @ gramian @ ours) <= float(theirs @ gramian @ theirs) + 1e-9

    @pytest.mark.parametrize("count", [2, 3, 8])
    def test_conflict_averse_is_optimal(self, count):
        """Its w is no worse in the paper's dual, g_w.g_0 + c |g_0| |g_w|, than random ones; d keeps to the ball."""
        for seed in range(3):
            gramian = gramian_of(count, seed).numpy()
            gramian = gramian / np.trace(gramian)
            mean = np.full(count, 1 / count)
            radius = 0.4 * np.sqrt(mean @ gramian @ mean)
            moved = conflict_averse(gramian, c=0.4) - mean
            assert np.sqrt(moved @ gramian @ moved) == pytest.approx(radius, rel=1e-5)

            def dual(w, gramian=gramian, mean=mean, radius=radius):
                return w @ gramian @ mean + radius * np.sqrt(w @ gramian @ w)

            others = np.random.default_rng(seed).dirichlet(np.ones(count), size=300)
            assert dual(moved / moved.sum()) <= min(dual(w) for w in others) + 1e-9

    def test_conflict_averse_without_a_radius_is_the_preference(self):
        assert weigh(CaGrad(c=0.0), gramian_of(3, 1), [0.2, 0.3, 0.5]).tolist() == pytest.approx([0.2, 0.3, 0.5])

    def test_conflict_averse_with_a_large_radius_is_the_least_norm(self):
        gramian = gramian_of(4, 1, pull=1.0)
        torch.testing.assert_close(weigh(CaGrad(c=1e5), gramian), weigh(Mgda(), gramian), atol=1e-4, rtol=1e-3)

    @pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 10.0, 20.0])
    @pytest.mark.parametrize("count", [1, 2, 3, 8, 32])
    def test_alpha_fair_solves_its_equation(self, alpha, count):
        for dimension in (1, 5, 50):
            gramian = gramian_of(count, count, dimension).numpy()
            gramian = gramian / np.trace(gramian)
            a = alpha_fair(gramian, alpha=alpha)
            assert (a > 0).all()
            assert (gramian + 1e-9 * np.eye(count)) @ a * a ** (1 / alpha) == pytest.approx(1.0, abs=1e-4)

    def test_fairgrad_with_alpha_1_is_nash_mtl(self):
        gramian = gramian_of(5, 1)
        assert torch.equal(weigh(FairGrad(alpha=1.0), gramian), weigh(NashMtl(), gramian))
