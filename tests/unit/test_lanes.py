"""The three runs of all tests: what is said of each at its end, and what they must not hold against each other."""

from __future__ import annotations

from pathlib import Path

from hypothesis import settings

from tests.lanes import CLUSTER, SLOWEST_FILES, WITH_OTHERS, WITH_UNIT, took


def test_a_runs_seconds_and_its_slowest_files_are_told(tmp_path: Path) -> None:
    """Many short tests make the slowest file, and no list of the slowest tests has them."""
    tests = [("tests.many", 2.0)] * 20 + [("tests.one", 30.0)] + [(f"tests.t{i}", 1.0) for i in range(20)]
    cases = "".join(f'<testcase classname="{name}" name="x" time="{seconds}"/>' for name, seconds in tests)
    report = tmp_path / "others.xml"
    report.write_text(f'<testsuites><testsuite time="91.4">{cases}</testsuite></testsuites>')
    first, *files = took(report).splitlines()
    assert first == "others took 91 s; its slowest files:"
    assert [line.split() for line in files[:2]] == [["40", "s", "tests.many"], ["30", "s", "tests.one"]]
    assert len(files) == SLOWEST_FILES


def test_what_the_runs_share_out_is_there() -> None:
    shared = [*WITH_OTHERS, *WITH_UNIT]
    assert [path for path in shared if not (path.is_file() and path.parent == CLUSTER)] == []
    assert len(set(shared)) == len(shared)


def test_no_example_has_a_deadline() -> None:
    assert settings().deadline is None
