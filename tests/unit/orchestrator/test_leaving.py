"""A machine that goes down tells its drivers, and nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.launch.launchers import driver_command
from orchestrator.leaving import tell_drivers

_WAITS = "import signal; print(flush=True); signal.pause()"


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A driver as it is started, whose code only waits; and a process that has the same words elsewhere."""
    (tmp_path / "orchestrator").mkdir()
    (tmp_path / "orchestrator" / "__init__.py").touch()
    (tmp_path / "orchestrator" / "driver.py").write_text(_WAITS)
    driver = driver_command("job-1", "ann", tmp_path)
    commands = [driver, [sys.executable, "-c", _WAITS, "-m", "orchestrator.driver"]]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    started = [subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE) for command in commands]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
    yield started
    for process in started:
        process.kill()
        process.communicate()


def test_its_drivers_hear_of_it_and_nobody_else(processes: list[subprocess.Popen[bytes]]) -> None:
    driver, other = processes
    assert tell_drivers(psutil.Process().children()) == [driver.pid]
    assert driver.wait(20) == -signal.SIGTERM
    assert other.poll() is None


def test_a_process_that_is_gone_is_passed_over(processes: list[subprocess.Popen[bytes]]) -> None:
    driver, _ = processes
    found = psutil.Process().children()
    driver.kill()
    driver.wait(20)
    assert tell_drivers(found) == []
