"""What a Prometheus reads: requests, and jobs as they stand. Every label comes from a bounded set.

Requests are labelled by route template, never by what was asked; jobs and owners are capped.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.errors import Outage, StoreUnavailable
from orchestrator.rollouts.engine_health import Health, counted
from orchestrator.state import gpu_hours
from orchestrator.state.census import COUNTED_JOBS, Census, Pulse, busiest
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore
from services.deps import Store

router = APIRouter(tags=["health"])

MAX_OWNERS = 100
MAX_JOBS = 50  # running ones, of all owners together
MAX_AGE_S = 3.0  # of figures of jobs: a scrape reads them, and all that follow within this time are given the same
_FEWEST_COUNTED = 100  # of an owner, however many owners share the count
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OF_REWARDS = {  # figures of a step's reward_health, of each reward
    "calls": "Calls at that step.",
    "failures": "Calls at that step that gave no scores, or none for some rows.",
    "retries": "Calls at that step that were tried again.",
    "restarts": "Processes that were started again at that step.",
    "dropped": "Completions of that step that could not be scored.",
    "cost": "What judges asked for that step's answers, in their operator's currency.",
}
_LATENCIES = {"0.5": "latency_s_p50", "0.95": "latency_s_p95", "1": "latency_s_max"}
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class RequestMeter:
    """ASGI middleware: counts requests and times them until their answer begins (a stream may last for days)."""

    def __init__(self, app: ASGIApp, *, registry: CollectorRegistry) -> None:
        self._app = app
        self._requests = Counter(
            "equipoise_requests", "Answered requests.", ("method", "route", "status"), registry=registry
        )
        self._latency = Histogram(
            "equipoise_request_seconds",
            "Until an answer begins.",
            ("method", "route"),
            buckets=_BUCKETS_S,
            registry=registry,
        )
        # Routes, methods and statuses are few, and finding a child by its labels takes longer than counting.
        self._counted = functools.cache(lambda *labels: self._requests.labels(*labels))
        self._timed = functools.cache(lambda *labels: self._latency.labels(*labels))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, noted = time.perf_counter(), False

        def note(status: int) -> None:
            nonlocal noted
            if noted:
                return
            noted = True
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = getattr(scope.get("route"), "path", "none")
            self._counted(method, route, str(status)).inc()
            self._timed(method, route).observe(time.perf_counter() - began)

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                note(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:  # raised again below: only counted here
            note(500)
            raise


class JobFigures:
    """A collector that reads the jobs of some owners, and how Redis is, when it is asked."""

    def __init__(self, readers: Callable[[], Sequence[JobStore]]) -> None:
        self._readers = readers

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("equipoise_redis_up", "1 if Redis answered this scrape.")
        try:
            figures = list(self._read())
        except StoreUnavailable:
            figures = []
            up.add_metric([], 0)
        else:
            up.add_metric([], 1)
        yield up
        yield from figures

    def _read(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("equipoise_jobs", "Jobs, the newest ones of each owner.", labels=("owner", "status"))
        failed = CounterMetricFamily("equipoise_jobs_failed", "Jobs that failed, ever.", labels=("owner",))
        queued = GaugeMetricFamily("equipoise_queue_length", "Jobs that wait.", labels=("owner",))
        leases = GaugeMetricFamily("equipoise_leases", "Jobs that a driver holds.", labels=("owner",))
        used = GaugeMetricFamily("equipoise_gpu_hours_used", "This month (UTC).", labels=("owner",))
        quota = GaugeMetricFamily("equipoise_gpu_hours_quota", "Of a month, where there is one.", labels=("owner",))
        running = _RunningJobs()
        everyone = self._readers()
        readers = busiest(everyone, MAX_OWNERS)
        held: dict[JobStore, tuple[str, ...]] = {}
        yield from _of_redis(readers[0])
        for reader in readers:
            census = Census(reader)
            counts = census.counts(at_most=max(_FEWEST_COUNTED, COUNTED_JOBS // len(readers)))
            for status in JobStatus:
                jobs.add_metric([reader.owner, status], counts.by_status.get(status, 0))
            failed.add_metric([reader.owner], counts.failed)
            queued.add_metric([reader.owner], counts.queued)
            leases.add_metric([reader.owner], counts.leases)
            hours = gpu_hours.read(reader.calls, reader.owner)
            used.add_metric([reader.owner], hours.used)
            _add(quota, [reader.owner], hours.quota)
            held[reader] = counts.held
        for reader, shown in _shared(held).items():
            for job_id, pulse in Census(reader).pulses(shown).items():
                running.add(reader.owner, job_id, pulse)
            held[reader] = held[reader][len(shown) :]
        out = GaugeMetricFamily("equipoise_owners_left_out", "Owners that have no figures here: there are too many.")
        out.add_metric([], len(everyone) - len(readers))
        unseen = GaugeMetricFamily("equipoise_running_jobs_left_out", "Jobs that a driver holds, without figures here.")
        unseen.add_metric([], sum(map(len, held.values())))
        yield from (jobs, failed, queued, leases, used, quota, out, unseen, *running.families)


def _shared(held: Mapping[JobStore, tuple[str, ...]]) -> dict[JobStore, tuple[str, ...]]:
    """MAX_JOBS of them, the newest of each owner: who has few has them all, and the others as many as each other."""
    shown: dict[JobStore, tuple[str, ...]] = {}
    few_first, room = sorted(held, key=lambda reader: len(held[reader])), MAX_JOBS
    for i, reader in enumerate(few_first):
        share = min(room, max(1, room // (len(few_first) - i)))
        shown[reader] = held[reader][:share]
        room -= len(shown[reader])
    return shown


def _of_redis(store: JobStore) -> Iterator[Metric]:
    """Raises StoreUnavailable for one that is away: one that is full still answers reads."""
    writes = GaugeMetricFamily("equipoise_redis_writes", "1 if Redis takes writes, 0 where it is full or read-only.")
    try:
        store.check_writes()
    except StoreUnavailable as error:
        if error.outage is Outage.AWAY:
            raise
        writes.add_metric([], 0)
    else:
        writes.add_metric([], 1)
    yield writes
    ends = GaugeMetricFamily(
        "equipoise_redis_certificate_end_timestamp_seconds", "When the certificate that Redis shows ends."
    )
    _add(ends, [], store.calls.certificate_end())
    yield ends


class Scrapes:
    """Figures of jobs as they were some seconds ago at most, so that more monitors are no more work.

    Of the newest owners that asked; one reads at a time, and the others wait for what it finds.
    """

    def __init__(self, max_age_s: float = MAX_AGE_S) -> None:
        self._max_age_s = max_age_s
        self._kept: dict[str, tuple[float, list[Metric]]] = {}
        self._lock = threading.Lock()

    def of(self, who: str, figures: JobFigures) -> list[Metric]:
        with self._lock:
            at, found = self._kept.pop(who, (-math.inf, []))
            if time.monotonic() - at > self._max_age_s:
                at, found = time.monotonic(), list(figures.collect())
            self._kept[who] = (at, found)
            while len(self._kept) > MAX_OWNERS:
                del self._kept[next(iter(self._kept))]
            return found


class _RunningJobs:
    """Figures of jobs that a driver holds; a figure that is not there (or no number) gives no sample."""

    def __init__(self) -> None:
        job, by_objective, by_reward = ("owner", "job"), ("owner", "job", "objective"), ("owner", "job", "reward")
        self.step = GaugeMetricFamily("equipoise_job_step", "Last committed step.", labels=job)
        self.objective = GaugeMetricFamily("equipoise_job_objective", "Raw mean at that step.", labels=by_objective)
        self.weight = GaugeMetricFamily("equipoise_job_weight", "Applied weight at that step.", labels=by_objective)
        self.hypervolume = GaugeMetricFamily("equipoise_job_hypervolume", "Of the front so far.", labels=job)
        self.speed = GaugeMetricFamily("equipoise_job_tokens_per_second", "At that step.", labels=job)
        self.rewards = {
            name: GaugeMetricFamily(f"equipoise_job_reward_{name}", meaning, labels=by_reward)
            for name, meaning in _OF_REWARDS.items()
        }
        self.latency = GaugeMetricFamily(
            "equipoise_job_reward_latency_seconds", "Of its calls at that step.", labels=(*by_reward, "quantile")
        )
        self.engines = GaugeMetricFamily("equipoise_job_engines", "At that step.", labels=(*job, "health"))
        self.engine_failures = GaugeMetricFamily(
            "equipoise_job_engine_failures", "Failed calls to its engines at that step.", labels=job
        )
        self.staleness = GaugeMetricFamily("equipoise_job_staleness", "Updates, mean over tokens.", labels=job)
        self.failed_checkpoints = CounterMetricFamily(
            "equipoise_job_checkpoint_failures", "Checkpoints that could not be written; tried again later.", labels=job
        )
        figures = (self.step, self.objective, self.weight, self.hypervolume, self.speed, self.failed_checkpoints)
        engines = (self.engines, self.engine_failures)
        self.families = (*figures, *self.rewards.values(), self.latency, *engines, self.staleness)

    def add(self, owner: str, job_id: str, pulse: Pulse) -> None:
        labels = [owner, job_id]
        self.step.add_metric(labels, pulse.step)
        self.failed_checkpoints.add_metric(labels, pulse.failed_checkpoints)
        record = pulse.record or {}
        for name, figures in record.get("objectives", {}).items():
            _add(self.objective, [*labels, name], figures.get("mean"))
        for name, weight in record.get("weights", {}).get("applied", {}).items():
            _add(self.weight, [*labels, name], weight)
        for reward, health in record.get("reward_health", {}).items():
            for name, family in self.rewards.items():
                _add(family, [*labels, reward], health.get(name))
            for quantile, name in _LATENCIES.items():
                _add(self.latency, [*labels, reward, quantile], health.get(name))
        _add(self.hypervolume, labels, pulse.hypervolume)
        _add(self.speed, labels, pulse.tokens_per_s)
        if engines := counted(record):
            for health in Health:
                self.engines.add_metric([*labels, health], engines.get(health, 0))
            failures = sum(engine.get("failures") or 0 for engine in record.get("engine_health", {}).values())
            self.engine_failures.add_metric(labels, failures)
        _add(self.staleness, labels, record.get("staleness", {}).get("mean"))


def _add(family: GaugeMetricFamily, labels: list[str], value: float | None) -> None:
    if value is not None:
        family.add_metric(labels, value)


class _Found:
    """A collector of what is read already, behind others."""

    def __init__(self, found: Sequence[Metric], *before: CollectorRegistry) -> None:
        self._found, self._before = found, before

    def collect(self) -> Iterator[Metric]:
        for collector in self._before:
            yield from collector.collect()
        yield from self._found


@router.get("/metrics", name="get_prometheus")  # there is another get_metrics, of a job
def get_metrics(request: Request, store: Store) -> Response:
    """Prometheus text. A key sees the jobs of its owner; the installation's own, everyone's and the requests.

    Figures of jobs are up to three seconds old.
    """
    scrapes: Scrapes = request.app.state.scrapes
    if request.state.principal.is_operator:
        everyone = JobFigures(lambda: [store.of_owner(owner) for owner in store.owners()])
        found = _Found(scrapes.of("", everyone), request.app.state.registry)
    else:
        found = _Found(scrapes.of(store.owner, JobFigures(lambda: [store])))
    return Response(generate_latest(found), media_type=CONTENT_TYPE_LATEST)
