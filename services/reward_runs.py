"""Scores the rows of a file under one reward, here, into another file: `equipoise rewards run`.

Rows go through in order. What is done lies in a hidden file beside the output, whose name follows from the input's
content and the reward, so that the same command goes on where it was stopped, and another one never does. The output
is put in place whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from policies.disk import sha256_of
from rewards import registry
from rewards.base import Reward, RewardBatch, answer_of, answer_text
from rewards.dry_run import score
from rewards.hosting import is_infrastructure

MAX_PROBLEMS = 20
_BYTES_PER_TOKEN = 4  # of ordinary text, where a row does not say
_MAX_LINE_BYTES = 1 << 24


class RunError(ValueError):
    """Rows that can't be read or scored: one line for each, with the row's number from 1."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class _Message(BaseModel):
    model_config = ConfigDict(strict=True)

    role: str
    content: str


class _Row(BaseModel):
    """What a reward reads; other columns stay as they are."""

    model_config = ConfigDict(strict=True)

    prompt: str | Annotated[list[_Message], Field(min_length=1)]
    completion: str
    answer: str | None = None
    domain: str | None = None
    details: dict[str, Any] = Field(default_factory=dict)
    completion_tokens: int | None = Field(None, ge=0)
    truncated: bool = False

    @field_validator("answer", mode="before")
    @classmethod
    def _answer_as_text(cls, value: object) -> str | None:
        answer = None if isinstance(value, bool) else answer_text(value)
        if value is not None and answer is None:
            found = str(value) if isinstance(value, float) else type(value).__name__
            raise ValueError(f"expected text or a number, got {found}")
        return answer

    @property
    def messages(self) -> list[dict[str, str]]:
        if isinstance(self.prompt, str):
            return [{"role": "user", "content": self.prompt}]
        return [message.model_dump() for message in self.prompt]

    @property
    def text(self) -> str:
        if isinstance(self.prompt, str):
            return self.prompt
        users = [message.content for message in self.prompt if message.role == "user"]
        return users[-1] if users else self.prompt[-1].content

    @property
    def tokens(self) -> int:
        estimate = math.ceil(len(self.completion.encode("utf-8", "replace")) / _BYTES_PER_TOKEN)
        return estimate if self.completion_tokens is None else self.completion_tokens


@dataclass(frozen=True, kw_only=True)
class Run:
    """A file and the reward that its rows are scored under."""

    name: str
    options: Mapping[str, Any]
    source: Path
    target: Path
    max_tokens: int = 1024
    batch: int = 64
    thoughts_end: str | None = None
    """Rewards see what follows its first occurrence, as under a job's rollout.reasoning."""
    keep_going: bool = False
    """A row that can't be scored gets null and is named at the end; otherwise it ends the run."""

    def check(self) -> int:
        """The rows of the input, all of which can be read. Raises RunError for those that can't, ValueError else."""
        registry.parse_options(self.name, self.options)
        problems: list[str] = []
        count = 0
        with self.source.open("rb") as source:
            for number, line in _lines(source):
                count += 1
                try:
                    _parsed(number, line)
                except RunError as error:
                    problems += error.problems
                    if len(problems) >= MAX_PROBLEMS:
                        raise RunError(*problems, "and maybe more") from None
        if problems:
            raise RunError(*problems)
        if not count:
            raise RunError("the input is empty; expected rows with prompt and completion")
        return count

    @property
    def unfinished(self) -> Path:
        """Where the rows that are done are kept meanwhile."""
        thoughts = [] if self.thoughts_end is None else [self.thoughts_end]
        asked = [sha256_of(self.source), self.name, dict(self.options), self.max_tokens, *thoughts]
        facts = json.dumps(asked, sort_keys=True)
        return self.target.with_name(f".{self.target.name}.{hashlib.sha256(facts.encode()).hexdigest()[:16]}.part")

    def run(self, on_progress: Callable[[int], None]) -> list[str]:
        """Writes the output; `on_progress` hears how many rows are done. Returns what was wrong with single rows."""
        part = self.unfinished
        reward: Reward | None = None
        with self.source.open("rb") as source, part.open("ab") as file:
            _only_one(file)
            done, problems = _whole_lines(part)
            on_progress(done)
            rows = islice(_lines(source), done, None)
            while chunk := list(islice(rows, self.batch)):
                reward = reward or registry.build(self.name, self.options)
                found, wrong = self._scored(reward, [_parsed(number, line) for number, line in chunk])
                problems += wrong.values()
                if wrong and not self.keep_going:
                    raise RunError(*wrong.values())
                for (number, line), scores in zip(chunk, found, strict=True):
                    error = {"rewards_error": wrong[number]} if number in wrong else {}
                    file.write(_line({**json.loads(line), "rewards": scores, **error}))
                file.flush()
                done += len(chunk)
                on_progress(done)
        part.replace(self.target)
        return problems

    def _scored(
        self, reward: Reward, rows: Sequence[tuple[int, _Row]]
    ) -> tuple[list[dict[str, float | None]], dict[int, str]]:
        """(scores of every row, null where it can't be scored; why, by row). Such rows are found by halving.

        Raises RunError where no row is to blame, such as a judge that does not answer, as soon as one row meets that
        alone: fewer rows may fit into its time or its memory.
        """
        batch = _batch([row for _, row in rows], self.max_tokens, self.thoughts_end)
        try:
            scores, heads = score(self.name, self.options, reward, batch)
        except Exception as error:  # whatever a reward raises: the row must be named
            if len(rows) == 1:
                number, why = rows[0][0], f"{type(error).__name__}: {error}"
                if is_infrastructure(error):
                    raise RunError(
                        f"{self.name}: {why[:400]}; no row is to blame, and the same command goes on"
                    ) from None
                return [{self.name: None}], {number: f"row {number}: {self.name}: {why}"[:500]}
            middle = len(rows) // 2
            first, second = self._scored(reward, rows[:middle]), self._scored(reward, rows[middle:])
            return first[0] + second[0], first[1] | second[1]
        columns = {self.name: scores, **{f"{self.name}.{head}": column for head, column in heads.items()}}
        return [{name: column[i] for name, column in columns.items()} for i in range(len(rows))], {}


def _batch(rows: Sequence[_Row], max_tokens: int, thoughts_end: str | None) -> RewardBatch:
    return RewardBatch(
        prompts=tuple(row.text for row in rows),
        completions=tuple(answer_of(row.completion, thoughts_end) for row in rows),
        answers=tuple(row.answer for row in rows),
        completion_tokens=tuple(row.tokens for row in rows),
        truncated=tuple(row.truncated for row in rows),
        max_tokens=max_tokens,
        messages=tuple(row.messages for row in rows),
        domains=tuple(row.domain for row in rows),
        details=tuple(row.details for row in rows),
    )


def _lines(source: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Numbered from 1; empty ones are passed over."""
    for number, line in enumerate(iter(lambda: source.readline(_MAX_LINE_BYTES + 1), b""), start=1):
        if line.strip():
            yield number, line


def _parsed(number: int, line: bytes) -> tuple[int, _Row]:
    if len(line) > _MAX_LINE_BYTES:
        raise RunError(f"row {number}: longer than {_MAX_LINE_BYTES >> 20} MiB")
    try:
        document = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise RunError(f"row {number}: not valid JSON") from None
    if not isinstance(document, dict):
        raise RunError(f"row {number}: expected an object, got {type(document).__name__}")
    try:
        return number, _Row.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise RunError(f"row {number}: {first['loc'][0]}: {first['msg'].removeprefix('Value error, ')}") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _whole_lines(part: Path) -> tuple[int, list[str]]:
    """How many rows are done, and which of them could not be scored; half a line, which a kill leaves, is cut off."""
    done, end, problems = 0, 0, []
    with part.open("rb+") as file:
        for line in file:
            if not line.endswith(b"\n"):
                file.truncate(end)
                break
            done, end = done + 1, end + len(line)
            if problem := json.loads(line).get("rewards_error"):
                problems.append(problem)
    return done, problems


def _line(row: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a character, which JSON can escape
        return json.dumps(row).encode() + b"\n"


def _only_one(file: BinaryIO) -> None:
    """Raises RunError where another process writes the same; its lock ends with it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError("another process is scoring this file into the same output") from None
