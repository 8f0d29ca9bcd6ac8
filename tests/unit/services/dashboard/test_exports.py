"""CSV that no spreadsheet takes for a formula."""

from __future__ import annotations

import codecs
import csv
import io

import pytest

from services.dashboard.exports import cell, csv_text

FORMULAS = [
    "=1+1", "+1", "-1", "@SUM(A1)", "=cmd|' /C calc'!A0", "\t=1", "\r=1", "\n=1", "  =1", "\ufeff=1", "\u200b=1",
    "＝1", "＋1", "－1", "＠x", "|calc", "%0A=1", "\x00=1",
]  # fmt: skip


@pytest.mark.parametrize("text", FORMULAS)
def test_what_begins_like_a_formula_is_text(text: str) -> None:
    found = cell(text)
    assert found.startswith("'")
    assert found[1:] == text.replace("\x00", "")


@pytest.mark.parametrize("value", [1, -1, 0.5, -2.5e-7, "a=1", "plain", "5 - 3", "é", ""])
def test_all_else_is_left_alone(value: object) -> None:
    assert cell(value) == value


def test_a_table_reads_back() -> None:
    table = [["a,b", 'say "x"\nand go', -1.5, None, True], ["=1", "x", 2, "", False]]
    kept = csv_text(["text", "=head", "n", "none", "yes"], table).encode()
    assert kept.startswith(codecs.BOM_UTF8), "Excel takes it for something else without"
    read = list(csv.reader(io.StringIO(kept.decode("utf-8-sig"))))
    assert read[0] == ["text", "'=head", "n", "none", "yes"]
    assert read[1] == ["a,b", 'say "x"\nand go', "-1.5", "", "True"]
    assert read[2] == ["'=1", "x", "2", "", "False"]
