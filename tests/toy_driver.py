"""The real driver over fakes: what it commits follows from its spec and its steering log alone.

    python -m tests.toy_driver DRIVER'S ARGUMENTS
    python -m tests.toy_driver --serve     forks a driver for each line of JSON: a start costs milliseconds

EQUIPOISE_TOY is JSON: `ttl_s` and `renew_s` of the lease, `cancel_s` that a cancel waits for a step's end,
`mutants` of tests/toy_mutants.py, `ahead_s` of the clock,
`rewards` are troubles of tests/loop_fakes.py for this driver alone, beside those that the spec's metadata has for every
one (`toy.rewards`), `oom_step` is where its learner runs out of memory, once, and `oom_when` whether "before", "in" or
"after" its optimizer's step; `lost_step` where its process is gone, once, after that step and before the answer. A step
sleeps as long as the metadata says (`toy.step_s`), and hashes so many MiB (`toy.work_mib`). `toy.gpus` is how many GPUs
are said to be reserved.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch
VARIABLE = "EQUIPOISE_TOY"
_MEBIBYTE = bytes(1 << 20)


def run(arguments: list[str]) -> None:
    """The driver's own main, with toy parts in the place of the real ones."""
    import orchestrator.build
    from orchestrator import driver, failpoints
    from tests import toy_mutants

    failpoints._points = failpoints.Failpoints(os.environ.get(failpoints.VARIABLE, ""))
    toy = json.loads(os.environ.get(VARIABLE, "{}"))
    driver.LEASE_TTL_S = toy.get("ttl_s", driver.LEASE_TTL_S)
    driver.RENEW_EVERY_S = toy.get("renew_s", driver.RENEW_EVERY_S)
    driver.CANCEL_GRACE_S = toy.get("cancel_s", driver.CANCEL_GRACE_S)
    if ahead_s := toy.get("ahead_s", 0.0):
        real, steady = time.time, time.monotonic
        time.time, time.monotonic = (lambda: real() + ahead_s), (lambda: steady() + ahead_s)  # type: ignore[assignment]
    for name in toy.get("mutants", []):
        toy_mutants.apply(name)
    orchestrator.build.build = build  # type: ignore[assignment]
    driver.main(arguments)


def build(spec: Any, *_: Any, on_gpus: Any = None, **__: Any) -> Any:
    """In the place of orchestrator.build.build."""
    from orchestrator.errors import ActorLost, LearnerOutOfMemory
    from tests.loop_fakes import FakeEngines, FakeLearner, World, make_parts, real_rewards

    class SlowEngines(FakeEngines):
        def gather(self, requests: Sequence[Any], *rest: Any) -> dict[int, Any]:
            if requests and requests[0].seed is not None:  # not an evaluation
                time.sleep(float(spec.metadata.get("toy.step_s", "0")))
                for _ in range(int(spec.metadata.get("toy.work_mib", "0"))):
                    hashlib.sha256(_MEBIBYTE)
            return super().gather(requests, *rest)

    if gpus := float(spec.metadata.get("toy.gpus", "0")):
        on_gpus(gpus)
    toy = json.loads(os.environ.get(VARIABLE, "{}"))

    class FullLearner(FakeLearner):
        full = True

        def learn(self, rollouts: Sequence[Any], advantages_B: Any, parts: Any) -> Any:
            if not self.full or self.world.version != toy["oom_step"] - 1:
                return super().learn(rollouts, advantages_B, parts)
            self.full = False
            try:
                self.run_out(lambda: super(FullLearner, self).learn(rollouts, advantages_B, parts))
            except MemoryError as error:  # as a RemoteLearner tells of it
                raise LearnerOutOfMemory(f"the learner is out of memory: {error}") from error

        def run_out(self, step: Callable[[], Any]) -> None:
            before = list(self.skills)
            if toy["oom_when"] != "before":
                step()
            if toy["oom_when"] == "in":  # one parameter of the two has moved
                self.skills[1:] = before[1:]
            raise MemoryError("tried to allocate 2 GiB")

    class LostLearner(FakeLearner):
        lost = False

        def learn(self, rollouts: Sequence[Any], advantages_B: Any, parts: Any) -> Any:
            stats = super().learn(rollouts, advantages_B, parts)
            if not self.lost and self.world.version == toy["lost_step"] - 1:
                self.lost = True
                raise ActorLost("the learner or an engine is gone: its process ended")
            return stats

    world = World()
    parts = make_parts(spec, world)
    object.__setattr__(parts, "engines", SlowEngines(world, None))
    if "oom_step" in toy:
        object.__setattr__(parts, "learner", FullLearner(world, spec.gramian.mode))
    if "lost_step" in toy:
        object.__setattr__(parts, "learner", LostLearner(world, spec.gramian.mode))
    if troubles := toy.get("rewards"):
        object.__setattr__(parts, "rewards", real_rewards(spec, world, troubles))
    object.__setattr__(parts, "save_tokenizer", _save_policy_files)
    return parts


def _save_policy_files(folder: Path) -> None:
    """Enough for a checkpoint to be taken for a model, so that it can be forked from."""
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")


def command(job_id: str, owner: str, state_dir: Path) -> list[str]:
    """For a Worker, as its own `driver_command`."""
    return [
        sys.executable, "-m", "tests.toy_driver", "--job", job_id, "--owner", owner, "--state-dir", str(state_dir),
    ]  # fmt: skip


# ------------------------------------------------------------------------ many, cheaply


def serve() -> None:
    """Answers {arguments, environment, log} with the pid of a driver, {pid} with its exit code or null."""
    import torch

    import orchestrator.loop
    import orchestrator.report  # noqa: F401
    from tests import loop_fakes  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        if "pid" in asked:
            pid, status = os.waitpid(asked["pid"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            _become(asked)


def _become(asked: dict[str, Any]) -> None:
    code = 1
    try:
        os.setsid()
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(descriptor, target)
        os.environ.update(asked["environment"])
        run(asked["arguments"])
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Forks:
    """The process that starts them: one for a test session, whatever their Redis and their directory."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.toy_driver", "--serve"]
        self.server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
        )

    def ask(self, question: dict[str, Any]) -> Any:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(question) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def close(self) -> None:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait(30)
        self.server.stdout.close()


class Garage:
    """Starts toy drivers on one Redis and one state directory, and leaves none behind."""

    def __init__(
        self, forks: Forks, redis_url: str, state_dir: Path, *, ttl_s: float = 1.0, renew_s: float = 0.2
    ) -> None:
        self.forks, self.redis_url, self.state_dir = forks, redis_url, state_dir
        self.toy = {"ttl_s": ttl_s, "renew_s": renew_s}
        self.drivers: list[ToyDriver] = []

    def start(
        self, job_id: str, *, owner: str = "local", failpoints: str = "", mutants: Sequence[str] = (), **toy: Any
    ) -> ToyDriver:
        log = self.state_dir / "jobs" / job_id / "driver.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        arguments = ["--job", job_id, "--redis", self.redis_url, "--state-dir", str(self.state_dir), "--owner", owner]
        settings = {**self.toy, "mutants": list(mutants), **toy}
        environment = {"EQUIPOISE_FAILPOINTS": failpoints, VARIABLE: json.dumps(settings)}
        pid = self.forks.ask({"arguments": arguments, "environment": environment, "log": str(log)})
        driver = ToyDriver(self, pid, log)
        self.drivers.append(driver)
        return driver

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for driver in self.drivers:
            driver.kill()


class ToyDriver:
    """One of them."""

    def __init__(self, garage: Garage, pid: int, log: Path) -> None:
        self.garage, self.pid, self.log = garage, pid, log
        self.code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            self.code = self.garage.forks.ask({"pid": self.pid})
        return self.code

    def wait(self, timeout_s: float = 60) -> int:
        deadline = time.monotonic() + timeout_s
        while (code := self.poll()) is None:
            assert time.monotonic() < deadline, f"driver {self.pid} goes on:\n{self.tail()}"
            time.sleep(0.02)
        return code

    def wait_until_stopped(self, timeout_s: float = 60) -> None:
        """By its own failpoint."""
        deadline = time.monotonic() + timeout_s
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert self.poll() is None, self.tail()
            assert time.monotonic() < deadline, self.tail()
            time.sleep(0.01)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def tail(self) -> str:
        return self.log.read_text()[-3000:]


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["--serve"] else run(sys.argv[1:])
