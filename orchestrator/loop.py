"""The training loop: read `Loop.step` from top to bottom, it is the algorithm.

P prompts, G rollouts of each, K objectives; B = P * G rollouts in one row.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.build import Parts
from orchestrator.clock import Clock
from orchestrator.errors import Interrupted
from orchestrator.evaluation import Evaluator
from orchestrator.failpoints import reach
from orchestrator.figures import (
    Update,
    batch_figures,
    front_document,
    gates_open,
    point_metrics,
    weights_because,
)
from orchestrator.gold import GoldWatch
from orchestrator.inputs import check_data
from orchestrator.journal import Journal
from orchestrator.ramps import Ramp
from orchestrator.references import FILE
from orchestrator.retention import widest
from orchestrator.rollouts.batch import Batch
from orchestrator.rollouts.collect import Collector
from orchestrator.rollouts.engine_health import recorded
from orchestrator.rollouts.samples import FOLDER, SampleKeeper
from orchestrator.spec import JobSpec
from orchestrator.steering import Steering, alike, apply_directions, clamped
from orchestrator.storage.checkpoint_store import CheckpointStore
from orchestrator.storage.checkpoint_writer import CheckpointWriter
from orchestrator.storage.checkpoints import NEWEST, STATE, STATE_FORMAT, Unreadable, parse_state, write_json
from orchestrator.watches import Watches
from policies.estimators.base import finish
from policies.types import FrontStats, ObjectiveAdvantages, StepStats, UpdateOutcome
from rewards.base import RewardError


@dataclass(kw_only=True)
class LoopState:
    """Everything of the loop itself that a step depends on; the parts keep the rest."""

    step: int = 0  # the last step done
    front: FrontStats | None = None  # as the last evaluation left it
    steering_version: int = 0
    steering: dict[str, Any] | None = None  # what the last step followed: a Redis that is lost takes the log with it
    applied: dict[str, float] | None = None  # by the last step, with a minus where an objective is pushed down
    ramp: Ramp | None = None  # that the last step was on
    gramian: list[list[float]] | None = None  # as measured, averaged over the steps where the spec says so
    influence: list[float] | None = None
    samples: dict[str, Any] = field(default_factory=dict)  # the initial policy's completions, for the report


class Loop:
    """One job's training, from the initial policy to the front. Rollouts lie beside the checkpoints."""

    def __init__(
        self, spec: JobSpec, parts: Parts, journal: Journal, checkpoints: CheckpointStore, *, fence: int
    ) -> None:
        self.spec = spec
        self.parts = parts
        self.journal = journal
        self.checkpoints = checkpoints
        self.fence = fence
        self.writer = CheckpointWriter(checkpoints, journal, fence=fence, registered=self.registered)
        self.names = list(spec.objective_names)
        self.state = LoopState()
        self.clock = Clock()
        self.collector = Collector(spec, parts, self.clock, checkpoints.root.with_name(FILE))
        self.evaluator = Evaluator(spec, parts)
        self.watches = Watches(
            spec,
            collapse=parts.watch,
            gold=GoldWatch(spec, parts.gold),
            journal=journal,
            clock=self.clock,
            pause=self.pause,
        )
        self.keeper = SampleKeeper(spec, checkpoints.root.with_name(FOLDER), fence=fence)
        self.kept: set[int] = set()  # steps whose checkpoint is kept
        self.samples: list[dict[str, Any]] = []  # start and end side by side, once the run has ended
        self.reason: str | None = None  # why it paused, where nobody asked for it
        self.committed = 0  # the last step in the ledger; behind `state.step` while one is being evaluated
        self._samples_failed = False

    # ------------------------------------------------------------------- run

    def run(self) -> str:
        """Train until the last step or until a person wishes otherwise: succeeded, paused, cancelled or stopped.

        A reward that does not come back pauses the run, or fails it by raising, as its objective's hosting says.
        """
        try:
            ended = self.train()
        except RewardError as error:
            self.spent()
            ended = self.without_reward(error)
        self.spent()
        return ended

    def train(self) -> str:
        """As `run`. Raises RewardError, with every committed step as it was."""
        if self.state.step == 0 and self.state.front is None and (asked := self.start()):
            return asked
        self.journal.progress(stage="training", eta_s=None)  # what was told last is over, and a step may take an hour
        while self.state.step < self.spec.steps:
            wishes = self.journal.wishes()
            self.settle(wait=wishes.cancel or wishes.pause or wishes.stop)
            if wishes.cancel:
                return "cancelled"
            if wishes.pause or wishes.stop:
                if self.state.step not in self.kept and (wishes.save or not wishes.pause):
                    self.checkpoint()
                return "paused" if wishes.pause else "stopped"
            self.step(self.state.step + 1)
        self.settle()
        while self.state.step not in self.kept:  # the last policy is the result: not without it
            self.checkpoint()
        self.journal.progress(stage="testing the front", eta_s=None)
        tested = self.evaluator.test_front(self)
        self.tell_incidents()
        asked = self.asked()
        return asked if asked and (asked == "cancelled" or not tested) else "succeeded"

    def start(self) -> str | None:
        """The initial policy is the first point: every later one is measured against it.

        Returns what was asked for meanwhile, where that ends it: nothing of it is kept yet, it all begins anew.
        """
        if self.collector.wants_references:
            for done, size in self.collector.sample_references():
                self.journal.progress(stage=f"sampling references: {done} of {size} prompts", eta_s=None)
                if asked := self.asked():
                    return asked
        if asked := self.asked():
            return asked
        self.journal.progress(stage="evaluating the initial policy", eta_s=None)
        version, steering = self.journal.steering(1)
        self.state.steering_version = version
        for part in (
            functools.partial(self.evaluate, 0, steering, self.is_asked),
            functools.partial(self.evaluator.test, 0, self.is_asked),
        ):
            if asked := self.unless_asked(part):
                return asked
        self.checkpoint()
        return None

    def unless_asked(self, part: Callable[[], object]) -> str | None:
        """What was asked for meanwhile; None once `part`, which leaves nothing where it is Interrupted, is done."""
        while True:
            try:
                part()
            except Interrupted:
                if asked := self.asked():  # else the wish was withdrawn
                    return asked
            else:
                return None

    def asked(self) -> str | None:
        """How the run is to end, where a person or the machine wants it to."""
        wishes = self.journal.wishes()
        return "cancelled" if wishes.cancel else "paused" if wishes.pause else "stopped" if wishes.stop else None

    def is_asked(self) -> bool:
        return self.asked() is not None

    def without_reward(self, error: RewardError) -> str:
        """The end of a run whose objective `error.reward` has no scores: nothing was learned without it."""
        self.tell_incidents()
        self.settle()
        hosting = {objective.name: objective.reward.hosting for objective in self.spec.objectives}
        if error.reward in hosting and hosting[error.reward].on_failure == "fail":
            raise error
        self.pause(str(error))
        if 0 < self.state.step == self.committed and self.state.step not in self.kept:
            self.checkpoint()
        return "paused"

    def pause(self, why: str) -> None:
        """By a rule of the job's own, for the first of them to say so; `asked` hears it."""
        self.reason = self.reason or f"paused: {why}"
        self.journal.request_pause(self.reason)

    def tell_incidents(self) -> None:
        """What became of rewards' calls that failed, and of engines."""
        step = min(self.committed + 1, self.spec.steps)
        for incident in [*self.parts.engines.told(), *self.parts.rewards.told()]:
            self.journal.event(incident.type, level=incident.level, step=step, **incident.data)

    def step(self, step: int) -> None:
        """Sample, roll out, score, weigh, learn, sync, evaluate when due, commit.

        A wish that is heard before all is sampled leaves everything as it was before the step.
        """
        self.clock.begin()
        version, steering = self.journal.steering(step)

        ramp = self.ramp_at(step, version, steering)
        collected = self.collector.collect(step, self.may_get_weight(steering, ramp), self.is_asked)
        self.tell_incidents()
        health = self.parts.rewards.health(f"step {step}")
        if collected is None:
            return
        batch, kept = collected
        self.collector.look_ahead(served=step - 1, taken=step)
        gold = self.watches.gold(step, batch, self.parts.splits.train)
        if self.spec.rollout.sleep:
            with self.clock("sync"):
                self.parts.engines.rest()
        with self.clock("learn"):
            update = self.improve(step, batch, kept, steering, ramp)
        self.watches.updates(step, update.learned)
        with self.clock("rollout"):
            self.collector.settle()
        reach("before_sync")
        with self.clock("sync"):
            self.parts.engines.refit(self.parts.learner, step)
        reach("after_sync")

        self.state.step, self.state.steering = step, steering.model_dump(mode="json")
        evaluation = self.evaluate(step, steering) if self.due(step) else None
        record = self.record(step, version, batch, len(kept), update, evaluation)
        record |= {} if gold is None else {"gold": gold}
        record |= {} if ramp is None else {"ramp": ramp.figures(step, update.target)}
        clocked = {
            "timings_s": self.clock.read(),
            "reward_health": health,
            **recorded(self.parts.engines.health()),
        }
        with self.clock("commit"):  # no stage of its own in `timings_s`: it is of `other`
            self.journal.commit(record | clocked)
        self.committed = step
        self.collector.look_ahead(served=step, taken=step)
        self.watches.limits(record | self.spent(), steering.guardrails)
        self.keep_samples(step, version, steering, batch.groups(kept), update)
        self.tell_steering(step, version, steering, update, ramp)
        engines = {"serving": self.parts.engines.serving, "of": self.spec.rollout.engines}
        self.journal.progress(stage="training", eta_s=self.clock.eta_s(self.spec.steps - step), engines=engines)
        on_front = evaluation is not None and evaluation["on_front"]
        if step % self.spec.checkpoints.every == 0 or step == self.spec.steps or on_front:
            self.checkpoint(wait=not self.spec.checkpoints.asynchronous or step == self.spec.steps)

    # ----------------------------------------------------------------- phases

    def ramp_at(self, step: int, version: int, steering: Steering) -> Ramp | None:
        """The one that a step is on: it goes on with its version, and a newer one begins where it stands.

        It goes on too where guardrails alone have changed.
        """
        state = self.state
        now, before = steering.model_dump(mode="json"), dict(state.steering or {})
        is_moved = now.pop("guardrails", None) != before.pop("guardrails", None)
        is_same = alike(before, now)
        is_new = version != state.steering_version and not (is_same and is_moved)
        if is_new and steering.over > 1 and state.applied is not None:
            return Ramp.begin(step, version, steering, state.applied)
        if state.ramp is None or step > state.ramp.last or not is_same:
            return None
        return replace(state.ramp, version=version) if is_moved or version == state.ramp.version else None

    def tell_steering(self, step: int, version: int, steering: Steering, update: Update, ramp: Ramp | None) -> None:
        """An event when another steering came into force: what was asked for, and what became of it at this step.

        Versions that it came before are in no event of their own: `replaced` names them.
        """
        before = self.state.steering_version
        if version == before:
            return
        gradual = {} if ramp is None else {"ramp": {**ramp.figures(step, update.target), "until": ramp.last}}
        self.journal.steered(
            step=step,
            version=version,
            requested=steering.model_dump(mode="json"),
            applied=update.applied,
            clamped=clamped(steering, self.names, update.weights, update.target),
            replaced={"from": before + 1, "to": version - 1} if before + 1 < version else None,
            **gradual,
        )
        self.state.steering_version = version

    def keep_samples(self, step: int, version: int, steering: Steering, batch: Batch, update: Update) -> None:
        """Rollouts to look at, once their step is committed. A disk that does not take them costs an event."""
        if not self.keeper.due(step):
            return
        try:
            rows = self.keeper.rows(step, batch, self.parts.splits.train, update, version, steering)
            self.keeper.write(step, rows)
        except OSError as error:
            if not self._samples_failed:  # once, until it works again
                message = f"can't keep rollouts: {error.strerror or error}"
                self.journal.event("rollouts.failed", level="warning", step=step, message=message)
            self._samples_failed = True
        else:
            self._samples_failed = False

    def improve(self, step: int, sampled: Batch, kept: Sequence[int], steering: Steering, ramp: Ramp | None) -> Update:
        """Advantages from rewards, weights from the strategy and then from the person, an update from both.

        `kept` are the groups that are learned from: all that were sampled, or those with signal.
        """
        batch = sampled.groups(kept)
        strategy, learner = self.parts.weighting, self.parts.learner
        estimator = self.parts.estimator.at((step - 1) / max(1, self.spec.steps - 1))
        advantages_PGK = estimator.per_objective(batch.signal_PGK)
        advantages_BK = finish(batch.in_a_row(advantages_PGK))
        if self.measures and self.spec.gramian.mode == "exact":
            self.note_gradients(learner.gramian(batch.rollouts, advantages_BK).tolist(), None)
        weights = strategy.update(self.stats(step, sampled, kept, advantages_PGK, steering))
        target, signs = apply_directions(steering, self.names, weights)
        applied = target
        if ramp is not None:
            applied, signs = ramp.weights(step, steering, target, signs)
        self.state.applied, self.state.ramp = {name: signs[name] * applied[name] for name in self.names}, ramp
        applied_K, signs_K = self.in_order(applied), self.in_order(signs)

        signal_PGK = batch.signal_PGK * weights.reward_scale * signs_K
        advantages_PG = weights.advantage_scale * estimator(signal_PGK, applied_K)
        parts = None
        if self.measures:  # where A = c sum_k w_k A_k, the objectives' gradients are also the parts of the update
            factor = estimator.factor(advantages_PGK, applied_K)
            linear = factor is not None and weights.reward_scale == 1 and bool((signs_K > 0).all())
            scaled_K = weights.advantage_scale * factor * applied_K if linear and factor is not None else None
            parts = ObjectiveAdvantages(advantages_BK=advantages_BK, weights_K=scaled_K)
        learned = learner.learn(batch.rollouts, batch.in_a_row(advantages_PG).float(), parts)

        if self.measures and self.spec.gramian.mode != "exact":
            self.note_gradients(learned.gramian_KK, learned.influence_K)
        if "credit" in strategy.needs and learned.updates:
            credit_PG = advantages_PG * batch.by_prompt(torch.tensor(learned.surviving_B))
            strategy.observe(UpdateOutcome(rewards_PGK=batch.rewards_PGK, credit_PG=torch.nan_to_num(credit_PG)))
        return Update(
            weights=weights,
            applied=applied,
            target=target,
            signs=signs,
            advantages_PG=advantages_PG,
            learned=learned,
            because=weights_because(
                steering,
                self.names,
                weights,
                target,
                gates=gates_open(self.spec.objectives, sampled.rewards_PGK),
            ),
        )

    def may_get_weight(self, steering: Steering, ramp: Ramp | None = None) -> Tensor:
        """1 for the objectives that may: by preference, by a floor, from the start of a ramp, or all where the strategy
        has its own mind.
        """
        start = {} if ramp is None else ramp.start
        own_mind = not self.parts.weighting.follows_preference
        floors = {name: steering.bounds.get(name, (0.0, 1.0))[0] for name in self.names}
        asked = {n: floors[n] > 0 or steering.weights[n] > 0 or start.get(n, 0.0) != 0 for n in self.names}
        return self.in_order({n: float(own_mind or asked[n]) for n in self.names})

    @property
    def measures(self) -> bool:
        """Whether the strategy wants the objectives' gradients compared."""
        return bool(self.parts.weighting.needs & {"gramian", "influence"})

    def stats(
        self, step: int, sampled: Batch, kept: Sequence[int], advantages_PGK: Tensor, steering: Steering
    ) -> StepStats:
        gramian, influence = self.state.gramian, self.state.influence
        laid_out_PGK = torch.full_like(sampled.rewards_PGK, torch.nan)
        laid_out_PGK[list(kept), : advantages_PGK.shape[1]] = advantages_PGK
        return StepStats(
            step=step,
            objectives=self.parts.objectives,
            rewards_PGK=sampled.rewards_PGK,
            advantages_PGK=laid_out_PGK,
            preference_K=self.in_order(steering.weights),
            gramian_KK=None if gramian is None else torch.tensor(gramian, dtype=torch.float64),
            influence_K=None if influence is None else torch.tensor(influence, dtype=torch.float64),
            front=self.state.front,
            decides=steering.share < 1,
        )

    def note_gradients(self, gramian: Sequence[Sequence[float]] | None, influence: Sequence[float] | None) -> None:
        """Into the running averages that the strategy reads. What a step could not measure is not read again."""
        average = self.spec.gramian.average
        if gramian is not None and not all(math.isfinite(value) for row in gramian for value in row):
            gramian = None
        if gramian is None and influence is None:
            self.state.gramian = self.state.influence = None
        if gramian is not None:
            rows = [list(row) for row in gramian]
            before = self.state.gramian or rows
            self.state.gramian = [_mix(old, new, average) for old, new in zip(before, rows, strict=True)]
        if influence is not None:
            self.state.influence = _mix(self.state.influence or influence, influence, average)

    def evaluate(
        self, step: int, steering: Steering, interrupted: Callable[[], bool] = lambda: False
    ) -> dict[str, Any]:
        """Held-out figures -> watch for a collapse -> archive -> hypervolume. Raises Interrupted."""
        with self.clock("evaluate"):
            result = self.evaluator.evaluate("validation", interrupted=interrupted)
            sets = self.evaluator.sets(interrupted)
        if step == 0:
            self.state.samples = self.evaluator.samples(interrupted)
        self.tell_incidents()
        archive = self.parts.archive
        point = result.point(step)
        normalised = dict(zip(self.names, archive.normalised([point])[0].tolist(), strict=True))
        errors = result.place_errors(archive.scales, is_gated=archive.is_gated([point]))
        collapsed = self.watches.collapse(step, normalised, errors, steering.weights, is_turned=archive.is_turned)
        growth = archive.add(replace(point, collapsed=collapsed, extra={**point.extra, **sets}))
        self.state.front = self.front_stats(step, growth)
        on_front = step in {point.step for point in archive.front}
        figures = result.figures() | sets | {"hypervolume": archive.hypervolume, "on_front": on_front}
        self.journal.event("evaluated", step=step, **figures)
        self.journal.front(self.front_document())
        return figures

    def front_stats(self, step: int, growth: float) -> FrontStats:
        archive = self.parts.archive
        current = [point for point in archive.points if point.step == step]
        return FrontStats(
            step=step,
            growth=growth,
            points_NK=torch.from_numpy(archive.above_reference(archive.eligible)),
            current_K=torch.from_numpy(archive.above_reference(current)[0]),
        )

    def spent(self) -> dict[str, float]:
        """What the job took so far, now that it is kept. No digest has it: an answer from a cache costs nothing."""
        return self.journal.spent(self.parts.cost())

    # ------------------------------------------------------------------ state

    def checkpoint(self, *, wait: bool = True) -> None:
        """Make the state durable, register it, and drop what neither a restart nor the front needs.

        Not to `wait`: beside the next steps, until `settle` finds it durable.
        """
        with self.clock("checkpoint"):
            fill = functools.partial(self.fill, wait=wait)
            self.writer.write(self.state.step, fill, beside=self.collector.files, wait=wait)

    def settle(self, *, wait: bool = True) -> None:
        """Hear of the checkpoint that is under way; or wait for it."""
        with self.clock("checkpoint"):
            self.writer.settle(wait=wait)

    def registered(self, step: int) -> None:
        """A restart may use its checkpoint."""
        self.kept.add(step)
        self.retain()

    def retain(self) -> None:
        """Keep the newest checkpoint, with the one before it in case that is found damaged, and the front's policies.

        The others leave the ledger first and then the disk.
        """
        archive = self.parts.archive
        front = {point.step for point in archive.front}
        newest = set(sorted(self.kept)[-NEWEST:])
        older = self.kept & front - newest
        if len(older) > self.spec.checkpoints.front:
            best = next(point.step for point in self.evaluator.ranked(self) if point.step in self.kept)
            older = widest(archive, older, self.spec.checkpoints.front, always={0, best})
        dropped = self.kept - older - newest
        self.kept -= dropped
        changes = {
            step: {"on_front": step in front, "metrics": point_metrics(archive, step)} for step in sorted(self.kept)
        }
        self.journal.checkpoints(changes, sorted(dropped))
        self.checkpoints.keep_only(self.kept, fence=self.fence)
        self.checkpoints.keep_policies(older, fence=self.fence)
        self.journal.front(self.front_document())

    def fill(self, directory: Path, *, wait: bool) -> Callable[[], None]:
        """The files of a checkpoint; not to `wait`, the learner's are there when what is returned has returned."""
        (directory / "policy").mkdir()
        self.parts.save_tokenizer(directory / "policy")
        write_json(directory / STATE, {"format": STATE_FORMAT, **self.state_dict()})
        return self.parts.learner.save(directory, beside=not wait)  # last: nothing fails while it writes

    def state_dict(self) -> dict[str, Any]:
        front = self.state.front
        return {
            "step": self.state.step,
            "steering_version": self.state.steering_version,
            "steering": self.state.steering,
            "applied": self.state.applied,
            "ramp": None if self.state.ramp is None else asdict(self.state.ramp),
            "samples": self.state.samples,
            "gramian": self.state.gramian,
            "influence": self.state.influence,
            "data": self.parts.splits.sha256,
            "policy_commit": self.parts.policy_commit,
            "collector": self.collector.state_dict(),
            "weighting": self.parts.weighting.state_dict(),
            "archive": self.parts.archive.state_dict(),
            **self.watches.state_dict(),
            "front": None if front is None else {"step": front.step, "growth": front.growth},
        }

    def resume(self, step: int, known: Sequence[int]) -> None:
        """Continue after a checkpoint (`known`: all registered ones). Engines get its weights before they serve.

        Raises Unreadable where another version wrote it, and this one does not know how.
        """
        directory = self.checkpoints.directory(step)
        document = parse_state((directory / STATE).read_text())
        check_data(self.spec, self.parts.splits, document.get("data", {}))
        self.parts.learner.load(directory)
        self.parts.engines.refit(self.parts.learner, step)
        try:
            self.load_state_dict(document)
        except (KeyError, TypeError) as error:
            raise Unreadable(
                f"{STATE} of step {step} is not as this version writes it ({type(error).__name__}: {error}): it waits "
                "for the version that wrote it"
            ) from error
        self.meet_log()
        self.kept = {other for other in known if other <= step}
        self.committed = self.state.step
        self.retain()  # a kill may have come between a checkpoint and this

    def meet_log(self) -> None:
        """A log that began anew, in a fork that goes on or after Redis was lost, counts its versions from 1.

        What was followed, and the ramp with it, goes on under the version there.
        """
        state = self.state
        if state.step == 0:  # it follows none yet
            return
        version, _ = self.journal.steering(state.step)
        if version != state.steering_version:
            state.steering_version = version
            state.ramp = None if state.ramp is None else replace(state.ramp, version=version)

    def load_state_dict(self, document: Mapping[str, Any]) -> None:
        """What a checkpoint of this version or an older one says; the learner is where it was."""
        self.collector.load(document["collector"], self.checkpoints.fetch_beside)
        self.parts.weighting.load_state_dict(document["weighting"])
        self.parts.archive.load_state_dict(document["archive"])
        self.watches.load_state_dict(document, is_turned=self.parts.archive.is_turned)
        front = document["front"] and self.front_stats(document["front"]["step"], document["front"]["growth"])
        self.state = LoopState(
            step=document["step"],
            front=front or None,
            steering_version=document["steering_version"],
            steering=document.get("steering"),
            applied=document.get("applied"),
            ramp=Ramp(**document["ramp"]) if document.get("ramp") else None,
            gramian=document["gramian"],
            influence=document["influence"],
            samples=document["samples"],
        )

    # ---------------------------------------------------------------- figures

    def due(self, step: int) -> bool:
        return step % self.spec.evaluation.every == 0 or step == self.spec.steps

    def in_order(self, values: Mapping[str, float]) -> Tensor:
        return torch.tensor([values[name] for name in self.names], dtype=torch.float64)

    def record(
        self,
        step: int,
        version: int,
        batch: Batch,
        groups_learned: int,
        update: Update,
        evaluation: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """What the step decided and saw: every raw objective, and their weighted total."""
        return {
            "step": step,
            **update.figures(self.names, batch.rewards_PGK),
            "gramian": self.state.gramian,
            "influence": self.state.influence,
            "steering_version": version,
            **batch_figures(batch, step - 1, groups_learned=groups_learned),
            "prompts_waiting": len(self.collector.turns.waiting),
            "evaluation": evaluation,
        }

    def front_document(self) -> dict[str, Any]:
        sums = self.parts.splits.sha256
        return front_document(self.parts.archive, self.kept) | ({"split_sha256": sums} if sums else {})


def _mix(old: Sequence[float], new: Sequence[float], kept: float) -> list[float]:
    return [kept * before + (1 - kept) * after for before, after in zip(old, new, strict=True)]
