"""One point of a front by conditions, an objective and weights."""

from typing import Any

import pytest

from orchestrator.choice import Condition, parse_conditions, pick

Json = dict[str, Any]
NAMES = ("accuracy", "tokens")
EQUAL = dict.fromkeys(NAMES, 0.5)


def front(*rows: tuple[int, float, float], **more: Any) -> Json:
    points = [
        {"step": step, "objectives": {"accuracy": a, "tokens": t}, "on_front": True, "checkpoint": True}
        for step, a, t in rows
    ]
    ranges = {"accuracy": [0, 1], "tokens": [0, 1000]}
    return {"points": points, "ranges": ranges, "directions": {"tokens": {"better": "smaller"}}, **more}


FRONT = front((10, 0.95, 900), (20, 0.85, 400), (30, 0.81, 500), (40, 0.5, 100))


@pytest.mark.parametrize(
    ("require", "by", "step"),
    [
        ("accuracy>=0.8", "tokens", 20),
        (" accuracy >= .8 , tokens<=450", None, 20),
        ("tokens<=1e3", "accuracy", 10),
        ("accuracy>=0.8,accuracy<=0.82", "accuracy", 30),
        ("accuracy>=0.96", None, None),
    ],
)
def test_the_best_of_what_meets_the_conditions(require: str, by: str | None, step: int | None) -> None:
    found = pick(FRONT, parse_conditions(require, NAMES), by, EQUAL)
    assert (found and found["step"]) == step


def test_by_weights_and_with_what_is_equal_told_apart_by_them_and_then_the_latest() -> None:
    assert pick(FRONT, [], None, {"accuracy": 0.0, "tokens": 1.0})["step"] == 40  # type: ignore[index]
    ties = front((10, 0.9, 300), (20, 0.7, 300), (30, 0.9, 300))
    assert pick(ties, [], "tokens", EQUAL)["step"] == 30  # type: ignore[index]


@pytest.mark.parametrize("lacks", ["on_front", "checkpoint"])
def test_only_what_is_on_the_front_and_kept_is_picked(lacks: str) -> None:
    found = front((10, 0.9, 300), (20, 0.8, 300))
    found["points"][0][lacks] = False
    assert pick(found, [], "accuracy", EQUAL)["step"] == 20  # type: ignore[index]


def test_conditions_are_on_what_is_shown_and_the_best_is_by_what_counts() -> None:
    gated = front((10, 0.9, 300), (20, 0.9, 400))
    for point, tokens in zip(gated["points"], (900, 800), strict=True):
        point["counted"] = {"accuracy": 0.9, "tokens": tokens}
    assert pick(gated, [Condition(objective="tokens", op="<=", value=400)], "tokens", EQUAL)["step"] == 20  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy=0.8", "'accuracy=0.8': expected NAME>=VALUE or NAME<=VALUE, such as accuracy>=0.8"),
        ("", "'': expected NAME>=VALUE or NAME<=VALUE, such as accuracy>=0.8"),
        ("acuracy>=1", "no objective 'acuracy', did you mean 'accuracy'?"),
        ("accuracy>=much", "accuracy: expected a number, got 'much'"),
        ("accuracy>=nan", "accuracy: expected a number, got 'nan'"),
    ],
)
def test_a_condition_that_cannot_be_read_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_conditions(text, NAMES)
    assert str(error.value) == message
