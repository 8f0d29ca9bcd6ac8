from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.verifiers.clarity import Clarity, ClarityOptions, count_steps

FRAGMENTS = st.sampled_from(
    ["-1=29\n", "+6=35\n", "Step 1: add\n", "2. take\n", "five words or a few\n\n", r"\boxed{3}", "}", "x"]
)
TEXT = st.lists(FRAGMENTS, max_size=8).map("".join) | st.text(max_size=40)


def score(make_batch, *completions, **options):
    return Clarity(ClarityOptions(**options)).score(make_batch(*completions))


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("", 0.0),
        ("27", 0.0),
        (r"\boxed{27}", 0.0),
        ("-1=29\n+6=35\n\\boxed{35}", 1.0),
        ("first we get 30-1=29\nthen we get 29+6=35\n\\boxed{35}", 1.0),
        ("-1=29 \n +6=35 \n \\boxed{35}", 1.0),
        ("-1+6=35\n\\boxed{35}", 0.5),
        ("-1=29\n+6=35\n", 0.5),
        ("-1=29\n+6=35\n\\boxed{3", 0.5),
        ("-1=29\n", 0.25),
        ("-1=29\n-1=29\n-1=29\n\\boxed{29}", 0.5),
        ("\\boxed{35}\n-1=29\n+6=35", 0.0),
    ],
)
def test_steps_and_a_box(make_batch, completion, expected):
    assert score(make_batch, completion) == [expected]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("Step 1: Let $x$ be the age.\nStep 2: Solve for $x$.", 2),
        ("**Step 1** Let $x$ be.\n## Step 2: solve\n### Step 3\nso", 3),
        ("1. Factor the square.\n2) Divide by three.\n(3) Conclude.", 3),
        ("- Factor it.\n* Divide it.\n\u2022 Conclude.", 3),
        ("First, factor it.\nNext, divide it.\nFinally, conclude.", 3),
        ("We know that $a + b$ is odd.\n\nHence one of them must be even.\n\nSo:\n\n", 2),
        ("The value is 3.14 and not 2.7.", 1),
        ("-5\n-6\n-7", 0),
        ("From 9 - 5 = 4 and $2^2 = 4$ we see 4=4.", 3),
        ("30-1=29+6=35", 2),
        ("1=1=1=1", 1),
        ("1. same\n2. same\n3. same", 1),
    ],
)
def test_the_built_in_rule_counts_distinct_steps_of_several_kinds(text, steps):
    assert count_steps(text) == steps


def test_min_steps_sets_how_many_are_enough(make_batch):
    text = "-1=29\n+6=35\n\\boxed{35}"
    assert [score(make_batch, text, min_steps=n)[0] for n in (1, 2, 4)] == [1.0, 1.0, 0.5]


def test_a_pattern_replaces_the_rule(make_batch):
    texts = ["a -> b\nb -> c\n\\boxed{c}", "-1=29\n+6=35\n\\boxed{35}"]
    assert score(make_batch, *texts, step_pattern="^.*->.*$") == [1.0, 0.0]
    assert score(make_batch, *texts, step_pattern="(a|(b)) ->") == [1.0, 0.0]


@given(st.lists(TEXT, max_size=6), st.randoms(use_true_random=False))
def test_scores_are_in_range_and_follow_a_permutation_of_the_batch(make_batch, texts, random):
    scores = score(make_batch, *texts)
    assert all(0.0 <= value <= 1.0 for value in scores)
    order = random.sample(range(len(texts)), len(texts))
    assert score(make_batch, *[texts[row] for row in order]) == [scores[row] for row in order]


@given(TEXT)
def test_a_box_never_lowers_the_score_of_the_work_before_it(make_batch, text):
    work, boxed = score(make_batch, text, text + "\\boxed{1}")
    assert boxed >= work or "\\boxed" in text


@pytest.mark.parametrize("unit", ["1", " ", "\n", "=", "-", "1=", "**", " \n", "\\boxed{", "{"])
def test_time_is_linear_in_the_length_of_a_pathological_completion(make_batch, unit):
    started = time.thread_time()  # which waiting for a busy processor does not count
    score(make_batch, unit * 100_000)
    assert time.thread_time() - started < 5
