"""The client turns every way to fail into one ApiError with a line for a person."""

import contextlib
import copy
import pickle

import httpx
import pytest

from services.client import NO_RETRY, ApiError, Client, NotFound, Unreachable
from services.client.errors import _BY_STATUS


def answering(response: httpx.Response) -> Client:
    return Client("http://test", "key", retry=NO_RETRY, transport=httpx.MockTransport(lambda _: response))


def failing(error: Exception) -> Client:
    def fail(_: httpx.Request) -> httpx.Response:
        raise error

    return Client("http://test", "key", retry=NO_RETRY, transport=httpx.MockTransport(fail))


@pytest.mark.parametrize(("server", "warnings"), [("0.1.7", 0), ("0.2.0", 1), ("1.1.0", 1), ("", 0), (None, 0)])
@pytest.mark.parametrize("status", [200, 422])
def test_another_version_of_the_server_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, server: str | None, warnings: int, status: int
) -> None:
    monkeypatch.setattr("services.version.version", lambda: "0.1.0")
    headers = {} if server is None else {"equipoise-version": server}
    with answering(httpx.Response(status, json={"status": "ok"}, headers=headers)) as client:
        for _ in range(2):
            with contextlib.suppress(ApiError):
                client.readyz()
    told = f"the server has Equipoise '{server}', and this is 0.1.0: what the one has, the other may not know"
    assert caplog.messages == [told] * warnings


def test_an_error_document_keeps_its_parts() -> None:
    document = {"error": {"type": "x", "code": "invalid_spec", "message": "steps: too few", "param": "steps"}}
    with (
        answering(httpx.Response(422, json=document)) as client,
        pytest.raises(ApiError, match="steps: too few") as caught,
    ):
        client.rewards()
    assert (caught.value.status, caught.value.code, caught.value.param) == (422, "invalid_spec", "steps")


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(502, text="<html>bad gateway</html>"),
        httpx.Response(200, text="not json"),
        httpx.Response(200, json=[1]),
        httpx.Response(500, json={"error": "a string"}),
        httpx.Response(500, json={"detail": "x"}),
    ],
)
def test_an_answer_in_another_form_is_named_as_such(response: httpx.Response) -> None:
    with answering(response) as client, pytest.raises(ApiError, match="isn't Equipoise's") as caught:
        client.rewards()
    assert caught.value.status == response.status_code


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (httpx.ConnectError("refused"), "no Equipoise server at http://test: start one with `equipoise up`"),
        (httpx.ReadTimeout("timed out"), "the server at http://test broke off: timed out"),
        (httpx.RemoteProtocolError(""), "the server at http://test broke off: RemoteProtocolError"),
    ],
)
def test_no_answer_is_status_0_and_one_line(error: Exception, message: str) -> None:
    with failing(error) as client, pytest.raises(ApiError) as caught:
        client.rewards()
    assert (caught.value.status, str(caught.value)) == (0, message)
    with failing(error) as client:
        assert client.ready() is False


@pytest.mark.parametrize("kind", sorted({ApiError, Unreachable, *_BY_STATUS.values()}, key=lambda kind: kind.__name__))
def test_an_error_reaches_another_process(kind: type[ApiError]) -> None:
    error = kind(429, "busy", "two\nlines", "steps", retry_after_s=3.0, request_id="r1")
    error.idempotency_key = "k1"
    error.add_note("seen")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
        assert (type(other), str(other), vars(other)) == (kind, str(error), vars(error))


def test_an_error_says_what_the_log_of_the_server_calls_it() -> None:
    document = {"error": {"code": "x", "message": "no"}}
    for status, text in ((404, "no"), (503, "no (request r1)")):
        answer = httpx.Response(status, json=document, headers={"x-request-id": "r1"})
        with answering(answer) as client, pytest.raises(ApiError) as caught:
            client.rewards()
        assert (caught.value.request_id, str(caught.value)) == ("r1", text)
    assert str(NotFound(500, "x", "its log has r1", request_id="r1")) == "its log has r1"


def test_a_submission_that_broke_off_tells_the_key_that_asks_again() -> None:
    with (
        failing(httpx.ReadTimeout("timed out")) as client,
        pytest.raises(Unreachable, match="key-1 asks again") as caught,
    ):
        client.submit({}, idempotency_key="key-1")
    assert caught.value.idempotency_key == "key-1"
    with failing(httpx.ConnectError("refused")) as client, pytest.raises(Unreachable) as caught:
        client.submit({})
    assert caught.value.idempotency_key
    assert "asks again" not in str(caught.value)


def test_every_request_has_the_key_and_what_is_left_out_is_not_sent() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"data": [], "has_more": False})

    with Client("http://test/", "key", transport=httpx.MockTransport(answer)) as client:
        client.jobs(limit=3)
        client.steer("job-1", if_match=4, mode="auto")
    assert [request.headers["authorization"] for request in seen] == ["Bearer key"] * 2
    assert str(seen[0].url) == "http://test/v1/jobs?limit=3"
    assert (seen[1].headers["if-match"], seen[1].content) == ('"4"', b'{"mode":"auto"}')
