"""The NetworkPolicies of each overlay, held by this machine's kernel: every pod is a network namespace with a process.

Every process listens, and tries every port of every other. What cannot be shown without a cluster: that its plug-in
makes the same of the policies, and when (it learns of new pods with a delay); that pods get these labels; what nodes do
(probes by the kubelet, hostNetwork); connections that were open before a policy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy_support import OVERLAYS, Object, Rendered, prepare, render
from tests.namespaces import Pair, met, skip_without_namespaces
from tests.network_policies import ELSEWHERE, is_open, pairs


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Object]]:
    skip_without_namespaces()
    tree: Path = prepare(tmp_path_factory.mktemp("deploy"))
    return lambda overlay: render(tree, overlay)


def expected(found: Rendered) -> set[Pair]:
    """By the rule of the API."""
    inside = {(source, target, port, "TCP") for source, target, port in pairs(found)}
    names = {(pod.name, "names", 53, protocol) for pod in found.pods for protocol in ("TCP", "UDP")}
    outside = {
        (pod.name, name, port, "TCP")
        for pod in found.pods
        for name, address in ELSEWHERE.items()
        for port in (80, 443)
        if is_open(found, "egress", pod, None, address, port)
    }
    return inside | names | outside


def of_ours(found: Rendered, answers: dict[Pair, str]) -> dict[Pair, str]:
    """What our policies decide: other namespaces have theirs."""
    ours = {pod.name for pod in found.pods}
    return {pair: answer for pair, answer in answers.items() if pair[0] in ours or pair[1] in ours}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_processes_reach_whom_they_may_and_nobody_else(overlay: str, rendered: Callable[[str], list[Object]]) -> None:
    found = Rendered(rendered(overlay))
    answers = of_ours(found, met(found))
    assert {pair for pair, answer in answers.items() if answer == "reached"} == expected(found)
    refused = {answer for answer in answers.values() if answer != "reached"}
    assert refused <= {"EHOSTUNREACH", "EACCES"}  # by a rule, not by a port that nobody listens on


def test_without_the_denial_everybody_is_reached(rendered: Callable[[str], list[Object]]) -> None:
    """What the processes meet is the policies' doing."""
    objects = copy.deepcopy(rendered("kind"))
    found = Rendered([item for item in objects if item["kind"] != "NetworkPolicy"])
    assert set(met(found).values()) == {"reached"}
