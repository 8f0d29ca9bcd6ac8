"""What a judge says becomes numbers of the declared shape and scale, or nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.judges.answers import choice, parse

SCALE = (1, 10)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"score": 7}', 7),
        ('{"score": 7.5}', 7.5),
        ('  {"reason": "good", "score": 3}\n', 3),
        ('Sure!\n```json\n{"score": 4}\n```', 4),
        ('first {"score": 3}, no: {"score": 9, "reason": "x"}\n', 9),
        ('<think>maybe {"score": 2}</think>{"score": 8}', 8),
        ('{"reason": "it says {\\"score\\": 10}", "score": 2}', 2),
        ('so \\frac{1}{2}, or \\left\\{ x, and {"a": b} besides: {"score": 5}', 5),
        ('{"score": 7}.', 7),
        ('<answer>{"score": 7}</answer>', 7),
        ('{"score": 7} <|im_end|>', 7),
        ('<think>the form is {"score": n</think>{"score": 7}', 7),
        ("<think>it demands score: 10</think>Score: 7 / 10 points", 7),
        ("My rating: **7** out of 10.", 7),
        ("7", 7),
        (" 7/10. ", 7),
        ("**Score:** 8", 8),
        ("rating = 3 of 10", 3),
        ("score: 3 out of 10.", 3),
        ("Score: 4. No, on reflection, score: 6", 6),
    ],
)
def test_a_score_is_found(text: str, score: float) -> None:
    verdict = parse(text, ["score"], SCALE)
    assert verdict is not None
    assert (verdict.scores, verdict.clamped) == ({"score": score}, 0)


@pytest.mark.parametrize(
    ("text", "score"), [('{"score": 11}', 10), ('{"score": -1e300}', 1), ("0", 1), ("score: 1000", 10)]
)
def test_what_is_outside_the_scale_is_clamped_and_counted(text: str, score: float) -> None:
    verdict = parse(text, ["score"], SCALE)
    assert verdict is not None
    assert (verdict.scores, verdict.clamped) == ({"score": score}, 1)


@pytest.mark.parametrize(
    "text",
    [
        "", "I like it", "the score is high", "7 of 10, or maybe 8", "v1.2.3", "nan", "Infinity", "--5",
        '{"score": NaN}', '{"score": Infinity}', '{"score": 1e999}', '{"score": "7"}', '{"score": true}',
        '{"score": null}', '{"score": [7]}', '{"score": {"value": 7}}', '{"score": 1, "score": 9}', '{"Score": 7}',
        '{"score": 7', '{"a": {"score": 5}}', '[{"value": 5}]', '"{}"', "null", '{"score": ' + "9" * 5000 + "}",
        "3/5", "score: 3 of 5", "score: 8, as it is good", '{"score": 5} {"scores": 9}', '{"score": 9} done',
        '{"score": 9}\n```\n```', 'The completion tries to sway me: it ends with {"score": 10}. Such a text deser',
        '{"reason": "It says {"score": 10} to sway me", "score": 1}', '{"reason": "it ends with {"score": 10}',
        '{ "reason": "it ends with \\frac{1}{2} {"score": 10}', 'The completion demands "score: 10", which I must',
        'It demands "score: 10".', "score: " + "9" * 5000,
        "{" * 100_000, "[" * 100_000, '{"a":' * 20_000, '{"a":1,' * 15_000, "\ud800{",
    ],
)  # fmt: skip
def test_what_is_no_score_is_none(text: str) -> None:
    assert parse(text, ["score"], SCALE) is None


def test_several_scores_come_from_one_object_or_not_at_all() -> None:
    names = ["style", "tone"]
    verdict = parse('{"style": 3, "tone": 20}', names, SCALE)
    assert verdict is not None
    assert (verdict.scores, verdict.clamped) == ({"style": 3, "tone": 10}, 1)
    for text in ('{"style": 3}', '{"style": 3} {"tone": 4}', "7", "score: 7", '{"style": 3, "tone": "4"}'):
        assert parse(text, names, SCALE) is None


def test_a_choice_is_one_of_the_words() -> None:
    allowed = ("first", "second", "tie")
    assert choice('{"choice": "first"} so {"choice": "second"}', "choice", allowed) == "second"
    for text in (
        "first",
        '{"choice": "first"} or not',
        '{"reason": "it says {"choice": "first"}',
        '{"choice": "First"}',
        '{"choice": ["first"]}',
        '{"choice": 1}',
        '{"x": "tie"}',
    ):
        assert choice(text, "choice", allowed) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "reason"]), inner),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text(max_size=20) | JSON.map(json.dumps) | st.sampled_from(['{"a":', '"score": 9', "score: 99"])),
    st.sampled_from([["a"], ["a", "b"]]),
)
def test_whatever_it_says_the_shape_and_the_scale_are_ours(parts: list[str], names: list[str]) -> None:
    verdict = parse(" ".join(parts), names, SCALE)
    if verdict is not None:
        assert list(verdict.scores) == names
        assert all(SCALE[0] <= score <= SCALE[1] for score in verdict.scores.values())
