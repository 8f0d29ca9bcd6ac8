"""What a reward is: a batch of completions in, one finite number per completion out.

None in the place of a number says that the objective does not apply to that row, which is then left out of this
objective's statistics. It is the reward's own statement, never how a failure looks.

    RewardError              names the objective; catch this one
    ├── RewardLengthError    not one score per completion
    │   └── RewardTypeError  no list at all, whatever the rows
    ├── RewardValueError     a score that is no finite number; names the row
    ├── RewardFailedError    its process died, ran out of memory or lost its connection, more often than is allowed
    ├── RewardDeadlineError  no answer in time, more often than is allowed
    └── RewardDataError      more rows could not be scored than are allowed; names them

A reward that cannot score ends in one of these, never in a neutral number: the update would then follow a
preference that nobody stated. Single rows that cannot be scored are left out under every objective (rewards/pool.py).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from numbers import Real
from typing import Any, ClassVar, Protocol, Self

from pydantic import BaseModel, ConfigDict, JsonValue

Message = Mapping[str, str]
"""Of a chat: `role` and `content`."""

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


class RewardTypeError(RewardLengthError):
    """Something else than a list of scores: the code is wrong, and no row is."""


class RewardValueError(RewardError):
    """A score that is not a finite number. `row` is the first such index in the batch."""

    def __init__(self, reward: str, problem: str, row: int) -> None:
        super().__init__(reward, problem)
        self.args = (reward, problem, row)
        self.row = row


class RewardFailedError(RewardError):
    """What the reward runs on failed: its process, its memory or its connection."""


class RewardDeadlineError(RewardError):
    """The reward gave no answer before the deadline."""


class RewardDataError(RewardError):
    """The reward could not score `rows`, indices in the step's batch, and these are too many to leave out."""

    def __init__(self, reward: str, problem: str, rows: tuple[int, ...]) -> None:
        super().__init__(reward, problem)
        self.args = (reward, problem, rows)
        self.rows = rows


class RewardUnavailableError(Exception):
    """For a reward to raise where what it relies on does not answer, such as a judge's endpoint.

    The call is then tried again, and no row is blamed. ConnectionError, TimeoutError and MemoryError say the same.
    """


class RewardRowError(ValueError):
    """For a reward to raise on a row of the data that it can't score, as something in it is missing.

    `problem` is told to people, so it quotes no row; `detail`, which follows it, may.
    """

    def __init__(self, row: int, problem: str, detail: str = "") -> None:
        super().__init__(f"row {row} {problem}{detail}")
        self.problem = problem


class RewardRefusedError(Exception):
    """For a reward to raise on rows that it can't score, for a reason that people are told: its text quotes no row."""


@dataclass(frozen=True, kw_only=True)
class RewardBatch:
    """B completions to score, as they cross to the process that scores them.

    Rows are independent: a reward gives a completion the same score in any order and any company.
    """

    prompts: tuple[str, ...]
    """Text of the prompt."""
    completions: tuple[str, ...]
    """What the policy wrote, without the prompt, and without its thoughts where the job says how they end."""
    answers: tuple[str | None, ...]
    """Ground truth, where the data has one."""
    completion_tokens: tuple[int, ...]
    """Length of the completion, in tokens of the policy."""
    truncated: tuple[bool, ...]
    """True where the completion was cut at max_tokens."""
    max_tokens: int
    """Longest completion that was allowed, in tokens."""
    messages: tuple[Sequence[Message], ...] = ()
    """The prompt as a chat, without the completion; one user message of `prompts` where it is absent."""
    domains: tuple[str | None, ...] = ()
    """What kind of prompt it is, where the data says so."""
    details: tuple[Mapping[str, JsonValue], ...] = ()
    """Further columns of the prompt's row, such as the constraints of an instruction."""

    def __post_init__(self) -> None:
        size = len(self.completions)
        chats = tuple([{"role": "user", "content": prompt}] for prompt in self.prompts)
        defaults: dict[str, tuple[Any, ...]] = {"messages": chats, "domains": (None,) * size, "details": ({},) * size}
        for column, values in defaults.items():
            if not getattr(self, column):
                object.__setattr__(self, column, values)
        lengths = {column: len(getattr(self, column)) for column in self._columns()}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{column} {length}" for column, length in lengths.items())
            raise ValueError(f"the columns of a reward batch differ in length: {found}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")

    def __len__(self) -> int:
        return len(self.completions)

    def is_unanswered(self, row: int) -> bool:
        """Whether the completion was cut before an answer began, as thoughts that do not end are."""
        return self.truncated[row] and not self.completions[row].strip()

    def rows(self, index: Iterable[int]) -> Self:
        """These rows alone, in this order."""
        chosen = list(index)
        columns: dict[str, Any] = {name: tuple(getattr(self, name)[row] for row in chosen) for name in self._columns()}
        return replace(self, **columns)

    @classmethod
    def joined(cls, batches: Sequence[Self]) -> Self:
        """The rows of all of them, one after another; there is at least one, and all have the same max_tokens."""
        if len(batches) == 1:
            return batches[0]
        columns: dict[str, Any] = {
            name: tuple(value for batch in batches for value in getattr(batch, name)) for name in cls._columns()
        }
        return replace(batches[0], **columns)

    @classmethod
    def _columns(cls) -> list[str]:
        return [column.name for column in fields(cls) if column.name != "max_tokens"]


def answer_of(text: str, thoughts_end: str | None) -> str:
    """What rewards see of a completion: what follows its thoughts, without the space before it.

    Nothing where the thoughts do not end: an answer in their midst was not given, and rewards for it would teach a
    policy not to end them.
    """
    return text if thoughts_end is None else text.partition(thoughts_end)[2].lstrip()


Scores = Sequence[float | None]
"""One for each completion; None where the objective does not apply."""


class RewardOptions(BaseModel):
    """Base for the options of a reward: immutable, nothing unknown, nothing coerced, every number finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Reward(Protocol):
    """One way to score completions. The first line of the class's docstring is what users read in a list.

    It is built in the process that scores, so a learned model loads its weights in `__init__`. What the first call
    would wait for may be done in a method `warm_up()`, which is called once before it. A class attribute
    `rowwise = True` says that a row's score depends on that row alone, to the last bit: what waits may be scored in one
    call then. A static method `takes_truth(answer)`, beside `wanted_truth` in words, lets a dry run tell ground truths
    that no completion could meet.
    """

    name: ClassVar[str]
    """What a spec calls it."""
    Options: ClassVar[type[BaseModel]]
    """Every field has a default or is required, is described with its unit, and is bounded.

    A property, or `needs_answer: ClassVar[bool] = True`, says that there is no score without a ground truth.
    """
    range: ClassVar[tuple[float, float]]
    """(lo, hi) of the scores, infinite where there is no bound.

    An objective that names no range has this one where it is finite. A classmethod `range_of(options)` may know better
    what a dry run should compare an objective's range with.
    """

    def __init__(self, options: Any) -> None:
        """`options` is an instance of the class's own `Options`."""
        ...

    def score(self, batch: RewardBatch) -> Scores:
        """One finite number per completion, in the batch's order, or None where it does not apply.

        A list or tuple: an array or a coroutine ends the round, since it is no row's fault. An exception, or something
        else than a number, leaves the row that it comes with out of the step, under every objective. For what is no
        row's fault there is RewardUnavailableError.
        """
        ...


class HeadedReward(Reward, Protocol):
    """Several named scores from one pass over a batch, such as a regression model's heads.

    Objectives that name the same reward with the same options, the head apart, share one of these. `score` gives the
    column that the options' own `head` picks.
    """

    head_option: ClassVar[str]
    """The field of Options that picks the column."""

    def score_heads(self, batch: RewardBatch) -> Mapping[str, Scores]:
        """Every head's scores, by name."""
        ...


def check_scores(objective: str, scores: object, size: int) -> list[float | None]:
    """Returns `scores` as `size` floats, each finite in float32, which is what the learner computes in, or None.

    Takes a list or tuple of real numbers, Python's or numpy's. A bool is refused, since it is more often a
    comparison returned by mistake than a score.

    Raises RewardLengthError or RewardValueError, which name the objective, the first bad row and what was
    expected.
    """
    values, bad = read_scores(objective, scores, size)
    for row, found in bad.items():
        raise RewardValueError(objective, f"expected a finite number for row {row}, got {found}", row)
    return values


def read_scores(objective: str, scores: object, size: int) -> tuple[list[float | None], dict[int, str]]:
    """(values, what was found in the place of a number, by row). Raises RewardLengthError alone.

    A row with something else than a number has None among the values.
    """
    values: list[float | None] = []
    bad: dict[int, str] = {}
    for row, score in enumerate(check_list(objective, scores, size)):
        value = None if score is None else _number(score)
        if isinstance(value, str):
            bad[row] = value
        values.append(None if isinstance(value, str) else value)
    return values, bad


def check_list(objective: str, scores: object, size: int) -> Sequence[object]:
    """`scores` as they are. RewardTypeError for anything but a list or tuple, RewardLengthError for another length."""
    if not isinstance(scores, list | tuple):
        hint = ""
        if inspect.iscoroutine(scores):
            scores.close()  # nobody awaits it, which Python would warn of
            hint = ": score() must be a plain method, without async"
        elif hasattr(scores, "tolist"):
            hint = ": return its .tolist()"
        raise RewardTypeError(objective, f"expected a list of {size} numbers, got {type(scores).__name__}{hint}")
    if len(scores) != size:
        raise RewardLengthError(objective, f"expected {size} scores, one per completion, got {len(scores)}")
    return scores


class WrittenFloat(float):
    """A number of a JSON text that knows how it is written. It is a plain one wherever it is copied to."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> tuple[type[float], tuple[float]]:
        return float, (float(self),)


def answer_text(value: object) -> str | None:
    """A ground truth as rewards read it; None for what is neither text nor a finite number.

    A number has all its digits: few verifiers know 1e-05, which is how Python writes .00001. Those of a JSON text that
    has no exponent are kept as they are. A truth value is True or False, as it always was.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, int | float | Decimal) or not math.isfinite(value):
        return None
    if isinstance(value, WrittenFloat) and "e" not in value.text.lower():
        return value.text
    return str(value) if isinstance(value, int) else format(Decimal(str(value)), "f")


def _number(score: object) -> float | str:
    """As a float, or in words where it is no finite number."""
    if isinstance(score, bool) or not isinstance(score, Real):
        return f"a {type(score).__name__}"
    value = _as_float(score)
    return value if abs(value) <= _FLOAT32_MAX else str(value)  # NaN fails the comparison too


def _as_float(score: Real) -> float:
    try:
        return float(score)
    except OverflowError:  # an int or a fraction beyond float64
        return math.inf
