"""Which scope each route asks for. What is not named here needs admin, so a route that is added later is closed."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.routing import BaseRoute, Match
from starlette.types import Scope as Asgi

from orchestrator.state.keystore import Scope

_JOB = "/v1/jobs/{job_id}"
_ALIAS = "/v1/fine_tuning/jobs/{job_id}"

_READ = (
    "GET /readyz",
    "GET /metrics",
    "GET /openapi.json",
    "GET /docs",
    "GET /v1/jobs",
    "GET /v1/jobs/compare",
    f"GET {_JOB}",
    f"GET {_JOB}/events",
    f"GET {_JOB}/metrics",
    f"GET {_JOB}/rollouts",
    f"GET {_JOB}/steering",
    f"POST {_JOB}/steering/preview",  # computes, and changes nothing
    f"GET {_JOB}/front",
    f"GET {_JOB}/checkpoints",
    f"GET {_JOB}/checkpoints/{{step}}/download",
    "GET /v1/fine_tuning/jobs",
    f"GET {_ALIAS}",
    f"GET {_ALIAS}/events",
    f"GET {_ALIAS}/checkpoints",
    f"GET {_JOB}/report",
    "GET /v1/key",
    "GET /v1/rewards",
    "GET /v1/judges",
    "GET /v1/rewards/{name}",
    "GET /v1/rules",
    "GET /v1/rules/{name}",
    "GET /v1/models",
    "GET /v1/datasets",
    "GET /v1/datasets/{dataset_id}",
    "GET /v1/datasets/{dataset_id}/rows",
)
_SUBMIT = (
    "POST /v1/jobs",
    f"DELETE {_JOB}",
    f"POST {_JOB}/cancel",
    f"POST {_JOB}/pause",
    f"POST {_JOB}/resume",
    f"POST {_JOB}/fork",
    f"POST {_ALIAS}/cancel",
    f"POST {_ALIAS}/pause",
    f"POST {_ALIAS}/resume",
    "POST /v1/rewards/validate",
    "POST /v1/rewards/run",
    "POST /v1/datasets",
    "DELETE /v1/datasets/{dataset_id}",
)
_STEER = (f"PUT {_JOB}/steering",)
_ADMIN = (
    "POST /v1/keys",
    "GET /v1/keys",
    "DELETE /v1/keys/{key_id}",
    "GET /v1/quotas/{owner}",
    "PUT /v1/quotas/{owner}",
    "POST /v1/webhooks",
    "GET /v1/webhooks",
    "DELETE /v1/webhooks/{webhook_id}",
    "POST /v1/webhooks/{webhook_id}/secret",
    "POST /v1/webhooks/{webhook_id}/test",
    f"POST {_JOB}/checkpoints/{{step}}/export",  # writes where its caller says, on the server's machine
)

# What ends work, or somebody's misuse of a key: an owner may do so whatever its other keys wrote in this minute.
STOPS = frozenset(
    {
        "DELETE /v1/keys/{key_id}",
        f"POST {_JOB}/cancel",
        f"POST {_JOB}/pause",
        f"POST {_ALIAS}/cancel",
        f"POST {_ALIAS}/pause",
    }
)
CHANGES_NOTHING = frozenset({f"POST {_JOB}/steering/preview"})  # of what is no GET
DOWNLOADS = frozenset({f"GET {_JOB}/checkpoints/{{step}}/download"})  # which take trained weights away

SCOPES: dict[str, Scope] = {
    route: scope
    for scope, routes in (
        (Scope.READ, _READ),
        (Scope.SUBMIT, _SUBMIT),
        (Scope.STEER, _STEER),
        (Scope.ADMIN, _ADMIN),
    )
    for route in routes
}


def scope_needed(route: str) -> Scope:
    return SCOPES.get(route, Scope.ADMIN)


def route_of(routes: Iterable[BaseRoute], asgi: Asgi) -> str | None:
    """Whose code answers a request, as they are named here; None where nobody's, and the router answers 404 or 405."""
    if asgi.get("method") == "HEAD":  # which is answered as a GET (services/head.py)
        asgi = {**asgi, "method": "GET"}
    for route in routes:
        if route.matches(asgi)[0] is Match.FULL:
            return f"{asgi.get('method', 'WEBSOCKET')} {getattr(route, 'path', '')}"
    return None
