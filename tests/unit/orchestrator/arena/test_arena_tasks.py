"""What the second task is for: five objectives on other scales, one sparse, one soon saturated, one noisy.

Over completions as the task's generator makes them, in the styles and shares of a policy that begins, and of one that
has learned to work in lines.
"""

import random
from collections.abc import Mapping
from itertools import islice

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.arena.tasks import TASKS
from policies.quickstart import Problem, Recipe, _make_tokenizer, _render, sample_problems
from rewards import registry
from rewards.base import RewardBatch

SUMS5 = TASKS["sums5"]
NAMES = [objective["name"] for objective in SUMS5.objectives]
RANGES = np.array([objective["range"] for objective in SUMS5.objectives], dtype=float)
BEGINNING = {"short": 0.55, "compact": 0.25, "verbose": 0.2}
RIGHT = {"short": 0.1, "compact": 0.7, "verbose": 0.7}
Table = NDArray[np.float64]


def completion(problem: Problem, style: str, rng: random.Random) -> str:
    """Right as often as a policy that begins is in this style; a wrong one has another last digit."""
    text = _render(problem, style, Recipe(), rng)
    if rng.random() < RIGHT[style]:
        return text
    return f"{text[:-2]}{(int(text[-2]) + 1) % 10}}}"


def scores(shares: Mapping[str, float], count: int = 600, **changed: object) -> Table:
    """Raw scores_NK of completions in styles of these shares; `changed`: options of the words' reward."""
    rng = random.Random(0)
    problems = list(islice(sample_problems(rng, held_out=False), count))
    styles = rng.choices(list(shares), list(shares.values()), k=count)
    completions = [completion(problem, style, rng) for problem, style in zip(problems, styles, strict=True)]
    tokenizer = _make_tokenizer()
    tokens = tuple(len(tokenizer.encode(text)) + 1 for text in completions)  # with the end's own
    batch = RewardBatch(
        prompts=tuple(problem.prompt for problem in problems),
        completions=tuple(completions),
        answers=tuple(problem.answer for problem in problems),
        completion_tokens=tokens,
        truncated=tuple(length >= 64 for length in tokens),
        max_tokens=64,
    )
    columns = []
    for objective in SUMS5.objectives:
        options = objective["reward"]["options"] | (changed if objective["name"] == "words" else {})
        columns.append(registry.build(objective["reward"]["name"], options).score(batch))
    return np.array(columns, dtype=float).T


def placed(scores_NK: Table) -> dict[str, float]:
    """Mean place in the declared range, by objective."""
    low_K, high_K = RANGES.T
    means_K = ((scores_NK - low_K) / (high_K - low_K)).clip(0, 1).mean(axis=0)
    return dict(zip(NAMES, means_K.tolist(), strict=True))


@pytest.fixture(scope="module")
def beginning() -> Table:
    return scores(BEGINNING)


def test_there_are_five_objectives_on_other_scales(beginning: Table) -> None:
    """Declared, and seen: the widest varies by more than ten times what the narrowest does."""
    widths_K = RANGES[:, 1] - RANGES[:, 0]
    assert len(NAMES) == 5
    assert widths_K.max() / widths_K.min() >= 64
    assert len(set(widths_K.tolist())) >= 4
    spreads_K = beginning.std(axis=0)
    assert spreads_K.max() / spreads_K.min() > 10
    assert ((beginning >= RANGES[:, 0] - 6) & (beginning <= RANGES[:, 1] + 6)).all()  # but for the noise, in the ranges


def test_one_objective_is_sparse(beginning: Table) -> None:
    """A few in a hundred get it at first, and only by working out short sums in lines: words never do."""
    brief = NAMES.index("brief")
    rewarded = (beginning != 0).mean(axis=0)
    assert 0.01 < rewarded[brief] < 0.12
    assert rewarded[brief] < 0.4 * (beginning[:, NAMES.index("accuracy")] > 0).mean()
    assert (scores({"verbose": 1.0})[:, brief] == 0).all()
    assert set(np.unique(beginning[:, brief])) == {0.0, 1.0}


def test_one_objective_is_soon_saturated(beginning: Table) -> None:
    """Whoever works in lines has all of the clarity there is, while every other objective still has a way to go."""
    first, later = placed(beginning), placed(scores({"compact": 1.0}))
    assert first["clarity"] < 0.6
    assert later["clarity"] > 0.9
    assert all(later["clarity"] > value + 0.15 for name, value in later.items() if name != "clarity")


def test_one_objective_is_noisy_and_its_noise_is_of_mean_zero(beginning: Table) -> None:
    """Of what words vary by, noise makes a third or more; no other objective changes with it."""
    quiet = scores(BEGINNING, noise=0.0)
    words = NAMES.index("words")
    noise = beginning[:, words] - quiet[:, words]
    assert 0.33 < noise.var() / beginning[:, words].var() < 0.67
    assert abs(noise.mean()) < 4 * noise.std() / np.sqrt(len(noise))
    others = [k for k in range(5) if k != words]
    assert (beginning[:, others] == quiet[:, others]).all()


def test_words_cost_length() -> None:
    compact, verbose = placed(scores({"compact": 1.0})), placed(scores({"verbose": 1.0}))
    assert verbose["words"] > compact["words"] + 0.3
    assert verbose["length"] < compact["length"] - 0.15
