"""A job's rewards as they are hosted: which objectives share one, what it needs, and its processes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.spec import JobSpec
from orchestrator.specs.hosting import HostingSpec
from rewards import registry
from rewards.host import Host
from rewards.hosting import SINGLE, Hosting, Replica, actor_replica
from rewards.pool import RewardPool


@dataclass(frozen=True, kw_only=True)
class HostedReward:
    """One reward as it is hosted, and which of its heads each objective gets."""

    name: str
    options: dict[str, Any]
    heads: dict[str, str]
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
        return Hosting(deadline_s=self.deadline_s, **own)


def hosted_rewards(spec: JobSpec) -> list[HostedReward]:
    """Objectives with the same reward and options, the head apart, share one: it scores them in one pass."""
    found: dict[str, HostedReward] = {}
    for objective in spec.objectives:
        reward = objective.reward
        hosted = found.setdefault(
            reward.shared_by,
            HostedReward(
                name=reward.name,
                options=dict(reward.options),
                heads={},
                hosting=reward.hosting,
                deadline_s=reward.hosting.deadline_s or spec.resources.reward_timeout_s,
            ),
        )
        hosted.heads[objective.name] = SINGLE if reward.head is None else reward.head
    return list(found.values())


def reward_pool(
    hosted: Sequence[HostedReward],
    places: Sequence[Mapping[str, Any]] = (),
    *,
    replica: Callable[..., Replica] = actor_replica,
) -> RewardPool:
    """Starts every replica; `places` are Ray options for those that have something reserved, in order."""
    left = iter(places)
    hosts = []
    for reward in hosted:
        reserved = reward.reserved or [{}] * reward.hosting.replicas
        factory = functools.partial(registry.build, reward.name, reward.options)
        replicas = [replica(factory, **one, **(next(left) if one else {})) for one in reserved]
        hosts.append(Host(reward.name, reward.heads, replicas, reward.constants))
    return RewardPool(hosts)
