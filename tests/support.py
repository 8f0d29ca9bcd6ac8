"""Small real things that several tests need: policies without training, specs, and jobs run by the real driver."""

from __future__ import annotations

import copy
import os
import secrets
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.journal import CLOCKED
from orchestrator.launch.launchers import NONCE_VARIABLE, REDIS_URL_VARIABLE
from orchestrator.spec import JobSpec, parse_spec
from orchestrator.state.redis_calls import connect
from orchestrator.state.store import JobStatus, JobStore, Lease
from orchestrator.steering import initial_steering
from tests.tiny_policy import make_policy as make_policy  # its users know it by this module

EXAMPLES = Path(__file__).parent / "examples"
EXAMPLE = EXAMPLES / "worst_first.py"
REWARD_EXAMPLE = EXAMPLES / "politeness.py"


def is_open(path: Path) -> bool:
    """Whether this process has it open; a file that only the collector closes warns in whatever test comes then."""
    return str(path.resolve()) in [file.path for file in psutil.Process().open_files()]


def small_spec(policy: Path, /, **changes: Any) -> JobSpec:
    """A job of seconds: 4 prompts, 4 rollouts each, an evaluation every second step. `changes` replace whole fields."""
    document: dict[str, Any] = {
        "name": "small",
        "steps": 4,
        "policy": {"model": str(policy), "dtype": "float32"},
        "data": {"type": "quickstart", "train": 64, "validation": 8, "test": 8},
        "objectives": [
            {"name": "accuracy", "reward": {"name": "math"}, "weight": 0.5},
            {"name": "conciseness", "reward": {"name": "conciseness"}, "weight": 0.3},
            {"name": "clarity", "reward": {"name": "clarity"}, "weight": 0.2},
        ],
        "rollout": {"prompts_per_step": 4, "rollouts_per_prompt": 4, "max_tokens": 24, "kv_cache_gib": 0.1},
        "weighting": {"name": "gradient"},
        "optimizer": {"lr": 1e-3, "tokens_per_microbatch": 512},
        "evaluation": {"every": 2},
        "checkpoints": {"every": 2},
        "resources": {"device": "cpu", "learner_threads": 1},
    }
    return parse_spec(copy.deepcopy(document) | changes)


def submit(store: JobStore, spec: JobSpec) -> str:
    job_id = f"job-{secrets.token_hex(6)}"
    store.submit(spec.to_json(), name=spec.name, job_id=job_id, steering=initial_steering(spec).model_dump(mode="json"))
    return job_id


class Drive:
    """A real driver process on a job. `as_worker`: told where Redis is as its worker does."""

    def __init__(
        self, job_id: str, url: str, state_dir: Path, owner: str = "local", *, as_worker: bool = False
    ) -> None:
        self.store = JobStore(connect(url), owner=owner)
        self.job_id = job_id
        self.log = state_dir / "jobs" / job_id / "driver.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "orchestrator.driver", "--job", job_id]
        command += ["--state-dir", str(state_dir), "--owner", owner]
        self.nonce = secrets.token_hex(16)
        environment = os.environ | {NONCE_VARIABLE: self.nonce}
        if as_worker:
            environment[REDIS_URL_VARIABLE] = url
        else:
            command += ["--redis", url]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)

    def wait(self, timeout_s: float = 300) -> int:
        code = self.process.wait(timeout_s)
        assert code == 0, self.log.read_text()[-4000:]
        return code

    def wait_for_step(self, step: int, timeout_s: float = 300, *, fence: int = 1) -> None:
        """Under this fence or a later one: what an earlier holder did may be ahead of where this one starts."""
        deadline = time.monotonic() + timeout_s
        while (job := self.store.job(self.job_id)).step < step or job.fence < fence:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < deadline, f"step {step} was not reached"
            time.sleep(0.05)

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def take_back(self) -> None:
        """As its worker does, which saw it die: the next driver need not wait for the lease to run out."""
        fence = self.store.job(self.job_id).fence
        self.store.release(Lease(job_id=self.job_id, fence=fence, nonce=self.nonce), "its driver died", crashed=True)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


def run_job(spec: JobSpec, url: str, state_dir: Path, *, timeout_s: float = 300) -> tuple[JobStore, str]:
    """Submit, drive to the end, and insist on success."""
    store = JobStore(connect(url))
    job_id = submit(store, spec)
    drive = Drive(job_id, url, state_dir)
    drive.wait(timeout_s)
    record = store.job(job_id)
    assert record.status is JobStatus.SUCCEEDED, f"{record.reason}\n{drive.log.read_text()[-4000:]}"
    return store, job_id


def self_signed(directory: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 and its key, in PEM; skips the test where there is no openssl."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate, and is not there")
    cert, key = directory / "cert.pem", directory / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=equipoise test", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def one_of(pid: int, title: str) -> psutil.Process:
    """The process below `pid` with this title, such as VLLM::EngineCore."""
    (found,) = (process for process in descendants(pid) if " ".join(process.cmdline()).startswith(title))
    return found


def figures(record: dict[str, Any]) -> dict[str, float]:
    """Every number of a committed step by its path, without what a clock or a claim decides."""
    found: dict[str, float] = {}

    def walk(path: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{path}.{key}" if path else key, item)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                walk(f"{path}.{i}", item)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[path] = float(value)

    walk("", {key: value for key, value in record.items() if key not in (*CLOCKED, "at", "fence", "digest")})
    return found


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    first, second = figures(one), figures(other)
    assert first.keys() == second.keys()
    return max(abs(first[key] - second[key]) for key in first)


def offered_by_the_example(example: Path = EXAMPLE) -> dict[str, dict[str, str]]:
    """Entry points by group, as the example's docstring has them."""
    lines = example.read_text().split('"""')[1].splitlines()
    return tomllib.loads(textwrap.dedent("\n".join(line for line in lines if line.startswith("    "))))["project"][
        "entry-points"
    ]


def install(site: Path, name: str, modules: dict[str, str], groups: dict[str, dict[str, str]]) -> None:
    """A distribution as an installer leaves it."""
    site.mkdir(exist_ok=True)
    for module, source in modules.items():
        (site / f"{module}.py").write_text(source)
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in names.items())
        for group, names in groups.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))


def install_example(site: Path) -> None:
    """tests/examples/worst_first.py as the package that its docstring describes; `site` goes on the path."""
    install(site, "my-package", {"my_package": EXAMPLE.read_text()}, offered_by_the_example())


def install_reward_example(site: Path) -> None:
    """tests/examples/politeness.py likewise."""
    modules = {"polite_package": REWARD_EXAMPLE.read_text()}
    install(site, "polite-package", modules, offered_by_the_example(REWARD_EXAMPLE))
