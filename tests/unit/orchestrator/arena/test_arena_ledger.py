"""runs.jsonl: whole lines or none, one writer, and a full disk that takes nothing away."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.arena.ledger import FILE, Ledger, LedgerError

RUN = {"schema": 1, "task": "sums3", "entry": "gdpo/fixed"}


def test_what_was_added_is_read_again(tmp_path: Path) -> None:
    with Ledger(tmp_path / "new") as ledger:
        ledger.add(RUN | {"seed": 0})
        ledger.add(RUN | {"seed": 1})
    with Ledger(tmp_path / "new") as again:
        assert [run["seed"] for run in again.runs] == [0, 1]


def test_a_line_that_a_kill_cut_short_is_dropped_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_text(json.dumps(RUN) + "\n" + '{"schema": 1, "ta')
    assert len(Ledger.peek(tmp_path).runs) == 1
    assert path.read_text().endswith('"ta')  # whoever only looks changes nothing
    with Ledger(tmp_path) as ledger:
        ledger.add(RUN | {"seed": 7})
    assert [json.loads(line).get("seed") for line in path.read_text().splitlines()] == [None, 7]


@pytest.mark.parametrize(
    ("line", "said"),
    [("{]", "line 2: not a run"), ("[]", "line 2: not a run"), ('{"task": "x"}', "line 2: not a run"),
     ('{"schema": 2}', "line 2: schema 2, this version writes 1")],
)  # fmt: skip
def test_a_line_that_is_no_run_is_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / FILE).write_text(f"{json.dumps(RUN)}\n{line}\n")
    with pytest.raises(LedgerError, match=said), Ledger(tmp_path):
        pass
    with pytest.raises(LedgerError, match=said):
        Ledger.peek(tmp_path)


def test_one_arena_at_a_time(tmp_path: Path) -> None:
    with Ledger(tmp_path) as first:
        with pytest.raises(LedgerError, match="another arena writes"), Ledger(tmp_path):
            pass
        first.add(RUN)
        assert len(Ledger.peek(tmp_path).runs) == 1


class Full:
    """A file on a disk with room for `room` bytes more."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written: int = self.file.write(data[: self.room])
        self.room -= written
        return written


def test_a_full_disk_says_so_and_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.add(RUN | {"seed": 0})
        disk = ledger._file = Full(ledger._file, room=9)
        with pytest.raises(LedgerError, match=r"No space left on device; what was finished stays, and --resume"):
            ledger.add(RUN | {"seed": 1})
        disk.room = 1000
        ledger.add(RUN | {"seed": 2})
    with Ledger(tmp_path) as again:
        assert [run["seed"] for run in again.runs] == [0, 2]


def test_a_directory_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match=r"can't write .*file"), Ledger(tmp_path / "file"):
        pass
