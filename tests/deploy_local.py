"""The rendered containers as processes of this machine: their own commands, arguments and environment.

What is mapped: hosts and ports to this machine's, `/var/lib/equipoise` and `/tmp` to folders, and each pod's mounted
Secrets and ConfigMaps to folders of its own. The control plane's processes can't import what their image lacks. Ray is
started as KubeRay does from what is rendered, but with one machine for each group.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.deploy_redis import DeployedRedis, deployed_redis, mapped, write_secret
from tests.deploy_support import Rendered, wait_for
from tests.ports import free_port

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parent.parent
_NOT_IN_CONTROL = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "ray", "vllm", "transformers", "tokenizers", "plotly", "numba"}:
            raise ModuleNotFoundError(f"No module named {name!r}: the image `control` has it not", name=name)
sys.meta_path.insert(0, Blocker())
"""


class Installation:
    """An overlay on this machine, in a directory. `open` it; then `start` the pods."""

    def __init__(self, rendered: Rendered, directory: Path, secrets: Path) -> None:
        self.rendered, self.directory, self.secrets = rendered, directory, secrets
        self.port, self.ray_port = free_port(), free_port()
        self.redis: DeployedRedis
        self.state = directory / "state"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._cleanup = ExitStack()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ray_url(self) -> str:
        return f"http://127.0.0.1:{self.ray_port}"

    @contextmanager
    def open(self) -> Iterator[Installation]:
        """With Redis, and nothing else yet."""
        self.state.mkdir(parents=True)
        only = self.directory / "control-only"
        only.mkdir()
        (only / "sitecustomize.py").write_text(_NOT_IN_CONTROL)
        with self._cleanup:
            self.redis = self._cleanup.enter_context(deployed_redis(self.rendered, self.directory / "redis"))
            self._cleanup.callback(self._end)
            yield self

    def start(self, name: str, **environment: str) -> subprocess.Popen[bytes]:
        """The pod of a Deployment of the control plane."""
        (container,) = self.rendered.pod(name).containers
        words = [self._text(name, word) for word in [*container["command"], *container["args"]]]
        assert words[0] == "equipoise"
        words = [str(self.port) if word == "8740" else word for word in words]
        path = os.pathsep.join([str(self.directory / "control-only"), os.environ.get("PYTHONPATH", "")])
        given = self._environment(name, container) | {"PYTHONPATH": path} | environment
        self.processes[name] = self._run(name, [str(BIN / words[0]), *words[1:]], given)
        return self.processes[name]

    def start_worker(self) -> None:
        """It tells drivers where their Redis URL is: under its own path in Kubernetes, in another folder here."""
        theirs = self.directory / "pods" / "ray-headgroup" / "run" / "secrets" / "equipoise" / "redis-url"
        self.start("worker", EQUIPOISE_REDIS_URL_FILE=str(theirs))

    def start_ray(self) -> None:
        """KubeRay's part: the token in its variable, the container's environment, and a machine of each group.

        Each has the CPUs of as many as may be, as nothing here makes another.
        """
        spec = self.rendered.named("RayCluster", "ray")["spec"]
        assert spec["authOptions"] == {"mode": "token", "secretName": "ray-token"}
        gcs_port, folder = free_port(), Path(f"/tmp/ray-{uuid.uuid4().hex[:8]}")  # Ray's sockets need a short path
        self._cleanup.callback(subprocess.run, ["rm", "-rf", str(folder)], check=True)
        self._cleanup.callback(self._end)
        self._start_ray_on(
            "ray-headgroup", "--head", f"--port={gcs_port}", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
            f"--num-cpus={spec['headGroupSpec']['rayStartParams']['num-cpus']}", f"--dashboard-port={self.ray_port}",
            f"--ray-client-server-port={free_port()}", f"--temp-dir={folder}",
        )  # fmt: skip
        for group in spec["workerGroupSpecs"]:
            name = f"ray-{group['groupName']}"
            (container,) = self.rendered.pod(name).containers
            cpus = int(container["resources"]["limits"]["cpu"]) * group["maxReplicas"]
            labels = ",".join(f"{key}={value}" for key, value in group["labels"].items())
            self._start_ray_on(name, f"--address=127.0.0.1:{gcs_port}", f"--num-cpus={cpus}", f"--labels={labels}")

    def _start_ray_on(self, name: str, *options: str) -> None:
        (container,) = self.rendered.pod(name).containers
        token = write_secret(self.rendered, "ray-token", self.directory / "ray-token") / "auth_token"
        given = self._environment(name, container)
        given |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token.read_text().strip()}
        common = ["--block", "--node-ip-address=127.0.0.1", "--object-store-memory=80000000", "--disable-usage-stats"]
        words = [str(BIN / "ray"), "start", *common, f"--dashboard-agent-listen-port={free_port()}", *options]
        self.processes[name] = self._run(name, words, given)
        # Each when the one before is up: those that start together on one machine may choose the same ports.
        wait_for(lambda: "Ray runtime started" in self.log(name), 120)

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def stop(self, name: str, number: int = signal.SIGTERM) -> int:
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(60)

    def _run(self, name: str, words: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.directory / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                words,
                env=environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _environment(self, name: str, container: Any) -> dict[str, str]:
        """The container's own, and where this machine's programs are."""
        settings = {key: self._text(name, value) for key, value in self.rendered.settings(container).items()}
        self._mount(name)
        here = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(self.directory), "PYTHONPATH": str(ROOT)}
        if "PYTHONPATH" in os.environ:
            here["PYTHONPATH"] = os.environ["PYTHONPATH"]
        return here | settings

    def _text(self, name: str, text: str) -> str:
        pod = self.directory / "pods" / name
        scheme, path = ("file://", text[7:]) if text.startswith("file://") else ("", text)
        if path.startswith(("/run/", "/etc/", "/tmp/")):
            return f"{scheme}{pod}{path}"
        text = text.replace("/var/lib/equipoise", str(self.state))
        text = text.replace("http://ray-head-svc:8265", self.ray_url)
        return "127.0.0.1" if text == "0.0.0.0" else text

    def _mount(self, name: str) -> None:
        pod = self.directory / "pods" / name
        (pod / "tmp").mkdir(parents=True, exist_ok=True)
        template = self.rendered.pod(name)
        volumes = {volume["name"]: volume for volume in template.spec["volumes"]}
        for mount in template.containers[0]["volumeMounts"]:
            volume, place = volumes[mount["name"]], Path(f"{pod}{mount['mountPath']}")
            if "secret" in volume:
                write_secret(self.rendered, volume["secret"]["secretName"], place)
                if (url := place / "redis-url").exists():
                    url.write_text(mapped(url.read_text().strip(), self.redis))
            elif "configMap" in volume:
                place.mkdir(parents=True, exist_ok=True)
                for key, value in self.rendered.named("ConfigMap", volume["configMap"]["name"])["data"].items():
                    (place / key).write_text(value)

    def _end(self) -> None:
        for process in reversed(self.processes.values()):  # machines before their head, which they would wait for
            below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            for child in below:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        self.processes.clear()
