"""Prompts are read row by row, and a bad row is named with its number and the reason."""

import contextlib
import json
import pickle
import tracemalloc
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.rollouts.batch import rollout_request
from orchestrator.rollouts.prompts import NO_ANSWERS, DatasetError, PromptOrder, encode, examine, load_prompts
from orchestrator.specs.data import Columns
from orchestrator.specs.rollout import RolloutSpec

GOOD = {"prompt": "1+1", "answer": "2"}
ASKED = {"role": "user", "content": "1+1"}
NESTED = Columns(prompt="prompt", answer="reward_model.ground_truth")


def jsonl(folder: Path, *rows: Any) -> Path:
    """A row is an object, or the line itself."""
    path = folder / "rows.jsonl"
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines))
    return path


def parquet_file(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "rows.parquet"
    parquet.write_table(arrow.Table.from_pylist(list(rows)), path)
    return path


def refusal(path: Path, columns: Columns | None = None, **options: Any) -> str:
    with pytest.raises(DatasetError) as caught:
        load_prompts(path, columns or Columns(), **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


# ------------------------------------------------------------------------ good


@pytest.mark.parametrize("write", [jsonl, parquet_file])
def test_rows_in_order(tmp_path: Path, write: Any) -> None:
    prompts = load_prompts(write(tmp_path, GOOD, {"prompt": "2+2", "answer": "4"}), Columns())
    assert [(p.content, p.text, p.answer, p.row) for p in prompts] == [("1+1", "1+1", "2", 1), ("2+2", "2+2", "4", 2)]


@pytest.mark.parametrize("write", [jsonl, parquet_file])
def test_chat_messages_and_a_nested_answer(tmp_path: Path, write: Any) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "Well?"},
    ]
    (prompt,) = load_prompts(write(tmp_path, {"prompt": chat, "reward_model": {"ground_truth": "2"}}), NESTED)
    assert prompt.content == chat
    assert prompt.text == "Well?"
    assert prompt.answer == "2"


def test_messages_keep_only_role_and_content(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": [{"role": "system", "content": "hi", "name": "x"}], "answer": "2"})
    (prompt,) = load_prompts(path, Columns())
    assert prompt.content == [{"role": "system", "content": "hi"}]
    assert prompt.text == "hi"  # no user spoke: the last message


@pytest.mark.parametrize("write", [jsonl, parquet_file])
def test_a_content_that_is_a_list_of_texts_is_one(tmp_path: Path, write: Any) -> None:
    parts = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1"}]
    (prompt,) = load_prompts(write(tmp_path, {"prompt": [{"role": "user", "content": parts}], "answer": 2}), Columns())
    assert (prompt.content, prompt.text) == ([ASKED], "1+1")


@pytest.mark.parametrize("write", [jsonl, parquet_file])
def test_a_column_may_have_a_dot_in_its_name(tmp_path: Path, write: Any) -> None:
    """As tables have it that were nested once."""
    row = {"prompt": "1+1", "reward_model.ground_truth": "2", "extra_info.level": 3}
    columns = Columns(answer="reward_model.ground_truth", details=("extra_info.level",))
    (prompt,) = load_prompts(write(tmp_path, row), columns)
    assert (prompt.answer, prompt.details) == ("2", {"level": 3})


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path, b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), GOOD)
    assert [prompt.text for prompt in load_prompts(path, Columns())] == ["1+1", "1+1"]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (2, "2"),
        (2.5, "2.5"),
        (1e-5, "0.00001"),
        (-1.5e16, "-15000000000000000"),
        ("1e-5", "1e-5"),
        ("", ""),
        (True, "True"),
    ],
)
def test_an_answer_may_be_a_number(tmp_path: Path, answer: Any, text: str) -> None:
    assert load_prompts(jsonl(tmp_path, {**GOOD, "answer": answer}), Columns())[0].answer == text


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (b"3.14159265358979323846", "3.14159265358979323846"),
        (b"12345678901234567890.5", "12345678901234567890.5"),
        (b"2.10", "2.10"),
        (b"1E-5", "0.00001"),
        (b"1e-999999999", "0.0"),
    ],
)
def test_an_answer_keeps_the_digits_that_were_written(tmp_path: Path, written: bytes, text: str) -> None:
    path = jsonl(tmp_path, b'{"prompt": "x", "answer": ' + written + b', "price": 2.10}')
    (prompt,) = load_prompts(path, Columns(details=("price",)))
    assert prompt.answer == text
    copied = pickle.loads(pickle.dumps(prompt))  # noqa: S301
    assert (copied.details["price"], type(copied.details["price"])) == (2.1, float)


def test_an_answer_may_be_a_decimal(tmp_path: Path) -> None:
    path, answers = tmp_path / "data.parquet", [Decimal("12345678901234567890.50"), Decimal("-0.10")]
    parquet.write_table(arrow.table({"prompt": ["x", "y"], "answer": answers}), path)
    assert [prompt.answer for prompt in load_prompts(path, Columns())] == ["12345678901234567890.50", "-0.10"]


def test_no_answer_is_needed_where_none_is_named(tmp_path: Path) -> None:
    assert load_prompts(jsonl(tmp_path, {"prompt": "tell"}), Columns(answer=None))[0].answer is None


@pytest.mark.parametrize("text", ["[{'role': role}]", '[{"name": "x"}]', "say [{'role': 'user'}]", "[1, 2]"])
def test_a_text_may_begin_as_a_list(tmp_path: Path, text: str) -> None:
    assert load_prompts(jsonl(tmp_path, {**GOOD, "prompt": text}), Columns())[0].content == text


def test_blank_lines_count_but_are_no_rows(tmp_path: Path) -> None:
    assert [p.row for p in load_prompts(jsonl(tmp_path, GOOD, b"  ", GOOD, b""), Columns())] == [1, 3]


@pytest.mark.parametrize("write", [jsonl, parquet_file])
@pytest.mark.parametrize(("limit", "rows"), [(1, 1), (2, 2), (9, 3), (None, 3)])
def test_limit(tmp_path: Path, write: Any, limit: int | None, rows: int) -> None:
    assert len(load_prompts(write(tmp_path, GOOD, GOOD, GOOD), Columns(), limit=limit)) == rows


def test_rows_beyond_the_limit_are_not_read(tmp_path: Path) -> None:
    assert len(load_prompts(jsonl(tmp_path, GOOD, b"no json"), Columns(), limit=1)) == 1


def test_pairs_of_surrogates_are_text(tmp_path: Path) -> None:
    path = jsonl(tmp_path, b'{"prompt": "\\ud83d\\ude00", "answer": "1"}')
    assert load_prompts(path, Columns())[0].text == "\U0001f600"


# ------------------------------------------------------------------------- bad


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (b"{", "row 2: not valid JSON (Expecting property name"),
        (b'{"prompt": NaN', "row 2: not valid JSON"),
        (b'{"prompt": "\xff"}', "row 2: not valid JSON (not UTF-8)"),
        (b'{"prompt": "\\ud800", "answer": "1"}', "row 2: not valid JSON (not UTF-8)"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "row 2: not valid JSON (Exceeds the limit"),
        (b"[" * 100_000, "row 2: not valid JSON"),
        (b"[1]", "row 2: expected an object, got list"),
        (b"null", "row 2: expected an object, got NoneType"),
        ({"answer": "2"}, "row 2: no 'prompt'; found answer"),
        ({"prompt": "x"}, f"row 2: no 'answer'; found prompt; {NO_ANSWERS}"),
        ({"prompt": " \n", "answer": "2"}, "row 2: 'prompt' is empty"),
        ({"prompt": "", "answer": "2"}, "row 2: 'prompt' is empty"),
        ({"prompt": None, "answer": "2"}, "row 2: 'prompt': expected text, or chat messages"),
        ({"prompt": 5, "answer": "2"}, "got int"),
        ({"prompt": [], "answer": "2"}, "got an empty list"),
        ({"prompt": ["hi"], "answer": "2"}, "row 2: 'prompt': message 1: expected role and content, got str"),
        ({"prompt": [{"role": "user"}], "answer": "2"}, "message 1: expected text as its content, got nothing"),
        ({"prompt": [ASKED, {"role": "user", "content": 3}]}, "message 2: expected text as its content, got int"),
        ({"prompt": [ASKED, {"content": "x"}]}, "message 2: expected text as its role, got nothing"),
        (
            {"prompt": [ASKED, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
            "message 2: expected text as its content, got nothing; calls of tools are not read",
        ),
        (
            {"prompt": [ASKED, {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}, ASKED]},
            "row 2: 'prompt': message 2: it has tool_calls, which are not read",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image", "image": "x"}, {"type": "text", "text": "?"}]}]},
            "message 1: expected text as its content, got list; of its parts, texts alone are read",
        ),
        ({"prompt": [ASKED, {"role": "assistant", "content": "2"}]}, "row 2: 'prompt': the last message is the assi"),
        (
            {"prompt": json.dumps([ASKED]), "answer": "2"},
            "row 2: 'prompt': chat messages that were written as one text",
        ),
        ({"prompt": str([ASKED]), "answer": "2"}, "row 2: 'prompt': chat messages that were written as one text"),
        ({"prompt": {"role": "user", "content": "x"}, "answer": "2"}, "got dict"),
        (
            {"prompt": "x", "answer": None},
            f"row 2: 'answer': expected text or a number, got nothing; {NO_ANSWERS}",
        ),
        ({"prompt": "x", "answer": ["2"]}, "row 2: 'answer': expected text or a number, got list"),
        (b'{"prompt": "x", "answer": NaN}', "row 2: 'answer': expected text or a number, got nan"),
        (b'{"prompt": "x", "answer": -1e999}', "row 2: 'answer': expected text or a number, got -inf"),
    ],
)
def test_a_bad_row_of_jsonl(tmp_path: Path, row: Any, words: str) -> None:
    assert words in refusal(jsonl(tmp_path, GOOD, row))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "x"}, "row 2: no 'reward_model.ground_truth'; found prompt"),
        ({"prompt": "x", "reward_model": {"style": "rule"}}, "row 2: no 'reward_model.ground_truth'; found style"),
        ({"prompt": "x", "reward_model": None}, "row 2: no 'reward_model.ground_truth'; found nothing"),
        ({"prompt": "x", "reward_model": "2"}, "row 2: no 'reward_model.ground_truth'; found str"),
    ],
)
def test_a_missing_struct_is_named_by_its_path(tmp_path: Path, row: Any, words: str) -> None:
    assert words in refusal(jsonl(tmp_path, {"prompt": "x", "reward_model": {"ground_truth": "2"}}, row), NESTED)


def test_few_rows_of_parquet_are_objects_at_once_where_they_are_large(tmp_path: Path) -> None:
    """A dictionary makes gigabytes of a few bytes."""
    large = arrow.DictionaryArray.from_arrays(arrow.array([0] * 100), arrow.array(["x" * 4_000_000]))
    path = tmp_path / "rows.parquet"
    parquet.write_table(arrow.table({"prompt": large, "answer": ["1"] * 100}), path, compression="zstd")
    assert path.stat().st_size < 4000
    tracemalloc.start()
    assert examine(path, Columns(), most=1)[0] == 100
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": None, "answer": "2"}, "row 2: 'prompt': expected text"),
        ({"prompt": "x", "answer": None}, "row 2: 'answer': expected text or a number"),
    ],
)
def test_a_bad_row_of_parquet(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    assert words in refusal(parquet_file(tmp_path, GOOD, row))


def test_parquet_without_the_column(tmp_path: Path) -> None:
    assert (
        refusal(parquet_file(tmp_path, {"question": "x", "answer": "2"}))
        == "row 1: no 'prompt'; found question, answer"
    )


def test_parquet_with_text_that_is_not_utf8(tmp_path: Path) -> None:
    column = arrow.array([b"\xff\xfe"], type=arrow.binary()).view(arrow.string())
    path = tmp_path / "rows.parquet"
    parquet.write_table(arrow.table({"prompt": column, "answer": ["2"]}), path)
    assert "damaged" in refusal(path)


@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_damaged_parquet_file_is_refused_or_read(tmp_path_factory: Any, place: float, byte: int) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    content = bytearray(parquet_file(folder, *[{"prompt": f"{i}+1", "answer": f"{i}"} for i in range(50)]).read_bytes())
    content[int(place * len(content))] = byte
    path = folder / "damaged.parquet"
    path.write_bytes(content)
    with contextlib.suppress(DatasetError):
        load_prompts(path, Columns())


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all"])
def test_no_parquet_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(content)
    assert "not a Parquet file" in refusal(path)


def test_files_that_are_no_dataset(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.jsonl") == "no such file"
    assert refusal(tmp_path / ("x" * 300 + ".jsonl")) == "File name too long"
    (tmp_path / "folder.jsonl").mkdir()
    assert refusal(tmp_path / "folder.jsonl") == "no such file"
    (tmp_path / "rows.txt").write_text("prompt,answer")
    assert refusal(tmp_path / "rows.txt") == "expected a .jsonl, .csv or .parquet file"


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert refusal(path) == "is empty; expected at least one row with 'prompt'"


# ---------------------------------------------------------------------- encode


def test_encode_and_its_limit(tmp_path: Path) -> None:
    prompts = load_prompts(jsonl(tmp_path, GOOD, {"prompt": "1 + 1", "answer": "2"}), Columns())
    encoded, dropped = encode(prompts, "f", lambda text: [ord(c) for c in text], longest=5)
    assert dropped == 0
    assert [tuple(p.tokens) for p in encoded] == [(49, 43, 49), (49, 32, 43, 32, 49)]
    assert rollout_request(RolloutSpec(), encoded[0], 1, temperature=1.0).prompt_tokens == (49, 43, 49)
    assert encoded[0].tokens.itemsize == 4, "a tuple of numbers takes 36 bytes a token, and a job holds millions"
    assert [(p.text, p.answer, p.row) for p in encoded] == [(p.text, p.answer, p.row) for p in prompts]
    with pytest.raises(
        DatasetError, match="f: row 2: the prompt has 5 tokens, but the context leaves room for 4 beside"
    ):
        encode(prompts, "f", lambda text: [0] * len(text), longest=4)
    with pytest.raises(DatasetError, match=r"row 1: the prompt has 3 tokens.* \(2 rows are too long\)"):
        encode(prompts, "f", lambda text: [0] * len(text), longest=2)
    kept, dropped = encode(prompts, "f", lambda text: [0] * len(text), longest=4, drop=True)
    assert ([prompt.row for prompt in kept], dropped) == ([1], 1)


# ----------------------------------------------------------------------- order

sizes = st.integers(1, 30)


@given(size=sizes, seed=st.integers(0, 2**31), counts=st.lists(st.integers(1, 70), min_size=1, max_size=6))
def test_every_epoch_is_a_permutation_and_the_position_is_all_there_is(size: int, seed: int, counts: list[int]) -> None:
    order, taken = PromptOrder(size, seed=seed), []
    for count in counts:
        resumed = PromptOrder(size, seed=seed)
        resumed.position = order.position
        batch = order.take(count)
        assert len(batch) == count
        assert resumed.take(count) == batch
        taken += batch
    assert order.position == len(taken)
    for start in range(0, len(taken) - size + 1, size):
        assert sorted(taken[start : start + size]) == list(range(size))


def test_epochs_and_seeds_differ() -> None:
    order = PromptOrder(50, seed=0)
    first, second = order.take(50), order.take(50)
    assert first != second
    assert PromptOrder(50, seed=1).take(50) != first


def test_fewer_prompts_than_are_taken() -> None:
    assert sorted(PromptOrder(2, seed=0).take(5)[:4]) == [0, 0, 1, 1]
