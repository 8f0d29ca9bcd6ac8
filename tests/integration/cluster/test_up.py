"""A person's day: `equipoise up`, a job submitted, steered, interrupted, resumed, paused and cancelled by the CLI."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from services.terminal import connect_client
from tests.support import make_policy, small_spec

Cli = Callable[..., subprocess.CompletedProcess[str]]


class Machine:
    """A state directory with `equipoise up` on it."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        kept = {key: value for key, value in os.environ.items() if not key.startswith("EQUIPOISE_")}
        self.environment = kept | {"EQUIPOISE_STATE_DIR": str(state_dir), "COLUMNS": "160"}
        self.server: subprocess.Popen[str] | None = None

    def up(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "up", "--port", "0"],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while self.cli("jobs").returncode != 0:
            assert time.monotonic() < deadline, "`equipoise up` does not answer"
            time.sleep(0.3)

    def interrupt(self) -> str:
        """Ctrl-C; what it printed."""
        assert self.server is not None
        self.server.send_signal(signal.SIGINT)
        output, _ = self.server.communicate(timeout=90)
        return output

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "services.cli", *words]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)

    def job(self) -> dict:
        shown = self.cli("show", "last", "--json")
        assert shown.returncode == 0, shown.stderr
        return json.loads(shown.stdout)

    def weights(self, objective: str) -> dict[int, float]:
        """An objective's applied weight by step."""
        with connect_client(self.state_dir) as client:
            job_id, after, more = next(client.iter_jobs())["id"], 0, True
            weights: dict[int, float] = {}
            while more:
                page = client.metrics(job_id, after=after)
                weights |= {step["step"]: step["weights"]["applied"][objective] for step in page["data"]}
                after, more = max(weights), page["has_more"]
            return weights

    def checkpoint_steps(self) -> list[int]:
        with connect_client(self.state_dir) as client:
            return sorted(kept["step"] for kept in client.checkpoints(next(client.iter_jobs())["id"])["data"])

    def wait_for(self, reached: Callable[[dict], bool], *, timeout_s: float = 180) -> dict:
        deadline = time.monotonic() + timeout_s
        while not reached(job := self.job()):
            assert job["status"] != "failed", job["reason"]
            assert time.monotonic() < deadline, job
            time.sleep(0.5)
        return job


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "state")
    yield machine
    if machine.server is not None and machine.server.poll() is None:
        machine.server.send_signal(signal.SIGINT)
        machine.server.send_signal(signal.SIGINT)  # the second one stops it at once
        machine.server.communicate(timeout=60)


def test_a_job_from_submit_to_cancel_over_a_restart(machine: Machine, tmp_path: Path) -> None:
    spec = small_spec(make_policy(tmp_path / "policy"), steps=5000).model_dump(mode="json")
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(spec))
    machine.up()
    assert machine.cli("submit", str(file)).returncode == 0
    machine.wait_for(lambda job: job["step"] >= 1)

    steered = machine.cli("steer", "last", "conciseness=0.8", "--mode", "manual")
    assert steered.returncode == 0, steered.stderr
    effective = int(re.search(r"step (\d+)", steered.stdout)[1])
    machine.wait_for(lambda job: job["step"] > effective)
    applied = [event for event in json_events(machine) if event["type"] == "steering.applied"]
    assert applied[0]["data"]["step"] == effective
    assert applied[0]["data"]["requested"]["weights"]["conciseness"] == pytest.approx(0.8)

    weights = machine.weights("conciseness")
    assert weights[effective] == pytest.approx(0.8)
    assert abs(weights[effective - 1] - 0.8) > 1e-3  # never earlier than the answer said

    interrupted_at = machine.job()["step"]
    machine.interrupt()
    machine.up()
    machine.wait_for(lambda job: job["status"] == "running" and job["step"] > max(interrupted_at, effective) + 3)
    events = json_events(machine)
    resumed = [event["data"] for event in events if event["type"] == "job.resumed"]
    assert resumed[-1]["rerun"] == 0  # Ctrl-C writes a checkpoint first
    weights = machine.weights("conciseness")
    assert weights[max(weights)] == pytest.approx(0.8)  # the steer outlives it

    assert machine.cli("pause", "last").returncode == 0
    paused = machine.wait_for(lambda job: job["status"] == "paused", timeout_s=60)
    assert machine.checkpoint_steps()[-1] == paused["step"]
    assert "conciseness" in machine.cli("front", "last").stdout
    exported = machine.cli("export", "last", str(machine.job()["step"]), str(tmp_path / "chosen"))
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "chosen" / "config.json").is_file()
    assert machine.cli("cancel", "last").returncode == 0
    assert machine.job()["status"] == "cancelled"
    machine.interrupt()


def json_events(machine: Machine) -> list[dict]:
    shown = machine.cli("events", "last", "--json")
    assert shown.returncode == 0, shown.stderr
    return [json.loads(line) for line in shown.stdout.splitlines()]
