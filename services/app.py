"""The API as one ASGI app. Stateless: any number of them may serve the same Redis."""

from __future__ import annotations

import threading

from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry
from starlette.responses import HTMLResponse, Response

from orchestrator.state.store import JobStore
from services.api import (
    compat,
    datasets,
    events,
    fork,
    jobs,
    judges,
    keys,
    metrics,
    models,
    quotas,
    results,
    rewards,
    rollouts,
    rules,
    steering,
    webhooks,
)
from services.auth import RecentKeys, RequireKey
from services.body_deadline import BodyDeadline
from services.dashboard.gate import Gate
from services.docs_page import POLICY, docs_page
from services.errors import BodyLimit, RequestContext, StrictJSONResponse, add_handlers
from services.event_feed import Feeds
from services.head import HeadAsGet
from services.openapi import openapi, operation_id
from services.own_key import OwnKey
from services.readiness import Readiness
from services.recent_specs import RecentSpecs
from services.settings import Settings


def create_app(store: JobStore, settings: Settings) -> FastAPI:
    """Every route but /livez needs a key, and an admin's unless services/scopes.py says less.

    The key of `settings` is an admin of the owner of `store`.
    """
    app = FastAPI(
        title="Equipoise",
        version="1",
        redirect_slashes=False,
        redoc_url=None,
        docs_url=None,
        generate_unique_id_function=operation_id,
    )
    store = store.failing_fast()
    app.state.store = store
    app.state.keys = RecentKeys(store.calls)
    app.state.settings = settings
    app.state.stopping = threading.Event()  # set before the server stops, to end the streams
    app.state.feeds = Feeds(settings.poll_s, app.state.stopping)
    app.state.registry = CollectorRegistry()
    app.state.specs = RecentSpecs()
    app.state.places = {}  # by kind of work: how many each owner has under way (services/slots.py)
    app.state.scrapes = metrics.Scrapes()
    app.state.readiness = Readiness(store)
    # The last one added is the outermost: an id for every answer, then the dashboard, whose pages have sessions in the
    # place of keys, then the key, then the body's size.
    uploads = {("POST", "/v1/datasets"): settings.limits.dataset_bytes}
    app.add_middleware(HeadAsGet)
    app.add_middleware(BodyDeadline, uploads=uploads)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, uploads=uploads)
    app.add_middleware(
        RequireKey,
        own=OwnKey(settings),
        owner=store.owner,
        keys=app.state.keys,
        metrics_key_sha256=settings.metrics_key_sha256,
        keyless_probes=settings.keyless_probes,
        writes_per_minute=settings.limits.writes_per_minute,
    )
    if settings.dashboard is not None:
        app.add_middleware(Gate, api=app, hosts=settings.dashboard.hosts)
    app.add_middleware(metrics.RequestMeter, registry=app.state.registry)
    app.add_middleware(RequestContext)
    add_handlers(app)
    # fork first: its /v1/jobs/compare would be taken for a job's id.
    for module in (
        fork,
        jobs,
        steering,
        events,
        results,
        rules,
        keys,
        quotas,
        metrics,
        rollouts,
        compat,
        webhooks,
        datasets,
        models,
        rewards,
        judges,
    ):
        app.include_router(module.router)

    @app.get("/livez", tags=["health"])
    async def livez() -> Response:
        """The process answers."""
        return StrictJSONResponse({"status": "ok"})

    @app.get("/readyz", tags=["health"])
    def readyz(request: Request) -> Response:
        """The process answers and so does its Redis; 503 otherwise. Redis is asked once a second, whoever asks here."""
        request.app.state.readiness.check()
        return StrictJSONResponse({"status": "ok"})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        """The API as a page."""
        return HTMLResponse(docs_page(app.openapi()), headers={"content-security-policy": POLICY})

    app.openapi = lambda: openapi(app)  # type: ignore[method-assign]  # how FastAPI's documentation has it replaced
    return app
