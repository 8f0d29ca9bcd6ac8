"""Rows of ratings and pairs: what is read, and that each mistake names its line."""

from __future__ import annotations

import json

import pytest

from rewards.training import TrainSettings, train
from rewards.training.data import RowError, read_rows

RATING = {"prompt": "p", "completion": "c", "ratings": {"a": 1, "b": None}, "domain": "d"}
PAIR = {"messages": [{"role": "user", "content": "p"}], "chosen": "c", "rejected": "r", "margin": 2}


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_both_kinds_of_row_are_read_from_any_file(tmp_path):
    rows = read_rows(
        [write(tmp_path / "a.jsonl", RATING, "", PAIR), write(tmp_path / "b.jsonl", PAIR | {"rejected": ["x", "y"]})]
    )
    assert len(rows) == 3
    (rating,), (pair, three) = rows.ratings, rows.pairs
    assert rating.messages == pair.messages == ({"role": "user", "content": "p"},)
    assert (rating.ratings, rating.domain, rating.where) == ({"a": 1.0}, "d", "a.jsonl, line 1")
    assert (pair.rejected, pair.margin, pair.where) == (("r",), 2, "a.jsonl, line 3")
    whole = RATING | {"completion": "\U0001f600"}  # two escapes, of one character
    assert read_rows([write(tmp_path / "c.jsonl", whole)]).ratings[0].completion == "\U0001f600"
    assert (three.rejected, three.where) == (("x", "y"), "b.jsonl, line 1")


ASKED, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "p"), ("assistant", "c"), ("assistant", "r"))
)


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        {"prompt": "p", "messages": [ASKED, GOOD], "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},  # UltraFeedback
        {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "p", "chosen": [GOOD], "rejected": "r"},
    ],
)
def test_a_pair_may_be_of_chats(tmp_path, row):
    file = write(tmp_path / "a.jsonl", row, PAIR | {"margin": None})
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())  # as some editors begin a file
    one, other = read_rows([file]).pairs
    assert (one.messages, one.chosen, one.rejected) == (other.messages, other.chosen, other.rejected)


def test_the_digest_is_of_the_rows_and_not_of_where_they_lie(tmp_path):
    here, there = write(tmp_path / "a.jsonl", RATING), write(tmp_path / "b.jsonl", "", RATING)
    other = write(tmp_path / "c.jsonl", RATING | {"completion": "d"})
    assert read_rows([here]).digest() == read_rows([there]).digest() != read_rows([other]).digest()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not valid JSON"),
        ('{"ratings": ' + "9" * 5000 + "}", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        (r'{"prompt": "p", "completion": "\uD800", "ratings": {}}', "not UTF-8 text"),
        ([], "expected an object"),
        ({"prompt": "p"}, "`completion` and `ratings`, or `chosen` and `rejected`"),
        (RATING | {"messages": []}, "either `prompt` or `messages`"),
        ({"completion": "c", "ratings": {}}, "either `prompt` or `messages`"),
        (RATING | {"prompt": 3}, "prompt: expected text or a list of messages"),
        (RATING | {"prompt": [{"role": "robot", "content": ""}]}, r"prompt\.0\.role: expected one of system"),
        (PAIR | {"messages": [{"role": "user"}]}, r"messages\.0\.content: expected text"),
        (RATING | {"completion": None}, "completion: expected text"),
        (RATING | {"ratings": [1]}, "ratings: expected an object"),
        (RATING | {"ratings": {"a": "high"}}, r"ratings\.a: expected a number"),
        (RATING | {"ratings": {"a": True}}, r"ratings\.a: expected a number"),
        ('{"prompt": "p", "completion": "c", "ratings": {"a": NaN}}', r"ratings\.a: expected a number"),
        (PAIR | {"rejected": []}, "rejected: expected text, or a list"),
        (PAIR | {"rejected": [1]}, "rejected: expected text, or a list"),
        (PAIR | {"chosen": 1}, "chosen: expected text"),
        (PAIR | {"chosen": [GOOD], "rejected": [ASKED]}, r"rejected\.0\.role: expected assistant"),
        ({"chosen": [ASKED, GOOD], "rejected": [GOOD, BAD]}, "rejected: expected a chat that begins with the same"),
        ({"chosen": [ASKED, GOOD], "rejected": "r"}, "rejected: expected a chat that begins with the same"),
        (PAIR | {"margin": -1}, "margin: expected a number, at least 0"),
        (PAIR | {"domain": 1}, "domain: expected text"),
    ],
)
def test_a_bad_row_names_file_and_line(tmp_path, row, message):
    with pytest.raises(RowError, match=f"^rows.jsonl, line 2: .*{message}"):
        read_rows([write(tmp_path / "rows.jsonl", RATING, row)])


def test_files_that_are_none(tmp_path):
    with pytest.raises(RowError, match=r"gone\.jsonl: no such file"):
        read_rows([tmp_path / "gone.jsonl"])
    with pytest.raises(RowError, match="a folder"):
        read_rows([tmp_path])
    (tmp_path / "latin.jsonl").write_bytes(b'\n{"prompt": "\xe9"}')
    with pytest.raises(RowError, match=r"latin\.jsonl, line 2: not UTF-8"):
        read_rows([tmp_path / "latin.jsonl"])
    with pytest.raises(RowError, match=r"empty\.jsonl: no rows"):
        read_rows([write(tmp_path / "empty.jsonl", "")])


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([PAIR], {"heads": [{"name": "a"}]}, "train: regression needs rows of ratings"),
        ([RATING], {"objective": "bradley_terry"}, "train: bradley_terry needs pairs"),
        ([RATING], {"heads": [{"name": "a"}, {"name": "b"}], "gating": {}}, "train: gating needs pairs"),
        (
            [RATING],
            {"heads": [{"name": "a", "range": [2, 4]}]},
            r"line 1: ratings\.a: expected a number between 2 and 4",
        ),
        ([RATING], {"heads": [{"name": "c"}]}, r"heads\.0\.name: no row rates 'c'; rows rate a"),
        (
            [PAIR | {"margin": None}],
            {"objective": "bradley_terry", "pair_loss": "scaled"},
            "line 1: margin: pair_loss scaled needs",
        ),
        (
            [PAIR | {"chosen": "ba " * 70}],
            {"objective": "bradley_terry", "overflow": "error", "max_length": 64},
            "line 1: .*more than max_length",
        ),
    ],
)
def test_rows_that_do_not_fit_the_settings(tmp_path, backbone, rows, settings, message):
    document = {"model": str(backbone), "train": [str(write(tmp_path / "rows.jsonl", *rows))]} | settings
    with pytest.raises(RowError, match=message):
        train(TrainSettings.from_dict(document), directory=tmp_path, on_step=print, should_stop=lambda: None)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    from tests.reward_data import make_backbone

    return make_backbone(tmp_path_factory.mktemp("rows") / "backbone", size={"hidden_size": 32})
