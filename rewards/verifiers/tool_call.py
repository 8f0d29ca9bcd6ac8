"""Tool calls: the names and arguments that were asked for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel, Field, JsonValue

from rewards.base import RewardBatch
from rewards.registry import register
from rewards.verifiers import rows
from rewards.verifiers.json_text import MAX_JSON_CHARS, NoJson, canonical, fenced, read_json

_MAX_CALLS = 64

_FUNCTION = re.compile(r"\s*<function=([^<>\n]{1,200})>(.*)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^<>\n]{1,200})>")


@dataclass(frozen=True, kw_only=True)
class Call:
    """Name and arguments, the latter in canonical JSON."""

    name: str
    arguments: dict[str, str]

    @property
    def key(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        return self.name, tuple(sorted(self.arguments.items()))


class ToolCallOptions(rows.RowOptions):
    """Where the expected calls stand, and what half an answer is worth."""

    column: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="column of the data with the expected calls; the answer's column when absent",
    )
    partial: bool = Field(True, description="whether right names, keys and values count for themselves; else all or 0")
    ordered: bool = Field(False, description="whether the calls have to come in the expected order, to score 1")

    @property
    def needs_answer(self) -> bool:
        return self.column is None


@register
class ToolCall:
    """How well the completion's tool calls agree with the expected ones: 1 for the same names and arguments.

    With `partial`, as ToolRL scores correctness (arXiv 2504.13958, also in GDPO's tool calling), scaled from
    [-3, 3] to [0, 1]: over the expected calls,

        (overlap of names + sum of overlap of keys + sum of equal values) / (1 + sum of (1 + arguments))

    an overlap being the size of the intersection over that of the union, and each expected call taken with the best
    call of its name that is left. Calls are read as Hermes and Qwen write them (<tool_call> around JSON, or around
    <function=...> with <parameter=...>), or as OpenAI's JSON, fenced or bare. What can't be read scores 0; so does a
    call where none was expected (an empty list), and no call there scores 1, unless the completion was cut before an
    answer began.
    """

    name: ClassVar[str] = "tool_call"
    Options: ClassVar[type[BaseModel]] = ToolCallOptions
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    rowwise: ClassVar[bool] = True

    def __init__(self, options: ToolCallOptions) -> None:
        self._options = options

    def score(self, batch: RewardBatch) -> list[float | None]:
        return [self._score(batch, row) for row in range(len(batch))]

    def _score(self, batch: RewardBatch, row: int) -> float | None:
        expected = self._expected(batch, row)
        if expected is None:
            return None
        try:
            made = calls_of(batch.completions[row])
        except NoJson:
            return 0.0
        wanted_keys, made_keys = [call.key for call in expected], [call.key for call in made]
        if batch.is_unanswered(row):
            return 0.0
        if Counter(wanted_keys) == Counter(made_keys) and (wanted_keys == made_keys or not self._options.ordered):
            return 1.0
        return agreement(expected, made) if self._options.partial and expected else 0.0

    def _expected(self, batch: RewardBatch, row: int) -> list[Call] | None:
        missing, column = self._options.missing, self._options.column
        found = rows.answer(batch, row, missing) if column is None else rows.detail(batch, row, column, missing)
        if found is None:
            return None
        try:
            return calls_of(found) if isinstance(found, str) else _calls(found)
        except NoJson:
            raise rows.MissingRow(row, "needs its expected tool calls as JSON: a list of name and arguments") from None


def agreement(expected: list[Call], made: list[Call]) -> float:
    """The partial score, below 1 unless every call is right but for their order."""
    total, possible = _overlap([call.name for call in expected], [call.name for call in made]), 1.0
    left = list(made)
    for wanted in expected:
        possible += 1 + len(wanted.arguments)
        fits = [(_fit(wanted, call), -place, call) for place, call in enumerate(left) if call.name == wanted.name]
        if fits:
            best, _, call = max(fits, key=lambda fit: fit[:2])
            left.remove(call)
            total += best
    return total / possible


def _fit(wanted: Call, call: Call) -> float:
    equal = sum(call.arguments.get(key) == value for key, value in wanted.arguments.items())
    return _overlap(wanted.arguments, call.arguments) + equal


def _overlap(one: Iterable[Hashable], other: Iterable[Hashable]) -> float:
    """Jaccard's index of multisets; 1 where both are empty."""
    first, second = Counter(list(one)), Counter(list(other))  # of a mapping's keys, not its values
    union = (first | second).total()
    return (first & second).total() / union if union else 1.0


def calls_of(text: str) -> list[Call]:
    """The calls that a text makes, in order; none is an answer too. NoJson where a call can't be read."""
    if len(text) > MAX_JSON_CHARS:
        raise NoJson("too long")
    first, *blocks = text.split("<tool_call>", _MAX_CALLS + 1)
    if blocks:
        if len(blocks) > _MAX_CALLS:
            raise NoJson("too many calls")
        return [call for block in blocks for call in _block(block)]
    inner = fenced(first).strip()
    if not inner.startswith(("{", "[")):
        return []
    return _calls(read_json(inner))


def _block(block: str) -> list[Call]:
    inner, closing, _ = block.partition("</tool_call>")
    if not closing:
        raise NoJson("a call that does not end")
    if tagged := _FUNCTION.fullmatch(inner):
        _, *parts = _PARAMETER.split(tagged.group(2))
        arguments = {key: _parameter(value) for key, value in zip(parts[::2], parts[1::2], strict=True)}
        return [Call(name=tagged.group(1).strip(), arguments=arguments)]
    try:
        return _calls(read_json(inner))
    except NoJson:  # one call a line, as ToolRL's data has it
        return [call for line in inner.splitlines() if line.strip() for call in _calls(read_json(line))]


def _parameter(value: str) -> str:
    """Of a <parameter> tag: JSON where it is, else text."""
    value, closing, _ = value.partition("</parameter>")
    if not closing:
        raise NoJson("a parameter that does not end")
    try:
        return canonical(read_json(value.strip()))
    except NoJson:
        return canonical(value.strip())


def _calls(value: JsonValue) -> list[Call]:
    """Of a call, a list of calls, or a message with `tool_calls`."""
    if isinstance(value, dict) and "tool_calls" in value:
        value = value["tool_calls"]
    calls = value if isinstance(value, list) else [value]
    if len(calls) > _MAX_CALLS:
        raise NoJson("too many calls")
    return [_call(call) for call in calls]


def _call(value: JsonValue) -> Call:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise NoJson("no name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = read_json(arguments or "{}")  # OpenAI has them as JSON in a string
    if not isinstance(arguments, dict):
        raise NoJson("arguments that are no object")
    return Call(name=str(value["name"]), arguments={key: canonical(inner) for key, inner in arguments.items()})
