"""From a spec to the parts of a job: the only place that turns configuration into objects."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import routing
from orchestrator.actors.cluster import Cluster, RemoteLearner
from orchestrator.actors.gang import anywhere, gpus_reserved, members, role_label
from orchestrator.actors.placement import (
    check_placement,
    cluster_device,
    gpus_wanted,
    reward_gpus,
    shares_gpu,
    transport_of,
)
from orchestrator.actors.threads import WAITING
from orchestrator.gold import GoldScorer
from orchestrator.hosting import GOLD, hosted_gold, hosted_rewards, reward_pool
from orchestrator.pinning import at_one_commit
from orchestrator.rollouts.engines import EnginePool
from orchestrator.rollouts.prompts import Contents, DatasetError, Prompt, PromptOrder, encode
from orchestrator.rollouts.split_files import SplitFiles, each_of
from orchestrator.spec import JobSpec
from orchestrator.specs.data import Columns, FilesData
from orchestrator.storage.datasets import locate
from orchestrator.storage.remote import LONG_PAUSES_S, is_url
from orchestrator.storage.remote_data import fetch, sha256_of
from policies.budget import Budget, Knapsack, Uniform
from policies.collapse import CollapseWatch
from policies.estimators import Estimator
from policies.estimators.copo import Copo
from policies.learner import LearnerSettings
from policies.lora import Lora
from policies.losses import ClippedSurrogate
from policies.models import (
    ADAPTER_WEIGHTS,
    ModelError,
    adapter_base,
    check_chat,
    check_directory,
    check_texts,
    context_length,
    encode_prompt,
    load_tokenizer,
)
from policies.pareto import Archive
from policies.plugins import find_estimator, find_weighting
from policies.rollout import EngineSettings
from policies.types import Objectives
from policies.weight_sync import Transport
from policies.weighting import Weighting
from rewards.gates import Gates
from rewards.pool import RewardPool
from rewards.transforms import TRANSFORMS, Transform

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("equipoise.driver")


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Encoded prompts. `test` is empty where the spec names none."""

    train: list[Prompt]
    validation: list[Prompt]
    test: list[Prompt]
    sha256: dict[str, str] = field(default_factory=dict)  # of each file that the spec names


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything that the loop calls."""

    splits: Splits
    order: PromptOrder
    engines: EnginePool
    learner: RemoteLearner
    rewards: RewardPool
    gates: Gates
    transforms: list[Transform]  # K
    budget: Budget
    objectives: Objectives
    estimator: Estimator
    weighting: Weighting
    archive: Archive
    watch: CollapseWatch
    save_tokenizer: Callable[[Path], None]
    describe: Callable[[list[str], list[str]], dict[str, Any]]  # extra figures of completions and answers
    close: Callable[[], None]
    gold: GoldScorer | None = None
    policy_commit: str | None = None  # on the hub
    cost: Callable[[], float] = lambda: 0.0  # of all calls of rewards since the start, as judges' profiles price them


@dataclass(frozen=True, kw_only=True)
class Running:
    """The processes of a job."""

    engines: EnginePool
    learner: RemoteLearner
    rewards: RewardPool
    gold: RewardPool | None
    close: Callable[[], None]


def build(
    spec: JobSpec,
    state_dir: Path,
    *,
    owner: str = "local",
    ray_address: str | None = None,
    on_stage: Callable[[str], None] = lambda _: None,
    on_gpus: Callable[[float], None] = lambda _: None,
    data_dir: Path | None = None,
    trained_commit: str | None = None,
) -> Parts:
    """Start everything that a job needs; `on_stage` hears what takes long. ValueError where the spec can't run.

    `on_gpus` hears how many GPUs are reserved, as soon as they are. `data_dir` is where the job keeps what it fetches,
    `trained_commit` the hub's commit of the policy that its checkpoints stand on.
    """
    if spec.policy.model == "quickstart":
        on_stage("preparing the quickstart policy (trained once, in about a minute and a half)")
    model = resolve_model(spec, state_dir, data_dir=data_dir, on_stage=on_stage)
    spec = spec if data_dir is None else at_one_commit(spec, model, data_dir, trained=trained_commit)
    tokenizer = load_tokenizer(model, revision=spec.policy.revision)
    splits = load_splits(
        spec,
        state_dir,
        model=model,
        encoder=prompt_encoder(spec, tokenizer),
        owner=owner,
        data_dir=data_dir,
    )
    running = start(spec, model, ray_address=ray_address, on_stage=on_stage, on_gpus=on_gpus)
    gold = running.gold

    def save_tokenizer(directory: Path) -> None:
        tokenizer.save_pretrained(directory)

    return assemble(
        spec,
        splits,
        running.engines,
        running.learner,
        rewards=running.rewards,
        save_tokenizer=save_tokenizer,
        close=running.close,
        gold=None if gold is None else (lambda batch: gold.score(batch).scores[GOLD]),
        policy_commit=spec.policy.revision if model == spec.policy.model else None,
        cost=lambda: running.rewards.cost + (0.0 if gold is None else gold.cost),
    )


def start(
    spec: JobSpec,
    model: str,
    *,
    ray_address: str | None,
    on_stage: Callable[[str], None],
    on_gpus: Callable[[float], None],
) -> Running:
    """Room on a cluster, all of it or none; then engines, learner and rewards in it. What failed leaves nothing."""
    on_stage("starting Ray")
    hosted, hosted_apart = hosted_rewards(spec), hosted_gold(spec)
    replicas = [options for reward in (*hosted, *hosted_apart) for options in reward.reserved]
    ranks = spec.resources.learner_ranks
    actors = spec.rollout.engines + ranks
    slots = actors + math.ceil(sum(options["num_cpus"] for options in replicas))
    cluster = Cluster(address=ray_address, cpus=max(os.cpu_count() or 1, slots))
    pools: list[RewardPool] = []

    def close() -> None:
        for pool in pools:
            pool.close()
        cluster.close()

    try:
        gpus = usable_gpus(spec, cluster.gpus, grows=cluster.grows)
        device = resolve_device(spec, gpus, grows=cluster.grows)
        here = None if cluster.grows else gpus
        check_placement(spec, device, here)
        transport, engine_options, learner_options = placement(spec, device, here)
        gang = cluster.reserve(
            engines=spec.rollout.engines,
            engine_options=engine_options,
            learner_options=learner_options,
            learner_ranks=ranks,
            reward_options=replicas,
            timeout_s=spec.resources.placement_timeout_s,
            on_wait=on_stage,
        )
        on_gpus(gpus_reserved(members(engine_options, spec.rollout.engines, learner_options, ranks, replicas)))
        on_wait = functools.partial(on_stage, "starting engines and learner")  # it hears a cancel
        on_wait()
        places = [gang.place(actors + i) for i in range(len(replicas))]
        elsewhere = anywhere(role_label() if cluster.grows else None)
        pools.append(reward_pool(hosted, places, elsewhere=elsewhere))
        if hosted_apart:
            places = places[sum(len(reward.reserved) for reward in hosted) :]
            pools.append(reward_pool(hosted_apart, places, elsewhere=elsewhere))
        engines, learner = cluster.start(
            engine_settings(spec, model, device, transport),
            learner_settings(spec, model, device),
            engines=spec.rollout.engines,
            engine_options=engine_options,
            learner_options=learner_options,
            learner_ranks=ranks,
            learner_timeout_s=spec.resources.learner_timeout_s,
            on_wait=on_wait,
        )
        for pool in pools:
            pool.wait_ready(on_wait)
    except BaseException:
        close()
        raise
    gold = pools[1] if hosted_apart else None
    return Running(engines=engines, learner=learner, rewards=pools[0], gold=gold, close=close)


def assemble(
    spec: JobSpec,
    splits: Splits,
    engines: EnginePool,
    learner: RemoteLearner,
    *,
    rewards: RewardPool,
    save_tokenizer: Callable[[Path], None],
    close: Callable[[], None],
    gold: GoldScorer | None = None,
    policy_commit: str | None = None,
    cost: Callable[[], float] = lambda: 0.0,
) -> Parts:
    """The parts of a job around processes that run: everything else is made from the spec, and remembers nothing."""
    return Parts(
        splits=splits,
        order=PromptOrder(len(splits.train), seed=spec.seed),
        engines=engines,
        learner=learner,
        rewards=rewards,
        gates=Gates({o.name: (o.gate.objective, o.gate.at_least) for o in spec.objectives if o.gate is not None}),
        transforms=make_transforms(spec),
        budget=make_budget(spec),
        objectives=describe_objectives(spec),
        estimator=make_estimator(spec),
        weighting=make_weighting(spec),
        archive=make_archive(spec),
        watch=CollapseWatch(drop=spec.collapse.drop, total_drop=spec.collapse.total_drop),
        save_tokenizer=save_tokenizer,
        describe=_describer(spec),
        close=close,
        gold=gold,
        policy_commit=policy_commit,
        cost=cost,
    )


def make_estimator(spec: JobSpec) -> Estimator:
    """The advantage estimator, with what the spec adds for groups without signal."""
    estimator: Estimator = find_estimator(spec.estimator.name)(**spec.estimator.arguments(spec.objective_names))
    zero_signal = spec.sampling.zero_signal
    if zero_signal.name == "copo":
        return Copo(estimator, **zero_signal.arguments(spec.objective_names))
    return estimator


def make_weighting(spec: JobSpec) -> Weighting:
    weighting: Weighting = find_weighting(spec.weighting.name)(**spec.weighting.arguments(spec.objective_names))
    return weighting


def make_transforms(spec: JobSpec) -> list[Transform]:
    """One for each objective."""
    specs = [objective.transform for objective in spec.objectives]
    return [TRANSFORMS[transform.name](**transform.arguments(spec.objective_names)) for transform in specs]


def make_budget(spec: JobSpec) -> Budget:
    budget, repeats = spec.sampling.budget, spec.rollout.rollouts_per_prompt
    if budget.name == "knapsack":
        return Knapsack(repeats, **budget.arguments(spec.objective_names))
    return Uniform(repeats)


def make_archive(spec: JobSpec) -> Archive:
    return Archive(
        {objective.name: objective.range for objective in spec.objectives},
        {objective.name: objective.reference for objective in spec.objectives if objective.reference is not None},
    )


def describe_objectives(spec: JobSpec) -> Objectives:
    """What strategies know of the objectives."""
    import torch

    targets = [objective.target for objective in spec.objectives]
    return Objectives(
        names=spec.objective_names,
        ranges_K2=torch.tensor([objective.range for objective in spec.objectives], dtype=torch.float64),
        targets_K=torch.tensor([float("nan") if t is None else t.value for t in targets], dtype=torch.float64),
        target_signs_K=torch.tensor([-1.0 if t is not None and t.op == "<=" else 1.0 for t in targets]),
    )


def resolve_model(
    spec: JobSpec, state_dir: Path, *, data_dir: Path | None = None, on_stage: Callable[[str], None] = lambda _: None
) -> str:
    """A directory or hub id that transformers and vLLM load.

    Trains the quickstart policy where it is asked for. An adapter that the job starts from is merged into `data_dir`,
    once, so that its base stays what it was.
    """
    if spec.init_checkpoint is not None:
        path = Path(spec.init_checkpoint).expanduser()
        if not path.is_dir():
            raise ModelError(f"init_checkpoint: {path} is no directory; give that of an exported checkpoint")
        if adapter_base(path) is not None:
            merged = (data_dir or state_dir / "policies") / f"merged-{sha256_of(path / ADAPTER_WEIGHTS)[:16]}"
            if not merged.is_dir():
                on_stage("merging the adapter that the job starts from")
                from policies.merging import merge_adapter

                merge_adapter(path, merged)
            return str(merged)
        check_directory(path)
        return str(path)
    if spec.policy.model == "quickstart":
        from policies.quickstart import ensure_policy

        return str(ensure_policy(state_dir / "policies", seed=spec.seed, show_progress=False))
    if Path(spec.policy.model).expanduser().exists() or spec.policy.model.startswith((".", "/", "~")):
        path = Path(spec.policy.model).expanduser()
        check_directory(path)
        return str(path.resolve())
    return spec.policy.model


def prompt_encoder(spec: JobSpec, tokenizer: PreTrainedTokenizerBase) -> Callable[[Any], list[int]]:
    """Makes tokens of a prompt, text or messages. Raises ModelError where the spec and the tokenizer do not fit."""
    chat, rollout = spec.policy.chat, spec.rollout
    template = None if tokenizer.chat_template is None else tokenizer.get_chat_template()
    check_chat(template, chat.system, chat.template_kwargs)
    texts = {f"rollout.stop.{i}": text for i, text in enumerate(rollout.stop)}
    if rollout.thoughts_end is not None:
        texts["rollout.reasoning.end"] = rollout.thoughts_end
    check_texts(tokenizer, texts)
    return functools.partial(encode_prompt, tokenizer, system=chat.system, template_kwargs=chat.template_kwargs)


def load_splits(
    spec: JobSpec,
    state_dir: Path,
    *,
    model: str,
    encoder: Callable[[Any], list[int]],
    owner: str = "local",
    data_dir: Path | None = None,
) -> Splits:
    """Every split, encoded. Raises DatasetError naming the file and the row."""
    files = split_files(spec, state_dir, owner, data_dir)
    longest = longest_prompt(spec, model)
    splits = {}
    for name, each in files.items():
        try:
            splits[name] = [
                prompt
                for path, rows in groupby(each_of(each), itemgetter(0))
                for prompt in encode((row for _, row in rows), str(path), encoder, longest=longest)
            ]
        except DatasetError as error:  # in the words of the spec, not of where its file was fetched to
            raise DatasetError(each.in_words_of_spec(str(error))) from None
    used = {**splits, "validation": splits["validation"][: spec.evaluation.prompts]}
    for where, message in routing.problems(spec, {name: Contents.of(prompts) for name, prompts in used.items()}):
        raise DatasetError(f"{where}: {message}")
    sums = {
        name: sha256_of(*each.paths)
        for name, each in files.items()
        if isinstance(spec.data, FilesData) and not each.is_held_out  # what is held back follows from the train split
    }
    return Splits(train=splits["train"], validation=splits["validation"], test=splits.get("test", []), sha256=sums)


def split_files(spec: JobSpec, state_dir: Path, owner: str, data_dir: Path | None = None) -> dict[str, SplitFiles]:
    """By split; the quickstart task's files are written first, and those of URLs fetched."""
    if isinstance(spec.data, FilesData):
        data, folder = spec.data, data_dir or state_dir / "data"
        return {split: _files_of(data, split, folder, owner, state_dir) for split in data.splits}
    from policies.quickstart import write_splits

    sizes = {"train": spec.data.train, "validation": spec.data.validation, "test": spec.data.test}
    folder = state_dir / "data" / ("quickstart-" + "-".join(str(size) for size in (spec.seed, *sizes.values())))
    written = write_splits(folder, seed=spec.seed, sizes=sizes)
    return {name: SplitFiles(paths=(path,), columns=Columns()) for name, path in written.items()}


def _files_of(data: FilesData, split: str, folder: Path, owner: str, state_dir: Path) -> SplitFiles:
    columns = data.columns
    paths: dict[Path, str | None] = {}  # with their URLs
    for name in data.names(split):
        if is_url(name):
            paths[fetch(name, folder, pauses_s=LONG_PAUSES_S)] = name
        else:
            found, columns = locate(name, data.columns, owner, state_dir)
            paths |= dict.fromkeys(found)
    return SplitFiles(
        paths=tuple(paths),
        columns=columns,
        limit=data.limit,
        share=data.held_back if split in ("train", "validation") else None,
        is_held_out=split == "validation" and data.held_back is not None,
        named={path: url for path, url in paths.items() if url is not None},
    )


def longest_prompt(spec: JobSpec, model: str) -> int:
    """Tokens that a prompt may have beside rollout.max_tokens. Raises ModelError where there is no room at all."""
    config = check_directory(Path(model)) if Path(model).is_dir() else {}
    lengths = [length for length in (spec.policy.max_model_len, context_length(config)) if length]
    if not lengths:
        return 2**31
    room = min(lengths) - spec.rollout.max_tokens
    if room < 1:
        raise ModelError(
            f"rollout.max_tokens is {spec.rollout.max_tokens}, but the context of {min(lengths)} tokens must hold "
            "the prompt as well; lower rollout.max_tokens or raise policy.max_model_len"
        )
    return room


def usable_gpus(spec: JobSpec, seen: int, *, grows: bool) -> int:
    """Of the GPUs that Ray sees. On a cluster all: this process may be where none is.

    Here, a torch without CUDA can't use them, and a job would be on CPUs without anybody having said so.
    """
    import torch

    usable = seen if grows else min(seen, torch.cuda.device_count())
    if usable < seen and spec.resources.device != "cpu":
        log.warning(
            "this machine has %d GPUs, of which torch %s can use %d; `make setup DEVICE=cuda` installs one for GPUs",
            seen,
            torch.__version__,
            usable,
        )
    return usable


def resolve_device(spec: JobSpec, gpus: int, *, grows: bool = False) -> str:
    """cpu or cuda. Raises ValueError where cuda is asked for and there is none, unless machines with it may join.

    On a cluster that grows, `auto` is what its operator says: its machines may not be there yet.
    """
    if spec.resources.device == "cuda" and gpus == 0 and not grows:
        raise ValueError("resources.device: cuda is asked for, but no CUDA device is visible; use cpu or auto")
    if spec.resources.device != "auto":
        return spec.resources.device
    return (cluster_device() if grows else None) or ("cuda" if gpus > 0 else "cpu")


def placement(spec: JobSpec, device: str, gpus: int | None) -> tuple[Transport, dict[str, Any], dict[str, Any]]:
    """(transport, Ray options of an engine, Ray options of the learner).

    With a GPU for each engine and one for the learner, weights go by nccl. Where they must share one GPU, by ipc: on
    one machine that has no other (`gpus`), or where a spec asks for ipc. On a cluster (None) they wait for GPUs of
    their own. Rewards have their shares first: on the same GPU where there is no other.
    """
    environment = {"env_vars": engine_environment(spec, device)}
    transport = transport_of(spec, device, gpus)
    if device == "cpu":
        learner = {"num_cpus": 1, "runtime_env": {"env_vars": dict(WAITING)}}
        return transport, {"num_cpus": 1, "runtime_env": environment}, learner
    size = spec.rollout.tensor_parallel
    wanted, rewards, shared = gpus_wanted(spec), reward_gpus(spec), shares_gpu(spec, gpus)
    room = 1.0 - rewards if gpus == 1 and rewards < 1 else 1.0
    share = math.floor(10_000 * room / wanted) / 10_000 if shared else 1.0  # Ray counts in ten-thousandths
    engine = {"num_cpus": 1, "num_gpus": share if shared else size, "runtime_env": environment}
    return transport, engine, {"num_cpus": 1, "num_gpus": share}


def engine_environment(spec: JobSpec, device: str) -> dict[str, str]:
    """Variables of an engine's process: quiet, offline about usage, and only as many threads as allowed."""
    variables = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if device == "cpu":
        variables |= WAITING
    ranks = spec.rollout.tensor_parallel
    if device == "cpu" and ranks == 1:
        # The worker inside the engine core: a process and an import of torch less, the same tokens, 12 s sooner up.
        variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    elif device == "cpu":
        # vLLM would bind each rank to a NUMA node of its own, and does not start where nodes are fewer than ranks.
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    threads = spec.resources.engine_threads
    if threads is None and device == "cpu" and spec.policy.model == "quickstart":
        threads = 1  # its layers are too small to share out: on 2 cores a batch took .70 s, with both threads .86 s
    elif threads is None and device == "cpu":  # unasked, Ray would give it one
        threads = max(1, (os.cpu_count() or 1) // spec.rollout.engines)
    if threads is not None:
        variables["OMP_NUM_THREADS"] = str(max(1, threads // ranks))
    return variables


def engine_settings(spec: JobSpec, model: str, device: str, transport: Transport) -> EngineSettings:
    rollout = spec.rollout
    return EngineSettings(
        model=model,
        revision=spec.policy.revision,
        dtype=spec.policy.dtype,
        device=device,
        seed=spec.seed,
        max_model_len=spec.policy.max_model_len,
        max_num_seqs=rollout.max_num_seqs,
        kv_cache_gib=rollout.kv_cache_gib,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        tensor_parallel=rollout.tensor_parallel,
        prefix_caching=rollout.prefix_caching,
        enforce_eager=rollout.enforce_eager,
        transport=transport,
        sleep=rollout.sleep,
        timeout_s=rollout.timeout_s,
        stall_s=rollout.stall_s,
    )


def learner_settings(spec: JobSpec, model: str, device: str) -> LearnerSettings:
    optimizer, loss = spec.optimizer, spec.loss
    # Where the optimiser works, or what several share is loaded and tried; unasked, Ray would give it one thread.
    on_host = device == "cpu" or spec.policy.cpu_offload or spec.resources.learner_ranks > 1
    return LearnerSettings(
        model=model,
        revision=spec.policy.revision,
        dtype=spec.policy.dtype,
        device=device,
        threads=spec.resources.learner_threads
        or (max(1, (os.cpu_count() or 1) // spec.resources.learner_ranks) if on_host else None),
        seed=spec.seed,
        temperature=spec.rollout.temperature,
        evaluated_temperature=spec.evaluation.temperature,
        evaluated_top_p=spec.rollout.top_p,
        lr=optimizer.lr,
        betas=optimizer.betas,
        weight_decay=optimizer.weight_decay,
        warmup_steps=optimizer.warmup_steps,
        schedule=optimizer.schedule,
        total_updates=spec.steps * optimizer.minibatches,
        max_grad_norm=optimizer.max_grad_norm,
        minibatches=optimizer.minibatches,
        tokens_per_microbatch=optimizer.tokens_per_microbatch,
        packing=optimizer.packing,
        share_prompts=optimizer.share_prompts,
        surrogate=ClippedSurrogate(
            clip_low=loss.clip_low, clip_high=loss.clip_high, importance_cap=loss.importance_cap
        ),
        aggregation=loss.aggregation,
        max_tokens=spec.rollout.max_tokens,
        max_model_len=spec.policy.max_model_len,
        kl_coef=loss.kl_coef,
        gradient_checkpointing=spec.policy.gradient_checkpointing,
        cpu_offload=spec.policy.cpu_offload,
        compile=spec.policy.compile and device == "cuda",
        lora=None if spec.policy.lora is None else Lora(**spec.policy.lora.model_dump() | {"merge": spec.merges}),
        gramian=spec.gramian.mode if spec.measures_gradients else None,
        sketch_width=spec.gramian.sketch_width,
        response_share=spec.gramian.response_share,
    )


def _describer(spec: JobSpec) -> Callable[[list[str], list[str]], dict[str, Any]]:
    if spec.data.type != "quickstart":
        return lambda _completions, _answers: {}
    from policies.quickstart import style_figures

    def styles(completions: list[str], answers: list[str]) -> dict[str, Any]:
        figures = style_figures(completions, answers)
        return {"styles": {name: {"share": f.share, "accuracy": f.accuracy} for name, f in figures.items()}}

    return styles
