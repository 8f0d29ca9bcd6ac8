"""DIR/runs.jsonl: a line for each run, put on disk when the run ends. One arena at a time writes to a directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

Json = dict[str, Any]
SCHEMA = 1
FILE = "runs.jsonl"


class LedgerError(RuntimeError):
    """The file can't be read, or not be written; the message says what to do."""


class Ledger:
    """The runs of a directory, as they were read and as they were added. A context: it locks the directory.

    A last line that a kill cut short is dropped before anything is added.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE
        self.runs: list[Json] = []
        self._lock = threading.Lock()
        self._file: Any = None

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise LedgerError(f"can't write {self.path}: {error.strerror or error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.runs = self._read()
        except BlockingIOError:
            self._file.close()
            raise LedgerError(
                f"another arena writes to {self.path.parent}; wait for it or name another --out"
            ) from None
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @classmethod
    def peek(cls, directory: Path) -> Self:
        """The runs as they are, to be looked at while an arena may be writing. Raises LedgerError."""
        ledger = cls(directory)
        try:
            text = ledger.path.read_bytes()
        except FileNotFoundError:
            return ledger
        except OSError as error:
            raise LedgerError(f"can't read {ledger.path}: {error.strerror or error}") from error
        ledger.runs = ledger._parse(text[: text.rfind(b"\n") + 1])
        return ledger

    def add(self, run: Mapping[str, Any]) -> None:
        """On disk when this returns. Raises LedgerError, with everything before this run as it was."""
        line = json.dumps(run, allow_nan=False).encode() + b"\n"
        with self._lock:
            end = self._file.seek(0, os.SEEK_END)
            try:
                left = memoryview(line)
                while left:  # a disk that is nearly full takes a part
                    left = left[self._file.write(left) :]
                os.fsync(self._file.fileno())
            except OSError as error:
                with contextlib.suppress(OSError):
                    self._file.truncate(end)
                reason = error.strerror or str(error)
                raise LedgerError(
                    f"can't write {self.path}: {reason}; what was finished stays, and --resume goes on from there"
                ) from error
            self.runs.append(dict(run))

    def _read(self) -> list[Json]:
        self._file.seek(0)
        text: bytes = self._file.read()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            self._file.truncate(len(whole))
        return self._parse(whole)

    def _parse(self, whole: bytes) -> list[Json]:
        runs = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                run = json.loads(line)
                known = run["schema"] == SCHEMA
            except (ValueError, TypeError, KeyError):
                raise LedgerError(f"{self.path}, line {number}: not a run; repair or remove the line") from None
            if not known:
                raise LedgerError(
                    f"{self.path}, line {number}: schema {run['schema']}, this version writes {SCHEMA}; "
                    "name another --out"
                )
            runs.append(run)
        return runs
