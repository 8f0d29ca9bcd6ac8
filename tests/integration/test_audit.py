"""Packages of the locks against the public list of vulnerabilities, by pip-audit, where that can be asked."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.mark.parametrize("lock", ["control", "cpu", "gpu"])
def test_no_package_has_a_known_vulnerability(lock: str) -> None:
    done = subprocess.run(
        ["make", "--silent", "audit", f"LOCKS={lock}"], cwd=PROJECT, check=False, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    if done.returncode and "known vulnerabilit" not in said:
        reasons = [line for line in said.splitlines() if "Error" in line and not line.startswith("make")]
        pytest.skip(f"the list can't be asked: {reasons[-1] if reasons else said}")
    assert done.returncode == 0, said
