"""A job as it happens, read from the API once for all pages of a session that show it.

Every POLL_S, or later where many jobs are watched, it asks for the steps and events after those that it has; what else
there is, it asks for when one of them says that it has changed. Pages are told by `on_news`, in the event loop, and
read what they show from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Literal

from orchestrator import why
from orchestrator.clock import tokens_per_s
from services.client import ApiError, AuthenticationError, NotFound, PermissionDenied
from services.client.flows import FINAL
from services.client.types import Checkpoint, Event, Front, JobDetail, Steering
from services.dashboard.series import Columns, Value
from services.dashboard.sessions import Session

log = logging.getLogger(__name__)

POLL_S = 0.8
SHARE_S = 0.06  # of each watch that runs in this process: a hundred of them see news every six seconds
LATE_S = 3.0  # others' changes of the steering are no events until they act, nor is what a step is at
REST_POLL_S = 4.0  # of a job at whose figures nothing changes by itself
LINGER_S = 20.0  # after the last page has gone: one that is reloaded finds everything here
_PAGE = 100
_EVENTS = 1000  # the newest that are kept to be shown

News = frozenset[Literal["job", "steps", "events", "front", "steering", "checkpoints", "connection"]]
Listener = Callable[[News], Coroutine[Any, Any, None]]
# What an event changes besides the job itself.
_CHANGES = {
    "evaluated": {"front", "checkpoints"},
    "steering.applied": {"steering"},
    "steering.rejected": {"steering"},
    "job.rewound": {"front", "checkpoints"},
    "job.succeeded": {"front", "checkpoints"},
    "job.cancelled": {"front", "checkpoints"},
    "job.failed": {"front", "checkpoints"},
    "job.paused": {"front", "checkpoints"},
}
_WARNINGS = ("guardrail.breached", "collapse.detected", "overoptimisation.detected")
_HEALTH = (
    "total",
    "kl",
    "entropy",
    "mean_tokens",
    "truncated_share",
    "grad_norm",
    "clip_share",
    "loss",
    "lr",
    "tokens",
    "steering_version",
    "policy_version",
    "sampler_gap",
)
_SIGNS = ("reward_health", "engines", "engine_health", "falling")
_READ = tuple({"timings_s", "staleness", "gold", "evaluation", *_SIGNS, *_HEALTH, *why.FIELDS})  # of a step


class JobWatch:
    """`job` is there from the start; the rest comes, and `loaded` says when all that there was has."""

    def __init__(self, session: Session, job_id: str, job: JobDetail) -> None:
        self._session, self._client, self.job_id = session, session.client, job_id
        self.job = job
        self.columns = Columns()
        self.generation = 0  # of the columns: another one when steps were taken back
        self.evaluations: list[dict[str, Any]] = []  # step and objectives
        self.events: deque[Event] = deque(maxlen=_EVENTS)
        self.faults: deque[Event] = deque(maxlen=_EVENTS)  # warnings and errors alone: others don't drive them out
        self.event_counts: Counter[str] = Counter()  # by level, of all that were read
        self.restarts = 0  # claims of a job that nobody had paused or handed back
        self.steered: list[Event] = []  # of steering.applied and .rejected, as far back as events are kept
        self.warned: list[Event] = []  # of what is watched, and marked in charts, as far back
        self.versions: list[tuple[int, int]] = []  # (first step, version) of each steering that was in force: all
        self.front: Front | None = None
        self.steering: Steering | None = None
        self.checkpoints: list[Checkpoint] = []
        self.loaded = False
        self.trouble = ""  # why nothing new comes; empty while it does
        self.signs: dict[str, Any] = {}  # of the newest step: the health of its rewards and engines, and what falls
        self._newest: deque[Mapping[str, Any]] = deque(maxlen=2)  # what tells of the weights, of the last steps
        self._last_event: Event | None = None  # read again with each look: it may be another by now
        self._is_handed_on = True  # the next claim is none after a crash
        self._listeners: list[Listener] = []
        self._task: asyncio.Task[None] | None = None
        self._poke = asyncio.Event()
        self._wanted: set[Any] = {"front", "steering", "checkpoints"}
        self._late_read_at = 0.0

    @classmethod
    async def of(cls, session: Session, job_id: str) -> JobWatch:
        """The session's watch of a job, begun if need be. Raises ApiError."""
        watches: dict[str, JobWatch] = session.shared.setdefault("watches", {})
        if job_id not in watches:
            made = cls(session, job_id, await session.client.job(job_id))
            watches.setdefault(job_id, made)
            session.ending.append(made.stop)
        return watches[job_id]

    @property
    def objectives(self) -> list[str]:
        return [objective["name"] for objective in self.job["spec"].get("objectives", ())]

    @property
    def trains_reward(self) -> bool:
        """A job with neither objectives nor a front, rollouts or a steering."""
        return trains_reward(self.job["spec"])

    @property
    def is_over(self) -> bool:
        return self.job["status"] in FINAL

    @property
    def reasons(self) -> list[why.Reason]:
        """Why the newest step's weights are what they are; none where it does not tell."""
        if not self._newest:
            return []
        rule = (self.job["spec"].get("weighting") or {}).get("name", "")
        return why.reasons(self._newest[-1], self._newest[0] if len(self._newest) > 1 else None, rule)

    def on_news(self, listener: Listener) -> Callable[[], None]:
        """Returns what ends it."""
        self._listeners.append(listener)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

        def end() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return end

    def poke(self) -> None:
        """Something was asked for: look at once."""
        self._wanted |= {"steering", "job"}
        self._poke.set()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    # -- reading ---------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        _running.add(self)
        try:
            await self._follow()
        finally:
            _running.discard(self)

    async def _follow(self) -> None:
        alone_since: float | None = None
        while True:
            self._poke.clear()  # before the look: what is asked for while it lasts may have come too late for it
            try:
                news = await self._fetch()
                if self.trouble:
                    self.trouble, news = "", news | {"connection"}
            except (AuthenticationError, PermissionDenied):
                await self._tell({"connection"}, "this key is no longer taken")
                await self._session.end("key")
                return
            except NotFound:
                await self._tell({"connection"}, "this job is gone")
                return
            except ApiError as error:
                news = set()
                away = error.status == 0 or error.message.startswith("Redis does not answer")
                told = "the server's Redis does not answer" if away else str(error)
                if told != self.trouble:
                    await self._tell({"connection"}, told)
            if news:
                await self._tell(news, self.trouble)
            now = time.monotonic()
            alone_since = None if self._listeners else (alone_since or now)
            if alone_since is not None and now - alone_since > LINGER_S:
                self._session.shared.get("watches", {}).pop(self.job_id, None)
                if self.stop in self._session.ending:
                    self._session.ending.remove(self.stop)
                return
            resting = self.job["status"] in (*FINAL, "paused")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._poke.wait(), REST_POLL_S if resting else pause_s(len(_running)))

    async def _tell(self, news: set[Any], trouble: str) -> None:
        self.trouble = trouble
        for listener in list(self._listeners):
            try:
                await listener(frozenset(news))
            except Exception:  # one page that breaks must not stop the others
                log.exception("a page of %s could not show what is new", self.job_id)

    async def _fetch(self) -> set[Any]:
        """What changed. A look that breaks off is told of with the next one."""
        await self._fetch_events()
        await self._fetch_steps()
        wanted, self._wanted = self._wanted, set()
        try:
            return await self._fetch_wanted(wanted)
        except ApiError:
            self._wanted |= wanted
            raise

    async def _fetch_wanted(self, wanted: set[Any]) -> set[Any]:
        news = wanted & {"events", "steps"}
        late = not self.is_over and time.monotonic() - self._late_read_at > LATE_S
        if late or news or "job" in wanted or not self.loaded:
            before, self.job = self.job, await self._client.job(self.job_id)
            news |= {"job"} if news or "job" in wanted or not self.loaded or self.job != before else set()
            if self.job["checkpoint_step"] != before["checkpoint_step"]:  # which no event tells of, after its step
                wanted |= {"front", "checkpoints"}
        if self.trains_reward:
            wanted -= {"front", "steering"}
        if "front" in wanted:
            self.front = await self._client.front(self.job_id)
        if "checkpoints" in wanted:
            self.checkpoints = (await self._client.checkpoints(self.job_id))["data"]
        if "steering" in wanted or (late and not self.trains_reward):
            found = await self._client.steering(self.job_id, log_limit=50)
            if found != self.steering:
                self.steering = found
                news |= {"steering"}
        if late:
            self._late_read_at = time.monotonic()
        if not self.loaded:
            self.loaded = True
            news |= {"job", "steps", "events", "front", "steering", "checkpoints"}
        return news | (wanted & {"front", "checkpoints"})

    async def _fetch_events(self) -> None:
        while True:
            last = self._last_event
            page = await self._client.events(self.job_id, after=last["seq"] - 1 if last else 0, limit=_PAGE)
            found = page["data"]
            if last and (not found or (found[0]["seq"] == last["seq"] and found[0].get("at") != last.get("at"))):
                self._begin_anew()  # the job was put back, from an older copy of Redis
                continue
            for event in found[1:] if last and found[0]["seq"] == last["seq"] else found:
                self._last_event = event
                self.events.append(event)
                self.event_counts[event["level"]] += 1
                if event["level"] != "info":
                    self.faults.append(event)
                self._count_restarts(event)
                self._wanted |= {"events", "job"} | _CHANGES.get(event["type"], set())
                if event["type"] in ("steering.applied", "steering.rejected"):
                    self.steered.append(event)
                if event["type"] in _WARNINGS:
                    self.warned.append(event)
                if event["type"] in ("job.claimed", "job.rewound"):
                    self._rewind(event["data"].get("to"))
            if not page["has_more"]:
                return

    def _begin_anew(self) -> None:
        """All that was read is read once more."""
        self._last_event, self._is_handed_on, self.restarts = None, True, 0
        for read in (self.events, self.faults, self.event_counts, self.steered, self.warned):
            read.clear()
        self._rewind(0)

    def _count_restarts(self, event: Event) -> None:
        """A crash is told of by a warning, or by nothing but the next claim, once the lease has run out."""
        if event["type"] == "job.claimed":
            self.restarts += not self._is_handed_on
            self._is_handed_on = False
        elif event["type"] in ("job.queued", "job.requeued"):
            self._is_handed_on = event["level"] == "info"

    def _rewind(self, step: Any) -> None:
        """A claim goes on from a checkpoint: the steps after it are run again."""
        if isinstance(step, int) and step < self.columns.last:
            self.columns.truncate(step)
            self.evaluations = [found for found in self.evaluations if found["step"] <= step]
            self.versions = [found for found in self.versions if found[0] <= step]
            self.signs = {}
            self._newest.clear()
            self.generation += 1

    async def _fetch_steps(self) -> None:
        while True:
            page = await self._client.metrics(self.job_id, after=self.columns.last, limit=_PAGE, names=_READ)
            for record in page["data"]:
                self._add(record)
            if not page["has_more"]:
                return
            await asyncio.sleep(0)

    def _add(self, record: Mapping[str, Any]) -> None:
        step = record["step"]
        self._wanted |= {"steps"}
        version = record.get("steering_version")
        if version is not None and (not self.versions or version != self.versions[-1][1]):
            self.versions.append((step, version))
        self.columns.append(step, figures(record))
        self.signs = {name: record.get(name) or {} for name in _SIGNS}
        self._newest.append({name: record[name] for name in why.FIELDS if name in record})
        if evaluation := record.get("evaluation"):
            self._wanted |= {"front", "checkpoints"}  # its event comes before the front that it tells of
            self.evaluations.append({"step": step, "objectives": evaluation.get("objectives") or {}})


_running: set[JobWatch] = set()


def trains_reward(spec: Mapping[str, Any]) -> bool:
    return spec.get("kind") == "reward_model"


def pause_s(watches: int) -> float:
    """Between two looks of a watch, of as many as run: a server's time is not all for pages."""
    return max(POLL_S, SHARE_S * watches)


def figures(record: Mapping[str, Any]) -> dict[str, Value]:
    """A step's numbers under flat names: `accuracy.mean`, `accuracy.applied`, `time.rollout`, `kl`."""
    found: dict[str, Value] = {}
    for name, values in (record.get("objectives") or {}).items():
        mean, std = number(values.get("mean")), number(values.get("std"))
        found[f"{name}.mean"] = mean
        found[f"{name}.low"] = None if mean is None else mean - (std or 0.0)
        found[f"{name}.spread"] = None if mean is None else 2 * (std or 0.0)
        found[f"{name}.zero_share"] = number(values.get("zero_share"))
    for kind in ("applied", "strategy"):
        for name, value in ((record.get("weights") or {}).get(kind) or {}).items():
            found[f"{name}.{kind}"] = number(value)
    below = 0.0
    for name, value in ((record.get("weights") or {}).get("strategy") or {}).items():
        below += number(value) or 0.0
        found[f"{name}.below"] = below  # the learner's own weights, one on the other
    for stage, seconds in (record.get("timings_s") or {}).items():
        found[f"time.{stage}"] = number(seconds)
    for name in _HEALTH:
        found[name] = number(record.get(name))
    found["tokens_per_s"] = number(tokens_per_s(record))
    if "gold" in record:
        found["gold"] = number((record["gold"] or {}).get("mean"))
    found["staleness"] = number((record.get("staleness") or {}).get("mean"))
    return found


def number(value: Any) -> Value:
    """None for what is no finite number."""
    if type(value) is float:  # nearly all of them are, and there may be half a million
        return value if math.isfinite(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value
