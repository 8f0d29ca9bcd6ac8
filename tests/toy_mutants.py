"""Known mistakes, one by one: each must be seen by the check that is there for it."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.state import scripts
from orchestrator.state.store import JobStore, SteerOutcome

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
    "finish_from_anywhere": [("request", "if ARGV[i] == from then", "if true then")],
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


def app_with(create: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`create_app` of an app that makes the mistake."""

    def make(*arguments: Any) -> Any:
        app = create(*arguments)
        API[name](app)
        return app

    return make


def _register_before_durable() -> None:
    from orchestrator.storage.checkpoint_writer import CheckpointWriter
    from orchestrator.storage.checkpoints import Manifest, directory_name

    real = CheckpointWriter.write

    def early(self: CheckpointWriter, step: int, *arguments: Any, **options: Any) -> None:
        manifest = Manifest(step=step, fence=self.fence, files={}, digest="")
        self.journal.checkpoint(self.store.root / directory_name(step), manifest)
        real(self, step, *arguments, **options)

    CheckpointWriter.write = early  # type: ignore[method-assign,assignment]


def _forget_learner() -> None:
    """The learner's state is not restored."""
    from tests.loop_fakes import FakeLearner

    FakeLearner.load = lambda *_: None  # type: ignore[method-assign,assignment]


def _forget_weights() -> None:
    """The same of a real learner."""
    from orchestrator.actors.remote_learner import RemoteLearner

    RemoteLearner.load = lambda *_: None  # type: ignore[method-assign,assignment]


def _leave_actors() -> None:
    """What a driver has on a cluster goes on without it."""
    import ray.util

    from orchestrator.actors.gang import Gang

    place, group = Gang.place, ray.util.placement_group
    Gang.place = lambda *arguments: {**place(*arguments), "lifetime": "detached"}  # type: ignore[method-assign]
    ray.util.placement_group = functools.partial(group, lifetime="detached")


def _learn_again() -> None:
    """A step whose learner failed is tried again with the learner as it was left."""
    from orchestrator.errors import ActorLost
    from orchestrator.loop import Loop

    real = Loop.improve

    def again(self: Loop, *arguments: Any) -> Any:
        try:
            return real(self, *arguments)
        except ActorLost:
            return real(self, *arguments)

    Loop.improve = again  # type: ignore[method-assign]


def _park_nowhere() -> None:
    """A Redis that is away ends the run."""
    from orchestrator.journal import StoreJournal

    StoreJournal.patiently = lambda _self, call: call()  # type: ignore[method-assign,assignment]


def _no_floor() -> None:
    """A claim that asks Redis alone."""
    from orchestrator.storage.checkpoint_store import CheckpointStore

    CheckpointStore.floor = lambda _: 0  # type: ignore[method-assign,assignment]
    CheckpointStore.newest = lambda *_, **_options: None  # type: ignore[method-assign,assignment]


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

    def without(self: Round, groups: Sequence[int] | None = None, *rest: Any) -> Scored:
        try:
            return real(self, groups, *rest)
        except RewardError:
            scores: dict[str, list[float | None]] = {
                name: [score or 0.0 for score in column]
                for share in self.shares
                for name, column in share.scores.items()
            }
            return Scored(scores=scores, by_host={share.host.objective: 0 for share in self.shares})

    Round.finish = without  # type: ignore[method-assign]


def _needs_api() -> None:
    """A driver that asks the API at every step, and so ends with it."""
    import httpx

    from orchestrator.journal import StoreJournal
    from tests.toy_driver import VARIABLE

    real, url = StoreJournal.commit, json.loads(os.environ[VARIABLE])["api"]

    def commit(self: StoreJournal, record: Any) -> None:
        httpx.get(f"{url}/livez", timeout=5)
        real(self, record)

    StoreJournal.commit = commit  # type: ignore[method-assign]


def _write_behind() -> None:
    """An API that acknowledges a steer before it is written."""
    import threading

    from orchestrator.state.records import Steer

    real = JobStore.steer

    def steer(self: JobStore, job_id: str, **options: Any) -> Steer:
        head = self.steering_head(job_id)
        later = threading.Timer(3600, lambda: real(self, job_id, **options))
        later.daemon = True
        later.start()
        step = self.job(job_id).step
        return Steer(outcome=SteerOutcome.OK, version=head.version + 1, effective_step=step + 2)

    JobStore.steer = steer  # type: ignore[method-assign]


def _livez_asks_redis(app: Any) -> None:
    """A liveness that fails with Redis: whoever watches it restarts a server that is well."""
    _replace(app, "/livez", lambda: app.state.store.next_queued())


def _readyz_asks_nobody(app: Any) -> None:
    """A readiness that is there without Redis: requests go on to a server that can answer none."""
    _replace(app, "/readyz", lambda: None)


def _no_retry_after(app: Any) -> None:
    """A 503 that does not say when to come back."""
    from orchestrator.errors import StoreUnavailable
    from services.errors import ApiProblem, problem_response

    async def answer(*_: Any) -> Any:
        return problem_response(ApiProblem(503, "store_unavailable", "Redis does not answer"))

    app.add_exception_handler(StoreUnavailable, answer)


def _replace(app: Any, path: str, ask: Callable[[], Any]) -> None:
    def handle() -> dict[str, str]:
        ask()
        return {"status": "ok"}

    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") != path]
    app.get(path)(handle)


PROCESS: dict[str, Callable[[], None]] = {
    "register_before_durable": _register_before_durable,
    "forget_learner": _forget_learner,
    "forget_weights": _forget_weights,
    "leave_actors": _leave_actors,
    "learn_again": _learn_again,
    "park_nowhere": _park_nowhere,
    "no_floor": _no_floor,
    "neutral_scores": _neutral_scores,
    "score_without": _score_without,
    "needs_api": _needs_api,
    "write_behind": _write_behind,
}

API: dict[str, Callable[[Any], None]] = {
    "livez_asks_redis": _livez_asks_redis,
    "readyz_asks_nobody": _readyz_asks_nobody,
    "no_retry_after": _no_retry_after,
}


def store_with(store: JobStore, *names: str) -> JobStore:
    """The same store with mistakes in its scripts."""
    real, sources = scripts.load, mutated(*names)
    scripts.load = lambda: sources  # type: ignore[assignment]
    try:
        return JobStore(store.calls._client, store.owner)
    finally:
        scripts.load = real
