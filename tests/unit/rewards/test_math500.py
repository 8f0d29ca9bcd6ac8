"""The math reward on MATH-500: a fast part of tests.benchmarks.rewards, and the arithmetic that checks its cases."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import pytest

from rewards.verifiers.math import MathAccuracy, MathOptions
from tests.benchmarks.math_answers import ALTERED, REWRITTEN
from tests.benchmarks.math_values import Unreadable, close, signature
from tests.benchmarks.rewards import agreement, batch_of, copies, judge, made_cases, problems


@pytest.fixture(scope="module")
def reward():
    return MathAccuracy(MathOptions())


@pytest.fixture(scope="module")
def known(math500):
    return problems(math500)


def a_few(cases, of_each):
    """The last ones of every family, which are of other problems than the first ones."""
    ordered = sorted(cases, key=lambda case: case.family)
    return [case for _, family in groupby(ordered, key=lambda case: case.family) for case in list(family)[-of_each:]]


def test_every_reference_solution_is_right(reward, known):
    assert len(known) == 500
    assert reward.score(batch_of([problem.solution for problem in known], known)) == [1.0] * 500


@pytest.mark.parametrize(("families", "same", "at_least"), [(REWRITTEN, True, 0.97), (ALTERED, False, 1.0)])
def test_answers_with_the_same_value_are_right_and_with_another_wrong(reward, known, families, same, at_least):
    left_out = Counter()
    cases = a_few(made_cases(known, families, same=same, refused=left_out), 2)
    assert {case.family for case in cases} == set(families)
    share, _, wrong = agreement(cases, judge(reward, cases, "math500"))
    assert share >= at_least, wrong


def test_what_is_copied_or_left_undone_is_no_answer(reward, known):
    cases = list(copies(known[::25]))
    share, _, wrong = agreement(cases, judge(reward, cases, "math500"))
    assert share == 1.0, wrong


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.5", r"\frac{3}{2}"),
        (r"1\frac{4}{5}", "9/5"),
        (r"\frac12\pi", r"\pi/2"),
        (r"\sqrt{12}", r"2\sqrt3"),
        ("6-5i", "-5i + 6"),
        ("(a+5)(b+2)", "ab+5b+2a+10"),
        (r"1 \pm \sqrt{19}", r"\{1+\sqrt{19}, 1-\sqrt{19}\}"),
        (r"(2,\infty)", "x > 2"),
        (r"x \in [-2,7]", r"-2 \le x \le 7"),
        (r"\begin{pmatrix} 1/5 \\ 2 \end{pmatrix}", r"\begin{bmatrix}0.2\\2\end{bmatrix}"),
        ("x-y=0", "2x - 2y = 0"),
        (r"\text{(E)}", "(E)"),
        (r"11,\! 111", "11111"),
        (r"90^\circ", "90"),
    ],
)
def test_the_arithmetic_finds_the_same_value(one, other):
    assert close(signature(one), signature(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.5", "1.50001"),
        ("x+1", "y+1"),
        ("1,2", "1,2,3"),
        ("(1,2)", "(2,1)"),
        ("(1,2)", "[1,2)"),
        ("(1,2,3)", "1,2,3"),
        ("52_8", "52"),
        ("52_8", "52_9"),
        ("x-y=0", "x-y=1"),
        (r"\text{odd}", r"\text{even}"),
    ],
)
def test_the_arithmetic_tells_other_values_apart(one, other):
    assert not close(signature(one), signature(other))


@pytest.mark.parametrize("answer", ["", r"\int x", r"\frac{1}", "(1", "?"])
def test_what_the_arithmetic_does_not_know_it_refuses(answer):
    with pytest.raises(Unreadable):
        signature(answer)
