"""The first half of a step: prompts, rollouts and rewards, until enough groups carry signal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.build import Parts
from orchestrator.clock import Clock
from orchestrator.errors import Interrupted
from orchestrator.references import References, stored_name
from orchestrator.rollouts.ahead import Ahead, FirstRound
from orchestrator.rollouts.batch import Batch, by_prompt, rollout_request, rollout_seed, stack, without
from orchestrator.rollouts.scoring import Rolled, Stage, roll_out_and_score
from orchestrator.rollouts.turns import Turn, Turns
from orchestrator.routing import Routes
from orchestrator.spec import JobSpec
from orchestrator.specs.sampling import KnapsackSpec
from orchestrator.storage.checkpoints import CheckpointError
from policies.budget import count_successes
from policies.signal import SPREAD, drop, keep, missing, signal_P
from policies.types import Rollout
from rewards.base import RewardError
from rewards.pool import Scored
from rewards.transforms import TransformContext

LOOK_EVERY_S = 1.0


@dataclass(kw_only=True)
class Sampled:
    """The rounds of a step so far."""

    index: list[int] = field(default_factory=list)  # P, of the train split
    counts: list[int] = field(default_factory=list)  # P
    rollouts: list[Rollout] = field(default_factory=list)  # B
    rewards_BK: Tensor = field(default_factory=lambda: torch.empty(0))
    gated_BK: Tensor = field(default_factory=lambda: torch.empty(0))
    turns: list[Turn] = field(default_factory=list)
    prompts: int = 0  # that were asked for: `index` is without those whose rollouts did not end, or could not be scored
    put_off: list[int] = field(default_factory=list)  # of the train split: they were not waited for
    rounds: list[Scored] = field(default_factory=list)

    @property
    def dropped(self) -> int:
        """Rollouts that could not be scored under some objective, and count under none."""
        return sum(len(scored.dropped) for scored in self.rounds)

    @property
    def tokens_PG(self) -> Tensor:
        return by_prompt(torch.tensor([len(rollout.tokens) for rollout in self.rollouts]), self.counts)

    def add(
        self, index: list[int], counts: list[int], rollouts: list[Rollout], rewards_BK: Tensor, gated_BK: Tensor
    ) -> None:
        self.index += index
        self.counts += counts
        self.rollouts += rollouts
        first = not len(self.rewards_BK)
        self.rewards_BK = rewards_BK if first else torch.cat([self.rewards_BK, rewards_BK])
        self.gated_BK = gated_BK if first else torch.cat([self.gated_BK, gated_BK])


class Collector:
    """Samples prompts, rolls them out and scores them. `references` is the job's file of them."""

    def __init__(self, spec: JobSpec, parts: Parts, clock: Clock, references: Path) -> None:
        self.spec = spec
        self.parts = parts
        self.clock = clock
        self.names = list(spec.objective_names)
        self.routes = Routes.of(spec)
        self.known = References(references)
        self.ahead = Ahead(spec.rollout.most_stale, spec.steps)
        self.turns = Turns(parts.order, prompts=spec.rollout.prompts_per_step, asked=spec.prompts_asked)

    @property
    def references(self) -> dict[str, Tensor]:
        """By objective: SN, of N completions by the initial policy."""
        return self.known.values

    def collect(
        self, step: int, counts_K: Tensor, interrupted: Callable[[], bool] = lambda: False
    ) -> tuple[Batch, list[int]] | None:
        """Everything that was sampled for a step, and which of its groups are learned from.

        counts_K: above 0 for the objectives that may get weight, whose spread makes a group worth learning from.
        None where it was `interrupted`: then it is as if the step had not begun.
        """
        rule, wanted = self.spec.sampling.zero_signal, self.spec.rollout.prompts_per_step
        begun, sampled, need = self.ahead.take(step), Sampled(), wanted
        for extra_round in range(1 + (rule.max_rounds if rule.name == "refill" else 0)):
            try:
                if extra_round:
                    self.sample(step, self.turns.further(need), sampled, interrupted)
                elif begun is None:
                    self.sample(step, self.turns.first(), sampled, interrupted)
                else:
                    self.take(begun, sampled, interrupted)
            except Interrupted:
                self.leave(sampled)
                return None
            except RewardError:
                self.leave(sampled)
                raise
            carries_P = signal_P(self.judged(sampled), counts_K, self.spreads_K)
            need = missing(carries_P, wanted)
            if need == 0:
                break
        self.turns.put_off(sampled.put_off)
        kept = keep(carries_P) if rule.name in ("keep", "copo") else drop(carries_P, wanted)
        return self.batch(sampled), kept.tolist()

    def leave(self, sampled: Sampled) -> None:
        """As if the step had not begun, nor any after it."""
        self.turns.give_back([*sampled.turns, *self.ahead.turns])
        self.ahead.forget()

    def look_ahead(self, served: int, taken: int) -> None:
        """Begin the first rounds of the steps whose turn it may be (ahead.py).

        Their prompts are taken in order, and the budget allocates by what it has seen so far. Further rounds and
        everything that remembers, such as transforms, wait for the step's own turn.
        """
        for step in self.ahead.due(served, taken):
            turn = self.turns.first()
            begun = FirstRound(turn=turn, counts=self.parts.budget.allocate(turn.index))
            self.ahead.put(step, begun.begin(partial(self._roll_out_ahead, step, begun)))

    def _roll_out_ahead(self, step: int, begun: FirstRound, stage: Stage) -> Rolled:
        purpose = f"step {step}"
        return self.roll_out(purpose, begun.turn, begun.counts, health=purpose, stage=stage)

    def take(self, begun: FirstRound, sampled: Sampled, interrupted: Callable[[], bool]) -> None:
        """A first round that was begun ahead."""
        sampled.turns.append(begun.turn)
        with self.clock("rollout"):  # what of it is not hidden behind earlier steps
            while not begun.written.wait(LOOK_EVERY_S):
                if interrupted():
                    raise Interrupted
        with self.clock("score"):
            while wait([begun.result], timeout=LOOK_EVERY_S).not_done:
                if interrupted():
                    raise Interrupted
            rolled = begun.result.result()
        self.add(sampled, begun.turn, begun.counts, rolled)

    def settle(self) -> None:
        """Before the weights change: unless they may under rollouts that go on, these come to their end."""
        if not self.spec.rollout.in_flight:
            self.ahead.settle()

    def sample(self, step: int, turn: Turn, sampled: Sampled, interrupted: Callable[[], bool]) -> None:
        """A round of its own."""
        sampled.turns.append(turn)
        counts = self.parts.budget.allocate(turn.index)
        purpose, first = f"step {step}", sampled.prompts
        before = sampled.rounds
        rolled = self.roll_out(
            purpose, turn, counts, first=first, before=before, health=purpose, interrupted=interrupted
        )
        self.add(sampled, turn, counts, rolled)

    def add(self, sampled: Sampled, turn: Turn, counts: Sequence[int], rolled: Rolled) -> None:
        """What came of a round. A rollout that could not be scored is left out for all objectives."""
        rollouts, scored, ended = rolled
        sampled.prompts += len(turn.index)
        left = set(range(len(turn.index))) - {*ended}
        sampled.put_off += [turn.index[p] for p in sorted(left)]
        sampled.rounds.append(scored)
        rewards_BK, gated_BK = self.score(scored)
        index, counts = [turn.index[p] for p in ended], [counts[p] for p in ended]
        left_index, left_counts, rows = without(set(scored.dropped), index, counts)
        rollouts = [rollouts[row] for row in rows]
        sampled.add(left_index, left_counts, rollouts, rewards_BK[rows], gated_BK[rows])

    def roll_out(
        self,
        purpose: str,
        turn: Turn,
        counts: Sequence[int],
        *,
        first: int = 0,
        before: Sequence[Scored] = (),
        health: str = "",
        stage: Stage | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Rolled:
        """`counts` rollouts of each train prompt, each with a seed of its own by its place in the step, and scored.

        `health`: what the rewards' health calls the round, where a step asks for it.
        A reward that fails raises, and names itself.
        """
        rollout = self.spec.rollout
        prompts = [self.parts.splits.train[i] for i in turn.index]
        requests = [
            rollout_request(
                rollout, prompt, rollout_seed(self.spec.seed, purpose, first + p, g), temperature=rollout.temperature
            )
            for p, (prompt, count) in enumerate(zip(prompts, counts, strict=True))
            for g in range(count)
        ]
        return roll_out_and_score(
            self.parts.engines,
            self.parts.rewards,
            requests,
            prompts,
            counts,
            routes=self.routes,
            rollout=rollout,
            enough=turn.enough,
            before=before,
            purpose=health,
            stage=stage or self.clock,
            interrupted=interrupted,
        )

    def score(self, scored: Scored) -> tuple[Tensor, Tensor]:
        """(rewards_BK raw, the same after the gates); NaN where an objective does not apply."""
        return stack(scored.scores, self.names), stack(self.parts.gates.apply(scored.scores), self.names)

    @property
    def spreads_K(self) -> Tensor:
        """What is no spread in `judged`: the estimator's floor is in the units of what it sees."""
        least = self.parts.estimator.least_spread
        return torch.tensor([SPREAD if transform.state_dict() else least for transform in self.parts.transforms])

    def judged(self, sampled: Sampled) -> Tensor:
        """What the estimator would see, to judge spread by. Transforms that remember batches are left for later."""
        gated_PGK, tokens_PG = by_prompt(sampled.gated_BK, sampled.counts), sampled.tokens_PG
        columns = []
        for k, transform in enumerate(self.parts.transforms):
            column_PG = gated_PGK[:, :, k]
            context = self.context(sampled.index, tokens_PG, k)
            columns.append(column_PG if transform.state_dict() else transform(column_PG, context))
        return torch.stack(columns, dim=2)

    def batch(self, sampled: Sampled) -> Batch:
        """What was sampled, transformed; the budget learns from it."""
        index, counts = sampled.index, sampled.counts
        rewards_PGK, gated_PGK = by_prompt(sampled.rewards_BK, counts), by_prompt(sampled.gated_BK, counts)
        tokens_PG = sampled.tokens_PG
        signals = [
            transform(gated_PGK[:, :, k], self.context(index, tokens_PG, k))
            for k, transform in enumerate(self.parts.transforms)
        ]
        budget = self.spec.sampling.budget
        if isinstance(budget, KnapsackSpec):
            judged_PG = rewards_PGK[:, :, self.names.index(budget.objective)]
            self.parts.budget.observe(index, *count_successes(judged_PG, budget.success_at))
        return Batch(
            prompt_index=tuple(index),
            counts=tuple(counts),
            rollouts=sampled.rollouts,
            rewards_PGK=rewards_PGK,
            signal_PGK=torch.stack(signals, dim=2),
            dropped=sampled.dropped,
            put_off=len(sampled.put_off),
        )

    def context(self, index: Sequence[int], tokens_PG: Tensor, k: int) -> TransformContext:
        references_PN = self.known.of(self.names[k], index)
        return TransformContext(prompt_index=tuple(index), completion_tokens_PG=tokens_PG, references_PN=references_PN)

    # ------------------------------------------------------------ references

    @property
    def wants_references(self) -> list[int]:
        """Places of the objectives whose transforms compare with the initial policy."""
        return [k for k, transform in enumerate(self.parts.transforms) if "references" in transform.needs]

    def sample_references(self) -> Iterator[tuple[int, int]]:
        """Score completions of the initial policy for train prompts that steps may reach; (done, of all) as it goes.

        It goes on where an earlier process was killed.
        """
        repeats, size = self.spec.sampling.reference_rollouts, len(self.parts.splits.train)
        reached = min(size, self.spec.prompts_reached)
        # The order's first epoch has each prompt once.
        wanted = range(size) if reached == size else [self.parts.order.at(place) for place in range(reached)]
        rollouts_of_a_step = self.spec.rollout.prompts_per_step * self.spec.rollout.rollouts_per_prompt
        chunk = max(1, rollouts_of_a_step // repeats)
        names = [self.names[k] for k in self.wants_references]
        self.known.read()
        known = self.known.rows  # of an earlier version's file, in another order
        left = [prompt for prompt in wanted if prompt not in known]
        for start in range(0, len(left), chunk):
            index, first = left[start : start + chunk], self.known.prompts
            counts = [repeats] * len(index)
            rolled = self.roll_out("references", Turn(index=index, enough=len(index)), counts, first=first)
            _, gated_BK = self.score(rolled.scored)
            found_PNk = by_prompt(gated_BK[:, self.wants_references], counts)
            values = {name: found_PNk[:, :, i].contiguous() for i, name in enumerate(names)}
            self.known.append(values, None if reached == size else index)
            yield reached - len(left) + start + len(index), reached
        self.known.read()  # what a holder that lost the job put in first is what everybody reads

    # ------------------------------------------------------------------ state

    @property
    def files(self) -> dict[str, Path]:
        """What a checkpoint relies on beside its own files, by its name in the checkpoint store."""
        return {stored_name(self.known.digest): self.known.path} if self.references else {}

    def state_dict(self) -> dict[str, Any]:
        return {
            # What was begun ahead is begun again by who goes on from here, with newer weights.
            "turns": self.turns.state_dict(self.ahead.turns),
            "budget": self.parts.budget.state_dict(),
            "transforms": [transform.state_dict() for transform in self.parts.transforms],
            "references": self.known.digest if self.references else None,
        }

    def load(self, state: dict[str, Any], fetch: Callable[[Path, str], None]) -> None:
        """`fetch` brings a file of the job, by its name in the store. CheckpointError where it is another one."""
        if "turns" in state:
            self.turns.load_state_dict(state["turns"])
        else:  # a checkpoint of 0.1
            self.parts.order.position = state["prompt_position"]
        self.parts.budget.load_state_dict(state["budget"])
        for transform, kept in zip(self.parts.transforms, state["transforms"], strict=True):
            transform.load_state_dict(kept)
        if (digest := state["references"]) is None:
            return
        self.known.read()
        if self.known.digest != digest:
            fetch(self.known.path, stored_name(digest))
            self.known.read()
        if self.known.digest != digest:
            raise CheckpointError(f"{self.known.path} is not what the job was trained with; restore it from a backup")
