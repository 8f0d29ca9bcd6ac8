"""What a JSON body may hold, beyond the table that tests/integration/api/test_api.py sends over a socket."""

import functools
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import Message

from services.api import fork as fork_api
from services.api import keys as keys_api
from services.api import quotas as quotas_api
from services.api import results as results_api
from services.api import rewards as rewards_api
from services.api import webhooks as webhooks_api
from services.body import json_body, parse_json, parsed
from services.errors import ApiProblem, StrictJSONResponse

DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)


def encodable(document: object) -> bool:
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@given(DOCUMENTS)
def test_what_parses_can_be_answered_again(document: object) -> None:
    body = json.dumps(document).encode()
    if not encodable(document):
        with pytest.raises(ApiProblem):
            parse_json(body)
        return
    assert json.loads(bytes(StrictJSONResponse(parse_json(body)).body)) == document


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(body: bytes) -> None:
    with suppress(ApiProblem):
        parse_json(body)


def test_a_surrogate_pair_is_ordinary_text() -> None:
    assert parse_json(b'"\\ud83d\\ude00"') == "\U0001f600"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b'{"mode": "blend", "weights": {"accuracy": NaN}}', "not_finite", "weights.accuracy"),
        (b'{"sweep": [{"a": 1}, {"a": 1, "b": -1e999}]}', "not_finite", "sweep.1.b"),
        (b'{"a": {"x": 1, "y": 2, "x": 3}}', "duplicate_key", "a.x"),
        (b'{"a": ["b", {"c": "\\ud800"}]}', "invalid_text", "a.1.c"),
        (b'{"a": {"\\ud800": 1}}', "invalid_text", "a"),
        (b"NaN", "not_finite", None),
        (b'{"x": 1, "x": 3}', "duplicate_key", "x"),
        (b'[1, {"x": 1, "x": {"y": 1, "y": 2}}]', "duplicate_key", "1.x"),
        (b'{"a\\n": NaN}', "not_finite", None),
        (b'{"' + b"a" * 201 + b'": NaN}', "not_finite", None),
        (b'{"a": NaN, "b": ' + b"9" * 5000 + b"}", "not_finite", None),
        (b'{"a": NaN, "b": ' + b"[" * 100_000, "not_finite", None),
    ],
)
def test_what_no_field_can_hold_is_told_with_its_place(body: bytes, code: str, param: str | None) -> None:
    with pytest.raises(ApiProblem) as caught:
        parse_json(body)
    assert (caught.value.status, caught.value.code, caught.value.param) == (422, code, param)
    assert caught.value.message.startswith(f"{param}: " if param else ("numbers in", "an object in", "text in"))


def test_a_long_key_over_many_values_costs_little() -> None:
    began = time.monotonic()
    with pytest.raises(ApiProblem):
        parse_json(b'{"' + b"a" * 500_000 + b'": [' + b"1," * 200_000 + b"NaN]}")
    assert time.monotonic() - began < 5


def test_nesting_is_accepted_up_to_its_limit() -> None:
    assert parse_json(b"[" * 64 + b"]" * 64)
    with pytest.raises(ApiProblem, match="nested"):
        parse_json(b"[" * 65 + b"]" * 65)


FORK, KEY = {"checkpoint": 2}, {"name": "x", "scopes": ["read"]}
FORK_FIELDS = "checkpoint, weights, sweep, changes, name, steps"
SAMPLE = {"prompt": "a", "completon": "b"}


@pytest.mark.parametrize(
    ("check", "document", "message"),
    [
        (fork_api._checked, {**FORK, "wieghts": {}}, "wieghts: unknown field, did you mean 'weights'?"),
        (fork_api._checked, {**FORK, "x": 1}, f"x: unknown field; fields are {FORK_FIELDS}"),
        (fork_api._checked, {"chekpoint": 2}, "chekpoint: unknown field, did you mean 'checkpoint'?"),
        (fork_api._checked, [], f"body: expected a mapping of fields: {FORK_FIELDS}"),
        (keys_api.NewKey, {**KEY, "expires_at": 1}, "expires_at: unknown field, did you mean 'expires_in_s'?"),
        (keys_api.NewKey, {**KEY, "expires_in": 1}, "expires_in: unknown field, did you mean 'expires_in_s'?"),
        (webhooks_api.NewWebhook, {"url": "x", "event": []}, "event: unknown field, did you mean 'events'?"),
        (rewards_api.RewardChoice, {"name": "math", "option": {}}, "option: unknown field, did you mean 'options'?"),
        (
            rewards_api.RewardRun,
            {"rewards": [{"name": "math"}], "samples": [SAMPLE]},
            "samples.0.completon: unknown field, did you mean 'completion'?",
        ),
        (quotas_api.Quota, {"gpu_hour": 3, "gpu_hours": 3}, "gpu_hour: unknown field, did you mean 'gpu_hours'?"),
        (results_api.Export, {"to": "/x", "step": 3}, "step: unknown field; fields are to"),
    ],
)
def test_a_field_that_a_body_does_not_have_gets_the_nearest_name(
    check: Callable[[object], object] | type[BaseModel], document: object, message: str
) -> None:
    ask = functools.partial(parsed, check, code="invalid") if isinstance(check, type) else check
    with pytest.raises(ApiProblem) as caught:
        ask(document)
    assert caught.value.message == message
    assert (caught.value.status, caught.value.param) == (422, None if document == [] else message.partition(":")[0])


def test_answers_have_null_for_what_is_not_finite() -> None:
    content = {"loss": float("nan"), "series": [1.0, float("inf")], "pair": (2.0, float("-inf"))}
    assert json.loads(bytes(StrictJSONResponse(content).body)) == {
        "loss": None, "series": [1.0, None], "pair": [2.0, None]
    }  # fmt: skip


def test_large_bodies_are_parsed_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def parse(body: bytes) -> object:
        threads.append(threading.current_thread())
        return parse_json(body)

    async def ask(body: bytes) -> object:
        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        headers = [(b"content-type", b"application/json")]
        return await json_body(Request({"type": "http", "headers": headers}, receive))

    monkeypatch.setattr("services.body.parse_json", parse)
    small, large = b'"x"', b'"' + b"x" * (64 << 10) + b'"'
    for body in (small, large):
        assert anyio.run(ask, body) == json.loads(body)
    assert [thread is threading.current_thread() for thread in threads] == [True, False]
