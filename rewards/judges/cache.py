"""Answers that were paid for: by a hash of the whole question, in memory and, where asked for, in an SQLite file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
from collections import OrderedDict
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

Answer = dict[str, float]
_BUSY_S = 5.0


class AnswerCache:
    """The newest `entries` in memory; the file holds hashes and scores, no texts, and several processes may share it.

    It is for one thread at a time. What the file holds is checked by whoever takes it out, and a file that fails is let
    go with a warning: answers can be asked for again.
    """

    def __init__(self, entries: int, file: Path | None = None) -> None:
        """Raises OSError where the file can't be made or is no cache."""
        self._entries = entries
        self._known: OrderedDict[bytes, Answer] = OrderedDict()
        self._database = None if file is None else _open(file)

    def get(self, key: bytes) -> Answer | None:
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        if self._database is None:
            return None
        try:
            row = self._database.execute("SELECT scores FROM answers WHERE key = ?", (key,)).fetchone()
            answer: Answer | None = None if row is None else json.loads(row[0])
        except (sqlite3.Error, ValueError) as error:
            self._let_go(error)
            return None
        if answer is not None:
            self._remember(key, answer)
        return answer

    def put(self, key: bytes, answer: Answer) -> None:
        self._remember(key, answer)
        if self._database is None:
            return
        try:
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(answer)))
        except sqlite3.Error as error:
            self._let_go(error)

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _let_go(self, error: Exception) -> None:
        log.warning("a judge's cache_file is not used any more: %s", error)
        self.close()

    def _remember(self, key: bytes, answer: Answer) -> None:
        self._known[key] = answer
        self._known.move_to_end(key)
        while len(self._known) > self._entries:
            self._known.popitem(last=False)


def key_of(*question: Any) -> bytes:
    """Of all that decides an answer."""
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).digest()


def _open(file: Path) -> sqlite3.Connection:
    os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    database = sqlite3.connect(file, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = OFF")  # a lost answer is asked for again
        database.execute(
            "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, scores TEXT NOT NULL) WITHOUT ROWID"
        )
    except sqlite3.DatabaseError:
        database.close()
        raise OSError("cache_file is no cache of answers; name another file") from None
    return database
