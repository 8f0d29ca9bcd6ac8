"""Which groups carry signal, what becomes of the others, and the global advantage for them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from orchestrator.specs.sampling import ZeroSignalSpec
from policies.estimators import Gdpo, Grpo, Reinforce, Rloo
from policies.estimators.base import Estimator, combine
from policies.estimators.copo import Copo
from policies.signal import drop, global_advantages_PG, keep, missing, signal_P

HALVES = torch.tensor([0.5, 0.5])
SPECS = TypeAdapter(ZeroSignalSpec)


@st.composite
def batches(draw):
    prompts, groups, objectives = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rewards = torch.rand(prompts, groups, objectives, generator=generator, dtype=torch.float64).round()
    if draw(st.booleans()):
        rewards[torch.rand(rewards.shape, generator=generator) < 0.2] = torch.nan
    weights = torch.rand(objectives, generator=generator, dtype=torch.float64) + 0.01
    return rewards, weights / weights.sum()


def test_a_group_whose_sum_ties_is_kept():
    """Trap 6: filtered on the weighted sum, the objectives' signal is lost."""
    rewards = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [0.0, 1.0]]])
    sums = combine(rewards, HALVES)
    assert (sums.std(dim=1, correction=0) > 1e-6).tolist() == [False, False, True]
    assert signal_P(rewards, HALVES).tolist() == [True, False, True]
    assert drop(signal_P(rewards, HALVES)).tolist() == [0, 2]
    assert Gdpo().per_objective(rewards)[0].abs().min() > 0.9  # what would have been lost


def test_an_objective_without_weight_carries_no_signal():
    rewards = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    assert signal_P(rewards, HALVES).tolist() == [True]
    assert signal_P(rewards, torch.tensor([1.0, 0.0])).tolist() == [False]


def test_what_was_not_measured_carries_no_signal():
    rewards = torch.tensor([[[1.0], [math.nan]], [[math.nan], [math.nan]]])
    assert signal_P(rewards, torch.ones(1)).tolist() == [False, False]


@settings(max_examples=40, deadline=None)
@given(batch=batches(), seed=st.integers(0, 1000))
def test_permuting_groups_permutes_the_signal_and_rollouts_do_not_matter(batch, seed):
    rewards, weights = batch
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randperm(rewards.shape[0], generator=generator)
    rollouts = torch.randperm(rewards.shape[1], generator=generator)
    permuted = rewards[prompts][:, rollouts]
    assert torch.equal(signal_P(permuted, weights), signal_P(rewards, weights)[prompts])
    torch.testing.assert_close(
        global_advantages_PG(permuted, weights), global_advantages_PG(rewards, weights)[prompts][:, rollouts]
    )


def test_a_step_is_never_empty():
    nothing = torch.tensor([False, False, False])
    assert keep(nothing).tolist() == drop(nothing).tolist() == [0, 1, 2]
    assert drop(nothing, wanted=2).tolist() == [0, 1]


def test_a_refill_asks_for_no_more_than_wanted_and_nothing_with_signal_is_left_out():
    signal = torch.tensor([True, False, True, True])
    assert [missing(signal, wanted) for wanted in (2, 3, 5)] == [0, 0, 2]
    assert drop(signal, wanted=2).tolist() == drop(signal, wanted=5).tolist() == [0, 2, 3]


# ------------------------------------------------------------- the global advantage


def test_global_advantages_pinned():
    """Means 1, 0 and 0.5: standardised by sqrt(1/6) to +-sqrt(1.5) and 0; the third group has signal of its own."""
    rewards = torch.tensor([[[1.0], [1.0]], [[0.0], [0.0]], [[1.0], [0.0]]])
    high = math.sqrt(1.5)
    expected = torch.tensor([[high, high], [-high, -high], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(global_advantages_PG(rewards, torch.ones(1)), expected)


def test_global_advantages_weigh_the_objectives():
    rewards = torch.tensor([[[1.0, 3.0], [1.0, 3.0]], [[0.0, 3.0], [0.0, 3.0]]])  # the second never spreads
    expected = torch.tensor([[0.25, 0.25], [-0.25, -0.25]], dtype=torch.float64)
    torch.testing.assert_close(global_advantages_PG(rewards, torch.tensor([0.25, 0.75])), expected)


def test_global_advantages_leave_out_what_was_not_measured():
    nan = math.nan
    rewards = torch.tensor([[[1.0], [nan]], [[0.0], [0.0]], [[nan], [nan]]])
    expected = torch.tensor([[1.0, 0.0], [-1.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(global_advantages_PG(rewards, torch.ones(1)), expected)


@settings(max_examples=60, deadline=None)
@given(batch=batches())
def test_global_advantages_are_finite_and_only_where_there_is_no_signal(batch):
    rewards, weights = batch
    advantages = global_advantages_PG(rewards, weights)
    assert torch.isfinite(advantages).all()
    assert (advantages[signal_P(rewards, weights)] == 0).all()


@pytest.mark.parametrize("inner", [Gdpo(), Grpo(), Rloo()])
@settings(max_examples=25, deadline=None)
@given(batch=batches(), coefficient=st.floats(0, 3))
def test_copo_adds_the_global_advantage_to_any_estimator(inner, batch, coefficient):
    rewards, weights = batch
    advantages = Copo(inner, coefficient)(rewards, weights)
    assert advantages.dtype == torch.float32
    assert torch.isfinite(advantages).all()
    expected = inner(rewards, weights) + coefficient * global_advantages_PG(rewards, weights).float()
    torch.testing.assert_close(advantages, expected)


@settings(max_examples=40, deadline=None)
@given(batch=batches())
def test_copo_of_one_objective_is_that_objectives_advantage(batch):
    rewards, _ = batch
    rewards, weight = rewards[..., :1], torch.ones(1, dtype=torch.float64)
    copo = Copo(Grpo(), 0.5)
    parts = copo.per_objective(rewards)
    assert torch.equal(torch.isnan(parts), torch.isnan(rewards))
    torch.testing.assert_close(parts[..., 0].nan_to_num().float(), copo(rewards, weight))


def test_copo_teaches_where_the_inner_rule_is_silent():
    rewards = torch.tensor([[[1.0], [1.0]], [[0.0], [0.0]]])
    assert torch.equal(Grpo()(rewards, torch.ones(1)), torch.zeros(2, 2))
    assert torch.equal(Copo(Grpo())(rewards, torch.ones(1)), torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))


@pytest.mark.parametrize("inner", [Gdpo, Grpo])
def test_copo_teaches_where_the_inner_rule_takes_a_spread_for_none(inner):
    rewards, weight = torch.tensor([[[0.5], [0.501]], [[0.9], [0.9]]]), torch.ones(1)
    copo = Copo(inner(std_floor=0.01))
    torch.testing.assert_close(copo(rewards, weight), torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), atol=0.01, rtol=0)
    torch.testing.assert_close(copo.per_objective(rewards)[..., 0].float(), copo(rewards, weight))


@pytest.mark.parametrize("inner", [Gdpo, Grpo])
def test_what_is_a_spread_for_the_inner_rule_is_one_for_copo_and_sampling(inner):
    rewards, weight = torch.tensor([[[0.0], [1e-7]], [[0.9], [0.9]]]), torch.ones(1)
    rule = inner(std_floor=1e-9)
    assert rule(rewards, weight)[0].abs().min() > 0.9
    assert signal_P(rewards, weight, rule.least_spread).tolist() == [True, False]
    assert torch.equal(Copo(rule)(rewards, weight)[0], rule(rewards, weight)[0])


def test_copo_of_one_prompt_adds_nothing():
    rewards = torch.tensor([[[1.0], [1.0]]])
    assert torch.equal(Copo(Reinforce())(rewards, torch.ones(1)), torch.zeros(1, 2))


def test_copo_passes_progress_on_and_is_not_linear():
    class Moving(Estimator):
        def at(self, progress):
            return progress

    copo = Copo(Moving(), 0.5).at(0.25)
    assert (copo.inner, copo.coefficient) == (0.25, 0.5)
    rewards = torch.tensor([[[1.0], [0.0]]])
    assert Copo(Gdpo()).factor(Gdpo().per_objective(rewards), torch.ones(1)) is None


# ------------------------------------------------------------- specs


@pytest.mark.parametrize("name", ["keep", "drop", "refill", "copo"])
def test_specs_have_defaults_and_a_source(name):
    spec = SPECS.validate_python({"name": name})
    assert spec.source
    assert list(spec.problems(("accuracy",), 8)) == []
    assert [path for path, _ in spec.problems(("accuracy",), 1)] == (["name"] if name in ("drop", "refill") else [])


def test_copo_spec_makes_copo():
    spec = SPECS.validate_python({"name": "copo", "coefficient": 0.5})
    assert Copo(Grpo(), **spec.arguments(("accuracy",))) == Copo(Grpo(), 0.5)
    assert Copo(Grpo(), **SPECS.validate_python({"name": "copo"}).arguments(())) == Copo(Grpo())


def test_specs_have_bounds():
    for wrong in ({"name": "refill", "max_rounds": 0}, {"name": "copo", "coefficient": 0}, {"name": "keep", "x": 1}):
        with pytest.raises(ValidationError):
            SPECS.validate_python(wrong)
