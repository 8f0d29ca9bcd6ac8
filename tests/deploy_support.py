"""What deploy/kubernetes renders, read for tests: objects, the pods that come of them, and what selects whom."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parent.parent / "deploy"
OVERLAYS = ("kind", "gpu", "kind-ray-job", "gpu-gateway")
Object = dict[str, Any]


def prepare(directory: Path) -> Path:
    """A copy of deploy/kubernetes with secrets of its own, as an operator has it before `kubectl apply`."""
    for tool in ("kubectl", "openssl"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} renders what is deployed, and is not there")
    tree = directory / "kubernetes"
    shutil.copytree(DEPLOY / "kubernetes", tree, ignore=shutil.ignore_patterns("files"))
    subprocess.run([tree / "secrets" / "secrets.sh"], check=True, capture_output=True)
    with_gateway = shutil.copytree(tree / "overlays" / "gpu", tree / "overlays" / "gpu-gateway") / "kustomization.yaml"
    text = with_gateway.read_text()
    assert "components/ingress" in text
    with_gateway.write_text(text.replace("components/ingress", "components/gateway"))  # as the runbook says
    return tree


def render(tree: Path, overlay: str) -> list[Object]:
    """Raises CalledProcessError with kubectl's own words."""
    command = ["kubectl", "kustomize", str(tree / "overlays" / overlay)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


@dataclass(frozen=True, kw_only=True)
class Pod:
    """A template that makes pods, with the labels that its controller adds."""

    name: str
    labels: dict[str, str]
    spec: Object
    on_ray: bool = False

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


@dataclass(frozen=True)
class Rendered:
    """All objects of an overlay."""

    objects: list[Object] = field(repr=False)

    def of(self, kind: str) -> list[Object]:
        return [item for item in self.objects if item["kind"] == kind]

    def named(self, kind: str, name: str) -> Object:
        (found,) = [item for item in self.of(kind) if item["metadata"]["name"] == name]
        return found

    def names(self, kind: str) -> set[str]:
        return {item["metadata"]["name"] for item in self.of(kind)}

    @cached_property
    def pods(self) -> list[Pod]:
        return list(self._pods())

    def pod(self, name: str) -> Pod:
        (found,) = [pod for pod in self.pods if pod.name == name]
        return found

    def keys(self, kind: str, name: str) -> set[str]:
        """Of a ConfigMap or Secret."""
        item = self.named(kind, name)
        return {*item.get("data", {}), *item.get("stringData", {})}

    def settings(self, container: Object) -> dict[str, str]:
        """The environment as the container has it, but for what comes from a Secret."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            found |= self.named("ConfigMap", source["configMapRef"]["name"])["data"]
        return found | {item["name"]: item["value"] for item in container.get("env", []) if "value" in item}

    def _pods(self) -> Iterator[Pod]:
        for kind in ("Deployment", "StatefulSet"):
            for item in self.of(kind):
                template = item["spec"]["template"]
                labels = template["metadata"]["labels"]
                yield Pod(name=item["metadata"]["name"], labels=labels, spec=template["spec"])
        for cluster in self.of("RayCluster"):
            yield from ray_pods(cluster["metadata"]["name"], cluster["spec"])


def ray_pods(cluster: str, spec: Object) -> Iterator[Pod]:
    """With the labels that KubeRay gives them (its documentation of Ray clusters)."""
    groups = [("head", "headgroup", spec["headGroupSpec"])]
    groups += [("worker", group["groupName"], group) for group in spec["workerGroupSpecs"]]
    for node, group, found in groups:
        labels = {
            **found["template"]["metadata"]["labels"],
            "ray.io/cluster": cluster,
            "ray.io/node-type": node,
            "ray.io/group": group,
        }
        yield Pod(name=f"{cluster}-{group}", labels=labels, spec=found["template"]["spec"], on_ray=True)


def wait_for(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a LabelSelector takes these labels; an empty one takes all."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "In", rule
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return True
