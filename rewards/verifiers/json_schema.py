"""JSON that has to follow a schema."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, Field, JsonValue, field_validator, model_validator

from rewards.base import RewardBatch
from rewards.registry import register
from rewards.verifiers import rows
from rewards.verifiers.bounded import Bounded
from rewards.verifiers.json_text import MAX_JSON_CHARS, NoJson, fenced, read_json

_MAX_SCHEMA_CHARS = 50_000
_CHECK_S = 1.0  # processor time
_SOUND_KNOWN = 10_000

_checker = Bounded("json_schema", _CHECK_S)
_turn = threading.Lock()  # to ask it
_line = threading.Semaphore(6)  # to wait for the turn: a server has few threads, and others need them
_sound: set[bytes] = set()  # digests of what it found nothing wrong with


class SchemasBusy(Exception):
    """Others' schemas take the time in which this one would be checked: it may be sound."""


@dataclass
class _Limit:
    """Of all checks in one context."""

    seconds: float
    until: float  # by time.monotonic
    waited_s: float = 0.0  # for a turn

    def left_s(self) -> float:
        return self.until - time.monotonic()


_limit: ContextVar[_Limit | None] = ContextVar("_limit", default=None)


class JsonSchemaOptions(rows.RowOptions):
    """The schema, or the column that holds each row's."""

    json_schema: dict[str, JsonValue] | None = Field(
        None, description="JSON schema (draft 2020-12); its references stay inside of it"
    )
    column: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="column of the data with each row's schema, as an object or as text, in place of one",
    )
    invalid_json: float = Field(0.0, ge=0, le=1, description="score of what is no JSON at all")
    invalid: float = Field(0.0, ge=0, le=1, description="score of JSON that does not follow the schema")
    timeout_s: float = Field(
        1.0, gt=0, le=60, description="processor time for one completion, in seconds; more scores 0"
    )

    @field_validator("json_schema")
    @classmethod
    def _is_a_schema(cls, schema: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        if schema is not None:
            check_schema(schema)
        return schema

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.json_schema is None) == (self.column is None):
            raise ValueError("give one of `json_schema` and `column`")
        return self


@register
class JsonSchema:
    """1 where the completion, or the JSON in its last code fence, follows a JSON schema, else 0.

    The schema is the spec's or the row's; a reference that leaves it is refused, so nothing is ever fetched. `format`
    (date-time, email, uri) is a remark, as the drafts have it, and checks nothing: give a pattern. Both the schema
    and the text are checked in a process with a limit on processor time and memory: its own patterns may take minutes
    to compile, and backtrack for ever.
    """

    name: ClassVar[str] = "json_schema"
    Options: ClassVar[type[BaseModel]] = JsonSchemaOptions
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    rowwise: ClassVar[bool] = True

    def __init__(self, options: JsonSchemaOptions) -> None:
        self._options = options
        self._child = Bounded("valid_json", options.timeout_s)

    def score(self, batch: RewardBatch) -> list[float | None]:
        return [self._score(batch, row) for row in range(len(batch))]

    def _score(self, batch: RewardBatch, row: int) -> float | None:
        schema = self._options.json_schema  # an empty one takes any JSON
        if schema is None:
            schema = self._schema(batch, row)
        if schema is None:
            return None
        completion = batch.completions[row]
        if len(completion) > MAX_JSON_CHARS:
            return self._options.invalid_json
        try:
            document = read_json(fenced(completion))
        except NoJson:
            return self._options.invalid_json
        return 1.0 if self._child.ask(schema=schema, document=document) else self._options.invalid

    def _schema(self, batch: RewardBatch, row: int) -> dict[str, JsonValue] | None:
        assert self._options.column is not None
        found = rows.detail(batch, row, self._options.column, self._options.missing)
        if found is None:
            return None
        try:
            schema = read_json(found) if isinstance(found, str) else found
            check_schema(schema)
        except ValueError as error:
            wanted = f"needs a JSON schema in the column {self._options.column!r}"
            raise rows.MissingRow(row, wanted, f": {error}") from None
        assert isinstance(schema, dict)
        return schema


@contextmanager
def schemas_within(seconds: float = 5.0) -> Iterator[None]:
    """Checks of schemas in this context may take so long in all, with the wait for their turn; the rest is refused.
    SchemasBusy where most of it went into that wait, or where too many wait already.

    For servers: one request with many schemas that each take their second would hold a thread, and hold up the others.
    """
    token = _limit.set(_Limit(seconds, time.monotonic() + seconds))
    try:
        yield
    finally:
        _limit.reset(token)


def check_schema(schema: JsonValue) -> None:
    """ValueError for what is no schema, is too large, takes too long to check, or refers to another document."""
    if not isinstance(schema, dict):
        raise ValueError("expected an object")
    if len(text := json.dumps(schema)) > _MAX_SCHEMA_CHARS:
        raise ValueError(f"expected at most {_MAX_SCHEMA_CHARS} characters")
    if any(not reference.startswith("#") for reference in _references(schema)):
        raise ValueError("expected references inside the schema alone, such as #/$defs/item")
    if fault := _fault(text):
        raise ValueError(fault)


def _fault(text: str) -> str:
    """What is wrong with it as a schema, or nothing: in a process with a limit, as it has its patterns compiled."""
    digest = hashlib.sha256(text.encode()).digest()
    if digest in _sound:
        return ""
    if not _has_turn(_limit.get()):
        return "expected schemas that take less time to check; make them smaller, or try again"
    try:
        verdict = _checker.verdict(schema=json.loads(text)).strip()
    finally:
        _turn.release()
    if verdict == "yes":
        if len(_sound) >= _SOUND_KNOWN:
            _sound.clear()
        _sound.add(digest)
        return ""
    if verdict == "late":
        return f"expected a schema that is checked within {_CHECK_S:g} s; make it smaller, or its patterns simpler"
    return verdict.removeprefix("no ") or "it could not be checked; make it smaller, or try again"


def _has_turn(limit: _Limit | None) -> bool:
    """False where the time is over before; SchemasBusy where that is others' doing."""
    if limit is None:
        return _turn.acquire()
    if not _line.acquire(blocking=False):
        raise SchemasBusy
    began = time.monotonic()
    try:
        got = (left_s := limit.left_s()) > 0 and _turn.acquire(timeout=left_s)
    finally:
        _line.release()
    limit.waited_s += time.monotonic() - began
    if not got and limit.waited_s > limit.seconds / 2:
        raise SchemasBusy
    return got


def _references(schema: Any) -> list[str]:
    found, left = [], [schema]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            found += [part[key] for key in ("$ref", "$dynamicRef") if isinstance(part.get(key), str)]
            left += part.values()
        elif isinstance(part, list):
            left += part
    return found
