"""Advantage estimators: properties as functions, the rules that claim each, pinned values, and the known traps."""

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orchestrator.specs.estimators import EstimatorSpec
from policies.estimators import (
    ESTIMATORS,
    CondGdpo,
    CorrGrpo,
    DrGrpo,
    Dvao,
    Estimator,
    Gd2po,
    Gdpo,
    Grpo,
    Hvo,
    MoGrpo,
    Reinforce,
    Rloo,
    Softmin,
)
from policies.estimators.base import combine, whitening_factor
from policies.statistics import centre, standardise

REQUIRED = {"cond_gdpo": {"condition": 0, "at_least": 0.5}}
RULES: dict[str, Estimator] = {name: rule(**REQUIRED.get(name, {})) for name, rule in ESTIMATORS.items()}
RULES["reinforce, group"] = Reinforce(baseline="group")
EVERY_RULE = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
SOME = settings(max_examples=20, deadline=None, derandomize=True)

Property = Callable[[Estimator, Tensor, Tensor], bool]


def draw_batch(seed: int, prompts: int, groups: int, objectives: int, *, binary: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(prompts, groups, objectives, generator=generator, dtype=torch.float64)
    weights = torch.rand(objectives, generator=generator, dtype=torch.float64) + 0.01
    return rewards.round() if binary else rewards, weights / weights.sum()


@st.composite
def batches(draw: st.DrawFn, objectives: tuple[int, ...] = (1, 2, 3, 8)) -> tuple[Tensor, Tensor]:
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.sampled_from(objectives))
    return draw_batch(draw(st.integers(0, 2**31)), *shape, binary=draw(st.booleans()))


@st.composite
def partly_measured(draw: st.DrawFn, objectives: tuple[int, ...] = (1, 2, 3, 8)) -> tuple[Tensor, Tensor]:
    """Some entries NaN, some rollouts wholly, sometimes an objective or a whole prompt."""
    rewards, weights = draw(batches(objectives))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rewards[torch.rand(rewards.shape, generator=generator) < draw(st.sampled_from([0.0, 0.3, 0.9]))] = torch.nan
    rewards[torch.rand(rewards.shape[:2], generator=generator) < 0.3] = torch.nan
    if draw(st.booleans()):
        rewards[0] = torch.nan
    if draw(st.booleans()):
        rewards[..., -1] = torch.nan
    return rewards, weights


def same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-5, rtol=1e-5, equal_nan=True)


def padded(rewards: Tensor, more: int = 2) -> Tensor:
    return torch.cat([rewards, torch.full((rewards.shape[0], more, rewards.shape[2]), torch.nan)], dim=1)


# ----------------------------------------------------------- what every rule claims


def check_finite_and_shaped(rule: Estimator, rewards: Tensor, weights: Tensor) -> None:
    advantages, parts = rule(rewards, weights), rule.per_objective(rewards)
    assert (advantages.shape, advantages.dtype) == (rewards.shape[:2], torch.float32)
    assert (parts.shape, parts.dtype) == (rewards.shape, torch.float64)
    assert torch.isfinite(advantages).all()
    assert (advantages[torch.isnan(rewards).all(dim=2)] == 0).all()
    assert torch.isfinite(parts[~torch.isnan(rewards)]).all()
    assert torch.isnan(parts[torch.isnan(rewards)]).all()


@EVERY_RULE
@SOME
@given(batch=batches((1, 2, 3, 8, 32)))
def test_finite_and_shaped(rule, batch):
    check_finite_and_shaped(rule, *batch)


@EVERY_RULE
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("unit", [1e-6, 1e4, 1e9])
def test_finite_in_any_unit(rule, seed, unit):
    rewards, weights = draw_batch(seed, 3, 4, 32)
    check_finite_and_shaped(rule, unit * (rewards - 0.5), weights)
    check_finite_and_shaped(rule, unit * (rewards - 0.5), torch.eye(32)[0])


@EVERY_RULE
@SOME
@given(batch=partly_measured((1, 2, 3, 32)))
def test_finite_whatever_was_not_measured(rule, batch):
    """cond_gdpo also takes what it gates for not measured where the condition was not."""
    rewards, weights = batch
    if isinstance(rule, CondGdpo):
        rewards[torch.isnan(rewards[..., rule.condition])] = torch.nan
    check_finite_and_shaped(rule, rewards, weights)


@EVERY_RULE
@SOME
@given(batch=batches((1, 2, 3, 8, 32)), seed=st.integers(0, 1000))
def test_rollouts_that_a_prompt_did_not_get_change_nothing(rule, batch, seed):
    rewards, weights = batch
    order = torch.randperm(rewards.shape[1] + 2, generator=torch.Generator().manual_seed(seed))
    whole, parts = rule(padded(rewards)[:, order], weights), rule.per_objective(padded(rewards)[:, order])
    torch.testing.assert_close(whole[:, order.argsort()[:-2]], rule(rewards, weights))
    torch.testing.assert_close(parts[:, order.argsort()[:-2]], rule.per_objective(rewards))
    assert torch.equal(whole[:, order.argsort()[-2:]], torch.zeros(rewards.shape[0], 2))


@EVERY_RULE
@SOME
@given(batch=batches((2, 3, 8)))
def test_an_objective_that_applies_to_nothing_contributes_nothing(rule, batch):
    """The advantages are those of a job without it."""
    rewards, weights = batch
    others = rewards[..., :-1], weights[:-1]
    if isinstance(rule, Hvo):  # its exponents count all objectives
        others = rewards[..., :-1], weights[:-1] * len(weights) / (len(weights) - 1)
    rewards = torch.cat([rewards[..., :-1], torch.full_like(rewards[..., -1:], torch.nan)], dim=2)
    torch.testing.assert_close(rule(rewards, weights), rule(*others), atol=1e-5, rtol=1e-4)
    if not isinstance(rule, Hvo):
        torch.testing.assert_close(rule.per_objective(rewards)[..., :-1], rule.per_objective(others[0]))


@pytest.mark.parametrize("name", ["corr_grpo", "dr_grpo", "dvao", "grpo", "mo_grpo", "rloo"])
@SOME
@given(batch=batches((2, 3)))
def test_an_objective_that_applies_to_some_prompts_trains_on_these_alone(name, batch):
    """For the rules that look at one prompt at a time: the others' advantages are those of a job without it."""
    rule, (rewards, weights) = RULES[name], batch
    absent = torch.arange(len(rewards)) % 2 == 1
    partly = rewards.clone()
    partly[absent, :, -1] = torch.nan
    advantages = rule(partly, weights)
    torch.testing.assert_close(advantages[~absent], rule(rewards, weights)[~absent])
    torch.testing.assert_close(advantages[absent], rule(rewards[..., :-1], weights[:-1])[absent])


@EVERY_RULE
@pytest.mark.parametrize("seed", range(5))
def test_missing_an_objective_in_which_a_prompt_ties_changes_nothing(rule, seed):
    """It counts as the prompt's mean there, not as 0 and not as the batch's."""
    rewards, weights = draw_batch(seed, 3, 4, 3)
    rewards[..., 0] += 1.0  # every rollout reaches cond_gdpo's threshold
    rewards[..., 2] = torch.tensor([0.4, 0.9, 0.6])[:, None]
    whole = rule(rewards, weights)
    rewards[0, 1, 2], rewards[1, 0, 2] = torch.nan, torch.nan
    assert same(rule(rewards, weights), whole)


@EVERY_RULE
@SOME
@given(batch=batches(), seed=st.integers(0, 1000))
def test_permuting_rollouts_and_prompts_permutes_advantages(rule, batch, seed):
    rewards, weights = batch
    generator = torch.Generator().manual_seed(seed)
    prompts, groups = (torch.randperm(size, generator=generator) for size in rewards.shape[:2])
    assert same(rule(rewards[prompts][:, groups], weights), rule(rewards, weights)[prompts][:, groups])


@EVERY_RULE
@SOME
@given(batch=batches(), seed=st.integers(0, 1000))
def test_permuting_objectives_with_their_weights_changes_nothing(rule, batch, seed):
    rewards, weights = batch
    order = torch.randperm(len(weights), generator=torch.Generator().manual_seed(seed))
    moved = CondGdpo(int(order.argsort()[rule.condition]), 0.5) if isinstance(rule, CondGdpo) else rule
    assert same(moved(rewards[..., order], weights[order]), rule(rewards, weights))


@EVERY_RULE
@SOME
@given(batch=batches((2, 3, 8)), seed=st.integers(0, 1000))
def test_an_objective_with_weight_0_changes_nothing(rule, batch, seed):
    """It may still gate others: the condition of cond_gdpo is the first, the one without weight the last."""
    rewards, weights = batch
    weights[-1] = 0
    other = rewards.clone()
    other[..., -1] = 100 * torch.rand(rewards.shape[:2], generator=torch.Generator().manual_seed(seed))
    assert same(rule(rewards, weights / weights.sum()), rule(other, weights / weights.sum()))


@EVERY_RULE
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 3), (3, 4, 2), (1, 8, 32)])
@pytest.mark.parametrize("value", [0.7, -300.0, 0.0])
def test_no_spread_no_signal(rule, shape, value):
    weights = torch.full((shape[2],), 1 / shape[2])
    advantages = rule(torch.full(shape, value), weights)
    torch.testing.assert_close(advantages, torch.zeros(shape[:2]), atol=1e-9, rtol=0)


@EVERY_RULE
@SOME
@given(batch=partly_measured())
def test_where_there_is_a_factor_the_parts_add_up(rule, batch):
    """A = c sum_k w_k A_k over the batch: what makes the objectives' gradients also the parts of the update."""
    rewards, weights = batch
    parts = rule.per_objective(rewards)
    factor = rule.factor(parts, weights)
    if factor is not None:
        summed = torch.nan_to_num(factor * combine(parts, weights), nan=0.0)
        torch.testing.assert_close(rule(rewards, weights).double(), summed, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["grpo", "dvao"])
@SOME
@given(batch=partly_measured())
def test_the_summands_of_rules_that_add_first_add_up(name, batch):
    rewards, weights = batch
    summed = torch.nan_to_num(combine(RULES[name].summands(rewards, weights), weights), nan=0.0)
    torch.testing.assert_close(RULES[name](rewards, weights).double(), summed, atol=1e-5, rtol=1e-5)


def test_the_rules_with_a_factor():
    rewards, weights = draw_batch(0, 3, 4, 3)
    linear = {name for name, rule in RULES.items() if rule.factor(rule.per_objective(rewards), weights) is not None}
    assert linear == {"cond_gdpo", "dr_grpo", "gdpo", "mo_grpo", "reinforce", "reinforce, group", "rloo"}


def test_reinforce_has_no_factor_where_single_objectives_are_missing():
    rewards, weights = draw_batch(0, 2, 3, 2)
    assert Reinforce().factor(Reinforce().per_objective(padded(rewards)), weights) is not None
    rewards[0, 0, 0] = torch.nan
    assert Reinforce().factor(Reinforce().per_objective(rewards), weights) is None
    of_groups = Reinforce(baseline="group")
    assert of_groups.factor(of_groups.per_objective(rewards), weights) is not None


@EVERY_RULE
@SOME
@given(batch=batches())
def test_each_objective_alone_is_the_rule_with_all_weight_on_it(rule, batch):
    """Up to a positive factor over the batch."""
    rewards, _ = batch
    parts = rule.per_objective(rewards)
    for objective, weights in enumerate(torch.eye(rewards.shape[2])):
        alone, part = rule(rewards, weights).double(), parts[..., objective]
        scale = part.norm() / alone.norm() if float(alone.norm()) > 1e-9 else 0.0
        torch.testing.assert_close(part, scale * alone, atol=1e-5, rtol=1e-5)


@EVERY_RULE
def test_only_softmin_moves_with_progress(rule):
    assert (rule.at(1.0) == rule) is (not isinstance(rule, Softmin))


@pytest.mark.parametrize("spec", get_args(get_args(EstimatorSpec)[0]))
def test_the_spec_says_which_rules_work_with_one_rollout(spec):
    rewards, weights = draw_batch(0, 4, 1, 3)
    advantages = RULES[spec.model_fields["name"].default](rewards, weights)
    assert bool((advantages != 0).any()) is spec.model_construct().single_rollout


# ----------------------------------------------------------- what some rules claim


def ignores_a_shift(rule: Estimator, rewards: Tensor, weights: Tensor) -> bool:
    """A constant on every reward changes nothing."""
    return same(rule(rewards + 3.7, weights), rule(rewards, weights))


def ignores_a_shift_of_a_prompt(rule: Estimator, rewards: Tensor, weights: Tensor) -> bool:
    """A constant on the rewards of each prompt, such as its difficulty, changes nothing."""
    return same(rule(rewards + 3.7 * torch.arange(rewards.shape[0])[:, None, None], weights), rule(rewards, weights))


def ignores_a_factor(rule: Estimator, rewards: Tensor, weights: Tensor) -> bool:
    """A positive factor on every reward changes nothing."""
    return same(rule(5.3 * rewards, weights), rule(rewards, weights))


def ignores_a_unit(rule: Estimator, rewards: Tensor, weights: Tensor) -> bool:
    """A positive factor on one reward alone, other than a condition, changes nothing."""
    rescaled = rewards.clone()
    rescaled[..., -1] *= 1.0 if isinstance(rule, CondGdpo) and rewards.shape[2] == 1 else 30.0
    return same(rule(rescaled, weights), rule(rewards, weights))


def is_centred(rule: Estimator, rewards: Tensor, weights: Tensor) -> bool:
    """The advantages of a prompt add up to 0."""
    return same(rule(rewards, weights).sum(dim=1), torch.zeros(rewards.shape[0]))


def takes_prompts_apart(rule: Estimator, rewards: Tensor, weights: Tensor) -> bool:
    """A prompt's advantages do not depend on the others of the batch."""
    return same(torch.cat([rule(prompt[None], weights) for prompt in rewards]), rule(rewards, weights))


CLAIMS: dict[Property, set[str]] = {
    ignores_a_shift: set(RULES) - {"cond_gdpo"},
    ignores_a_shift_of_a_prompt: set(RULES) - {"cond_gdpo", "hvo", "reinforce"},
    ignores_a_factor: {"dvao", "gd2po", "gdpo", "grpo", "mo_grpo", "reinforce", "reinforce, group", "softmin"},
    ignores_a_unit: {"cond_gdpo", "gd2po", "gdpo", "mo_grpo", "softmin"},
    is_centred: set(RULES) - {"gd2po", "reinforce", "softmin"},
    takes_prompts_apart: {"corr_grpo", "dr_grpo", "dvao", "grpo", "mo_grpo", "rloo"},
}
PAIRS = [(holds, name) for holds in CLAIMS for name in RULES]


@pytest.mark.parametrize(("holds", "name"), [pair for pair in PAIRS if pair[1] in CLAIMS[pair[0]]])
@SOME
@given(batch=batches())
def test_claim(holds, name, batch):
    assert holds(RULES[name], *batch)


@pytest.mark.parametrize(("holds", "name"), [pair for pair in PAIRS if pair[1] not in CLAIMS[pair[0]]])
def test_what_is_not_claimed_has_a_counterexample(holds, name):
    assert not all(holds(RULES[name], *draw_batch(seed, 3, 5, 3)) for seed in range(10))


@pytest.mark.parametrize("name", ["corr_grpo", "dr_grpo", "rloo"])
def test_advantages_in_the_unit_of_the_rewards(name):
    rewards, weights = draw_batch(1, 3, 5, 3)
    torch.testing.assert_close(RULES[name](2 * rewards, weights), 2 * RULES[name](rewards, weights))


# ----------------------------------------------------------- pinned, by hand

REWARDS = torch.tensor([[[1.0, 0.2], [0.0, 0.6], [0.0, 0.4]]])
WEIGHTS = torch.tensor([0.75, 0.25])
SUMS = (0.8, 0.15, 0.1)
CENTRED = (0.45, -0.2, -0.25)
FIRST = (math.sqrt(2), -1 / math.sqrt(2), -1 / math.sqrt(2))  # Z_1
SECOND = (-math.sqrt(1.5), math.sqrt(1.5), 0.0)  # Z_2
PAIRED = [0.75 * first + 0.25 * second for first, second in zip(FIRST, SECOND, strict=True)]


def whitened(values):
    mean = sum(values) / len(values)
    return [(value - mean) / math.sqrt(sum((v - mean) ** 2 for v in values) / len(values)) for value in values]


def scores_of_softmin(kappa):
    pairs = zip(FIRST, SECOND, strict=True)
    return whitened([-math.log(0.75 * math.exp(-kappa * a) + 0.25 * math.exp(-kappa * b)) / kappa for a, b in pairs])


def volumes():
    values = [1.1**1.5 * 0.1**0.5, 0.1**1.5 * 0.5**0.5, 0.1**1.5 * 0.3**0.5]
    return [value - sum(values) / 3 for value in values]


SPREADS = (math.sqrt(2) / 3, math.sqrt(0.08 / 3))
CORRELATION = -math.sqrt(3) / 2
PINNED = {
    "cond_gdpo": (CondGdpo(0, 1.0), FIRST),  # both objectives are then 1 in the first rollout alone
    "corr_grpo": (CorrGrpo(), [value / math.sqrt(2 + 2 * CORRELATION) for value in CENTRED]),
    "dr_grpo": (DrGrpo(), CENTRED),
    "dvao": (Dvao(), [value / (0.75 * SPREADS[0] + 0.25 * SPREADS[1]) for value in CENTRED]),
    "gd2po": (Gd2po(), (0.0, 0.0, 0.0)),  # one rollout without conflict has nothing to compare with
    "gdpo": (Gdpo(), whitened(PAIRED)),
    "grpo": (Grpo(), whitened(SUMS)),
    "hvo": (Hvo(), volumes()),
    "mo_grpo": (MoGrpo(), PAIRED),
    "reinforce": (Reinforce(), whitened(SUMS)),
    "rloo": (Rloo(), (0.8 - 0.125, 0.15 - 0.45, 0.1 - 0.475)),
    "softmin": (Softmin(), scores_of_softmin(0.5)),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_pinned(name):
    rule, expected = PINNED[name]
    torch.testing.assert_close(rule(REWARDS, WEIGHTS), torch.tensor([expected]))


def test_reinforce_over_two_prompts_of_one_rollout():
    torch.testing.assert_close(
        Reinforce()(torch.tensor([[[1.0]], [[0.0]]]), torch.ones(1)), torch.tensor([[1.0], [-1.0]])
    )


def test_reinforce_with_the_group_s_baseline_over_two_prompts():
    """TRL's scale_rewards: batch takes the spread of the sums as they are, which is another factor over the batch."""
    group = Reinforce(baseline="group")(BATCH, WEIGHTS)
    centred = [value for row in TRL["dr_grpo"] for value in row]
    torch.testing.assert_close(group, torch.tensor(whitened(centred)).reshape(2, 4), atol=1e-5, rtol=0)


def test_reinforce_takes_what_a_prompt_does_not_have_for_the_batch_mean():
    """Taking it for 0 would disfavour the prompt."""
    rewards = torch.tensor([[[1.0, 0.9]], [[0.0, 0.7]], [[0.5, torch.nan]]])
    assert abs(float(Reinforce()(rewards, torch.tensor([0.5, 0.5]))[2])) < 1e-6


def test_gd2po_over_two_prompts():
    """The first keeps one rollout of three; the second has two rollouts, and keeps both."""
    second = torch.tensor([[[1.0, 0.9], [0.0, 0.1], [torch.nan, torch.nan]]])
    last, high, low = whitened([0.75 * FIRST[2] / 3, 1.0, -1.0])
    expected = torch.tensor([[0.0, 0.0, last], [high, low, 0.0]])
    torch.testing.assert_close(Gd2po()(torch.cat([REWARDS, second]), WEIGHTS), expected)


def test_gd2po_in_its_soft_form_keeps_conflicts_that_do_not_cancel():
    agreement = [
        abs(value) / (0.75 * abs(a) + 0.25 * abs(b)) for value, a, b in zip(PAIRED, FIRST, SECOND, strict=True)
    ]
    assert agreement[1] < 0.3 < agreement[0] < agreement[2]
    first, third = whitened([PAIRED[0] * 2 / 3, PAIRED[2] * 2 / 3])
    torch.testing.assert_close(Gd2po(conflict_below=0.3)(REWARDS, WEIGHTS), torch.tensor([[first, 0.0, third]]))
    gdpo = Gdpo()(REWARDS, WEIGHTS)
    torch.testing.assert_close(Gd2po(conflict_below=0.0)(REWARDS, WEIGHTS), gdpo)


def test_gd2po_hears_no_conflict_from_an_objective_with_weight_0():
    assert same(Gd2po()(REWARDS, torch.tensor([1.0, 0.0])), Gdpo()(REWARDS, torch.tensor([1.0, 0.0])))


def test_gd2po_in_its_sign_form_weighs_no_conflict():
    assert torch.equal(Gd2po()(REWARDS, torch.tensor([1.0, 1e-20], dtype=torch.float64)), torch.zeros(1, 3))


@pytest.mark.parametrize("sign", [1, -1])
def test_gd2po_takes_rounding_for_no_sign(sign):
    rewards = sign * torch.tensor([[[0.1, 0.0], [0.2, 0.9], [0.3, 0.6]]], dtype=torch.float64)
    assert 0 < -sign * float(Gdpo().per_objective(rewards)[0, 1, 0]) < 1e-8
    assert float(Gd2po()(rewards, WEIGHTS)[0, 1]) != 0


def test_cond_gdpo_never_makes_failing_the_better_choice():
    """A length penalty below 0: with 0 for what fails, the rollout that fails would be the best of the three."""
    rewards = torch.tensor([[[1.0, -0.2], [1.0, -0.8], [0.0, -0.5]]])
    gated = CondGdpo(0, 1.0).per_objective(rewards)[0, :, 1]
    torch.testing.assert_close(gated, standardise(torch.tensor([-0.2, -0.8, -0.8]).double(), 0, std_floor=1e-6))
    naive = torch.where(rewards[..., 0] >= 1, rewards[..., 1], 0.0)[0]
    assert int(naive.argmax()) == 2


def test_cond_gdpo_gates_in_the_precision_of_the_rewards():
    rewards = torch.tensor([[[0.7, 1.0], [0.6, 2.0]]])
    assert rewards.double()[0, 0, 0] < 0.7
    assert CondGdpo(0, 0.7).per_objective(rewards)[0, 0, 1] > 0


def test_cond_gdpo_where_every_rollout_fails_learns_the_condition_alone():
    rewards = torch.tensor([[[0.1, 5.0], [0.3, 2.0]]])
    torch.testing.assert_close(CondGdpo(0, 1.0)(rewards, torch.tensor([0.1, 0.9])), torch.tensor([[-1.0, 1.0]]))
    assert torch.equal(CondGdpo(0, 1.0).per_objective(rewards)[..., 1], torch.zeros(1, 2).double())


def test_cond_gdpo_without_the_condition_measured():
    rewards = torch.tensor([[[1.0, 5.0], [0.0, 2.0], [torch.nan, 9.0]]])
    parts = CondGdpo(0, 1.0).per_objective(rewards)
    torch.testing.assert_close(parts[0, :2, 1], torch.tensor([1.0, -1.0]).double())
    assert torch.isnan(parts[0, 2]).all()


def test_softmin_is_between_gdpo_and_the_worst_objective():
    rewards, weights = draw_batch(3, 3, 5, 3)
    soft = Softmin(kappa_start=1e-3)(rewards, weights)
    torch.testing.assert_close(soft, Gdpo()(rewards, weights), atol=5e-3, rtol=0)
    worst = Gdpo().per_objective(rewards).min(dim=2).values
    expected = ((worst - worst.mean()) / worst.std(correction=0)).float()
    torch.testing.assert_close(Softmin(kappa_start=100.0)(rewards, weights), expected, atol=0.1, rtol=0)


def test_softmin_moves_from_its_first_kappa_to_its_last():
    for progress, kappa in ((0.0, 0.5), (0.5, 1.25), (1.0, 2.0), (1.5, 2.0)):
        torch.testing.assert_close(
            Softmin().at(progress)(REWARDS, WEIGHTS), torch.tensor([scores_of_softmin(kappa)]), msg=str(progress)
        )


def test_softmin_lifts_groups_without_spread_above_the_batch():
    """As its docstring warns."""
    advantages = Softmin()(torch.cat([REWARDS, torch.full((1, 3, 2), 0.5)]), WEIGHTS)
    assert (advantages[1] > 0.1).all()
    torch.testing.assert_close(advantages[1], advantages[1, :1].expand(3))


def test_hvo_with_equal_weights_is_the_plain_product():
    product = torch.tensor([1.1 * 0.1, 0.1 * 0.5, 0.1 * 0.3])
    torch.testing.assert_close(Hvo()(REWARDS, torch.tensor([0.5, 0.5])), (product - product.mean())[None])


def test_corr_grpo_bounds_the_factor_of_objectives_that_oppose_each_other():
    rewards = torch.tensor([[[1.0, 0.0], [0.0, 0.5]]])  # correlation -1
    centred = centre(rewards.double() @ torch.tensor([0.5, 0.5]).double(), 1).float()
    torch.testing.assert_close(CorrGrpo()(rewards, torch.tensor([0.5, 0.5])), centred / math.sqrt(0.1))


def test_corr_grpo_leaves_out_objectives_without_spread():
    flat = torch.cat([REWARDS, torch.full((1, 3, 1), 0.4)], dim=2)
    weights = torch.tensor([0.375, 0.125, 0.5])
    torch.testing.assert_close(CorrGrpo()(flat, weights), 0.5 * CorrGrpo()(REWARDS, WEIGHTS))


# ----------------------------------------------------------- other people's numbers

# TRL 1.16.0, of these rewards and weights. Its standard deviations are the unbiased ones, and it adds 1e-4 to them.
# The rules that divide got the rewards times 1e6, where 1e-4 is nothing beside a group's spread.
BATCH = torch.tensor(
    [
        [[1.0, 0.2], [0.0, 0.6], [0.0, 0.4], [1.0, 0.9]],
        [[0.0, 0.3], [1.0, 0.8], [0.0, 0.5], [0.0, 0.1]],
    ],
    dtype=torch.float64,
)
TRL = {
    "dr_grpo": [[0.29375, -0.35625, -0.40625, 0.46875], [-0.21875, 0.65625, -0.16875, -0.26875]],
    "rloo": [[0.391666667, -0.475, -0.541666667, 0.625], [-0.291666667, 0.875, -0.225, -0.358333333]],
    "grpo": [
        [0.657959646, -0.79795106, -0.909944192, 1.049935606],
        [-0.497837243, 1.493511729, -0.384045873, -0.611628613],
    ],
    "gdpo": [
        [0.455696814, -0.708409057, -0.910578851, 1.163291094],
        [-0.579127326, 1.737381977, -0.376957531, -0.78129712],
    ],
}


@pytest.mark.parametrize("name", ["dr_grpo", "rloo"])
def test_as_trl(name):
    torch.testing.assert_close(RULES[name](BATCH, WEIGHTS), torch.tensor(TRL[name]), atol=1e-6, rtol=0)


def test_grpo_as_trl_but_for_the_unbiased_spread():
    torch.testing.assert_close(math.sqrt(3 / 4) * Grpo()(BATCH, WEIGHTS), torch.tensor(TRL["grpo"]), atol=1e-6, rtol=0)


def test_gdpo_as_trl_but_for_the_unbiased_spreads_and_what_is_added_to_the_batch_s():
    """Unbiased spreads scale every Z_k by sqrt(3 / 4); the batch's own has 8 rollouts, and 1e-4 more."""
    summed = math.sqrt(3 / 4) * combine(Gdpo().per_objective(BATCH), WEIGHTS)
    factor = float(summed.std(correction=0) / (summed.std(correction=1) + 1e-4))
    torch.testing.assert_close(factor * Gdpo()(BATCH, WEIGHTS), torch.tensor(TRL["gdpo"]), atol=1e-6, rtol=0)


# ----------------------------------------------------------- traps: what looks as if it acted


@pytest.mark.parametrize("name", sorted(CLAIMS[ignores_a_factor]))
def test_a_multiplier_acts_on_advantages_not_on_rewards(name):
    """A multiplier on the rewards is cancelled by every rule that divides by a spread, so it belongs after it."""
    rewards, weights = draw_batch(2, 3, 5, 2)
    plain = RULES[name](rewards, weights)
    assert float((RULES[name](1.7 * rewards, weights) - plain).abs().max()) < 1e-5
    assert float((1.7 * plain - plain).abs().max()) > 0.1


def test_nearly_equal_weights_invent_no_signal():
    """Sums that tie up to the weights' rounding."""
    rewards = torch.eye(3)[None]
    weights = torch.tensor([0.334, 0.333, 0.333])
    assert Grpo(std_floor=1e-6)(rewards, weights).abs().max() > 1  # the trap
    assert torch.equal(Grpo(std_floor=1e-3)(rewards, weights), torch.zeros(1, 3))
    assert torch.equal(Grpo()(rewards, torch.full((3,), 1 / 3)), torch.zeros(1, 3))
    for name in ("corr_grpo", "dr_grpo", "dvao", "rloo"):  # divide by nothing that a tie makes small
        assert RULES[name](rewards, weights).abs().max() < 0.005, name


def test_a_monotone_transform_of_a_binary_reward_is_cancelled():
    """Standardising a two-valued reward forgets the values."""
    rewards = torch.tensor([[[1.0, 0.2], [0.0, 0.6], [0.0, 0.4], [1.0, 0.9]]])
    transformed = rewards.clone()
    transformed[..., 0] = torch.nn.functional.logsigmoid(3 * rewards[..., 0])
    for name in ("gd2po", "gdpo", "mo_grpo", "softmin"):  # the trap
        torch.testing.assert_close(RULES[name](transformed, WEIGHTS), RULES[name](rewards, WEIGHTS))
    for name in ("dr_grpo", "grpo", "reinforce", "rloo"):  # before a sum it acts
        assert not same(RULES[name](transformed, WEIGHTS), RULES[name](rewards, WEIGHTS)), name
    smooth = torch.nn.functional.logsigmoid(3 * rewards)
    assert not same(Gdpo().per_objective(smooth)[..., 1], Gdpo().per_objective(rewards)[..., 1])  # a continuous one


@pytest.mark.parametrize("name", ["corr_grpo", "dvao"])
@SOME
@given(batch=batches())
def test_what_only_re_weights_prompts(name, batch):
    """Within a group it is the combined reward times one positive factor, whatever the paper calls it."""
    rewards, weights = batch
    advantages, plain = RULES[name](rewards, weights).double(), centre(combine(rewards, weights), 1)
    length = plain.norm(dim=1, keepdim=True)
    scale = advantages.norm(dim=1, keepdim=True) / length.clamp_min(1e-12)
    torch.testing.assert_close(advantages, scale * plain, atol=1e-5, rtol=1e-5)
    assert (scale[length > 1e-3] > 0).all()


def test_a_rule_that_re_weights_objectives_is_no_such_factor():
    scale = MoGrpo()(REWARDS, WEIGHTS)[0] / torch.tensor(CENTRED)
    assert float(scale.max() - scale.min()) > 0.1


def test_a_group_that_ties_in_the_sum_still_teaches():
    """Dropping the groups without spread in the summed reward drops what single objectives have to say."""
    rewards = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]])
    assert torch.equal(Grpo()(rewards, torch.tensor([0.5, 0.5]))[0], torch.zeros(2))  # the trap
    assert (Gdpo().per_objective(rewards)[0].abs() > 0.9).all()
    tilted = torch.tensor([0.6, 0.4])
    assert (Gdpo()(rewards, tilted)[0].abs() > 0.1).all()


def test_the_whitening_factor_of_what_does_not_spread():
    assert whitening_factor(torch.zeros(2, 3, 2), WEIGHTS) == 0.0
