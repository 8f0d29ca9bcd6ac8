"""What a call raises, all of it with one line for a person.

    ApiError                 the server refused; `status`, `code`, `message`, `param`, `retry_after_s`, `request_id`
      Invalid                400, 415, 422: `param` names the field
      AuthenticationError    401
      PermissionDenied       403
      NotFound               404
      Conflict               409: the wrong state for it, or an Idempotency-Key used with another body
      StaleVersion           412: someone steered meanwhile
      NotReady               425: not yet; try again after a step
      RateLimited            429: `retry_after_s` says when
      Unavailable            502, 503, 504
        Unreachable          status 0: no answer at all; `idempotency_key` asks again without doing it twice

    NotSendable              a ValueError: what no request can say, such as NaN, or an id of no characters

Nothing here ever holds the key.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import httpx


class ApiError(Exception):
    """The server refused, or there is none (status 0). Its text is one line for a person.

    `request_id` is what the server's log calls the request; `idempotency_key` is the one that it was sent with.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        *,
        retry_after_s: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(" ".join(message.splitlines()))
        self.status, self.code, self.message, self.param = status, code, message, param
        self.retry_after_s, self.request_id = retry_after_s, request_id
        self.idempotency_key: str | None = None

    def __str__(self) -> str:
        text = super().__str__()
        told = self.status < 500 or self.request_id is None or self.request_id in text
        return text if told else f"{text} (request {self.request_id})"

    def __reduce__(self) -> tuple[Any, ...]:
        """So that it reaches whoever waits for another process: Exception would make it anew of its text alone."""
        return type(self), (self.status, self.code, self.message, self.param), self.__dict__


class NotSendable(ValueError):
    """No request can say it."""


class Invalid(ApiError):
    """What was sent can't be used; `param` names the field."""


class AuthenticationError(ApiError):
    """No such key, or no longer."""


class PermissionDenied(ApiError):
    """The key's scopes don't reach this."""


class NotFound(ApiError):
    """There is no such thing, for this key's owner."""


class Conflict(ApiError):
    """It is in no state for that."""


class StaleVersion(ApiError):
    """Someone steered meanwhile: read the steering again and decide anew."""


class NotReady(ApiError):
    """There will be such a thing, but not yet."""


class RateLimited(ApiError):
    """Too many requests or jobs; `retry_after_s` says when to come back."""


class Unavailable(ApiError):
    """The server, or its Redis, does not answer now."""


class Unreachable(Unavailable):
    """No answer at all: status 0."""


_BY_STATUS: Mapping[int, type[ApiError]] = {
    400: Invalid,
    401: AuthenticationError,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    412: StaleVersion,
    415: Invalid,
    422: Invalid,
    425: NotReady,
    429: RateLimited,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


def problem(response: httpx.Response) -> ApiError:
    """The error that a read answer stands for."""
    kind = _BY_STATUS.get(response.status_code, ApiError)
    told: dict[str, Any] = {
        "retry_after_s": retry_after(response.headers.get("retry-after")),
        "request_id": response.headers.get("x-request-id"),
    }
    try:
        document = response.json()
    except ValueError:
        document = None
    error = document.get("error") if isinstance(document, dict) else None
    if isinstance(error, dict) and isinstance(error.get("code"), str) and isinstance(error.get("message"), str):
        param = error.get("param")
        return kind(
            response.status_code,
            error["code"],
            error["message"],
            param if isinstance(param, str) else None,
            **told,
        )
    return unexpected(response, kind, **told)


def unexpected(response: httpx.Response, kind: type[ApiError] = ApiError, **told: Any) -> ApiError:
    message = f"{response.url} answered {response.status_code} in a form that isn't Equipoise's"
    return kind(response.status_code, "unexpected_answer", message, **told)


def unreachable(url: str, error: httpx.RequestError, idempotency_key: str | None = None) -> Unreachable:
    """`idempotency_key`: of a request that may have been carried out all the same."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        message = f"the certificate of {url} is not trusted (EQUIPOISE_CA_FILE names one that is): {error}"
        return Unreachable(0, "untrusted_certificate", message)
    if isinstance(error, httpx.ConnectError):
        return Unreachable(0, "unreachable", f"no Equipoise server at {url}: start one with `equipoise up`")
    message = f"the server at {url} broke off: {str(error) or type(error).__name__}"
    if idempotency_key is not None:
        message += f"; it may have been done all the same: Idempotency-Key {idempotency_key} asks again, and not twice"
    return Unreachable(0, "unreachable", message)


def retry_after(header: str | None) -> float | None:
    """Seconds from now, from either form of Retry-After: a number of seconds or a date. None where it is neither."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, at.timestamp() - time.time())


def document(response: httpx.Response) -> Any:
    """The JSON object that an answer is. Raises ApiError for anything else."""
    try:
        found = response.json()
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise unexpected(response)
    return found


def parsed(response: httpx.Response, text: str) -> Any:
    """A JSON object inside an answer. Raises ApiError for anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise unexpected(response)
    return found
