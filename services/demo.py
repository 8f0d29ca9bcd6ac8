"""`equipoise demo`: a server for the length of one small job, or the one that runs already."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from orchestrator.actors.threads import WAITING
from orchestrator.errors import StoreUnavailable
from services.client import Client
from services.client.flows import FINAL
from services.follow import follow
from services.local import AlreadyRunning, LocalServer
from services.processes import StopSignals
from services.server import ServerError
from services.settings import Listen, read_credentials
from services.terminal import Document, fail, output, say

_MARK = {"made_by": "equipoise demo"}


def run_demo(state_dir: Path, *, device: str | None, steps: int | None, weighting: str | None) -> int:
    """Returns the exit code: 0 succeeded, 1 failed, 130 interrupted."""
    document = demo_spec(device=device, steps=steps, weighting=weighting)
    try:
        _make_policy(state_dir, seed=document.get("seed", 0))
    except KeyboardInterrupt:
        say("stopped; `equipoise demo` starts again")
        return 130
    server = LocalServer(state_dir, Listen(port=0))
    signals = StopSignals()
    signals.on_second = server.kill
    code = 130
    with signals.handled(interrupt=True):
        try:
            try:
                server.start()
            except AlreadyRunning:
                return _on_running_server(state_dir, document)
            except (ServerError, StoreUnavailable, ValueError, OSError) as error:
                fail(str(error))
            with Client(server.credentials.url, server.credentials.key) as client:
                code = _run(client, document, state_dir)
        except KeyboardInterrupt:
            say("stopping: the job writes a checkpoint first; Ctrl-C again to stop at once")
        finally:
            server.stop()
    if code == 130:
        say("stopped; `equipoise demo` goes on where it was")
    return code


def demo_spec(*, device: str | None, steps: int | None, weighting: str | None) -> dict[str, Any]:
    """The packaged example with what the options change."""
    text = resources.files("deploy").joinpath("jobs/quickstart.yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    document["metadata"] = {**document.get("metadata", {}), **_MARK}
    if device is not None:
        document.setdefault("resources", {})["device"] = str(device)
    if steps is not None:
        document["steps"] = steps
    if weighting is not None:
        document["weighting"] = {"name": str(weighting)}
    return document


def _make_policy(state_dir: Path, *, seed: int) -> None:
    """Where the driver looks for it: trained here, in sight, with a progress bar; at once when it was made before.

    A process of its own, as this one stays without torch.
    """
    command = [sys.executable, "-m", "policies.quickstart", "--out", str(state_dir / "policies"), "--seed", str(seed)]
    code = subprocess.run(command, env=WAITING | os.environ, check=False).returncode
    if code != 0:
        fail("the quickstart policy could not be made; the lines above say why")


def _on_running_server(state_dir: Path, document: Document) -> int:
    credentials = read_credentials(state_dir)
    if credentials is None:
        fail(f"another Equipoise is just starting on {state_dir}: try again in a moment")
    say(f"using the server that runs at {credentials.url}")
    with Client(credentials.url, credentials.key, verify=credentials.ca_file) as client:
        try:
            return _run(client, document, state_dir)
        except KeyboardInterrupt:
            say("detached, the job goes on; `equipoise demo` shows it again")
            return 130


def _run(client: Client, document: Document, state_dir: Path) -> int:
    job_id = _unfinished(client, document) or client.submit(document)["id"]
    console = output()
    job = follow(client, job_id, console)
    _print_end(job, state_dir, console)
    return 0 if job["status"] == "succeeded" else 1


def _unfinished(client: Client, document: Document) -> str | None:
    """A demo that was stopped before its end goes on, as it was started."""
    for entry in client.iter_jobs():
        if entry["status"] in FINAL:
            continue
        job = client.job(entry["id"])
        if job["spec"]["metadata"].get("made_by") != _MARK["made_by"]:
            continue
        say(f"going on with the unfinished demo {job['id']} at step {job['step']}")
        if job["spec"] != client.plan(document)["spec"]:
            say(f"it keeps the options it was started with; for a new one: equipoise cancel {job['id']}")
        if job["status"] == "paused":
            client.resume(job["id"])
        return str(job["id"])
    return None


def _print_end(job: Document, state_dir: Path, console: Console) -> None:
    report = state_dir / "jobs" / job["id"] / "report.html"
    if report.exists():
        console.print(f"report: {report}", markup=False)
    if job["status"] != "succeeded":
        say(f"its log: {report.parent / 'driver.log'}")
