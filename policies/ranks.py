"""The processes that learn from one batch together: how they agree, and how a model is sharded over them (FSDP2).

Every rank is given the whole batch, takes its part of the rollouts, and knows everybody else's; gradients add up over
the ranks, as the loss does over the rollouts. A process without a group is one rank alone.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


class Ranks:
    """This process among those of torch's default group, where there is one."""

    def __init__(self, device: torch.device, *, offload: bool = False) -> None:
        """To `offload`: what is sharded is kept in the host's memory, also by one rank alone in its group."""
        grouped = dist.is_available() and dist.is_initialized()
        self.device = device
        self.rank = dist.get_rank() if grouped else 0
        self.size = dist.get_world_size() if grouped else 1
        self.offload = offload
        # For what agrees on files beside passes of the model: exchanges of two threads in one group would mix.
        self.files = dist.new_group(backend="gloo") if self.size > 1 else None
        assert grouped or not offload

    @property
    def first(self) -> bool:
        """Whether it is this rank that writes what all have."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Over all ranks, on each of them."""
        if self.size == 1:
            return values
        total = values.to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(values.device)

    def of_first(self, told: str | None) -> str | None:
        """What the first rank tells, on each of them. In the group of `files`."""
        if self.size == 1:
            return told
        found = [told]
        dist.broadcast_object_list(found, src=0, group=self.files)
        return found[0]

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            dist.barrier()

    def shard(self, root: nn.Module, blocks: nn.ModuleList, dtype: Literal["float32", "bfloat16"]) -> None:
        """Parameters, gradients and moments in `size` parts, gathered block by block while they are used."""
        if self.size == 1 and not self.offload:
            return
        options: dict[str, Any] = {"mesh": init_device_mesh(self.device.type, (self.size,))}
        # Gathered in half the bytes, added up over the ranks in float32. What blocks hand on is bfloat16 too, where
        # under autocast it is float32.
        if dtype == "bfloat16":
            options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if self.offload:
            options["offload_policy"] = CPUOffloadPolicy(pin_memory=self.device.type == "cuda")
        for block in blocks:
            fully_shard(block, **options)
        # Else a pass without gradient would leave the root's weights gathered, and the next would not see an update.
        fully_shard(root, reshard_after_forward=True, **options)
        for module in root.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # a sum: each rank's loss has only its own rollouts' shares
                module.set_force_sum_reduction_for_comms(True)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this rank may have a part; every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, values: Tensor) -> Tensor:
    """`values`, on the tensor's device and sharded as it is."""
    if not isinstance(tensor, DTensor):
        return values.to(tensor.device)
    mesh: DeviceMesh = tensor.device_mesh
    return distribute_tensor(values.to(tensor.device), mesh, tensor.placements).to(tensor.device)
