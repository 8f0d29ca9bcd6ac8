"""How well a split's prompts tell a mean."""

import math
from statistics import fmean, pstdev, stdev

import numpy as np
import pytest

from orchestrator.evaluation import Evaluation
from policies.places import read_scales
from policies.statistics import standard_error


def test_the_standard_error_by_hand() -> None:
    """Prompts' means 1, .5 and 0; one completion is not scored, nor is any of the fourth prompt."""
    scores = [[1.0, 1.0], [1.0, 0.0], [0.0, None], [None, None]]
    assert standard_error(scores) == pytest.approx(0.5 / math.sqrt(3))


@pytest.mark.parametrize("scores", [[[0.5]], [[0.5, 0.7]], [[0.5, 0.7], [None, None]]])
def test_nobody_knows_it_of_one_prompt(scores: list[list[float | None]]) -> None:
    assert standard_error(scores) is None


def test_errors_of_places() -> None:
    """Of a target at an end a place is the range, of one inside it less; after the gates they are their own."""
    errors: dict[str, float | None] = {"a": 0.1, "b": 3.0, "c": None, "d": 0.1}
    found = Evaluation(
        objectives=dict.fromkeys(errors, 0.5),
        standard_errors=errors,
        counted_errors={**errors, "a": 0.3},
        mean_tokens=1.0,
        truncated_share=0.0,
        described={},
    )
    scales = read_scales(
        {"a": (0.0, 1.0), "b": (-10.0, 20.0), "c": (0.0, 1.0), "d": (0.0, 1.0)},
        {"b": {"better": "smaller"}, "d": {"better": "nearer", "target": 0.4}},
    )
    assert found.place_errors(scales, is_gated=False) == pytest.approx({"a": 0.1, "b": 0.1, "d": 0.1 / 0.6})
    assert found.place_errors(scales, is_gated=True) == pytest.approx({"a": 0.3, "b": 0.1, "d": 0.1 / 0.6})


@pytest.mark.parametrize("repeats", [1, 4, 16])
def test_it_is_what_other_prompts_would_have_given(repeats: int) -> None:
    """Many splits of 100 prompts, some harder than others: their means differ as much as each of them says."""
    rng = np.random.default_rng(0)
    means, told = [], []
    for _ in range(400):
        chances_P = rng.random(100)
        scores_PG = (rng.random((100, repeats)) < chances_P[:, None]).astype(float)
        means.append(float(scores_PG.mean()))
        told.append(standard_error(scores_PG.tolist()))
    assert fmean(error for error in told if error is not None) == pytest.approx(pstdev(means), rel=0.1)
    assert stdev(error for error in told if error is not None) < 0.1 * pstdev(means)
