import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.steer_words import guardrails, weights

NOW = {"accuracy": 0.6, "conciseness": 0.3, "clarity": 0.1}


def test_the_others_share_the_rest_as_they_do_now() -> None:
    assert weights(["conciseness=0.3"], NOW) == pytest.approx(NOW)
    assert weights(["accuracy=0.2"], NOW) == pytest.approx({"accuracy": 0.2, "conciseness": 0.6, "clarity": 0.2})
    assert weights(["accuracy=1"], NOW) == {"accuracy": 1, "conciseness": 0, "clarity": 0}


def test_others_that_are_all_zero_share_equally() -> None:
    now = {"a": 1.0, "b": 0.0, "c": 0.0}
    assert weights(["a=0.5"], now) == {"a": 0.5, "b": 0.25, "c": 0.25}


def test_all_given_may_have_any_scale() -> None:
    given_all = ["clarity=1", "accuracy=4", "conciseness=2"]
    assert weights(given_all, NOW) == {"accuracy": 4, "conciseness": 2, "clarity": 1}


@given(share=st.floats(0, 1), now=st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_filled_weights_are_a_simplex_in_the_jobs_order(share: float, now: list[float]) -> None:
    before = {f"o{i}": value for i, value in enumerate(now)}
    after = weights([f"o0={share}"], before)
    assert list(after) == list(before)
    assert min(after.values()) >= 0
    assert sum(after.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["acuracy=1"], "no objective 'acuracy', did you mean 'accuracy'?"),
        (["length=1"], "no objective 'length'; objectives are accuracy, conciseness, clarity"),
        (["accuracy"], "'accuracy': expected NAME=VALUE, such as accuracy=0.5"),
        (["accuracy="], "accuracy: expected a number of 0 or more, got ''"),
        (["accuracy=much"], "accuracy: expected a number of 0 or more, got 'much'"),
        (["accuracy=-1"], "accuracy: expected a number of 0 or more, got '-1'"),
        (["accuracy=nan"], "accuracy: expected a number of 0 or more, got 'nan'"),
        (["accuracy=1e999"], "accuracy: expected a number of 0 or more, got '1e999'"),
        (["accuracy=1", "accuracy=2"], "'accuracy' is given twice"),
        (
            ["accuracy=2"],
            "the weights given sum to 2: nothing is left for conciseness, clarity; stay below 1, or give all",
        ),
        (["accuracy=0", "conciseness=0", "clarity=0"], "at least one weight must be above 0"),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        weights(words, NOW)
    assert str(caught.value).rstrip() == message


def test_guardrails_of_a_metric_are_replaced_added_and_taken_away() -> None:
    now = [{"metric": "kl", "max": 0.1}, {"metric": "entropy", "min": 0.2}, {"metric": "kl", "min": 0}]
    assert guardrails(["kl,max=0.5,for_steps=2,action=pause"], now) == [
        {"metric": "entropy", "min": 0.2},
        {"metric": "kl", "max": 0.5, "for_steps": 2, "action": "pause"},
    ]
    assert guardrails(["kl", "loss,max=3"], now) == [{"metric": "entropy", "min": 0.2}, {"metric": "loss", "max": 3}]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "kl,limit=1",
            "--guardrail kl,limit=1: expected METRIC,max=NUMBER with min, max, for_steps or action, got 'limit=1'",
        ),
        ("kl,max", "--guardrail kl,max: expected METRIC,max=NUMBER with min, max, for_steps or action, got 'max'"),
        ("kl,max=much", "--guardrail kl,max: expected a number, got 'much'"),
    ],
)
def test_what_is_wrong_in_a_guardrail_is_one_line(word: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        guardrails([word], [])
    assert str(caught.value) == message
