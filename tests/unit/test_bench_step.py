"""The comparison with TRL: what is made of the steps' figures, and that it says why where there is no peer."""

import sys

import pytest

from tests.benchmarks.step import GROUP, MAX_TOKENS, PROMPTS, missing, scoring, spec_of, summary


def test_figures_of_a_side() -> None:
    steps = [
        {"seconds": 2.0, "tokens": 10.0, "generate": 1.0, "learn": 0.5},
        {"seconds": 4.0, "tokens": 30.0, "generate": 2.0, "learn": 1.0},
    ]
    found = summary([steps[:1], steps[1:], steps])
    assert PROMPTS * GROUP == 256
    assert found["slowest_and_fastest"] == [256 / 4, 256 / 2]
    assert found["completions_per_s"] == round(2 * 256 / 6, 1)  # the turn of both
    assert found["tokens_per_s"] == round(256 * (10 + 30) / 6)
    assert found["shares"] == {"generate": 0.5, "learn": 0.25, "other": 0.25}
    assert found["tokens_per_completion"] == [10, 20, 30]


@pytest.mark.parametrize(("python", "why"), [(None, "--trl-python"), (sys.executable, "can't import trl")])
def test_without_a_peer_it_says_why(python: str | None, why: str) -> None:
    assert why in (missing(python) or "")


def test_both_sides_have_the_same_rewards() -> None:
    """As the job has them, on what TRL hands to a reward."""
    lengths: list[float] = []
    score = scoring("conciseness", lengths)
    told = [[{"role": "user", "content": "1+1="}]] * 2
    said = [[{"role": "assistant", "content": text}] for text in ("a", "b")]
    batch = {"prompts": told, "completions": said, "answer": ["2"] * 2}
    found = score(completion_ids=[[1] * 16, [1] * MAX_TOKENS], **batch)
    assert found == [1 - 16 / MAX_TOKENS, 0]
    assert lengths == [16, MAX_TOKENS]
    assert [objective.reward.name for objective in spec_of("some/model").objectives] == [
        "math",
        "conciseness",
        "clarity",
    ]
