"""JobSpec: what a person asks for, as one frozen tree. The same document as YAML for the CLI and as JSON for the API.

Unknown fields are refused with the nearest valid name. Nothing here imports torch, Ray or vLLM: a spec is read,
checked and shown without them, and only build.py turns it into objects.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    Field,
    ValidationError,
    model_validator,
)

from orchestrator import spec_yaml
from orchestrator.spec_errors import SpecError, all_problems, nearest
from orchestrator.specs import guardrails as guardrail_rules
from orchestrator.specs.base import MAX_METADATA, Decay, Fraction, Metadata, Positive, Spec, Title
from orchestrator.specs.data import DataSpec, FilesData, QuickstartData
from orchestrator.specs.estimators import CondGdpoSpec, EstimatorSpec, GdpoSpec
from orchestrator.specs.foreign import FOREIGN
from orchestrator.specs.gold import GoldSpec
from orchestrator.specs.guardrails import GuardrailSpec
from orchestrator.specs.objectives import ObjectiveSpec
from orchestrator.specs.policy import PolicySpec
from orchestrator.specs.reward_job import RewardJobSpec
from orchestrator.specs.sampling import SamplingSpec
from orchestrator.specs.weightings import HvGradientSpec, HypervolumeSpec, LagrangianSpec, WeightingSpec
from orchestrator.state.states import MAX_PRIORITY
from rewards import registry

KINDS = ("alignment", "reward_model")
MAX_RANKS = 64
MAX_ENGINES = 256
MAX_OBJECTIVES = 31  # the most that moocore approximates a hypervolume for


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
    gpu_memory_utilization: Positive = Field(0.4, le=0.98, description="share of a GPU's memory for an engine")
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
        description="on GPUs, engines give their memory up while the learner learns: weights wait on the host, caches "
        "are dropped (mode: sync)",
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
    def thoughts_end(self) -> str | None:
        """What rewards see follows it; None where they see all."""
        return None if self.reasoning is None else self.reasoning.end

    @property
    def most_stale(self) -> int:
        """Updates between the weights that begin a rollout and those that learn from it, at most."""
        return {"sync": 0, "overlapped": 1, "async": self.max_staleness}[self.mode]

    @property
    def in_flight(self) -> bool:
        """Whether weights change under rollouts that go on."""
        return self.mode == "async"


class LossSpec(Spec):
    """Token-level clipped surrogate, and a KL penalty to the initial policy."""

    clip_low: Fraction = Field(0.2, description="ratio is clipped at 1 - clip_low")
    clip_high: float = Field(0.28, ge=0, le=10, allow_inf_nan=False, description="ratio is clipped at 1 + clip_high")
    importance_cap: Positive = Field(
        2.0,
        description="truncation of learner/sampler probability ratios (engines round, and their weights may be older)",
    )
    kl_coef: float = Field(
        0.0,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="k3 KL to the initial policy; 0 loads no reference",
    )
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = Field(
        "token_mean", description="constant divides by rollout.max_tokens (arXiv 2503.20783)"
    )


class OptimizerSpec(Spec):
    """AdamW and how a batch becomes updates."""

    lr: Positive = Field(1e-6, le=1, description="peak learning rate")
    betas: tuple[Decay, Decay] = Field((0.9, 0.95), description="decay of the gradient's mean and of its square")
    weight_decay: float = Field(0.0, ge=0, le=10, allow_inf_nan=False, description="decoupled, as AdamW has it")
    warmup_steps: int = Field(0, ge=0, description="updates over which the learning rate rises from 0")
    schedule: Literal["constant", "cosine", "linear"] = Field("constant", description="after the warm-up")
    max_grad_norm: Positive = Field(1.0, description="clipping of the combined gradient's norm")
    minibatches: int = Field(1, ge=1, le=1024, description="updates made from one batch of rollouts")
    tokens_per_microbatch: int = Field(
        16_384, ge=16, description="tokens of one forward pass of a rank, padding included"
    )
    packing: bool = Field(
        False, description="several short rollouts in one row of a forward pass, none of which sees another: no padding"
    )
    share_prompts: bool = Field(
        True,
        description="no padding in a microbatch, and a prompt goes through the policy once for all its rollouts there: "
        "where that saves a tenth of the tokens and the model allows it; not with policy.compile, nor where gradients "
        "of objectives are read off a backward pass",
    )


class GramianSpec(Spec):
    """How the objectives' gradients are compared, where the weighting needs it."""

    mode: Literal["exact", "sketch", "last_block", "step_response"] = Field(
        "exact",
        description="exact before the update, at (2 + K) / 3 of its cost; or measured during it, nearly free, for the "
        "next step: sketch (random projections), last_block, step_response (influence alone)",
    )
    sketch_width: int = Field(16, ge=2, le=1024, description="columns of a sketch's projections: error ~ 1 / width")
    response_share: float = Field(
        0.25,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="share of the prompts, drawn anew at each step, whose rollouts step_response reads again; 1 is all",
    )
    average: Decay = Field(0.0, description="share of the running average kept at each step; 0 is this step's alone")


class SteeringSpec(Spec):
    """Who decides the weights at the start; a person can change it while the job runs."""

    mode: Literal["auto", "blend", "manual"] = Field(
        "auto", description="strategy alone, a mix, or the preference alone"
    )
    blend: Fraction = Field(0.5, description="share of the preference in mode blend")


class EvaluationSpec(Spec):
    """Held-out figures, which make the Pareto front."""

    every: int = Field(10, ge=1, description="steps between evaluations; step 0 and the last are always evaluated")
    prompts: int | None = Field(None, ge=1, description="validation prompts used; all when absent")
    rollouts_per_prompt: int = Field(1, ge=1, le=64, description="completions of each held-out prompt")
    temperature: float = Field(1.0, ge=0, le=5, allow_inf_nan=False, description="of held-out sampling; 0 is greedy")
    greedy: bool = Field(True, description="greedy figures beside the sampled ones on the test split")
    test_points: int = Field(
        8, ge=0, le=256, description="points of the final front that are evaluated on the test split"
    )


class SamplesSpec(Spec):
    """Training rollouts that are kept on disk, to be looked at and to preview a change of weights."""

    every: int = Field(1, ge=0, description="steps between those whose rollouts are kept; 0 keeps none")
    prompts: int = Field(4, ge=1, le=64, description="whole groups kept of such a step, the first of its batch")
    keep: int = Field(500, ge=1, le=100_000, description="such steps whose rollouts are kept, the newest")


class CheckpointSpec(Spec):
    """What a crash can cost, and what is kept."""

    every: int = Field(10, ge=1, description="steps between checkpoints: the most that a crash re-runs")
    asynchronous: bool = Field(
        False,
        description="checkpoints are written, summed, flushed and copied to a store beside the next steps, from a copy "
        "of the learner's state in the host's memory; a crash meanwhile goes back to the checkpoint before",
    )


class CollapseSpec(Spec):
    """Sees one objective being hacked while another falls."""

    action: Literal["off", "alert", "pause"] = "alert"
    drop: Fraction = Field(0.15, description="fall of an objective below its best, in units of its range, that counts")
    total_drop: Fraction = Field(
        0.05, description="fall of the preference-weighted total below its best that counts; both must hold"
    )


class ResourcesSpec(Spec):
    """What the job runs on."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    learner_ranks: int = Field(
        1,
        ge=1,
        le=1024,
        description="processes of the learner, on GPUs one each, that share weights, moments and every batch (FSDP2)",
    )
    learner_threads: int | None = Field(
        None, ge=1, description="CPU threads of each rank of the learner; all cores, shared evenly, when absent"
    )
    engine_threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of an engine, shared among its ranks; when absent the engines share all cores, but 1 "
        "for the quickstart policy",
    )
    placement_timeout_s: Positive = Field(
        60.0,
        description="longest wait for all of the job's CPUs and GPUs at once, before it lets others go first, seconds; "
        "machines that a cluster has yet to start have the operator's EQUIPOISE_RAY_GROWTH_S, if that is longer",
    )
    learner_timeout_s: Positive = Field(
        7200.0,
        description="longest wait for one update, or another call of the learner, seconds; one that takes longer is "
        "given up, and the job goes back to its checkpoint",
    )
    reward_timeout_s: Positive = Field(
        60.0, description="longest wait for one call of a reward, seconds, where its hosting.deadline_s is absent"
    )


class JobSpec(Spec):
    """A job: a policy, prompts and K objectives, and how to trade them off."""

    kind: Literal["alignment"] = Field("alignment", description="or `reward_model`, which is another document")
    name: Title = Field(description="what people call it")
    seed: int = Field(0, ge=0, lt=2**31, description="of everything random: the same spec gives the same run on CPU")
    steps: int = Field(ge=1, le=1_000_000, description="training steps")
    priority: int = Field(
        0,
        ge=-MAX_PRIORITY,
        le=MAX_PRIORITY,
        description="higher goes first among its owner's own waiting jobs, then older; owners take turns all the same, "
        "and a job that runs is not interrupted",
    )
    policy: PolicySpec
    data: DataSpec
    objectives: tuple[ObjectiveSpec, ...] = Field(min_length=1, max_length=MAX_OBJECTIVES)
    rollout: RolloutSpec = RolloutSpec()
    estimator: EstimatorSpec = GdpoSpec()
    weighting: WeightingSpec = HvGradientSpec()
    gramian: GramianSpec = GramianSpec()
    sampling: SamplingSpec = SamplingSpec()
    steering: SteeringSpec = SteeringSpec()
    loss: LossSpec = LossSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    samples: SamplesSpec = SamplesSpec()
    checkpoints: CheckpointSpec = CheckpointSpec()
    collapse: CollapseSpec = CollapseSpec()
    gold: GoldSpec | None = Field(None, description="a reward that is watched and never optimised; none when absent")
    guardrails: tuple[GuardrailSpec, ...] = Field(
        (), max_length=64, description="floors and ceilings on what a step reports"
    )
    resources: ResourcesSpec = ResourcesSpec()
    init_checkpoint: str | None = Field(
        None,
        description="directory of an exported checkpoint to start from instead of policy.model's weights",
    )
    metadata: Metadata = Field(default_factory=dict)

    @model_validator(mode="after")
    def _objectives_fit(self) -> Self:
        names = [objective.name for objective in self.objectives]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ValueError(f"objectives.{i}.name: '{name}' stands twice; every objective needs its own name")
        shared = [objective.reward.shared_by for objective in self.objectives]
        for i, objective in enumerate(self.objectives):
            other = self.objectives[shared.index(shared[i])]
            if other.reward.hosting != objective.reward.hosting:
                raise ValueError(
                    f"objectives.{i}.reward.hosting: '{objective.name}' and '{other.name}' share one reward, so that "
                    "their hosting must be the same"
                )
            if objective.gate is None:
                continue
            if objective.gate.objective == objective.name:
                raise ValueError(f"objectives.{i}.gate.objective: an objective can't gate itself")
            if objective.gate.objective not in names:
                raise ValueError(
                    f"objectives.{i}.gate.objective: no objective '{objective.gate.objective}'"
                    f"{nearest(objective.gate.objective, names)}; objectives are {', '.join(names)}"
                )
            judge = self.objectives[names.index(objective.gate.objective)]
            if objective.domains and judge.domains and not {*objective.domains} & {*judge.domains}:
                raise ValueError(
                    f"objectives.{i}.gate.objective: '{judge.name}' applies to no domain of '{objective.name}', so the "
                    "gate would hold nothing back; gate by an objective that applies to the same prompts"
                )
        try:
            scaled({objective.name: objective.weight for objective in self.objectives})
        except ValueError as error:
            raise ValueError(f"objectives: {error}") from None
        floors = math.fsum(objective.bounds[0] for objective in self.objectives)
        ceilings = math.fsum(objective.bounds[1] for objective in self.objectives)
        if floors > 1 + 1e-9 or ceilings < 1 - 1e-9:
            raise ValueError(
                f"objectives: bounds leave no weights that sum to 1 "
                f"(floors sum to {floors:g}, ceilings to {ceilings:g})"
            )
        return self

    @model_validator(mode="after")
    def _rules_fit(self) -> Self:
        """What a rule asks of the rest of the job."""
        names, groups = self.objective_names, self.rollout.rollouts_per_prompt
        if groups < 2 and not self.estimator.single_rollout:
            raise ValueError(
                f"rollout.rollouts_per_prompt: estimator '{self.estimator.name}' compares the rollouts of a prompt "
                "and needs at least 2; 'reinforce' works with 1"
            )
        self.estimator.arguments(names)
        if isinstance(self.estimator, CondGdpoSpec):
            self._condition_fits(self.estimator)
        self._lengths_fit()
        targets = frozenset(objective.name for objective in self.objectives if objective.target is not None)
        found = {
            "weighting": self.weighting.problems(names, targets),
            "sampling.zero_signal": self.sampling.zero_signal.problems(names, groups),
            "guardrails": guardrail_rules.problems(self.guardrails, names, has_gold=self.gold is not None),
            "sampling.budget": self.sampling.budget.problems(names, groups),
        }
        for branch, problems in found.items():
            for field, message in problems:
                raise ValueError(f"{branch}.{field}: {message}")
        if self.sampling.tail.name == "defer" and self.rollout.in_flight:
            raise ValueError(
                "sampling.tail: in the mode 'async' nobody waits for long completions, so none is put off; use 'wait', "
                "or rollout.mode: sync or overlapped"
            )
        if self.weighting.name == "lagrangian":
            self._directions_fit(self.weighting)
        if "gramian" in self.weighting.needs and self.gramian.mode == "step_response":
            raise ValueError(
                f"gramian.mode: '{self.weighting.name}' needs all inner products of the objectives' gradients, but "
                "step_response measures only their influence; use exact, sketch or last_block"
            )
        return self

    def _condition_fits(self, estimator: CondGdpoSpec) -> None:
        """The threshold is in units of the raw reward; the estimator has only what came of it."""
        i = self.objective_names.index(estimator.condition)
        if (transform := self.objectives[i].transform.name) != "identity":
            raise ValueError(
                f"objectives.{i}.transform: estimator 'cond_gdpo' compares the raw reward of '{estimator.condition}' "
                f"with estimator.at_least, and '{transform}' would change it; use identity for the condition"
            )
        if isinstance(self.weighting, HypervolumeSpec) and self.weighting.faithful:
            raise ValueError(
                "weighting.faithful: multiplies the rewards, and estimator 'cond_gdpo' compares the raw reward of "
                f"'{estimator.condition}' with estimator.at_least; use faithful: false"
            )

    def _lengths_fit(self) -> None:
        """A length that scores 1 from the start leaves nothing to be scored below the completion limit."""
        for i, objective in enumerate(self.objectives):
            if objective.reward.name != "conciseness":
                continue
            options = registry.parse_options("conciseness", objective.reward.options).model_dump()
            limit = self.rollout.max_tokens
            if options["max_tokens"] is None and options["free_tokens"] >= limit:
                raise ValueError(
                    f"objectives.{i}.reward.options.free_tokens: must be below rollout.max_tokens, which is {limit}"
                )

    def _directions_fit(self, weighting: LagrangianSpec) -> None:
        """Gates read rewards as larger is better; an objective that may be pushed down is not."""
        condition = getattr(self.estimator, "condition", None)
        for i, objective in enumerate(self.objectives):
            target = objective.target
            if target is None or (target.op == ">=" and weighting.form == "inequality"):
                continue
            why = f"'lagrangian' may push '{objective.name}' down"
            if objective.gate is not None:
                raise ValueError(
                    f"objectives.{i}.gate: {why}, and what fails a gate would then count as best; drop the gate"
                )
            if condition == objective.name:
                raise ValueError(f"estimator.condition: {why}; choose a condition that is never pushed down")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        groups = self.rollout.rollouts_per_prompt
        if self.optimizer.minibatches > self.rollout.prompts_per_step * groups:
            raise ValueError("optimizer.minibatches: more than there are rollouts in a step")
        if self.resources.learner_ranks > 1 and self.rollout.transport == "ipc":
            raise ValueError(
                "rollout.transport: ipc hands weights over inside one GPU, but the learner has several "
                "(resources.learner_ranks); use auto or nccl"
            )
        if self.policy.cpu_offload and self.measures_gradients and self.gramian.mode != "step_response":
            raise ValueError(
                f"policy.cpu_offload: '{self.weighting.name}' compares the objectives' gradients, and with "
                f"gramian.mode {self.gramian.mode} they are on the GPU; use gramian.mode: step_response"
            )
        if self.policy.compile and (self.resources.learner_ranks > 1 or self.policy.cpu_offload):
            raise ValueError(
                "policy.compile: for a learner on one GPU; drop it, or set resources.learner_ranks: 1 and "
                "policy.cpu_offload: false"
            )
        if self.policy.compile and self.measures_gradients and self.gramian.mode in ("exact", "sketch"):
            raise ValueError(
                f"policy.compile: with gramian.mode {self.gramian.mode}, '{self.weighting.name}' reads every block's "
                "gradients, which compiled blocks hide; use gramian.mode: last_block or step_response"
            )
        if self.rollout.sleep and self.rollout.mode != "sync":
            raise ValueError("rollout.sleep: engines that roll out while the learner learns can't; use mode: sync")
        routed = [i for i, objective in enumerate(self.objectives) if objective.domains is not None]
        if routed and not (isinstance(self.data, FilesData) and self.data.may_have_domains):
            raise ValueError(
                f"objectives.{routed[0]}.domains: no prompt has a domain; name the column in data.columns.domain"
            )
        if self.policy.model == "quickstart" and not isinstance(self.data, QuickstartData):
            raise ValueError("data.type: the quickstart policy knows only the quickstart data")
        return self

    @property
    def merges(self) -> bool:
        """Whether a checkpoint's policy is whole: where no adapter learns, it is anyway."""
        lora = self.policy.lora
        return lora is None or (self.init_checkpoint is not None if lora.merge is None else lora.merge)

    @property
    def measures_gradients(self) -> bool:
        """Whether the weighting wants to know the objectives' gradients, or what they do."""
        return bool(self.weighting.needs & {"gramian", "influence"})

    @property
    def prompts_asked(self) -> int:
        """That a step asks for, at most; further rounds aside."""
        return self.sampling.tail.asked(self.rollout.prompts_per_step)

    @property
    def objective_names(self) -> tuple[str, ...]:
        return tuple(objective.name for objective in self.objectives)

    @property
    def preference(self) -> dict[str, float]:
        """The person's weights by objective name, scaled to sum to 1."""
        return scaled({objective.name: objective.weight for objective in self.objectives})

    def to_json(self) -> str:
        """With every default written out, so that a job replays after the defaults have moved."""
        return self.model_dump_json()


def scaled(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights, made to sum to 1. Raises ValueError where they can't be."""
    try:
        total = math.fsum(weights.values())
    except OverflowError:
        raise ValueError("the weights are too large to be scaled") from None
    if total <= 0:
        raise ValueError("at least one weight must be above 0")
    return {name: weight / total for name, weight in weights.items()}


def parse_spec(document: Any) -> JobSpec:
    """A JobSpec from parsed YAML or JSON. Raises SpecError with one line for each wrong field."""
    if not isinstance(document, dict):
        raise SpecError(
            [("", f"expected a mapping of fields such as name, policy and objectives, got {_kind(document)}")]
        )
    return validated(JobSpec, lambda: JobSpec.model_validate(document))


def parse_job(document: Any) -> JobSpec | RewardJobSpec:
    """The spec of a job of any kind. Raises as `parse_spec`."""
    kind = document.get("kind", "alignment") if isinstance(document, dict) else "alignment"
    if kind == "reward_model":
        return validated(RewardJobSpec, lambda: RewardJobSpec.model_validate(document))
    if kind != "alignment":
        raise SpecError([("kind", f"expected alignment or reward_model{nearest(str(kind)[:64], KINDS)}")])
    return parse_spec(document)


Document = TypeVar("Document", JobSpec, RewardJobSpec)


def validated(root: type[Document], validate: Callable[[], Document]) -> Document:
    """What `validate` gives; its mistakes as a SpecError."""
    try:
        return validate()
    except ValidationError as error:
        found = error.errors(include_url=False)
        told = [detail for detail in found if not _follows(detail["loc"], found)]
        raise SpecError(all_problems(root, told, FOREIGN if root is JobSpec else {})) from None


def _follows(place: tuple[int | str, ...], found: Sequence[Any]) -> bool:
    """Whether a list is called too short only because its wrong items, which are told of, were taken out."""
    within = [other["loc"] for other in found if other["loc"][: len(place)] == place]
    return len(within) > 1 and any(other["type"] == "too_short" and other["loc"] == place for other in found)


def load_spec(path: Path) -> JobSpec | RewardJobSpec:
    """The spec of a job from a YAML or JSON file. Raises SpecError, first the file's name where it can't be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SpecError([("", f"{path}: {reason}")]) from None
    try:
        document = spec_yaml.load(text)
    except spec_yaml.DuplicateKey as error:
        raise SpecError([("", f"{path}: line {error.line}: {error.problem}; keep one of them")]) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that can't be
        raise SpecError([("", f"{path}: not valid YAML: {' '.join(str(error).split())}")]) from None
    except RecursionError:
        raise SpecError([("", f"{path}: not valid YAML: nested too deeply")]) from None
    return check_new(parse_job(document))


# They move a cursor, break a line or turn the direction of writing where a name is shown.
_UNSHOWN = re.compile(r"[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


AnyJob = TypeVar("AnyJob", bound=JobSpec | RewardJobSpec)


def check_new(spec: AnyJob) -> AnyJob:
    """What is asked of a job that is submitted, beyond what one that is stored may say. Raises SpecError."""
    problems = []
    if _UNSHOWN.search(spec.name):
        problems.append(("name", "has control characters or marks of a line's end or direction; leave them out"))
    if any(len(key) > MAX_METADATA for key in spec.metadata):
        problems.append(("metadata", f"a key has more than {MAX_METADATA} characters"))
    if problems:
        raise SpecError(problems)
    return spec


def _kind(value: Any) -> str:
    return {type(None): "an empty document", list: "a list", str: "text"}.get(type(value), type(value).__name__)
