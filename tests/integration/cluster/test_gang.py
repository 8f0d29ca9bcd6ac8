"""Whole gangs of actors on a real Ray of 8 CPU slots: all of a job's actors at once, or none."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator import driver
from orchestrator.actors.gang import Gang, reserve
from orchestrator.errors import DoesNotFit, ResourcesBusy
from orchestrator.launch.launchers import NO_RESOURCES
from orchestrator.state.redis_calls import connect
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore

CPU = ("rollout", {"num_cpus": 1})
OWN_GROUPS = Path("/proc/self/cgroup")


pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def gangs() -> Iterator[list[Gang]]:
    """Those that a test made; given back at its end."""
    made: list[Gang] = []
    yield made
    for gang in made:
        gang.close()


def test_of_two_jobs_one_gets_all_and_the_other_holds_nothing(gangs: list[Gang]) -> None:
    gangs.append(reserve([CPU] * 5, timeout_s=60, grows=False))
    heard: list[str] = []
    with pytest.raises(ResourcesBusy) as busy:
        reserve([CPU] * 4, timeout_s=2, grows=False, on_wait=heard.append)
    assert str(busy.value) == "waiting for resources: needs 4 CPUs, 3 free"
    assert set(heard) == {str(busy.value)}
    gangs.append(reserve([CPU] * 3, timeout_s=60, grows=False))  # all that is left is there for a third
    gangs.pop(0).close()
    gangs.append(reserve([CPU] * 4, timeout_s=60, grows=False))


def test_jobs_that_come_at_once_never_hold_half_each(gangs: list[Gang]) -> None:
    def come() -> None:
        try:
            gangs.append(reserve([CPU] * 5, timeout_s=3, grows=False))
        except ResourcesBusy:
            refused.append(True)

    refused: list[bool] = []
    threads = [threading.Thread(target=come) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(gangs), len(refused)) == (1, 2)


def test_actors_run_on_what_is_reserved_for_them_though_nothing_else_is_free(gangs: list[Gang]) -> None:
    import ray

    class Actor:
        def where(self) -> str:
            return str(ray.get_runtime_context().get_placement_group_id())

    gang = reserve([CPU] * 8, timeout_s=60, grows=False)
    gangs.append(gang)
    actors = [ray.remote(Actor).options(**CPU[1], **gang.place(i)).remote() for i in (0, 7)]
    assert set(ray.get([actor.where.remote() for actor in actors], timeout=60)) == {gang.group.id.hex()}
    outsider = ray.remote(Actor).options(**CPU[1]).remote()
    waiting = outsider.where.remote()
    assert ray.wait([waiting], timeout=1)[0] == []
    gangs.pop().close()
    assert ray.get(waiting, timeout=60) == "None"
    ray.kill(outsider)


def test_a_reward_that_is_lost_starts_again_in_its_own_place(gangs: list[Gang]) -> None:
    """Though nothing else is free: what a restart needs was never given back."""
    from rewards import registry
    from rewards.base import RewardBatch
    from rewards.hosting import SINGLE, actor_replica

    gang = reserve([CPU] * 7 + [("reward", CPU[1])], timeout_s=60, grows=False)
    gangs.append(gang)
    replica = actor_replica(partial(registry.build, "clarity", {}), **CPU[1], **gang.place(7))
    batch = RewardBatch(
        prompts=("1+1=",), completions=("2",), answers=("2",), completion_tokens=(1,), truncated=(False,), max_tokens=9
    )
    for _ in range(2):
        assert replica.start(60) is None
        assert replica.call(batch, [SINGLE], 60).failure is None
        replica.kill()


@pytest.mark.parametrize("grows", [False, True])
def test_what_never_fits_is_refused_with_what_is_needed_and_what_is_there(grows: bool) -> None:
    gpu = ("rollout", {"num_cpus": 1, "num_gpus": 2})
    with pytest.raises(DoesNotFit, match="the job needs 5 GPUs at once, the cluster has 0"):
        reserve([gpu, gpu, ("learner", {"num_cpus": 1, "num_gpus": 1})], timeout_s=0.1 if grows else 600, grows=grows)
    with pytest.raises(DoesNotFit, match="the job needs 9 CPUs at once, the cluster has 8"):
        reserve([CPU] * 9, timeout_s=0.1 if grows else 600, grows=grows)


class Job:
    """A job in Redis whose driver gets as far as its reservation."""

    def __init__(self, redis_url: str, state_dir: Path, needs: int) -> None:
        self.redis_url, self.state_dir, self.needs = redis_url, state_dir, needs
        self.store = JobStore(connect(redis_url), owner=f"gang-{uuid.uuid4().hex}")
        spec = {
            "name": "x", "steps": 1, "policy": {"model": "quickstart"}, "data": {"type": "quickstart"},
            "objectives": [{"name": "conciseness", "reward": {"name": "conciseness"}}],
        }  # fmt: skip
        self.store.submit(json.dumps(spec), name="x", job_id="j")

    def build(self, *_: Any, on_stage: Any, **__: Any) -> Any:
        reserve([CPU] * self.needs, timeout_s=2, grows=False, on_wait=on_stage)
        pytest.fail("there was room")

    def drive(self) -> int:
        heard = signal.getsignal(signal.SIGTERM)
        try:
            return driver.drive("j", self.redis_url, self.state_dir, owner=self.store.owner, ray_address=None)
        finally:
            signal.signal(signal.SIGTERM, heard)


def test_a_driver_without_room_hands_its_job_back_uncounted(
    gangs: list[Gang], redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gangs.append(reserve([CPU] * 6, timeout_s=60, grows=False))
    job = Job(redis_url, tmp_path, needs=3)
    monkeypatch.setattr("orchestrator.build.build", job.build)
    for _ in range(4):  # a fourth counted attempt would be poison
        assert job.drive() == NO_RESOURCES
    record = job.store.job("j")
    assert (record.status, record.attempts) == (JobStatus.QUEUED, 0)
    assert record.reason == "waiting for resources: needs 3 CPUs, 2 free"
    assert record.progress["stage"] == record.reason


def test_a_job_that_never_fits_fails_with_the_reason(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(redis_url, tmp_path, needs=9)
    monkeypatch.setattr("orchestrator.build.build", job.build)
    assert job.drive() == 0
    record = job.store.job("j")
    assert record.status is JobStatus.FAILED
    assert record.reason == "resources: the job needs 9 CPUs at once, the cluster has 8"


def test_a_cancel_is_heard_while_a_job_waits_for_room(
    gangs: list[Gang], redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gangs.append(reserve([CPU] * 6, timeout_s=60, grows=False))
    job = Job(redis_url, tmp_path, needs=3)

    def build(*_: Any, on_stage: Any, **__: Any) -> Any:
        job.store.request_cancel("j")
        reserve([CPU] * 3, timeout_s=600, grows=False, on_wait=on_stage)

    monkeypatch.setattr("orchestrator.build.build", build)
    monkeypatch.setattr(driver, "RENEW_EVERY_S", 0.1)
    assert job.drive() == 0
    record = job.store.job("j")
    assert (record.status, record.reason) == (JobStatus.CANCELLED, "on request")


@pytest.mark.parametrize("slow", ["learner", "engines"])
def test_a_start_that_takes_its_time_hears_that_nobody_wants_it_any_more(
    slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.actors import cluster, learner_group
    from policies.learner_settings import LearnerSettings
    from policies.rollout import EngineSettings

    class Part:
        def __init__(self, *_: Any, **options: Any) -> None:
            if slow == ("learner" if "rank" in options else "engines"):
                time.sleep(60)

        def ready(self) -> bool:
            return True

        def end_core(self) -> None:
            pass

    monkeypatch.setattr(cluster, "EngineActor", Part)
    monkeypatch.setattr(learner_group, "LearnerActor", Part)
    heard: list[float] = []

    def on_wait() -> None:
        heard.append(time.monotonic())
        if len(heard) == 5:
            raise driver.HandedBack

    parts = cluster.Cluster()
    try:
        with pytest.raises(driver.HandedBack):
            parts.start(
                EngineSettings(model="x"), LearnerSettings(model="x"), engines=2,
                engine_options={"num_cpus": 1}, learner_options={"num_cpus": 1}, on_wait=on_wait,
            )  # fmt: skip
    finally:
        monkeypatch.setattr(cluster, "END_S", 0.1)
        parts.close()
    assert heard[-1] - heard[0] < 30


def test_a_learner_that_dies_while_it_loads_is_lost_and_one_that_says_why_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from orchestrator.actors import cluster, learner_group
    from orchestrator.actors.remote_learner import LearnerError
    from orchestrator.errors import ActorLost
    from policies.learner_settings import LearnerSettings
    from policies.rollout import EngineSettings

    class Part:
        def __init__(self, settings: Any, **_: Any) -> None:
            if settings.model == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("no such model")

    class Idle:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def ready(self) -> bool:
            return True

        def end_core(self) -> None:
            pass

    monkeypatch.setattr(cluster, "EngineActor", Idle)
    monkeypatch.setattr(cluster, "END_S", 0.1)
    monkeypatch.setattr(learner_group, "LearnerActor", Part)
    for model, expected in (("dies", ActorLost), ("x", LearnerError)):
        parts = cluster.Cluster()
        try:
            with pytest.raises(expected):
                parts.start(
                    EngineSettings(model="x"), LearnerSettings(model=model), engines=1,
                    engine_options={"num_cpus": 1}, learner_options={"num_cpus": 1},
                )  # fmt: skip
        finally:
            parts.close()


@pytest.mark.usefixtures("ray_cluster")
def test_a_process_that_is_gone_is_told_from_one_that_says_what_is_wrong() -> None:
    import ray
    import torch

    from orchestrator.actors.engine_actors import ActorEngine
    from orchestrator.actors.remote_learner import LearnerError, RemoteLearner
    from orchestrator.errors import ActorLost, LearnerOutOfMemory
    from orchestrator.rollouts.engines import EngineError, EnginePool
    from policies.rollout import EngineDied
    from policies.types import RolloutRequest

    class Part:
        def ready(self) -> bool:
            return True

        def _end(self, how: str) -> None:
            if how == "killed":
                os._exit(1)
            errors = {"vllm": EngineDied("the core is gone"), "wrong": ValueError("an odd token")}
            raise errors[how]

        def generate(self, requests: list[RolloutRequest]) -> None:
            self._end("killed" if len(requests) == 1 else "vllm" if len(requests) == 2 else "wrong")

        def stream(self, requests: list[RolloutRequest], _call: str) -> Iterator[list[Any]]:
            yield []
            self.generate(requests)

        def sync(self, version: int) -> None:
            """As the learner does: what becomes of an engine meanwhile is told by the learner."""
            if version > 3:
                raise torch.OutOfMemoryError("2 GiB") if version == 4 else MemoryError
            if version < 3:  # the second one outlives what it says, and is the third one's, too
                self.other = part()
            ray.get(self.other.generate.remote([None] * version))

    def part() -> Any:
        """Up, which takes seconds, so that no limit below has that in it."""
        actor = ray.remote(Part).options(num_cpus=0).remote()
        ray.get(actor.ready.remote())
        return actor

    request = RolloutRequest(prompt_tokens=(1,), seed=0, max_tokens=1)
    for count, expected in ((1, ActorLost), (2, ActorLost), (3, EngineError)):
        actor = part()  # the last one lives on, and learns below
        pool = EnginePool([ActorEngine(actor)], timeout_s=60)
        pool.open()
        with pytest.raises(expected):
            pool.generate([request] * count)
    learner, full = RemoteLearner(actor, sync_s=300), LearnerOutOfMemory
    for count, expected in ((1, ActorLost), (2, ActorLost), (3, LearnerError), (4, full), (5, full)):
        with pytest.raises(expected):
            learner.sync(count)


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group of the kernel that may have 200 MiB of memory; where none can be made, the test is skipped."""
    own = {kinds: name for _, kinds, name in (line.split(":", 2) for line in OWN_GROUPS.read_text().splitlines())}
    root, limit = (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes") if "memory" in own else (
        Path("/sys/fs/cgroup"), "memory.max")  # fmt: skip
    group = root / own.get("memory", own.get("", "/")).lstrip("/") / f"equipoise-{uuid.uuid4().hex}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            (group / limit).write_text(str(200 * 2**20))
        except OSError as error:
            pytest.skip(f"no control group's memory can be limited here: {error}")
        yield group
    finally:
        for _ in range(100):  # until the kernel has seen that its process is gone
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


def test_a_learner_that_the_kernel_kills_is_out_of_memory(small_group: Path) -> None:
    """T14, of the machine's memory: no error is raised anywhere, the process is just gone."""
    import ray

    from orchestrator.actors.remote_learner import RemoteLearner
    from orchestrator.errors import ActorLost, LearnerOutOfMemory

    class Part:
        def load(self, group: Path | None) -> None:
            if group is None:
                os.kill(os.getpid(), signal.SIGKILL)
            (group / "cgroup.procs").write_text(str(os.getpid()))
            bytearray(400 * 2**20)

    def learner() -> RemoteLearner:
        return RemoteLearner(ray.remote(Part).options(num_cpus=0).remote(), sync_s=60)

    with pytest.raises(ActorLost) as lost:
        learner().load(None)  # type: ignore[arg-type]
    assert not isinstance(lost.value, LearnerOutOfMemory)
    with pytest.raises(LearnerOutOfMemory, match="the kernel ended the learner"):
        learner().load(small_group)
