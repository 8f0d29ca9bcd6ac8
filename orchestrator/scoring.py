"""Rollouts and their rewards together: a group is scored while others are still being written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from orchestrator.batch import reward_batch
from orchestrator.engines import EnginePool
from orchestrator.prompts import Prompt
from orchestrator.routing import Routes
from policies.types import Rollout, RolloutRequest
from rewards.pool import RewardPool, Round, Scored

Stage = Callable[[str], AbstractContextManager[None]]


def roll_out_and_score(
    engines: EnginePool,
    rewards: RewardPool,
    requests: Sequence[RolloutRequest],
    prompts: Sequence[Prompt],
    counts: Sequence[int],
    *,
    routes: Routes,
    max_tokens: int,
    before: Sequence[Scored] = (),
    stage: Stage = lambda _: nullcontext(),
) -> tuple[list[Rollout], Scored]:
    """A rollout for each request, prompt by prompt, `counts` of each, and their scores.

    An objective has None where it does not apply to a prompt's domain. The stage `score` is what of the scoring was not
    hidden behind the rollouts. `before`: rounds of the same step. Raises RewardError, and what the engines raise.
    """
    round_ = rewards.begin(counts, before=before)
    groups = Groups(round_, prompts, counts, max_tokens)
    try:
        with stage("rollout"):
            rollouts = engines.generate(requests, groups.take)
    except BaseException:
        round_.cancel()
        raise
    with stage("score"):
        scored = round_.finish()
    domains = [prompt.domain for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]
    return rollouts, replace(scored, scores=routes.mask(scored.scores, domains))


class Groups:
    """Hands each group to the rewards once all of its rollouts have ended, in whatever order they do."""

    def __init__(self, round_: Round, prompts: Sequence[Prompt], counts: Sequence[int], max_tokens: int) -> None:
        self._round, self._prompts, self._counts, self._max_tokens = round_, prompts, counts, max_tokens
        self._places = [(p, g) for p, count in enumerate(counts) for g in range(count)]
        self._found: list[dict[int, Rollout]] = [{} for _ in counts]

    def take(self, place: int, rollout: Rollout) -> None:
        """The rollout of the request at this place."""
        p, g = self._places[place]
        group, count = self._found[p], self._counts[p]
        group[g] = rollout
        if len(group) == count:
            rollouts = [group[i] for i in range(count)]
            self._round.add(p, reward_batch([self._prompts[p]], [count], rollouts, self._max_tokens))
