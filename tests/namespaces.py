"""NetworkPolicies held by a real kernel: pods as network namespaces, each with its policies at its own door."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.deploy_support import Rendered
from tests.network_policies import Host, hosts, kernel_rules

STAGE = Path(__file__).with_name("namespace_stage.py")
UNSHARE = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
Pair = tuple[str, str, int, str]  # source, target, port, protocol


def skip_without_namespaces() -> None:
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("ip (iproute2) and unshare (util-linux) make network namespaces, and are not there")
    tried = subprocess.run([*UNSHARE, "ip", "rule"], check=False, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"this machine lets no user make network namespaces: {tried.stderr.strip()}")


def met(rendered: Rendered) -> dict[Pair, str]:
    """What each pod's process meets at each port of each other: `reached`, or why not."""
    everyone = hosts(rendered)
    probes = [
        (source.name, target.name, port, protocol)
        for source in everyone
        for target in everyone
        if source is not target and source.pod is not None
        for protocol, ports in (("TCP", target.tcp), ("UDP", target.udp))
        for port in ports
    ]
    address = {host.name: host.address for host in everyone}
    plan = {
        "hosts": [_document(rendered, host, everyone) for host in everyone],
        "probes": [(source, address[target], port, protocol) for source, target, port, protocol in probes],
    }
    done = subprocess.run(
        [*UNSHARE, sys.executable, str(STAGE)], input=json.dumps(plan), check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(probes, json.loads(done.stdout), strict=True))


def _document(rendered: Rendered, host: Host, everyone: list[Host]) -> dict[str, object]:
    return {**asdict(host), "pod": None, "rules": kernel_rules(rendered, host, everyone)}
