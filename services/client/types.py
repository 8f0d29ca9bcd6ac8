"""The API's documents as types. They are plain dictionaries: a field that a newer server adds is there, unchecked."""

from __future__ import annotations

from typing import Any, Generic, Literal, NotRequired, TypeVar

from typing_extensions import TypedDict  # pydantic describes these alone before Python 3.12

Item = TypeVar("Item")

JobStatus = Literal[
    "validating",
    "queued",
    "starting",
    "running",
    "pausing",
    "paused",
    "cancelling",
    "cancelled",
    "succeeded",
    "failed",
]
SteeringMode = Literal["auto", "blend", "manual"]
Scope = Literal["read", "submit", "steer", "admin"]
DatasetFormat = Literal["jsonl", "csv", "parquet"]


class Page(TypedDict, Generic[Item]):
    """A part of a list. `next_after`: where a list of jobs or datasets goes on, whatever is deleted meanwhile."""

    data: list[Item]
    has_more: bool
    next_after: NotRequired[str | None]


class RolloutPage(Page[Item], Generic[Item]):
    """`total` rollouts are kept of `step`."""

    step: int | None
    total: int


class EventPage(Page[Item], Generic[Item]):
    """From `oldest` to `newest` all events are kept; of those before, what is told once, such as a collapse."""

    oldest: NotRequired[int]
    newest: NotRequired[int]


class Lineage(TypedDict):
    """The checkpoint that a job was forked from."""

    parent: str
    step: int


class Job(TypedDict):
    """Times are seconds since 1970."""

    id: str
    name: str
    submitted_by: str | None  # the name of a key
    priority: int
    status: JobStatus
    reason: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    step: int
    total_steps: int | None
    attempts: int
    checkpoint_step: int | None
    gpu_hours: float
    cost: float
    progress: dict[str, Any]


class JobDetail(Job):
    """With its spec, every default written out."""

    spec: dict[str, Any]
    lineage: Lineage | None


class ForkedJob(Job):
    lineage: Lineage | None


class Forks(TypedDict):
    """What a fork made, one job for each vector of a sweep."""

    data: list[ForkedJob]
    has_more: bool
    lineage: Lineage


class ProcessEstimate(TypedDict):
    """Of each of `count` alike; `parts` sum to `bytes`."""

    name: str
    count: int
    gpus: float
    parts: dict[str, int]
    bytes: int


class CacheEstimate(TypedDict):
    """Of one engine: `sequences` of `sequence_tokens` at once."""

    bytes: int
    token_bytes: int | None
    sequence_tokens: int | None
    sequences: int | None


class Misfit(TypedDict):
    """`remedies` are settings that would help, each alone unless it says more."""

    about: Literal["transport", "gpus", "engine", "sharing", "learner", "rewards", "memory", "kv_cache"]
    message: str
    remedies: list[str]


class Layout(TypedDict):
    """A job on one kind of device. `fits` is None where that can't be told from here."""

    device: Literal["cpu", "cuda"]
    gpus: float
    """At once, `reward_gpus` of them for rewards; a share of one is not whole."""
    reward_gpus: float
    gpu_bytes: int | None
    memory_bytes: int | None
    """Of the machine that a job on CPU gets."""
    host_bytes: NotRequired[int | None]
    """What a job on GPUs takes of its machine's memory, which nothing is held against."""
    shared: bool
    transport: Literal["shared_memory", "nccl", "ipc"]
    """How weights would reach the engines."""
    processes: list[ProcessEstimate]
    bytes: int | None
    kv_cache: CacheEstimate | None
    problems: list[Misfit]
    fits: bool | None


class DiskEstimate(TypedDict):
    """Of the disk with the state directory, at most: whole checkpoints, and policies of the front."""

    checkpoint_bytes: int
    policy_bytes: int
    policies: int
    bytes: int
    free_bytes: int | None


class Estimate(TypedDict):
    """Reckoned, not tried. `unknown` says what can't be told, and why; parameters are None where that is all of it."""

    parameters: int | None
    unknown: str | None
    disk: NotRequired[DiskEstimate | None]
    layouts: list[Layout]


class Doubt(TypedDict):
    """A setting that is valid and was probably not meant."""

    param: str
    message: str


class CallsEstimate(TypedDict):
    """At most; `cost` where every completion and every answer is as long as it may be, None without prices."""

    calls: int
    cost: float | None


class JudgeEstimate(TypedDict):
    """What a judge is asked. `evaluation` is None where nobody can tell how long a split is."""

    param: str
    profile: str
    training: CallsEstimate
    evaluation: CallsEstimate | None


class Plan(TypedDict):
    """What a submission would run, and what it would take."""

    valid: bool
    rollouts_per_step: NotRequired[int]
    rollouts: NotRequired[int]
    evaluations: NotRequired[int]
    judges: NotRequired[list[JudgeEstimate]]
    doubts: NotRequired[list[Doubt]]
    spec: dict[str, Any]
    estimate: NotRequired[Estimate]


class Event(TypedDict):
    """`seq` counts from 1, without a gap among those that are kept: about the last 10,000."""

    seq: int
    type: str
    at: float
    level: Literal["info", "warning", "error"]
    data: dict[str, Any]


class ObjectiveFigures(TypedDict):
    """Of the raw reward; None where the objective applied to nothing. `std` is over the batch's rollouts, `group_std`
    its mean within groups, and `zero_share` the share of groups without any: the others are those with signal."""

    mean: float | None
    std: float | None
    group_std: NotRequired[float | None]
    zero_share: NotRequired[float | None]


class StepRamp(TypedDict):
    """Of a steer that takes effect gradually: which of its steps this is, and what it would come to here."""

    step: int
    of: int
    target: dict[str, float]


class StepWeights(TypedDict):
    strategy: dict[str, float]
    applied: dict[str, float]


class WeightsBecause(TypedDict):
    """Why a step's weights are what they are. `equipoise why` makes sentences of it.

    `share` of the weights is the person's. `figures`, a number for each objective by name: the `preference`, and what
    the rule was led by (`slope`, `influence`, ...); None where it had none. `limit` among them is 1 where a limit of
    the rule's own keeps a weight from more, -1 where from less. `held`: the end of its bounds that holds an
    objective's weight; `unbounded`: the weights without bounds, where these moved any. `gates`: of each objective with
    a gate, the share of rollouts in which it counts.
    """

    mode: SteeringMode
    share: float
    figures: dict[str, dict[str, float | None]]
    held: dict[str, Literal["floor", "ceiling"]]
    unbounded: NotRequired[dict[str, float]]
    gates: dict[str, float | None]


class Step(TypedDict):
    """A committed step. Which figures it has depends on the job; one that trains a reward model has no objectives."""

    step: int
    objectives: NotRequired[dict[str, ObjectiveFigures]]
    weights: NotRequired[StepWeights]
    weights_because: NotRequired[WeightsBecause]
    falling: NotRequired[list[str]]
    multiplier: NotRequired[float]
    ramp: NotRequired[StepRamp]
    evaluation: NotRequired[dict[str, Any] | None]
    timings_s: NotRequired[dict[str, float]]
    tokens: NotRequired[int]
    mean_tokens: NotRequired[float | None]
    entropy: NotRequired[float | None]
    kl: NotRequired[float | None]
    kl_bounded: NotRequired[int | None]
    updates: NotRequired[int]
    updates_not_finite: NotRequired[int]
    updates_masked: NotRequired[int]
    gold: NotRequired[dict[str, Any]]
    steering_version: NotRequired[int]
    policy_version: NotRequired[int]
    staleness: NotRequired[dict[str, float]]
    engines: NotRequired[dict[str, int]]
    engine_health: NotRequired[dict[str, dict[str, Any]]]


class Rollout(TypedDict):
    """A completion and what it was worth."""

    number: int
    step: int
    policy_version: int
    steering_version: int
    group: int
    prompt_index: int
    prompt: Any  # text, or chat messages
    completion: str
    rewards: dict[str, float | None]
    signal: dict[str, float | None]
    advantage: float | None
    tokens: int
    truncated: bool


class SteeringEntry(TypedDict):
    version: int
    effective_step: int
    at: float
    by: str
    change: dict[str, Any]


class Steering(TypedDict):
    """`strategy`: the weights that the strategy alone last chose. `guardrails`: where they are not the spec's."""

    version: int
    mode: SteeringMode
    blend: float
    weights: dict[str, float]
    bounds: dict[str, list[float]]
    guardrails: NotRequired[list[dict[str, Any]] | None]
    strategy: dict[str, float] | None
    log: list[SteeringEntry]
    log_has_more: bool


class Steered(TypedDict):
    """`effective_step` is never the one in flight; `notes` say which part of a change moves no weights, and why."""

    version: int
    effective_step: int
    notes: NotRequired[list[str]]


class Preview(TypedDict):
    """What a change would have made of the rollouts of `step`: at its end, where it goes `over` several steps."""

    step: int
    rollouts: int
    sign_changes: dict[str, Any]
    weights: dict[str, dict[str, float]]
    clamped: Any
    effective_share: dict[str, Any]
    pairs: list[dict[str, Any]]
    over: NotRequired[int]


class FrontPoint(TypedDict):
    """An evaluated policy. `objectives` are raw means; `counted` those after the gates, which rank the point, where the
    job has gates. `checkpoint`: whether it is kept; `test`: figures of the test split, once there are some; `sets`:
    those of the further sets by name, where the spec has such."""

    step: int
    objectives: dict[str, float | None]
    counted: NotRequired[dict[str, float | None]]
    standard_errors: NotRequired[dict[str, float | None]]
    mean_tokens: float | None
    on_front: bool
    collapsed: bool
    checkpoint: bool
    test: dict[str, Any] | None
    sets: NotRequired[dict[str, Any]]


class Direction(TypedDict):
    """Whether larger or smaller is better, or what is nearer to the target."""

    better: Literal["larger", "smaller", "nearer"]
    target: float | None


class Front(TypedDict):
    """The Pareto archive; without points before the first evaluation."""

    objectives: list[str]
    ranges: dict[str, list[float]]
    directions: NotRequired[dict[str, Direction]]  # of each objective; without them larger is better
    reference: dict[str, float]  # the corner of the volume
    initial: dict[str, float | None]  # what the policy reached before its first step
    hypervolume: float | None
    hypervolume_base: float | None
    hypervolume_test: NotRequired[float | None]  # of the front's tested points, on the test split; once it is tested
    hypervolume_test_base: NotRequired[float | None]
    hypervolume_over_base: float | None  # of what is better than the initial policy in every objective
    hypervolume_by_step: list[list[Any]]
    points: list[FrontPoint]
    picked: NotRequired[FrontPoint | None]  # where conditions or an objective were given


class ComparedJob(TypedDict):
    id: str
    name: str
    status: JobStatus
    step: int
    lineage: Lineage | None
    hypervolume: float | None
    adds: float | None
    front: list[dict[str, Any]]


class Comparison(TypedDict):
    """Several fronts on one scale, where they have one."""

    comparable: bool
    differences: list[str]
    measured_differently: NotRequired[list[str]]  # on one scale, and yet no measure of the policies alone
    set_differently: NotRequired[list[str]]  # from the first job: of the spec, and of what it was made of
    objectives: list[str]
    ranges: dict[str, list[float]] | None
    hypervolume: float | None
    front: list[dict[str, Any]] | None
    data: list[ComparedJob]


class Checkpoint(TypedDict):
    """`path` is on the machine that trains."""

    step: int
    path: str
    metrics: dict[str, Any]
    on_front: bool


class Export(TypedDict):
    step: int
    path: str


class RewardInfo(TypedDict):
    """`options` is a JSON schema; an end of the range that is null has no bound.

    A plug-in that was not imported yet has its name and module alone.
    """

    name: str
    summary: str | None
    range: list[float | None] | None
    options: dict[str, Any] | None
    plugin: str | None


class JudgeInfo(TypedDict):
    """What the reward `judge` may name as its profile."""

    object: Literal["judge"]
    name: str


class RewardChoice(TypedDict):
    """A reward as a spec names it."""

    name: str
    options: NotRequired[dict[str, Any]]


class Sample(TypedDict):
    """What is scored."""

    prompt: str
    completion: str
    answer: NotRequired[str | None]
    completion_tokens: NotRequired[int | None]
    truncated: NotRequired[bool]
    messages: NotRequired[list[dict[str, str]]]
    domain: NotRequired[str | None]
    details: NotRequired[dict[str, Any]]


class RewardValidation(TypedDict):
    """An end of the range that is null has no bound."""

    valid: bool
    name: str
    range: list[float | None]
    options: dict[str, Any]


class ScoredReward(TypedDict):
    name: str
    range: list[float | None]
    options: dict[str, Any]
    scores: list[float | None]
    heads: NotRequired[dict[str, list[float | None]]]


class RewardRun(TypedDict):
    """`scores` of each reward are in the samples' order; `cost` is of judges."""

    rewards: list[ScoredReward]
    samples: list[dict[str, Any]]
    cost: float


class Columns(TypedDict):
    prompt: str
    answer: str | None
    domain: str | None
    details: list[str]


class Dataset(TypedDict):
    """A spec names it as `dataset:ID`."""

    id: str
    name: str
    format: DatasetFormat
    rows: int
    bytes: int
    sha256: str
    columns: Columns
    created_at: float


class DatasetRow(TypedDict):
    row: int
    prompt: Any  # text, or chat messages
    answer: str | None
    domain: NotRequired[str]
    details: NotRequired[dict[str, Any]]


class Deleted(TypedDict):
    """`files`: whether a job's directory was there and is gone, where that was asked for."""

    id: str
    deleted: bool
    files: NotRequired[bool]


class Model(TypedDict):
    """A policy, or a checkpoint of a job."""

    id: str
    created: int
    owned_by: str
    kind: Literal["policy", "checkpoint"]
    job: NotRequired[str]
    step: NotRequired[int]
    path: NotRequired[str]


class Models(TypedDict):
    data: list[Model]


class Rule(TypedDict):
    """A rule that a spec may name; `example` is YAML."""

    kind: str
    name: str
    summary: str
    description: str
    source: str
    needs: list[str]
    cost: str
    options: list[dict[str, Any]]
    example: str


class Webhook(TypedDict):
    id: str
    url: str
    events: list[str]
    format: Literal["json", "slack"]
    created_at: float
    status: Literal["ok", "failing"]
    last_error: str | None
    last_delivered_at: float | None
    dropped: int


class NewWebhook(Webhook):
    """`secret` is shown this once."""

    secret: str


class WebhookEvent(TypedDict):
    """What is delivered; `job_id` is empty in a test."""

    id: str  # the same for every try
    type: str
    at: float
    job_id: str
    seq: int
    data: dict[str, Any]


class WebhookTest(TypedDict):
    delivered: bool
    status: int | None
    error: str | None


class ApiKey(TypedDict):
    id: str
    name: str
    owner: str
    scopes: list[Scope]
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    last_used_at: float | None
    created_by: str | None
    revoked_by: str | None


class NewApiKey(ApiKey):
    """`key` is shown this once."""

    key: str


class GpuHours(TypedDict):
    """Of an owner, this month in UTC; without a quota there is no limit."""

    quota: float | None
    used: float
    renews_at: float


class OwnKey(TypedDict):
    """The key that asks; `admin` among its scopes has all others beside it."""

    id: str
    name: str
    owner: str
    scopes: list[Scope]
    gpu_hours: GpuHours


class Quota(TypedDict):
    """What an owner may take."""

    owner: str
    gpu_hours: GpuHours


class Health(TypedDict):
    status: str
