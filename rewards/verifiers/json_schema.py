"""JSON that has to follow a schema."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Self

from pydantic import BaseModel, Field, JsonValue, field_validator, model_validator

from rewards.base import RewardBatch
from rewards.registry import register
from rewards.verifiers import rows
from rewards.verifiers.bounded import Bounded
from rewards.verifiers.json_text import MAX_JSON_CHARS, NoJson, fenced, read_json

_MAX_SCHEMA_CHARS = 50_000


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

    The schema is the spec's or the row's; a reference that leaves it is refused, so nothing is ever fetched. It is
    checked in a process with a limit on processor time and memory, as a schema's own patterns may backtrack for ever.
    """

    name: ClassVar[str] = "json_schema"
    Options: ClassVar[type[BaseModel]] = JsonSchemaOptions
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    rowwise: ClassVar[bool] = True

    def __init__(self, options: JsonSchemaOptions) -> None:
        self._options = options
        self._child = Bounded("valid_json", options.timeout_s)
        self._known: set[str] = set()  # schemas of rows that were checked

    def score(self, batch: RewardBatch) -> list[float | None]:
        return [self._score(batch, row) for row in range(len(batch))]

    def _score(self, batch: RewardBatch, row: int) -> float | None:
        schema = self._options.json_schema or self._schema(batch, row)
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
            if (text := json.dumps(schema)) not in self._known:
                check_schema(schema)
                self._known.add(text)
        except ValueError as error:
            wanted = f"needs a JSON schema in the column {self._options.column!r}"
            raise rows.MissingRow(row, wanted, f": {error}") from None
        assert isinstance(schema, dict)
        return schema


def check_schema(schema: JsonValue) -> None:
    """ValueError for what is no schema, is too large, or refers to another document."""
    from jsonschema import Draft202012Validator, SchemaError

    if not isinstance(schema, dict):
        raise ValueError("expected an object")
    if len(json.dumps(schema)) > _MAX_SCHEMA_CHARS:
        raise ValueError(f"expected at most {_MAX_SCHEMA_CHARS} characters")
    if any(not reference.startswith("#") for reference in _references(schema)):
        raise ValueError("expected references inside the schema alone, such as #/$defs/item")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        place = "/".join(map(str, error.absolute_path))
        raise ValueError(f"expected a JSON schema (draft 2020-12), found a fault at {place or 'its root'!r}") from None
    except RecursionError:
        raise ValueError("expected a schema that nests less deep") from None


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
