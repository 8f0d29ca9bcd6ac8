"""What the models of a job's rewards take of a GPU, or of the machine's memory: their weights, without torch.

What scoring a batch takes beside them is not in it; vLLM's runner has it in the share that it is given.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.hosting import HostedReward, hosted_gold, hosted_rewards
from orchestrator.spec import JobSpec
from rewards import registry
from rewards.models.options import LoadOptions, ModelOptions

Model = tuple[str, str | None]
"""A directory or a hub id, and its revision."""

_GIB = 2**30
_MOST_GIB = 2**30  # numbers of a spec have no end of their own
_NUMBER_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class HostedModel:
    """The model of one reward, in each of its replicas."""

    reward: HostedReward
    fields: tuple[str, ...]  # of the spec: the rewards that share it
    model: Model
    options: LoadOptions

    @property
    def on_gpu(self) -> bool:
        return bool(self.reward.hosting.num_gpus) and self.options.device != "cpu"

    @property
    def name(self) -> str:
        return f"reward {self.reward.name} ({', '.join(self.reward.heads)})"

    @property
    def spread(self) -> int:
        """Over so many GPUs; without vLLM a model is on one, however many are reserved."""
        vllm = self._vllm
        return vllm.tensor_parallel if vllm is not None and self.on_gpu else 1

    def parts(self, parameters: int, gpu_bytes: int) -> dict[str, int]:
        """Bytes of a replica."""
        weights, vllm = parameters * _NUMBER_BYTES[self.options.dtype], self._vllm
        if vllm is None:
            return {"weights": weights}
        cache = int(min(vllm.kv_cache_gib, _MOST_GIB) * _GIB)
        if self.on_gpu:
            cache = max(0, int(vllm.gpu_memory_utilization * gpu_bytes) * self.spread - weights)
        return {"weights": weights, "kv_cache": cache}

    @property
    def _vllm(self) -> ModelOptions | None:
        options = self.options
        return options if isinstance(options, ModelOptions) and options.runner == "vllm" else None


def hosted_models(spec: JobSpec) -> list[HostedModel]:
    """In the order in which their rewards are hosted."""
    fields: dict[str, list[str]] = {}
    for i, objective in enumerate(spec.objectives):
        fields.setdefault(objective.reward.shared_by, []).append(f"objectives.{i}.reward")
    hosted = [*hosted_rewards(spec), *hosted_gold(spec)]
    found = []
    for reward, places in zip(hosted, [*fields.values(), ["gold.reward"]], strict=False):
        options = registry.parse_options(reward.name, reward.options)
        if isinstance(options, LoadOptions):
            model = options.model, options.revision
            found.append(HostedModel(reward=reward, fields=tuple(places), model=model, options=options))
    return found
