"""Reading a JSON body: stricter than json.loads, so that nothing that can't be stored reaches a handler."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from orchestrator.spec_errors import problem
from services.errors import ApiProblem

Body = TypeVar("Body", bound=BaseModel)

_MAX_DEPTH = 64
_MAX_PLACE = 200  # characters of a path in a refusal, whose keys are the caller's
_LARGE_BYTES = 64 << 10  # parsed in ms, for which others would wait


async def json_body(request: Request) -> Any:
    """FastAPI dependency: the parsed body. The media type is required, which keeps 'simple' cross-site posts out."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiProblem(422, "content_type", "expected a body with 'Content-Type: application/json'")
    refuse_encoded(request)
    body = await request.body()
    if len(body) < _LARGE_BYTES:
        return parse_json(body)
    return await run_in_threadpool(parse_json, body)


def refuse_encoded(request: Request) -> None:
    """A compressed body, which might become any size. Raises ApiProblem: 415."""
    if request.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
        message = "Content-Encoding: no encoding is taken; send the body as it is"
        raise ApiProblem(415, "unsupported_encoding", message, param="Content-Encoding")


async def optional_json_body(request: Request) -> Any:
    """The same where the body may be left out."""
    return await json_body(request) if await request.body() else None


def parsed(kind: type[Body], document: Any, code: str) -> Body:
    """The body as `kind` has it. Raises ApiProblem: 422 with this code, which names the first field that is wrong."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        param, message = problem(kind, first_of(error))
        raise ApiProblem(422, code, f"{param or 'body'}: {message}", param=param or None) from None


def first_of(error: ValidationError) -> Any:
    """What to tell of several: an unknown field before all, as a field that is missing may be that one, misspelt."""
    found = error.errors(include_input=False, include_url=False)
    return next((detail for detail in found if detail["type"] == "extra_forbidden"), found[0])


def parse_json(body: bytes) -> Any:
    """Parsed JSON without NaN, infinities, lone surrogates or duplicate keys.

    Text that isn't JSON is 400; JSON with a value that no field can hold is 422. The message never repeats a value.
    """
    if body.startswith(codecs.BOM_UTF8):
        raise ApiProblem(400, "invalid_json", "the body begins with a byte order mark: send UTF-8 without one")
    try:
        text = body.decode("utf-8")
        document = json.loads(
            text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite_float
        )
        _refuse_unstorable(document)
    except ApiProblem as refusal:
        raise _placed(refusal, text) from None
    except UnicodeDecodeError:
        raise ApiProblem(400, "invalid_json", "the body is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ApiProblem(400, "invalid_json", f"the body is not valid JSON ({where})") from None
    except RecursionError:
        raise ApiProblem(400, "invalid_json", "the body is nested too deeply") from None
    except ValueError:  # Python's own limit on the digits of an integer
        raise ApiProblem(400, "invalid_json", "the body has an integer with too many digits") from None
    return document


class _Pairs(list[tuple[str, Any]]):
    """An object as it was written."""


def _placed(refusal: ApiProblem, text: str) -> ApiProblem:
    """With the field that it is about, which json does not tell those who refuse: the text is read once more for it."""
    if refusal.code not in _ODD:
        return refusal
    try:
        place = _place(json.loads(text, object_pairs_hook=_Pairs), _ODD[refusal.code])
    except (ValueError, RecursionError):  # something else is wrong behind it
        return refusal
    if not place or len(place) > _MAX_PLACE or not place.isprintable():
        return refusal
    return ApiProblem(refusal.status, refusal.code, f"{place}: {refusal.message}", param=place)


def _place(document: Any, odd: Callable[[Any], list[str] | None]) -> str:
    """Dotted path of the first odd value; empty where that is the whole, or there is none.

    `odd` gives what is to stand behind the value's own path; None of a value that is not odd.
    """
    waiting: list[tuple[_Link, Any]] = [(None, document)]
    while waiting:
        link, value = waiting.pop()
        if (within := odd(value)) is not None:
            return ".".join([*_parts(link), *within])
        children = value if isinstance(value, _Pairs) else enumerate(value) if isinstance(value, list) else ()
        waiting += reversed([((link, key), child) for key, child in children])
    return ""


def _parts(link: _Link) -> list[str]:
    parts: list[str] = []
    while link is not None:
        link, key = link
        parts.append(str(key))
    return parts[::-1]


def _infinite(value: Any) -> list[str] | None:
    return [] if isinstance(value, float) and not math.isfinite(value) else None


def _twice(value: Any) -> list[str] | None:
    seen: set[str] = set()
    for key, _ in value if isinstance(value, _Pairs) else ():
        if key in seen:
            return [key]
        seen.add(key)
    return None


def _half_a_pair(value: Any) -> list[str] | None:
    texts = [value] if isinstance(value, str) else [key for key, _ in value] if isinstance(value, _Pairs) else []
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError:
        return []
    return None


_Link = tuple[Any, str | int] | None  # of a value: that of what holds it, and its key there
_ODD: dict[str, Callable[[Any], list[str] | None]] = {
    "not_finite": _infinite,
    "duplicate_key": _twice,
    "invalid_text": _half_a_pair,
}


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ApiProblem(422, "duplicate_key", "an object in the body has the same key twice")
    return mapping


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _refuse_constant(text)
    return value


def _refuse_constant(_: str) -> NoReturn:
    raise ApiProblem(422, "not_finite", "numbers in the body must be finite: no NaN, Infinity or overflowing exponent")


def _refuse_unstorable(document: Any) -> None:
    """Deep nesting and half surrogate pairs parse, and would fail only later, where the job or an answer is written."""
    level = [document]
    for _ in range(_MAX_DEPTH):
        texts = [value for value in level if isinstance(value, str)]
        texts += [key for value in level if isinstance(value, dict) for key in value]
        try:
            "".join(texts).encode("utf-8")
        except UnicodeEncodeError:
            raise ApiProblem(422, "invalid_text", "text in the body has half of a surrogate pair") from None
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise ApiProblem(400, "invalid_json", "the body is nested too deeply")
