"""The dataset parsers on anything at all: rows, or one kind of error that names the file, the row and the field."""

import csv
import datetime
import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator.rollouts.prompts import DatasetError, Prompt, each_prompt, examine, load_prompts, preview
from orchestrator.specs.data import Columns

COLUMNS = Columns(prompt="prompt", answer="answer")
RICH = Columns(prompt="prompt", answer="meta.answer", domain="kind", details=("schema",))

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
filled = text.filter(lambda found: bool(found.strip()))
scalars = st.none() | st.booleans() | st.integers() | st.floats() | text
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))
messages = st.lists(st.fixed_dictionaries({"role": text, "content": text}), min_size=1, max_size=3)
limited = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def outcome(path: Path, columns: Columns = COLUMNS) -> list[Prompt] | str:
    """What every way of reading the file says: all of them, or none, take it."""
    try:
        rows: list[Prompt] | str = load_prompts(path, columns)
    except DatasetError as error:
        rows = str(error)
        assert rows.startswith(f"{path}: ")
    try:
        count, problems = examine(path, columns, most=20)
    except DatasetError as error:
        count, problems = 0, [str(error)]
    assert all(problem.startswith((f"{path}: ", "no row has ")) for problem in problems)
    if isinstance(rows, str):
        assert problems
    elif not any(problem.startswith("no row has ") for problem in problems):
        assert (count, problems) == (len(rows), [])
    try:
        preview(path, columns, after=0, limit=5)
        list(each_prompt(path, columns, limit=3))
    except DatasetError:
        assert isinstance(rows, str)
    return rows


# ------------------------------------------------------------------------------------------------- any bytes


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@limited
@given(content=st.binary(max_size=200))
@example(content=b'{"prompt": "\\ud800", "answer": 1}')
@example(content=b"[" * 100_000)
@example(content=b'{"prompt": "x", "answer": ' + b"9" * 5000 + b"}")
@example(content=b'prompt,answer\n"x\x00,1\r"\n')
@example(content=b"PAR1PAR1")
def test_any_bytes_are_rows_or_an_error(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"data.{suffix}"
    path.write_bytes(content)
    outcome(path)


@limited
@given(
    lines=st.lists(
        st.dictionaries(st.sampled_from(["prompt", "answer", "meta", "kind", "schema"]), anything), max_size=3
    )
)
def test_any_objects_are_rows_or_an_error(tmp_path: Path, lines: list[Any]) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for columns in (COLUMNS, RICH):
        outcome(path, columns)


# ------------------------------------------------------------------------------------------------- one flaw

FLAWS: dict[str, tuple[st.SearchStrategy[Any], str]] = {
    "no prompt": (st.just({"answer": "1"}), "no 'prompt'"),
    "no answer": (st.just({"prompt": "1+1"}), "no 'answer'"),
    "blank prompt": (st.sampled_from(["", " ", "\n\t"]).map(lambda p: {"prompt": p, "answer": "1"}), "'prompt'"),
    "prompt of a kind": (
        (st.none() | st.booleans() | st.integers() | st.just([]) | st.lists(text, min_size=1)).map(
            lambda p: {"prompt": p, "answer": "1"}
        ),
        "'prompt'",
    ),
    "message without content": (text.map(lambda r: {"prompt": [{"role": r}], "answer": "1"}), "'prompt'"),
    "answer of a kind": (
        (st.none() | st.lists(scalars) | st.dictionaries(text, scalars)).map(lambda a: {"prompt": "1+1", "answer": a}),
        "'answer'",
    ),
    "no object": ((scalars | st.lists(scalars)).filter(lambda v: not isinstance(v, dict)), "expected an object"),
}


@pytest.mark.parametrize("flaw", FLAWS)
@limited
@given(data=st.data(), before=st.integers(0, 4), after=st.integers(0, 4), blanks=st.integers(0, 2))
def test_a_flaw_is_named_by_its_row_and_field(
    tmp_path: Path, flaw: str, data: st.DataObject, before: int, after: int, blanks: int
) -> None:
    strategy, words = FLAWS[flaw]
    good = json.dumps({"prompt": "1+1", "answer": "2"})
    lines = [good] * before + [""] * blanks + [json.dumps(data.draw(strategy))] + [good] * after
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines) + "\n")
    found = outcome(path)
    assert isinstance(found, str)
    assert found.startswith(f"{path}: row {before + blanks + 1}: ")
    assert words in found
    count, problems = examine(path, COLUMNS, most=20)
    assert (count, problems) == (before + after + 1, [found])  # the rest is read on


@limited
@given(place=st.floats(0, 1, exclude_max=True), byte=st.binary(min_size=1, max_size=1), cut=st.booleans())
def test_a_damaged_byte_is_rows_or_an_error_of_its_row(tmp_path: Path, place: float, byte: bytes, cut: bool) -> None:
    rows = [json.dumps({"prompt": f"{i}+1", "answer": i}).encode() for i in range(4)]
    content = b"\n".join(rows) + b"\n"
    at = math.floor(place * len(content))
    path = tmp_path / "data.jsonl"
    path.write_bytes(content[:at] + (b"" if cut else byte) + content[at + 1 :])
    found = outcome(path)
    if isinstance(found, str):
        row = re.match(re.escape(f"{path}: row ") + r"(\d+): ", found)
        assert row is not None
        assert abs(int(row[1]) - 1 - content[:at].count(b"\n")) <= 1


@limited
@given(values=st.lists(st.lists(filled, min_size=1, max_size=4), min_size=1, max_size=4))
def test_a_csv_row_of_another_length_is_named(tmp_path: Path, values: list[list[str]]) -> None:
    path = tmp_path / "data.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["prompt", "answer"], *values])
    found = outcome(path)
    odd = [i for i, row in enumerate(values, start=1) if len(row) != 2]
    if odd:
        assert isinstance(found, str)
        assert found.startswith(f"{path}: row {odd[0]}: expected 2 values")
    else:
        assert not isinstance(found, str)


# ------------------------------------------------------------------------------------------------- round trips


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=len(rows) % 2 == 0) + "\n" for row in rows), encoding="utf-8")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "answer"])
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    parquet.write_table(arrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize(("suffix", "write"), [("jsonl", write_jsonl), ("csv", write_csv), ("parquet", write_parquet)])
@limited
@given(rows=st.lists(st.fixed_dictionaries({"prompt": filled, "answer": text}), min_size=1, max_size=6))
def test_valid_rows_come_back_as_they_were(
    tmp_path: Path, suffix: str, write: Callable[[Path, list[dict[str, Any]]], None], rows: list[dict[str, str]]
) -> None:
    path = tmp_path / f"data.{suffix}"
    write(path, rows)
    found = outcome(path)
    assert not isinstance(found, str), found
    assert [(prompt.content, prompt.answer, prompt.row) for prompt in found] == [
        (row["prompt"], row["answer"], i) for i, row in enumerate(rows, start=1)
    ]


@limited
@given(
    prompt=messages,
    answer=st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    schema=st.dictionaries(text, st.integers(-9, 9), max_size=3),
    kind=st.none() | st.sampled_from(["math", "code"]),
)
def test_chats_numbers_domains_and_details_come_back(
    tmp_path: Path, prompt: list[dict[str, str]], answer: Any, schema: dict[str, int], kind: str | None
) -> None:
    row = {"prompt": prompt, "meta": {"answer": answer}, "kind": kind, "schema": schema}
    path = tmp_path / "data.jsonl"
    write_jsonl(path, [row])
    (found,) = load_prompts(path, RICH)
    assert (found.content, found.domain) == (prompt, kind)
    assert found.answer is not None
    assert type(answer)(found.answer) == answer
    assert isinstance(answer, str) or "e" not in found.answer
    assert list(found.details.values()) == [schema]


# ------------------------------------------------------------------------------------------------- Parquet's own

TYPED: dict[str, arrow.Array] = {
    "bytes": arrow.array([b"x"]),
    "bytes that are no text": arrow.array([b"\xff"]),
    "date": arrow.array([datetime.date(2026, 1, 1)]),
    "date before the calendar": arrow.array([-2_000_000_000], arrow.int32()).cast(arrow.date32()),
    "time of ns": arrow.array([1], arrow.int64()).cast(arrow.timestamp("ns")),
    "time beyond the calendar": arrow.array([2**62], arrow.int64()).cast(arrow.timestamp("ms")),
    "duration": arrow.array([2**62], arrow.int64()).cast(arrow.duration("s")),
    "decimal": arrow.array([Decimal("1.5")]),
    "map": arrow.array([[("a", 1)]], arrow.map_(arrow.string(), arrow.int64())),
    "dictionary": arrow.array(["x"]).dictionary_encode(),
    "half": arrow.array([1.5], arrow.float64()).cast(arrow.float16()),
    "nulls": arrow.nulls(1),
}


@pytest.mark.parametrize("column", ["prompt", "answer", "kind", "schema"])
@pytest.mark.parametrize("kind", TYPED)
def test_types_that_json_lacks_are_rows_or_an_error(tmp_path: Path, column: str, kind: str) -> None:
    columns = {"prompt": arrow.array(["1+1"]), "answer": arrow.array(["2"]), column: TYPED[kind]}
    path = tmp_path / "data.parquet"
    parquet.write_table(arrow.table(columns), path)
    wanted = Columns(
        prompt="prompt",
        answer="answer",
        domain="kind" if column == "kind" else None,
        details=("schema",) if column == "schema" else (),
    )
    found = outcome(path, wanted)
    if kind == "time of ns":
        assert isinstance(found, str)
        assert f"'{column}'" in found
    assert not isinstance(outcome(path, COLUMNS), str) or column in ("prompt", "answer")  # not asked for: no matter


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    table = arrow.table(
        [arrow.array(["1+1"]), arrow.array(["2+2"]), arrow.array(["2"])], ["prompt", "prompt", "answer"]
    )
    path = tmp_path / "data.parquet"
    parquet.write_table(table, path)
    found = outcome(path)
    assert isinstance(found, str)
    assert found == f"{path}: two of its columns have the same name"
