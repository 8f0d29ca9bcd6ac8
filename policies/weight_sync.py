"""How the learner's weights reach the engines: four phases on the engines, the transport a plug-in.

    init -> (start -> update -> finish, with the new policy version) once a step

A failed update may leave an engine with mixed weights, so an engine that saw `start` without `finish` is stale and
refuses to sample until a whole update went through (policies/rollout.py).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from policies import cpu_norm
from policies.learner import Learner

Transport = Literal["shared_memory", "nccl", "ipc"]
SHARED_MEMORY = Path("/dev/shm")
OLD_S = 600.0  # no file is on its way for so long


class EngineClient(Protocol):
    """The engines' side, all of them as one; every call returns when every engine has done it."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...
    def start_weight_update(self) -> None: ...
    def update_weights(self, update_info: Any) -> None: ...
    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


class WeightSource(Protocol):
    """What has the weights that engines are to load; as Learner."""

    def weights(self) -> dict[str, Tensor]: ...
    def each_weight(self) -> Iterator[tuple[str, Tensor]]: ...
    def weight_kinds(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]: ...


class Collected:
    """A learner's weights, collected from all its ranks at a moment of their own: senders may ask for them twice.

    A rank alone keeps none, and gives them as they are. Of an adapter, its own alone where the transport takes that.
    """

    def __init__(self, learner: Learner, transport: Transport) -> None:
        self._transport = transport
        self.follow(learner)

    def follow(self, learner: Learner) -> None:
        """From now on this learner's weights, whoever has been handed this object."""
        self.learner = learner
        self._kept: dict[str, Tensor] = {}
        alone = learner.settings.lora is not None and self._transport == "shared_memory"
        self._ask = learner.adapter if alone else learner.weights

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """On every rank; the first has them meanwhile. A copy of the policy is not to lie there during updates."""
        if self.learner.ranks.size > 1:
            self._kept = self._ask()
        try:
            yield
        finally:
            self._kept = {}

    def weights(self) -> dict[str, Tensor]:
        return self._kept or self._ask()

    def each_weight(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self._kept.items()) if self._kept else self.learner.each_weight()

    def weight_kinds(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        return self.learner.weight_kinds()


class WeightSender(Protocol):
    """The learner's side of a transport."""

    def send(self, version: int) -> None:
        """Returns when every engine samples from the learner's weights, under this policy version."""
        ...


@contextlib.contextmanager
def shared_file() -> Iterator[Path]:
    """A new file in this machine's shared memory, for weights on their way; it is gone afterwards."""
    path = SHARED_MEMORY / f"equipoise-{os.getpid()}-{uuid.uuid4().hex}.safetensors"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _save(weights: dict[str, Tensor], path: Path) -> None:
    """Raises RuntimeError where shared memory is too small for them: a container has 64 MiB unless it is given more."""
    needed, free = sum(tensor.nbytes for tensor in weights.values()), shutil.disk_usage(path.parent).free
    if needed > free:
        raise RuntimeError(
            f"{path.parent} has no room for the policy's weights on their way to the engines: {needed >> 20} MiB are "
            f"needed, {free >> 20} MiB are free; give it more (docker run --shm-size)"
        )
    save_file(weights, path)


def sweep_shared_memory() -> None:
    """Removes the files of processes that were killed over them: each is as large as a policy.

    Those of the last ten minutes stay, as a process may be one of another container, whose number says nothing here.
    """
    for path in SHARED_MEMORY.glob("equipoise-*-*.safetensors"):
        with contextlib.suppress(OSError):  # another's, or gone
            alive = Path("/proc", path.name.split("-")[1]).exists()
            if not alive and time.time() - path.stat().st_mtime > OLD_S:
                path.unlink()


class SharedMemorySender:
    """A safetensors file in shared memory, which every engine reads: the policy, or an adapter alone.

    The client sees to engines on other machines: the file is on this one.
    """

    def __init__(self, learner: WeightSource, client: EngineClient) -> None:
        self.learner = learner
        self.client = client
        sweep_shared_memory()
        client.init_weight_transfer_engine({})

    def send(self, version: int) -> None:
        with shared_file() as path:
            _save(self.learner.weights(), path)
            self.client.start_weight_update()
            self.client.update_weights({"path": str(path)})
            self.client.finish_weight_update(str(version))


class VllmSender:
    """vLLM's own transports between GPUs (`nccl`) and inside one GPU (`ipc`).

    world_size counts the learner and every engine's GPUs; `address` is asked for one at which the engines reach this
    machine.
    """

    def __init__(
        self,
        learner: WeightSource,
        client: EngineClient,
        *,
        transport: Literal["nccl", "ipc"],
        world_size: int,
        address: Callable[[], str],
    ):
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

        self.client = _VersionedClient(client)
        self.engine = WeightTransferTrainerFactory.trainer_init(
            _init_info(transport, world_size, address), client=self.client, source=_source(learner)
        )

    def send(self, version: int) -> None:
        self.client.version = str(version)
        torch.cuda.synchronize()  # vLLM reads on streams of its own, which don't wait for what the learner's still does
        self.engine.send_weights()


class _VersionedClient:
    """vLLM's trainer calls finish without a version; the policy version is put in here, in the same phase."""

    def __init__(self, client: EngineClient) -> None:
        self.client = client
        self.version: str | None = None
        self.init_weight_transfer_engine = client.init_weight_transfer_engine
        self.start_weight_update = client.start_weight_update
        self.update_weights = client.update_weights

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.client.finish_weight_update(weight_version or self.version)


def _init_info(transport: Literal["nccl", "ipc"], world_size: int, address: Callable[[], str]) -> Any:
    if transport == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        return IPCTrainerInitInfo(rank=0)
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    return NCCLTrainerInitInfo(rank=0, master_address=address(), master_port=port, world_size=world_size)


def _source(learner: WeightSource, device: str = "cuda") -> Any:
    """The learner's weights in the engines' dtype, as vLLM's trainer reads them: on a GPU, one after the other."""
    from vllm.distributed.weight_transfer import base

    class LearnerSource(base.WeightSource):
        def metadata(self) -> list[base.ParamMeta]:
            return [base.ParamMeta(*kind) for kind in learner.weight_kinds()]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return ((name, tensor.to(device)) for name, tensor in learner.each_weight())

    return LearnerSource()


def make_sender(
    learner: WeightSource,
    client: EngineClient,
    *,
    transport: Transport,
    world_size: int,
    address: Callable[[], str],
) -> WeightSender:
    if transport == "shared_memory":
        return SharedMemorySender(learner, client)
    return VllmSender(learner, client, transport=transport, world_size=world_size, address=address)


def prepare_vllm() -> None:
    """vLLM calls this in every process that it starts (entry point `vllm.general_plugins`)."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    if "shared_memory" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("shared_memory", "policies.shared_memory", "SharedMemoryEngine")
    cpu_norm.register()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True, name="end-with-parent").start()


def _end_with(parent: Any) -> None:
    """vLLM's engine process outlives a parent that was killed; with its KV cache, nobody would ever free it."""
    while parent.is_alive():
        time.sleep(1.0)
    os._exit(1)
