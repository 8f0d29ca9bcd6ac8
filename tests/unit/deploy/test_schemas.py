"""Every object follows the schema of its kind, and a field that the schema doesn't have is refused.

Core kinds: the Kubernetes schemas that kubernetes-validate carries. Ray's: KubeRay's CRDs, read strictly. Monitoring's
and the Gateway API's: the fields that we use, written down here, as their CRDs are in no package. Rules in CEL are not
evaluated.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

from tests.deploy_support import OVERLAYS, Object, Rendered

VERSION = "1.34"
CRDS = Path(__file__).parents[4] / "shared" / "data" / "kuberay"
_TEXT: Object = {"type": "string", "minLength": 1}
_TEXTS: Object = {"type": "object", "additionalProperties": {"type": "string"}}


def _closed(**properties: Any) -> Object:
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": list(properties)}


_RULE = _closed(alert=_TEXT, expr=_TEXT, labels=_TEXTS, annotations=_TEXTS)
_RULE["properties"]["for"] = {"type": "string", "pattern": r"^\d+[smh]$"}
MONITORING = {
    "ServiceMonitor": _closed(
        selector=_closed(matchLabels=_TEXTS),
        endpoints={
            "type": "array",
            "items": _closed(
                port=_TEXT,
                path=_TEXT,
                interval=_TEXT,
                scrapeTimeout=_TEXT,
                honorLabels={"type": "boolean"},
                authorization=_closed(type=_TEXT, credentials=_closed(name=_TEXT, key=_TEXT)),
            ),
        },
    ),
    "PrometheusRule": _closed(
        groups={"type": "array", "items": _closed(name=_TEXT, rules={"type": "array", "items": _RULE})}
    ),
}

_BY_NAME = {"type": "array", "minItems": 1, "items": _closed(name=_TEXT)}
GATEWAY = {
    "Gateway": _closed(
        gatewayClassName=_TEXT,
        listeners={
            "type": "array",
            "minItems": 1,
            "items": _closed(
                name=_TEXT,
                protocol={"enum": ["HTTP", "HTTPS", "TLS", "TCP", "UDP"]},
                port={"type": "integer"},
                hostname=_TEXT,
                tls=_closed(mode={"enum": ["Terminate", "Passthrough"]}, certificateRefs=_BY_NAME),
                allowedRoutes=_closed(namespaces=_closed(**{"from": {"enum": ["All", "Selector", "Same"]}})),
            ),
        },
    ),
    "HTTPRoute": _closed(
        parentRefs={"type": "array", "items": _closed(name=_TEXT, sectionName=_TEXT)},
        hostnames={"type": "array", "items": _TEXT},
        rules={
            "type": "array",
            "items": _closed(
                backendRefs={"type": "array", "items": _closed(name=_TEXT, port={"type": "integer"})},
                timeouts=_closed(request={"type": "string", "pattern": r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"}),
                sessionPersistence=_closed(type={"enum": ["Cookie", "Header"]}),
            ),
        },
    ),
}


def strict(schema: Any) -> Any:
    """An OpenAPI v3 schema of a CRD as JSON schema, with objects closed unless the CRD leaves them open."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    known = {name: strict(value) for name, value in schema.items() if not name.startswith("x-")}
    if "properties" in schema:
        known["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            known["additionalProperties"] = False
    if known.pop("nullable", False) and isinstance(known.get("type"), str):
        known["type"] = [known["type"], "null"]
    return known


@cache
def ray_validator(kind: str) -> Draft202012Validator:
    path = CRDS / f"ray.io_{kind.lower()}s.yaml"
    if not path.exists():
        assert "EQUIPOISE_REQUIRE_SHARED" not in os.environ, f"no {path}"
        pytest.skip("KubeRay's CRDs are not beside the repository")
    document = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    (version,) = [item for item in document["spec"]["versions"] if item["name"] == "v1"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return Draft202012Validator(schema)


def check(item: Object) -> None:
    """Raises a ValidationError."""
    group = item["apiVersion"].partition("/")[0]
    if group == "ray.io":
        ray_validator(item["kind"]).validate(item)
    elif group == "gateway.networking.k8s.io":
        Draft202012Validator(GATEWAY[item["kind"]]).validate(item["spec"])
    elif group == "monitoring.coreos.com":
        Draft202012Validator(MONITORING[item["kind"]]).validate(item["spec"])
    else:
        kubernetes_validate.validate(item, VERSION, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_follows_its_schema(overlay: str, rendered: Callable[[str], list[Object]]) -> None:
    objects = rendered(overlay)
    assert len({(item["kind"], item["metadata"]["name"]) for item in objects}) == len(objects)
    for item in objects:
        try:
            check(item)
        except ValidationError as error:
            pytest.fail(f"{item['kind']} {item['metadata']['name']}: {list(error.absolute_path)}: {error.message}")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rays_pods_follow_the_core_schema(overlay: str, rendered: Callable[[str], list[Object]]) -> None:
    """The CRD's own copy of a pod's fields is looser than the core's."""
    for pod in Rendered(rendered(overlay)).pods:
        metadata = {"name": "x", "labels": pod.labels}
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod.spec}, VERSION, strict=True
        )


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "template", "spec", "containers", 0, "imagePullPolice"), "Always"),
        ("Deployment", ("spec", "replicas"), "two"),
        ("NetworkPolicy", ("spec", "ingres"), []),
        ("RayCluster", ("spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "volumeMount"), []),
        ("RayCluster", ("spec", "authOptions", "mode"), "tokens"),
        ("RayCluster", ("spec", "autoscalerOption"), {}),
        ("ServiceMonitor", ("spec", "endpoints", 0, "authorisation"), {}),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "for"), "soon"),
    ],
)
def test_what_the_schema_does_not_have_is_refused(
    kind: str, path: tuple[Any, ...], value: Any, rendered: Callable[[str], list[Object]]
) -> None:
    item = copy.deepcopy(Rendered(rendered("gpu")).of(kind)[0])
    check(item)
    place: Any = item
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(ValidationError):
        check(item)
