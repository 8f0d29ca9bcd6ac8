"""Failpoints: every name is a place in the code, and every mistake in the variable is told."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator import failpoints
from orchestrator.failpoints import POINTS, FailpointError, Failpoints, reach

ORCHESTRATOR = Path(failpoints.__file__).parent


def test_every_name_is_a_place_and_every_place_has_a_name() -> None:
    reached = [
        name
        for path in ORCHESTRATOR.rglob("*.py")
        for name in re.findall(r"\breach\(\"(\w+)\"\)", path.read_text(encoding="utf-8"))
    ]
    assert set(reached) == set(POINTS)  # both kinds of job come by some of them


def test_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_points", Failpoints(""))
    for name in POINTS:
        reach(name)


def test_acts_once_at_the_time_that_was_said() -> None:
    points = Failpoints("before_commit=raise@2, after_commit=raise")
    points.reach("before_commit")
    with pytest.raises(FailpointError, match="before_commit"):
        points.reach("before_commit")
    points.reach("before_commit")
    with pytest.raises(FailpointError, match="after_commit"):
        points.reach("after_commit")


def test_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)
    Failpoints("after_sync=sleep:0.5").reach("after_sync")
    assert naps == [0.5]


@pytest.mark.parametrize(("act", "number"), [("kill", signal.SIGKILL), ("stop", signal.SIGSTOP)])
def test_signals_itself(monkeypatch: pytest.MonkeyPatch, act: str, number: int) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *words: sent.append(words))
    Failpoints(f"after_claim={act}").reach("after_claim")
    assert sent == [(os.getpid(), number)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no_such_place=kill", "no failpoint 'no_such_place'; there are after_claim, "),
        ("before_commit", "'before_commit' is not NAME=kill"),
        ("before_commit=explode", "is not NAME=kill"),
        ("before_commit=kill@0", "is not NAME=kill"),
        ("before_commit=sleep", "is not NAME=kill"),
        ("before_commit=kill,,", "'' is not NAME=kill"),
    ],
)
def test_a_mistake_is_told(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Failpoints(text)


def test_a_process_does_not_start_with_a_mistake() -> None:
    environment = {**os.environ, failpoints.VARIABLE: "nonsense"}
    command = [sys.executable, "-c", "import orchestrator.failpoints"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert ended.stderr.splitlines()[-1].startswith("ValueError: EQUIPOISE_FAILPOINTS: 'nonsense' is not")
