"""Rollouts and their rewards together: a group is scored while others are still being written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import NamedTuple

from orchestrator.errors import Interrupted
from orchestrator.rollouts.batch import reward_batch
from orchestrator.rollouts.engines import EnginePool
from orchestrator.rollouts.prompts import Prompt
from orchestrator.routing import Routes
from orchestrator.specs.rollout import RolloutSpec
from policies.types import Rollout, RolloutRequest
from rewards.pool import RewardPool, Round, Scored

Stage = Callable[[str], AbstractContextManager[None]]


class Rolled(NamedTuple):
    """The groups of a round that ended, and their scores."""

    rollouts: list[Rollout]  # prompt by prompt
    scored: Scored  # a row for each
    ended: list[int]  # which of the round's prompts they are of, in order


def roll_out_and_score(
    engines: EnginePool,
    rewards: RewardPool,
    requests: Sequence[RolloutRequest],
    prompts: Sequence[Prompt],
    counts: Sequence[int],
    *,
    routes: Routes,
    rollout: RolloutSpec,
    enough: int | None = None,
    before: Sequence[Scored] = (),
    purpose: str = "",
    stage: Stage = lambda _: nullcontext(),
    interrupted: Callable[[], bool] = lambda: False,
) -> Rolled:
    """A rollout for each request, prompt by prompt, `counts` of each, and their scores.

    Once `enough` groups have ended, where that is said, the others are withdrawn. An objective has None where it does
    not apply to a prompt's domain. The stage `score` is what of the scoring was not hidden behind the rollouts.
    `before`: rounds of the same step; `purpose`: what the rewards' health calls this one. Raises RewardError, what the
    engines raise, and Interrupted within a second of being `interrupted`.
    """
    wanted = len(counts) if enough is None else enough
    round_ = rewards.begin(counts, before=before, purpose=purpose)
    groups = Groups(round_, prompts, counts, rollout)

    def look() -> None:
        if interrupted():
            raise Interrupted

    def is_enough() -> bool:
        look()
        return len(groups.ended) >= wanted

    try:
        with stage("rollout"):
            engines.gather(requests, groups.take, is_enough)
        ended = sorted(groups.ended)
        with stage("score"):
            scored = round_.finish(ended, look)
    except BaseException:
        round_.cancel()
        raise
    domains = [prompts[p].domain for p in ended for _ in range(counts[p])]
    scored = replace(scored, scores=routes.mask(scored.scores, domains))
    return Rolled([rollout for p in ended for rollout in groups.rollouts(p)], scored, ended)


class Groups:
    """Hands each group to the rewards once all of its rollouts have ended, in whatever order they do."""

    def __init__(self, round_: Round, prompts: Sequence[Prompt], counts: Sequence[int], rollout: RolloutSpec) -> None:
        self._round, self._prompts, self._counts = round_, prompts, counts
        self._limits = rollout.max_tokens, rollout.thoughts_end
        self._places = [(p, g) for p, count in enumerate(counts) for g in range(count)]
        self._found: list[dict[int, Rollout]] = [{} for _ in counts]
        self.ended: list[int] = []  # prompts, in the order in which their groups ended

    def take(self, place: int, rollout: Rollout) -> None:
        """The rollout of the request at this place."""
        p, g = self._places[place]
        group, count = self._found[p], self._counts[p]
        group[g] = rollout
        if len(group) == count:
            self.ended.append(p)
            self._round.add(p, reward_batch([self._prompts[p]], [count], self.rollouts(p), *self._limits))

    def rollouts(self, p: int) -> list[Rollout]:
        """Of a prompt whose group has ended."""
        return [self._found[p][g] for g in range(self._counts[p])]
