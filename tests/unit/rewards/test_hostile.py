"""What every verifier promises for any text at all: a number in its range, the same in any order and company."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewards import registry

CALL = json.dumps([{"name": "a", "arguments": {"b": 1}}])
CONSTRAINTS = [
    {"id": "keywords:forbidden_words", "forbidden_words": ["a.b", "(", "step"]},
    {"id": "length_constraints:number_sentences", "num_sentences": 2, "relation": "at least"},
    {"id": "length_constraints:number_paragraphs", "num_paragraphs": 2},
    {"id": "length_constraints:nth_paragraph_first_word", "num_paragraphs": 1, "nth_paragraph": 1, "first_word": "a"},
    {"id": "detectable_content:number_placeholders", "num_placeholders": 2},
    {"id": "detectable_content:postscript", "postscript_marker": "P.S."},
    {"id": "detectable_format:number_bullet_lists", "num_bullets": 2},
    {"id": "detectable_format:number_highlighted_sections", "num_highlights": 2},
    {"id": "detectable_format:multiple_sections", "section_spliter": "Section", "num_sections": 2},
    {"id": "detectable_format:json_format"},
    {"id": "detectable_format:title"},
    {"id": "combination:two_responses"},
    {"id": "change_case:english_lowercase"},
    {"id": "change_case:capital_word_frequency", "capital_frequency": 2, "capital_relation": "at least"},
    {"id": "language:response_language", "language": "de"},
]
OPTIONS = [
    ("clarity", {}),
    ("clarity", {"step_pattern": "(a|a)*b$"}),
    ("conciseness", {}),
    *(("exact", {"where": where}) for where in ("completion", "boxed", "marker")),
    ("format", {}),
    ("instructions", {"constraints": CONSTRAINTS}),
    ("json_schema", {"json_schema": {"type": "object"}}),
    ("language", {"language": "en"}),
    ("language", {"language": "fr", "score_as": "probability", "min_letters": 1}),
    ("length", {}),
    ("length_within", {}),
    ("math", {}),
    ("math", {"require_boxed": False}),
    *(("numeric", {"where": where}) for where in ("completion", "boxed", "last_line")),
    ("regex", {"pattern": "(a|a)*b$"}),
    ("repetition", {}),
    ("repetition", {"unit": "characters", "n": 2}),
    ("right_within", {}),
    *(("text", {"where": where}) for where in ("completion", "tag")),
    ("tool_call", {}),
    ("worded", {}),
    ("worded", {"noise": 10}),
]
BY_NAME = pytest.mark.parametrize(
    "reward", [pytest.param(pair, id=f"{pair[0]}-{'-'.join(pair[1])}") for pair in OPTIONS], indirect=True
)
FRAGMENTS = st.sampled_from(
    [
        *("\\boxed{", "}", "{", "1", "-", "=", " ", "\n", "\n\n", "step 1. ", "then ", "**", "*", "[", "]", "<<", ">>"),
        *("<answer>", "</answer>", "answer: ", "####", "```", "```json\n", '{"a": ', "<tool_call>", "</tool_call>"),
        *('{"name": "a"}', "<function=a>", "<parameter=b>", "</function>", "10^", "\\frac", "\\times", "/", "%", ","),
        *("\u0300", "\ud800", "\x00", "\ufdfa", "\U0001f600", "Section 1", "P.S.", "***", "$", "!", ".", "1e", "'"),
    ]
)
TEXTS = st.lists(FRAGMENTS, max_size=12).map("".join) | st.text(max_size=30)
UNITS = [
    *("a", "1", " ", "\n", "=", "-", "1=", "**", "\\boxed{", "{", "}", "[", "<<", "!", "```", "<tool_call>", "[{},"),
    *("000,", "1.", "\u0300\u0316", "\ud800", "answer: ", "step ", "$", "(i)", "a-", '{"a":', "_1", "\\frac"),
]


@pytest.fixture(scope="module")
def reward(request):
    """Module-wide, so that what has a child process starts one."""
    name, options = request.param
    return registry.build(name, options)


@pytest.fixture(scope="module")
def score(make_batch):
    def score_all(reward, texts):
        truth = CALL if reward.name == "tool_call" else "1"
        return reward.score(make_batch(*texts, answers=[truth] * len(texts), max_tokens=100))

    return score_all


def test_every_built_in_verifier_is_tried():
    ours = [name for name in registry.names() if registry.resolve(name).__module__.startswith("rewards.verifiers.")]
    assert {name for name, _ in OPTIONS} == set(ours)


@BY_NAME
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXTS, min_size=1, max_size=4), order=st.randoms(use_true_random=False))
def test_a_number_in_range_that_depends_on_the_row_alone(score, reward, texts, order):
    scores = score(reward, texts)
    low, high = reward.range
    assert all(isinstance(value, float) and math.isfinite(value) and low <= value <= high for value in scores)
    shuffled = order.sample(range(len(texts)), len(texts))
    assert score(reward, [texts[row] for row in shuffled]) == [scores[row] for row in shuffled]
    assert score(reward, texts[:1]) == scores[:1]


@BY_NAME
def test_large_texts_that_repeat_what_a_pattern_stumbles_over_come_to_an_end(score, reward):
    """Time in the square of the length would keep some of these for minutes, and the test's own limit ends them."""
    low, high = reward.range
    texts = [
        prefix + unit * (20_000 // len(unit)) + suffix for unit in UNITS for prefix, suffix in (("", ""), ("x", "y"))
    ]
    assert all(low <= value <= high for value in score(reward, texts))
