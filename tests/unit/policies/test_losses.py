"""The policy loss against TRL's GRPO formula written out by hand, and each aggregation's hand values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.losses import ClippedSurrogate, at_bound, k3, token_weights

LOW, HIGH, CAP = 0.2, 0.28, 2.0
SURROGATE = ClippedSurrogate(clip_low=LOW, clip_high=HIGH, importance_cap=CAP)


def by_hand(logprob, old, sampler, advantage):
    """trl/trainer/grpo_trainer.py: coef_1, coef_2, importance_sampling_ratio; one token, plain floats."""
    coef_1 = math.exp(logprob - old)
    coef_2 = max(min(coef_1, 1 + HIGH), 1 - LOW)
    importance = min(math.exp(old - sampler), CAP)
    return -min(coef_1 * advantage, coef_2 * advantage) * importance


@st.composite
def token_batches(draw):
    rows, width = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logprobs = -3 * torch.rand(rows, width, generator=generator, dtype=torch.float64)
    old, sampler = (logprobs + torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(2))
    return logprobs, old, sampler, torch.randn(rows, generator=generator, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(batch=token_batches())
def test_token_losses_are_the_published_formula(batch):
    logprobs, old, sampler, advantages = batch
    losses = SURROGATE.token_losses(logprobs, old, sampler, advantages)
    for (row, token), loss in zip(
        torch.cartesian_prod(*map(torch.arange, losses.shape)), losses.flatten(), strict=True
    ):
        expected = by_hand(*(float(x[row, token]) for x in (logprobs, old, sampler)), float(advantages[row]))
        assert float(loss) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(batch=token_batches())
def test_the_gradient_is_zero_exactly_where_clipped(batch):
    """Elsewhere it is -m rho A: importance and old log-probabilities are constants."""
    logprobs, old, sampler, advantages = batch
    leaf = logprobs.clone().requires_grad_()
    SURROGATE.token_losses(leaf, old, sampler, advantages).sum().backward()
    clipped = SURROGATE.clipped(SURROGATE.ratios(logprobs, old), advantages)
    importance = (old - sampler).exp().clamp_max(CAP)
    expected = -importance * (logprobs - old).exp() * advantages[:, None]
    torch.testing.assert_close(leaf.grad, torch.where(clipped, 0.0, expected))


@pytest.mark.parametrize(
    ("ratio", "advantage", "is_clipped"),
    [
        (1.27, 1.0, False),  # above 1 + low, so a symmetric clip would have caught it
        (1.29, 1.0, True),
        (0.5, 1.0, False),  # moving back towards the old policy is never clipped
        (0.79, -1.0, True),
        (0.81, -1.0, False),
        (1.5, -1.0, False),
        (0.5, 0.0, False),  # there is no gradient to remove
    ],
)
def test_the_clip_is_asymmetric(ratio, advantage, is_clipped):
    logprobs, old = torch.tensor([[math.log(ratio)]]), torch.zeros(1, 1)
    assert bool(SURROGATE.clipped(SURROGATE.ratios(logprobs, old), torch.tensor([advantage]))) == is_clipped
    limit = 1 + HIGH if advantage > 0 else 1 - LOW
    loss = SURROGATE.token_losses(logprobs, old, old, torch.tensor([advantage]))
    assert float(loss) == pytest.approx(-advantage * (limit if is_clipped else ratio))


DUAL = ClippedSurrogate(clip_low=LOW, clip_high=HIGH, importance_cap=CAP, dual_clip=3.0)


def dual_by_hand(logprob, old, sampler, advantage):
    """verl/trainer/ppo/core_algos.py: pg_losses1 to pg_losses3 with clip_ratio_c; one token, plain floats."""
    ratio = math.exp(logprob - old)
    clipped = max(-advantage * ratio, -advantage * min(max(ratio, 1 - LOW), 1 + HIGH))
    bounded = min(-advantage * 3.0, clipped)
    return (bounded if advantage < 0 else clipped) * min(math.exp(old - sampler), CAP)


@settings(max_examples=60, deadline=None)
@given(batch=token_batches(), scale=st.sampled_from([1.0, 3.0]))
def test_the_dual_clip_is_the_published_formula(batch, scale):
    """And has no gradient where it, or the other clip, says so. Without it nothing changes."""
    logprobs, old, sampler, advantages = batch
    old = logprobs + scale * (old - logprobs)  # far enough for ratios above 3
    leaf = logprobs.clone().requires_grad_()
    losses = DUAL.token_losses(leaf, old, sampler, advantages)
    losses.sum().backward()
    clipped = DUAL.clipped(DUAL.ratios(logprobs, old), advantages)
    for row, token in torch.cartesian_prod(*map(torch.arange, losses.shape)).tolist():
        expected = dual_by_hand(*(float(x[row, token]) for x in (logprobs, old, sampler)), float(advantages[row]))
        assert float(losses.detach()[row, token]) == pytest.approx(expected, rel=1e-9)
    assert torch.equal(leaf.grad == 0, clipped)
    within = (logprobs - old).exp() <= 3
    plain = SURROGATE.token_losses(logprobs, old, sampler, advantages)
    assert torch.equal(losses.detach()[within], plain[within])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "is_clipped"),
    [
        (2.9, -1.0, 2.9, False),
        (3.1, -1.0, 3.0, True),
        (1e30, -2.0, 6.0, True),
        (1e30, 2.0, -2.0 * (1 + HIGH), True),  # the other clip's
        (0.5, -1.0, 1 - LOW, True),
    ],
)
def test_the_dual_clip_pinned(ratio, advantage, loss, is_clipped):
    """Also of a ratio that float32 has no number for: 1e30 stands for e^200 there."""
    log_ratio = 200.0 if ratio == 1e30 else math.log(ratio)
    logprobs = torch.tensor([[log_ratio]], requires_grad=True)
    old, advantages = torch.zeros(1, 1), torch.tensor([advantage])
    found = DUAL.token_losses(logprobs, old, old, advantages)
    assert float(found.detach()) == pytest.approx(loss)
    found.sum().backward()
    assert bool(logprobs.grad.isfinite())
    assert bool(logprobs.grad == 0) == is_clipped == bool(DUAL.clipped(DUAL.ratios(logprobs, old), advantages))


CISPO = ClippedSurrogate(clip_low=LOW, clip_high=HIGH, importance_cap=CAP, form="cispo")


@settings(max_examples=60, deadline=None)
@given(batch=token_batches())
def test_cispo_is_the_published_formula(batch):
    """arXiv 2506.13585: the gradient of -m sg(clip(rho)) A log pi, token by token."""
    logprobs, old, sampler, advantages = batch
    leaf = logprobs.clone().requires_grad_()
    losses = CISPO.token_losses(leaf, old, sampler, advantages)
    losses.sum().backward()
    for row, token in torch.cartesian_prod(*map(torch.arange, losses.shape)).tolist():
        logprob, before, drawn = (float(x[row, token]) for x in (logprobs, old, sampler))
        clipped = min(max(math.exp(logprob - before), 1 - LOW), 1 + HIGH)
        expected = -min(math.exp(before - drawn), CAP) * clipped * float(advantages[row])
        assert float(leaf.grad[row, token]) == pytest.approx(expected, rel=1e-9)
        assert float(losses.detach()[row, token]) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(batch=token_batches())
def test_at_the_old_policy_both_forms_are_one(batch):
    logprobs, _, sampler, advantages = batch
    found = []
    for surrogate in (SURROGATE, CISPO):
        leaf = logprobs.clone().requires_grad_()
        losses = surrogate.token_losses(leaf, logprobs, sampler, advantages)
        losses.sum().backward()
        found.append((losses.detach(), leaf.grad))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("surrogate", [SURROGATE, DUAL, CISPO], ids=["ppo", "dual", "cispo"])
@settings(max_examples=30, deadline=None)
@given(batch=token_batches())
def test_what_clips_leave_is_the_factor_of_the_gradient(surrogate, batch):
    logprobs, old, sampler, advantages = batch
    leaf = logprobs.clone().requires_grad_()
    surrogate.token_losses(leaf, old, sampler, advantages).sum().backward()
    kept = surrogate.kept(surrogate.ratios(logprobs, old), advantages)
    torch.testing.assert_close(leaf.grad, -surrogate.importance(old, sampler) * kept * advantages[:, None])


def test_cispo_keeps_a_token_however_far_it_moved():
    """e^200 has no number in float32; a token of a completion without advantage is not told as clipped."""
    logprobs = torch.tensor([[200.0, math.log(0.5)], [1.0, 0.0]], requires_grad=True)
    old, advantages = torch.zeros(2, 2), torch.tensor([2.0, 0.0])
    CISPO.token_losses(logprobs, old, old, advantages).sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-2 * (1 + HIGH), -2 * (1 - LOW)], [0.0, 0.0]]))
    assert CISPO.clipped(CISPO.ratios(logprobs, old), advantages).tolist() == [[True, True], [False, False]]


GSPO = ClippedSurrogate(clip_low=3e-4, clip_high=4e-4, importance_cap=CAP, ratio="sequence")


@settings(max_examples=60, deadline=None)
@given(batch=token_batches(), seed=st.integers(0, 2**31))
def test_the_sequence_ratio_is_that_of_gspo(batch, seed):
    """arXiv 2507.18071, equations 5 to 7, completion by completion; trl's importance_sampling_level: sequence.

    What stands where there is no token counts for nothing.
    """
    logprobs, old, sampler, advantages = batch
    lengths = torch.randint(0, logprobs.shape[1] + 1, (len(logprobs),), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(logprobs.shape[1])[None, :] < lengths[:, None]
    surrogate = ClippedSurrogate(clip_low=LOW, clip_high=HIGH, importance_cap=CAP, ratio="sequence")
    leaf = logprobs.clone().requires_grad_()
    losses = surrogate.token_losses(leaf, old, sampler, advantages, mask)
    token_weights(mask, "sequence_mean", max_tokens=9).double().mul(losses).sum().backward()
    for row, length in enumerate(lengths.tolist()):
        if not length:
            assert torch.equal(leaf.grad[row], torch.zeros(logprobs.shape[1]))
            continue
        ratio = math.exp(float((logprobs - old)[row, :length].sum()) / length)
        advantage = float(advantages[row])
        unclipped, clipped = ratio * advantage, min(max(ratio, 1 - LOW), 1 + HIGH) * advantage
        importance = (old - sampler)[row, :length].exp().clamp_max(CAP)
        expected = -importance * min(unclipped, clipped)
        torch.testing.assert_close(losses.detach()[row, :length], expected, rtol=1e-6, atol=1e-9)
        slope = 0.0 if clipped < unclipped else -float(importance.mean()) * unclipped / length / len(lengths)
        torch.testing.assert_close(leaf.grad[row, :length], torch.full((length,), slope).double(), rtol=1e-5, atol=1e-9)
        assert not leaf.grad[row, length:].any()


def test_the_sequence_ratio_pinned():
    """exp of the mean of 0.3, -0.1 and 0.1 is e^0.1; beside it a completion of one token, and its padding."""
    logprobs, old = torch.tensor([[0.3, -0.1, 0.1], [0.2, 0.0, 0.0]]), torch.zeros(2, 3)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    ratios = GSPO.ratios(logprobs, old, mask)
    torch.testing.assert_close(ratios, torch.tensor([[math.exp(0.1)] * 3, [math.exp(0.2)] * 3]))
    assert GSPO.clipped(ratios, torch.tensor([1.0, -1.0])).tolist() == [[True] * 3, [False] * 3]
    losses = GSPO.token_losses(logprobs, old, old, torch.tensor([1.0, -1.0]), mask)
    torch.testing.assert_close(losses, torch.tensor([[-1.0004] * 3, [math.exp(0.2)] * 3]))


def test_importance_is_truncated_and_carries_no_gradient():
    """Also where old and new log-probabilities are one tensor, as on the first update."""
    logprobs = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    sampler = torch.tensor([[-1.5, -5.0]])  # ratios e^0.5 and e^4, the second above the cap
    losses = SURROGATE.token_losses(logprobs, logprobs.detach(), sampler, torch.tensor([3.0]))
    torch.testing.assert_close(losses, torch.tensor([[-3 * math.exp(0.5), -3 * CAP]]))
    losses.sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-3 * math.exp(0.5), -3 * CAP]]))

    through_old = torch.tensor([[-1.0]], requires_grad=True)
    SURROGATE.token_losses(torch.tensor([[-1.0]]), through_old, torch.tensor([[-1.2]]), torch.ones(1)).sum().backward()
    torch.testing.assert_close(through_old.grad, torch.tensor([[math.exp(0.2)]]))  # of the ratio's only: -m rho A * -1


@settings(max_examples=60, deadline=None)
@given(logprob=st.floats(-20, 0), reference=st.floats(-20, 0))
def test_k3_is_never_negative_and_zero_on_itself(logprob, reference):
    assert float(k3(torch.tensor(logprob).double(), torch.tensor(reference).double())) >= 0
    assert float(k3(torch.tensor(logprob), torch.tensor(logprob))) == 0


def test_k3_pinned():
    value = k3(torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -1.0]))
    torch.testing.assert_close(value, torch.tensor([math.exp(-1), math.e - 2]))


@settings(max_examples=60, deadline=None)
@given(difference=st.floats(-(2.0**20), 2.0**100, width=32))
def test_one_token_does_not_make_k3_infinite(difference):
    """Nor its gradient. Up to the bound both are those of the plain formula, bit for bit; beyond it there is none."""
    logprob = torch.tensor([-difference], requires_grad=True)
    value = k3(logprob, torch.zeros(1))
    value.sum().backward()
    assert bool(value.isfinite())
    assert bool(logprob.grad.isfinite())
    if difference <= 20:
        plain = -logprob.detach()
        assert torch.equal(value, plain.exp() - plain - 1)
    else:
        assert float(value.detach()) == pytest.approx(math.exp(20) - 21)
        assert float(logprob.grad) == 0
    assert bool(at_bound(value)) == (difference >= 20)


def test_k3_estimates_the_kl_without_bias():
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.4, 0.4, 0.2])
    exact = (policy * (policy / reference).log()).sum()
    torch.testing.assert_close((policy * k3(policy.log(), reference.log())).sum(), exact)


MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])  # lengths 3, 1 and an empty completion


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token_mean", [[1 / 4] * 3, [1 / 4, 0, 0], [0, 0, 0]]),
        ("sequence_mean", [[1 / 9] * 3, [1 / 3, 0, 0], [0, 0, 0]]),
        ("constant", [[1 / 30] * 3, [1 / 30, 0, 0], [0, 0, 0]]),
    ],
)
def test_token_weights_by_hand(aggregation, expected):
    torch.testing.assert_close(token_weights(MASK.bool(), aggregation, max_tokens=10), torch.tensor(expected))


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_token_weights_sum_to_one_or_to_the_share_of_the_longest(lengths):
    mask = torch.arange(9)[None, :] < torch.tensor(lengths)[:, None]
    for aggregation in ("token_mean", "sequence_mean"):
        assert float(token_weights(mask, aggregation, max_tokens=9).sum()) == pytest.approx(1, abs=1e-5)
    constant = token_weights(mask, "constant", max_tokens=9)
    assert float(constant.sum()) == pytest.approx(sum(lengths) / (9 * len(lengths)), abs=1e-5)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_nothing_but_empty_completions_weighs_nothing(aggregation):
    assert torch.equal(token_weights(torch.zeros(2, 3).bool(), aggregation, max_tokens=3), torch.zeros(2, 3))


@pytest.mark.parametrize(("cap", "exact"), [(1e6, True), (1.5, False)])
def test_older_samplers_are_corrected_for_in_expectation(cap: float, exact: bool) -> None:
    """Over all tokens of a softmax, weighed by an older policy's probabilities: the gradient of the policy itself.

    For rollouts whose weights changed under way, each token counts with the policy that wrote it. The cap gives up the
    equality for bounded weights: it takes from tokens that the older policy hardly ever wrote.
    """
    generator = torch.Generator().manual_seed(3)
    logits, older, oldest = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(3))
    rewards = torch.randn(6, generator=generator, dtype=torch.float64)
    surrogate = ClippedSurrogate(importance_cap=cap)

    def gradient(sampler: torch.Tensor) -> torch.Tensor:
        parameters = logits.clone().requires_grad_()
        logprobs = torch.log_softmax(parameters, 0)
        sampled = torch.log_softmax(sampler, 0)
        losses = surrogate.token_losses(logprobs[:, None], logprobs.detach()[:, None], sampled[:, None], rewards)
        (sampled.exp() * losses[:, 0]).sum().backward()
        assert parameters.grad is not None
        return parameters.grad

    expected = gradient(logits)
    for sampler in (older, oldest):
        assert torch.allclose(gradient(sampler), expected, atol=1e-12) is exact
        uncorrected = torch.softmax(sampler, 0) * rewards
        assert not torch.allclose(-(uncorrected - torch.softmax(logits, 0) * uncorrected.sum()), expected, atol=1e-3)
