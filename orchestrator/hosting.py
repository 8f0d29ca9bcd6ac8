"""A job's rewards as they are hosted: which objectives share one, what it needs, and its processes."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from orchestrator.spec import JobSpec
from orchestrator.specs.hosting import HostingSpec
from orchestrator.specs.objectives import ObjectiveSpec, RewardSpec
from rewards import registry, routed
from rewards.host import Host
from rewards.hosting import SINGLE, Hosting, Replica, actor_replica
from rewards.pool import RewardPool

GOLD = "gold"
log = logging.getLogger("equipoise.driver")


@dataclass(frozen=True, kw_only=True)
class HostedReward:
    """One reward as it is hosted, and which of its heads each objective gets."""

    name: str
    options: dict[str, Any]
    heads: dict[str, str]
    domains: tuple[str, ...] | None
    """Of the rows that it is asked about; None is all."""
    hosting: HostingSpec
    deadline_s: float

    @property
    def reserved(self) -> list[dict[str, Any]]:
        """Ray options of each replica; none where it asks for nothing, and so fits anywhere."""
        hosting = self.hosting
        options = {"num_cpus": hosting.num_cpus, "num_gpus": hosting.num_gpus}
        return [options] * hosting.replicas if hosting.num_cpus or hosting.num_gpus else []

    @property
    def constants(self) -> Hosting:
        """As its host takes them."""
        own = self.hosting.model_dump(exclude={"num_cpus", "num_gpus", "deadline_s", "on_failure"})
        rowwise = getattr(registry.resolve(self.name), "rowwise", False)
        return Hosting(deadline_s=self.deadline_s, rowwise=rowwise, **own)


def hosted_rewards(spec: JobSpec) -> list[HostedReward]:
    """Objectives with the same reward and options, the head apart, share one: it scores them in one pass."""
    sharing: dict[str, list[ObjectiveSpec]] = {}
    for objective in spec.objectives:
        sharing.setdefault(objective.reward.shared_by, []).append(objective)
    return [
        _hosted(
            spec,
            objectives[0].reward,
            heads={objective.name: _column(objective.reward) for objective in objectives},
            domains=_union([objective.domains for objective in objectives]),
        )
        for objectives in sharing.values()
    ]


def hosted_gold(spec: JobSpec) -> list[HostedReward]:
    """The gold reward, if the job has one: apart from the objectives', so that its failures are its own."""
    if spec.gold is None:
        return []
    return [_hosted(spec, spec.gold.reward, heads={GOLD: _column(spec.gold.reward)}, domains=None)]


def _hosted(
    spec: JobSpec, reward: RewardSpec, *, heads: dict[str, str], domains: tuple[str, ...] | None
) -> HostedReward:
    return HostedReward(
        name=reward.name,
        options=dict(reward.options),
        heads=heads,
        domains=domains,
        hosting=reward.hosting,
        deadline_s=reward.hosting.deadline_s or spec.resources.reward_timeout_s,
    )


def _column(reward: RewardSpec) -> str:
    return SINGLE if reward.head is None else reward.head


def _union(wanted: Sequence[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    """Of all that share a reward; None, which is every row, where one of them wants that."""
    named = [domains for domains in wanted if domains is not None]
    return tuple(sorted({*itertools.chain(*named)})) if len(named) == len(wanted) else None


def reward_pool(
    hosted: Sequence[HostedReward],
    places: Sequence[Mapping[str, Any]] = (),
    *,
    elsewhere: Mapping[str, Any] = MappingProxyType({}),
    replica: Callable[..., Replica] = actor_replica,
) -> RewardPool:
    """Starts every replica; `places` are Ray options for those that have something reserved, in order, and `elsewhere`
    for the others."""
    left = iter(places)
    hosts = []
    for reward in hosted:
        reserved = reward.reserved or [{}] * reward.hosting.replicas
        factory = functools.partial(routed.build, reward.name, reward.options, reward.domains)
        seen = _gpus_seen(reward)
        replicas = [replica(factory, **one, **(next(left) if one else elsewhere), **seen) for one in reserved]
        hosts.append(Host(reward.name, reward.heads, replicas, reward.constants))
    return RewardPool(hosts)


def _gpus_seen(reward: HostedReward) -> dict[str, bool]:
    """Of one that asks for cuda and reserves none, which is refused at submission: its job was accepted before that."""
    if reward.options.get("device") != "cuda" or reward.hosting.num_gpus:
        return {}
    log.warning("reward '%s' scores on cuda without a GPU of its own; set hosting.num_gpus in new jobs", reward.name)
    return {"sees_gpus": True}
