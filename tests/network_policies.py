"""Who may reach whom, by what NetworkPolicies say together: by the rule of the API, and as rules of a kernel.

The API's rule: a pair may talk if the one may go out and the other takes it in.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from tests.deploy_support import Object, Pod, Rendered, selects

PORTS = {"redis": 6379, "serve": 8740, "ray-head": 8265, "ray-gcs": 6379, "ray-machine": 10002}
OUTSIDE = {
    "ingress": Pod(name="ingress", labels={"app": "nginx"}, spec={"namespace": "ingress-nginx"}),
    "gateway": Pod(name="gateway", labels={"app": "envoy"}, spec={"namespace": "envoy-gateway-system"}),
    "prometheus": Pod(name="prometheus", labels={"app": "prometheus"}, spec={"namespace": "monitoring"}),
    "operator": Pod(name="operator", labels={"app": "kuberay"}, spec={"namespace": "kuberay-system"}),
    "stranger": Pod(name="stranger", labels={"app.kubernetes.io/component": "serve"}, spec={"namespace": "default"}),
}

ELSEWHERE = {"internet": "93.184.216.34", "metadata": "169.254.169.254", "api-server": "10.96.0.1"}


def takes(peer: Object, pod: Pod | None, address: str | None) -> bool:
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


def is_open(rendered: Rendered, direction: str, at: Pod, peer: Pod | None, address: str | None, port: int) -> bool:
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
            if fits and any(takes(found, peer, address) for found in item[side]):
                return True
    return False


def may(rendered: Rendered, source: Pod, target: Pod, port: int) -> bool:
    return is_open(rendered, "egress", source, target, None, port) and is_open(
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


@dataclass(frozen=True, kw_only=True)
class Host:
    """A pod, or something outside of the cluster, as it is on a network."""

    name: str
    address: str
    pod: Pod | None = None
    tcp: list[int] = field(default_factory=list)
    udp: list[int] = field(default_factory=list)


def hosts(rendered: Rendered) -> list[Host]:
    """One for each pod, and what they talk to: the cluster's names, its API server, the internet and its metadata."""
    ports = sorted(set(PORTS.values()))
    pods = [*rendered.pods, *OUTSIDE.values()]
    names = Pod(name="names", labels={"k8s-app": "kube-dns"}, spec={"namespace": "kube-system"})
    return [
        *(Host(name=pod.name, address=f"10.244.0.{i}", pod=pod, tcp=ports) for i, pod in enumerate(pods, start=2)),
        Host(name="names", address="10.244.1.1", pod=names, tcp=[53], udp=[53]),
        *(Host(name=name, address=address, tcp=[80, 443]) for name, address in ELSEWHERE.items()),
    ]


def kernel_rules(rendered: Rendered, host: Host, others: list[Host]) -> list[str]:
    """Lines of `ip rule` that hold its policies at its own door: what comes in by eth0, what goes out from lo.

    Rules have no memory, so that a reply is told by the port that it comes from. What is no pod here has none.
    """
    if host.pod is None or host.pod.spec.get("namespace", "equipoise") != "equipoise":
        return []
    served = [*sorted({("tcp", port) for other in others for port in other.tcp}), ("udp", 53)]
    lines = [
        "rule del pref 0",
        "rule add pref 10 ipproto icmp lookup local",
        "rule add pref 11 ipproto icmp lookup main",
    ]
    for cidr, protocol, port in _allowed(rendered, host.pod, "ingress", others, served):
        lines.append(f"rule add pref 100 iif eth0 from {cidr} ipproto {protocol} dport {port} lookup local")
        lines.append(f"rule add pref 100 iif lo to {cidr} ipproto {protocol} sport {port} lookup main")
    for cidr, protocol, port in _allowed(rendered, host.pod, "egress", others, served):
        lines.append(f"rule add pref 100 iif lo to {cidr} ipproto {protocol} dport {port} lookup main")
        lines.append(f"rule add pref 100 iif eth0 from {cidr} ipproto {protocol} sport {port} lookup local")
    for protocol, door in product(("tcp", "udp"), ("eth0", "lo")):
        lines.append(f"rule add pref 200 iif {door} ipproto {protocol} prohibit")
    return [*dict.fromkeys(lines), "rule add pref 300 lookup local"]


def _allowed(
    rendered: Rendered, pod: Pod, direction: str, others: list[Host], served: list[tuple[str, int]]
) -> Iterator[tuple[str, str, int]]:
    """(network, protocol, port) of each that it may hear from, or go to."""
    kind, side = direction.capitalize(), "from" if direction == "ingress" else "to"
    found = [item["spec"] for item in rendered.of("NetworkPolicy") if selects(item["spec"]["podSelector"], pod.labels)]
    found = [spec for spec in found if kind in spec["policyTypes"]]
    if not found:
        yield from (("0.0.0.0/0", protocol, port) for protocol, port in served)
    for spec in found:
        for item in spec.get(direction, []):
            named = [(port["protocol"].lower(), port["port"]) for port in item.get("ports", [])]
            for peer in item[side]:
                for network in _networks(peer, others):
                    yield from ((network, protocol, port) for protocol, port in named or served)


def _networks(peer: Mapping[str, Any], others: list[Host]) -> Iterator[str]:
    if "ipBlock" in peer:
        left = [ipaddress.ip_network(peer["ipBlock"]["cidr"])]
        for part in map(ipaddress.ip_network, peer["ipBlock"].get("except", [])):
            cut = [block for block in left if part.subnet_of(block)]  # type: ignore[type-var, arg-type]
            left = [block for block in left if block not in cut]
            left += [rest for block in cut for rest in block.address_exclude(part)]  # type: ignore[arg-type]
        yield from map(str, left)
        return
    yield from (f"{other.address}/32" for other in others if other.pod and takes(peer, other.pod, None))
