"""Prompts from files: read row by row, checked row by row, drawn in an order that the seed fixes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.spec import Columns

Rows = Generator[tuple[int, Mapping[str, Any]], None, None]  # the row's number, from 1, and its columns


class DatasetError(ValueError):
    """A dataset that can't be used; the message names the file, the row (from 1) and what was expected."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One row: what the policy reads, what a reward compares with."""

    content: str | list[dict[str, str]]  # text, or chat messages
    text: str  # what rewards and people see: the text, or the last user message
    answer: str | None
    row: int  # from 1
    tokens: tuple[int, ...] = ()


def load_prompts(path: Path, columns: Columns, *, limit: int | None = None) -> list[Prompt]:
    """Every row of a JSONL or Parquet file. Raises DatasetError."""
    readers: dict[str, Callable[[Path], Rows]] = {
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
    }
    if path.suffix not in readers:
        raise DatasetError(f"{path}: expected a .jsonl or .parquet file")
    try:
        if not path.is_file():
            raise DatasetError(f"{path}: no such file")
        with contextlib.closing(readers[path.suffix](path)) as rows:
            prompts = [_prompt(path, row, record, columns) for row, record in islice(rows, limit)]
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}") from None
    if not prompts:
        raise DatasetError(f"{path}: is empty; expected at least one row with '{columns.prompt}'")
    return prompts


def encode(prompts: Iterable[Prompt], path: str, encoder: Callable[[Any], list[int]], *, longest: int) -> list[Prompt]:
    """Prompts with their tokens. Raises DatasetError for one of more than `longest` tokens: it leaves no room."""
    encoded = []
    for prompt in prompts:
        tokens = tuple(encoder(prompt.content))
        if len(tokens) > longest:
            raise DatasetError(
                f"{path}: row {prompt.row}: the prompt has {len(tokens)} tokens, but the context leaves room for "
                f"{longest} beside rollout.max_tokens; shorten it, lower that or raise policy.max_model_len"
            )
        encoded.append(
            Prompt(content=prompt.content, text=prompt.text, answer=prompt.answer, row=prompt.row, tokens=tokens)
        )
    return encoded


class PromptOrder:
    """Which prompts a step gets: every epoch a fresh permutation; the position alone is the state."""

    def __init__(self, size: int, *, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.position = 0

    def take(self, count: int) -> list[int]:
        """The next `count` indices, over the end of an epoch into the next."""
        taken = []
        for position in range(self.position, self.position + count):
            epoch, place = divmod(position, self.size)
            taken.append(int(self._permutation(epoch)[place]))
        self.position += count
        return taken

    def _permutation(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
        return self._order


def _read_jsonl(path: Path) -> Rows:
    with path.open("rb") as file:
        for row, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8"))
                if b"\\ud" in line.lower():  # an escape may be half a character, which no tokenizer takes
                    json.dumps(record, ensure_ascii=False).encode()
            except (ValueError, RecursionError) as error:  # ValueError: also a number too long to read
                reason = "not UTF-8" if isinstance(error, UnicodeError) else getattr(error, "msg", str(error))
                raise DatasetError(f"{path}: row {row}: not valid JSON ({reason})") from None
            if not isinstance(record, dict):
                raise DatasetError(f"{path}: row {row}: expected an object, got {type(record).__name__}")
            yield row, record


def _read_parquet(path: Path) -> Rows:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    row = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for record in batch.to_pylist():
                row += 1
                yield row, record
    except (arrow.ArrowException, OSError, UnicodeDecodeError):
        raise DatasetError(f"{path}: not a Parquet file, or a damaged one (after row {row})") from None


def _prompt(path: Path, row: int, record: Mapping[str, Any], columns: Columns) -> Prompt:
    content = _value(path, row, record, columns.prompt)
    answer = None if columns.answer is None else _value(path, row, record, columns.answer)
    if columns.answer is not None and not isinstance(answer, str | int | float):
        raise DatasetError(f"{path}: row {row}: '{columns.answer}': expected text or a number, got {_kind(answer)}")
    return Prompt(
        content=_checked(path, row, columns.prompt, content),
        text=content if isinstance(content, str) else _last_user(content),
        answer=None if answer is None else str(answer),
        row=row,
    )


def _value(path: Path, row: int, record: Mapping[str, Any], column: str) -> Any:
    value: Any = record
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            found = ", ".join(map(str, value)) if isinstance(value, Mapping) else _kind(value)
            raise DatasetError(f"{path}: row {row}: no '{column}'; found {found}")
        value = value[part]
    return value


def _checked(path: Path, row: int, column: str, content: Any) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        if not content.strip():
            raise DatasetError(f"{path}: row {row}: '{column}' is empty")
        return content
    if isinstance(content, Sequence) and content and all(_is_message(message) for message in content):
        return [{"role": message["role"], "content": message["content"]} for message in content]
    raise DatasetError(
        f"{path}: row {row}: '{column}': expected text, or chat messages with role and content, got {_kind(content)}"
    )


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _last_user(messages: Sequence[Mapping[str, str]]) -> str:
    users = [message["content"] for message in messages if message["role"] == "user"]
    return users[-1] if users else messages[-1]["content"]


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
