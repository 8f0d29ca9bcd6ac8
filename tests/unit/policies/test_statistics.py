"""Statistics of what was measured: NaN counts for nothing and stays NaN."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.statistics import WHITEN_EPS, centre, mean, standardise, std, whiten

NAN = torch.nan
DIMS = (0, 1, 2, (0, 1), (1, 2), (0, 1, 2))
SOME = settings(max_examples=30, deadline=None, derandomize=True)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """The first entry along each dimension is measured everywhere, so that no statistic is over nothing."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    values = 10 * torch.rand(shape, generator=generator, dtype=torch.float64) - 5
    gaps = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.4]))
    gaps[0], gaps[:, 0], gaps[..., 0] = False, False, False
    return torch.where(gaps, NAN, values)


@pytest.mark.parametrize("dim", DIMS)
@SOME
@given(values=tensors())
def test_as_numpy_without_what_was_not_measured(dim, values):
    for ours, numpys in ((mean, np.nanmean), (std, np.nanstd)):
        expected = torch.from_numpy(np.asarray(numpys(values.numpy(), axis=dim, keepdims=True)))
        torch.testing.assert_close(ours(values, dim), expected)


@SOME
@given(values=tensors())
def test_gaps_stay_gaps_and_nothing_else_becomes_one(values):
    for result in (centre(values, 1), standardise(values, 1, std_floor=1e-6), whiten(values)):
        assert torch.equal(torch.isnan(result), torch.isnan(values))


@SOME
@given(values=tensors())
def test_centred_and_standardised_per_slice(values):
    scores = standardise(values, 1, std_floor=1e-6)
    torch.testing.assert_close(mean(centre(values, 1), 1), torch.zeros_like(mean(values, 1)), atol=1e-9, rtol=0)
    spread = std(scores, 1)
    torch.testing.assert_close(spread, (std(values, 1) > 1e-6).double(), atol=1e-9, rtol=0)


@SOME
@given(values=tensors())
def test_whitened_over_everything(values):
    whitened = whiten(values)
    assert abs(float(torch.nanmean(whitened))) < 1e-9
    expected = 1.0 if (~torch.isnan(values)).sum() > 1 else 0.0
    assert float(std(whitened, (0, 1, 2))) == pytest.approx(expected, abs=1e-6)


def test_over_nothing():
    nothing = torch.full((2, 3), NAN)
    assert torch.equal(mean(nothing, 1), torch.zeros(2, 1))
    assert torch.equal(std(nothing, 1), torch.zeros(2, 1))
    for result in (centre(nothing, 1), standardise(nothing, 1, std_floor=1e-6), whiten(nothing)):
        assert torch.isnan(result).all()


def test_one_value_has_no_spread():
    one = torch.tensor([[4.0, NAN, NAN]])
    assert float(std(one, 1)) == 0
    assert standardise(one, 1, std_floor=1e-6)[0, 0] == 0
    assert whiten(one)[0, 0] == 0


def test_the_floor_is_exclusive_and_of_the_spread():
    values = torch.tensor([[-0.5, 0.5]], dtype=torch.float64)
    assert torch.equal(standardise(values, 1, std_floor=0.5), torch.zeros(1, 2).double())
    assert torch.equal(standardise(values, 1, std_floor=0.499), torch.tensor([[-1.0, 1.0]]).double())
    assert torch.equal(whiten(WHITEN_EPS * values), torch.zeros(1, 2).double())


def test_by_hand():
    values = torch.tensor([[1.0, NAN, 3.0], [NAN, 5.0, 5.0]], dtype=torch.float64)
    torch.testing.assert_close(mean(values, 1), torch.tensor([[2.0], [5.0]]).double())
    torch.testing.assert_close(std(values, 1), torch.tensor([[1.0], [0.0]]).double())
    expected = torch.tensor([[-1.0, NAN, 1.0], [NAN, 0.0, 0.0]]).double()
    torch.testing.assert_close(standardise(values, 1, std_floor=1e-6), expected, equal_nan=True)
