"""vLLM's root-mean-square norm on CPU by the kernel that vLLM has for it.

Left alone, vLLM makes it of six torch calls, for a compiler to fuse; our engines on CPU start without one, which takes
a minute. In the quickstart policy, with four norms a layer, that was an eighth of a decoding step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LANES = 8  # the kernel takes rows of so many numbers, or of a multiple


def register() -> None:
    """In this process vLLM builds its models with it, where it runs on a CPU. Safe to call twice."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.custom_op import op_registry_oot
    from vllm.model_executor.layers.layernorm import RMSNorm

    if RMSNorm.__name__ in op_registry_oot:
        return

    class CpuRMSNorm(RMSNorm):
        """x / sqrt(mean(x^2) + eps) * weight over the last dimension; of x + residual, and that sum, where one is."""

        def forward_cpu(self, x: Tensor, residual: Tensor | None = None) -> Any:
            """As the norm that it stands for: y, or (y, x + residual); like the one for GPUs, these in their place."""
            if not self._fits(x) or (residual is not None and residual.dtype != x.dtype):
                return self.forward_native(x, residual)
            x = x.contiguous()  # a head's part of the joint product is none
            if residual is None:
                out = torch.empty_like(x)
                torch.ops._C.rms_norm(out, x, self.weight, self.variance_epsilon)
                return out
            residual = residual.contiguous()
            torch.ops._C.fused_add_rms_norm(x, residual, self.weight, self.variance_epsilon)
            return x, residual

        def _fits(self, x: Tensor) -> bool:
            """Whether it is what the kernel reads; it does not look itself."""
            weighted: bool = self.variance_size_override is None and self.has_weight
            return (
                weighted
                and self.weight.dtype == x.dtype
                and x.shape[-1:] == self.weight.shape
                and x.shape[-1] % LANES == 0
            )

    named: Any = CpuRMSNorm
    name = named.name  # by which vLLM's `custom_ops` calls it; lost as it is registered
    RMSNorm.register_oot(CpuRMSNorm, name=RMSNorm.__name__)
    named.name = name
