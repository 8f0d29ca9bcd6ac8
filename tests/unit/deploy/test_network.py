"""Who may reach whom, by what the NetworkPolicies say together: every pair of pods and every port.

Worked out on the rendered objects; tests/integration/test_network_namespaces.py has real processes try.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.deploy_support import Object, Pod, Rendered, render
from tests.network_policies import PORTS, is_open, pairs

RAY = ("ray-headgroup", "ray-learner", "ray-rollout", "ray-reward")
AMONG_RAY = {(one, other, port) for one, other, port in product(RAY, RAY, set(PORTS.values())) if one != other}
MINIO = Pod(name="minio", labels={"app": "minio"}, spec={"namespace": "minio"})
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


def test_a_gateway_takes_the_place_of_the_ingress_controller(rendered: Callable[[str], list[Object]]) -> None:
    by_gateway = FIXED - {("ingress", "serve", 8740)} | {("gateway", "serve", 8740)}
    assert pairs(Rendered(rendered("gpu-gateway"))) == by_gateway | AMONG_RAY


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
        *((source, "169.254.20.10", 53, True) for source in ("serve", "worker", "scripts", "redis", *RAY)),
        ("serve", "169.254.20.10", 80, False),
        ("serve", "169.254.169.254", 53, True),  # Cloud DNS
        ("serve", "10.0.0.53", 53, False),
        ("redis", "93.184.216.34", 443, False),
        ("scripts", "93.184.216.34", 443, False),
    ],
)
def test_what_lies_outside(
    source: str, address: str, port: int, reaches: bool, rendered: Callable[[str], list[Object]]
) -> None:
    found = Rendered(rendered("gpu"))
    assert is_open(found, "egress", found.pod(source), None, address, port) is reaches


@pytest.mark.parametrize(
    ("source", "to", "port", "reaches"),
    [
        ("ray-reward", "10.20.30.5", 443, True),
        ("serve", "10.20.30.5", 443, True),
        ("ray-reward", "10.20.30.5", 80, False),
        ("ray-reward", "10.20.31.5", 443, False),
        ("ray-reward", "169.254.169.254", 80, False),
        ("redis", "10.20.30.5", 443, False),
        ("ray-learner", MINIO, 9000, True),
        ("ray-learner", MINIO, 443, False),
        ("scripts", MINIO, 9000, False),
    ],
)
def test_what_lies_inside_where_the_operator_names_it(
    source: str, to: str | Pod, port: int, reaches: bool, kubernetes: Path
) -> None:
    overlay = kubernetes / "overlays" / "private"
    overlay.mkdir(exist_ok=True)
    (overlay / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: equipoise\n"
        "resources: [../kind]\ncomponents: [../../components/private]\n"
    )
    found = Rendered(render(kubernetes, "private"))
    peer, address = (None, to) if isinstance(to, str) else (to, None)
    assert is_open(found, "egress", found.pod(source), peer, address, port) is reaches


@pytest.mark.parametrize(
    ("namespace", "label", "port", "reaches"),
    [
        ("kube-system", "kube-dns", 53, True),
        ("kube-system", "node-local-dns", 53, True),
        ("kube-system", "kube-dns", 9153, False),
        ("kube-system", "metrics-server", 53, False),
        ("default", "kube-dns", 53, False),
    ],
)
def test_who_tells_names(
    namespace: str, label: str, port: int, reaches: bool, rendered: Callable[[str], list[Object]]
) -> None:
    found = Rendered(rendered("gpu"))
    server = Pod(name="names", labels={"k8s-app": label}, spec={"namespace": namespace})
    for pod in found.pods:
        assert is_open(found, "egress", pod, server, None, port) is reaches, pod.name


def test_a_worker_that_makes_rayjobs_reaches_the_api_server(rendered: Callable[[str], list[Object]]) -> None:
    found = Rendered(rendered("kind-ray-job"))
    assert is_open(found, "egress", found.pod("worker"), None, "10.96.0.1", 443)
    assert not is_open(found, "egress", found.pod("serve"), None, "10.96.0.1", 443)


@pytest.mark.parametrize("name", ["default-deny", "redis", "to-redis", "serve", "ray-head", "worker", "ray"])
def test_without_one_of_them_the_matrix_is_another(name: str, rendered: Callable[[str], list[Object]]) -> None:
    objects: list[Any] = copy.deepcopy(rendered("kind"))
    found = Rendered([item for item in objects if item["metadata"]["name"] != name or item["kind"] != "NetworkPolicy"])
    assert pairs(found) != FIXED | AMONG_RAY
