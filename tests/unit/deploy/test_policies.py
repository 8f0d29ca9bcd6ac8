"""Every rule holds of every overlay, and finds the breach of its mutant."""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.deploy_policies import RULES
from tests.deploy_support import OVERLAYS, Object, Rendered

Render = Callable[[str], list[Object]]


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("rule", RULES)
def test_it_holds(rule: str, overlay: str, rendered: Render) -> None:
    assert list(RULES[rule](Rendered(rendered(overlay)))) == []


def spec_of(found: Rendered, name: str) -> Object:
    return found.pod(name).spec


def first(found: Rendered, name: str) -> Object:
    container: Object = spec_of(found, name)["containers"][0]
    return container


def policy(found: Rendered, name: str) -> Object:
    spec: Object = found.named("NetworkPolicy", name)["spec"]
    return spec


def ray(found: Rendered) -> Object:
    spec: Object = found.named("RayCluster", "ray")["spec"]
    return spec


def drop(found: Rendered, kind: str, name: str) -> None:
    found.objects.remove(found.named(kind, name))


def to_env(found: Rendered, name: str, value: Any) -> None:
    first(found, "serve")["env"].append({"name": name, **value})


def conf(found: Rendered, old: str, new: str) -> None:
    data = found.named("ConfigMap", "redis-config")["data"]
    assert old in data["redis.conf"]
    data["redis.conf"] = data["redis.conf"].replace(old, new)


def leak(found: Rendered) -> None:
    key = base64.b64decode(found.named("Secret", "serve")["data"]["api-key"]).decode().strip()
    found.named("ConfigMap", "settings")["data"]["EQUIPOISE_DATA_URLS"] = key


MUTANTS: dict[str, list[Callable[[Rendered], Any]]] = {
    "pods_are_restricted": [
        lambda f: spec_of(f, "serve").update(hostNetwork=True),
        lambda f: spec_of(f, "redis")["securityContext"].update(runAsNonRoot=False),
        lambda f: spec_of(f, "redis")["securityContext"].pop("runAsUser"),
        lambda f: spec_of(f, "worker")["securityContext"].pop("seccompProfile"),
        lambda f: spec_of(f, "worker")["securityContext"].update(sysctls=[{"name": "kernel.shm_rmid_forced"}]),
        lambda f: spec_of(f, "ray-rollout")["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
        lambda f: first(f, "ray-learner")["securityContext"].pop("allowPrivilegeEscalation"),
        lambda f: first(f, "ray-learner")["securityContext"].update(privileged=True),
        lambda f: first(f, "scripts")["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
        lambda f: first(f, "scripts")["securityContext"].pop("capabilities"),
        lambda f: first(f, "scripts")["securityContext"].update(runAsUser=0),
        lambda f: first(f, "serve")["ports"][0].update(hostPort=80),
        lambda f: spec_of(f, "serve").update(shareProcessNamespace=True),
    ],
    "root_is_read_only": [
        lambda f: first(f, "serve")["securityContext"].pop("readOnlyRootFilesystem"),
        lambda f: first(f, "worker")["volumeMounts"].pop(0),
    ],
    "namespace_enforces_restricted": [
        lambda f: f.of("Namespace")[0]["metadata"]["labels"].update({"pod-security.kubernetes.io/enforce": "baseline"}),
        lambda f: f.named("Deployment", "serve")["metadata"].update(namespace="default"),
    ],
    "resources_are_bounded": [
        lambda f: first(f, "redis")["resources"]["limits"].pop("memory"),
        lambda f: first(f, "ray-reward")["resources"].pop("requests"),
        lambda f: first(f, "serve")["resources"]["limits"].update(memory="1Gi"),
        lambda f: spec_of(f, "serve")["volumes"][0].update(emptyDir={}),
    ],
    "images_are_pinned": [
        lambda f: first(f, "redis").update(image="redis:latest"),
        lambda f: first(f, "redis").update(image="redis"),
    ],
    "versions_have_the_fixes_that_we_rely_on": [
        lambda f: first(f, "redis").update(image="redis:8.0.3"),
        lambda f: ray(f).update(rayVersion="2.53.0"),
    ],
    "probes_ask_what_exists": [
        lambda f: first(f, "worker").pop("livenessProbe"),
        lambda f: first(f, "serve")["readinessProbe"]["httpGet"].update(path="/readyz"),
        lambda f: first(f, "serve")["startupProbe"]["httpGet"].update(path="/livez"),
        lambda f: first(f, "serve").pop("startupProbe"),
        lambda f: first(f, "serve")["livenessProbe"]["httpGet"].update(path="/healthz"),
        lambda f: first(f, "ray-headgroup")["livenessProbe"]["httpGet"].update(port=8266),
        lambda f: first(f, "redis").pop("readinessProbe"),
    ],
    "secrets_come_from_files": [
        lambda f: to_env(f, "EQUIPOISE_API_KEY", {"valueFrom": {"secretKeyRef": {"name": "serve", "key": "api-key"}}}),
        lambda f: to_env(f, "REDIS_PASSWORD", {"value": "hunter2"}),
        lambda f: first(f, "serve")["envFrom"].append({"secretRef": {"name": "serve"}}),
        leak,
    ],
    "volumes_are_what_they_name": [
        lambda f: drop(f, "Secret", "redis-ca"),
        lambda f: drop(f, "ConfigMap", "judges"),
        lambda f: drop(f, "PersistentVolumeClaim", "state"),
        lambda f: first(f, "serve")["volumeMounts"].append({"name": "other", "mountPath": "/x"}),
        lambda f: first(f, "serve")["volumeMounts"][-1].pop("readOnly"),
        lambda f: spec_of(f, "serve")["volumes"][3]["secret"].pop("defaultMode"),
        lambda f: spec_of(f, "serve")["volumes"][3]["secret"].update(items=[{"key": "other", "path": "x"}]),
    ],
    "files_that_are_named_are_mounted": [
        lambda f: f.named("Secret", "serve")["data"].pop("api-key"),
        lambda f: f.named("Secret", "redis")["data"].pop("users.acl"),
        lambda f: f.named("Secret", "redis-ca")["data"].pop("ca.crt"),
        lambda f: f.named("ConfigMap", "settings")["data"].update(EQUIPOISE_JUDGES="/etc/judges.yaml"),
    ],
    "models_are_where_they_outlive_a_pod": [
        lambda f: f.named("ConfigMap", "settings")["data"].pop("HF_HOME"),
        lambda f: f.named("ConfigMap", "settings")["data"].pop("EQUIPOISE_MODEL_ROOTS"),
        lambda f: f.named("ConfigMap", "settings")["data"].update(HF_HOME="/home/equipoise/huggingface"),
        lambda f: spec_of(f, "ray-rollout")["volumes"][3].update(persistentVolumeClaim={"claimName": "other"}),
    ],
    "services_have_pods_and_ports": [
        lambda f: f.named("Service", "serve")["spec"].update(selector={"app": "serve"}),
        lambda f: f.named("Service", "redis")["spec"].update(type="LoadBalancer"),
        lambda f: f.named("Service", "redis")["spec"]["ports"][0].update(port=6380),
        lambda f: ray(f)["headGroupSpec"].update(enableIngress=True),
        lambda f: ray(f)["headGroupSpec"].update(serviceType="NodePort"),
        lambda f: f.named("Ingress", "serve")["spec"].pop("tls"),
        lambda f: f.named("Ingress", "serve")["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"].update(
            name="ray-head-svc"
        ),
    ],
    "ports_are_the_settings": [
        lambda f: first(f, "serve")["args"].__setitem__(-1, "8000"),
        lambda f: first(f, "serve")["ports"][0].update(containerPort=8000),
        lambda f: conf(f, "port 0\n", "port 6379\n"),
        lambda f: f.named("RayCluster", "ray")["metadata"].update(name="other"),
    ],
    "policies_name_pods_that_exist": [
        lambda f: policy(f, "worker").update(podSelector={"matchLabels": {"app": "worker"}}),
        lambda f: policy(f, "redis")["ingress"][0]["from"][0]["podSelector"].update(matchLabels={"app": "x"}),
        lambda f: policy(f, "serve")["ingress"][0].pop("from"),
        lambda f: policy(f, "serve")["ingress"][0]["from"][0].update(namespaceSelector={}),
        lambda f: policy(f, "to-public-https")["egress"][0]["to"][0]["ipBlock"].pop("except"),
    ],
    "nothing_is_reachable_by_default": [
        lambda f: drop(f, "NetworkPolicy", "default-deny"),
        lambda f: policy(f, "default-deny")["policyTypes"].remove("Egress"),
        lambda f: policy(f, "default-deny").update(ingress=[{}]),
    ],
    "gpus_only_where_they_are_used": [
        lambda f: first(f, "ray-reward")["resources"]["limits"].update({"nvidia.com/gpu": "1"}),
        lambda f: first(f, "ray-learner")["resources"]["limits"].pop("nvidia.com/gpu"),
        lambda f: spec_of(f, "ray-rollout").pop("tolerations"),
        lambda f: f.named("ConfigMap", "settings")["data"].pop("EQUIPOISE_RAY_DEVICE"),
        lambda f: f.named("ConfigMap", "settings")["data"].pop("EQUIPOISE_RAY_MACHINES"),
        lambda f: first(f, "ray-rollout")["resources"]["limits"].update({"nvidia.com/gpu": "8"}),
    ],
    "machines_may_start_from_nothing": [
        lambda f: spec_of(f, "ray-learner")["affinity"]["nodeAffinity"].update(
            requiredDuringSchedulingIgnoredDuringExecution={
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "nvidia.com/gpu.product", "operator": "Exists"}]}]
            }
        ),
        lambda f: spec_of(f, "ray-rollout").update(nodeSelector={"nvidia.com/gpu.present": "true"}),
    ],
    "accounts_have_the_least": [
        lambda f: spec_of(f, "serve").update(automountServiceAccountToken=True),
        lambda f: spec_of(f, "serve").update(serviceAccountName="default"),
        lambda f: spec_of(f, "scripts").pop("automountServiceAccountToken"),
        lambda f: f.objects.append({"kind": "ClusterRole", "metadata": {"name": "x"}, "rules": []}),
    ],
    "redis_keeps_what_it_acknowledged": [
        lambda f: conf(f, "appendfsync always", "appendfsync everysec"),
        lambda f: conf(f, "maxmemory-policy noeviction", "maxmemory-policy allkeys-lru"),
        lambda f: f.named("StatefulSet", "redis")["spec"].update(replicas=2),
        lambda f: first(f, "redis")["volumeMounts"].pop(0),
    ],
    "serve_survives_a_machine": [
        lambda f: f.named("Deployment", "serve")["spec"].update(replicas=1),
        lambda f: drop(f, "PodDisruptionBudget", "serve"),
        lambda f: f.named("HorizontalPodAutoscaler", "serve")["spec"].update(minReplicas=1),
        lambda f: f.named("HorizontalPodAutoscaler", "serve")["spec"]["scaleTargetRef"].update(name="api"),
    ],
    "ray_asks_for_a_token_and_grows_from_zero": [
        lambda f: ray(f)["authOptions"].update(mode="disabled"),
        lambda f: f.named("Secret", "ray-token")["data"].clear(),
        lambda f: ray(f)["headGroupSpec"]["rayStartParams"].pop("num-cpus"),
        lambda f: ray(f)["headGroupSpec"]["rayStartParams"].pop("num-gpus"),
        lambda f: ray(f).pop("enableInTreeAutoscaling"),
        lambda f: ray(f)["autoscalerOptions"].pop("version"),
        lambda f: f.named("ConfigMap", "settings")["data"].pop("EQUIPOISE_RAY_GROWTH_S"),
        lambda f: f.named("ConfigMap", "settings")["data"].pop("RAY_JOB_START_TIMEOUT_SECONDS"),
        lambda f: ray(f)["workerGroupSpecs"][1].pop("labels"),
        lambda f: ray(f)["workerGroupSpecs"].pop(),
        lambda f: ray(f)["workerGroupSpecs"][0].update(minReplicas=1),
        lambda f: spec_of(f, "ray-learner")["volumes"][2].update(emptyDir={"sizeLimit": "1Gi"}),
    ],
    "ray_is_replaced_as_a_whole": [
        lambda f: ray(f).pop("upgradeStrategy"),
        lambda f: ray(f)["upgradeStrategy"].update(type="None"),
    ],
    "drivers_hear_of_their_machines_end": [
        lambda f: first(f, "ray-reward").pop("lifecycle"),
        lambda f: f.named("ConfigMap", "settings")["data"].pop("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"),
        lambda f: spec_of(f, "ray-learner").update(terminationGracePeriodSeconds=110),
    ],
}  # fmt: skip


def role(found: Rendered) -> Object:
    item: Object = found.named("Role", "worker")
    return item


WITH_ACCESS: list[Callable[[Rendered], Any]] = [
    lambda f: role(f)["rules"][1]["verbs"].append("patch"),
    lambda f: role(f)["rules"][1]["resources"].append("secrets"),
    lambda f: role(f)["rules"][0].pop("resourceNames"),
    lambda f: role(f)["rules"][1].update(apiGroups=["*"]),
    lambda f: spec_of(f, "worker").update(automountServiceAccountToken=False),
]


def listener(found: Rendered) -> Object:
    item: Object = found.named("Gateway", "serve")["spec"]["listeners"][0]
    return item


def route(found: Rendered) -> Object:
    item: Object = found.named("HTTPRoute", "serve")["spec"]
    return item


WITH_GATEWAY: list[Callable[[Rendered], Any]] = [
    lambda f: listener(f).update(protocol="HTTP"),
    lambda f: listener(f)["tls"].update(mode="Passthrough"),
    lambda f: listener(f)["tls"].pop("certificateRefs"),
    lambda f: listener(f)["allowedRoutes"]["namespaces"].update({"from": "All"}),
    lambda f: listener(f).update(hostname="other.example.com"),
    lambda f: route(f)["parentRefs"][0].update(name="other"),
    lambda f: route(f)["rules"][0]["backendRefs"][0].update(name="ray-head-svc", port=8265),
    lambda f: route(f)["rules"][0].pop("timeouts"),
    lambda f: route(f)["rules"][0].pop("sessionPersistence"),
]


def mutants() -> Iterator[Any]:
    for name, found in MUTANTS.items():
        for i, mutate in enumerate(found):
            yield pytest.param("gpu", name, mutate, id=f"{name}-{i}")
    for i, mutate in enumerate(WITH_ACCESS):
        yield pytest.param("kind-ray-job", "accounts_have_the_least", mutate, id=f"access-{i}")
    for i, mutate in enumerate(WITH_GATEWAY):
        yield pytest.param("gpu-gateway", "gateways_lead_to_serve_alone", mutate, id=f"gateway-{i}")


@pytest.mark.parametrize(("overlay", "rule", "mutate"), list(mutants()))
def test_its_mutant_fails(overlay: str, rule: str, mutate: Callable[[Rendered], Any], rendered: Render) -> None:
    mutated = copy.deepcopy(rendered(overlay))
    mutate(Rendered(mutated))
    assert list(RULES[rule](Rendered(mutated))) != []


def test_every_rule_has_a_mutant() -> None:
    assert set(MUTANTS) | {"gateways_lead_to_serve_alone"} == set(RULES)
