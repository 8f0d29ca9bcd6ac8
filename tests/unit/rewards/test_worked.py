"""Right in few tokens, and told in words, with and without noise."""

from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rewards.verifiers.rows import MissingRow
from rewards.verifiers.worked import RightWithin, RightWithinOptions, Worded, WordedOptions

WORKED = "first we get 30-1=29\n+6=35\n\\boxed{35}"


def test_right_and_short_enough_is_all_or_nothing(make_batch):
    batch = make_batch(
        "\\boxed{27}", "\\boxed{ 27 }", "\\boxed{28}", "27", "\\boxed{27}", answers=["27"] * 5, tokens=[20, 5, 5, 5, 21]
    )
    assert RightWithin(RightWithinOptions()).score(batch) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert RightWithin(RightWithinOptions(max_tokens=21)).score(batch)[-1] == 1.0


def test_a_row_without_an_answer_is_named_or_left_out(make_batch):
    batch = make_batch("\\boxed{1}", "\\boxed{1}", answers=["1", None])
    with pytest.raises(MissingRow, match="row 1"):
        RightWithin(RightWithinOptions()).score(batch)
    assert RightWithin(RightWithinOptions(missing="skip")).score(batch) == [1.0, None]


def test_words_are_counted_by_lines_of_working(make_batch):
    texts = [WORKED, WORKED.replace("first we get ", ""), "so we get 1+1=2\n\\boxed{2}", "we think \\boxed{2}", ""]
    assert Worded(WordedOptions()).score(make_batch(*texts)) == [5.0, 0.0, 10.0, 0.0, 0.0]


@given(noise=st.floats(0.01, 10), seed=st.integers(0, 2**63 - 1), prompt=st.text(max_size=8))
def test_noise_is_bounded_and_the_same_for_the_same_completion(make_batch, noise, seed, prompt):
    options = WordedOptions(noise=noise, seed=seed)
    batch = make_batch(WORKED, "\\boxed{2}", WORKED, prompts=[prompt] * 3)
    first, second, third = Worded(options).score(batch)
    assert first == third
    assert abs(first - 5.0) <= noise
    assert abs(second) <= noise
    assert Worded(options).score(batch) == [first, second, third]


def test_noise_is_of_mean_zero_and_another_for_another_prompt_and_seed(make_batch):
    batch = make_batch(*[WORKED] * 2000, prompts=[str(i) for i in range(2000)])
    scores = Worded(WordedOptions(noise=8.0)).score(batch)
    assert len(set(scores)) == 2000
    assert fmean(scores) == pytest.approx(5.0, abs=0.4)  # the standard error is 0.1
    assert Worded(WordedOptions(noise=8.0, seed=1)).score(batch) != scores


@pytest.mark.parametrize(
    "options", [{"noise": -1}, {"noise": 10.1}, {"noise": float("nan")}, {"seed": -1}, {"nois": 1}], ids=str
)
def test_options_that_can_not_be_are_refused(options):
    with pytest.raises(ValidationError):
        WordedOptions(**options)
