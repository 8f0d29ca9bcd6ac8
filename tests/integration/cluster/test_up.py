"""A person's day: `equipoise up`, a job submitted, steered, interrupted, resumed, paused and cancelled by the CLI.

What only waits asks by a client: a command each half second would take a core from the job that is waited for.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.client import Client
from tests.cli_forks import LIMIT_S, Commands, environment_of
from tests.support import make_policy, small_spec


class Machine:
    """A state directory with `equipoise up` on it."""

    def __init__(self, state_dir: Path, commands: Commands) -> None:
        self.state_dir, self.commands = state_dir, commands
        self.state_dir.mkdir()
        self.server: subprocess.Popen[str] | None = None

    def up(self) -> None:
        """In somebody's project, which has a module of one of our packages' names."""
        project = self.state_dir.parent / "project"
        project.mkdir(exist_ok=True)
        (project / "rewards.py").touch()
        self.server = subprocess.Popen(
            [sys.executable, "-P", "-m", "services.cli", "up", "--port", "0"],
            cwd=project, env=environment_of(self.state_dir, {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + LIMIT_S
        while not self.answers():
            assert self.server.poll() is None, self.server.communicate()[0]
            assert time.monotonic() < deadline, "`equipoise up` does not answer"
            time.sleep(0.3)

    def answers(self) -> bool:
        try:
            with self.client() as client:
                return client.ready()
        except ValueError:  # it has not yet left its address
            return False

    def client(self) -> Client:
        return Client.from_state(self.state_dir, {})

    def interrupt(self) -> str:
        """Ctrl-C; what it printed."""
        assert self.server is not None
        self.server.send_signal(signal.SIGINT)
        output, _ = self.server.communicate(timeout=90)
        return output

    def cli(self, *words: str) -> str:
        """What a command that succeeds prints."""
        code, output, errors = self.commands.run(self.state_dir, *words)
        assert code == 0, errors
        return output

    def job(self) -> Any:
        with self.client() as client:
            return next(client.iter_jobs())

    def weights(self, objective: str) -> dict[int, float]:
        """An objective's applied weight by step."""
        with self.client() as client:
            job_id, after, more = next(client.iter_jobs())["id"], 0, True
            weights: dict[int, float] = {}
            while more:
                page = client.metrics(job_id, after=after)
                weights |= {step["step"]: step["weights"]["applied"][objective] for step in page["data"]}
                after, more = max(weights), page["has_more"]
            return weights

    def checkpoint_steps(self) -> list[int]:
        with self.client() as client:
            return sorted(kept["step"] for kept in client.checkpoints(next(client.iter_jobs())["id"])["data"])

    def wait_for(self, reached: Callable[[Any], bool], *, timeout_s: float = 600) -> Any:
        deadline = time.monotonic() + timeout_s
        while not reached(job := self.job()):
            assert job["status"] != "failed", job["reason"]
            assert time.monotonic() < deadline, job
            time.sleep(0.5)
        return job


@pytest.fixture
def machine(tmp_path: Path, commands: Commands) -> Iterator[Machine]:
    machine = Machine(tmp_path / "state", commands)
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
    machine.cli("submit", str(file))
    machine.wait_for(lambda job: job["step"] >= 1)

    steered = machine.cli("steer", "last", "conciseness=0.8", "--mode", "manual")
    effective = int(re.search(r"step (\d+)", steered)[1])
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

    machine.cli("pause", "last")
    paused = machine.wait_for(lambda job: job["status"] == "paused")
    assert machine.checkpoint_steps()[-1] == paused["step"]
    assert "conciseness" in machine.cli("front", "last")
    machine.cli("export", "last", str(paused["step"]), str(tmp_path / "chosen"))
    assert (tmp_path / "chosen" / "config.json").is_file()
    machine.cli("cancel", "last")
    assert json.loads(machine.cli("show", "last", "--json"))["status"] == "cancelled"
    machine.interrupt()


def json_events(machine: Machine) -> list[Any]:
    return [json.loads(line) for line in machine.cli("events", "last", "--json").splitlines()]
