"""Known mistakes, one by one: each must be seen by the check that is there for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator import scripts
from orchestrator.store import JobStore

# name -> [(script, what it says, what it says instead)]; None for every script.
SCRIPTS: dict[str, list[tuple[str | None, str, str]]] = {
    "no_fence": [(None, "j.fence ~= fence or j.nonce ~= nonce or j.closed ~= ''", "false")],
    "no_native_guard": [("commit", "if type(added) == 'table' and added.err then", "if false then")],
    "steer_in_flight": [("steer", "tonumber(j.step) + 2", "tonumber(j.step) + 1")],
    "commit_twice": [("commit", "then return {'OK'} end -- the reply", "then last = last - 1 end -- the reply")],
    "event_twice": [("event", "if given then", "if false then")],
    "steer_any_version": [("steer", "if w[1] ~= expected", "if false")],
    "claim_held": [("claim", "if held and tonumber(redis.call('ZSCORE', LEASES, ID) or 0) > us / 1000", "if false")],
    "clock_of_client": [("claim", "> us / 1000 then", "> us / 1000 + 3600000 then")],
    "no_poison": [("claim", "tonumber(j.attempts) >= allowed", "false")],
    "key_forgotten": [("submit", "if kept then", "if false then")],
    "gpus_twice": [(None, "redis.call('HSET', JOB, 'gpu_at', string.format('%.0f', to))", "")],
    "gpus_past_expiry": [(None, "return math.min(us, 1000 *", "return us + 0 * (0 *")],
    "no_gpu_quota": [
        ("submit", "if ARGV[13] == '1' and used_up(us)", "if false"),
        ("renew", "at_work and", "false and"),
    ],
    "finish_from_anywhere": [("request", "if ARGV[i] == from then", "if ARGV[i] == from or i == 7 then")],
}


def mutated(*names: str) -> dict[str, str]:
    """The scripts with these mistakes. Every mistake has a place to be made at."""
    sources = dict(scripts.load())
    for name in names:
        for only, said, instead in SCRIPTS[name]:
            places = [script for script in sources if script == only or only is None]
            assert any(said in sources[script] for script in places), (name, said)
            for script in places:
                sources[script] = sources[script].replace(said, instead)
    return sources


def apply(name: str) -> None:
    """Make this process make the mistake."""
    if name in SCRIPTS:
        sources = mutated(name)
        scripts.load = lambda: sources  # type: ignore[assignment]
    else:
        PROCESS[name]()


def _register_before_durable() -> None:
    from orchestrator import loop
    from orchestrator.checkpoint_store import CheckpointStore
    from orchestrator.checkpoints import Manifest, directory_name

    real = CheckpointStore.write
    where: dict[str, Any] = {}

    class Early(loop.Loop):
        def checkpoint(self) -> None:
            where["journal"] = self.journal
            super().checkpoint()

    def early(self: CheckpointStore, *, step: int, fence: int, **options: Any) -> Any:
        manifest = Manifest(step=step, fence=fence, files={}, digest="")
        where["journal"].checkpoint(self.root / directory_name(step), manifest)
        return real(self, step=step, fence=fence, **options)

    loop.Loop = Early  # type: ignore[misc]
    CheckpointStore.write = early  # type: ignore[method-assign,assignment]


def _forget_learner() -> None:
    """The learner's state is not restored."""
    from tests.loop_fakes import FakeLearner

    FakeLearner.load = lambda *_: None  # type: ignore[method-assign,assignment]


def _park_nowhere() -> None:
    """A Redis that is away ends the run."""
    from orchestrator.journal import StoreJournal

    StoreJournal.patiently = lambda _self, call: call()  # type: ignore[method-assign,assignment]


def _no_floor() -> None:
    """A claim that asks Redis alone."""
    from orchestrator import driver
    from orchestrator.checkpoint_store import CheckpointStore

    CheckpointStore.floor = lambda _: 0  # type: ignore[method-assign,assignment]
    driver.newest_manifest = lambda _: (0, 0)


def _neutral_scores() -> None:
    """A row that can't be scored gets 0 and is learned from."""
    from rewards.pool import Round, Scored

    real = Round._scored

    def neutral(self: Round) -> Scored:
        found = real(self)
        for column in found.scores.values():
            for row in found.dropped:
                column[row] = 0.0
        return Scored(scores=found.scores, by_host=found.by_host)

    Round._scored = neutral  # type: ignore[method-assign]


def _score_without() -> None:
    """Where a reward fails, its objective is 0 for all, and the others are learned from."""
    from rewards.base import RewardError
    from rewards.pool import Round, Scored

    real = Round.finish

    def without(self: Round) -> Scored:
        try:
            return real(self)
        except RewardError:
            scores: dict[str, list[float | None]] = {
                name: [score or 0.0 for score in column]
                for share in self.shares
                for name, column in share.scores.items()
            }
            return Scored(scores=scores, by_host={share.host.objective: 0 for share in self.shares})

    Round.finish = without  # type: ignore[method-assign]


PROCESS: dict[str, Callable[[], None]] = {
    "register_before_durable": _register_before_durable,
    "forget_learner": _forget_learner,
    "park_nowhere": _park_nowhere,
    "no_floor": _no_floor,
    "neutral_scores": _neutral_scores,
    "score_without": _score_without,
}


def store_with(store: JobStore, *names: str) -> JobStore:
    """The same store with mistakes in its scripts."""
    real, sources = scripts.load, mutated(*names)
    scripts.load = lambda: sources  # type: ignore[assignment]
    try:
        return JobStore(store.calls._client, store.owner)
    finally:
        scripts.load = real
