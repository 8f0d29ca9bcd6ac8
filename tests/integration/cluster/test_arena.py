"""The arena for real: the smoke preset's first seed with fewer steps, killed in the middle and resumed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.arena.ledger import FILE, Ledger

PROJECT = Path(__file__).parents[3]
STEPS = 5  # to the first evaluation after the base's
LIMIT_S = 600  # for what a busy machine takes a minute or two; only what hangs takes it
CLOCKED = {"started", "seconds", "step_seconds"}  # what takes long, takes as long as it takes


@pytest.fixture
def state(tmp_path: Path, quickstart_policy: Path) -> Path:
    shutil.copytree(quickstart_policy, tmp_path / "state" / "policies" / quickstart_policy.name)
    return tmp_path / "state"


@pytest.fixture
def started(state: Path) -> Iterator[subprocess.Popen[str]]:
    process = start(state)
    yield process
    process.kill()
    process.communicate()


def start(state: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "services.cli", "--state-dir", str(state), "arena", "--preset", "smoke"]
    return subprocess.Popen(
        [*command, "--seeds", "1", "--steps", str(STEPS), "--workers", "1", "--out", str(state / "out"), *words],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "COLUMNS": "160"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_runs(process: subprocess.Popen[str], out: Path, count: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    while len(Ledger.peek(out).runs) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, (out / "worker-0.log").read_text()
        time.sleep(0.2)


def figures(run: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in run.items() if key not in CLOCKED}


def test_killed_and_resumed_it_makes_every_run_once_and_warm_runs_are_those_of_a_new_process(
    started: subprocess.Popen[str], state: Path, gone_in_the_end: dict[psutil.Process, str]
) -> None:
    out = state / "out"
    wait_for_runs(started, out, 2)
    workers = psutil.Process(started.pid).children(recursive=True)
    assert workers
    started.kill()
    started.communicate()
    gone_in_the_end.update(dict.fromkeys(workers, "of an arena that was killed"))

    first, warm = Ledger.peek(out).runs[:2]
    (out / FILE).write_text(json.dumps(first) + "\n" + json.dumps(warm)[:500])  # as if killed while it wrote the second
    refused = start(state)
    assert "has 1 runs already (1 done); --resume makes the 2 of yours that are left" in refused.communicate()[1]
    assert refused.returncode == 2

    resumed = start(state, "--resume")
    _, told = resumed.communicate(timeout=LIMIT_S)
    assert resumed.returncode == 0, told
    runs = Ledger.peek(out).runs
    assert [run["entry"] for run in runs] == ["gdpo/fixed", "grpo/static(4,1,1)", "gdpo/gradient"]
    assert figures(runs[1]) == figures(warm)  # made by a new process, after nothing
    for run in runs:
        check(run)
    assert not list(out.glob("scratch-*"))


def check(run: dict[str, Any]) -> None:
    """A whole record, whose parts fit together."""
    names = ["accuracy", "conciseness", "clarity"]
    assert (run["status"], run["reason"], run["warnings"]) == ("done", None, [])
    assert [point["step"] for point in run["validation"]] == [0, STEPS]
    volumes = [point["hypervolume"] for point in run["validation"]]
    assert volumes == sorted(volumes)
    assert volumes[-1] > 0
    tested = {point["step"]: point for point in run["test"]}
    assert {0, STEPS, run["chosen_step"]} <= set(tested)
    assert all(list(point["objectives"]) == list(point["stderr"]) == names for point in tested.values())
    assert len(run["step_seconds"]) == len(run["weights"]) == len(run["train_rewards"]) == STEPS
    assert all(sum(weights_K) == pytest.approx(1.0) for weights_K in run["weights"])
    assert sum(run["step_seconds"]) < run["seconds"]["total"]
    is_static = run["role"] == "static"
    assert (run["weights"][0] == run["weights"][-1] == pytest.approx(list(run["preference"].values()))) == is_static
