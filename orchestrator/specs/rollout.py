"""How completions are sampled, and which engines do it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from orchestrator.specs.base import Positive, Spec

MAX_RANKS = 64
MAX_ENGINES = 256
OWN_GPU_SHARE, COMMON_GPU_SHARE = 0.9, 0.4  # of its memory, for an engine where a spec does not say


class ReasoningSpec(Spec):
    """Where a completion's thoughts end: rewards, judges and gold see what follows."""

    end: str = Field(
        "</think>",
        min_length=1,
        max_length=64,
        description="rewards get the text behind its first occurrence, and an empty one where there is none; lengths "
        "in tokens stay those of the whole, which rollout files and reports show",
    )


StopString = Annotated[str, Field(min_length=1, max_length=256)]


class RolloutSpec(Spec):
    """How completions are sampled, and on what."""

    prompts_per_step: int = Field(32, ge=1, le=65_536, description="P: prompts in a step")
    rollouts_per_prompt: int = Field(8, ge=1, le=1024, description="G: completions of each prompt")
    max_tokens: int = Field(1024, ge=1, description="tokens of a completion, at most")
    temperature: float = Field(1.0, gt=0, le=5, allow_inf_nan=False, description="above 0: training explores")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="share of the probability that is sampled from; 1 is all. The learner reckons with all of it: what "
        "was cut off shows in importance_mean and sampler_gap",
    )
    top_k: int = Field(0, ge=0, le=2**31 - 1, description="likeliest tokens that are sampled from; 0 is all. As top_p")
    min_p: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="tokens of less than this share of the likeliest's probability are not sampled. As top_p",
    )
    stop: tuple[StopString, ...] = Field(
        (),
        max_length=16,
        description="texts that end a completion, in training and evaluation, as its own end does; the tokens that "
        "wrote one are learned from",
    )
    include_stop: bool = Field(False, description="whether a completion's text has the stop text that ended it")
    reasoning: ReasoningSpec | None = Field(
        None, description="rewards see only what follows the thoughts; `{}` takes the default marker. All when absent"
    )
    engines: int = Field(1, ge=1, le=MAX_ENGINES, description="vLLM engines, each an actor of its own")
    tensor_parallel: int = Field(
        1,
        ge=1,
        le=MAX_RANKS,
        description="GPUs of an engine, all in one machine; on CPU, processes that share its work",
    )
    max_num_seqs: int = Field(256, ge=1, le=8192, description="completions that an engine decodes together")
    kv_cache_gib: Positive = Field(1.0, description="KV cache of an engine on CPU, GiB")
    gpu_memory_utilization: Positive | None = Field(
        None,
        le=0.98,
        description=f"share of a GPU's memory for an engine; when absent {OWN_GPU_SHARE:g} of one that it has alone, "
        f"{COMMON_GPU_SHARE:g} of one that it shares with the learner",
    )
    prefix_caching: bool = Field(True, description="share the prompt's KV cache between its rollouts")
    enforce_eager: bool = Field(False, description="no CUDA graphs or compilation: quicker start, slower decoding")
    transport: Literal["auto", "shared_memory", "nccl", "ipc"] = Field(
        "auto",
        description="how weights reach the engines; auto: shared_memory on CPU, nccl on GPUs, ipc where all share one; "
        "what the device does not have is refused",
    )
    timeout_s: Positive = Field(
        1800.0, description="longest wait for a rollout of a batch to end, or for a weight sync, seconds"
    )
    stall_s: Positive = Field(
        120.0,
        description="an engine that has requests and makes no token for so many seconds is replaced; so is one that "
        "does not take new weights in this time, or in a minute where that is longer",
    )
    mode: Literal["sync", "overlapped", "async"] = Field(
        "sync",
        description="sync: roll out, then learn; overlapped: the next step is rolled out while one is learned from; "
        "async: engines never wait, and weights change under rollouts that go on",
    )
    sleep: bool = Field(
        False,
        description="on a GPU that they share, engines give their memory up while the learner learns: weights wait on "
        "the host, caches are dropped (mode: sync); elsewhere it does nothing",
    )
    max_staleness: int = Field(
        1,
        ge=0,
        le=64,
        description="async: updates that a rollout's weights may be behind those that learn from it, at most",
    )

    @model_validator(mode="after")
    def _something_follows_the_marker(self) -> Self:
        for i, stop in enumerate(self.stop):
            if self.reasoning is not None and stop in self.reasoning.end:
                raise ValueError(f"stop.{i}: ends completions at rollout.reasoning.end, so rewards would see no text")
        return self

    @property
    def samples_all(self) -> bool:
        """Whether any token may be sampled, so that the learner reckons with the engines' own distribution."""
        return self.top_p == 1 and self.top_k == 0 and self.min_p == 0

    @property
    def thoughts_end(self) -> str | None:
        """What rewards see follows it; None where they see all."""
        return None if self.reasoning is None else self.reasoning.end

    def memory_share(self, *, is_shared: bool) -> float:
        """Of the memory of an engine's GPU."""
        return self.gpu_memory_utilization or (COMMON_GPU_SHARE if is_shared else OWN_GPU_SHARE)

    @property
    def most_stale(self) -> int:
        """Updates between the weights that begin a rollout and those that learn from it, at most."""
        return {"sync": 0, "overlapped": 1, "async": self.max_staleness}[self.mode]

    @property
    def in_flight(self) -> bool:
        """Whether weights change under rollouts that go on."""
        return self.mode == "async"
