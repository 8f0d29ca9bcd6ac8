"""Drivers as RayJobs of Kubernetes: KubeRay gives each a Ray cluster of its own, and takes it down afterwards.

What such a cluster is like stands in one RayCluster of ours, which is suspended: its spec is read for each start. The
client is Kubernetes' own. States and reasons are those of KubeRay's RayJob (ray.io/v1).
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes import client, config

from orchestrator.errors import LauncherUnavailable
from orchestrator.launch.kube_watch import PLURAL, RAY_JOBS, RayJobWatch
from orchestrator.launch.launchers import LOG_NAME, NO_RESOURCES, hub_environment, last_line
from orchestrator.launch.ray_jobs import cluster_driver_command, shown_environment

_OURS = "app.kubernetes.io/managed-by=equipoise-worker"
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_OF_THE_MODEL = ("suspend", "upgradeStrategy")  # KubeRay takes the latter of no cluster that a RayJob makes
_ENDED = frozenset({"Complete", "Failed", "ValidationFailed"})
_NO_HEAD = "PreRunningDeadlineExceeded"  # its cluster did not come in time
_NO_MACHINE = "Job supervisor actor failed to start within"  # Ray's words: RAY_JOB_START_TIMEOUT_SECONDS without room
_LOST = 1  # exit code of a driver of which nobody can say how it ended


def in_cluster() -> tuple[client.CustomObjectsApi, str]:
    """The API server of the cluster that this pod is in, and its namespace. ValueError outside of one."""
    try:
        settings = client.Configuration()
        config.load_incluster_config(client_configuration=settings)  # reads the account's token anew as it changes
        namespace = _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    except (config.ConfigException, OSError) as error:
        raise ValueError(f"this is no pod with an account's token: {error}") from None
    return client.CustomObjectsApi(client.ApiClient(settings)), namespace


class RayJobLauncher:
    """Drivers that go on when the worker ends; the next one finds them again, and deletes what ended long ago.

    A RayJob is named by its job, fence and attempt, so that nobody makes the same one twice. Its Ray cluster, its
    environment and its annotations may be seen by whoever may read RayJobs: they hold paths and no secret.
    """

    survives_worker = True

    def __init__(
        self,
        api: client.CustomObjectsApi,
        namespace: str,
        cluster: str,
        state_dir: Path,
        *,
        redis_url_file: Path,
        cpus: float = 1.0,
        grace_s: float = 120.0,
        machines_s: float = 1800.0,
        kept_s: float = 600.0,
        timeout_s: float = 15.0,
        command: Callable[[str, str, Path], list[str]] | None = None,
    ) -> None:
        """`machines_s` is how long a cluster may take to be there, `kept_s` how long one that ended can be seen."""
        self._api = api
        self._namespace = namespace
        self._cluster = cluster
        self.state_dir = state_dir
        self._redis_url_file = redis_url_file
        self._cpus = cpus
        self._grace_s = grace_s
        self._machines_s = machines_s
        self._kept_s = kept_s
        self._timeout_s = timeout_s
        self._command = command or cluster_driver_command
        self._watch = RayJobWatch(api, namespace, _OURS)

    def start(self, job_id: str, owner: str, *, fence: int) -> RayJob:
        """Finds the job's driver at this fence again if there is one that has not ended."""
        digest = hashlib.sha256(f"{owner}/{job_id}".encode()).hexdigest()[:16]
        for attempt in itertools.count():
            name = f"equipoise-{digest}-{fence}-{attempt}"  # KubeRay allows 47 characters
            found = self._look(name) or self._create(name, job_id, owner, fence)
            if not _is_over(found):
                return RayJob(launcher=self, owner=owner, job_id=job_id, fence=fence, name=name)
        raise AssertionError  # count() does not end

    def running(self) -> Sequence[RayJob]:
        self._follow()
        now, drivers = datetime.datetime.now(datetime.UTC), []
        for found in self._watch.all():
            metadata = found["metadata"]
            told = metadata.get("annotations") or {}
            if "equipoise/fence" not in told:
                continue  # somebody else's, with our label
            if not _is_over(found):
                driver = RayJob(
                    launcher=self,
                    owner=told["equipoise/owner"],
                    job_id=told["equipoise/job"],
                    fence=int(told["equipoise/fence"]),
                    name=metadata["name"],
                )
                drivers.append(driver)
            elif "deletionTimestamp" not in metadata and _age_s(found, now) > self._kept_s:
                self.delete(metadata["name"])
        return drivers

    def close(self) -> None:
        """No more is heard of drivers; they go on."""
        self._watch.stop()

    def state(self, name: str) -> Any | None:
        """The RayJob as it was last told of; None where there is none any more."""
        self._follow()
        return self._watch.get(name) or self._look(name)

    def delete(self, name: str) -> None:
        """KubeRay stops its driver first, which is asked to end, and Kubernetes ends its machines."""
        self._call(self._api.delete_namespaced_custom_object, name, propagation_policy="Background", missing_ok=True)

    def _follow(self) -> None:
        self._watch.start(self._timeout_s)
        if problem := self._watch.problem:
            raise LauncherUnavailable(
                f"the Kubernetes API server does not tell of RayJobs ({problem}): check that it runs"
            )

    def _look(self, name: str) -> Any | None:
        return self._call(self._api.get_namespaced_custom_object, name, missing_ok=True)

    def _environment(self, owner: str) -> dict[str, str]:
        return shown_environment(self._redis_url_file, self._grace_s) | hub_environment(owner, self.state_dir)

    def _create(self, name: str, job_id: str, owner: str, fence: int) -> Any:
        document = self._document(name, job_id, owner, fence)
        try:
            return self._call(self._api.create_namespaced_custom_object, document)
        except LauncherUnavailable:
            known = self._look(name)  # the reply was lost, or another worker was faster
            if known is None:
                raise
            return known

    def _document(self, name: str, job_id: str, owner: str, fence: int) -> dict[str, Any]:
        like: Any = self._call(self._api.get_namespaced_custom_object, self._cluster, plural="rayclusters")
        cluster = {key: value for key, value in like["spec"].items() if key not in _OF_THE_MODEL}
        label, _, value = _OURS.partition("=")
        return {
            "apiVersion": "/".join(RAY_JOBS),
            "kind": "RayJob",
            "metadata": {
                "name": name,
                "namespace": self._namespace,
                "labels": {label: value},
                "annotations": {
                    "equipoise/job": job_id,
                    "equipoise/owner": owner,
                    "equipoise/fence": str(fence),
                },
            },
            "spec": {
                "entrypoint": shlex.join(self._command(job_id, owner, self.state_dir)),
                "entrypointNumCpus": self._cpus,
                "submissionMode": "HTTPMode",  # by KubeRay itself, so that no further pod holds the cluster's token
                "runtimeEnvYAML": yaml.safe_dump({"env_vars": self._environment(owner)}),
                "preRunningDeadlineSeconds": round(self._machines_s),
                "backoffLimit": 0,  # another attempt is another claim: the worker decides
                "shutdownAfterJobFinishes": True,
                "ttlSecondsAfterFinished": round(self._kept_s),
                "rayClusterSpec": cluster,
            },
        }

    def _call(
        self, method: Callable[..., Any], *what: Any, plural: str = PLURAL, missing_ok: bool = False, **options: Any
    ) -> Any:
        """Raises LauncherUnavailable; of what isn't there, None where that is `missing_ok`."""
        try:
            return method(*RAY_JOBS, self._namespace, plural, *what, _request_timeout=self._timeout_s, **options)
        except client.ApiException as error:
            if missing_ok and error.status == HTTPStatus.NOT_FOUND:
                return None
            said = last_line(str(error.body or error.reason))
            raise LauncherUnavailable(f"the Kubernetes API server refuses {plural}: {error.status} {said}") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise LauncherUnavailable(
                f"the Kubernetes API server does not answer ({str(error) or type(error).__name__})"
            ) from error


@dataclass(kw_only=True)
class RayJob:
    """A driver in a Ray cluster of its own."""

    launcher: RayJobLauncher
    owner: str
    job_id: str
    fence: int
    name: str
    nonce: None = None  # it draws its own
    _said: str = field(default="")
    _sent_away: bool = field(default=False)

    @property
    def log(self) -> str:
        return str(self.launcher.state_dir / "jobs" / self.job_id / LOG_NAME)

    def poll(self) -> int | None:
        found = self.launcher.state(self.name)
        if found is None:
            self._said = "its RayJob was deleted"
            return 0 if self._sent_away else _LOST
        status = found.get("status") or {}
        if status.get("jobDeploymentStatus") not in _ENDED:
            return None
        self._said = last_line(status.get("message") or "") or str(status.get("reason") or "")
        if status["jobDeploymentStatus"] == "Complete":
            return 0
        reason, message = status.get("reason"), status.get("message") or ""  # Ray's words, which KubeRay passes on
        if reason == _NO_HEAD or (reason == "AppFailed" and message.startswith(_NO_MACHINE)):
            return NO_RESOURCES
        code = re.search(r"exit code (-?\d+)", message)
        return int(code[1]) if code and reason == "AppFailed" else _LOST

    def terminate(self) -> None:
        """Ray sends SIGTERM, and SIGKILL after the launcher's `grace_s` or its machines' own."""
        self._sent_away = True
        self.launcher.delete(self.name)

    def kill(self) -> None:
        """The same: KubeRay has no harder way."""
        self.terminate()

    def last_line(self) -> str:
        return self._said


def _is_over(found: Any) -> bool:
    """It ended, or is on its way."""
    status = found.get("status") or {}
    return status.get("jobDeploymentStatus") in _ENDED or "deletionTimestamp" in found["metadata"]


def _age_s(found: Any, now: datetime.datetime) -> float:
    """Since it ended; 0 where nobody noted when."""
    ended = (found.get("status") or {}).get("endTime")
    return 0.0 if ended is None else (now - datetime.datetime.fromisoformat(ended)).total_seconds()
