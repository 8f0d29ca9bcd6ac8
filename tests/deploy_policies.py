"""What must hold of everything that is deployed: each rule gives the breaches that it finds, none where all is well.

Restricted pods: Kubernetes' Pod Security Standards, profile Restricted, field by field.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator

from orchestrator.actors.gang import GROWTH_VARIABLE, MACHINES_VARIABLE, ROLE_LABEL_VARIABLE
from orchestrator.actors.placement import DEVICE_VARIABLE
from services.settings import DEFAULT_PORT
from tests.deploy_support import DEPLOY, Object, Pod, Rendered, selects

RULES: dict[str, Callable[[Rendered], Iterator[str]]] = {}
_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
_SECRET_NAME = re.compile(r"password|secret|token|api_?key|credential", re.IGNORECASE)
_OUTSIDE = {  # namespaces that the cluster has, not we
    "kube-system", "ingress-nginx", "envoy-gateway-system", "monitoring", "kuberay-system",
}  # fmt: skip
# What each probe asks: a route of ours or Ray's, and the port on which it is answered.
_ROUTES = {
    "/livez": DEFAULT_PORT,
    "/readyz": DEFAULT_PORT,
    "/api/gcs_healthz": 8265,
    "/api/local_raylet_healthz": 52365,
}
# Of GPU feature discovery and node feature discovery, which run on a machine that is there.
_LATE_LABELS = ("nvidia.com/", "feature.node.kubernetes.io/")
_ALLOWED_VERBS = {("rayclusters", "get"), *(("rayjobs", verb) for verb in ("create", "delete", "get", "list", "watch"))}


def rule(check: Callable[[Rendered], Iterator[str]]) -> Callable[[Rendered], Iterator[str]]:
    RULES[check.__name__] = check
    return check


def _each(rendered: Rendered) -> Iterator[tuple[Pod, Object, str]]:
    for pod in rendered.pods:
        for container in pod.containers:
            yield pod, container, f"{pod.name}/{container['name']}"


@rule
def pods_are_restricted(rendered: Rendered) -> Iterator[str]:
    for pod in rendered.pods:
        spec, security = pod.spec, pod.spec.get("securityContext", {})
        if any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{pod.name}: a namespace of the host"
        if security.get("runAsNonRoot") is not True or security.get("runAsUser", 0) == 0:
            yield f"{pod.name}: may run as root"
        if security.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{pod.name}: no seccomp profile"
        if security.get("sysctls") or security.get("seLinuxOptions") or security.get("windowsOptions"):
            yield f"{pod.name}: options of the kernel"
        for volume in spec.get("volumes", []):
            if not set(volume) - {"name"} <= _VOLUMES:
                yield f"{pod.name}: volume {volume['name']} is of a kind that is not allowed"
    for pod, container, where in _each(rendered):
        security = container.get("securityContext", {})
        if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
            yield f"{where}: may gain privileges"
        if security.get("capabilities", {}).get("drop") != ["ALL"] or security.get("capabilities", {}).get("add"):
            yield f"{where}: keeps capabilities"
        if "runAsUser" in security or security.get("runAsNonRoot") is False or "seccompProfile" in security:
            yield f"{where}: overrides its pod"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{where}: a port of the host"
        if pod.spec.get("shareProcessNamespace"):
            yield f"{where}: sees other containers' processes"


@rule
def root_is_read_only(rendered: Rendered) -> Iterator[str]:
    for pod, container, where in _each(rendered):
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield f"{where}: its root may be written"
        writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        if pod.name != "redis" and "/tmp" not in writable:
            yield f"{where}: has no place for temporary files"


@rule
def namespace_enforces_restricted(rendered: Rendered) -> Iterator[str]:
    for namespace in rendered.of("Namespace"):
        labels = namespace["metadata"].get("labels", {})
        for mode in ("enforce", "audit", "warn"):
            if labels.get(f"pod-security.kubernetes.io/{mode}") != "restricted":
                yield f"{namespace['metadata']['name']}: does not {mode} restricted"
    for item in rendered.objects:
        if item["kind"] != "Namespace" and item["metadata"].get("namespace") != "equipoise":
            yield f"{item['kind']} {item['metadata']['name']}: is in another namespace"


@rule
def resources_are_bounded(rendered: Rendered) -> Iterator[str]:
    for _, container, where in _each(rendered):
        resources = container.get("resources", {})
        for kind in ("requests", "limits"):
            if not {"cpu", "memory"} <= set(resources.get(kind, {})):
                yield f"{where}: {kind} without cpu or memory"
    memory = rendered.pod("serve").containers[0]["resources"]["limits"].get("memory", "")
    if (found := re.fullmatch(r"(\d+)Gi", memory)) is None or int(found[1]) < 3:
        yield f"serve: {memory} does not hold its children (orchestrator/children.py) at 512 MiB each or more"
    for pod in rendered.pods:
        for volume in pod.spec.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
                yield f"{pod.name}: {volume['name']} may fill the machine's disk"


@rule
def images_are_pinned(rendered: Rendered) -> Iterator[str]:
    for _, container, where in _each(rendered):
        image = container["image"]
        if "@sha256:" not in image and not re.search(r":\d+\.\d+\.\d+(-[\w.]+)?$", image):
            yield f"{where}: {image} names no version"


@rule
def versions_have_the_fixes_that_we_rely_on(rendered: Rendered) -> Iterator[str]:
    """Redis: the faults in its Lua of October 2025. Ray: tokens from 2.54, and the version that our lock has."""
    image = rendered.pod("redis").containers[0]["image"]
    found = re.search(r":(\d+)\.(\d+)\.(\d+)", image)
    if found is None or tuple(map(int, found.groups())) < (8, 2, 2):
        yield f"redis: {image} is older than 8.2.2"
    lock = (DEPLOY.parent / "requirements" / "gpu.txt").read_text()
    locked = re.search(r"(?m)^ray==(\S+)", lock)
    for cluster in rendered.of("RayCluster"):
        if locked is None or cluster["spec"]["rayVersion"] != locked[1]:
            yield f"RayCluster: {cluster['spec']['rayVersion']} is not the lock's"


@rule
def probes_ask_what_exists(rendered: Rendered) -> Iterator[str]:
    for pod, container, where in _each(rendered):
        if "livenessProbe" not in container:
            yield f"{where}: nobody would notice that it hangs"
        if container.get("ports") and "readinessProbe" not in container:
            yield f"{where}: takes calls before it is ready"
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container.get(name, {}).get("httpGet")
            if asked is None:
                continue
            port = ports.get(asked["port"], asked["port"])
            if _ROUTES.get(asked["path"]) != port:
                yield f"{where}: {name} asks {asked['path']} of port {port}"
        if pod.name == "serve" and container["readinessProbe"]["httpGet"]["path"] != "/livez":
            yield f"{where}: nobody says that Redis is away"
        if pod.name == "serve" and container.get("startupProbe", {}).get("httpGet", {}).get("path") != "/readyz":
            yield f"{where}: one that never reached Redis replaces others"


@rule
def secrets_come_from_files(rendered: Rendered) -> Iterator[str]:
    values = {
        base64.b64decode(value).decode(errors="replace").strip()
        for secret in rendered.of("Secret")
        for value in secret.get("data", {}).values()
    }
    for _, container, where in _each(rendered):
        for item in container.get("env", []):
            if "secretKeyRef" in item.get("valueFrom", {}):
                yield f"{where}: {item['name']} holds a secret"
            from_file = item.get("value", "").startswith("/run/secrets/")
            if _SECRET_NAME.search(item["name"]) and not from_file:
                yield f"{where}: {item['name']} looks like a secret"
        if any("secretRef" in source for source in container.get("envFrom", [])):
            yield f"{where}: its environment comes from a Secret"
    for item in rendered.objects:
        if item["kind"] != "Secret" and (
            found := [value for value in values if len(value) > 40 and value in str(item)]
        ):
            yield f"{item['kind']} {item['metadata']['name']}: holds {len(found)} secrets"


@rule
def volumes_are_what_they_name(rendered: Rendered) -> Iterator[str]:
    claims = rendered.names("PersistentVolumeClaim")
    for pod in rendered.pods:
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        for name, volume in volumes.items():
            for kind, object_kind, field in (("secret", "Secret", "secretName"), ("configMap", "ConfigMap", "name")):
                if kind not in volume:
                    continue
                found = volume[kind]
                if found[field] not in rendered.names(object_kind):
                    yield f"{pod.name}: no {object_kind} {found[field]}"
                elif not {item["key"] for item in found.get("items", [])} <= rendered.keys(object_kind, found[field]):
                    yield f"{pod.name}: {name} has not all of its keys"
                if kind == "secret" and found.get("defaultMode", 0o644) & 0o007:
                    yield f"{pod.name}: everyone in it may read {name}"
            if "persistentVolumeClaim" in volume and volume["persistentVolumeClaim"]["claimName"] not in claims:
                yield f"{pod.name}: no claim {volume['persistentVolumeClaim']['claimName']}"
        own = {claim["metadata"]["name"] for claim in _claim_templates(rendered, pod.name)}
        for container in pod.containers:
            for mount in container["volumeMounts"]:
                if mount["name"] not in {*volumes, *own}:
                    yield f"{pod.name}: mounts {mount['name']}, which is no volume"
                if mount["mountPath"].startswith(("/run/secrets", "/etc")) and not mount.get("readOnly"):
                    yield f"{pod.name}: may write to {mount['mountPath']}"


def _claim_templates(rendered: Rendered, name: str) -> list[Object]:
    return [
        claim
        for item in rendered.of("StatefulSet")
        if item["metadata"]["name"] == name
        for claim in item["spec"]["volumeClaimTemplates"]
    ]


@rule
def files_that_are_named_are_mounted(rendered: Rendered) -> Iterator[str]:
    """Paths in the environment, in arguments, in redis.conf and in the URLs of Redis."""
    for pod, container, where in _each(rendered):
        values = [value.removeprefix("file://") for value in rendered.settings(container).values()]
        named = [value for value in values if value.startswith(("/run/", "/etc/"))]
        named += [word for word in [*container.get("command", []), *container.get("args", [])] if word.startswith("/")]
        probe = container.get("livenessProbe", {}).get("exec", {}).get("command", [])
        named += [word for word in probe if word.startswith("/")]
        there = set(_files(rendered, pod, container))
        if pod.name == "redis":
            config = rendered.named("ConfigMap", "redis-config")["data"]["redis.conf"]
            named += re.findall(r"(?m)^[\w-]+ (/run/\S+)$", config)
        for file in (path for path in there if path.endswith("/redis-url")):
            named += re.findall(r"ssl_ca_certs=(\S+)", _files(rendered, pod, container)[file])
        optional = {"/run/secrets/object-store/credentials", "/etc/equipoise/judges/judges.yaml"}
        for path in named:
            if path not in there and not (path in optional and pod.name in ("scripts", "worker")):
                yield f"{where}: {path} is not there"


def _files(rendered: Rendered, pod: Pod, container: Object) -> dict[str, str]:
    """Path -> content of the files that ConfigMaps and Secrets put into a container."""
    found: dict[str, str] = {}
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
    for mount in container["volumeMounts"]:
        volume = volumes.get(mount["name"], {})
        if "configMap" in volume and volume["configMap"]["name"] in rendered.names("ConfigMap"):
            data = rendered.named("ConfigMap", volume["configMap"]["name"])["data"]
            found |= {f"{mount['mountPath']}/{key}": value for key, value in data.items()}
        if "secret" in volume and volume["secret"]["secretName"] in rendered.names("Secret"):
            data = rendered.named("Secret", volume["secret"]["secretName"]).get("data", {})
            found |= {f"{mount['mountPath']}/{key}": base64.b64decode(value).decode() for key, value in data.items()}
    return found


@rule
def models_are_where_they_outlive_a_pod(rendered: Rendered) -> Iterator[str]:
    """Machines fetch none themselves, so that a cache of their own would stay empty for ever."""
    for pod in (rendered.pod("serve"), *(pod for pod in rendered.pods if pod.on_ray)):
        (container,) = pod.containers
        claims = {
            volume["name"]: volume["persistentVolumeClaim"]["claimName"]
            for volume in pod.spec["volumes"]
            if "persistentVolumeClaim" in volume
        }
        kept = [mount["mountPath"] for mount in container["volumeMounts"] if claims.get(mount["name"]) == "state"]
        settings = rendered.settings(container)
        named = {"EQUIPOISE_MODEL_ROOTS": settings.get("EQUIPOISE_MODEL_ROOTS", "")}
        if settings.get("HF_HUB_OFFLINE") == "1":
            named["HF_HOME"] = settings.get("HF_HOME", "")
        for name, path in named.items():
            if not any(path.startswith(f"{place}/") for place in kept):
                yield f"{pod.name}: {name} is not on the claim `state`"


@rule
def services_have_pods_and_ports(rendered: Rendered) -> Iterator[str]:
    for service in rendered.of("Service"):
        name, spec = service["metadata"]["name"], service["spec"]
        pods = [pod for pod in rendered.pods if selects({"matchLabels": spec["selector"]}, pod.labels)]
        if not pods:
            yield f"Service {name}: selects no pods"
        if spec.get("type", "ClusterIP") != "ClusterIP":
            yield f"Service {name}: is open to the outside"
        for port in spec["ports"]:
            known = {p["name"]: p["containerPort"] for pod in pods for c in pod.containers for p in c.get("ports", [])}
            if known.get(port["targetPort"]) != port["port"]:
                yield f"Service {name}: port {port['port']} is not what its pods have"
    for cluster in rendered.of("RayCluster"):
        head = cluster["spec"]["headGroupSpec"]
        if head.get("enableIngress") is not False or head.get("serviceType") != "ClusterIP":
            yield f"RayCluster {cluster['metadata']['name']}: Ray's dashboard is open to the outside"
    for ingress in rendered.of("Ingress"):
        if not ingress["spec"].get("tls"):
            yield f"Ingress {ingress['metadata']['name']}: no TLS"
        for item in ingress["spec"]["rules"]:
            for path in item["http"]["paths"]:
                if path["backend"]["service"]["name"] != "serve":
                    yield f"Ingress {ingress['metadata']['name']}: leads elsewhere than to serve"


@rule
def gateways_lead_to_serve_alone(rendered: Rendered) -> Iterator[str]:
    listeners: dict[tuple[str, str], Object] = {}
    for gateway in rendered.of("Gateway"):
        name = gateway["metadata"]["name"]
        for listener in gateway["spec"]["listeners"]:
            listeners[name, listener["name"]] = listener
            tls = listener.get("tls", {})
            if listener["protocol"] != "HTTPS" or tls.get("mode") != "Terminate" or not tls.get("certificateRefs"):
                yield f"Gateway {name}: {listener['name']} speaks no TLS"
            if listener.get("allowedRoutes", {}).get("namespaces", {}).get("from") != "Same":
                yield f"Gateway {name}: other namespaces' routes are taken"
    for route in rendered.of("HTTPRoute"):
        name, spec = route["metadata"]["name"], route["spec"]
        parents = [listeners.get((parent["name"], parent.get("sectionName", ""))) for parent in spec["parentRefs"]]
        if not all(parent and [parent.get("hostname")] == spec.get("hostnames") for parent in parents):
            yield f"HTTPRoute {name}: is of no listener, or of one with another host"
        for item in spec["rules"]:
            if item["backendRefs"] != [{"name": "serve", "port": DEFAULT_PORT}]:
                yield f"HTTPRoute {name}: leads elsewhere than to serve"
            if item.get("timeouts", {}).get("request") != "0s":
                yield f"HTTPRoute {name}: cuts streams off"
            if item.get("sessionPersistence", {}).get("type") != "Cookie":
                yield f"HTTPRoute {name}: a session is not in the process that is asked"


@rule
def ports_are_the_settings(rendered: Rendered) -> Iterator[str]:
    serve = rendered.pod("serve").containers[0]
    if serve["args"][serve["args"].index("--port") + 1] != str(DEFAULT_PORT):
        yield "serve listens on another port than clients expect"
    if [port["containerPort"] for port in serve["ports"]] != [DEFAULT_PORT]:
        yield "serve's container port is another than it listens on"
    config = rendered.named("ConfigMap", "redis-config")["data"]["redis.conf"]
    if "\nport 0\n" not in f"\n{config}" or "\ntls-port 6379\n" not in config:
        yield "redis is reached without TLS, or on another port"
    address = rendered.named("ConfigMap", "settings")["data"]["EQUIPOISE_RAY_JOBS_ADDRESS"]
    clusters = rendered.names("RayCluster")
    if address not in {f"http://{name}-head-svc:8265" for name in clusters}:
        yield f"no Ray cluster has its job server at {address}"


@rule
def policies_name_pods_that_exist(rendered: Rendered) -> Iterator[str]:
    for policy in rendered.of("NetworkPolicy"):
        name, spec = policy["metadata"]["name"], policy["spec"]
        if not any(selects(spec["podSelector"], pod.labels) for pod in rendered.pods):
            yield f"NetworkPolicy {name}: is for no pod"
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            for item in spec.get(direction, []):
                if not item.get(peers):
                    yield f"NetworkPolicy {name}: {direction} for all the world"
                for peer in item.get(peers, []):
                    yield from _peer(rendered, name, peer)


def _peer(rendered: Rendered, name: str, peer: Object) -> Iterator[str]:
    if "namespaceSelector" in peer:
        namespace = peer["namespaceSelector"].get("matchLabels", {}).get("kubernetes.io/metadata.name")
        if namespace not in _OUTSIDE:
            yield f"NetworkPolicy {name}: namespace {namespace} is none that is known"
    elif "podSelector" in peer:
        if not any(selects(peer["podSelector"], pod.labels) for pod in rendered.pods):
            yield f"NetworkPolicy {name}: a peer that does not exist"
    elif peer["ipBlock"]["cidr"] == "0.0.0.0/0" and "169.254.0.0/16" not in peer["ipBlock"].get("except", []):
        yield f"NetworkPolicy {name}: the metadata service is reachable"


@rule
def nothing_is_reachable_by_default(rendered: Rendered) -> Iterator[str]:
    denying = [
        policy["spec"]
        for policy in rendered.of("NetworkPolicy")
        if policy["spec"]["podSelector"] == {} and not {"ingress", "egress"} & set(policy["spec"])
    ]
    for direction in ("Ingress", "Egress"):
        if not any(direction in spec["policyTypes"] for spec in denying):
            yield f"{direction} is open where nothing is said"


@rule
def gpus_only_where_they_are_used(rendered: Rendered) -> Iterator[str]:
    on_gpus = rendered.of("Ingress") + rendered.of("Gateway") != []  # of the overlays, those for GPU machines have one
    wanted = {"ray-learner", "ray-rollout"} if on_gpus else set()
    device = rendered.named("ConfigMap", "settings")["data"].get(DEVICE_VARIABLE)
    if device != ("cuda" if on_gpus else ""):  # else what machines have, also those of an overlay that is not ours
        yield f"a job that names no device is on {device}"
    machines = rendered.named("ConfigMap", "settings")["data"].get(MACHINES_VARIABLE, "")
    there = [f"{group}={_gpus(rendered.pod(f'ray-{group}'))}" for group in ("learner", "rollout", "reward")]
    if machines != (",".join(there) if on_gpus else ""):
        yield f"jobs are told of machines with GPUs {machines}, and they have {','.join(there)}"
    for pod in rendered.pods:
        has = any("nvidia.com/gpu" in container["resources"]["limits"] for container in pod.containers)
        if has != (pod.name in wanted):
            yield f"{pod.name}: has {'a GPU that it does not use' if has else 'no GPU'}"
        tolerates = any(item["key"] == "nvidia.com/gpu" for item in pod.spec.get("tolerations", []))
        if tolerates != has:
            yield f"{pod.name}: {'runs on' if tolerates else 'is kept off'} machines with GPUs"


@rule
def machines_may_start_from_nothing(rendered: Rendered) -> Iterator[str]:
    """An autoscaler knows of a machine that is not there yet what its group says, not what a DaemonSet adds."""
    for pod in rendered.pods:
        node = pod.spec.get("affinity", {}).get("nodeAffinity", {})
        required = node.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
        keys = {item["key"] for term in required for item in term.get("matchExpressions", [])}
        for key in sorted(keys | set(pod.spec.get("nodeSelector", {}))):
            if key.startswith(_LATE_LABELS):
                yield f"{pod.name}: requires {key}, which no machine has before it joined"


def _gpus(pod: Pod) -> int:
    return sum(int(container["resources"]["limits"].get("nvidia.com/gpu", 0)) for container in pod.containers)


@rule
def accounts_have_the_least(rendered: Rendered) -> Iterator[str]:
    roles = {role["metadata"]["name"]: role for role in rendered.of("Role")}
    bound = {item["subjects"][0]["name"] for item in rendered.of("RoleBinding")}
    if rendered.of("ClusterRole") or rendered.of("ClusterRoleBinding"):
        yield "rights in the whole cluster"
    for name, role in roles.items():
        for item in role["rules"]:
            if item["apiGroups"] != ["ray.io"]:
                yield f"Role {name}: {item['apiGroups']}"
            if "rayclusters" in item["resources"] and item.get("resourceNames") != ["ray"]:
                yield f"Role {name}: every RayCluster"
            for resource in item["resources"]:
                for verb in item["verbs"]:
                    if (resource, verb) not in _ALLOWED_VERBS:
                        yield f"Role {name}: may {verb} {resource}"
    for pod in rendered.pods:
        account = pod.spec.get("serviceAccountName")
        if pod.name == "ray-headgroup":
            continue  # KubeRay's own, for the autoscaler
        if account not in rendered.names("ServiceAccount"):
            yield f"{pod.name}: no ServiceAccount {account}"
            continue
        mounts = pod.spec.get("automountServiceAccountToken")
        if mounts is not (account in bound):
            yield f"{pod.name}: {'a token that it does not need' if mounts else 'no token'}"


@rule
def redis_keeps_what_it_acknowledged(rendered: Rendered) -> Iterator[str]:
    config = rendered.named("ConfigMap", "redis-config")["data"]["redis.conf"].splitlines()
    for line in ("appendonly yes", "appendfsync always", "maxmemory-policy noeviction", "tls-port 6379", "port 0"):
        if line not in config:
            yield f"redis.conf: no '{line}'"
    stateful = rendered.named("StatefulSet", "redis")
    if stateful["spec"]["replicas"] != 1:
        yield "redis: more than one that believes it is the primary"
    if not any(mount["mountPath"] == "/data" and mount["name"] == "data" for mount in _mounts(rendered.pod("redis"))):
        yield "redis: its data are not on its volume"


def _mounts(pod: Pod) -> list[Object]:
    return [mount for container in pod.containers for mount in container["volumeMounts"]]


@rule
def serve_survives_a_machine(rendered: Rendered) -> Iterator[str]:
    serve = rendered.named("Deployment", "serve")["spec"]
    if serve["replicas"] < 2 or serve["strategy"]["rollingUpdate"]["maxUnavailable"] != 0:
        yield "serve: a machine, or an upgrade, ends the API"
    budgets = [item["spec"] for item in rendered.of("PodDisruptionBudget")]
    labels = rendered.pod("serve").labels
    if not any(selects(item["selector"], labels) and item.get("minAvailable", 0) >= 1 for item in budgets):
        yield "serve: a drain may end all of it"
    for scaler in rendered.of("HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        if target["name"] not in rendered.names(target["kind"]) or scaler["spec"]["minReplicas"] < 2:
            yield f"HorizontalPodAutoscaler {scaler['metadata']['name']}: scales nothing, or to one"


@rule
def ray_asks_for_a_token_and_grows_from_zero(rendered: Rendered) -> Iterator[str]:
    for cluster in rendered.of("RayCluster"):
        name, spec = cluster["metadata"]["name"], cluster["spec"]
        if spec.get("authOptions", {}).get("mode") != "token":
            yield f"RayCluster {name}: whoever reaches it may run what he likes"
        secret = spec["authOptions"].get("secretName") if "authOptions" in spec else None
        if secret is not None and "auth_token" not in rendered.keys("Secret", secret):
            yield f"RayCluster {name}: no token in {secret}"
        if spec["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
            yield f"RayCluster {name}: work runs on the head"
        if spec["headGroupSpec"]["rayStartParams"].get("num-gpus") != "0":
            yield f"RayCluster {name}: what waits for a GPU may land on the head, where Ray sees one"
        if not spec.get("enableInTreeAutoscaling"):
            yield f"RayCluster {name}: does not grow"
        if spec["autoscalerOptions"].get("version") != "v2":
            yield f"RayCluster {name}: its autoscaler knows no labels"
        settings = rendered.settings(spec["headGroupSpec"]["template"]["spec"]["containers"][0])
        if not settings.get(GROWTH_VARIABLE):
            yield f"RayCluster {name}: jobs fail where its machines take a while to start"
        if float(settings.get("RAY_JOB_START_TIMEOUT_SECONDS", 900)) < float(settings.get(GROWTH_VARIABLE) or 0):
            yield f"RayCluster {name}: Ray gives a driver up before its machine may be there"
        label = settings[ROLE_LABEL_VARIABLE]
        groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
        if set(groups) != {"learner", "rollout", "reward"}:
            yield f"RayCluster {name}: groups {sorted(groups)}"
        for group in groups.values():
            if group.get("labels", {}).get(label) != group["groupName"]:
                yield f"RayCluster {name}: no actor waits for {group['groupName']}"
            if group["minReplicas"] != 0 or group["replicas"] != 0 or group["maxReplicas"] < 1:
                yield f"RayCluster {name}: {group['groupName']} does not start from zero"
    for pod in rendered.pods:
        shm = [volume for volume in pod.spec.get("volumes", []) if volume["name"] == "shm"]
        if pod.on_ray and (not shm or shm[0]["emptyDir"].get("medium") != "Memory"):
            yield f"{pod.name}: /dev/shm is not in memory"


@rule
def ray_is_replaced_as_a_whole(rendered: Rendered) -> Iterator[str]:
    """Machines of a new image can't join a head of the old one, and would run beside old actors if they could."""
    for cluster in rendered.of("RayCluster"):
        if cluster["spec"].get("upgradeStrategy", {}).get("type") != "Recreate":
            yield f"RayCluster {cluster['metadata']['name']}: an upgrade leaves its head behind"


@rule
def drivers_hear_of_their_machines_end(rendered: Rendered) -> Iterator[str]:
    """And Ray keeps engines and learners for them meanwhile, but not longer than Kubernetes lets it."""
    for pod in (pod for pod in rendered.pods if pod.on_ray):
        (container,) = pod.containers
        hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        if hook != ["python", "-m", "orchestrator.leaving"]:
            yield f"{pod.name}: its drivers are killed without a word"
        waits_s = float(rendered.settings(container).get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", 30))
        if not 60 <= waits_s <= pod.spec["terminationGracePeriodSeconds"] - 10:
            yield f"{pod.name}: Ray waits {waits_s:g} s for its drivers"
