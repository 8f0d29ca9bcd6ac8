"""Every failure as one document, `{"error": {"type", "code", "message", "param"}}`, under the status that fits it.

    ApiProblem                       what our own handlers raise
    orchestrator.spec.SpecError      422, param is the first wrong field
    orchestrator.errors.JobNotFound  404
    orchestrator.children.ChildBusy  503 with Retry-After
    rewards.verifiers.json_schema.SchemasBusy  503 with Retry-After
    orchestrator.errors.IllegalTransition  409
    orchestrator.errors.OtherVersion  409
    orchestrator.state.gpu_hours.GpuQuotaReached  429 with Retry-After
    orchestrator.errors.KeepsTooMany  429 with Retry-After
    orchestrator.errors.StoreUnavailable  503 with Retry-After
    anything else                    500, told to the log alone

No answer repeats what was sent, and every answer carries x-request-id.
"""

from __future__ import annotations

import json
import logging
import math
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator import logs
from orchestrator.children import ChildBusy
from orchestrator.errors import IllegalTransition, JobNotFound, KeepsTooMany, OtherVersion, Outage, StoreUnavailable
from orchestrator.spec_errors import SpecError
from orchestrator.state.gpu_hours import GpuHours, GpuQuotaReached
from orchestrator.state.records import finite
from rewards.verifiers.json_schema import SchemasBusy
from services.version import HEADER, version

log = logging.getLogger(__name__)

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    412: "conflict_error",
    429: "rate_limit_error",
}
_OUTAGES = {
    Outage.AWAY: "Redis does not answer; try again shortly",
    Outage.READ_ONLY: "Redis refuses writes (its memory is full, its disk fails, or it is a replica); reads are "
    "served, and the server's log says more",
    Outage.FORBIDDEN: "Redis forbids this, or was not given its scripts yet; the server's log says more",
}
_RETRY_AFTER_S = 2
_QUOTA_RETRY_AFTER_S = 30  # jobs take minutes
_MAX_PROBLEMS = 20
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class ApiProblem(Exception):
    """An answer other than success."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = headers or {}

    @property
    def document(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"type": kind, "code": self.code, "message": self.message, "param": self.param}}


class StrictJSONResponse(JSONResponse):
    """JSON that every parser takes: what isn't finite (a diverged loss) is null."""

    def render(self, content: Any) -> bytes:
        try:
            text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except ValueError:
            text = json.dumps(finite(content), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8")


def problem_response(problem: ApiProblem) -> StrictJSONResponse:
    return StrictJSONResponse(problem.document, status_code=problem.status, headers=problem.headers)


def spec_problem(problems: list[tuple[str, str]]) -> ApiProblem:
    """One answer for all that is wrong with a spec; param is the first field."""
    lines = [f"{path}: {message}" if path else message for path, message in problems[:_MAX_PROBLEMS]]
    if len(problems) > _MAX_PROBLEMS:
        lines.append(f"and {len(problems) - _MAX_PROBLEMS} more")
    return ApiProblem(422, "invalid_spec", "; ".join(lines), param=problems[0][0] or None)


def not_found(message: str) -> ApiProblem:
    return ApiProblem(404, "not_found", message)


def quota_problem(max_active: int | None) -> ApiProblem:
    message = f"{max_active} jobs of this owner wait or run already, and no more may at once"
    return ApiProblem(429, "too_many_jobs", message, headers={"retry-after": str(_QUOTA_RETRY_AFTER_S)})


def kept_problem(error: KeepsTooMany) -> ApiProblem:
    return ApiProblem(429, "too_many_kept_jobs", str(error), headers={"retry-after": str(_QUOTA_RETRY_AFTER_S)})


def gpu_quota_problem(hours: GpuHours) -> ApiProblem:
    renewal = f"{datetime.fromtimestamp(hours.renews_at, UTC):%Y-%m-%d} (UTC)"
    message = f"this owner has used {hours.used:.6g} of its {hours.quota:.6g} GPU-hours of this month; they renew on "
    message += f"{renewal}; until then only jobs with resources.device: cpu are taken whose rewards have no GPUs"
    wait_s = max(1, math.ceil(hours.renews_at - hours.now))
    return ApiProblem(429, "gpu_hours_used_up", message, headers={"retry-after": str(wait_s)})


def add_handlers(app: FastAPI) -> None:
    """Turns what the handlers raise into answers."""

    def as_problem(error: Exception, request: Request) -> ApiProblem:
        match error:
            case ApiProblem():
                return error
            case SpecError():
                return spec_problem(error.problems)
            case RequestValidationError():
                return _validation_problem(error)
            case HTTPException():
                return _http_problem(error, request)
            case JobNotFound():
                return not_found("no such job")
            case ChildBusy():
                return _busy("other files are being read")
            case SchemasBusy():
                return _busy("other JSON schemas are being checked")
            case GpuQuotaReached():
                return gpu_quota_problem(error.hours)
            case KeepsTooMany():
                return kept_problem(error)
            case IllegalTransition():
                return ApiProblem(409, "illegal_transition", str(error))
            case OtherVersion():
                return ApiProblem(409, "other_version", str(error))
            case _:
                assert isinstance(error, StoreUnavailable)
                return unavailable(error)

    async def answer(request: Request, error: Exception) -> StrictJSONResponse:
        return problem_response(as_problem(error, request))

    kinds = (
        ApiProblem,
        SpecError,
        RequestValidationError,
        HTTPException,
        JobNotFound,
        ChildBusy,
        SchemasBusy,
        GpuQuotaReached,
        KeepsTooMany,
        IllegalTransition,
        OtherVersion,
        StoreUnavailable,
    )
    for kind in kinds:
        app.add_exception_handler(kind, answer)


def _busy(why: str) -> ApiProblem:
    return ApiProblem(503, "busy", f"{why}; try again shortly", headers={"retry-after": "5"})


def unavailable(error: StoreUnavailable) -> ApiProblem:
    """Redis's own words, which name its address, stay out of it."""
    headers = {"retry-after": str(_RETRY_AFTER_S)}
    return ApiProblem(503, "store_unavailable", _OUTAGES[error.outage], headers=headers)


class RequestContext:
    """Outermost: x-request-id on every answer, and a crash becomes a 500 that says nothing but that id.

    Who showed a valid key is told this server's version too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if "principal" in scope.get("state", {}):  # strangers aren't told
                    headers[HEADER] = version()
            await send(message)

        try:
            with logs.request(request_id):
                await self._app(scope, receive, send_with_id)
        except Exception:  # whatever it was, the caller gets the error body and no trace of ours
            with logs.request(request_id):
                log.exception("request %s failed: %s %s", request_id, scope["method"], scope["path"])
            if started:
                raise  # half an answer is out: closing the connection is all that is left
            failure = ApiProblem(500, "internal_error", f"something broke here; its log has request {request_id}")
            await problem_response(failure)(scope, receive, send_with_id)


class BodyLimit:
    """Refuses bodies above a size by counting what arrives, since Content-Length may be absent or wrong."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, uploads: Mapping[tuple[str, str], int] | None = None) -> None:
        """`uploads`: (method, path) of the routes with a size of their own; 0 is no limit."""
        self._app = app
        self._max_bytes = max_bytes
        self._uploads = dict(uploads or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        max_bytes = self._uploads.get((scope["method"], scope["path"]), self._max_bytes)
        if max_bytes == 0:
            await self._app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared[:20]) > max_bytes:
            await problem_response(self._too_large(max_bytes))(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > max_bytes:
                raise self._too_large(max_bytes)
            return message

        await self._app(scope, counted, send)

    def _too_large(self, max_bytes: int) -> ApiProblem:
        message = f"the body is larger than {max_bytes} bytes"
        return ApiProblem(413, "body_too_large", message, headers={"connection": "close"})


def _validation_problem(error: RequestValidationError) -> ApiProblem:
    """Wrong query parameters and headers; pydantic's `input` stays out of it."""
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    if first["type"] == "extra_forbidden":
        return ApiProblem(422, "unknown_parameter", f"{param}: unknown parameter", param=param)
    return ApiProblem(422, "invalid_parameter", f"{param}: {first['msg']}", param=param)


def _http_problem(error: HTTPException, request: Request) -> ApiProblem:
    """What the router itself refuses: unknown paths and methods."""
    codes = {404: ("not_found", "no such path"), 405: ("method_not_allowed", "this path has no such method")}
    code, message = codes.get(error.status_code, ("invalid_request", str(error.detail)))
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if error.status_code == 405:
        headers["allow"] = ", ".join(_methods_of(request))  # the router names those of one of the path's routes
        if request.url.path == "/v1/fine_tuning/jobs":  # which clients of that API submit to
            message += "; jobs are submitted at POST /v1/jobs"
    return ApiProblem(error.status_code, code, message, headers=headers)


def _methods_of(request: Request) -> list[str]:
    """Of all routes of the path."""
    found: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return sorted(found | ({"HEAD"} if "GET" in found else set()))
