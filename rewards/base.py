"""What a reward is: a batch of completions in, one finite number per completion out.

    RewardError              names the objective; catch this one
    ├── RewardLengthError    not one score per completion
    ├── RewardValueError     a score that is no finite number; names the row
    ├── RewardFailedError    the reward raised, or its process died; the cause is chained
    └── RewardDeadlineError  no answer in time

A reward that cannot score ends in one of these, never in a neutral number: the update would then follow a
preference that nobody stated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

_FLOAT32_MAX = 3.4028234663852886e38


class RewardError(RuntimeError):
    """An objective could not be scored, so the batch has no scores at all."""

    def __init__(self, reward: str, problem: str) -> None:
        super().__init__(reward, problem)  # both, so that it survives pickling between processes
        self.reward = reward
        """Name of the objective, as in the job's spec."""
        self.problem = problem

    def __str__(self) -> str:
        return f"objective {self.reward!r}: {self.problem}"


class RewardLengthError(RewardError):
    """Not one score per completion."""


class RewardValueError(RewardError):
    """A score that is not a finite number. `row` is the first such index in the batch."""

    def __init__(self, reward: str, problem: str, row: int) -> None:
        super().__init__(reward, problem)
        self.args = (reward, problem, row)
        self.row = row


class RewardFailedError(RewardError):
    """The reward raised an exception, or the process that holds it died."""


class RewardDeadlineError(RewardError):
    """The reward gave no answer before the deadline."""


@dataclass(frozen=True, kw_only=True)
class RewardBatch:
    """B completions to score, as they cross to the process that scores them.

    Rows are independent: a reward gives a completion the same score in any order and any company.
    """

    prompts: tuple[str, ...]
    """Text of the prompt."""
    completions: tuple[str, ...]
    """What the policy wrote, without the prompt."""
    answers: tuple[str | None, ...]
    """Ground truth, where the data has one."""
    completion_tokens: tuple[int, ...]
    """Length of the completion, in tokens of the policy."""
    truncated: tuple[bool, ...]
    """True where the completion was cut at max_tokens."""
    max_tokens: int
    """Longest completion that was allowed, in tokens."""

    def __post_init__(self) -> None:
        lengths = {
            "prompts": len(self.prompts),
            "completions": len(self.completions),
            "answers": len(self.answers),
            "completion_tokens": len(self.completion_tokens),
            "truncated": len(self.truncated),
        }
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{column} {length}" for column, length in lengths.items())
            raise ValueError(f"the columns of a reward batch differ in length: {found}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")

    def __len__(self) -> int:
        return len(self.completions)


class RewardOptions(BaseModel):
    """Base for the options of a reward: immutable, nothing unknown, nothing coerced, every number finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Reward(Protocol):
    """One way to score completions. The first line of the class's docstring is what users read in a list.

    It is built in the process that scores, so a learned model loads its weights in `__init__`.
    """

    name: ClassVar[str]
    """What a spec calls it."""
    Options: ClassVar[type[BaseModel]]
    """Every field has a default or is required, is described with its unit, and is bounded."""
    range: ClassVar[tuple[float, float]]
    """(lo, hi) of the scores, used to normalise the front; infinite where there is no bound."""

    def __init__(self, options: Any) -> None:
        """`options` is an instance of the class's own `Options`."""
        ...

    def score(self, batch: RewardBatch) -> list[float]:
        """One finite number per completion, in the batch's order. Any exception stops the step."""
        ...


def check_scores(objective: str, scores: object, size: int) -> list[float]:
    """Returns `scores` as `size` floats, each finite in float32, which is what the learner computes in.

    Takes a list or tuple of real numbers, Python's or numpy's. A bool is refused, since it is more often a
    comparison returned by mistake than a score.

    Raises RewardLengthError or RewardValueError, which name the objective, the first bad row and what was
    expected.
    """
    if not isinstance(scores, list | tuple):
        expected = f"expected a list of {size} numbers"
        raise RewardLengthError(objective, f"{expected}, got {type(scores).__name__}")
    if len(scores) != size:
        raise RewardLengthError(objective, f"expected {size} scores, one per completion, got {len(scores)}")
    return [_finite(objective, row, score) for row, score in enumerate(scores)]


def _finite(objective: str, row: int, score: object) -> float:
    if isinstance(score, bool) or not isinstance(score, Real):
        found = f"a {type(score).__name__}"
    else:
        value = _as_float(score)
        if abs(value) <= _FLOAT32_MAX:  # false for NaN too
            return value
        found = str(value)
    raise RewardValueError(objective, f"expected a finite number for row {row}, got {found}", row)


def _as_float(score: Real) -> float:
    try:
        return float(score)
    except OverflowError:  # an int or a fraction beyond float64
        return math.inf
