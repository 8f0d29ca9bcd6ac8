"""Every test, in three runs of pytest side by side, as each of them often leaves a core idle.

    python -m tests.lanes [PYTEST'S OPTIONS]

What starts Ray, vLLM or a learner has a run of its own, which is shown as it goes; then comes what the others printed,
and at the end what each took, and its slowest files. Some of it comes last in the others' run and in that of the unit
tests, so that all end at about the same time. The unit tests' run yields to both, where some wait for real servers with
a limit, and to Ray's workers, which yield themselves.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

TESTS = Path(__file__).parent
UNIT, CLUSTER = TESTS / "unit", TESTS / "integration" / "cluster"
WITH_OTHERS = [CLUSTER / "test_engines.py"]
WITH_UNIT = [CLUSTER / name for name in ("test_fsdp.py", "test_ranks.py")]  # learners alone, which can yield
LOW_PRIORITY = 10  # at 19 a test of unit can wait seconds for a processor
SLOWEST = ("--durations=25", "--durations-min=5")  # shown at the end of each run, to see where the time goes
SLOWEST_FILES = 10  # many tests of a second each are in no list of the slowest tests
NO_TESTS = 5  # pytest's exit status where the options leave none of a run's


def main(options: list[str]) -> int:
    elsewhere = {UNIT, *CLUSTER.glob("test_*.py")} - set(WITH_OTHERS)
    with ExitStack() as started:
        reports = Path(started.enter_context(tempfile.TemporaryDirectory()))
        beside = [
            _start(started, reports, "others", [TESTS, *_without(sorted(elsewhere)), *options]),
            _start(started, reports, "unit", [UNIT, *WITH_UNIT, *options], niceness=LOW_PRIORITY),
        ]
        shown = [CLUSTER, *_without([*WITH_OTHERS, *WITH_UNIT]), *options]
        statuses = {subprocess.call(_pytest(reports, "cluster", shown))}
        for lane, output in beside:
            statuses.add(lane.wait())
            output.seek(0)
            sys.stdout.write(output.read())
        for report in sorted(reports.iterdir()):
            print(took(report), flush=True)
    failed = statuses - {0, NO_TESTS}
    return max(failed) if failed else min(statuses)  # NO_TESTS only where none had any


def took(report: Path) -> str:
    """A run's seconds and those of its slowest files, of what pytest wrote down as JUnit does."""
    (run,) = ElementTree.parse(report).getroot().iter("testsuite")
    files: Counter[str] = Counter()
    for test in run.iter("testcase"):
        files[test.attrib["classname"]] += float(test.attrib["time"])  # with what it set up, and what it took down
    lines = [f"{report.stem} took {float(run.attrib['time']):.0f} s; its slowest files:"]
    return "\n".join([*lines, *(f"{seconds:8.0f} s  {name}" for name, seconds in files.most_common(SLOWEST_FILES))])


def _without(paths: Sequence[Path]) -> list[str]:
    return [f"--ignore={path}" for path in paths]


def _pytest(reports: Path, name: str, arguments: Sequence[object]) -> list[str]:
    kept = ("-o", f"cache_dir=.pytest_cache/{name}", f"--junitxml={reports / name}.xml")
    return [sys.executable, "-m", "pytest", *kept, *SLOWEST, *map(str, arguments)]


def _start(
    started: ExitStack, reports: Path, name: str, arguments: Sequence[object], niceness: int = 0
) -> tuple[subprocess.Popen[bytes], IO[str]]:
    output = started.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115  # the stack closes it
    command = ["nice", "-n", str(niceness), *_pytest(reports, name, arguments)]
    lane = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    started.callback(lane.wait)
    started.callback(lane.kill)
    return lane, output


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
