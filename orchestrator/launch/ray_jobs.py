"""Drivers as jobs of a Ray cluster, by the REST API of its job server (Ray's docs: Ray Jobs REST API).

Plain HTTP rather than Ray's JobSubmissionClient, which waits for ever on a server that is frozen, goes wherever
RAY_ADDRESS points, and would load Ray into the worker.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from orchestrator.actors.gang import (
    GROWTH_VARIABLE,
    MACHINES_VARIABLE,
    ROLE_LABEL_VARIABLE,
    growth_s,
    machine_gpus,
    role_label,
)
from orchestrator.actors.placement import DEVICE_VARIABLE, cluster_device
from orchestrator.errors import LauncherUnavailable
from orchestrator.launch.launchers import (
    LOG_NAME,
    NO_RESOURCES,
    OTHER_HOLDER,
    REDIS_URL_FILE_VARIABLE,
    driver_command,
    hub_environment,
    last_line,
)
from orchestrator.logs import FORMAT_VARIABLE
from orchestrator.storage.checkpoint_store import STORE_VARIABLE
from rewards.judges.profiles import VARIABLE as JUDGES_VARIABLE

_ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
_NO_ROOM = "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"  # RAY_JOB_START_TIMEOUT_SECONDS without room for a driver
_KEPT_S, _DIED_KEPT_S = 600.0, 86_400.0  # how long Ray keeps a driver that ended, and one whose log somebody may want
_DELETED_AT_ONCE = 20
_LOST = 1  # exit code of a driver of which Ray can't say how it ended
# What drivers need of the worker's environment: no credentials.
_SHOWN = (
    FORMAT_VARIABLE, STORE_VARIABLE, JUDGES_VARIABLE, ROLE_LABEL_VARIABLE, GROWTH_VARIABLE, DEVICE_VARIABLE,
    MACHINES_VARIABLE,
)  # fmt: skip


class RayJobsLauncher:
    """Drivers on a Ray cluster. They go on when the worker ends, and the next one finds them again.

    What Ray is told of a job is seen by everyone who may look at its dashboard, so the Redis URL, which may hold a
    password, is not: `redis_url_file` is where the cluster's own machines read it. `state_dir` is a volume that they
    share. The bearer token of a cluster with RAY_AUTH_MODE=token is found where Ray looks for it.
    """

    survives_worker = True

    def __init__(
        self,
        address: str,
        state_dir: Path,
        *,
        redis_url_file: Path,
        cpus: float = 1.0,
        grace_s: float = 120.0,
        command: Callable[[str, str, Path], list[str]] | None = None,
        transport: httpx.BaseTransport | None = None,
        timeout_s: float = 15.0,
    ) -> None:
        """`cpus` are reserved for a driver itself; `grace_s` is how long Ray waits after it asked one to end.

        Ray itself waits up to 10 s for a machine that can take a job, so `timeout_s` is above that.
        """
        self.state_dir = state_dir
        self._redis_url_file = redis_url_file
        self._cpus = cpus
        self._grace_s = grace_s
        self._command = command or cluster_driver_command
        self._label = role_label()
        try:
            self._client = httpx.Client(
                base_url=address,
                timeout=timeout_s,
                transport=transport,
                limits=httpx.Limits(max_keepalive_connections=0),  # calls are seconds apart: nothing is held open
                trust_env=False,
            )
            problem = None if self._client.base_url.scheme in ("http", "https") else "http:// or https:// is missing"
        except httpx.InvalidURL as error:
            problem = str(error)
        if problem:
            raise ValueError(f"the address of Ray's job server, such as http://ray-head:8265: {problem}")

    def start(self, job_id: str, owner: str, *, fence: int) -> RayJob:
        """Finds the job's driver at this fence again if there is one that has not ended.

        Ray refuses a name twice, so there is at most one, however often and by however many workers this is called.
        """
        digest = hashlib.sha256(f"{owner}/{job_id}".encode()).hexdigest()[:8]
        for attempt in itertools.count():
            name = f"{job_id[:100]}-{digest}-{fence}-{attempt}"
            known = self._look(name)
            if known is None:
                known = self._submit(name, job_id, owner, fence)
            if known["status"] not in _ENDED:
                return RayJob(launcher=self, owner=owner, job_id=job_id, fence=fence, submission_id=name)
        raise AssertionError  # count() does not end

    def running(self) -> Sequence[RayJob]:
        """Deletes some of those that ended some time ago: Ray keeps all, and takes ever longer to list them.

        A job that waits for GPUs has a driver every minute.
        """
        found = self._call("GET", "/api/jobs/").json()
        with contextlib.suppress(LauncherUnavailable):  # the next time
            needless = [job for job in found if self._is_ours(job) and _is_needless(job, time.time())]
            for job in needless[:_DELETED_AT_ONCE]:
                self._call("DELETE", f"/api/jobs/{job['submission_id']}", missing_ok=True)
        return [
            RayJob(
                launcher=self,
                owner=metadata["equipoise_owner"],
                job_id=metadata["equipoise_job"],
                fence=int(metadata["equipoise_fence"]),
                submission_id=job["submission_id"],
            )
            for job in found
            if job["status"] not in _ENDED and "equipoise_fence" in (metadata := job.get("metadata") or {})
        ]

    def _is_ours(self, job: Mapping[str, Any]) -> bool:
        """Whether it is a driver, and of no other installation on this cluster. One of an earlier version may be."""
        metadata, own = job.get("metadata") or {}, str(self.state_dir)
        return "equipoise_fence" in metadata and metadata.get("equipoise_state", own) == own

    def _look(self, name: str) -> dict[str, Any] | None:
        """What Ray knows of a job; None where it knows none of this name."""
        answer = self._call("GET", f"/api/jobs/{name}", missing_ok=True)
        return None if answer.status_code == 404 else dict(answer.json())

    def _environment(self, owner: str) -> dict[str, str]:
        return shown_environment(self._redis_url_file, self._grace_s) | hub_environment(owner, self.state_dir)

    def _submit(self, name: str, job_id: str, owner: str, fence: int) -> dict[str, Any]:
        document = {
            "entrypoint": shlex.join(self._command(job_id, owner, self.state_dir)),
            "submission_id": name,
            "runtime_env": {"env_vars": self._environment(owner)},
            "metadata": {
                "equipoise_job": job_id,
                "equipoise_owner": owner,
                "equipoise_fence": str(fence),
                "equipoise_state": str(self.state_dir),
            },
            "entrypoint_num_cpus": self._cpus,
        }
        if self._label:  # a machine without GPU is good enough
            document["entrypoint_label_selector"] = {self._label: "reward"}
        try:
            self._call("POST", "/api/jobs/", json=document)
        except LauncherUnavailable:
            known = self._look(name)  # the reply was lost, or another worker was faster
            if known is None:
                raise
            return known
        return {"status": "PENDING"}

    def _call(self, method: str, path: str, *, json: Any = None, missing_ok: bool = False) -> httpx.Response:
        try:
            answer = self._client.request(method, path, json=json, headers=_authorization(os.environ))
        except httpx.HTTPError as error:
            raise LauncherUnavailable(
                f"Ray's job server at {self._client.base_url} does not answer ({str(error) or type(error).__name__})"
            ) from error
        if answer.is_success or (missing_ok and answer.status_code == 404):
            return answer
        said = last_line(answer.text)
        hint = "; is RAY_AUTH_TOKEN_PATH the cluster's?" if answer.status_code in (401, 403) else ""
        raise LauncherUnavailable(f"Ray's job server answers {answer.status_code}: {said}{hint}")


@dataclass(kw_only=True)
class RayJob:
    """A driver as a job of a Ray cluster, by the name that Ray has for it."""

    launcher: RayJobsLauncher
    owner: str
    job_id: str
    fence: int
    submission_id: str
    nonce: None = None  # Ray would show it; the lease runs out
    _said: str = ""

    @property
    def name(self) -> str:
        return f"Ray job {self.submission_id}"

    @property
    def log(self) -> str:
        file = self.launcher.state_dir / "jobs" / self.job_id / LOG_NAME
        return f"{file}; what it printed before, Ray has: ray job logs {self.submission_id}"

    def poll(self) -> int | None:
        found = self.launcher._look(self.submission_id)
        if found is None:
            self._said = "Ray no longer knows this driver: its cluster was started anew"
            return _LOST
        if found["status"] not in _ENDED:
            return None
        self._said = last_line(found.get("message") or "")  # of a job that failed, with the tail of its log
        if found.get("error_type") == _NO_ROOM:
            return NO_RESOURCES
        if found["status"] == "FAILED":
            code = found.get("driver_exit_code")
            return _LOST if code is None else int(code)
        return 0

    def terminate(self) -> None:
        """Ray sends SIGTERM, and SIGKILL after the launcher's `grace_s`."""
        self.launcher._call("POST", f"/api/jobs/{self.submission_id}/stop", missing_ok=True)

    def kill(self) -> None:
        """The same: Ray has no harder way."""
        self.terminate()

    def last_line(self) -> str:
        return self._said


def _is_needless(job: Mapping[str, Any], now: float) -> bool:
    """Of a driver, whether it has ended and it is time to forget it."""
    if job["status"] not in _ENDED:
        return False
    waited = job.get("error_type") == _NO_ROOM or job.get("driver_exit_code") in (NO_RESOURCES, OTHER_HOLDER)
    died = job["status"] == "FAILED" and not waited
    ended_ms = job.get("end_time")
    return ended_ms is not None and now - ended_ms / 1000 > (_DIED_KEPT_S if died else _KEPT_S)


def check_environment() -> None:
    """Of what drivers read there, all that they would refuse, one by one. Raises ValueError."""
    role_label()
    growth_s()
    machine_gpus()
    cluster_device()


def shown_environment(redis_url_file: Path, grace_s: float) -> dict[str, str]:
    """Only what a driver needs: all of it is shown in Ray's dashboard, and inherited by the job's actors."""
    variables = {
        REDIS_URL_FILE_VARIABLE: str(redis_url_file),
        "RAY_JOB_STOP_WAIT_TIME_S": str(round(grace_s)),  # read by Ray, which else waits 3 s
    }
    for name in _SHOWN:
        if value := os.environ.get(name):
            variables[name] = value
    return variables


def cluster_driver_command(job_id: str, owner: str, state_dir: Path) -> list[str]:
    """The cluster's own Python, and the Ray that the driver is part of."""
    return [*driver_command(job_id, owner, state_dir, python="python"), "--ray-address", "auto"]


def _authorization(environment: Mapping[str, str]) -> dict[str, str]:
    """As Ray looks for it: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    Read anew each time, as mounted secrets are replaced while we run.
    """
    token = environment.get("RAY_AUTH_TOKEN", "").strip()
    if not token:
        path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        try:
            token = path.read_text().strip()
        except OSError:
            return {}
    return {"authorization": f"Bearer {token}"}
