"""A loop over fakes at its seams: engines that sample from seeds, a learner of two numbers, a journal in memory."""

import dataclasses
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from orchestrator.build import (
    Parts,
    describe_objectives,
    make_archive,
    make_budget,
    make_estimator,
    make_transforms,
    make_weighting,
)
from orchestrator.failpoints import reach
from orchestrator.gold import GoldScorer
from orchestrator.hosting import hosted_rewards, reward_pool
from orchestrator.inputs import Splits
from orchestrator.journal import Wishes, figures_digest
from orchestrator.loop import Loop
from orchestrator.rollouts.prompts import Prompt, PromptOrder
from orchestrator.spec import JobSpec, parse_spec
from orchestrator.steering import Steering, initial_steering
from orchestrator.storage.checkpoint_store import CheckpointStore
from orchestrator.storage.checkpoints import Manifest, directory_name, verify
from policies.collapse import CollapseWatch
from policies.types import LearnStats, ObjectiveAdvantages, Rollout, RolloutRequest
from rewards.base import RewardBatch
from rewards.gates import Gates
from rewards.host import Incident
from rewards.hosting import LocalReplica
from rewards.pool import RewardPool, Scored

Profile = Callable[[int], tuple[float, float]]  # policy version -> what every held-out completion is worth


class Killed(BaseException):
    """The process ends here."""


def make_spec(**sections: Any) -> JobSpec:
    return parse_spec(
        {
            "name": "loop",
            "steps": 6,
            "seed": 7,
            "policy": {"model": "quickstart"},
            "data": {"type": "quickstart"},
            "objectives": [
                {"name": "accuracy", "reward": {"name": "math"}, "weight": 3.0},
                {"name": "brevity", "reward": {"name": "conciseness"}, "weight": 1.0},
            ],
            "rollout": {"prompts_per_step": 3, "rollouts_per_prompt": 4, "max_tokens": 9},
            "estimator": {"name": "gdpo"},
            "weighting": {"name": "fixed"},
            "evaluation": {"every": 2},
            "checkpoints": {"every": 3},
            "collapse": {"action": "off"},
            **sections,
        }
    )


# ------------------------------------------------------------------------- fakes


@dataclasses.dataclass
class World:
    """What the fakes share: the calls in their order, and the policy that the engines sample from."""

    calls: list[str] = dataclasses.field(default_factory=list)
    version: int = 0
    latest: list[str] = dataclasses.field(default_factory=list)  # the completions of the last batch
    skills: list[float] = dataclasses.field(default_factory=lambda: [0.3, 0.6])


class FakeEngines:
    """A completion says what it is worth: `0.53 0.27`, near the policy's skills, decided by the seed."""

    def __init__(self, world: World, profile: Profile | None) -> None:
        self.world = world
        self.profile = profile
        self.batches: list[list[RolloutRequest]] = []
        self.order: Callable[[int], Sequence[int]] = lambda count: random.Random(count).sample(range(count), count)
        self.serving = 1
        self.at_once = 1  # rollouts that are told of together

    def gather(
        self, requests: Sequence[RolloutRequest], on_end: Callable[[int, Rollout], None], enough: Callable[[], bool]
    ) -> dict[int, Rollout]:
        """They end in an order of their own."""
        self.world.calls.append("generate")
        self.batches.append(list(requests))
        rollouts = [self.sample(request) for request in requests]
        self.world.latest = [rollout.text for rollout in rollouts]
        found = {}
        for told, place in enumerate(self.order(len(requests))):
            if told % self.at_once == 0 and enough():
                break
            found[place] = rollouts[place]
            on_end(place, rollouts[place])
        return found

    def rest(self) -> None:
        self.world.calls.append("rest")

    def refit(self, learner: "FakeLearner", version: int) -> None:
        learner.sync(version)

    def told(self) -> list[Incident]:
        return []

    def health(self) -> dict[str, dict[str, Any]]:
        return {}

    def sample(self, request: RolloutRequest) -> Rollout:
        chance = random.Random(f"{request.prompt_tokens} {request.seed}")
        noise = 0.0 if request.seed is None else 0.2
        values = [skill + noise * (chance.random() - 0.5) for skill in self.world.skills]
        if self.profile is not None:
            values = list(self.profile(self.world.version))
        tokens = tuple(range(chance.randint(1, request.max_tokens)))
        return Rollout(
            prompt_tokens=request.prompt_tokens,
            tokens=tokens,
            logprobs=(0.0,) * len(tokens),
            text=" ".join(map(repr, values)),
            truncated=len(tokens) == request.max_tokens,
            policy_version=self.world.version,
        )


class FakeLearner:
    """Two numbers that move with the advantages. Engines see them only after `sync`."""

    def __init__(self, world: World, mode: str) -> None:
        self.world = world
        self.skills = list(world.skills)
        self.mode = mode
        self.measured: list[list[list[float]]] = []
        self.learned: list[tuple[torch.Tensor, ObjectiveAdvantages | None]] = []
        self.learned_from: list[list[Rollout]] = []

    def device_name(self) -> str:
        return "a stand-in"

    def gramian(self, rollouts: Sequence[Rollout], advantages_BK: torch.Tensor) -> torch.Tensor:
        self.world.calls.append("gramian")
        assert advantages_BK.shape == (len(rollouts), 2)
        found = (advantages_BK.T @ advantages_BK).double() / len(rollouts)
        self.measured.append(found.tolist())
        return found

    def learn(self, rollouts: Sequence[Rollout], advantages_B: Any, parts: ObjectiveAdvantages | None) -> LearnStats:
        self.world.calls.append("learn")
        assert bool(torch.isfinite(advantages_B).all())
        assert len(advantages_B) == len(rollouts)
        self.learned.append((advantages_B, parts))
        self.learned_from.append(list(rollouts))
        for rollout, advantage in zip(rollouts, advantages_B.tolist(), strict=True):
            values = [float(word) for word in rollout.text.split()]
            for k, value in enumerate(values):
                self.skills[k] += 0.02 * advantage * (value - self.world.skills[k])
        return LearnStats(
            loss=self.skills[0],
            grad_norm=1.0,
            lr=0.1,
            entropy=0.5,
            kl=None,
            clip_share=0.0,
            importance_mean=1.0,
            sampler_gap=0.0,
            padding_share=0.0,
            surviving_B=tuple(1.0 - 0.01 * (i % 3) for i in range(len(rollouts))),
            **self.during(parts),
        )

    def during(self, parts: ObjectiveAdvantages | None) -> dict[str, Any]:
        if parts is None or self.mode == "exact":
            return {}
        gramian_KK = parts.advantages_BK.T @ parts.advantages_BK / len(parts.advantages_BK)
        if self.mode == "step_response":
            return {"influence_K": tuple(gramian_KK.sum(dim=0).tolist())}
        return {"gramian_KK": tuple(tuple(row) for row in gramian_KK.tolist())}

    def sync(self, version: int) -> None:
        self.world.calls.append("sync")
        self.world.version, self.world.skills = version, list(self.skills)

    def save(self, directory: Path, *, beside: bool = False) -> None:  # noqa: ARG002  it has written when it returns
        (directory / "learner.json").write_text(json.dumps(self.skills))
        reach("checkpoint_halfway")
        (directory / "policy" / "model.safetensors").write_text(json.dumps(self.skills))

    def load(self, directory: Path) -> None:
        self.world.calls.append(f"load {directory.name}")
        self.skills = json.loads((directory / "learner.json").read_text())

    def load_policy(self, directory: Path) -> None:
        self.world.calls.append(f"load the policy of {directory.name}")
        self.skills = json.loads((directory / "policy" / "model.safetensors").read_text())


class FakeRewards:
    """A pool whose every group is scored when its round is finished."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.error: Exception | None = None

    def begin(self, counts: Sequence[int], **_: Any) -> "FakeRound":
        return FakeRound(self, list(counts))

    def score(self, batch: RewardBatch) -> dict[str, list[float | None]]:
        self.world.calls.append("score")
        if self.error is not None:
            raise self.error
        columns = zip(*(map(float, text.split()) for text in batch.completions), strict=True)
        return dict(zip(("accuracy", "brevity"), map(list, columns), strict=True))

    def told(self) -> list[Incident]:
        return []

    def health(self, purpose: str) -> dict[str, dict[str, float]]:  # noqa: ARG002  it has none
        return {}


@dataclasses.dataclass
class FakeRound:
    pool: FakeRewards
    counts: list[int]
    groups: dict[int, RewardBatch] = dataclasses.field(default_factory=dict)

    def add(self, group: int, batch: RewardBatch) -> None:
        assert len(batch) == self.counts[group]
        self.groups[group] = batch

    def finish(self, groups: Sequence[int], on_wait: Callable[[], None] = lambda: None) -> Scored:  # noqa: ARG002
        assert sorted(self.groups) == list(groups)
        return Scored(scores=self.pool.score(RewardBatch.joined([self.groups[p] for p in groups])))

    def cancel(self) -> None:
        pass


class Worth:
    """The k-th number of a completion, for a real pool; `trouble` says what goes wrong, and when.

    how: what it does instead; rows: of the batch, all where absent; version: of the policy, always where absent;
    times: calls that go wrong, all where absent.
    """

    VALUES: ClassVar[dict[str, Any]] = {
        "nan": math.nan, "inf": math.inf, "-inf": -math.inf, "huge": 1e300, "text": "0.5", "none": None,
    }  # fmt: skip

    def __init__(self, world: World, k: int, trouble: dict[str, Any] | None) -> None:
        self.world, self.k, self.trouble = world, k, trouble or {}

    def score(self, batch: RewardBatch) -> Any:
        values: list[Any] = [float(text.split()[self.k]) for text in batch.completions]
        how, marked = self.trouble.get("how"), self.marked(batch)
        if how is None or not marked or self.trouble.get("times", 1) == 0:
            return values
        if "times" in self.trouble:
            self.trouble["times"] -= 1
        if how == "hang":
            time.sleep(600)
        if how in ("raise", "memory", "connection"):
            raise {"raise": ValueError, "memory": MemoryError, "connection": ConnectionError}[how](batch.completions[0])
        if how == "length":
            return values[1:]
        return [self.VALUES[how] if row in marked else value for row, value in enumerate(values)]

    def marked(self, batch: RewardBatch) -> set[int]:
        if self.trouble.get("version", self.world.version) != self.world.version:
            return set()
        if self.trouble.get("how") == "none":  # of the train split, where every `nth` prompt is of the sort
            rows = enumerate(batch.prompts)
            return {row for row, p in rows if p.startswith("train") and int(p.split()[1]) % self.trouble["nth"] == 0}
        rows = self.trouble.get("rows")
        texts = set(self.world.latest) if rows is None else {self.world.latest[row] for row in rows}
        return {row for row, text in enumerate(batch.completions) if text in texts}


def real_rewards(spec: JobSpec, world: World, troubles: Mapping[str, dict[str, Any]]) -> RewardPool:
    """The real pool, hosted as the spec says, in threads; `troubles` by objective."""
    rewards = {objective.reward.name: objective.name for objective in spec.objectives}

    def replica(factory: Any, **_: Any) -> LocalReplica:
        name = rewards[factory.args[0]]
        return LocalReplica(partial(Worth, world, spec.objective_names.index(name), troubles.get(name)))

    return reward_pool(hosted_rewards(spec), replica=replica)


class Noted:
    """A part that notes each call of one method, and what went in."""

    def __init__(self, part: Any, world: World, label: str) -> None:
        self.part, self.world, self.label = part, world, label
        self.given: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.part, name)

    def update(self, stats: Any) -> Any:
        self.world.calls.append(self.label)
        self.given.append(stats)
        return self.part.update(stats)


class MemoryJournal:
    """What Redis would hold; registered checkpoints and records outlive a killed loop."""

    def __init__(self, spec: JobSpec, world: World) -> None:
        self.world = world
        self.log: list[tuple[int, int, Steering]] = [(1, 0, initial_steering(spec))]
        self.records: dict[int, dict[str, Any]] = {}
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.told: set[str | None] = set()
        self.lines: list[dict[str, Any]] = []
        self.costs: list[float] = []
        self.fronts: list[dict[str, Any]] = []
        self.registered: dict[int, dict[str, Any]] = {}
        self.wish: Callable[[], Wishes] = Wishes
        self.pauses = 0
        self.why: list[str] = []
        self.die_at: tuple[str, int] = ("", 0)

    def steering(self, step: int) -> tuple[int, Steering]:
        self.world.calls.append("steering")
        version, _, steering = max((entry for entry in self.log if entry[1] <= step), key=lambda entry: entry[0])
        return version, steering

    def commit(self, record: Mapping[str, Any]) -> None:
        self.world.calls.append("commit")
        self.die("before commit", record["step"])
        self.records[record["step"]] = json.loads(json.dumps(record, allow_nan=False))
        self.die("after commit", record["step"])

    def event(self, type: str, *, level: str = "info", once: str | None = None, **data: Any) -> None:
        if once is not None and once in self.told:
            return
        self.told.add(once)
        self.events.append((type, level, json.loads(json.dumps(data, allow_nan=False))))
        self.die(f"after {type}", data.get("step", -1))

    def steered(self, *, version: int, **data: Any) -> None:
        if version not in [told["version"] for told in self.named("steering.applied")]:
            self.event("steering.applied", version=version, by=f"author of {version}", **data)
            self.die("after steered", version)

    def progress(self, **line: Any) -> None:
        self.lines.append(line)

    def spent(self, cost: float) -> dict[str, float]:
        self.costs.append(cost)
        return {"cost": cost, "gpu_hours": 0.5 * len(self.costs)}

    def front(self, document: Mapping[str, Any]) -> None:
        self.fronts.append(json.loads(json.dumps(document, allow_nan=False)))

    def checkpoint(self, path: Path, manifest: Manifest) -> None:
        self.die("before register", manifest.step)
        self.registered[manifest.step] = {"path": path, "digest": manifest.digest}
        self.die("after register", manifest.step)

    def checkpoints(self, changes: Mapping[int, Mapping[str, Any]], removals: list[int]) -> None:
        assert max(self.registered) not in removals
        for step, change in changes.items():
            self.registered[step] |= change
        for step in removals:
            del self.registered[step]
        if self.registered:
            self.die("before removal", max(self.registered))

    def request_pause(self, why: str) -> None:
        self.pauses += 1
        self.why.append(why)

    def wishes(self) -> Wishes:
        return self.wish()

    def die(self, where: str, step: int) -> None:
        if self.die_at == (where, step):
            raise Killed(where)

    def named(self, type: str) -> list[dict[str, Any]]:
        return [data for found, _, data in self.events if found == type]


@dataclasses.dataclass
class Run:
    loop: Loop
    world: World
    journal: MemoryJournal
    engines: FakeEngines
    learner: FakeLearner
    rewards: FakeRewards
    strategy: Noted
    directory: Path

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.journal.records.values())

    def figures(self) -> dict[int, str]:
        return {step: figures_digest(record) for step, record in self.journal.records.items()}

    def on_disk(self) -> list[int]:
        return sorted(verify(path).step for path in self.directory.iterdir() if not path.name.startswith("."))


def prompts(split: str, count: int) -> list[Prompt]:
    rows = range(1, count + 1)
    return [
        Prompt(content=f"{split} {i}", text=f"{split} {i}", answer=str(i), row=i, tokens=(len(split), i)) for i in rows
    ]


def make_parts(spec: JobSpec, world: World, profile: Profile | None = None, gold: GoldScorer | None = None) -> Parts:
    """Fakes for what costs: engines, learner and rewards. The rest is real.

    With `toy.rewards` in the spec's metadata, the pool of rewards is real too, with these troubles.
    """
    troubles = spec.metadata.get("toy.rewards")
    rewards: Any = FakeRewards(world) if troubles is None else real_rewards(spec, world, json.loads(troubles))
    return Parts(
        splits=Splits(train=prompts("train", 10), validation=prompts("validation", 4), test=prompts("test", 3)),
        order=PromptOrder(10, seed=spec.seed),
        engines=FakeEngines(world, profile),  # type: ignore[arg-type]
        learner=FakeLearner(world, spec.gramian.mode),  # type: ignore[arg-type]
        rewards=rewards,
        gates=Gates({o.name: (o.gate.objective, o.gate.at_least) for o in spec.objectives if o.gate is not None}),
        transforms=make_transforms(spec),
        budget=make_budget(spec),
        objectives=describe_objectives(spec),
        estimator=make_estimator(spec),
        weighting=Noted(make_weighting(spec), world, "strategy"),  # type: ignore[arg-type]
        archive=make_archive(spec),
        watch=CollapseWatch(drop=spec.collapse.drop, total_drop=spec.collapse.total_drop),
        save_tokenizer=lambda folder: (folder / "tokenizer.json").write_text("{}") and None,
        describe=lambda completions, answers: {"described": len(completions) * (len(completions) == len(answers))},
        close=lambda: None,
        gold=gold,
    )


def start(
    directory: Path,
    spec: JobSpec | None = None,
    *,
    profile: Profile | None = None,
    journal: MemoryJournal | None = None,
    fence: int = 1,
    store: CheckpointStore | None = None,
    gold: GoldScorer | None = None,
) -> Run:
    """A fresh process for a job; with the journal of an earlier one, it goes on from there."""
    spec = spec or make_spec()
    world = World()
    if journal is None:
        journal = MemoryJournal(spec, world)
    journal.world = world
    parts: Any = make_parts(spec, world, profile, gold)
    directory.mkdir(parents=True, exist_ok=True)
    loop = Loop(spec, parts, journal, store or CheckpointStore(directory), fence=fence)
    loop.keeper.directory = directory / ".rollouts"
    loop.collector.known.path = directory / ".references.jsonl"
    return Run(loop, world, journal, parts.engines, parts.learner, parts.rewards, parts.weighting, directory)


def resume(run: Run, spec: JobSpec | None = None, **options: Any) -> Run:
    """What the driver does with the next lease."""
    journal = run.journal
    journal.die_at = ("", 0)
    again = start(run.directory, spec, journal=journal, fence=run.loop.fence + 1, **options)
    if journal.registered:
        step = max(journal.registered)
        assert verify(run.directory / directory_name(step)).digest == journal.registered[step]["digest"]
        again.loop.checkpoints.registered = {step: entry["digest"] for step, entry in journal.registered.items()}
        again.loop.resume(step, sorted(journal.registered))
    return again
