"""Who may reach whom, by what the NetworkPolicies say together: every pair of pods and every port.

This is the rule of the API (a pair may talk if the one may go out and the other takes it in), worked out on
the rendered objects. That a cluster's plug-in enforces it is not shown here: that takes a cluster.
"""

from __future__ import annotations

import copy
import ipaddress
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from tests.deploy_support import Object, Pod, Rendered, selects

PORTS = {"redis": 6379, "serve": 8740, "ray-head": 8265, "ray-gcs": 6379, "ray-machine": 10002}
OUTSIDE = {
    "ingress": Pod(name="ingress", labels={"app": "nginx"}, spec={"namespace": "ingress-nginx"}),
    "prometheus": Pod(name="prometheus", labels={"app": "prometheus"}, spec={"namespace": "monitoring"}),
    "operator": Pod(name="operator", labels={"app": "kuberay"}, spec={"namespace": "kuberay-system"}),
    "stranger": Pod(name="stranger", labels={"app.kubernetes.io/component": "serve"}, spec={"namespace": "default"}),
}


def _takes(peer: Object, pod: Pod | None, address: str | None) -> bool:
    if "ipBlock" in peer:
        if address is None:
            return False  # of a pod no address is known here, and none lies outside of the cluster's own networks
        block = peer["ipBlock"]
        inside = ipaddress.ip_address(address)
        return inside in ipaddress.ip_network(block["cidr"]) and not any(
            inside in ipaddress.ip_network(part) for part in block.get("except", [])
        )
    if pod is None:
        return False
    namespace = pod.spec.get("namespace", "equipoise")
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": namespace}):
            return False
    elif namespace != "equipoise":
        return False
    return selects(peer.get("podSelector", {}), pod.labels)


def _open(rendered: Rendered, direction: str, at: Pod, peer: Pod | None, address: str | None, port: int) -> bool:
    if at.spec.get("namespace", "equipoise") != "equipoise":
        return True  # what other namespaces forbid is theirs
    policies = [
        policy["spec"] for policy in rendered.of("NetworkPolicy") if selects(policy["spec"]["podSelector"], at.labels)
    ]
    if not any(direction.capitalize() in spec["policyTypes"] for spec in policies):
        return True
    side = "from" if direction == "ingress" else "to"
    for spec in policies:
        for item in spec.get(direction, []) if direction.capitalize() in spec["policyTypes"] else []:
            fits = not item.get("ports") or any(found["port"] == port for found in item["ports"])
            if fits and any(_takes(found, peer, address) for found in item[side]):
                return True
    return False


def may(rendered: Rendered, source: Pod, target: Pod, port: int) -> bool:
    return _open(rendered, "egress", source, target, None, port) and _open(
        rendered, "ingress", target, source, None, port
    )


def pairs(rendered: Rendered) -> set[tuple[str, str, int]]:
    pods = {pod.name: pod for pod in rendered.pods} | OUTSIDE
    targets = [name for name in pods if name not in OUTSIDE]
    return {
        (source, target, port)
        for source, target, port in product(pods, targets, sorted(set(PORTS.values())))
        if source != target and may(rendered, pods[source], pods[target], port)
    }


RAY = ("ray-headgroup", "ray-learner", "ray-rollout", "ray-reward")
AMONG_RAY = {(one, other, port) for one, other, port in product(RAY, RAY, set(PORTS.values())) if one != other}
FIXED = {
    *((source, "redis", 6379) for source in ("serve", "worker", "scripts", *RAY)),
    ("ingress", "serve", 8740),
    ("prometheus", "serve", 8740),
    ("worker", "ray-headgroup", 8265),
    ("operator", "ray-headgroup", 8265),
}


@pytest.mark.parametrize(("overlay", "more"), [("kind", AMONG_RAY), ("gpu", AMONG_RAY), ("kind-ray-job", set())])
def test_the_matrix(overlay: str, more: set[tuple[str, str, int]], rendered: Callable[[str], list[Object]]) -> None:
    """With a cluster for each job, its machines among each other are KubeRay's policy, which is made with it."""
    assert pairs(Rendered(rendered(overlay))) == FIXED | more


@pytest.mark.parametrize(
    ("source", "address", "port", "reaches"),
    [
        ("serve", "93.184.216.34", 443, True),
        ("worker", "93.184.216.34", 443, True),
        ("ray-reward", "93.184.216.34", 443, True),
        ("ray-reward", "93.184.216.34", 80, False),
        ("ray-reward", "169.254.169.254", 443, False),  # the cloud's metadata service
        ("ray-reward", "169.254.169.254", 80, False),
        ("serve", "10.96.0.1", 443, False),  # the API server
        ("worker", "10.96.0.1", 443, False),
        ("ray-learner", "10.96.0.1", 443, False),
        ("ray-headgroup", "10.96.0.1", 443, True),  # the autoscaler
        ("redis", "93.184.216.34", 443, False),
        ("scripts", "93.184.216.34", 443, False),
    ],
)
def test_what_lies_outside(
    source: str, address: str, port: int, reaches: bool, rendered: Callable[[str], list[Object]]
) -> None:
    found = Rendered(rendered("gpu"))
    assert _open(found, "egress", found.pod(source), None, address, port) is reaches


def test_a_worker_that_makes_rayjobs_reaches_the_api_server(rendered: Callable[[str], list[Object]]) -> None:
    found = Rendered(rendered("kind-ray-job"))
    assert _open(found, "egress", found.pod("worker"), None, "10.96.0.1", 443)
    assert not _open(found, "egress", found.pod("serve"), None, "10.96.0.1", 443)


@pytest.mark.parametrize("name", ["default-deny", "redis", "to-redis", "serve", "ray-head", "worker", "ray"])
def test_without_one_of_them_the_matrix_is_another(name: str, rendered: Callable[[str], list[Object]]) -> None:
    objects: list[Any] = copy.deepcopy(rendered("kind"))
    found = Rendered([item for item in objects if item["metadata"]["name"] != name or item["kind"] != "NetworkPolicy"])
    assert pairs(found) != FIXED | AMONG_RAY
