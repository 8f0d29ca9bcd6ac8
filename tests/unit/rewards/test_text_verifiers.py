"""Verifiers that compare text, numbers and patterns."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import registry
from rewards.verifiers.extract import extract
from rewards.verifiers.numeric import numbers


@pytest.fixture
def score(make_batch):
    """Of one completion under a reward by name."""

    def score_one(name, completion, answer="1", detail=None, **options):
        batch = make_batch(completion, answers=[answer], details=[detail or {}])
        return registry.build(name, options).score(batch)[0]

    return score_one


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("completion", "First.\n<answer>a b</answer>\nThe answer is: 7\n\\boxed{c} end"),
        ("last_line", "\\boxed{c} end"),
        ("boxed", "c"),
        ("tag", "a b"),
        ("marker", "7"),
    ],
)
def test_the_part_that_is_compared(where, expected):
    assert extract(" First.\n<answer>a b</answer>\nThe answer is: 7\n\\boxed{c} end\n", where) == expected


@pytest.mark.parametrize("where", ["boxed", "tag", "marker"])
@pytest.mark.parametrize("text", ["", "nothing", "<answer>", "</answer><answer>", "<answer> </answer>", "answer:"])
def test_a_part_that_is_not_there_is_none_and_scores_0(score, where, text):
    assert extract(text, where) is None
    assert [score(name, text, where=where) for name in ("exact", "text", "numeric")] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("completion", "exact", "text"),
    [
        ("The Cat", 1.0, 1.0),
        (" The Cat\n", 1.0, 1.0),
        ("the cat", 0.0, 1.0),
        ("cat", 0.0, 1.0),
        ("A \u201ccat\u201d!", 0.0, 1.0),
        ("\uff23\uff41\uff54", 0.0, 1.0),  # full width
        ("cats", 0.0, 0.0),
        ("the cat sat", 0.0, 0.0),
        ("anthecat", 0.0, 0.0),
        ("", 0.0, 0.0),
        ("The Cat" + " " * 30_000 + ".", 0.0, 0.0),
    ],
)
def test_exact_and_normalised_text(score, completion, exact, text):
    assert score("exact", completion, "The Cat") == exact
    assert score("text", completion, "The Cat") == text


@pytest.mark.parametrize("letter", "ABCD")
def test_no_letter_of_a_choice_is_an_article(score, letter):
    for same in (letter, f"{letter}.", f"({letter})", letter.lower()):
        assert score("text", same, letter) == 1.0
    others = [other for other in "ABCD" if other != letter]
    assert [score("text", other, letter) for other in (*others, f"{letter}, {others[0]}", "the")] == [0.0] * 5


@pytest.mark.parametrize(
    ("completion", "truth", "expected"),
    [
        ("hepatitis", "Hepatitis A", 0.0),
        ("Hepatitis A.", "Hepatitis A", 1.0),
        ("B", "A, B", 0.0),
        ("the", "The", 1.0),
        ("5", "-5", 0.0),
        ("\u22125.", "-5", 1.0),
        ("(-5)", "-5", 1.0),
        ("-$5", "-$5", 1.0),
        ("$5", "-$5", 0.0),
        ("3 5", "3-5", 1.0),
        ("COVID-19", "covid 19", 1.0),
        ("C", "C#", 0.0),
        ("C#.", "C#", 1.0),
        ("# C", "C", 1.0),
    ],
)
def test_what_is_part_of_a_word_or_a_number_is_no_punctuation(score, completion, truth, expected):
    assert score("text", completion, truth) == expected


def test_what_makes_a_difference_to_text_is_an_option(score):
    assert score("text", "Cat", "cat", case=True) == 0.0
    assert score("text", "cat!", "cat", punctuation=True) == 0.0
    assert score("text", "a cat", "cat", articles=True) == 0.0
    assert score("text", "!?", "!?") == 1.0
    assert score("text", "??", "!?") == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", [12.0]),
        ("-3.5 and .5", [-3.5, 0.5]),
        ("\u22122", [-2.0]),
        ("$1,234,567.5.", [1234567.5]),
        ("1,2,3", [1.0, 2.0, 3.0]),
        ("1e-3 2E+2", [0.001, 200.0]),
        (
            "3 \\times 10^{8} or 3 \u00d7 10^8",
            [3e8, 3e8],
        ),
        ("3/4 of 1/0", [0.75]),
        ("it is 3/4.", [0.75]),
        ("1/2.5", [1.0, 2.5]),
        ("3 1/2 and -1 1/4, \u22122 1/2", [3.5, -1.25, -2.5]),
        ("3 4/2", [3.0, 2.0]),
        (r"\frac{3}{4}, \dfrac12, -\frac{3}{4}, \tfrac{-3}{4}", [0.75, 0.5, -0.75, -0.75]),
        (r"1\frac{1}{2} or 1 \frac 1 2", [1.5, 1.5]),
        (r"1{,}234 and 1,\!234", [1234.0, 1234.0]),
        (r"15\text{ m}^2, 15 m^2, 15 m^{-2}", [15.0, 15.0, 15.0]),
        ("x_1 x_{2} 2^3 2^{-3} = 0.125", [0.125]),
        (r"30^\circ", [30.0]),
        ("50%", [50.0]),
        ("x2 v1.2 abc3def", []),
        ("3-5", [3.0, 5.0]),
        ("9" * 500, []),
        ("1e999", []),
    ],
)
def test_numbers_of_a_text(text, expected):
    assert [number for number, _ in numbers(text)] == pytest.approx(expected)


@given(st.floats(-1e12, 1e12))
def test_a_number_reads_as_itself(number):
    assert numbers(f"so it is {number!r}, about") == [(number, False)]


@pytest.mark.parametrize(
    ("completion", "answer", "options", "expected"),
    [
        ("about 3.14", "3.14159", {"absolute": 0.01}, 1.0),
        ("about 3.14", "3.14159", {"relative": 0.001}, 1.0),
        ("about 3.14", "3.14159", {}, 0.0),
        ("102", "100", {"absolute": 2}, 1.0),
        ("102.001", "100", {"absolute": 2}, 0.0),
        ("98", "-100", {"relative": 0.5}, 0.0),
        ("5 then 7", "5", {}, 0.0),
        ("5 then 7", "5", {"pick": "first"}, 1.0),
        ("5 then 7", "7", {"pick": "only"}, 0.0),
        ("it is 7", "7", {"pick": "only"}, 1.0),
        ("50%", "0.5", {}, 1.0),
        ("50", "50%", {}, 1.0),
        ("50%", "50%", {}, 1.0),
        ("50%", "50", {}, 0.0),
        ("none", "0", {}, 0.0),
    ],
)
def test_a_number_within_a_tolerance(score, completion, answer, options, expected):
    assert score("numeric", completion, answer, **options) == expected


@pytest.mark.parametrize("truth", ["several: 1 and 2", "none"])
def test_a_ground_truth_that_is_not_one_number_names_the_row(score, truth):
    with pytest.raises(ValueError, match="row 0 needs a ground truth that is one number"):
        score("numeric", "1", truth)


def test_a_pattern_of_the_spec_or_of_the_row(score):
    assert score("regex", "x = 12;", pattern=r"\d+;$") == 1.0
    assert score("regex", "x = 12;", pattern=r"\d+;", mode="fullmatch") == 0.0
    assert score("regex", "12;", pattern=r"\d+;", mode="fullmatch") == 1.0
    assert score("regex", "YES", pattern="yes", ignore_case=True) == 1.0
    assert score("regex", "abc", column="shape", detail={"shape": "^a.c$"}) == 1.0
    assert score("regex", "abd", column="shape", detail={"shape": "^a.c$"}) == 0.0
    assert score("regex", "abd", column="shape", missing="skip") is None


@pytest.mark.parametrize(
    ("pattern", "message"),
    [(None, "row 0 has nothing in the column 'shape'"), ("(", "row 0 has a pattern"), (7, "row 0 needs a pattern")],
)
def test_a_row_without_a_usable_pattern_is_named(score, pattern, message):
    with pytest.raises(ValueError, match=message):
        score("regex", "a", column="shape", detail={"shape": pattern})


@pytest.mark.parametrize("pattern", ["(a|a)*$", "(a+)+$", "(a*)*b", "(.*a){25}"])
def test_patterns_that_make_others_backtrack_for_ever_come_to_an_end(score, pattern):
    assert score("regex", "a" * 50_000 + "b", pattern=pattern) in (0.0, 1.0)


@pytest.mark.parametrize("name", ["exact", "text", "numeric"])
def test_a_row_without_ground_truth_is_an_error_or_left_out(score, name):
    with pytest.raises(ValueError, match="row 0 has no ground truth"):
        score(name, "1", None)
    assert score(name, "1", None, missing="skip") is None


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("", 4, 1.0),
        ("one two three four", 4, 1.0),
        ("a b c d e f", 2, 1.0),
        ("a b a b a b", 2, 2 / 5),
        ("so so so so so", 1, 1 / 5),
        ("A b a B", 1, 2 / 4),
    ],
)
def test_the_share_of_runs_that_are_no_repetition(score, text, n, expected):
    assert score("repetition", text, n=n) == pytest.approx(expected)


def test_long_runs_of_a_long_text_take_no_multiple_of_its_memory(score):
    text = "".join(random.Random(0).choices("abcdefgh", k=100_000))
    tracemalloc.start()
    assert score("repetition", text, n=50, unit="characters") == 1.0
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


def test_repetition_of_characters(score):
    assert score("repetition", "abcabc", n=3, unit="characters") == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("1. Add.\n2. Divide.\n\\boxed{3}", 1.0),
        ("(a) Add. (iv) Divide. \\boxed{3}", 1.0),
        ("Step 1: add, step 2: divide, \\boxed{3}", 1.0),
        ("- add\n* divide\n\\boxed{3}", 1.0),
        ("First we add, then we divide: \\boxed{3}", 1.0),
        ("a. b. \\boxed{0}", 1.0),  # what `clarity` is there for
        ("1. Add.\n\\boxed{3}", 0.0),
        ("First we add.\n1. Divide.\n\\boxed{3}", 0.0),
        ("1. Add.\n2. Divide.", 0.0),
        ("1. Add.\n2. Divide.\n\\boxed{ }", 0.0),
        ("1. Add.\n2. Divide.\n\\boxed{3", 0.0),
        ("\\boxed{3}", 0.0),
        ("", 0.0),
    ],
)
def test_the_published_format(score, completion, expected):
    assert score("format", completion) == expected


def test_clarity_is_not_satisfied_by_marks_alone(score):
    hack = "a. b. \\boxed{0}"
    assert score("format", hack) == 1.0
    assert score("clarity", hack) == 0.0
