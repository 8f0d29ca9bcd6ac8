"""The two clients against the server's own list of routes, and what they do when a call fails."""

import inspect
import io
import itertools
import logging
import math
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checks import dataset_check
from orchestrator.state.redis_calls import connect
from orchestrator.state.store import JobStore
from services.app import create_app
from services.client import (
    NO_RETRY,
    ApiError,
    AsyncClient,
    AuthenticationError,
    Client,
    Conflict,
    Invalid,
    NotFound,
    NotReady,
    NotSendable,
    PermissionDenied,
    RateLimited,
    Retry,
    StaleVersion,
    Unavailable,
    Unreachable,
    errors,
    flows,
)
from services.client.api import Api
from services.client.core import Core
from services.client.methods import Method, Stream
from services.client.requests import LONG_S, Request
from services.client.sse import EventReader
from services.openapi_answers import ANSWERS
from services.settings import Settings, write_credentials

KEY = "eqp_never_to_be_seen"
FAST = Retry(first_wait_s=0.0)
ANY = inspect.Parameter.empty
METHODS = {name: item for name, item in vars(Api).items() if isinstance(item, Method | Stream)}

# What the example values of a signature are not enough for.
EXAMPLES: dict[str, Any] = {"content": io.BytesIO(b"x"), "spec": {}, "step": 3, "after": 0, "limit": 5}


def examples(written: Callable[..., Any]) -> dict[str, Any]:
    """A value for every parameter that must be given."""
    parameters = list(inspect.signature(written).parameters.values())[1:]
    return {one.name: EXAMPLES.get(one.name, "x") for one in parameters if one.default is ANY}


class Recorder(Core):
    """Keeps the requests, and sends none."""

    def __init__(self) -> None:
        self.asked: list[Request[Any]] = []

    def note(self, request: Request[Any]) -> Any:
        self.asked.append(request)
        raise LookupError

    async def call(self, request: Request[Any], *_: Any) -> Any:
        self.note(request)

    def answer(self, request: Request[Any], *_: Any, **__: Any) -> Any:
        return self.note(request)


def request_of(method: Method[Any, Any] | Stream[Any, Any]) -> Request[Any]:
    """The first one that it makes."""
    recorder = Recorder()

    async def run() -> None:
        found = method._run(recorder, **examples(method.written))
        await (anext(found) if isinstance(method, Stream) else found)

    with pytest.raises(LookupError):
        anyio.run(run)
    return recorder.asked[0]


def test_both_clients_have_the_same_methods_with_the_same_parameters() -> None:
    assert len(METHODS) > 45
    with Client("http://test", KEY) as blocking:
        other = AsyncClient("http://test", KEY)
        for name in METHODS:
            ours, theirs = getattr(blocking, name), getattr(other, name)
            assert inspect.signature(ours) == inspect.signature(theirs), name
            assert ours.__doc__ == theirs.__doc__ != None, name  # noqa: E711
        own = {name for name in dir(blocking) if not name.startswith("_")} - METHODS.keys()
        assert own == {"close", "from_env", "from_state", "url"}
        assert {name for name in dir(other) if not name.startswith("_")} - METHODS.keys() == {"aclose", *own} - {
            "close"
        }
        anyio.run(other.aclose)


def test_every_route_of_the_server_has_a_method_that_reaches_it(tmp_path: Path) -> None:
    store = JobStore(connect("redis://127.0.0.1:1"))  # never asked
    app = create_app(store, Settings(state_dir=tmp_path, key_sha256="0" * 64))
    routes = {
        (verb.upper(), path)
        for path, verbs in app.openapi()["paths"].items()
        for verb in verbs
        if not path.startswith("/v1/fine_tuning/")  # the same jobs again, for clients of another API
    }
    reached = {(request.method, request.route) for request in map(request_of, METHODS.values())}
    assert routes == reached | {("GET", "/v1/jobs/{job_id}/checkpoints/{step}/download")}  # by flows.download


def test_the_openapi_document_describes_what_the_methods_return() -> None:
    for name, method in METHODS.items():
        returned = get_type_hints(method.written)["return"]
        if get_origin(returned) is not Request or name in (
            "plan",
            "iter_events",
            "iter_rollouts",
            "prometheus",
            "report",
            "delete_webhook",
        ):
            continue  # other statuses, or no JSON
        request = request_of(method)
        assert Request[ANSWERS[f"{request.method} {request.route}"]] == returned, name


REPEATED = {
    "submit", "fork", "cancel", "pause", "plan", "preview", "validate_reward", "run_rewards", "upload_dataset",
    "revoke_key", "set_quota",
}  # fmt: skip


def test_what_changes_something_is_repeated_only_where_twice_is_once() -> None:
    requests = {name: request_of(method) for name, method in METHODS.items()}
    changing = {name for name, request in requests.items() if request.method != "GET"}
    assert {name for name in changing if requests[name].is_repeatable} == REPEATED
    assert changing - REPEATED == {
        "resume", "steer", "export", "delete_dataset", "create_webhook", "delete_webhook", "test_webhook", "create_key",
        "set_webhook_secret", "delete_job",
    }  # fmt: skip
    assert {name for name, request in requests.items() if request.method == "GET" and not request.is_repeatable} == {
        "ready"
    }


def test_what_has_the_server_read_files_is_waited_for_longer_than_it_takes_to_read_them() -> None:
    read_at_once_s, read_whole_s = dataset_check._SHORT_TIMEOUT_S, dataset_check.TIMEOUT_S
    least = dict.fromkeys(("submit", "plan", "fork", "upload_dataset"), read_whole_s) | {"dataset_rows": read_at_once_s}
    for name, seconds in least.items():
        assert (request_of(METHODS[name]).timeout_s or 0) > seconds, name
    script = Script(ok())
    with script.client(timeout_s=7) as client:
        client.plan({})
    assert script.seen[0].extensions["timeout"] == {"connect": 7, "read": LONG_S, "write": LONG_S, "pool": 7}


# -- answers in a row ---------------------------------------------------------------------------------------


class Script:
    """A server that gives these answers in turn, the last one again and again."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers, self.seen = list(answers), list[httpx.Request]()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.seen.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    def client(self, **options: Any) -> Client:
        return Client("http://test", KEY, transport=httpx.MockTransport(self), **{"retry": FAST, **options})

    def ask(self, method: str, *args: Any, **options: Any) -> Any:
        """By both clients, who must agree: what they return, or the ApiError that they raise."""
        answers = list(self.answers)
        outcomes, counts = [], []
        for call in (self._blocking, self._awaited):
            self.answers, self.seen = list(answers), []
            try:
                outcomes.append(call(method, *args, **options))
            except ApiError as error:
                outcomes.append((type(error), str(error), error.status, error.param))
                failure: ApiError | None = error
            else:
                failure = None
            counts.append([(request.method, request.url) for request in self.seen])
        assert outcomes[0] == outcomes[1]
        assert counts[0] == counts[1]
        if failure is not None:
            raise failure
        return outcomes[0]

    def _blocking(self, method: str, *args: Any, **options: Any) -> Any:
        with self.client() as client:
            found = getattr(client, method)(*args, **options)
            return list(found) if isinstance(found, Iterator) else found

    def _awaited(self, method: str, *args: Any, **options: Any) -> Any:
        async def run() -> Any:
            transport = httpx.MockTransport(self)
            async with AsyncClient("http://test", KEY, transport=transport, retry=FAST) as client:
                found = getattr(client, method)(*args, **options)
                return [item async for item in found] if isinstance(found, AsyncIterator) else await found

        return anyio.run(run)


def ok(document: Any = None) -> httpx.Response:
    return httpx.Response(200, json={"data": [], "has_more": False} if document is None else document)


def refusal(status: int, **headers: str) -> httpx.Response:
    error = {"type": "x", "code": "a_code", "message": "told\nin two lines", "param": "a.field"}
    return httpx.Response(status, json={"error": error}, headers=headers)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Invalid), (401, AuthenticationError), (403, PermissionDenied), (404, NotFound), (409, Conflict),
        (412, StaleVersion), (422, Invalid), (425, NotReady), (429, RateLimited), (502, Unavailable),
        (503, Unavailable), (504, Unavailable), (500, ApiError), (507, ApiError), (301, ApiError),
    ],
)  # fmt: skip
def test_every_refusal_has_its_kind(status: int, kind: type[ApiError]) -> None:
    with pytest.raises(ApiError) as caught:
        Script(refusal(status)).ask("rewards")
    assert type(caught.value) is kind
    assert str(caught.value) == "told in two lines"
    assert (caught.value.status, caught.value.code, caught.value.param) == (status, "a_code", "a.field")


@pytest.mark.parametrize(
    "document", [{"error": {}}, {"error": {"code": 1, "message": "x"}}, {"error": {"code": "x"}}, []]
)
def test_a_refusal_in_another_form_is_an_error_all_the_same(document: Any) -> None:
    with pytest.raises(NotFound, match="isn't Equipoise's"):
        Script(httpx.Response(404, json=document)).ask("rewards")


PASSING = [
    httpx.ConnectError("refused"), httpx.ConnectTimeout("slow"), httpx.ReadError("reset"), httpx.ReadTimeout("slow"),
    httpx.RemoteProtocolError("closed"), refusal(502), refusal(503), refusal(504), refusal(429),
]  # fmt: skip


@pytest.mark.parametrize("failure", PASSING, ids=repr)
def test_a_read_is_tried_again(failure: Any) -> None:
    script = Script(failure, failure, ok())
    assert script.ask("rewards")["data"] == []
    assert len(script.seen) == 3


@pytest.mark.parametrize("failure", PASSING, ids=repr)
def test_what_may_have_been_done_is_not_done_again(failure: Any) -> None:
    script = Script(failure, failure, ok({"version": 2, "effective_step": 1}))
    never_done = isinstance(failure, httpx.ConnectError | httpx.ConnectTimeout) or (
        isinstance(failure, httpx.Response) and failure.status_code == 429
    )
    if never_done:
        assert script.ask("steer", "job-1", if_match=1, mode="auto")["version"] == 2
        assert len(script.seen) == 3
    else:
        with pytest.raises(Unavailable):
            script.ask("steer", "job-1", if_match=1, mode="auto")
        assert len(script.seen) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 422, 425, 500])
def test_a_refusal_that_stays_one_is_not_asked_again(status: int) -> None:
    script = Script(refusal(status), ok())
    with pytest.raises(ApiError):
        script.ask("rewards")
    assert len(script.seen) == 1


def test_attempts_end_and_the_last_failure_is_told() -> None:
    script = Script(refusal(503), refusal(502), httpx.ReadError("reset"), refusal(504), ok())
    with pytest.raises(Unavailable) as caught:
        script.ask("rewards")
    assert (caught.value.status, len(script.seen)) == (504, 4)
    script.answers = [refusal(503), ok()]
    with script.client(retry=NO_RETRY) as client, pytest.raises(Unavailable):
        client.rewards()


@pytest.mark.parametrize("method", ["submit", "fork"])
def test_the_attempts_of_a_submission_share_a_key_of_their_own(method: str) -> None:
    arguments: tuple[Any, ...] = ({"name": "x"},) if method == "submit" else ("job-1",)
    options = {} if method == "submit" else {"checkpoint": "latest"}
    script = Script(httpx.ReadError("reset"), refusal(503), ok())
    with script.client() as client:
        getattr(client, method)(*arguments, **options)
        getattr(client, method)(*arguments, **options)
        getattr(client, method)(*arguments, **options, idempotency_key="mine")
    keys = [request.headers["idempotency-key"] for request in script.seen]
    assert keys[0] == keys[1] == keys[2]
    assert len({keys[2], keys[3], keys[4]}) == 3
    assert keys[4] == "mine"


def test_an_upload_is_sent_again_from_where_it_began() -> None:
    script = Script(httpx.ReadError("reset"), refusal(503), ok({"id": "ds-1"}))
    file = io.BytesIO(b"a line that was read already;content")
    file.seek(len(b"a line that was read already;"))
    with script.client() as client:
        client.upload_dataset(file, name="x", format="csv")
    assert [request.content for request in script.seen] == [b"content"] * 3
    assert {request.headers["content-length"] for request in script.seen} == {"7"}

    class Once(io.BytesIO):
        def seekable(self) -> bool:
            return False

    once = Script(refusal(503), ok())
    with once.client() as client, pytest.raises(Unavailable):
        client.upload_dataset(Once(b"content"), name="x", format="csv")
    assert len(once.seen) == 1
    assert once.seen[0].headers["transfer-encoding"] == "chunked"


def test_a_file_that_cannot_be_sent_whole_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"content")
    with Script(ok()).client() as client, path.open() as file, pytest.raises(NotSendable, match="in binary mode"):
        client.upload_dataset(file, name="x", format="csv")  # type: ignore[arg-type]

    class Cut(io.BytesIO):
        def read(self, _: int | None = None) -> bytes:
            return b""

    with Script(ok()).client() as client, pytest.raises(NotSendable, match="7 bytes early"):
        client.upload_dataset(Cut(b"content"), name="x", format="csv")


# -- patience -----------------------------------------------------------------------------------------------


def test_the_server_says_how_long_to_wait() -> None:
    naps: list[float] = []
    script = Script(refusal(429, **{"retry-after": "7"}), refusal(503, **{"retry-after": "3"}), ok())
    with script.client(retry=Retry()) as client:
        client._core.io.sleep = lambda seconds: _nap(naps, seconds)  # type: ignore[method-assign]
        client.rewards()
        assert naps == [7.0, 3.0]
        script.answers = [refusal(429, **{"retry-after": "30"}), ok()]
        with pytest.raises(RateLimited) as caught:  # longer than one waits unasked
            client.rewards()
    assert caught.value.retry_after_s == 30
    assert len(naps) == 2


async def _nap(naps: list[float], seconds: float) -> None:
    naps.append(seconds)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None), ("5", 5.0), (" 0 ", 0.0), ("-5", None), ("soon", None), ("", None), ("1.5", None), ("²", None),
        (format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True), 0.0),
        ("Fri, 99 Nov 2026 22:00:00 GMT", None),
    ],
)  # fmt: skip
def test_both_forms_of_retry_after_are_read(header: str | None, seconds: float | None) -> None:
    assert errors.retry_after(header) == seconds


@pytest.mark.parametrize("naive", [False, True])
def test_a_date_is_so_many_seconds_away(naive: bool) -> None:
    at = datetime.now(UTC) + timedelta(seconds=90)
    header = at.strftime("%a, %d %b %Y %H:%M:%S -0000") if naive else format_datetime(at, usegmt=True)
    found = errors.retry_after(header)
    assert found is not None
    assert 0 < found <= 90


@given(st.integers(1, 60), st.floats(0.001, 5), st.floats(0.001, 20))
def test_waits_double_up_to_a_bound(attempts: int, first_wait_s: float, longest_wait_s: float) -> None:
    retry = Retry(attempts=61, first_wait_s=first_wait_s, longest_wait_s=longest_wait_s, deadline_s=1e9)
    whole = min(first_wait_s * 2 ** (attempts - 1), longest_wait_s)
    wait_s = retry.wait_s(attempts, 0.0)
    assert wait_s is not None
    assert whole / 2 <= wait_s <= whole


def test_patience_ends_with_attempts_or_time() -> None:
    retry = Retry(attempts=3, first_wait_s=1, longest_wait_s=10, deadline_s=20)
    assert retry.wait_s(3, 0.0) is None
    assert retry.wait_s(1, 19.9) is None
    assert retry.wait_s(1, 15, retry_after_s=5) == 5
    assert retry.wait_s(1, 15.1, retry_after_s=5) is None
    for wrong in ({"attempts": 0}, {"first_wait_s": -1}, {"deadline_s": -1}):
        with pytest.raises(ValueError):
            Retry(**wrong)  # type: ignore[arg-type]


# -- pages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "arguments", "key", "afters"),
    [
        ("iter_jobs", {"status": "running", "metadata": {"team": "a b"}}, "id", [None, "2", "4"]),
        ("iter_events", {"job_id": "job-1", "after": 7}, "seq", ["7", "2", "4"]),
        ("iter_metrics", {"job_id": "job-1"}, "step", ["0", "2", "4"]),
        ("iter_rollouts", {"job_id": "job-1", "step": 3}, "number", ["0", "2", "4"]),
        ("iter_datasets", {}, "id", [None, "2", "4"]),
        ("iter_keys", {"owner": "me"}, "id", [None, "2", "4"]),
    ],
)
def test_all_pages_are_gone_through(method: str, arguments: Any, key: str, afters: Any) -> None:
    parts = ([1, 2], [3, 4], [5])
    answers = [ok({"data": [{key: i} for i in part], "has_more": part != [5]}) for part in parts]
    script = Script(answers[0], httpx.ReadError("reset"), *answers[1:])
    assert [item[key] for item in script.ask(method, **arguments)] == [1, 2, 3, 4, 5]
    asked = [request.url.params for request in script.seen]
    assert [params.get("after") for params in asked] == [afters[0], afters[1], afters[1], afters[2]]
    if method == "iter_jobs":
        assert {(params["status"], params["metadata[team]"]) for params in asked} == {("running", "a b")}


def test_a_list_goes_on_where_the_server_says_also_after_an_empty_page() -> None:
    pages = ([], "job-7"), ([1], "job-4"), ([], None)
    script = Script(
        *(ok({"data": [{"id": i} for i in ids], "has_more": bool(to), "next_after": to}) for ids, to in pages)
    )
    assert [job["id"] for job in script.ask("iter_jobs", status="running")] == [1]
    assert [request.url.params.get("after") for request in script.seen] == [None, "job-7", "job-4"]


def test_a_page_that_is_empty_is_the_last() -> None:
    assert Script(ok({"data": [], "has_more": True})).ask("iter_jobs") == []


# -- the key and the address --------------------------------------------------------------------------------


def test_a_redirect_is_not_followed() -> None:
    script = Script(httpx.Response(307, headers={"location": "http://elsewhere/v1/rewards"}), ok())
    with pytest.raises(ApiError, match="answered 307") as caught:
        script.ask("rewards")
    assert caught.value.status == 307
    assert [request.url.host for request in script.seen] == ["test"]


@pytest.mark.parametrize("failure", [*PASSING, refusal(401), refusal(500), httpx.Response(200, text="x")], ids=repr)
def test_the_key_is_in_no_text(failure: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Script(failure).client() as client, pytest.raises(ApiError) as caught:
        client.rewards()
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(vars(caught.value))
    assert repr(client) == "Client('http://test')"
    assert KEY not in told + caplog.text + repr(client) + repr(vars(client)) + repr(client._core.__dict__)


@pytest.mark.parametrize("url", ["", "test", "ftp://test", "http://", "http://user:pass@test", "http://test:99999"])
def test_a_bad_address_is_a_value_error(url: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError):
            kind(url, KEY)


@pytest.mark.parametrize("key", ["", " ", "a\nb", "é"])
def test_a_key_that_no_header_can_hold_is_a_value_error(key: str) -> None:
    with pytest.raises(ValueError, match="a key is ASCII text"):
        Client("http://test", key)


@pytest.mark.parametrize(("job_id", "path"), [("a/../b?c#d", "/v1/jobs/a%2F..%2Fb%3Fc%23d"), ("é", "/v1/jobs/%C3%A9")])
def test_an_id_stays_an_id(job_id: str, path: str) -> None:
    script = Script(ok())
    script.ask("job", job_id)
    assert script.seen[0].url.raw_path == path.encode()


def test_what_json_has_no_word_for_is_not_sent() -> None:
    script = Script(ok())
    for blend in (math.nan, math.inf):
        with script.client() as client, pytest.raises(NotSendable, match="can't be sent"):
            client.steer("job-1", blend=blend)
    assert script.seen == []


@pytest.mark.parametrize("job_id", ["", ".", ".."])
def test_what_is_no_id_is_not_asked_for(job_id: str) -> None:
    script = Script(ok())
    with script.client() as client, pytest.raises(ValueError, match="is no id"):
        client.job(job_id)
    assert script.seen == []


def test_a_server_is_found_by_the_environment_or_its_state(tmp_path: Path) -> None:
    environment = {"EQUIPOISE_URL": "http://env:1/", "EQUIPOISE_API_KEY": "from-env"}
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="no Equipoise server was ever started"):
            kind.from_state(tmp_path, {})
        with pytest.raises(ValueError, match="EQUIPOISE_URL and EQUIPOISE_API_KEY must be set"):
            kind.from_env({})
    write_credentials(tmp_path, "http://state:2", "from-state")
    for given_, url, key in (
        ({}, "http://state:2", "from-state"),
        ({"EQUIPOISE_URL": "http://state:2/"}, "http://state:2", "from-state"),
        ({"EQUIPOISE_API_KEY": "from-env"}, "http://state:2", "from-env"),
        (environment, "http://env:1", "from-env"),
    ):
        script = Script(ok())
        with Client.from_state(tmp_path, given_, transport=httpx.MockTransport(script)) as client:
            client.rewards()
        assert (client.url, script.seen[0].headers["authorization"]) == (url, f"Bearer {key}")
    with Client.from_env(environment) as client:
        assert client.url == "http://env:1"
    for elsewhere in ("http://env:2", "http://state:3", "https://state:2", "http://state", "http://127.0.0.1:2"):
        with pytest.raises(ValueError, match=r"EQUIPOISE_URL is not the server of .*: set EQUIPOISE_API_KEY"):
            Client.from_state(tmp_path, {"EQUIPOISE_URL": elsewhere})
    write_credentials(tmp_path, "http://127.0.0.1:2", "from-state")
    with Client.from_state(tmp_path, {"EQUIPOISE_URL": "http://localhost:2"}) as client:
        assert client.url == "http://localhost:2"
    with pytest.raises(ValueError, match="no certificates are read"):
        Client.from_env({**environment, "EQUIPOISE_CA_FILE": str(tmp_path / "absent.pem")})


def test_a_proxy_is_used_where_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one, which answers itself."""
    seen: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            content = b'{"data": [], "has_more": false}'
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # for the outside world: never ours
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        named = {"EQUIPOISE_PROXY": f"http://user:hidden@127.0.0.1:{server.server_port}", "EQUIPOISE_API_KEY": KEY}
        with Client.from_env({**named, "EQUIPOISE_URL": "http://equipoise.invalid"}) as client:
            client.jobs(limit=1)

        async def ask() -> None:
            async with AsyncClient.from_env({**named, "EQUIPOISE_URL": "http://equipoise.invalid"}) as client:
                await client.jobs(limit=1)

        anyio.run(ask)
        assert seen == ["http://equipoise.invalid/v1/jobs?limit=1"] * 2
        here = {**named, "EQUIPOISE_URL": "http://127.0.0.1:1"}
        with Client.from_env(here, retry=NO_RETRY) as client, pytest.raises(Unreachable):
            client.jobs()
        server.shutdown()
    assert len(seen) == 2
    for wrong in ("user:hidden@there:1", "socks5://there:1", "http://", "http://there:hidden"):
        with pytest.raises(ValueError, match="the address of a proxy") as caught:
            Client("http://there", KEY, proxy=wrong)
        assert "hidden" not in str(caught.value)


# -- streams ------------------------------------------------------------------------------------------------


@given(st.data(), st.sampled_from(["\n", "\r\n", "\r"]))
def test_events_are_the_same_however_they_are_cut(data: st.DataObject, end: str) -> None:
    lines = [
        ": keep-alive",
        "",
        "id: 1",
        "event: x",
        'data: {"a": "é\u2028"}',
        "",
        "data:two",
        "data: lines",
        "",
        "data",
    ]
    raw = (end.join(lines) + end).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)))))
    reader = EventReader()
    parts = [raw[i:j] for i, j in itertools.pairwise([0, *cuts, len(raw)])]
    found = [event for part in parts for event in reader.feed(part)]
    assert found == ['{"a": "é\u2028"}', "two\nlines"]  # the last one is not whole


class Broken(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that breaks off."""

    def __init__(self, chunks: Iterable[bytes], error: Exception | None = None) -> None:
        self.chunks, self.error = list(chunks), error

    def __iter__(self) -> Iterator[bytes]:
        yield from self.chunks
        if self.error is not None:
            raise self.error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk


def sse(
    *seqs: int, rest: bytes = b"", error: Exception | None = None, cursor: int | None = None
) -> Callable[[], httpx.Response]:
    events = [f'id: {seq}\nevent: x\ndata: {{"seq": {seq}, "type": "x"}}\n\n'.encode() for seq in seqs]
    headers = {"content-type": "text/event-stream"} | ({} if cursor is None else {"event-cursor": str(cursor)})
    return lambda: httpx.Response(200, headers=headers, stream=Broken([*events, rest], error))


class Streams(Script):
    """Answers that are made anew for each request."""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        answer: Any = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            return answer()
        if isinstance(answer.stream, Broken):
            return answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


OVER = httpx.Response(204)


def test_a_stream_goes_on_where_it_was_and_repeats_nothing() -> None:
    script = Streams(
        sse(1, 2, rest=b'id: 3\ndata: {"seq": 3', error=httpx.ReadError("reset")),  # type: ignore[arg-type]
        httpx.ConnectError("refused"),
        refusal(503),
        refusal(429),
        sse(2, 3),  # type: ignore[arg-type]  # a server that sends more than was asked
        sse(),  # type: ignore[arg-type]
        sse(4, error=httpx.RemoteProtocolError("closed")),  # type: ignore[arg-type]
        OVER,
    )
    assert [event["seq"] for event in script.ask("stream_events", "job-1")] == [1, 2, 3, 4]
    assert [request.headers["last-event-id"] for request in script.seen] == ["0", "2", "2", "2", "2", "3", "3", "4"]
    assert {request.headers["accept"] for request in script.seen} == {"text/event-stream"}


def test_a_stream_of_a_job_that_was_put_back_starts_over() -> None:
    script = Streams(sse(1, 2, 3), sse(1, 2, cursor=0), sse(2, 3, cursor=2), OVER)  # type: ignore[arg-type]
    assert [event["seq"] for event in script.ask("stream_events", "job-1")] == [1, 2, 3, 1, 2, 3]
    assert [request.headers["last-event-id"] for request in script.seen] == ["0", "3", "2", "3"]


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ((sse(1), refusal(401)), AuthenticationError),  # the key was revoked
        ((sse(1), refusal(404)), NotFound),
        ((sse(1), httpx.Response(200, text="<html>")), ApiError),
        ((sse(1, rest=b"data: [\n\n"),), ApiError),
    ],
)
def test_a_stream_ends_where_asking_again_helps_nobody(answers: Any, kind: type[ApiError]) -> None:
    with pytest.raises(kind):
        Streams(*answers).ask("stream_events", "job-1")


def test_a_stream_gives_up_on_a_server_that_stays_away() -> None:
    script = Streams(sse(1), *[httpx.ConnectError("refused")] * 5000)  # type: ignore[arg-type]
    with script.client() as client:
        events = client.stream_events("job-1", patience_s=0.02)
        assert next(events)["seq"] == 1
        with pytest.raises(Unreachable):
            next(events)
    assert len(script.seen) > 2


def test_a_stream_gives_up_on_a_server_that_answers_and_then_says_nothing() -> None:
    silent = sse(error=httpx.ReadTimeout("nothing"))
    script = Streams(sse(1, error=httpx.ReadError("reset")), *[silent] * 5000)  # type: ignore[arg-type]
    with script.client() as client:
        events = client.stream_events("job-1", patience_s=0.02)
        assert next(events)["seq"] == 1
        with pytest.raises(Unreachable):
            next(events)
    assert len(script.seen) > 2


def test_a_reader_may_leave_a_stream() -> None:
    closed: list[bool] = []

    class Watched(Broken):
        def close(self) -> None:
            closed.append(True)

        async def aclose(self) -> None:
            closed.append(True)

    headers = {"content-type": "text/event-stream"}
    body = b'data: {"seq": 1}\n\ndata: {"seq": 2}\n\n'
    with Streams(httpx.Response(200, headers=headers, stream=Watched([body]))).client() as client:
        events = client.stream_events("job-1")
        assert next(events)["seq"] == 1
        assert closed == []
        events.close()
    assert closed == [True]


def test_waiting_ends_with_the_status_or_the_time() -> None:
    running, done = ok({"id": "job-1", "status": "running"}), ok({"id": "job-1", "status": "failed"})
    script = Script(running, refusal(503), httpx.ReadError("reset"), running, done)
    assert script.ask("wait", "job-1", until={"succeeded"}, poll_s=0)["status"] == "failed"
    with (
        Script(running).client() as client,
        pytest.raises(TimeoutError, match="job-1 is not cancelled, failed, paused"),
    ):
        client.wait("job-1", timeout_s=0.01, poll_s=0)
    with Script(refusal(503)).client() as client, pytest.raises(Unavailable):
        client.wait("job-1", poll_s=0, patience_s=0.01)
    assert flows.RESTING > flows.FINAL


class Clock:
    """Time that passes only where somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("limit", ["read", "connect"])
@pytest.mark.parametrize(
    ("timeout_s", "ends_s"), [(5, 5), (40, 40), (45.5, 45.5), (0, 1)], ids=["short", "two", "fraction", "once"]
)
def test_waiting_for_a_server_that_says_nothing_ends_with_the_time(
    monkeypatch: pytest.MonkeyPatch, limit: str, timeout_s: float, ends_s: float
) -> None:
    clock = Clock()

    def silent(request: httpx.Request) -> httpx.Response:
        clock.now += request.extensions["timeout"][limit]
        raise httpx.ReadTimeout("nothing")

    monkeypatch.setattr(flows, "time", clock)
    with Client("http://test", KEY, transport=httpx.MockTransport(silent), timeout_s=30) as client:
        client._core.io.sleep = clock.sleep  # type: ignore[method-assign]
        with pytest.raises(TimeoutError, match="is not"):
            client.wait("job-1", timeout_s=timeout_s)
        assert clock.now == pytest.approx(ends_s, abs=1.0)
        with pytest.raises(Unavailable):
            client.wait("job-1", timeout_s=500, patience_s=120)


# -- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["blocking", "awaited"])
def test_a_download_is_whole_or_not_there(tmp_path: Path, how: str) -> None:
    target = tmp_path / "checkpoint.tar"
    target.write_bytes(b"old")
    half = httpx.Response(200, stream=Broken([b"ab", b"cd"], httpx.RemoteProtocolError("closed early")))
    whole = httpx.Response(200, stream=Broken([b"ab", b"cd", b"ef"]))
    for answer, kept in ((half, b"old"), (refusal(404), b"old"), (whole, b"abcdef")):
        script = Streams(answer)
        call = script._blocking if how == "blocking" else script._awaited
        if kept == b"old":
            with pytest.raises(ApiError):
                call("download", "job-1", 4, target)
        else:
            assert call("download", "job-1", 4, str(target)) == target
        assert target.read_bytes() == kept
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.tar"]
        assert script.seen[0].url.path == "/v1/jobs/job-1/checkpoints/4/download"
        assert script.seen[0].extensions["timeout"]["read"] == LONG_S


@pytest.mark.parametrize("target", [".", "..", "folder"])
def test_a_download_to_a_directory_asks_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    script = Streams(refusal(404))
    message = f"to: expected the path of a file, such as model.tar, but '{target}' is a directory"
    with script.client() as client, pytest.raises(ValueError, match=message):
        client.download("job-1", 4, target)
    assert script.seen == []


def test_a_blocking_client_works_inside_an_event_loop() -> None:
    async def run() -> None:
        with Script(ok({"data": [{"id": 1}], "has_more": True}), ok()).client() as client:
            assert [job["id"] for job in client.iter_jobs()] == [1]

    anyio.run(run)
