"""Answers that were paid for."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest

from rewards.judges.cache import AnswerCache, key_of


def test_the_oldest_are_forgotten() -> None:
    cache = AnswerCache(2)
    cache.put(b"a", {"score": 1.0})
    cache.put(b"b", {"score": 2.0})
    assert cache.get(b"a") == {"score": 1.0}  # used, so b is the oldest
    cache.put(b"c", {"score": 3.0})
    assert [cache.get(key) for key in (b"a", b"b", b"c")] == [{"score": 1.0}, None, {"score": 3.0}]
    assert AnswerCache(0).get(b"a") is None


def test_a_file_keeps_answers_and_no_texts(tmp_path: Path) -> None:
    file = tmp_path / "answers.sqlite"
    key = key_of([{"role": "user", "content": "a secret completion"}])
    cache, other = AnswerCache(1, file), AnswerCache(0, file)
    cache.put(key, {"score": 0.5})
    cache.put(b"other", {"score": 1.0})
    assert other.get(key) == cache.get(key) == {"score": 0.5}
    cache.close()
    other.close()
    again = AnswerCache(1, file)
    assert again.get(key) == {"score": 0.5}
    again.close()
    assert b"secret" not in file.read_bytes()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_what_is_no_cache_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database at all, but long enough to be taken for one" * 20)
    for file in (tmp_path / "text", tmp_path, tmp_path / "missing" / "file"):
        with pytest.raises(OSError, match=r"cache of answers|directory"):
            AnswerCache(1, file)


def test_a_file_that_fails_later_is_let_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = AnswerCache(5, tmp_path / "answers.sqlite")
    with sqlite3.connect(tmp_path / "answers.sqlite") as database:
        database.execute("DROP TABLE answers")
    database.close()
    cache.put(b"a", {"score": 1.0})
    assert cache.get(b"a") == {"score": 1.0}
    assert cache.get(b"b") is None
    assert "cache_file is not used any more" in caplog.text


def test_a_key_is_of_everything_that_is_asked() -> None:
    questions = [("m", [{"content": "a"}], 0), ("m", [{"content": "a"}], 1), ("n", [{"content": "a"}], 0), ("m", [], 0)]
    assert len({key_of(*question) for question in questions}) == len(questions)
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
