"""Rollout engines that share batches: which engine gets what, and what happens when one fails.

    request failures   a call that fails goes to another engine; a streak of them retires the engine
    silence            an engine that has requests and shows no new token for `stall_s` is retired
    death              a process that is gone is retired at once

What a retired engine had not ended is made again by the others, and another engine is started in its place, which
serves after the next refit. Where no engine is left, the job goes back to its checkpoint (ActorLost): no step is made
of less.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from orchestrator.errors import ActorLost
from orchestrator.rollouts.engine_health import Health, Place
from policies.rollout import StaleEngineError
from policies.types import Rollout, RolloutRequest
from rewards.host import Incident

FAILURES_IN_A_ROW = 3  # calls, before an engine is retired
TRIES = 3  # of one request, before its error is the job's
STARTS = 3  # of engines in one place that never became healthy, before it is given up
GIVEN_UP_S = 600.0  # then one more is tried: what kept them from starting may have passed
START_S = 1800.0  # of an engine in another's place, at least; where rollouts may take longer, as long as they
ANSWER_S = 30.0  # an engine says which weights it has
WAKE_S = 120.0  # an engine moves its weights between a GPU and the host
_LOOK_EVERY_S = 0.5
_WAKE = None
T = TypeVar("T")
Answer = Callable[[float], T | None]  # waits so many seconds for it
log = logging.getLogger(__name__)


class EngineError(RuntimeError):
    """Rollouts could not be made, for a reason that a restart does not mend."""


class EngineLost(Exception):
    """An engine's process, or its machine, is gone."""


class Engine(Protocol):
    """One engine: the seam between the pool and Ray actors, or stand-ins."""

    def started(self) -> bool:
        """Whether it is up, without waiting. Raises EngineLost, EngineError where it never will be."""
        ...

    def stream(self, requests: Sequence[RolloutRequest], call: str) -> Iterator[list[tuple[int, Rollout]]]:
        """Rollouts as they end, with their requests' places; an empty list is a sign of progress.

        `call` names it to `withdraw`. Raises EngineLost, StaleEngineError, EngineError.
        """
        ...

    def withdraw(self, call: str) -> None:
        """What has not ended of a stream is no longer wanted, nor all of it if it has yet to begin. Does not wait."""
        ...

    def version(self) -> Answer[int]:
        """Asks which weights it serves. None: stale, or no answer."""
        ...

    def rest(self) -> Answer[bool]:
        """To give a GPU's memory up. It has no requests, and gets none and no weights before it is to `rise`."""
        ...

    def rise(self) -> Answer[bool]: ...

    def kill(self) -> None:
        """Ends it, whatever it is at, without waiting. Safe to call twice."""
        ...


class Syncs(Protocol):
    """The learner, as far as a refit needs it."""

    def sync(self, version: int) -> None: ...


@dataclass(kw_only=True, eq=False)
class Call:
    """A piece of a batch at an engine."""

    place: Place
    engine: Engine
    name: str
    rows: list[int]  # of the batch
    left: set[int]  # rows that have not ended
    refits: int  # before it
    over: bool = False


@dataclass(kw_only=True, eq=False)
class _Work:
    """One batch: groups that wait for room, and what its calls say."""

    requests: Sequence[RolloutRequest]
    waiting: deque[list[int]]
    found: dict[int, Rollout] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    failed: Counter[int] = field(default_factory=Counter)  # calls that failed, by row
    failed_at: set[tuple[int, int]] = field(default_factory=set)  # row, engine
    inbox: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)


class EnginePool:
    """Any number of engines behind one `generate`, which several threads may call.

    Groups go to the engine that holds least, the lower number first. An engine of several gets a group only while it
    holds fewer than `room` rollouts; what is left waits, the earlier batch first. So where a batch fits (or one engine
    serves), who gets what depends on the requests and on which engines are healthy alone, and the same requests under
    the same weights give the same rollouts. Above that, who has room first decides: every rollout has its own seed, but
    the batches that vLLM forms around it may change low bits of its probabilities.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        timeout_s: float,
        stall_s: float = 120.0,
        room: int = 256,
        start: Callable[[int], Engine] | None = None,
        connect: Callable[[list[Engine]], None] = lambda _: None,
        sleeps: bool = True,
    ) -> None:
        """`start` makes another engine for a place; without it a loss is the job's, as where weights go by NCCL.

        `connect` tells the learner which engines it sends weights to. Where the engines do not sleep, `rest` does
        nothing: nobody waits for the memory of a GPU of their own.
        """
        self.sleeps = sleeps
        self.timeout_s = timeout_s
        self.stall_s = stall_s
        self.room = room
        self.places = [Place(number=i, engine=engine) for i, engine in enumerate(engines)]
        self._start = start
        self._connect = connect
        self._connected: list[Engine] = []
        self._works: list[_Work] = []  # in the order in which they came
        self._calls = itertools.count()
        self._lock = threading.RLock()
        self._refitting = False
        self._refits = 0
        self._heard = 0.0  # when a rollout ended last, of whichever batch
        self._resting: set[Engine] = set()
        self._incidents: list[Incident] = []

    # ------------------------------------------------------------- for people

    def told(self) -> list[Incident]:
        """What people should hear of since the last call."""
        with self._lock:
            incidents, self._incidents = self._incidents, []
        return incidents

    def health(self) -> dict[str, dict[str, Any]]:
        """Every engine's state, and its figures since the last call."""
        with self._lock:
            self._look()
            return {str(place.number): place.figures() for place in self.places}

    @property
    def serving(self) -> int:
        return len(self._in(Health.HEALTHY))

    # ---------------------------------------------------------------- weights

    def open(self) -> None:
        """All are up and sample from the initial policy, which they were started with. Raises what `started` does."""
        for place in self.places:
            place.engine.started()
            place.up()
        self._reconnect([place.engine for place in self.places])
        for place in self.places:
            place.serve(0)

    def refit(self, learner: Syncs, version: int) -> None:
        """Every engine that is up samples from the learner's weights when this returns, under this version.

        Rollouts that have begun go on under the new weights. An engine that does not say that it has them is retired.
        Raises ActorLost where that leaves none, and what the learner raises.
        """
        self._rise()
        with self._lock:
            self._look()
            members = self._in(Health.STALE, Health.HEALTHY)
            if not members:
                raise self._none_left()
            for place in members:
                if place.health is Health.HEALTHY:
                    place.move(Health.STALE)
            engines = [place.engine for place in members]
            self._refitting = True
        try:
            self._reconnect(engines)  # those, as a batch may lose one meanwhile, and what replaces it still starts
            learner.sync(version)
            self._take_back(members, engines, version)
        finally:
            with self._lock:
                self._refitting = False
                self._wake()
        with self._lock:
            if not self._in(Health.HEALTHY):
                raise self._none_left()

    def rest(self) -> None:
        """Engines that serve give a GPU's memory up until the next refit. Raises as `refit`."""
        if not self.sleeps:
            return
        with self._lock:
            members = self._in(Health.HEALTHY)
            self._resting = {place.engine for place in members}
        self._all(members, lambda engine: engine.rest(), "it did not go to sleep")
        with self._lock:
            if not self._in(Health.HEALTHY):
                raise self._none_left()

    def _rise(self) -> None:
        asleep = [place for place in self.places if place.engine in self._resting]
        self._resting = set()
        self._all(asleep, lambda engine: engine.rise(), "it did not wake up")

    def _all(self, members: Sequence[Place], ask: Callable[[Engine], Answer[bool]], problem: str) -> None:
        """Each does what it is asked to, or is retired."""
        asked = [(place, place.engine, ask(place.engine)) for place in members]
        deadline = time.monotonic() + WAKE_S
        for place, engine, answer in asked:
            if not answer(max(0.0, deadline - time.monotonic())):
                with self._lock:
                    if place.engine is engine and place.health is not Health.RETIRED:
                        self._retire(place, problem)

    def _reconnect(self, engines: list[Engine]) -> None:
        if self._connected != engines:
            self._connect(engines)
            self._connected = engines

    def _take_back(self, members: Sequence[Place], engines: Sequence[Engine], version: int) -> None:
        """By their own word alone."""
        answers = [engine.version() for engine in engines]
        deadline = time.monotonic() + ANSWER_S
        versions = [answer(max(0.0, deadline - time.monotonic())) for answer in answers]
        with self._lock:
            self._refits += 1
            for place, engine, found in zip(members, engines, versions, strict=True):
                place.heard = time.monotonic()
                if place.engine is not engine or place.health is not Health.STALE:
                    continue  # retired meanwhile, by a batch that it was lost to
                if found != version:
                    self._retire(place, f"it did not take the weights of step {version}")
                elif place.serve(version) and place.restarts:
                    self._tell("engine.back", "info", place, policy_version=version)

    def close(self) -> None:
        """No engine is started any more, and batches under way end with ActorLost where theirs are killed."""
        with self._lock:
            self._start = None

    # --------------------------------------------------------------- rollouts

    def generate(
        self, requests: Sequence[RolloutRequest], on_end: Callable[[int, Rollout], None] | None = None
    ) -> list[Rollout]:
        """One rollout for each request, in order. As `gather`."""
        found = self.gather(requests, on_end)
        return [found[row] for row in range(len(requests))]

    def gather(
        self,
        requests: Sequence[RolloutRequest],
        on_end: Callable[[int, Rollout], None] | None = None,
        enough: Callable[[], bool] = lambda: False,
    ) -> dict[int, Rollout]:
        """A rollout for each request, by its place. Requests of one prompt that follow each other are a group.

        `on_end` is told of each as it ends; what it raises ends the wait. Once there is `enough`, what has not ended is
        withdrawn from the engines. Raises ActorLost where no engine is left, EngineError where a request failed `TRIES`
        times or no rollout ends for timeout_s.
        """
        work = _Work(requests=requests, waiting=deque(groups(requests, range(len(requests)))))
        began, looked = time.monotonic(), 0.0
        with self._lock:
            self._works.append(work)
        try:
            while len(work.found) < len(requests) and not enough():
                with self._lock:
                    if time.monotonic() - looked > _LOOK_EVERY_S:
                        looked = time.monotonic()
                        self._look()
                        self._watch(work)
                    self._dispatch(work)
                with contextlib.suppress(queue.Empty):
                    self._hear(work, work.inbox.get(timeout=_LOOK_EVERY_S), on_end)
                if time.monotonic() - max(began, self._heard) > self.timeout_s:  # it may wait behind other batches
                    raise EngineError(f"no rollout has ended for {self.timeout_s:g} s (rollout.timeout_s)")
        finally:
            with self._lock:
                for call in work.calls:
                    if not call.over and call.left:
                        call.engine.withdraw(call.name)
                    self._close(call)
                self._works.remove(work)
                self._wake()
        return work.found

    def _dispatch(self, work: _Work) -> None:
        """Groups that wait go to the engine that holds least, as long as there is room."""
        earlier = itertools.takewhile(lambda other: other is not work, self._works)
        if not work.waiting or any(other.waiting for other in earlier):
            return
        serving = self._in(Health.HEALTHY)
        if not serving:
            if self._refitting:
                return
            raise self._none_left()
        least = [(place.held, place.number) for place in serving]
        heapq.heapify(least)
        pieces: dict[int, list[int]] = {}
        while work.waiting:
            group = work.waiting[0]
            passed = []  # it failed there: rather at another
            while (group[0], least[0][1]) in work.failed_at and len(least) > 1:
                passed.append(heapq.heappop(least))
            held, number = least[0]
            if len(serving) > 1 and held >= self.room:
                break
            heapq.heapreplace(least, (held + len(group), number))
            for entry in passed:
                heapq.heappush(least, entry)
            work.waiting.popleft()
            self.places[number].held += len(group)
            pieces.setdefault(number, []).extend(group)
        for number, rows in pieces.items():
            place = self.places[number]
            if place.held == len(rows):
                place.heard = time.monotonic()  # idle until now
            name = f"{next(self._calls)}"
            call = Call(place=place, engine=place.engine, name=name, rows=rows, left=set(rows), refits=self._refits)
            work.calls.append(call)
            threading.Thread(target=_follow, args=(call, work), name=f"engine-{number}", daemon=True).start()
        if not work.waiting:
            self._wake(but=work)  # it is the next one's turn

    def _hear(self, work: _Work, news: Any, on_end: Callable[[int, Rollout], None] | None) -> None:
        if news is _WAKE:
            return
        call, said = news
        with self._lock:
            if call.over:
                return
            if isinstance(said, BaseException):
                self._failed(work, call, said)
                return
            call.place.heard = time.monotonic()
            rows = [(call.rows[i], rollout) for i, rollout in said]
            for row, rollout in rows:
                work.found[row] = rollout
                call.left.discard(row)
            if rows:
                self._heard = time.monotonic()
                call.place.held -= len(rows)
                call.place.rollouts += len(rows)
                call.place.streak = 0
                self._wake(but=work)
        if on_end is not None:
            for row, rollout in rows:
                on_end(row, rollout)

    def _failed(self, work: _Work, call: Call, error: BaseException) -> None:
        place, reason = call.place, str(error) or type(error).__name__
        if isinstance(error, EngineLost):
            if place.engine is call.engine:
                self._retire(place, reason)  # which takes the rows of all its calls back
            return
        rows = sorted(call.left)
        self._give_back(work, call)
        if not rows:
            return
        if isinstance(error, StaleEngineError):
            if place.health is Health.HEALTHY and call.refits == self._refits:  # else it was mended meanwhile
                place.move(Health.STALE)
                place.reason = reason
            return
        if place.failed(reason, len(rows)):
            self._tell("engine.failing", "warning", place, message=reason)
            log.warning("a call to engine %d failed: %s", place.number, reason)
        work.failed.update(rows)
        work.failed_at |= {(row, place.number) for row in rows}
        if max(work.failed[row] for row in rows) >= TRIES:
            raise EngineError(f"a rollout engine failed: {reason}") from error
        if place.streak >= FAILURES_IN_A_ROW:
            self._retire(place, f"{place.streak} calls in a row failed, the last: {reason}")

    def _watch(self, work: _Work) -> None:
        """A last resort: an engine that says nothing, not even that it goes on."""
        if self._refitting:
            return
        for call in work.calls:
            if not call.over and call.left and time.monotonic() - call.place.heard > self.stall_s:
                self._retire(call.place, f"no new token for {self.stall_s:g} s (rollout.stall_s)")

    # ----------------------------------------------------------------- health

    def _in(self, *healths: Health) -> list[Place]:
        return [place for place in self.places if place.health in healths]

    def _look(self) -> None:
        """Those that came up meanwhile wait for weights; those that did not are tried again."""
        now = time.monotonic()
        for place in self._in(Health.RETIRED):
            if self._start is not None and now - place.since > GIVEN_UP_S and self._in(Health.HEALTHY, Health.STALE):
                place.replace(self._start)
        for place in self._in(Health.STARTING):
            try:
                if not place.engine.started():
                    if now - place.since > (limit_s := max(START_S, self.timeout_s)):
                        self._retire(place, f"it did not start within {limit_s:g} s")
                    continue
            except (EngineLost, EngineError) as error:
                self._retire(place, f"it did not start: {error}")
                continue
            place.up()
            self._tell("engine.restarted", "info", place)

    def _retire(self, place: Place, reason: str) -> None:
        """Its rows go back to their batches, and another engine is started in its place."""
        place.engine.kill()
        held, old = place.held, place.engine
        for work in self._works:
            for call in [call for call in work.calls if call.engine is old and not call.over]:
                self._give_back(work, call)
        place.resent += held
        place.retire(reason)
        if self._start is None:
            raise ActorLost(f"a rollout engine is gone: {reason}")
        given_up = place.starts >= STARTS
        level = "error" if given_up else "warning"
        self._tell("engine.retired", level, place, message=reason, resent=held, given_up=given_up)
        log.warning("engine %d is retired: %s", place.number, reason)
        if not given_up and self._in(Health.HEALTHY, Health.STALE):  # else all begins anew, from the checkpoint
            place.replace(self._start)

    def _give_back(self, work: _Work, call: Call) -> None:
        rows = sorted(call.left)
        self._close(call)
        work.waiting.extendleft(reversed(list(groups(work.requests, rows))))
        self._wake()

    @staticmethod
    def _close(call: Call) -> None:
        """What its engine still says is not heard."""
        if not call.over:
            call.over = True
            call.place.held -= len(call.left)

    def _wake(self, but: _Work | None = None) -> None:
        for work in self._works:
            if work is not but and work.waiting:
                work.inbox.put(_WAKE)

    def _none_left(self) -> ActorLost:
        reasons = "; ".join(f"engine {p.number} is {p.health}: {p.reason}" for p in self.places)
        return ActorLost(f"no rollout engine is left ({reasons})")

    def _tell(self, type: str, level: str, place: Place, **data: Any) -> None:
        self._incidents.append(Incident(type=type, level=level, data={"engine": place.number, **data}))


def groups(requests: Sequence[RolloutRequest], rows: Sequence[int]) -> Iterator[list[int]]:
    """Rows that follow each other and have the same prompt, together."""
    for _, found in itertools.groupby(rows, key=lambda row: requests[row].prompt_tokens):
        yield list(found)


def _follow(call: Call, work: _Work) -> None:
    """In a thread of its own: what an engine says about a call, into the inbox of its batch."""
    try:
        for ended in call.engine.stream([work.requests[row] for row in call.rows], call.name):
            work.inbox.put((call, ended))
        work.inbox.put((call, EngineError("it ended a call and left rollouts out")))
    except BaseException as error:  # whatever it is, the batch's own thread decides
        work.inbox.put((call, error))
