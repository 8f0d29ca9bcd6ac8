"""Prompts from files: read row by row, checked row by row, drawn in an order that the seed fixes."""

from __future__ import annotations

import contextlib
import csv
import json
import re
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.specs.data import DOMAIN, Columns, detail_name
from policies.models import ModelError
from rewards.base import WrittenFloat, answer_text

MAX_CHARACTERS = 500_000_000  # of the texts of a file that strangers give: a job holds them all

MAX_DOMAINS = 1000  # of a file
BOX = "boxed"  # how prompts ask for what rewards look for
_MAX_ROW_BYTES = 1 << 24  # of a line of JSONL or a field of CSV: longer than any prompt, short enough to hold
_WRITTEN_CHAT = re.compile(r"""\s*\[\s*\{\s*(["'])(?:role|content)\1\s*:\s*["']""")  # as JSON, or as Python prints it
_PARQUET_ROWS = 64  # at once, fewer where they are large: a dictionary or a long run makes much of few bytes
_PARQUET_BYTES = 16 << 20


class DatasetError(ValueError):
    """A dataset that can't be used; the message names the file, the row (from 1) and what was expected."""


NO_ANSWERS = (
    "name the column of the answers, or none where no reward compares with them: data.columns.answer: null "
    "(of an upload, an empty answer)"
)

# The row's number, from 1, and its columns, or why it has none; a file that can't be read on raises.
Rows = Generator[tuple[int, Mapping[str, Any] | DatasetError], None, None]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One row: what the policy reads, what a reward compares with."""

    content: str | list[dict[str, str]]  # text, or chat messages
    text: str  # what rewards and people see: the text, or the last user message
    answer: str | None
    row: int  # from 1
    tokens: Sequence[int] = ()  # an array of a split: as a tuple, millions of prompts would be ten gigabytes
    domain: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)  # further columns that the row has, as JSON

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.content}] if isinstance(self.content, str) else self.content

    @property
    def characters(self) -> int:
        prompt = sum(len(message["content"]) for message in self.messages)
        return prompt + len(self.answer or "") + (len(json.dumps(self.details)) if self.details else 0)


def load_prompts(path: Path, columns: Columns, *, limit: int | None = None) -> list[Prompt]:
    """Every row of a JSONL, CSV or Parquet file. Raises DatasetError."""
    return list(each_prompt(path, columns, limit=limit))


@dataclass(kw_only=True)
class Contents:
    """Which domains (None: rows without one) and which further columns the rows of a file have."""

    domains: set[str | None] = field(default_factory=set)
    details: set[str] = field(default_factory=set)
    unanswered: dict[str | None, tuple[int, int]] = field(default_factory=dict)
    """The first row whose answer is blank, and how many are, of each domain that has one."""
    unmeetable: dict[str, dict[str | None, tuple[int, int]]] = field(default_factory=dict)
    """Likewise, by reward: rows with an answer that no completion could meet."""
    rows: int = 0
    repeated: int = 0
    """Rows whose prompt is one of the training's, in another split."""
    validated: int = 0
    """Rows of the test split whose prompt is one of the validation's."""
    twice: int = 0
    """Rows whose prompt an earlier row of the split has."""
    boxed: int = 0
    """Rows whose prompt speaks of a box for the answer."""

    @classmethod
    def of(cls, prompts: Iterable[Prompt]) -> Contents:
        contents = cls()
        for prompt in prompts:
            contents.add(prompt)
        return contents

    def add(self, prompt: Prompt) -> None:
        """Raises DatasetError where these are no domains any more."""
        self.rows += 1
        self.domains.add(prompt.domain)
        if len(self.domains) > MAX_DOMAINS:
            raise DatasetError(f"row {prompt.row}: more than {MAX_DOMAINS} domains so far; is this another column?")
        self.details |= prompt.details.keys()
        self.boxed += any(BOX in message["content"] for message in prompt.messages)
        if prompt.answer is not None and not prompt.answer.strip():
            _count(self.unanswered, prompt)

    def check_answer(self, prompt: Prompt, reward: str, takes: Callable[[str], bool]) -> None:
        """`takes` says whether this reward can compare with an answer; a blank one is counted already."""
        answer = (prompt.answer or "").strip()
        if answer and not takes(answer):
            _count(self.unmeetable.setdefault(reward, {}), prompt)


def _count(rows: dict[str | None, tuple[int, int]], prompt: Prompt) -> None:
    first, count = rows.get(prompt.domain, (prompt.row, 0))
    rows[prompt.domain] = first, count + 1


def each_prompt(
    path: Path, columns: Columns, *, limit: int | None = None, lenient: bool = False
) -> Generator[Prompt, None, None]:
    """The same one by one, none of them kept. With `lenient` also what new jobs may not have.

    That is a chat that ends with the assistant's turn, one with calls of tools, which are left out, or one that is
    written as a text.
    """
    is_empty = True
    with _rows(path) as rows:
        for row, record in islice(rows, limit):
            is_empty = False
            yield _prompt(path, row, record, columns, lenient=lenient)
    if is_empty:
        raise _empty(path, columns)


def in_bounds(prompts: Iterable[tuple[Path, Prompt]]) -> Iterator[tuple[Path, Prompt]]:
    """The same prompts with their files, with a DatasetError where they have above MAX_CHARACTERS."""
    characters = 0
    for path, prompt in prompts:
        characters += prompt.characters
        if characters > MAX_CHARACTERS:
            raise _too_much(path, prompt.row)
        yield path, prompt


def examine(path: Path, columns: Columns, *, most: int) -> tuple[int, list[str]]:
    """Rows, and what is wrong with the first `most` that are; it stops there, or above MAX_CHARACTERS.

    Raises DatasetError as `load_prompts`.
    """
    count, characters, contents = 0, 0, Contents()
    problems: list[str] = []
    with _rows(path) as rows:
        try:
            for row, record in rows:
                count += 1
                try:
                    prompt = _prompt(path, row, record, columns)
                    contents.add(prompt)
                    characters += prompt.characters
                    if characters > MAX_CHARACTERS:
                        return count, [*problems, str(_too_much(path, row))]
                except DatasetError as error:
                    problems.append(str(error))
                    if len(problems) == most:
                        return count, problems
        except DatasetError as error:  # what follows can't be read
            return count, [*problems, str(error)]
    if not count:
        raise _empty(path, columns)
    unseen = [column for column in columns.details if detail_name(column) not in contents.details]
    if columns.domain is not None and not contents.domains - {None}:
        unseen.append(columns.domain)
    return count, problems + [f"no row has '{column}'" for column in unseen if not problems]


def preview(path: Path, columns: Columns, *, after: int, limit: int) -> list[Prompt]:
    """Rows numbered above `after`, also those that new jobs may not have. Raises DatasetError as `load_prompts`."""
    with _rows(path) as rows:
        wanted = ((row, record) for row, record in rows if row > after)
        return [_prompt(path, row, record, columns, lenient=True) for row, record in islice(wanted, limit)]


@contextlib.contextmanager
def _rows(path: Path) -> Generator[Rows, None, None]:
    readers: dict[str, Callable[[Path], Rows]] = {
        ".jsonl": _read_jsonl,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    if path.suffix not in readers:
        raise DatasetError(f"{path}: expected a .jsonl, .csv or .parquet file")
    try:
        if not path.is_file():
            raise DatasetError(f"{path}: no such file")
        with contextlib.closing(readers[path.suffix](path)) as rows:
            yield rows
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}") from None


def _empty(path: Path, columns: Columns) -> DatasetError:
    return DatasetError(f"{path}: is empty; expected at least one row with '{columns.prompt}'")


def _too_much(path: Path, row: int) -> DatasetError:
    return DatasetError(f"{path}: row {row}: more than {MAX_CHARACTERS} characters of text so far; use fewer rows")


def encode(
    prompts: Iterable[Prompt], path: str, encoder: Callable[[Any], list[int]], *, longest: int, drop: bool = False
) -> tuple[list[Prompt], int]:
    """Prompts with their tokens, and how many of them were left out: with `drop`, those of more than `longest`.

    Without it, raises DatasetError for them: they leave no room. Also for one that the encoder refuses.
    """
    encoded: list[Prompt] = []
    overlong: list[tuple[int, int]] = []  # row, tokens
    for prompt in prompts:
        try:
            tokens = array("i", encoder(prompt.content))
        except ModelError as error:
            raise DatasetError(f"{path}: row {prompt.row}: {error}") from None
        if len(tokens) > longest:
            overlong.append((prompt.row, len(tokens)))
        else:
            encoded.append(replace(prompt, tokens=tokens))
    if overlong and not drop:
        row, count = overlong[0]
        more = f" ({len(overlong)} rows are too long)" if len(overlong) > 1 else ""
        raise DatasetError(f"{path}: row {row}: {too_long(count, longest)}{more}")
    return encoded, len(overlong)


def too_long(tokens: int, longest: int) -> str:
    """What is wrong with a prompt, and what to do."""
    return (
        f"the prompt has {tokens} tokens, but the context leaves room for {longest} beside rollout.max_tokens; shorten "
        "it, lower that, raise policy.max_model_len, or leave such prompts out with data.overlong: drop"
    )


class PromptOrder:
    """Which prompts a step gets: every epoch a fresh permutation; the position alone is the state."""

    def __init__(self, size: int, *, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.position = 0

    def take(self, count: int) -> list[int]:
        """The next `count` indices, over the end of an epoch into the next."""
        taken = [self.at(position) for position in range(self.position, self.position + count)]
        self.position += count
        return taken

    def at(self, position: int) -> int:
        epoch, place = divmod(position, self.size)
        return int(self._permutation(epoch)[place])

    def _permutation(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
        return self._order


def _read_jsonl(path: Path) -> Rows:
    with path.open("rb") as file:
        for row, line in enumerate(iter(lambda: file.readline(_MAX_ROW_BYTES + 1), b""), start=1):
            if len(line) > _MAX_ROW_BYTES:
                raise DatasetError(f"{path}: row {row}: longer than {_MAX_ROW_BYTES >> 20} MiB")
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig" if row == 1 else "utf-8"), parse_float=WrittenFloat)
                if b"\\ud" in line.lower():  # an escape may be half a character, which no tokenizer takes
                    json.dumps(record, ensure_ascii=False).encode()
            except (ValueError, RecursionError) as error:  # ValueError: also a number too long to read
                reason = "not UTF-8" if isinstance(error, UnicodeError) else getattr(error, "msg", str(error))
                yield row, DatasetError(f"{path}: row {row}: not valid JSON ({reason})")
                continue
            if not isinstance(record, dict):
                yield row, DatasetError(f"{path}: row {row}: expected an object, got {type(record).__name__}")
                continue
            yield row, record


def _read_csv(path: Path) -> Rows:
    """With a header, whose names are the columns; row 1 is the first below it."""
    csv.field_size_limit(_MAX_ROW_BYTES)
    row = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            header = next(lines, [])
            if len(set(header)) != len(header):
                raise DatasetError(f"{path}: the header names a column twice")
            for values in lines:
                if not values:
                    continue
                row += 1
                if len(values) == len(header):
                    yield row, dict(zip(header, values, strict=True))
                else:
                    reason = f"expected {len(header)} values, one for each name in the header, got {len(values)}"
                    yield row, DatasetError(f"{path}: row {row}: {reason}")
    except UnicodeDecodeError:
        raise DatasetError(f"{path}: not UTF-8 text (after row {row})") from None
    except csv.Error as error:
        raise DatasetError(f"{path}: row {row + 1}: not valid CSV ({error})") from None


def _read_parquet(path: Path) -> Rows:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    row = 0
    try:
        for batch in _parquet_parts(parquet.ParquetFile(path)):
            names = batch.schema.names
            if len(set(names)) != len(names):
                raise DatasetError(f"{path}: two of its columns have the same name")
            columns = {name: _parquet_values(column) for name, column in zip(names, batch.columns, strict=True)}
            for i in range(batch.num_rows):
                row += 1
                yield row, {name: values[i] for name, values in columns.items()}
    except (arrow.ArrowException, OSError, UnicodeDecodeError):
        raise DatasetError(f"{path}: not a Parquet file, or a damaged one (after row {row})") from None


def _parquet_parts(file: Any) -> Iterator[Any]:
    """Batches of so few rows that they are no matter as Python's objects."""
    for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
        size = sum(  # where a column is a dictionary, each of its rows may be all of it
            len(column) * column.dictionary.nbytes if hasattr(column, "dictionary") else column.nbytes
            for column in batch.columns
        )
        rows = max(1, batch.num_rows * _PARQUET_BYTES // max(size, 1))
        for start in range(0, batch.num_rows, rows):
            yield batch.slice(start, rows)


@dataclass(frozen=True)
class _Foreign:
    """A value of a Parquet type that Python has nothing for, such as a time in ns: wrong only where it is asked for."""

    type: str


def _parquet_values(column: Any) -> list[Any]:
    import pyarrow as arrow

    try:
        return list(column.to_pylist())
    except (arrow.ArrowException, UnicodeDecodeError):
        raise
    except (ValueError, OverflowError):
        return [_Foreign(str(column.type))] * len(column)


def _prompt(
    path: Path, row: int, record: Mapping[str, Any] | DatasetError, columns: Columns, *, lenient: bool = False
) -> Prompt:
    if isinstance(record, DatasetError):
        raise record
    content = _checked(path, row, columns.prompt, _value(path, row, record, columns.prompt), lenient=lenient)
    return Prompt(
        content=content,
        text=content if isinstance(content, str) else _last_user(content),
        answer=None if columns.answer is None else _answer(path, row, record, columns.answer),
        row=row,
        domain=None if columns.domain is None else _domain(path, row, record, columns.domain),
        details=_details(path, row, record, columns.details),
    )


def _answer(path: Path, row: int, record: Mapping[str, Any], column: str) -> str:
    try:
        value = _value(path, row, record, column)
    except DatasetError as error:
        raise DatasetError(f"{error}; {NO_ANSWERS}") from None
    answer = answer_text(value)
    if answer is None:
        found = str(value) if isinstance(value, float) else _kind(value)
        advice = f"; {NO_ANSWERS}" if value is None else ""
        raise DatasetError(f"{path}: row {row}: '{column}': expected text or a number, got {found}{advice}")
    return answer


def _domain(path: Path, row: int, record: Mapping[str, Any], column: str) -> str | None:
    """None where the row has none, which an empty cell of a CSV file says as well."""
    value = _optional(record, column)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not re.fullmatch(DOMAIN, value):
        expected = "at most 64 letters, digits and any of ' _./+-'"
        found = "another text" if isinstance(value, str) else _kind(value)
        raise DatasetError(f"{path}: row {row}: '{column}': expected a domain of {expected}, got {found}")
    return value


def _details(path: Path, row: int, record: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    found = {column: value for column in columns if (value := _optional(record, column)) is not None}
    for column, value in found.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError):  # a date or bytes of Parquet, or a number that JSON lacks
            expected = "text, finite numbers, lists or mappings of them"
            raise DatasetError(f"{path}: row {row}: '{column}': expected {expected}") from None
    return {detail_name(column): value for column, value in found.items()}


def _parts(record: Mapping[str, Any], column: str) -> list[str]:
    """What the dots of a column's name lead through, unless a column is called so as a whole: tables are flat."""
    return [column] if column in record else column.split(".")


def _optional(record: Mapping[str, Any], column: str) -> Any:
    value: Any = record
    for part in _parts(record, column):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _value(path: Path, row: int, record: Mapping[str, Any], column: str) -> Any:
    value: Any = record
    for part in _parts(record, column):
        if not isinstance(value, Mapping) or part not in value:
            found = ", ".join(map(str, value)) if isinstance(value, Mapping) else _kind(value)
            raise DatasetError(f"{path}: row {row}: no '{column}'; found {found}")
        value = value[part]
    return value


def _checked(path: Path, row: int, column: str, content: Any, *, lenient: bool) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        if not content.strip():
            raise DatasetError(f"{path}: row {row}: '{column}' is empty")
        if _WRITTEN_CHAT.match(content) and not lenient:
            raise DatasetError(
                f"{path}: row {row}: '{column}': chat messages that were written as one text, which the policy would "
                "be shown as it is; keep them as a list, in JSONL or Parquet"
            )
        return content
    where = f"{path}: row {row}: '{column}'"
    if not isinstance(content, Sequence) or isinstance(content, bytes) or not content:
        found = "an empty list" if content == [] else _kind(content)
        raise DatasetError(f"{where}: expected text, or chat messages with role and content, got {found}")
    messages = []
    for number, message in enumerate(content, start=1):
        if problem := _message_problem(message, lenient=lenient):
            raise DatasetError(f"{where}: message {number}: {problem}")
        messages.append({"role": message["role"], "content": _message_text(message)})
    if messages[-1]["role"] == "assistant" and not lenient:
        raise DatasetError(
            f"{where}: the last message is the assistant's, which the policy would be shown; a prompt ends before it: "
            "cut it off, and keep its text in a column of its own where it is the answer"
        )
    return messages


def _message_problem(message: Any, *, lenient: bool) -> str | None:
    if not isinstance(message, Mapping):
        return f"expected role and content, got {_kind(message)}"
    has_calls = bool(message.get("tool_calls"))
    for key, value in (("role", message.get("role")), ("content", _message_text(message))):
        if not isinstance(value, str):
            more = "; calls of tools are not read" if has_calls else ""
            more = "; of its parts, texts alone are read" if isinstance(value, list) else more
            return f"expected text as its {key}, got {_kind(message.get(key))}{more}"
    if has_calls and not lenient:
        return "it has tool_calls, which are not read: write them into its content, as the policy would"
    return None


def _message_text(message: Mapping[str, Any]) -> Any:
    """Its content, of one that is a list of texts as they follow each other."""
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        texts = [part.get("text") for part in content]
        return "".join(texts) if texts and all(isinstance(text, str) for text in texts) else content
    return content


def _last_user(messages: Sequence[Mapping[str, str]]) -> str:
    users = [message["content"] for message in messages if message["role"] == "user"]
    return users[-1] if users else messages[-1]["content"]


def _kind(value: Any) -> str:
    if isinstance(value, _Foreign):
        return value.type
    return "nothing" if value is None else "float" if isinstance(value, float) else type(value).__name__
