"""Transforms of rewards: properties that every form claims, one value each worked out by hand, and the trap."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from orchestrator.specs.transforms import TransformSpec
from policies.estimators import Gdpo, Grpo
from rewards.transforms import (
    TRANSFORMS,
    Calibrate,
    Clip,
    Cosine,
    GroupLength,
    Identity,
    Lsc,
    MeanLength,
    SoftOverlong,
    TransformContext,
    ZScore,
)

MAKE = {
    "identity": Identity,
    "clip": lambda: Clip(lo=0.2, hi=0.7),
    "zscore": ZScore,
    "lsc": Lsc,
    "calibrate": Calibrate,
    "calibrate identity": lambda: Calibrate(transform="identity"),
    "calibrate worst": lambda: Calibrate(t=-10.0),
    "calibrate log": lambda: Calibrate(transform="log"),
    "soft_overlong": lambda: SoftOverlong(max_tokens=100, buffer_tokens=40),
    "soft_overlong add": lambda: SoftOverlong(max_tokens=100, buffer_tokens=40, add=True),
    "cosine": lambda: Cosine(max_tokens=100),
    "group_length": GroupLength,
    "group_length for all": lambda: GroupLength(correct_at=None),
    "group_length add": lambda: GroupLength(add=True),
    "mean_length": MeanLength,
    "mean_length add": lambda: MeanLength(decay=0.5, add=True),
}
STRICT = ("identity", "zscore", "lsc")  # different rewards stay different
SPECS = TypeAdapter(TransformSpec)


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def context_of(values, tokens=50, references=None):
    tokens_PG = torch.as_tensor(tokens, dtype=torch.float64).expand(values.shape)
    return TransformContext(
        prompt_index=tuple(range(len(values))), completion_tokens_PG=tokens_PG, references_PN=references
    )


@st.composite
def batches(draw):
    prompts, groups, samples = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.rand(prompts, groups, generator=generator, dtype=torch.float64)
    references = torch.rand(prompts, samples, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        values, references = values.round(), references.round()
    if draw(st.booleans()):
        values[torch.rand(values.shape, generator=generator) < 0.3] = torch.nan
    tokens = torch.randint(0, 130, (prompts, groups), generator=generator).double()
    return values, context_of(values, tokens, references)


def test_every_transform_is_tried():
    assert {name.split()[0] for name in MAKE} == set(TRANSFORMS)
    assert all(isinstance(make(), TRANSFORMS[name.split()[0]]) for name, make in MAKE.items())


@pytest.mark.parametrize("name", MAKE)
@settings(max_examples=25, deadline=None)
@given(batch=batches())
def test_finite_where_measured_and_nan_elsewhere(name, batch):
    values, context = batch
    transformed = MAKE[name]()(values, context)
    assert transformed.shape == values.shape
    assert transformed.dtype == torch.float64
    assert torch.equal(torch.isfinite(transformed), ~torch.isnan(values))


@pytest.mark.parametrize("name", MAKE)
@settings(max_examples=25, deadline=None)
@given(batch=batches(), seed=st.integers(0, 1000))
def test_permuting_prompts_and_rollouts_permutes_the_values(name, batch, seed):
    values, context = batch
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randperm(values.shape[0], generator=generator)
    rollouts = torch.randperm(values.shape[1], generator=generator)
    permuted = TransformContext(
        prompt_index=tuple(prompts.tolist()),
        completion_tokens_PG=context.completion_tokens_PG[prompts][:, rollouts],
        references_PN=context.references_PN[prompts],
    )
    torch.testing.assert_close(
        MAKE[name]()(values[prompts][:, rollouts], permuted),
        MAKE[name]()(values, context)[prompts][:, rollouts],
        equal_nan=True,
    )


@pytest.mark.parametrize("name", MAKE)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), tokens=st.integers(0, 130))
def test_never_falls_as_the_reward_rises(name, seed, tokens):
    generator = torch.Generator().manual_seed(seed)
    values = (4 * torch.rand(2, 9, generator=generator, dtype=torch.float64) - 2).sort(dim=1).values
    references = 4 * torch.rand(2, 5, generator=generator, dtype=torch.float64) - 2
    transformed = MAKE[name]()(values, context_of(values, tokens, references))
    assert (transformed.diff(dim=1) >= 0).all()
    if name in STRICT:
        assert (transformed.diff(dim=1) > 0).all()


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 4)])
def test_a_reward_that_never_spreads_stays_without_spread(name, shape):
    values = torch.full(shape, 0.7, dtype=torch.float64)
    references = torch.full((shape[0], 3), 0.7, dtype=torch.float64)
    transformed = MAKE[name]()(values, context_of(values, references=references))
    assert torch.isfinite(transformed).all()
    assert float(transformed.max() - transformed.min()) == 0


@pytest.mark.parametrize("name", MAKE)
@settings(max_examples=15, deadline=None)
@given(first=batches(), second=batches())
def test_state_through_json_continues_identically(name, first, second):
    whole, resumed = MAKE[name](), MAKE[name]()
    whole(*first)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    expected = whole(*second)
    torch.testing.assert_close(resumed(*second), expected, atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["lsc", "calibrate", "calibrate log"])
def test_a_prompt_without_references_is_not_measured(name):
    values = tensor([1.0, 2.0], [1.0, 2.0])
    references = tensor([0.0, 1.0], [math.nan, math.nan])
    transformed = MAKE[name]()(values, context_of(values, references=references))
    assert torch.isfinite(transformed[0]).all()
    assert torch.isnan(transformed[1]).all()


@pytest.mark.parametrize("name", MAKE)
def test_says_when_it_needs_references(name):
    transform, values = MAKE[name](), tensor([0.3, 0.6])
    if "references" in transform.needs:
        with pytest.raises(AssertionError):
            transform(values, context_of(values))
    else:
        transform(values, context_of(values))


# ------------------------------------------------------------- worked out by hand


def test_clip_pinned():
    values = tensor([-1.0, 0.5, 3.0])
    assert Clip(lo=0.0, hi=1.0)(values, context_of(values)).tolist() == [[0.0, 0.5, 1.0]]
    assert Clip(hi=1.0)(values, context_of(values)).tolist() == [[-1.0, 0.5, 1.0]]


def test_zscore_pinned_over_two_batches():
    transform = ZScore(eps=1e-12)
    first, second = tensor([1.0, 3.0]), tensor([5.0, 7.0, math.nan])
    torch.testing.assert_close(transform(first, context_of(first)), tensor([-1.0, 1.0]))
    std = math.sqrt(5)  # of 1, 3, 5, 7 with mean 4
    expected = tensor([1 / std, 3 / std, math.nan])
    torch.testing.assert_close(transform(second, context_of(second)), expected, equal_nan=True)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), offset=st.sampled_from([0.0, 1e6]))
def test_zscore_merges_as_if_all_batches_were_one(seed, offset):
    values = offset + torch.rand(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    transform = ZScore()
    for p in range(6):
        last = transform(values[p : p + 1], context_of(values[p : p + 1]))
    torch.testing.assert_close(last, ZScore()(values, context_of(values))[5:], atol=1e-6, rtol=1e-6)


def test_zscore_forgets_how_far_the_policy_has_come():
    """.2 -> .8 over 200 batches, .05 apart within each: without decay the spread is that of the way."""
    batches = [0.2 + 0.003 * step + torch.tensor([[-0.05, 0.05]], dtype=torch.float64) for step in range(200)]
    spreads = {}
    for decay in (1.0, 0.9):
        transform = ZScore(decay=decay)
        last = [transform(values, context_of(values)) for values in batches][-1]
        spreads[decay] = float(last[0, 1] - last[0, 0]) / 2
    assert spreads == pytest.approx({1.0: 0.05 / 0.18, 0.9: 0.88}, abs=0.02)


def test_zscore_before_anything_was_measured():
    values = torch.full((2, 2), math.nan, dtype=torch.float64)
    assert torch.isnan(ZScore()(values, context_of(values))).all()


def test_lsc_pinned():
    values, references = tensor([2.0, 4.0]), tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    expected = tensor([math.log(1 / (1 + math.e)), math.log(1 / (1 + math.exp(-1.0)))])  # 3 is the quantile 0.75
    transform = Lsc(quantile=0.75)
    torch.testing.assert_close(transform(values, context_of(values, references=references)), expected)
    halved = Lsc(quantile=0.75, scale=2.0)(values, context_of(values, references=references))
    torch.testing.assert_close(halved[0, 0].item(), -math.log(1 + math.exp(0.5)))


def test_calibrate_pinned():
    values, references = tensor([-1.0, 1.0, 1.5, 9.0]), tensor([1.0, 2.0, 0.0, 1.0, math.nan])
    context = context_of(values, references=references)
    ranks = [0.0, 0.5, 0.75, 1.0]  # 1.0 beats one of four and ties with two
    assert Calibrate(transform="identity")(values, context).tolist() == [ranks]
    expected = tensor([(math.exp(10 * q) - 1) / (math.exp(10) - 1) for q in ranks])
    torch.testing.assert_close(Calibrate()(values, context), expected)
    logs = tensor([math.log(q) for q in [1 / 8, 0.5, 0.75, 1.0]])
    torch.testing.assert_close(Calibrate(transform="log")(values, context), logs)


def test_calibrate_without_steepness_is_the_rank():
    values, references = tensor([0.0, 1.0]), tensor([0.5, 2.0])
    context = context_of(values, references=references)
    assert Calibrate(t=0.0)(values, context).tolist() == [[0.0, 0.5]]


def test_soft_overlong_pinned():
    values = tensor([1.0, 0.0, 1.0, 1.0])
    context = context_of(values, [60, 80, 100, 120])
    assert SoftOverlong(max_tokens=100, buffer_tokens=40)(values, context).tolist() == [[0.0, -0.5, -1.0, -1.0]]
    added = SoftOverlong(max_tokens=100, buffer_tokens=40, add=True)
    assert added(values, context).tolist() == [[1.0, -0.5, 0.0, 0.0]]
    halved = SoftOverlong(max_tokens=100, buffer_tokens=40, add=True, penalty=0.5)
    assert halved(values, context).tolist() == [[1.0, -0.25, 0.5, 0.5]]
    published = SoftOverlong(max_tokens=100, buffer_tokens=40, add=True)(2 * values - 1, context)
    assert (2 * halved(values, context) - 1).tolist() == published.tolist()


def test_cosine_pinned():
    values = tensor([1.0, 1.0, 0.0, 0.0, 1.0])
    transformed = Cosine(max_tokens=100)(values, context_of(values, [0, 50, 0, 50, 100]))
    torch.testing.assert_close(transformed, tensor([2.0, 1.5, -10.0, -5.0, -10.0]))


def test_group_length_pinned():
    values = tensor([1.0, 0.0, 1.0, 0.0, math.nan], [1.0, 1.0, 0.0, 0.0, 1.0])
    context = context_of(values, tensor([10.0, 20.0, 30.0, 50.0, 90.0], [7.0] * 5))
    expected = tensor([0.5, 0.0, 0.0, -0.5, math.nan], [0.0] * 5)  # of 10 to 50, as the last was not measured
    torch.testing.assert_close(GroupLength()(values, context), expected, equal_nan=True)
    for_all = GroupLength(correct_at=None)(values, context)
    torch.testing.assert_close(for_all[0, :4], tensor([0.5, 0.25, 0.0, -0.5])[0])
    torch.testing.assert_close(GroupLength(add=True)(values, context), expected + values, equal_nan=True)


def test_group_length_of_a_prompt_that_was_not_measured():
    values = tensor([math.nan, math.nan], [1.0, 1.0])
    transformed = GroupLength()(values, context_of(values, tensor([1.0, 2.0], [1.0, 2.0])))
    torch.testing.assert_close(transformed, tensor([math.nan, math.nan], [0.5, -0.5]), equal_nan=True)


def test_mean_length_pinned_over_two_batches():
    """The published mean is over all completions so far; the second batch is judged by 20, not by its own 25."""
    transform, values = MeanLength(), tensor([1.0, 0.0])
    assert transform(values, context_of(values, tensor([10.0, 20.0]))).tolist() == [[1.0, 0.0]]
    assert transform(values, context_of(values, tensor([15.0, 35.0]))).tolist() == [[1.0, 0.0]]
    assert transform.state_dict() == {"weight": 4.0, "tokens": 80.0}
    assert transform(values, context_of(values, tensor([19.0, 21.0]))).tolist() == [[1.0, 0.0]]
    forgetful = MeanLength(decay=0.5, add=True)
    forgetful(values, context_of(values, tensor([10.0, 20.0])))
    assert forgetful(values, context_of(values, tensor([20.0, 40.0]))).tolist() == [[2.0, 0.0]]
    assert forgetful.state_dict() == {"weight": 3.0, "tokens": 75.0}


def test_mean_length_counts_what_was_measured_alone():
    transform = MeanLength()
    values = tensor([math.nan, 1.0, 1.0])
    transformed = transform(values, context_of(values, tensor([900.0, 10.0, 20.0])))
    torch.testing.assert_close(transformed, tensor([math.nan, 1.0, 0.0]), equal_nan=True)
    assert transform.state_dict() == {"weight": 2.0, "tokens": 30.0}


# ------------------------------------------------------------- traps


@pytest.mark.parametrize("name", [*STRICT, "calibrate", "calibrate log", "cosine"])
def test_of_a_binary_reward_it_does_nothing_after_standardisation_per_objective_and_acts_before_a_sum(name):
    """Trap 4."""
    binary = tensor([1.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0, 0.0])
    references = tensor([0.0, 1.0, 0.0], [0.0, 0.0, 1.0])
    transformed = MAKE[name]()(binary, context_of(binary, references=references))
    other = torch.linspace(0, 1, 10, dtype=torch.float64).view(2, 5)
    before, after = torch.stack([binary, other], dim=2), torch.stack([transformed, other], dim=2)
    weights = torch.tensor([0.5, 0.5])
    torch.testing.assert_close(Gdpo()(after, weights), Gdpo()(before, weights), atol=1e-5, rtol=1e-5)
    if name != "identity":
        assert (Grpo()(after, weights) - Grpo()(before, weights)).abs().max() > 0.01


# ------------------------------------------------------------- specs

REQUIRED = {
    "clip": {"lo": 0.0},
    "soft_overlong": {"max_tokens": 100, "buffer_tokens": 20},
    "cosine": {"max_tokens": 100},
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_spec_makes_the_transform_of_its_name(name):
    spec = SPECS.validate_python({"name": name, **REQUIRED.get(name, {})})
    transform = TRANSFORMS[name](**spec.arguments(("accuracy",)))
    assert transform.needs == spec.needs
    made = TRANSFORMS[name](**REQUIRED.get(name, {}))
    assert vars(transform) == vars(made)  # the same defaults on both sides


@pytest.mark.parametrize(
    "document",
    [
        {"name": "clip"},
        {"name": "clip", "lo": 1.0, "hi": 1.0},
        {"name": "zscore", "eps": 0.0},
        {"name": "lsc", "quantile": 1.0},
        {"name": "calibrate", "transform": "square"},
        {"name": "soft_overlong", "max_tokens": 10, "buffer_tokens": 11},
        {"name": "cosine", "max_tokens": 10, "wrong": [-1.0, 3.0]},
        {"name": "mean_length", "decay": 0.0},
        {"name": "identity", "lo": 0.0},
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(document):
    with pytest.raises(ValidationError):
        SPECS.validate_python(document)
