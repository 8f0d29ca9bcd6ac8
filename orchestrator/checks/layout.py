"""A job's processes on one kind of device: what each takes, and what does not fit. Reckoned, without torch.

From the spec and the model's size (policies/sizes.py, policies/memory.py). On CPU, what processes hold before they
have a model is in it too, as measured; on GPUs, what CUDA takes is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from orchestrator.actors.placement import gpus_wanted, reward_gpus, shares_gpu, transport_of, transport_problem
from orchestrator.checks.reward_models import HostedModel, Model, hosted_models
from orchestrator.spec import JobSpec
from policies.memory import Update, cached_token_bytes, engine_weights_bytes, learner_bytes
from policies.sizes import ModelSize, adapter_size

GIB = 2**30
DEFAULT_GPU_GIB = 80.0
_UNITS = ((30, "GiB"), (20, "MiB"), (10, "KiB"))
_MOST_TOKENS, _MOST_GIB = 2**40, 2**30  # numbers of a spec have no end of their own
# What the processes of a job on CPU hold beside a model: proportional set sizes of a job of 20 thousand parameters, the
# learner's with what its allocator keeps of what was freed.
ENGINE_BYTES, LEARNER_BYTES = 1400 << 20, 512 << 20
RANK_BYTES = 512 << 20  # of each of several in an engine, which have processes of their own
OTHERS_BYTES, REWARD_BYTES = 1250 << 20, 80 << 20
_KEPT = ("weights", "moments", "gradients", "reference")
ENGINE_OVERHEAD_BYTES = 2 << 30  # of an engine on a GPU beside weights and cache
PACKED_BYTES = 2 << 30  # of vLLM's two buffers, for weights on their way to other GPUs


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the job may have. `gpus` None: as many as it wants. `memory_gib` None: its own memory is not known."""

    gpus: int | None = None
    gpu_gib: float = DEFAULT_GPU_GIB
    memory_gib: float | None = None
    disk_bytes: int | None = None  # free where its checkpoints go

    @property
    def gpu_bytes(self) -> int:
        return int(self.gpu_gib * GIB)

    @property
    def memory_bytes(self) -> int | None:
        return None if self.memory_gib is None else int(self.memory_gib * GIB)


@dataclass(frozen=True, kw_only=True)
class Process:
    """One of the job's processes, or each of several that are alike."""

    name: str
    count: int
    gpus: float  # of each
    parts: dict[str, int]  # bytes

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A job on one kind of device."""

    spec: JobSpec
    size: ModelSize
    device: str
    machine: Machine
    reward_sizes: Mapping[Model, int] = field(default_factory=dict)  # parameters, of those that are known

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def shared(self) -> bool:
        return self.on_gpu and shares_gpu(self.spec, self.machine.gpus)

    @property
    def transport(self) -> str:
        """How weights would reach the engines."""
        return transport_of(self.spec, self.device, self.machine.gpus)

    @property
    def gpus(self) -> float:
        """Of all processes at once, the rewards' among them whatever the policy runs on."""
        own = 0 if not self.on_gpu else 1 if self.shared else gpus_wanted(self.spec)
        return _whole(1.0 if self.shares_with_rewards else own + self.reward_gpus)

    @property
    def shares_with_rewards(self) -> bool:
        """Rewards and the rest, on one GPU."""
        return self.shared and self.machine.gpus == 1 and self.reward_gpus < 1

    @property
    def reward_gpus(self) -> float:
        return reward_gpus(self.spec)

    @property
    def number_bytes(self) -> int:
        return 2 if self.spec.policy.dtype == "bfloat16" else 4

    # ------------------------------------------------------------------ engines

    @property
    def engine(self) -> Process:
        rollout = self.spec.rollout
        weights = engine_weights_bytes(self.size, self.number_bytes)
        parts = {"weights": weights, "kv_cache": self.cache_bytes, "overhead": self.engine_overhead_bytes}
        if not self.on_gpu:
            ranks = rollout.tensor_parallel
            parts |= {"arriving": ranks * weights}  # a whole new policy beside the old one, read by each
            parts |= {"runtime": ENGINE_BYTES + (ranks * RANK_BYTES if ranks > 1 else 0)}
        return Process(
            name="engine", count=rollout.engines, gpus=int(self.on_gpu) * rollout.tensor_parallel, parts=parts
        )

    @property
    def engine_limit(self) -> int:
        """What an engine may have of its GPUs."""
        share = self.spec.rollout.memory_share(is_shared=self.shared)
        return int(share * self.machine.gpu_bytes) * self.spec.rollout.tensor_parallel

    @property
    def engine_overhead_bytes(self) -> int:
        """Of an engine on GPUs: activations, CUDA graphs and CUDA itself, about, which vLLM takes off its cache."""
        most = ENGINE_OVERHEAD_BYTES * self.spec.rollout.tensor_parallel
        return min(most, self.engine_limit // 10) if self.on_gpu else 0

    @property
    def cache_bytes(self) -> int:
        """On GPUs what weights and an engine's own working memory leave."""
        if not self.on_gpu:
            return int(min(self.spec.rollout.kv_cache_gib, _MOST_GIB) * GIB)
        weights = engine_weights_bytes(self.size, self.number_bytes)
        return max(0, self.engine_limit - weights - self.engine_overhead_bytes)

    @property
    def sequence_tokens(self) -> int | None:
        """The longest prompt with its completion; None where neither spec nor model bounds it."""
        bounds = [bound for bound in (self.spec.policy.max_model_len, self.size.context) if bound]
        return min(*bounds, _MOST_TOKENS) if bounds else None

    @property
    def token_bytes(self) -> int | None:
        return None if self.size.dimensions is None else cached_token_bytes(self.size.dimensions, self.number_bytes)

    @property
    def sequences(self) -> int | None:
        """How many of the longest the cache holds at once."""
        if self.token_bytes is None or self.sequence_tokens is None:
            return None
        return self.cache_bytes // (self.token_bytes * self.sequence_tokens)

    # ------------------------------------------------------------------ learner

    @property
    def learner(self) -> Process:
        trained = self.trained
        parts = learner_bytes(self.size, self.update, trained=trained)
        if not self.on_gpu:
            parts["runtime"] = LEARNER_BYTES
            if copied := self.checkpoint_bytes(parts["moments"]):
                parts["checkpoint"] = copied
        return Process(name="learner", count=self.spec.resources.learner_ranks, gpus=int(self.on_gpu), parts=parts)

    def checkpoint_bytes(self, moments: int) -> int:
        """What the host has of a checkpoint that is written beside the next steps."""
        if not self.spec.checkpoints.asynchronous:
            return 0
        saved = self.size if self.trained is None or self.spec.merges else self.trained
        return moments * 3 // 2 + self.number_bytes * saved.parameters

    @property
    def trained(self) -> ModelSize | None:
        """An adapter's, where that learns."""
        lora = self.spec.policy.lora
        return None if lora is None else adapter_size(self.size, rank=lora.rank, targets=lora.targets)

    @property
    def sleeps(self) -> bool:
        """Whether engines leave a shared GPU to the learner while it learns."""
        return self.shared and self.spec.rollout.sleep

    @property
    def kept_bytes(self) -> int:
        """What the learner's first rank has between two updates, while it gives the engines the policy.

        A copy in the engines' dtype, where they read it from their common GPU, or it is collected from several ranks;
        else weights go one by one, through buffers of vLLM's. What is offloaded is collected on the host.
        """
        parts, policy = self.learner.parts, engine_weights_bytes(self.size, self.number_bytes)
        collected = self.spec.resources.learner_ranks > 1 and not self.update.offloaded
        copied = policy if self.shared or collected else 0
        buffers = 0 if self.shared else min(2 * policy, PACKED_BYTES)
        return parts["weights"] + parts["moments"] + parts["reference"] + copied + buffers

    @property
    def host_bytes(self) -> int | None:
        """Of the host's memory, for a job on GPUs: what the learner's ranks load, each a whole policy, or what is
        offloaded of all of them; the weights of engines that sleep; reward models that have no GPU; and a checkpoint
        that is written meanwhile."""
        if not self.on_gpu:
            return None
        alone = replace(self.update, offloaded=False, ranks=1)
        parts = learner_bytes(self.size, alone, trained=self.trained)
        kept = sum(parts[name] for name in _KEPT) if self.update.offloaded else 0
        loaded = parts["weights"] * self.spec.resources.learner_ranks
        asleep = self.engine.parts["weights"] * self.spec.rollout.engines if self.sleeps else 0
        return max(loaded, kept) + asleep + self.host_rewards_bytes + self.checkpoint_bytes(parts["moments"])

    @property
    def update(self) -> Update:
        spec = self.spec
        compares = spec.measures_gradients
        tokens, row = self.microbatch
        return Update(
            number_bytes=self.number_bytes,
            tokens=tokens,
            row=row,
            penalty=spec.loss.kl_coef > 0,
            recompute=spec.policy.gradient_checkpointing,
            objectives=len(spec.objectives) if compares else 0,
            gramian=spec.gramian.mode if compares else None,
            ranks=spec.resources.learner_ranks,
            on_gpu=self.on_gpu,
            offloaded=self.on_gpu and spec.policy.cpu_offload,
        )

    @property
    def microbatch(self) -> tuple[int, int]:
        """(tokens of the largest, of its longest row). A row above the budget goes alone, so completions bound it too.

        Prompts that are longer than what the budget leaves beside a completion would make it larger.
        """
        spec = self.spec
        batch = spec.prompts_asked * spec.rollout.rollouts_per_prompt
        budget = min(spec.optimizer.tokens_per_microbatch, _MOST_TOKENS)
        longest = self.sequence_tokens or max(budget, min(spec.rollout.max_tokens, _MOST_TOKENS) + 1)
        completion = min(longest, spec.rollout.max_tokens + 1)
        tokens = max(completion, min(budget, math.ceil(batch / spec.optimizer.minibatches) * longest))
        return tokens, min(longest, tokens)

    # ------------------------------------------------------------------ rewards

    @property
    def reward_models(self) -> list[tuple[HostedModel, Process]]:
        """Those whose size is known, wherever they are."""
        return [
            (
                hosted,
                Process(
                    name=hosted.name,
                    count=hosted.reward.hosting.replicas,
                    gpus=_whole(hosted.reward.hosting.num_gpus) if hosted.on_gpu else 0,
                    parts=hosted.parts(self.reward_sizes[hosted.model], self.machine.gpu_bytes),
                ),
            )
            for hosted in hosted_models(self.spec)
            if hosted.model in self.reward_sizes
        ]

    @property
    def host_rewards_bytes(self) -> int:
        return sum(process.count * process.bytes for hosted, process in self.reward_models if not hosted.on_gpu)

    @property
    def rewards_beside_bytes(self) -> int:
        """On the GPU that engines and learner share, where the rewards are on it too."""
        on_gpu = [process for hosted, process in self.reward_models if hosted.on_gpu]
        return sum(process.count * process.bytes for process in on_gpu) if self.shares_with_rewards else 0

    def _misfits_of_rewards(self) -> Iterator[tuple[str, str]]:
        """Of models that have GPUs apart. Shares of a GPU are put together, in order, as far as they make one."""
        gpus: list[tuple[float, int, set[str]]] = []
        for hosted, process in self.reward_models if not self.shares_with_rewards else []:
            share, of_each = min(1.0, hosted.reward.hosting.num_gpus), process.bytes // hosted.spread
            for _ in range(process.count if hosted.on_gpu else 0):
                i = next((i for i, (taken, _, _) in enumerate(gpus) if taken + share <= 1 + 1e-9), None)
                taken, held, names = (0.0, 0, set[str]()) if i is None else gpus.pop(i)
                gpus.append((taken + share, held + of_each, {*names, process.name}))
        for _, held, names in gpus:
            if held > self.machine.gpu_bytes:
                there = f"do not fit on a GPU of {readable(self.machine.gpu_bytes)}"
                yield "rewards", f"{readable(held)} of {' and '.join(sorted(names))} {there}"
                return

    # ------------------------------------------------------------------ all of it

    @property
    def processes(self) -> list[Process]:
        found = [self.engine, self.learner]
        found += [process for hosted, process in self.reward_models if hosted.on_gpu == self.on_gpu]
        if not self.on_gpu:
            others = OTHERS_BYTES + len(self.spec.objectives) * REWARD_BYTES
            found.append(Process(name="driver, Ray and rewards", count=1, gpus=0, parts={"runtime": others}))
        return found

    @property
    def bytes(self) -> int:
        return sum(process.count * process.bytes for process in self.processes)

    @property
    def memory_bytes(self) -> int | None:
        """Of the machine that a job on CPU has to itself, if it is known."""
        return None if self.on_gpu else self.machine.memory_bytes

    def misfits(self) -> Iterator[tuple[str, str]]:
        """(what does not fit, why)."""
        machine = self.machine
        if problem := transport_problem(self.spec, self.device):
            yield "transport", f"rollout.transport: {problem}"
        if machine.gpus is not None and self.gpus > machine.gpus:
            rewards = f", {self.reward_gpus:g} of them for its rewards" if self.reward_gpus else ""
            yield "gpus", f"the job needs {self.gpus:g} GPUs at once{rewards}, and there are {machine.gpus}"
        if self.on_gpu:
            yield from self._misfits_on_gpu()
        yield from self._misfits_of_rewards()
        if self.memory_bytes is not None and self.bytes > self.memory_bytes:
            needed, there = readable(self.bytes), readable(self.memory_bytes)
            yield "memory", f"all processes together need {needed} of memory, and the machine has {there}"
        if self.sequences == 0 and not (self.on_gpu and self.cache_bytes == 0):
            yield (
                "kv_cache",
                f"an engine's cache of {readable(self.cache_bytes)} holds no sequence of {self.sequence_tokens} "
                "tokens, so that it would not start",
            )

    def _misfits_on_gpu(self) -> Iterator[tuple[str, str]]:
        machine = self.machine
        if self.cache_bytes == 0:
            weights, overhead = readable(self.engine.parts["weights"]), readable(self.engine_overhead_bytes)
            needed = f"weights of {weights} and {overhead} of vLLM's own"
            yield "engine", f"{needed} leave no room for a cache in the {readable(self.engine_limit)} it may have"
        taken = self.engine_limit * self.spec.rollout.engines if self.shared else 0
        left = machine.gpu_bytes - self.rewards_beside_bytes
        rewards = f" and reward models with {readable(machine.gpu_bytes - left)}" if self.rewards_beside_bytes else ""
        if taken > left:
            share = self.spec.rollout.memory_share(is_shared=True)
            engines = f"{self.spec.rollout.engines} engines with {share:g} of a GPU each"
            yield "sharing", f"{engines}{rewards} do not fit on one"
        elif self.learner.bytes + (0 if self.sleeps else taken) > left:
            beside = f" beside engines with {readable(taken)}" if taken and not self.sleeps else ""
            needed = readable(self.learner.bytes)
            yield "learner", f"{needed}{beside}{rewards} do not fit on a GPU of {readable(machine.gpu_bytes)}"
        elif self.kept_bytes + taken > left:
            kept, there = readable(self.kept_bytes), f"do not fit on a GPU of {readable(machine.gpu_bytes)}"
            if self.shared:
                engines = f"engines with {readable(taken)}{rewards}"
                yield "sharing", f"{kept} that the learner keeps while {engines} roll out {there}"
            else:
                yield "learner", f"{kept} of its first rank, while it gives the engines the policy, {there}"


def _whole(gpus: float) -> float:
    return int(gpus) if float(gpus).is_integer() else gpus


def readable(size: int) -> str:
    """Bytes as people read them; whole numbers all the way, as a size may be beyond a float."""
    unit, name = next(((2**power, name) for power, name in _UNITS if size >= 2**power), (1, "B"))
    tenths = size * 10 // unit
    return f"{size} B" if unit == 1 else f"{tenths // 10}.{tenths % 10} {name}"
