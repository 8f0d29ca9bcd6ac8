from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.verifiers import bounded
from rewards.verifiers.bounded import Bounded
from rewards.verifiers.math import MathAccuracy, MathOptions, compare_plainly


@pytest.fixture(scope="module")
def accuracy():
    """One reward for the file: its child process takes a third of a second to start."""
    return MathAccuracy(MathOptions(timeout_s=2.0))


@pytest.fixture
def score(accuracy, make_batch):
    def score_one(gold: str | None, completion: str, prompt: str = "") -> float:
        return accuracy.score(make_batch(completion, answers=[gold], prompts=[prompt]))[0]

    return score_one


def box(answer: str) -> str:
    return f"therefore \\boxed{{{answer}}}"


SAME_WITHOUT_ALGEBRA = [
    ("27", "27"),
    ("27", " 27. "),
    ("27", "27.0"),
    ("27", "+27"),
    ("0.5", ".50"),
    ("-5", "\u22125"),
    ("1000", "1,000"),
    ("1,234,567", "1{,}234{,}567"),
    (r"\$32,348", "32348"),
    ("27", "x = 27"),
    ("27", "30-1+6-9+1 = 27"),
    ("(1,2)", r"\left( 1, 2 \right)"),
    (r"\frac{1}{2}", r"\dfrac{1}{2}"),
    (r"\text{even}", r"\text{even}"),
    (r"\text{Evelyn}", "Evelyn."),
    (r"\text{even}", r"\textbf{Even}"),
    (r"\text{(B)}", "B"),
    ("(B)", r"\mathrm{(B)}"),
    (r"\frac{1}{2}", "0.5"),
    ("0.5", r"\frac12"),
    ("1/2", r"\dfrac{2}{4}"),
    (r"-\frac{3}{8}", r"\frac{-3}{8}"),
    (r"\frac{3}{2}", r"1\frac{1}{2}"),
    ("137 \\frac{1}{2}", "275/2"),
    ("3.5", "3 1/2"),
    ("3 1/2", r"\frac{7}{2}"),
    (r"-\frac{7}{2}", r"x = -3\,1/2"),
    (r"\frac{1}{2}", r"\frac 1 2"),
    ("1234567", "1 234 567"),
    ("52_8", "52_{8}"),
    ("52", r"52_{10}"),
]
DIFFERENT_WITHOUT_ALGEBRA = [
    ("27", "28"),
    ("27", "-27"),
    ("27", "2.7"),
    ("27", "27.001"),
    ("27", "28 = 27 = 28"),
    ("27", "30-1+6-9+1"),
    ("27", "30 - 1 + 6 - 9 + 1 = x"),
    ("27", r"9 \times 3"),
    ("27", "9 \u00d7 3"),
    ("27", "9*3"),
    ("27", r"9 \cdot 3"),
    ("27", "9 \u22c5 3"),
    ("27", "9 \u2217 3"),
    ("27", r"9 \ast 3"),
    ("27", "9(3)"),
    ("27", "(9)(3)"),
    ("27", r"\frac{20+7}{1}"),
    ("27", "1" * 301),
    (r"\frac{1}{2}", r"\frac{1}{3}"),
    (r"\frac{1}{2}", r"\frac{3}{4}-\frac{1}{4}"),
    (r"\frac{1}{2}", r"\frac{1}{6} \times 3"),
    (r"\frac{1}{3}", "0.333333"),
    ("31/2", "3 1/2"),
    ("3 1/2", "31/2"),
    ("12", "1 2"),
    ("52_8", "52"),
    ("52_8", "52_9"),
    ("52", "52_8"),
    ("28", r"\binom{8}{2}"),
    ("6", r"\log_2 64"),
    ("120", "5!"),
]
SAME_WITH_ALGEBRA = [
    ("10", r"10 \text{ cm}"),
    ("8", r"5 + 3 = 8 \text{ eggs}"),
    ("3.5", r"3 1/2 \text{ cm}"),
    (r"90^\circ", "90"),
    (r"50\%", "50"),
    ("1024", "2^{10}"),
    ("300000000", r"3 \times 10^8"),
    (r"3\sqrt{2}", r"\sqrt{18}"),
    ("x^2+1", "1 + x^2"),
    ("p - q", "-q + p"),
    ("y = 2x+1", "2x + 1"),
    (r"\frac{\pi}{2}", r"\pi/2"),
    ("6 - 5i", "-5i + 6"),
    (r"\{1, 2\}", "2, 1"),
    ("[0,1)", r"\left[0, 1\right)"),
    (r"(2,\infty)", "x > 2"),
    (r"(2,\infty)", "(2, \u221e)"),
    (r"30^\circ", "30\u00b0"),
    (r"\sqrt{5}", "\u221a5"),
    (".0000672", r"6.72 \times 10^{-5}"),
    (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}"),
    (r"\cot x", r"\frac{\cos x}{\sin x}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
]
DIFFERENT_WITH_ALGEBRA = [
    (r"\frac{1}{2}", r"\frac{1}{0}"),
    (r"2^\frac{1}{2}", "2^1/2"),
    ("1/23", r"\frac{1}{2}3"),
    (r"\sqrt{5}", "2.236068"),
    (r"\pi", "3.14159265"),
    (".0000672", r"6.7201 \times 10^{-5}"),
    ("27", "27, 28"),
    ("27", r"27 \text{ or } 28"),
    ("27", r"\infty"),
    ("27", "x >= 27"),
    ("(1,2)", "(2,1)"),
    ("[0,1)", "[0,1]"),
    ("1, 2", "1"),
    (r"\text{odd}", r"\text{even}"),
    ("x", "y"),
    (r"\frac{1}{2}", r"\frac{1}{"[:-1]),
]


@pytest.mark.parametrize(("gold", "answer"), SAME_WITHOUT_ALGEBRA)
def test_equal_text_and_numbers_need_no_algebra(gold, answer):
    assert compare_plainly(gold, answer) is True


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT_WITHOUT_ALGEBRA)
def test_other_numbers_and_sums_left_undone_are_wrong_without_algebra(gold, answer):
    assert compare_plainly(gold, answer) is False


@pytest.mark.parametrize(("gold", "answer"), SAME_WITH_ALGEBRA)
def test_equivalent_answers_are_right(score, gold, answer):
    assert compare_plainly(gold, answer) is not False
    assert score(gold, box(answer)) == 1.0


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT_WITH_ALGEBRA)
def test_answers_that_are_not_equivalent_are_wrong(score, gold, answer):
    assert score(gold, box(answer)) == 0.0


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_integers_compare_as_integers(gold, answer):
    assert compare_plainly(str(gold), f"{answer:,}") is (gold == answer)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("", 0.0),
        ("27", 0.0),
        (r"\boxed{28} or rather \boxed{27}", 1.0),
        (r"\boxed{27} or rather \boxed{28}", 0.0),
        (r"\boxed{27", 0.0),
        (r"\boxed{27} or rather \boxed{2", 0.0),
        ("-1=29\n+6=35\n-9=26\n+1=27\n\\boxed{27}", 1.0),
    ],
)
def test_the_last_complete_box_is_the_answer(score, completion, expected):
    assert score("27", completion) == expected


def test_a_ground_truth_may_be_boxed(score):
    assert score(r"hence $\boxed{\frac12}$", box("1/2")) == 1.0


GSM8K = [  # as published, with the marks of its calculator
    (
        "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
        "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72",
        "72",
    ),
    (
        "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\n"
        "Working 50 minutes, she earned 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10",
        "10",
    ),
    ("He wins 2125 in all.\n#### 2,125", "2125"),
]


@pytest.mark.parametrize(("truth", "answer"), GSM8K)
def test_a_ground_truth_may_be_a_worked_solution_that_marks_its_answer(score, truth, answer):
    assert MathAccuracy.takes_truth(truth)
    assert score(truth, box(answer)) == 1.0
    assert score(truth, box("24")) == 0.0


def test_every_short_answer_is_met_by_itself(score):
    for gold, _ in SAME_WITHOUT_ALGEBRA + SAME_WITH_ALGEBRA:
        assert MathAccuracy.takes_truth(gold)
        assert score(gold, box(gold)) == 1.0


@pytest.mark.parametrize(
    "truth",
    [
        "He sells 24 in May.\nIn all 24 + 48 = 72.",
        "so " * 101,
        r"so \boxed{" + "1" * 301 + "}",
        r"it is \boxed{72",
        "it is 72\n####",
    ],
)
def test_a_ground_truth_that_no_answer_could_meet_is_no_wrong_answer(accuracy, make_batch, truth):
    assert not MathAccuracy.takes_truth(truth)
    with pytest.raises(ValueError, match="row 1 needs a ground truth that is a short answer"):
        accuracy.score(make_batch(box("1"), box("2"), answers=["1", truth]))


def test_a_matrix_may_go_over_several_lines(score):
    truth = "\\begin{pmatrix}\n1\\\\\n2\n\\end{pmatrix}"
    assert score(truth, box(r"\begin{pmatrix}1\\2\end{pmatrix}")) == 1.0


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("first\nthe answer is 27.", 1.0),
        ("#### 27", 1.0),
        ("27\nso we get 28", 0.0),
        ("we have 27 apples", 1.0),
        ("So 30 - 3 = 27 apples.", 1.0),
        ("So 27 = 30 - 3 apples.", 0.0),
        (r"Therefore $x = \frac{54}{2}$.", 1.0),
        ("nothing", 0.0),
        ("", 0.0),
        ("30-1+6-9+1", 0.0),
        (r"\boxed{28}, so 27", 0.0),
    ],
)
def test_without_require_boxed_the_last_line_stands_in(make_batch, completion, expected):
    reward = MathAccuracy(MathOptions(require_boxed=False))
    assert reward.score(make_batch(completion, answers=["27"])) == [expected]


@pytest.mark.parametrize(
    ("gold", "answer", "prompt", "expected"),
    [
        ("2k+2", "(-k+4)+(-2+3k)", r"Simplify $(-k + 4) + (-2 + 3k)$.", 0.0),
        ("2k+2", "2(k+1)", r"Simplify $(-k + 4) + (-2 + 3k)$.", 1.0),
        ("(a+5)(b+2)", "ab + 5b+2a+10", "Factor $ab+5b+2a+10$.", 0.0),
        (".15", r"\frac{3}{20}", r"Write $\frac{3}{20}$ as a decimal.", 0.0),
        (".15", r"0.15", r"Write $\frac{3}{20}$ as a decimal.", 1.0),
        ("1/2", r"\frac{1}{2}", "Is it 1/2 or 1/3?", 1.0),
        ("7", "7", "Is it 7 or 8?", 1.0),
        ("7", "7 cm", "A side of 7 cm grows to 9 cm and back.", 1.0),
        ("7", "x = 7 cm", "A side of 7 cm grows to 9 cm and back.", 1.0),
        ("0.5", "1/2", "A die shows 11/2 or 21/25 or 1/20 or 1/2.5.", 1.0),
        ("0.5", "1/2", "Write 1/2.", 0.0),
        ("1+x^2", "x^2 + 1", "Is it $x^2+1$ or $x^2+2$?", 1.0),
        ("y = 2x+1", "2x+1", "Where does $y = 2x + 1$ stand?", 1.0),
        ("1", "w^3 = 1", "Let $w^3 = 1$. Find all values of $w$.", 0.0),
        ("3", "x = 3", "Suppose $(x-1) f(x) = 3x^4 - 3$. Of what degree is $f$?", 1.0),
        ("1, 2", "x = 1, y = 2", "Solve $x + y = 3$.", 1.0),
    ],
)
def test_a_formula_of_the_prompt_is_no_answer_unless_it_is_the_ground_truth(score, gold, answer, prompt, expected):
    assert score(gold, box(answer), prompt) == expected


@pytest.mark.parametrize(
    ("gold", "formula", "more"),
    [
        ("27", "54/2", ("54/02", "54.0/2", "+54/2", "x = +(54/2)")),
        ("64", r"\sqrt{4096}", (r"\sqrt{(4096)}", r"\sqrt{4096.0}")),
        ("1024", "2^{10}", ("2^{10.0}", "2^10")),
        ("(x+2)(x+3)", "x^2+5x+6", ("x^2+6+5x", "y = 6 + 5x + x^{2}")),
    ],
)
def test_a_formula_of_the_prompt_stays_one_in_other_clothes(score, gold, formula, more):
    dressed = (formula, f"x = {formula}", f"{{{formula}}}", rf"\left({formula}\right)", f"y = ({{{formula}}})", *more)
    prompt = f"Work out ${formula}$ now."
    assert {answer: score(gold, box(answer), prompt) for answer in dressed} == dict.fromkeys(dressed, 0.0)
    assert score(gold, box(f"{formula} = {gold}"), prompt) == 1.0


def test_a_row_without_ground_truth_may_be_left_out(make_batch):
    reward = MathAccuracy(MathOptions(missing="skip"))
    assert reward.score(make_batch(box("1"), box("2"), answers=[None, "2"])) == [None, 1.0]


@pytest.mark.parametrize("missing", [None, "", "  "])
def test_a_missing_ground_truth_names_the_row(accuracy, make_batch, missing):
    with pytest.raises(ValueError, match="row 1 has no ground truth"):
        accuracy.score(make_batch(box("1"), box("2"), answers=["1", missing]))


def test_each_row_has_its_own_ground_truth(accuracy, make_batch):
    completions = [box(answer) for answer in ("1", "2", "1/2", "2/4")]
    batch = make_batch(*completions, answers=["1", "1", "0.5", "0.5"])
    assert accuracy.score(batch) == [1.0, 0.0, 1.0, 1.0]
    assert accuracy.score(make_batch()) == []


@pytest.mark.parametrize("endless", ["9^{9^{9^{9}}}", r"\sum_{n=1}^{1000000} \frac{1}{n^2}"])
def test_an_endless_expression_is_wrong_and_the_next_answer_is_still_compared(accuracy, make_batch, endless):
    started = time.monotonic()
    batch = make_batch(box(endless), box(endless), box("0.5"), answers=["27", "27", r"\frac12"])
    assert accuracy.score(batch) == [0.0, 0.0, 1.0]
    assert time.monotonic() - started < 120


@pytest.mark.parametrize("answer", ["{" * 140 + "1" + "}" * 140, "\\" * 99, "\ud800\x00"])
def test_a_malformed_answer_is_wrong(score, answer):
    assert score(r"\frac12", box(answer)) == 0.0


def test_it_works_outside_the_main_thread(score):
    scores = []
    thread = threading.Thread(target=lambda: scores.append(score(r"\frac12", box("0.5"))))
    thread.start()
    thread.join()
    assert scores == [1.0]


def worker_of(checker):
    """Process id of what answers."""
    assert checker._child is not None
    child = checker._child.pid
    return int(Path(f"/proc/{child}/task/{child}/children").read_text())


@pytest.fixture
def checker():
    checker = Bounded("equal_answers", 0.5)
    assert checker.ask(gold="1", answer=r"\frac22", prose=False)
    return checker


def test_the_child_sees_no_secret(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    checker = Bounded("equal_answers", 1.0)
    assert checker.ask(gold="1", answer="1", prose=False)
    assert b"canary" not in Path(f"/proc/{checker._child.pid}/environ").read_bytes()


def test_what_took_too_long_costs_no_new_child_and_is_not_asked_again(checker, monkeypatch):
    child, worker = checker._child, worker_of(checker)
    endless = {"gold": "27", "answer": "9^{9^{9^{9}}}", "prose": False}
    assert not checker.ask(**endless)
    assert checker.ask(gold="x + 1", answer="1 + x", prose=False)
    assert checker._child is child
    assert worker_of(checker) != worker
    monkeypatch.setattr(bounded, "_exchange", None)
    assert not checker.ask(**endless)


def test_no_more_of_what_took_too_long_is_kept_than_some(checker, monkeypatch):
    monkeypatch.setattr(bounded, "_LATE_KNOWN", 2)
    monkeypatch.setattr(bounded, "_exchange", lambda _child, _message: "late\n")
    for gold in "abc":
        assert not checker.ask(gold=gold, answer="", prose=False)
    assert len(checker._late) == 2


def test_what_takes_all_memory_is_undecided_and_leaves_the_next_as_much(tmp_path, monkeypatch):
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
from rewards.verifiers import bounded
bounded.TASKS["hungry"] = lambda: lambda gib: len(bytearray(1 + (gib << 30))) > 0
bounded._serve("hungry")
"""
    (tmp_path / "child.py").write_text(script)
    monkeypatch.setattr(bounded, "__file__", str(tmp_path / "child.py"))
    hungry = Bounded("hungry", 5.0)
    assert hungry.ask(gib=0)
    worker = worker_of(hungry)
    assert not hungry.ask(gib=8)
    assert hungry.ask(gib=0)
    assert worker_of(hungry) != worker


def test_a_worker_that_ended_otherwise_leaves_its_question_undecided_and_the_next_has_another_child(checker):
    child = checker._child
    os.kill(worker_of(checker), signal.SIGSTOP)
    killer = threading.Timer(0.2, os.kill, (worker_of(checker), signal.SIGKILL))
    killer.start()
    question = {"gold": "x + 1", "answer": "1 + x", "prose": False}
    assert not checker.ask(**question)
    assert child.returncode == -signal.SIGKILL
    assert checker.ask(**question)  # it was not the question's fault, so it is not remembered


def test_the_child_ends_with_its_reward():
    checker = Bounded("equal_answers", 1.0)
    assert checker.ask(gold="1", answer=r"\frac22", prose=False)
    child, worker = checker._child, worker_of(checker)
    assert child is not None
    del checker
    gc.collect()
    assert child.returncode == -signal.SIGKILL
    until = time.monotonic() + 20
    while _runs(worker) and time.monotonic() < until:
        time.sleep(0.01)
    assert not _runs(worker)


def _runs(process):
    """A zombie, which whoever adopted it has not yet looked at, does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_child_that_cannot_start_is_an_error_and_not_a_wrong_answer(monkeypatch):
    monkeypatch.setattr(bounded, "__file__", "/nowhere/bounded.py")
    monkeypatch.setattr(subprocess.Popen, "__init__", _silenced(subprocess.Popen.__init__))
    with pytest.raises(RuntimeError, match="did not start"):
        Bounded("equal_answers", 1.0).ask(gold="1", answer="2", prose=False)


def _silenced(start):
    return lambda *args, **options: start(*args, stderr=subprocess.DEVNULL, **options)


def test_what_it_warms_up_with_is_a_question_of_algebra():
    assert compare_plainly("x + 1", "1 + x") is None
    reward = MathAccuracy(MathOptions())
    reward.warm_up()
    assert reward._child._child is not None
