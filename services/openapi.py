"""The OpenAPI document: FastAPI's, with every refusal of every route, what a made id is good for, and examples."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from orchestrator.spec import JobSpec
from orchestrator.specs.reward_job import RewardJobSpec
from services.auth import PUBLIC_PATHS
from services.openapi_answers import describe_answers, webhooks
from services.openapi_examples import show_examples

_METHODS = frozenset({"get", "put", "post", "patch", "delete"})
_REFUSALS = {
    400: "not HTTP; or the body is not JSON, or ends early",
    401: "no valid key",
    403: "the key does not reach this",
    404: "nothing of the key's owner has this name",
    409: "it does not fit the present state, or what was sent before",
    412: "another version is current",
    408: "the body comes too slowly",
    413: "the body is too large",
    415: "the body is compressed",
    422: "a value is wrong, unknown or missing; param names it",
    425: "not there yet",
    429: "too much at once; Retry-After says when to try again",
    431: "the head of the request is too large",
    500: "broken here; the log has the x-request-id",
    501: "this server was installed without what that needs",
    503: "Redis does not answer or refuses writes, or the server is busy; try again after Retry-After",
    507: "the disk is full",
}
_JOB, _ALIAS = "/v1/jobs/{job_id}", "/v1/fine_tuning/jobs/{job_id}"
_MORE = {  # what does not follow from an operation's shape
    "GET /v1/jobs": (429,),
    "GET /v1/fine_tuning/jobs": (429,),
    "GET /v1/jobs/compare": (404, 409, 429),
    "POST /v1/jobs": (409,),
    f"DELETE {_JOB}": (409,),
    f"GET {_JOB}/events": (429,),
    **{f"POST {path}/{action}": (409,) for path in (_JOB, _ALIAS) for action in ("cancel", "pause", "resume")},
    f"POST {_JOB}/fork": (409, 425, 507),
    **{f"GET {_JOB}/{part}": (409,) for part in ("steering", "front", "rollouts")},  # of a job that trains a reward
    f"PUT {_JOB}/steering": (409, 412),
    f"POST {_JOB}/steering/preview": (409, 425, 501),
    f"POST {_JOB}/checkpoints/{{step}}/export": (409, 425),
    f"GET {_JOB}/checkpoints/{{step}}/download": (409, 425, 429),
    f"GET {_JOB}/report": (425,),
    "POST /v1/keys": (409,),
    "POST /v1/webhooks": (409,),
    "POST /v1/datasets": (507,),
    "GET /v1/datasets/{dataset_id}/rows": (409, 429),
}


def operation_id(route: APIRoute) -> str:
    """What a generated client calls its method."""
    return f"fine_tuning_{route.name}" if route.path.startswith("/v1/fine_tuning/") else route.name


def openapi(app: FastAPI) -> dict[str, Any]:
    """Made once, with the body that api/jobs.py reads by hand and the key that the middleware wants."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for root in (JobSpec, RewardJobSpec):
            spec = root.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(spec.pop("$defs", {}))
            schemas[root.__name__] = spec
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        schemas["Error"] = _error_schema()
        describe_answers(document["paths"], schemas)
        document["webhooks"] = webhooks(schemas)
        _describe_refusals(document["paths"])
        _link(document["paths"])
        show_examples(document["paths"])
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
        for path in PUBLIC_PATHS:
            document["paths"][path]["get"]["security"] = []
        app.openapi_schema = document
    return app.openapi_schema


def _error_schema() -> dict[str, Any]:
    """The shape that services/errors.py gives every answer but success."""
    text = {"type": "string"}
    fields = {"type": text, "code": text, "message": text, "param": {"type": ["string", "null"]}}
    error = {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": "object", "properties": {"error": error}, "required": ["error"]}


def _describe_refusals(paths: dict[str, Any]) -> None:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for path, methods in paths.items():
        for method in _METHODS & methods.keys():
            responses = methods[method]["responses"]
            for status in sorted(_refusals(method, path, methods[method])):
                responses[str(status)] = {"description": _REFUSALS[status], "content": content}
                if status in (429, 503):
                    responses[str(status)]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}


def _refusals(method: str, path: str, operation: dict[str, Any]) -> set[int]:
    found = {400, 431, 500, *_MORE.get(f"{method.upper()} {path}", ())}
    if path not in PUBLIC_PATHS:
        found |= {401, 403, 503}
    if method != "get":
        found |= {413, 429}
    if "{" in path:
        found |= {404}
    if "requestBody" in operation:
        found |= {408, 415, 422}
    if operation.get("parameters") or path.startswith("/v1/"):  # unknown ones are refused there (services/query.py)
        found |= {422}
    return found


def _link(paths: dict[str, Any]) -> None:
    """What a collection's POST makes is what the paths below it name."""
    for path, methods in paths.items():
        made = methods.get("post", {}).get("responses", {}).get("201")
        if made is None or "{" in path:
            continue
        roots = (path, "/v1/fine_tuning/jobs") if path == "/v1/jobs" else (path,)
        made["links"] = {
            operation["operationId"]: {
                "operationId": operation["operationId"],
                "parameters": {below.partition("{")[2].partition("}")[0]: "$response.body#/id"},
            }
            for root in roots
            for below, operations in paths.items()
            if below.startswith(f"{root}/{{")
            for method, operation in operations.items()
            if method in _METHODS
        }
