"""Figures of the fault tests: each test's own, with when and where they were measured, and of tests that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests import fault_figures
from tests.fault_figures import FIGURES_VARIABLE, tell

PROJECT = Path(__file__).parent.parent.parent
LOAD_S = 2.0  # of a toy driver, which has no model
BOUNDS = {  # of the reliability table, by row and figure
    ("T1", "ready_s_max"): 10.0,
    ("T2", "takeover_s_max"): 1.0 + LOAD_S,  # the lease, and what is loaded
    ("T6", "takeover_s_max"): 2.0,
    ("T8", "detect_s_max"): 15.0,
    ("T22", "api_503_s_max"): 3.0,
    ("T30", "busy_s_after_cancel_max"): 30.0,
}
RESULTS = PROJECT / "tests" / "benchmarks" / "results" / "faults.json"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fault_figures, "_told", {})
    path = tmp_path / "faults.json"
    monkeypatch.setenv(FIGURES_VARIABLE, str(path))
    return path


def test_a_test_replaces_what_it_told_in_an_earlier_run_and_nothing_else(
    file: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    before = {"soak": {"jobs": 1}, "tests": {"T10": {"other": {"kills": 1}}, "T2": {"other": {"kills": 2}}}}
    file.write_text(json.dumps(before))
    me = request.node.nodeid
    tell("T2", kills=3, an_old_name=1)
    monkeypatch.setattr(fault_figures, "_told", {})  # another run
    tell("T2", kills=4)
    tell("T2", lost=0)
    after = json.loads(file.read_text())
    measured = after["tests"]["T2"][me].pop("measured")
    assert after["tests"]["T2"] == {"other": {"kills": 2}, me: {"kills": 4, "lost": 0}}
    assert (after["soak"], after["tests"]["T10"]) == (before["soak"], before["tests"]["T10"])
    assert list(after["tests"]) == ["T2", "T10"]
    assert measured.keys() == {"date", "processor", "cores", "EQUIPOISE_FAULT_REPEATS"}


def test_nothing_is_kept_where_nobody_asks(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FIGURES_VARIABLE)
    tell("T2", kills=3)
    assert not file.exists()


def test_what_is_kept_is_of_tests_that_there_are_and_says_when_it_was_measured() -> None:
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert kept["soak"]["machine"]["date"]
    for row, of_row in kept["tests"].items():
        for test, figures in of_row.items():
            file, _, function = test.partition("::")
            text = (PROJECT / file).read_text(encoding="utf-8")
            assert f"def {function.partition('[')[0]}(" in text, (row, test)
            assert re.search(rf'\btell\(\s*"{row}"', text), (row, test)
            assert figures["measured"].keys() == {"date", "processor", "cores", "EQUIPOISE_FAULT_REPEATS"}, test


def test_what_is_kept_is_within_the_bounds_of_the_reliability_table() -> None:
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))["tests"]
    for (row, name), most in BOUNDS.items():
        found = [figures[name] for figures in kept[row].values() if name in figures]
        assert found, (row, name)
        assert max(found) <= most, (row, name)
    assert [figures["ttl_s"] for figures in kept["T2"].values() if "takeover_s_max" in figures] == [1.0]
