"""From a spec to the parts of a job: the only place that turns configuration into objects."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.actors.cluster import Cluster
from orchestrator.actors.gang import anywhere, gpus_reserved, members, parted, role_label
from orchestrator.actors.placement import as_it_runs, check_placement, placement, resolve_device
from orchestrator.actors.remote_learner import RemoteLearner
from orchestrator.directions import directions
from orchestrator.gold import GoldScorer
from orchestrator.hosting import GOLD, hosted_gold, hosted_rewards, reward_pool
from orchestrator.inputs import Splits, load_splits, prompt_encoder, resolve_model
from orchestrator.pinning import at_one_commit
from orchestrator.process_settings import engine_settings, learner_settings
from orchestrator.rollouts.engines import EnginePool
from orchestrator.rollouts.prompts import PromptOrder
from orchestrator.spec import JobSpec
from policies.budget import Budget, Knapsack, Uniform
from policies.collapse import CollapseWatch
from policies.estimators import Estimator
from policies.estimators.copo import Copo
from policies.models import load_tokenizer, processor_files, tokenizer_saver
from policies.pareto import Archive
from policies.plugins import find_estimator, find_weighting
from policies.types import Objectives
from policies.weighting import Weighting
from rewards.gates import Gates
from rewards.pool import RewardPool
from rewards.transforms import TRANSFORMS, Transform

log = logging.getLogger("equipoise.driver")


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
    is_resumed: bool = False,
) -> Parts:
    """Start everything that a job needs; `on_stage` hears what takes long. ValueError where the spec can't run.

    `on_gpus` hears how many GPUs are reserved, as soon as they are. `data_dir` is where the job keeps what it fetches,
    `trained_commit` the hub's commit of the policy that its checkpoints stand on. A job that `is_resumed` from one goes
    on with what would be refused at its submission now: prompts, a system message, a transport.
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
        encoder=prompt_encoder(spec, tokenizer, is_resumed=is_resumed),
        owner=owner,
        data_dir=data_dir,
        is_resumed=is_resumed,
    )
    save_tokenizer = tokenizer_saver(tokenizer, processor_files(model, revision=spec.policy.revision))
    running = start(spec, model, ray_address=ray_address, on_stage=on_stage, on_gpus=on_gpus, is_resumed=is_resumed)
    gold = running.gold

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
    is_resumed: bool = False,
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
        spec = as_it_runs(spec, device) if is_resumed else spec
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
        if device == "cuda" and (told := parted(gang, range(spec.rollout.engines, actors))):
            log.warning("%s", told)
        on_wait = functools.partial(on_stage, "starting engines and learner")  # it hears a cancel
        on_wait()
        places = [gang.place(actors + i) for i in range(len(replicas))]
        elsewhere = anywhere(role_label() if cluster.grows else None)
        pools.append(reward_pool(hosted, places, elsewhere=elsewhere))
        if hosted_apart:
            places = places[sum(len(reward.reserved) for reward in hosted) :]
            pools.append(reward_pool(hosted_apart, places, elsewhere=elsewhere))
        if transport == "ipc" and any(options["num_gpus"] for options in replicas):
            for pool in pools:  # vLLM counts as its own what others take of its GPU while it starts
                pool.wait_ready(on_wait, every=True)
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
        directions(spec.model_dump(mode="json"), reads_targets="targets" in spec.weighting.needs),
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


def _describer(spec: JobSpec) -> Callable[[list[str], list[str]], dict[str, Any]]:
    if spec.data.type != "quickstart":
        return lambda _completions, _answers: {}
    from policies.quickstart import style_figures

    def styles(completions: list[str], answers: list[str]) -> dict[str, Any]:
        figures = style_figures(completions, answers)
        return {"styles": {name: {"share": f.share, "accuracy": f.accuracy} for name, f in figures.items()}}

    return styles
