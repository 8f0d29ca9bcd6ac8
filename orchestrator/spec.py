"""JobSpec: what a person asks for, as one frozen tree. The same document as YAML for the CLI and as JSON for the API.

Unknown fields are refused with the nearest valid name. Nothing here imports torch, Ray or vLLM: a spec is read,
checked and shown without them, and only build.py turns it into objects.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from orchestrator import spec_yaml
from orchestrator.spec_errors import SpecError, all_problems, nearest
from orchestrator.specs import guardrails as guardrail_rules
from orchestrator.specs.base import MAX_METADATA, MAX_METADATA_BYTES, Metadata, Spec, Title
from orchestrator.specs.data import DataSpec, FilesData, QuickstartData
from orchestrator.specs.estimators import CondGdpoSpec, EstimatorSpec, GdpoSpec
from orchestrator.specs.evaluation import CheckpointSpec, CollapseSpec, EvaluationSpec, SamplesSpec, SteeringSpec
from orchestrator.specs.foreign import TOLD
from orchestrator.specs.gold import GoldSpec
from orchestrator.specs.gramian import GramianSpec
from orchestrator.specs.guardrails import GuardrailSpec
from orchestrator.specs.objectives import ObjectiveSpec
from orchestrator.specs.optimizer import LossSpec, OptimizerSpec
from orchestrator.specs.policy import PolicySpec
from orchestrator.specs.resources import ResourcesSpec
from orchestrator.specs.reward_job import RewardJobSpec
from orchestrator.specs.rollout import RolloutSpec
from orchestrator.specs.sampling import SamplingSpec
from orchestrator.specs.weightings import HvGradientSpec, HypervolumeSpec, LagrangianSpec, WeightingSpec
from orchestrator.state.states import MAX_PRIORITY
from orchestrator.unprintable import UNSHOWN
from rewards import registry

KINDS = ("alignment", "reward_model")
MAX_OBJECTIVES = 31  # the most that moocore approximates a hypervolume for


class JobSpec(Spec):
    """A job: a policy, prompts and K objectives, and how to trade them off."""

    kind: Literal["alignment"] = Field("alignment", description="or `reward_model`, which is another document")
    name: Title = Field(description="what people call it")
    seed: int = Field(0, ge=0, lt=2**31, description="of all that is random here; a judge that samples follows none")
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
                "and needs at least 2; 'reinforce' with the batch's baseline works with 1"
            )
        self.estimator.arguments(names)
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
        if self.loss.form == "cispo" and (self.loss.dual_clip is not None or self.loss.ratio == "sequence"):
            field = "dual_clip" if self.loss.dual_clip is not None else "ratio"
            raise ValueError(f"loss.{field}: form cispo keeps every token, with its own ratio; leave it out")
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
        if self.policy.compile and self.policy.cpu_offload:
            raise ValueError("policy.compile: for weights on GPUs; drop it, or set policy.cpu_offload: false")
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
    def prompts_reached(self) -> int:
        """Of all its steps together, at most, further rounds included."""
        rule = self.sampling.zero_signal
        further = rule.max_rounds * self.rollout.prompts_per_step if rule.name == "refill" else 0
        return self.steps * (self.prompts_asked + further)

    @property
    def objective_names(self) -> tuple[str, ...]:
        return tuple(objective.name for objective in self.objectives)

    @property
    def preference(self) -> dict[str, float]:
        """The person's weights by objective name, scaled to sum to 1."""
        return scaled({objective.name: objective.weight for objective in self.objectives})

    def to_json(self) -> str:
        """With every default written out, so that a job replays after they have moved; `stored_spec` knows the rest."""
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
        raise SpecError(all_problems(root, told, TOLD if root is JobSpec else {})) from None


def _follows(place: tuple[int | str, ...], found: Sequence[Any]) -> bool:
    """Whether a list is called too short only because its wrong items, which are told of, were taken out."""
    within = [other["loc"] for other in found if other["loc"][: len(place)] == place]
    return len(within) > 1 and any(other["type"] == "too_short" and other["loc"] == place for other in found)


def load_spec(path: Path) -> JobSpec | RewardJobSpec:
    """The spec of a job from a YAML or JSON file, or a job's report.

    Raises SpecError, first the file's name where it can't be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SpecError([("", f"{path}: {reason}")]) from None
    if path.suffix == ".html":
        return check_new(parse_job(_of_report(path, text)))
    try:
        document = spec_yaml.load(text)
    except spec_yaml.DuplicateKey as error:
        raise SpecError([("", f"{path}: line {error.line}: {error.problem}; keep one of them")]) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that can't be
        raise SpecError([("", f"{path}: not valid YAML: {' '.join(str(error).split())}")]) from None
    except RecursionError:
        raise SpecError([("", f"{path}: not valid YAML: nested too deeply")]) from None
    return check_new(parse_job(document))


def _of_report(path: Path, text: str) -> Any:
    """The spec in a job's report, to make the job again. Raises SpecError."""
    found = re.search(r'<script type="application/json" id="spec">(.*?)</script>', text, re.DOTALL)
    try:
        return json.loads(found[1] if found else "")
    except (ValueError, RecursionError):
        why = "no report of a job, or one of an older version; `equipoise show JOB --spec` prints the job's spec"
        raise SpecError([("", f"{path}: {why}")]) from None


AnyJob = TypeVar("AnyJob", bound=JobSpec | RewardJobSpec)


def problem_of_name(name: str) -> str | None:
    """Of a new job; one that is stored may have it."""
    if UNSHOWN.search(name):
        return "has control characters or marks of a line's end or direction; leave them out"
    return None


def check_new(spec: AnyJob) -> AnyJob:
    """What is asked of a job that is submitted, beyond what one that is stored may say. Raises SpecError."""
    problems = []
    if (problem := problem_of_name(spec.name)) is not None:
        problems.append(("name", problem))
    if any(len(key) > MAX_METADATA for key in spec.metadata):
        problems.append(("metadata", f"a key has more than {MAX_METADATA} characters"))
    if (size := len(json.dumps(spec.metadata))) > MAX_METADATA_BYTES:
        problems.append(("metadata", f"has {size} bytes as JSON, at most {MAX_METADATA_BYTES} are allowed; shorten it"))
    if isinstance(spec, JobSpec):
        problems += _at_odds(spec)
    if problems:
        raise SpecError(problems)
    return spec


def _at_odds(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Rules that work against each other; jobs that were accepted with them go on."""
    for i, objective in enumerate(spec.objectives):
        if spec.weighting.name == "covariance" and objective.target is not None and objective.target.op == "<=":
            yield (
                f"objectives.{i}.target.op",
                f"'covariance' pushes '{objective.name}' up until its target is met, which '<=' would turn round; use "
                "'>=', or weighting 'lagrangian'",
            )
    if spec.sampling.zero_signal.name == "copo" and spec.estimator.single_rollout:
        yield (
            "sampling.zero_signal",
            f"estimator '{spec.estimator.name}' compares prompts with each other itself, and 'copo' would count that "
            "twice where a group has no signal; use keep, or another estimator",
        )
    if isinstance(spec.estimator, CondGdpoSpec):
        yield from _condition_at_odds(spec, spec.estimator.condition)


def _condition_at_odds(spec: JobSpec, condition: str) -> Iterator[tuple[str, str]]:
    """The threshold is in units of the raw reward; the estimator has only what came of it."""
    i = spec.objective_names.index(condition)
    if (transform := spec.objectives[i].transform.name) != "identity":
        yield (
            f"objectives.{i}.transform",
            f"estimator 'cond_gdpo' compares the raw reward of '{condition}' with estimator.at_least, and "
            f"'{transform}' would change it; use identity for the condition",
        )
    if isinstance(spec.weighting, HypervolumeSpec) and spec.weighting.faithful:
        yield (
            "weighting.faithful",
            "multiplies the rewards, and estimator 'cond_gdpo' compares the raw reward of "
            f"'{condition}' with estimator.at_least; use faithful: false",
        )


def _kind(value: Any) -> str:
    return {type(None): "an empty document", list: "a list", str: "text"}.get(type(value), type(value).__name__)
