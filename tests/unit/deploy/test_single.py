"""One GPU machine: what systemd and Docker are told of `equipoise up`."""

from __future__ import annotations

import configparser
import inspect
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from orchestrator.launch.worker import Worker
from services.settings import DEFAULT_PORT
from tests.deploy_support import DEPLOY

SINGLE = DEPLOY / "single"
GRACE_S = float(inspect.signature(Worker).parameters["grace_s"].default)


@pytest.fixture
def unit() -> configparser.ConfigParser:
    found = configparser.ConfigParser(interpolation=None)
    found.optionxform = str  # type: ignore[assignment, method-assign]
    found.read(SINGLE / "equipoise.service")
    return found


@pytest.fixture
def service() -> dict[str, Any]:
    found = yaml.safe_load((SINGLE / "compose.yaml").read_text())
    (service,) = found["services"].values()
    return dict(service)


def test_systemd_lets_drivers_write_their_checkpoints(unit: configparser.ConfigParser) -> None:
    service = unit["Service"]
    assert service["ExecStart"].split()[0].endswith("/.venv/bin/equipoise")
    assert service["ExecStart"].split()[1:] == ["up"]
    assert service["KillMode"] == "mixed"  # the signal is for `up`, which asks its drivers
    assert float(service["TimeoutStopSec"]) >= GRACE_S + 20
    assert service["OOMPolicy"] == "continue"  # or one driver's end is everybody's
    assert int(service["LimitNOFILE"]) >= 65536
    environment = dict(item.split("=", 1) for item in service["Environment"].split())
    home = f"/var/lib/{service['StateDirectory']}"
    assert environment["HOME"] == home
    assert environment["EQUIPOISE_STATE_DIR"].startswith(f"{home}/")
    assert service["User"] != "root"


def test_systemd_itself_takes_the_unit(unit: configparser.ConfigParser) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze reads units, and is not there")
    command = ["systemd-analyze", "verify", "--recursive-errors=no", str(SINGLE / "equipoise.service")]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    ours = [line for line in said.splitlines() if "equipoise.service" in line]
    assert not [line for line in ours if "not executable" not in line and "User" not in line], said
    assert unit.sections() == ["Unit", "Service", "Install"]


def test_docker_gives_what_a_job_needs_and_waits_for_it(service: dict[str, Any]) -> None:
    assert service["command"] == ["equipoise", "up", "--host", "0.0.0.0"]
    assert float(service["stop_grace_period"].removesuffix("s")) >= GRACE_S + 20
    assert float(service["shm_size"].removesuffix("gb")) >= 8
    assert service["init"] is True
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert service["ulimits"]["nofile"] >= 65536


def test_docker_keeps_the_state_where_the_image_s_user_may_write(service: dict[str, Any]) -> None:
    (volume,) = service["volumes"]
    _, _, home = volume.partition(":")
    text = (DEPLOY / "Dockerfile").read_text()
    assert f"useradd --uid 10001 --gid 10001 --create-home {home.rpartition('/')[2]}" in text
    assert service["environment"]["EQUIPOISE_STATE_DIR"].startswith(f"{home}/")
    assert f"-t {service['image']} ." in (DEPLOY / "README.md").read_text()


def test_docker_opens_it_to_this_machine_alone(service: dict[str, Any]) -> None:
    assert service["ports"] == [f"127.0.0.1:{DEFAULT_PORT}:{DEFAULT_PORT}"]
    assert service["cap_drop"] == ["ALL"]
    assert service["environment"]["EQUIPOISE_DASHBOARD_HOSTS"] == "localhost,127.0.0.1"
