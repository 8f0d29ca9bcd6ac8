"""All of a job's actors at once, or none: two jobs that each held half of what they need would wait for ever.

The actors' own Ray options say what they need, so what is reserved is what is then used. Rewards that ask for nothing,
as verifiers do, are not among them: they fit on any machine (`anywhere`). Where an operator has labelled a cluster's
machines by the role that they are for (EQUIPOISE_RAY_ROLE_LABEL), each actor has its room on those of its own. Where
machines join a cluster once somebody waits for them, EQUIPOISE_RAY_GROWTH_S is how long one may take, and
EQUIPOISE_RAY_MACHINES how many GPUs one has.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from orchestrator.errors import DoesNotFit, ResourcesBusy

ROLE_LABEL_VARIABLE = "EQUIPOISE_RAY_ROLE_LABEL"  # of a cluster: the label that says what a machine is for
GROWTH_VARIABLE = "EQUIPOISE_RAY_GROWTH_S"
MACHINES_VARIABLE = "EQUIPOISE_RAY_MACHINES"  # of a cluster: GPUs of a machine for each role, as far as it is known
Options = Mapping[str, Any]
Role = Literal["rollout", "learner", "reward"]
Label = tuple[str, str]
_LOOK_EVERY_S = 1  # Ray waits whole seconds
_LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


def role_label() -> str | None:
    """The operator's name for the label, if there is one. Raises ValueError where Ray would refuse it, job by job."""
    label = os.environ.get(ROLE_LABEL_VARIABLE)
    if label and not _LABEL.fullmatch(label):
        raise ValueError(
            f"{ROLE_LABEL_VARIABLE}: {label[:100]!r} is no label's name; expected one such as example.com/role: "
            "letters, digits, '-', '_' and '.', at most 63, after a domain and a slash if you like"
        )
    return label or None


def anywhere(role_label: str | None) -> dict[str, Any]:
    """Ray options of an actor that has nothing reserved: where machines have a role, on one for rewards rather than on
    another, and never on one without, as a cluster's head is, which has no memory for it."""
    if role_label is None:
        return {}
    others = ",".join(role for role in get_args(Role) if role != "reward")  # with spaces Ray finds none of them
    return {
        "label_selector": {role_label: "reward"},
        "fallback_strategy": [{"label_selector": {role_label: f"in({others})"}}],
    }


def growth_s() -> float:
    """How long a machine may take to join the cluster, by its operator; 0 where none joins. ValueError for no time."""
    text = os.environ.get(GROWTH_VARIABLE)
    if text and not re.fullmatch(r"\d{1,6}", text, re.ASCII):
        raise ValueError(f"{GROWTH_VARIABLE}: {text[:100]!r} is no time; expected whole seconds such as 1800")
    return float(text or 0)


def machine_gpus() -> dict[str, int]:
    """GPUs of the largest machine that may come for a role, by the operator; a role that is not named may have any.

    ValueError for what is no such list.
    """
    found: dict[str, int] = {}
    text = os.environ.get(MACHINES_VARIABLE) or ""
    for part in filter(None, text.split(",")):
        role, _, gpus = part.strip().partition("=")
        if role not in get_args(Role) or not re.fullmatch(r"\d{1,3}", gpus, re.ASCII):
            raise ValueError(
                f"{MACHINES_VARIABLE}: {part[:100]!r} is no number of GPUs of a machine; "
                "expected such as learner=1,rollout=1,reward=0"
            )
        found[role] = int(gpus)
    return found


@dataclass(frozen=True, kw_only=True)
class Gang:
    """A placement group that stands, with a place in it for each actor. Ray removes it with the driver."""

    group: Any
    places: tuple[int, ...]

    def place(self, actor: int) -> dict[str, Any]:
        """Ray options by which an actor takes its place."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=self.places[actor])
        return {"scheduling_strategy": strategy}

    def machines(self, actors: Iterable[int]) -> set[str]:
        """Ray's names of those that these actors are on."""
        from ray.util import placement_group_table

        nodes = placement_group_table(self.group)["bundles_to_node_id"]
        return {nodes[self.places[actor]] for actor in actors}

    def close(self) -> None:
        """Gives the resources back, and ends the actors that are still on them."""
        from ray.util import remove_placement_group

        remove_placement_group(self.group)


def members(
    engine: Options, engines: int, learner: Options, ranks: int, rewards: Sequence[Options]
) -> list[tuple[Role, Options]]:
    """A job's actors in the order of their places: engines, the learner's ranks, rewards' replicas."""
    return [
        *(("rollout", engine) for _ in range(engines)),
        *(("learner", learner) for _ in range(ranks)),
        *(("reward", options) for options in rewards),
    ]


def reserve(
    actors: Sequence[tuple[Role, Options]],
    *,
    timeout_s: float,
    grows: bool,
    growth_s: float = 0.0,
    on_wait: Callable[[str], None] = lambda _: None,
    role_label: str | None = None,
    machine_gpus: Mapping[str, int] = MappingProxyType({}),
) -> Gang:
    """Room for all the actors at once. Ray must be initialised.

    Waits `timeout_s`, holding nothing, then raises ResourcesBusy where it would fit beside less, or DoesNotFit where
    it never will: at once on a machine of its own (not `grows`). Machines that are not there may join a cluster within
    `growth_s`: they are waited for so long, and as nobody here knows how many there can be, the end is ResourcesBusy.
    `on_wait` hears every second why it waits, and may raise. With a `role_label`, on machines whose label of that name
    is the actor's role. `machine_gpus`: what no machine that comes will have; it is not waited for.
    """
    from ray.util import placement_group

    bundles, places = bundles_of(actors)
    roles = [role for role, _ in actors]
    labels = labels_of(roles, places, role_label)
    never = too_large(bundles, labels_of(roles, places, "role"), machine_gpus)
    selectors = [dict([label]) if label else {} for label in labels] if role_label else None
    group = placement_group(bundles, strategy="PACK", bundle_label_selector=selectors)
    gang = Gang(group=group, places=tuple(places))
    began = time.monotonic()
    complete_since = began  # what machines that came last wait for is others' work
    try:
        while not gang.group.wait(_LOOK_EVERY_S):
            problem, now = lack(bundles, labels), time.monotonic()
            comes = bool(problem) and grows and growth_s > 0
            if comes:
                complete_since = now
            waited = now >= (began + max(timeout_s, growth_s) if comes else complete_since + timeout_s)
            if problem and (never or (not comes and (waited or not grows))):
                raise DoesNotFit(f"resources: {never or problem}")
            line = f"waiting for resources: {problem or shortage(bundles)}"
            if waited:
                raise ResourcesBusy(line)
            on_wait(line)
    except BaseException:
        gang.close()
        raise
    return gang


def bundles_of(actors: Sequence[tuple[Role, Options]]) -> tuple[list[dict[str, float]], list[int]]:
    """(what must be reserved, which of it each actor gets).

    An actor has a bundle of its own, on one machine. Engines and learner that share a GPU have one together, which is
    what puts them on the same GPU: they hand weights to each other by memory addresses.

    The learner's come first: Ray fills one machine after another, with bundles of as many GPUs in their order, and
    ranks on one machine exchange their parts of the model at each block.
    """
    bundles: list[dict[str, float]] = []
    places = [0] * len(actors)
    shared: int | None = None
    for i in sorted(range(len(actors)), key=lambda i: actors[i][0] != "learner"):
        role, options = actors[i]
        cpus, gpus = float(options.get("num_cpus", 1)), float(options.get("num_gpus", 0))
        if role == "reward" or not 0 < gpus < 1:
            places[i] = len(bundles)
            bundles.append({"CPU": cpus} | ({"GPU": gpus} if gpus else {}))
            continue
        if shared is None:
            shared = len(bundles)
            bundles.append({"CPU": 0.0, "GPU": 0.0})
        places[i] = shared
        bundles[shared]["CPU"] += cpus
        bundles[shared]["GPU"] += gpus
    if shared is not None:
        amount = round(bundles[shared]["GPU"], 4)  # what Ray counts in; equal shares are rounded down
        bundles[shared]["GPU"] = amount if amount < 0.99 else float(math.ceil(amount - 1e-3))
    return bundles, places


def labels_of(roles: Sequence[Role], places: Sequence[int], name: str | None) -> list[Label | None]:
    """Of the machines that each bundle may be on; a GPU that is shared is one for learners."""
    found: list[Label | None] = [None] * (max(places, default=-1) + 1)
    if name is not None:
        for role, place in zip(roles, places, strict=True):
            if found[place] is None or role == "learner":
                found[place] = (name, role)
    return found


def gpus_reserved(actors: Sequence[tuple[Role, Options]]) -> float:
    """GPUs that nobody else gets while these actors have theirs."""
    return math.fsum(bundle.get("GPU", 0.0) for bundle in bundles_of(actors)[0])


def parted(gang: Gang, ranks: Sequence[int]) -> str | None:
    """What to tell where the learner's ranks are on several machines, and one would have had the GPUs for all."""
    import ray

    if len(ranks) == 1:
        return None
    machines = gang.machines(ranks)
    most = max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if len(machines) == 1 or most < len(ranks):
        return None
    return (
        f"the learner's {len(ranks)} ranks are on {len(machines)} machines, so that each block of the model goes over "
        f"their network; {ROLE_LABEL_VARIABLE} can keep machines for learners"
    )


def lack(bundles: Sequence[Mapping[str, float]], labels: Sequence[Label | None] = ()) -> str | None:
    """Why the machines that there are can't hold the bundles even when nothing else runs; None where they may."""
    import ray

    machines = [node for node in ray.nodes() if node["Alive"]]
    needed = _total(bundles)
    for kind in ("GPU", "CPU"):
        there = sum(machine["Resources"].get(kind, 0) for machine in machines)
        if needed.get(kind, 0) > there:
            return f"the job needs {_count(needed[kind], kind)} at once, the cluster has {_number(there)}"
    for bundle, label in itertools.zip_longest(bundles, labels):
        fitting = [machine for machine in machines if label is None or label in machine["Labels"].items()]
        if not any(
            all(machine["Resources"].get(kind, 0) >= amount for kind, amount in bundle.items()) for machine in fitting
        ):
            whole = " and ".join(_count(amount, kind) for kind, amount in sorted(bundle.items(), reverse=True))
            where = f" with the label {'='.join(label)}" if label else ""
            return f"an actor needs {whole} on one machine{where}, and none has them"
    return None


def too_large(
    bundles: Sequence[Mapping[str, float]], roles: Sequence[Label | None], machine_gpus: Mapping[str, int]
) -> str | None:
    """Why no machine that may come to a cluster will hold one of the bundles; None where one may."""
    for bundle, role in zip(bundles, roles, strict=True):
        most = None if role is None else machine_gpus.get(role[1])
        if role is not None and most is not None and bundle.get("GPU", 0) > most:
            asked = f"an actor needs {_count(bundle['GPU'], 'GPU')} on one machine for {role[1]}"
            return f"{asked}, and none has more than {most} ({MACHINES_VARIABLE})"
    return None


def shortage(bundles: Sequence[Mapping[str, float]]) -> str:
    """What the job needs and what is free now."""
    import ray

    free, parts = ray.available_resources(), []
    for kind, amount in sorted(_total(bundles).items(), reverse=True):
        parts.append(f"needs {_count(amount, kind)}, {_number(free.get(kind, 0))} free")
    return "; ".join(parts)


def _total(bundles: Sequence[Mapping[str, float]]) -> dict[str, float]:
    kinds = {kind for bundle in bundles for kind in bundle}
    return {kind: math.fsum(bundle.get(kind, 0) for bundle in bundles) for kind in kinds}


def _count(amount: float, kind: str) -> str:
    return f"{_number(amount)} {kind}{'' if amount == 1 else 's'}"


def _number(amount: float) -> str:
    return f"{amount:.4g}"
