"""Learner and engines as ranks of one group: who has which rank, and what ends a wait for one that is gone."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from orchestrator.actors import cluster, engine_actors, learner_group
from orchestrator.actors.cluster import Cluster, connect_engines
from orchestrator.actors.engine_actors import EngineActor, EngineFanout
from orchestrator.actors.learner_group import LearnerRanks, meet
from orchestrator.actors.remote_learner import LearnerError, RemoteLearner
from orchestrator.errors import ActorLost, LearnerOutOfMemory
from orchestrator.rollouts.engines import EngineError, EnginePool
from policies import weight_sync
from policies.learner_settings import LearnerSettings
from policies.rollout import EngineDied, EngineSettings

NEVER = object()


@dataclass(eq=False)
class Reference:
    """What a call comes to: a value, an error, or nothing for ever."""

    outcome: Any


@dataclass(eq=False)
class Actor:
    """Any method comes to `outcome`; `asked` has what was called, with which arguments."""

    outcome: Any = None
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    def __getattr__(self, method: str) -> Any:
        def remote(*arguments: Any) -> Reference:
            self.asked.append((method, *arguments))
            return Reference(self.outcome)

        return SimpleNamespace(remote=remote)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's waits over the references above; none really takes its time."""

    def wait(references: list[Reference], *, num_returns: int = 1, timeout: float | None = None) -> Any:
        ready = [reference for reference in references if reference.outcome is not NEVER][:num_returns]
        assert ready or timeout is not None, "it would wait for ever"
        return ready, [reference for reference in references if reference not in ready]

    def get(references: Any) -> Any:
        several = references if isinstance(references, list) else [references]
        for reference in several:
            if isinstance(reference.outcome, BaseException):
                raise reference.outcome
        return [None] * len(several) if isinstance(references, list) else None

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", get)


def failed(cause: Exception) -> Exception:
    """A task's error as Ray raises it: of its cause's class as well."""
    error: Exception = ray.exceptions.RayTaskError("sync", f"Traceback\n{cause}", cause).as_instanceof_cause()
    return error


GONE = ray.exceptions.RayActorError()
CORE_GONE = failed(EngineDied("vLLM's process ended"))


def settings(**changes: Any) -> EngineSettings:
    return EngineSettings(**({"model": "m", "device": "cuda", "transport": "nccl"} | changes))


# -- ranks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("engines", "tensor_parallel"), [(1, 1), (3, 1), (2, 4)])
def test_every_rank_of_the_group_is_somebodys_once(engines: int, tensor_parallel: int) -> None:
    """A vLLM worker's rank is its own in its engine and the engine's offset; the learner is rank 0."""
    actors = [Actor() for _ in range(engines)]
    trainer = Actor()
    connect_engines(LearnerRanks([trainer]), actors, settings(tensor_parallel=tensor_parallel), [Reference(NEVER)])
    ((_, fanout, transport, world_size),) = trainer.asked
    sent = {"rank_offset": 1, "world_size": world_size}
    fanout().init_weight_transfer_engine(sent)
    infos = [info for actor in actors for _, info in actor.asked]
    ranks = [info["rank_offset"] + worker for info in infos for worker in range(tensor_parallel)]
    assert transport == "nccl"
    assert [0, *ranks] == list(range(world_size))
    assert {info["world_size"] for info in infos} == {1 + engines * tensor_parallel}
    assert sent["rank_offset"] == 1  # the sender's own is left as it is


def test_engines_without_ranks_are_told_what_the_sender_says() -> None:
    actors = [Actor(), Actor()]
    EngineFanout(actors, patience_s=1).init_weight_transfer_engine({"packed": True})
    assert [actor.asked for actor in actors] == [[("init_weight_transfer_engine", {"packed": True})]] * 2


def test_engines_look_for_the_learner_at_the_address_that_ray_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine's own name may stand for 127.0.1.1, where engines on others would look for it on themselves."""
    monkeypatch.setattr("socket.gethostbyname", lambda _: "127.0.1.1")
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.1.2.3")
    made: dict[str, Any] = {}

    class Sender:
        def __init__(self, *_: Any, **options: Any) -> None:
            made.update(options)

    monkeypatch.setattr(weight_sync, "VllmSender", Sender)
    actor = learner_group.LearnerActor.__new__(learner_group.LearnerActor)
    actor.rank = 0
    actor.learner = SimpleNamespace(  # type: ignore[assignment]
        settings=SimpleNamespace(lora=None), ranks=SimpleNamespace(size=1), weights=dict
    )
    actor.connect(lambda: SimpleNamespace(), "nccl", 2)  # type: ignore[arg-type, return-value]
    engine = SimpleNamespace(NCCLTrainerInitInfo=dict)
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer.nccl_engine", engine)
    assert weight_sync._init_info("nccl", 2, made["address"])["master_address"] == "10.1.2.3"


@pytest.mark.parametrize(
    ("transport", "order"),
    [
        (
            "ipc",
            ["learner", "engine 0", "up 1", "engine 1", "up 2"],
        ),  # vLLM counts what others take meanwhile as its own
        ("nccl", ["engine 0", "engine 1", "learner", "up 2"]),
    ],
)
def test_who_shares_a_gpu_starts_one_after_the_other(
    transport: str, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    started = Cluster.__new__(Cluster)
    started.actors, started.engines, started.pool = [], [], None
    started.gang = SimpleNamespace(place=lambda _: {})  # type: ignore[assignment]

    def remote(_: Any) -> Any:
        def start(*_: Any, **__: Any) -> Actor:
            happened.append(f"engine {len(started.engines)}")
            return Actor()

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=start))

    await_engines = Cluster._await_engines

    def awaiting(self: Cluster, *arguments: Any) -> None:
        if f"up {len(self.engines)}" not in happened:
            happened.append(f"up {len(self.engines)}")
        await_engines(self, *arguments)

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(cluster, "start_ranks", lambda *_, **__: LearnerRanks([Actor()]))
    monkeypatch.setattr(cluster, "meet", lambda *_, **__: happened.append("learner"))
    monkeypatch.setattr(Cluster, "_await_engines", awaiting)
    monkeypatch.setattr(EnginePool, "open", lambda _: None)
    started.start(
        settings(transport=transport), LearnerSettings(model="m"), engines=2, engine_options={}, learner_options={}
    )
    assert happened == order


def test_engines_that_never_come_up_are_lost() -> None:
    stuck = Cluster.__new__(Cluster)
    stuck.engines = [Actor(), Actor(NEVER)]
    with pytest.raises(ActorLost, match="1 of 2 engines did not start within 0 s"):
        stuck._await_engines(0.0, lambda: None)


# -- what ends a wait -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [GONE, CORE_GONE])
def test_a_learner_that_waits_for_an_engine_that_is_gone_is_not_waited_for(loss: Exception) -> None:
    learner = RemoteLearner(Actor(NEVER), sync_s=1800, group=[Reference(NEVER), Reference(loss)])
    with pytest.raises(ActorLost, match="an engine is gone"):
        learner.sync(3)
    with pytest.raises(ActorLost, match="an engine is gone"):
        connect_engines(LearnerRanks([Actor(NEVER)]), [Actor()], settings(), [Reference(loss)])


def test_a_learner_that_waits_for_an_engine_whose_update_failed_is_not_waited_for() -> None:
    """It never hears of it where it is itself in the exchange; nor is the engine's memory its own."""
    broken = [Reference(NEVER), Reference(failed(EngineError("can't allocate memory: the receive buffer")))]
    with pytest.raises(ActorLost, match=r"a rollout engine failed in a weight update: .*receive buffer") as told:
        RemoteLearner(Actor(NEVER), sync_s=1800, group=broken).sync(3)
    assert not isinstance(told.value, LearnerOutOfMemory)
    with pytest.raises(ActorLost, match="receive buffer"):
        connect_engines(LearnerRanks([Actor(NEVER)]), [Actor()], settings(), broken)


@pytest.mark.parametrize("update", ["update_weights", "init_weight_transfer_engine"])
def test_what_an_engine_raises_in_a_group_is_no_word_of_the_learners(update: str) -> None:
    """Where the sender itself is told of it."""
    gone, full = (EngineFanout([Actor(error)]) for error in (CORE_GONE, failed(torch.OutOfMemoryError("CUDA's"))))
    with pytest.raises(EngineDied):
        getattr(gone, update)({})
    with pytest.raises(EngineError, match="CUDA's") as told:
        getattr(full, update)({})
    with pytest.raises(ActorLost, match="CUDA's") as loss:
        RemoteLearner(Actor(failed(told.value)), sync_s=5, group=[Reference(NEVER)]).sync(3)
    assert not isinstance(loss.value, LearnerOutOfMemory)


@pytest.mark.parametrize(
    "outcome", [failed(RuntimeError("NCCL error: remote process exited")), failed(ConnectionError("reset"))]
)
def test_a_sync_that_fails_in_a_group_goes_back_to_the_checkpoint(outcome: Any) -> None:
    with pytest.raises(ActorLost, match="begin anew"):
        RemoteLearner(Actor(outcome), sync_s=5, group=[Reference(NEVER)]).sync(3)


@pytest.mark.parametrize("group", [[], [Reference(NEVER)]])
def test_a_sync_that_does_not_end_goes_back_to_the_checkpoint(group: list[Reference]) -> None:
    with pytest.raises(ActorLost, match=r"did not reach the engines within 5 s \(rollout\.timeout_s\)"):
        RemoteLearner(Actor(NEVER), sync_s=5, group=group).sync(3)


@pytest.mark.parametrize("method", ["gramian", "learn", "save", "load", "logprobs", "renew"])
def test_nor_is_a_learner_waited_for_that_hangs_in_another_call(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "put", lambda value: value)
    arguments: dict[str, tuple[Any, ...]] = {"gramian": ([], None), "learn": ([], None, None)}
    learner = RemoteLearner(Actor(NEVER), sync_s=5, timeout_s=9)
    with pytest.raises(ActorLost, match=rf"did not end `{method}` within 9 s \(resources\.learner_timeout_s\)"):
        getattr(learner, method)(*arguments.get(method, ([],)))


def test_without_a_group_its_reason_is_the_jobs() -> None:
    with pytest.raises(LearnerError, match="the learner failed"):
        RemoteLearner(Actor(failed(ValueError("no such parameter"))), sync_s=5).sync(3)
    with pytest.raises(OSError, match="full"):
        RemoteLearner(Actor(failed(OSError("full"))), sync_s=5).sync(3)


@pytest.mark.parametrize("words", ["EADDRINUSE: address already in use (port: 4711)", "bind: Address already in use"])
def test_a_port_that_was_taken_meanwhile_is_no_fault_of_the_jobs(words: str) -> None:
    with pytest.raises(ActorLost, match="was taken meanwhile"):
        connect_engines(LearnerRanks([Actor(failed(RuntimeError(words)))]), [Actor()], settings(), [])


def test_an_engine_that_was_left_out_of_one_update_has_its_part_in_the_next() -> None:
    """It may have got everything in the end, and say so."""
    slow, other = Actor(), Actor()
    fanout = EngineFanout([slow, other], patience_s=7)
    slow.outcome = NEVER
    fanout.finish_weight_update("1")
    assert fanout.engines == [other]
    slow.outcome = None
    fanout.start_weight_update()
    fanout.finish_weight_update("2")
    assert fanout.engines == [slow, other]
    assert slow.asked[-1] == ("finish_weight_update", "2")


def test_engines_that_are_all_silent_are_lost() -> None:
    """No disk's error, which would end the job, though Python's TimeoutError is an OSError."""
    with pytest.raises(EngineDied, match=r"no engine answered within 7 s \(rollout\.stall_s\)") as silence:
        EngineFanout([Actor(NEVER), Actor(NEVER)], patience_s=7).start_weight_update()
    with pytest.raises(ActorLost, match="no engine answered"):
        RemoteLearner(Actor(failed(silence.value)), sync_s=5).sync(3)
    with pytest.raises(ActorLost, match="no engine answered"):
        connect_engines(LearnerRanks([Actor(failed(silence.value))]), [Actor()], settings(), [])


@pytest.mark.parametrize(("stall_s", "patience_s"), [(3.0, 60.0), (120.0, 120.0), (600.0, 450.0)])
def test_how_long_an_engine_may_take_its_weights(stall_s: float, patience_s: float) -> None:
    trainer = Actor()
    connect_engines(LearnerRanks([trainer]), [Actor()], settings(stall_s=stall_s), [])
    ((_, fanout, *_),) = trainer.asked
    assert fanout().patience_s == patience_s  # of 1,800 s for the whole sync


def test_a_learner_that_hangs_while_it_is_connected_is_lost() -> None:
    with pytest.raises(ActorLost, match=r"connect took longer than 9 s.*resources\.learner_timeout_s"):
        connect_engines(LearnerRanks([Actor(NEVER)]), [Actor()], settings(), [], timeout_s=9)
    with pytest.raises(ray.exceptions.GetTimeoutError):
        meet(LearnerRanks([Actor(NEVER)]), LearnerSettings(model="m"), timeout_s=0.1, on_wait=lambda: None)


def test_while_ranks_are_waited_for_somebody_is_told_who_may_end_it() -> None:
    class Cancelled(BaseException):
        pass

    told: list[None] = []

    def on_wait() -> None:
        told.append(None)
        if len(told) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        LearnerRanks([Actor(NEVER)]).call("join", "place", on_wait=on_wait)
    told.clear()
    with pytest.raises(Cancelled):
        connect_engines(LearnerRanks([Actor(NEVER)]), [Actor()], settings(), [Reference(NEVER)], on_wait=on_wait)
    with pytest.raises(ray.exceptions.GetTimeoutError):
        LearnerRanks([Actor(NEVER)]).call("join", "place", timeout_s=0.1, on_wait=lambda: None)


def test_a_group_that_never_meets_says_what_to_look_at() -> None:
    with pytest.raises(LearnerError, match=r"one group within 600 s \(rollout\.transport: nccl\).*NCCL_SOCKET_IFNAME"):
        connect_engines(LearnerRanks([Actor(NEVER)]), [Actor()], settings(), [Reference(NEVER)])


def test_an_engine_lasts_until_vllms_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_actors, "LOOK_EVERY_S", 0.01)
    actor = EngineActor.__new__(EngineActor)
    actor.llm, actor.stale, actor.policy_version = SimpleNamespace(errored=False), False, 0

    async def watched() -> float:
        waiting = asyncio.ensure_future(actor.lasts())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        actor.llm.errored, since = True, time.monotonic()
        with pytest.raises(EngineDied):
            await waiting
        return time.monotonic() - since

    assert asyncio.run(watched()) < 5


@pytest.mark.parametrize(
    ("update", "arguments"),
    [
        ("init_weight_transfer_engine", ({},)),
        ("start_weight_update", ()),
        ("update_weights", ({},)),
        ("finish_weight_update", ("1",)),
    ],
)
def test_an_engine_lasts_until_a_phase_of_an_update_fails(
    update: str, arguments: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says why, in one line."""
    requests = SimpleNamespace(WeightTransferInitRequest=dict, WeightTransferUpdateRequest=dict)
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer.base", requests)
    monkeypatch.setattr(engine_actors, "LOOK_EVERY_S", 0.01)

    async def fails(*_: Any) -> None:
        raise ValueError("no module or\n  parameter named 'mlp'")

    async def paused(*_: Any, **__: Any) -> None: ...

    actor = EngineActor.__new__(EngineActor)
    actor.llm, actor.stale, actor.policy_version = SimpleNamespace(errored=False), False, 0
    actor.llm.engine_core = SimpleNamespace(pause_scheduler_async=paused)
    setattr(actor.llm, update, fails)
    actor.resting, actor._gate = False, asyncio.Lock()
    monkeypatch.setattr("policies.rollout._is_death", lambda _: False)

    async def watched() -> None:
        waiting = asyncio.ensure_future(actor.lasts())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        with pytest.raises(ValueError, match="no module"):
            await getattr(actor, update)(*arguments)
        with pytest.raises(EngineError, match="no module or parameter named 'mlp'"):
            await asyncio.wait_for(waiting, 5)

    asyncio.run(watched())
