"""Webhooks on a real Redis, delivered to a real HTTP server."""

import hashlib
import hmac
import ipaddress
import itertools
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest

from orchestrator.state.embedded_redis import EmbeddedRedis, connect
from orchestrator.state.states import JobStatus
from orchestrator.state.store import Event, JobStore
from orchestrator.webhooks import delivery as webhook_delivery
from orchestrator.webhooks import dispatcher as dispatcher_module
from orchestrator.webhooks.delivery import DeliveryError, post
from orchestrator.webhooks.dispatcher import LOCK, Dispatcher, delivery_id
from orchestrator.webhooks.subscriptions import (
    EVENTS,
    MAX_WEBHOOKS,
    Seen,
    TooManyWebhooks,
    WebhookNotFound,
    WebhookStore,
)
from rewards import addresses as addresses_module
from rewards.addresses import AddressError, addresses_of, check_url, is_public
from services.api.webhooks import EventName
from services.keys import digest
from services.server import ApiServer
from services.settings import Settings, write_credentials
from tests.cli_forks import Commands

KEY = "eqp_test"


class Receiver:
    """A server that keeps what it got; `answer` decides what it says."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = lambda handler: handler.send_response(204)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append(({key.lower(): value for key, value in self.headers.items()}, body))
                receiver.answer(self)
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?x=1"

    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield receiver
    receiver.server.shutdown()
    thread.join()
    receiver.server.server_close()


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dispatcher works for all owners, so it gets a Redis without other tests' jobs."""
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as redis:
        yield redis.url


@pytest.fixture
def store(own_redis: str) -> Iterator[JobStore]:
    with connect(own_redis) as client:
        yield JobStore(client, owner=f"hooks-{uuid.uuid4().hex}")


@contextmanager
def dispatching(store: JobStore, **options: Any) -> Iterator[Dispatcher]:
    dispatcher = Dispatcher(store, **{"allow_private": True, "poll_s": 0.02, "backoff_s": 0.02, **options})
    thread = threading.Thread(target=dispatcher.run)
    thread.start()
    try:
        yield dispatcher
    finally:
        dispatcher.request_stop()
        thread.join(20)
        assert not thread.is_alive()


def submit(store: JobStore) -> str:
    job_id = f"job-{uuid.uuid4().hex[:12]}"
    store.submit("{}", name="x", job_id=job_id, steering={})
    return job_id


def wait(met: Callable[[], Any], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- delivery -----------------------------------------------------------------------------------------------


def test_what_happens_is_told_signed_and_once(store: JobStore, receiver: Receiver) -> None:
    before = submit(store)
    store.request_cancel(before)
    wanted = ["job.cancelled", "job.paused", "guardrail.breached", "reward.rows_dropped"]
    webhook = WebhookStore(store).add(receiver.url, wanted)
    job_id = submit(store)
    with dispatching(store):
        store.request_pause(job_id)
        store.event(job_id, "guardrail.breached", {"metric": "kl"})
        store.event(job_id, "evaluated", {})
        store.event(job_id, "reward.rows_dropped", {"reward": "math", "count": 2})
        store.resume(job_id)
        store.request_cancel(job_id)
        wait(lambda: len(receiver.got) >= 4)
        time.sleep(0.2)
    documents = receiver.documents()
    assert [document["type"] for document in documents] == [
        "job.paused", "guardrail.breached", "reward.rows_dropped", "job.cancelled",
    ]  # fmt: skip
    assert {document["job_id"] for document in documents} == {job_id}
    assert documents[1]["data"] == {"metric": "kl"}
    for headers, body in receiver.got:
        sent = dict(part.split("=") for part in headers["webhook-signature"].split(","))
        signed = f"{headers['webhook-id']}.{sent['t']}.".encode() + body
        assert sent["v1"] == hmac.new(webhook.secret.encode(), signed, hashlib.sha256).hexdigest()
        assert abs(time.time() - int(sent["t"])) < 30
        assert json.loads(body)["id"] == headers["webhook-id"]
        assert webhook.secret not in str(headers) + body.decode()
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 4


def test_a_secret_that_is_replaced_signs_what_comes_after(store: JobStore, receiver: Receiver) -> None:
    webhooks = WebhookStore(store)
    first = webhooks.add(receiver.url, ["job.paused"])
    job_id = submit(store)

    def signed_with(secret: str) -> bool:
        headers, body = receiver.got[-1]
        sent = dict(part.split("=") for part in headers["webhook-signature"].split(","))
        signed = f"{headers['webhook-id']}.{sent['t']}.".encode() + body
        return sent["v1"] == hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()

    with dispatching(store):
        store.request_pause(job_id)
        wait(lambda: len(receiver.got) == 1)
        assert signed_with(first.secret)
        second = webhooks.set_secret(first.webhook_id)
        assert second.secret != first.secret
        store.resume(job_id)
        store.request_pause(job_id)
        wait(lambda: len(receiver.got) == 2)
        assert signed_with(second.secret)
    assert webhooks.all() == [second]
    used: list[str] = []
    busy = Dispatcher(store, allow_private=True, deliver=lambda *_, secret, **__: used.append(secret) or 204)
    assert busy._tell(store, webhooks, first, job_id, store.events(job_id).items[-1]), "which it read before"
    assert used == [second.secret]
    webhooks.remove(first.webhook_id)
    with pytest.raises(WebhookNotFound):
        webhooks.set_secret(first.webhook_id)
    assert webhooks.all() == []


def test_what_the_api_offers_is_what_is_told() -> None:
    assert get_args(EventName) == EVENTS


def test_a_restart_neither_loses_nor_floods(store: JobStore, receiver: Receiver) -> None:
    WebhookStore(store).add(receiver.url, ["job.paused", "job.cancelled"])
    first = submit(store)
    with dispatching(store):
        store.request_pause(first)
        wait(lambda: receiver.got)
    store.request_cancel(first)  # while nobody dispatches
    second = submit(store)
    store.request_pause(second)
    with dispatching(store):
        wait(lambda: len(receiver.got) >= 3)
        time.sleep(0.2)
    told = [(document["job_id"], document["type"]) for document in receiver.documents()]
    assert told == [(first, "job.paused"), (first, "job.cancelled"), (second, "job.paused")]


def test_a_refused_delivery_comes_again_under_its_id_and_holds_its_place(store: JobStore, receiver: Receiver) -> None:
    webhooks = WebhookStore(store)
    webhook = webhooks.add(receiver.url, list(EVENTS))
    receiver.answer = lambda handler: handler.send_response(500)
    job_id = submit(store)
    store.request_pause(job_id)
    store.request_cancel(job_id)
    with dispatching(store, max_attempts=3):
        wait(lambda: webhooks.state(webhook.webhook_id).failing)
        assert webhooks.state(webhook.webhook_id).last_error == "answered 500"
        assert {document["type"] for document in receiver.documents()} == {"job.paused"}
        receiver.answer = lambda handler: handler.send_response(200)
        wait(lambda: receiver.documents()[-1]["type"] == "job.cancelled")
        wait(lambda: webhooks.state(webhook.webhook_id).last_error is None)
    state = webhooks.state(webhook.webhook_id)
    assert (state.failing, state.dropped) == (False, 0)
    assert state.last_at is not None
    assert len({document["id"] for document in receiver.documents()}) == 2


def test_another_event_of_the_same_number_has_another_id() -> None:
    """A Redis that is put back from an older copy counts on from there: a receiver that drops what it had must not."""
    first = Event(seq=4, type="evaluated", at=1000.25, level="info", data={})
    ids = {delivery_id("w", "j", event) for event in (first, replace(first, at=2000.5), replace(first, type="other"))}
    assert len(ids) == 3
    assert delivery_id("w", "j", replace(first, data={"step": 1})) in ids, "the same for every try"


def test_tries_come_ever_less_often(store: JobStore, receiver: Receiver) -> None:
    WebhookStore(store).add(receiver.url, ["job.paused"])
    times: list[float] = []

    def refuse(handler: BaseHTTPRequestHandler) -> None:
        times.append(time.monotonic())
        handler.send_response(503)

    receiver.answer = refuse
    with dispatching(store, backoff_s=0.1):
        store.request_pause(submit(store))
        wait(lambda: len(times) >= 4)
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert all(pause >= 0.1 * 2**i for i, pause in enumerate(pauses))


def test_an_event_that_is_too_old_is_given_up(store: JobStore, receiver: Receiver) -> None:
    webhooks = WebhookStore(store)
    webhook = webhooks.add(receiver.url, ["job.paused"])
    receiver.answer = lambda handler: handler.send_response(500)
    with dispatching(store, max_age_s=0.0):
        store.request_pause(submit(store))
        wait(lambda: webhooks.state(webhook.webhook_id).dropped == 1)
        wait(lambda: webhooks.behind(webhook.webhook_id) == [])
    assert len(receiver.got) == 1


def test_one_dead_webhook_does_not_hold_up_another(store: JobStore, receiver: Receiver) -> None:
    webhooks = WebhookStore(store)
    webhooks.add("http://127.0.0.1:1/", ["job.paused"])
    webhooks.add(receiver.url, ["job.paused"])
    with dispatching(store):
        store.request_pause(submit(store))
        wait(lambda: receiver.got)


def test_slow_receivers_of_one_owner_leave_room_for_another(store: JobStore) -> None:
    """As many webhooks as an owner may have, none of which answers before the other owner has been told."""
    slow, quick = WebhookStore(store), store.of_owner(f"hooks-{uuid.uuid4().hex}")
    for i in range(MAX_WEBHOOKS):
        slow.add(f"http://127.0.0.1/slow/{i}", ["job.paused"])
    WebhookStore(quick).add("http://127.0.0.1/quick", ["job.paused"])
    told, under_way, most = threading.Event(), 0, 0
    lock = threading.Lock()

    def deliver(url: str, *_: Any, **__: Any) -> int:
        nonlocal under_way, most
        if url.endswith("quick"):
            told.set()
        if "slow" not in url:
            return 200
        with lock:
            under_way += 1
            most = max(most, under_way)
        released = told.wait(20)
        with lock:
            under_way -= 1
        assert released
        return 200

    store.request_pause(submit(store))
    with dispatching(store, deliver=deliver):
        wait(lambda: under_way == 2)
        time.sleep(0.1)
        quick.request_pause(submit(quick))
        assert told.wait(20)
        wait(lambda: not any(slow.behind(webhook.webhook_id) for webhook in slow.all()))
    assert most == 2


def test_a_long_backlog_does_not_hold_its_thread(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher_module, "_TURN_S", 0.0)
    webhooks = WebhookStore(store)
    webhook = webhooks.add("http://127.0.0.1/", ["job.paused"])
    job_id = submit(store)
    store.request_pause(job_id)
    told: list[str] = []
    dispatcher = Dispatcher(store, allow_private=True, deliver=lambda url, *_, **__: told.append(url) or 200)
    dispatcher._serve(store, webhooks, webhook)
    assert told == []
    monkeypatch.undo()
    dispatcher._serve(store, webhooks, webhook)
    assert len(told) == 1
    assert webhooks.behind(webhook.webhook_id) == []


def test_a_webhook_that_is_gone_leaves_nothing_behind(store: JobStore) -> None:
    webhooks = WebhookStore(store)
    kept, gone = (webhooks.add("http://127.0.0.1/", ["job.paused"]) for _ in range(2))
    store.request_pause(submit(store))
    dispatcher = Dispatcher(store, allow_private=True, deliver=lambda *_, **__: 200)
    with ThreadPoolExecutor(2) as pool:
        for webhook in (kept, gone):
            dispatcher._start(pool, webhooks, webhook, store)
    assert {kept.webhook_id, gone.webhook_id} <= {*dispatcher._served} & {*dispatcher._seen}
    webhooks.remove(gone.webhook_id)
    due = [webhook.webhook_id for _, webhook, _ in dispatcher._due()]
    assert (kept.webhook_id in due, gone.webhook_id in due) == (True, False)
    remembered = {*dispatcher._served, *dispatcher._seen, *dispatcher._troubles}
    assert remembered & {store.owner, kept.webhook_id, gone.webhook_id} == {store.owner, kept.webhook_id}


@pytest.mark.parametrize("where", ["chat_body", "body", "deliver"])
def test_an_event_that_breaks_what_tells_it_is_told_as_failing_and_given_up_in_time(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """It holds up what comes after it no longer than a refused one, and the webhook is left alone for a while."""
    webhooks = WebhookStore(store)
    format = "slack" if where == "chat_body" else "json"
    webhook = webhooks.add("http://127.0.0.1/", ["job.paused"], format=format)
    store.request_pause(submit(store))

    def broken(*_: object, **__: object) -> int:
        raise KeyError("an odd event")

    if where != "deliver":
        monkeypatch.setattr(dispatcher_module, where, broken)
    deliver = broken if where == "deliver" else lambda *_, **__: 200
    dispatcher = Dispatcher(store, allow_private=True, deliver=deliver, max_attempts=1)
    dispatcher._serve(store, webhooks, webhook)
    assert webhook.webhook_id not in [due.webhook_id for _, due, _ in dispatcher._due()]
    state = webhooks.state(webhook.webhook_id)
    assert (state.failing, state.dropped) == (True, 0)
    assert state.last_error == "a fault of ours with job.paused: KeyError: 'an odd event'"
    Dispatcher(store, allow_private=True, deliver=deliver, max_age_s=0.0)._serve(store, webhooks, webhook)
    assert webhooks.state(webhook.webhook_id).dropped == 1
    assert webhooks.behind(webhook.webhook_id) == []


def test_a_cursor_only_moves_forward(store: JobStore) -> None:
    """Of two dispatchers one lost its lock, and is late with what the other has long dealt with."""
    webhooks = WebhookStore(store)
    webhook = webhooks.add("https://example.com/", ["job.paused"])
    job_id = submit(store)
    store.request_pause(job_id)
    webhooks.advance(webhook.webhook_id, job_id, 2)
    webhooks.advance(webhook.webhook_id, job_id, 1)
    assert webhooks.behind(webhook.webhook_id) == []


def test_the_limit_holds_however_many_ask_at_once(store: JobStore) -> None:
    webhooks = WebhookStore(store)

    def add(_: int) -> bool:
        try:
            webhooks.add("https://example.com/", ["job.paused"])
        except TooManyWebhooks:
            return False
        return True

    with ThreadPoolExecutor(16) as threads:
        kept = list(threads.map(add, range(MAX_WEBHOOKS + 20)))
    assert sum(kept) == len(webhooks.all()) == MAX_WEBHOOKS


def test_owners_hear_only_of_their_own_jobs(store: JobStore, receiver: Receiver) -> None:
    other = store.of_owner(f"hooks-{uuid.uuid4().hex}")
    WebhookStore(store).add(receiver.url, ["job.paused"])
    mine, theirs = submit(store), submit(other)
    with dispatching(store):
        other.request_pause(theirs)
        store.request_pause(mine)
        wait(lambda: receiver.got)
        time.sleep(0.2)
    assert [document["job_id"] for document in receiver.documents()] == [mine]


def test_of_two_workers_one_dispatches_and_the_other_takes_over(store: JobStore, receiver: Receiver) -> None:
    WebhookStore(store).add(receiver.url, ["job.paused"])
    with dispatching(store), dispatching(store):
        store.request_pause(submit(store))
        wait(lambda: receiver.got)
        time.sleep(0.2)
        assert len(receiver.got) == 1
    assert store.calls.command("GET", LOCK) is None
    with dispatching(store):
        store.request_pause(submit(store))
        wait(lambda: len(receiver.got) == 2)


def test_a_job_that_is_over_and_told_is_not_looked_at_again(store: JobStore) -> None:
    webhooks = WebhookStore(store)
    webhook = webhooks.add("https://example.com/", ["job.cancelled"])
    over, waiting = submit(store), submit(store)
    store.request_cancel(over)
    seen = Seen()
    assert webhooks.behind(webhook.webhook_id, seen) == [(over, 0), (waiting, 0)]
    assert seen.unsettled == [over, waiting]
    webhooks.advance(webhook.webhook_id, over, 2)
    webhooks.advance(webhook.webhook_id, waiting, 1)
    assert webhooks.behind(webhook.webhook_id, seen) == []
    assert seen.unsettled == [waiting]
    store.request_pause(waiting)
    newer = submit(store)
    assert webhooks.behind(webhook.webhook_id, seen) == [(waiting, 1), (newer, 0)]
    for job_id in (newer, waiting):
        store.request_cancel(job_id)
    store.delete(newer)
    assert webhooks.behind(webhook.webhook_id, seen) == [(waiting, 1)]
    assert webhooks.behind(webhook.webhook_id, seen) == [(waiting, 1)]


def test_jobs_that_are_settled_are_read_no_more(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, and although the oldest of all still waits."""
    webhooks = WebhookStore(store)
    oldest = submit(store)
    for _ in range(30):
        store.request_cancel(submit(store))
    webhook = webhooks.add("https://example.com/", ["job.cancelled"])
    monkeypatch.setattr("orchestrator.webhooks.subscriptions._CHUNK", 7)
    seen = Seen()
    assert webhooks.behind(webhook.webhook_id, seen) == []
    assert seen.unsettled == [oldest]
    sizes: list[int] = []
    for name in ("command", "reads"):
        monkeypatch.setattr(store.calls, name, measured(getattr(store.calls, name), sizes))
    store.request_cancel(oldest)
    assert webhooks.behind(webhook.webhook_id, seen) == [(oldest, 1)]
    assert max(sizes) <= 2


def measured(call: Callable[..., Any], sizes: list[int]) -> Callable[..., Any]:
    def measuring(*words: Any) -> Any:
        reply = call(*words)
        sizes.append(len(reply))
        return reply

    return measuring


def test_a_removed_webhook_leaves_nothing_behind(store: JobStore) -> None:
    webhooks = WebhookStore(store)
    webhook = webhooks.add("https://example.com/", ["job.paused"])
    webhooks.remove(webhook.webhook_id)
    webhooks.advance(webhook.webhook_id, "job-1", 3)
    assert store.calls.command("KEYS", f"mo:{store.owner}:webhook*") == []
    with pytest.raises(WebhookNotFound):
        webhooks.remove(webhook.webhook_id)


# -- one POST -----------------------------------------------------------------------------------------------


def send(url: str, *, timeout_s: float = 5.0, allow_private: bool = True) -> int:
    return post(url, b"{}", secret="s", delivery_id="d", allow_private=allow_private, timeout_s=timeout_s)


def test_redirects_are_not_followed(receiver: Receiver) -> None:
    def redirect(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("location", receiver.url)

    receiver.answer = redirect
    with pytest.raises(DeliveryError, match="answered 302, and redirects are not followed"):
        send(receiver.url)
    assert len(receiver.got) == 1


def test_an_endless_answer_is_read_to_its_first_kilobyte(receiver: Receiver) -> None:
    hung_up = threading.Event()

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x" * 65_536)
        except OSError:
            hung_up.set()

    receiver.answer = endless
    assert send(receiver.url) == 200
    assert hung_up.wait(30)


@pytest.mark.parametrize("drip", [b"", b"H", b"HTTP/1.1 200 OK\r\nx: "])
def test_a_server_that_dawdles_is_left_in_time(drip: bytes) -> None:
    """However it keeps the connection alive: a byte now and then is not an answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        over = threading.Event()

        def dawdle() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(drip)
                while not over.wait(0.1):
                    try:
                        connection.sendall(b"a" if drip else b"")
                    except OSError:
                        return

        thread = threading.Thread(target=dawdle)
        thread.start()
        started = time.monotonic()
        with pytest.raises(DeliveryError, match=r"no answer in 0\.5 s"):
            send(f"http://127.0.0.1:{server.getsockname()[1]}/", timeout_s=0.5)
        assert time.monotonic() - started < 20
        over.set()
        thread.join()


def test_a_name_server_that_is_silent_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def silent(*_: Any, **__: Any) -> Any:
        over.wait(30)
        raise OSError("too late")

    monkeypatch.setattr(addresses_module, "_resolvers", threading.BoundedSemaphore(2))
    monkeypatch.setattr(socket, "getaddrinfo", silent)
    started = time.monotonic()
    with pytest.raises(DeliveryError, match="did not resolve in time"):
        send("http://example.com/", timeout_s=0.2)
    assert time.monotonic() - started < 25
    with pytest.raises(DeliveryError, match="in time"):
        send("http://example.com/", timeout_s=0.2)
    with pytest.raises(DeliveryError, match="too many"):  # the threads still wait
        send("http://example.com/", timeout_s=0.2)
    over.set()


def test_what_is_no_http_or_nobody_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def talk() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(b"SSH-2.0-secret banner\r\n")

        thread = threading.Thread(target=talk)
        thread.start()
        with pytest.raises(DeliveryError, match=r"^the answer is not HTTP$"):
            send(f"http://127.0.0.1:{port}/")
        thread.join()
    with pytest.raises(DeliveryError, match="refused"):
        send(f"http://127.0.0.1:{port}/")
    with pytest.raises(DeliveryError, match="does not resolve"):
        send("http://no-such-host.invalid/")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_tls_is_checked_against_the_name(receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key),
         "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    receiver.server.socket = context.wrap_socket(receiver.server.socket, server_side=True)
    port = receiver.server.server_port
    with pytest.raises(DeliveryError, match="its TLS certificate is not valid"):
        send(f"https://localhost:{port}/")
    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)
    assert send(f"https://localhost:{port}/") == 204
    assert receiver.got[0][0]["host"] == f"localhost:{port}"
    with pytest.raises(DeliveryError, match="its TLS certificate is not valid"):
        send(f"https://127.0.0.1:{port}/")


# -- where it may go ------------------------------------------------------------------------------------------

NOT_PUBLIC = [
    "127.0.0.1", "127.1.2.3", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
    "192.88.99.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "fe80::1", "fe80::1%1",
    "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1", "2001:0:7f00:1::", "2002:7f00:1::",
    "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "100::1",
]  # fmt: skip
BAD_URLS = [
    "http://example.com/", "file:///etc/passwd", "gopher://example.com/", "ftp://example.com/", "//example.com/", "",
    "example.com", "https://", "https:///x", "https://user@example.com/", "https://user:pw@example.com/",
    "https://example.com@127.0.0.1/", "https://example.com:80/", "https://example.com:6379/", "https://example.com:x/",
    "https://example.com:99999/", "https://example.com/#x", "https://example.com\\@127.0.0.1/", "https://exa mple.com/",
    "https://example.com/\r\nx: y", "https://example.com/\x00", "https://exämple.com/", "https://2130706433/",
    "https://0x7f000001/", "https://0x7f.1/", "https://0177.0.0.1/", "https://127.1/", "https://127.0.0.1./",
    "https://1.2.3.4.5/", "https://0x/", "https://[::1]/", "https://[::ffff:127.0.0.1]/", "https://[fe80::1%25eth0]/",
    "https://[::1/", "https://127.0.0.1/", "https://169.254.169.254/latest/meta-data", "https://-example.com/",
    "https://exam*ple.com/", "https://" + "a" * 3000 + ".com/",
]  # fmt: skip


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_a_public_address_is_taken(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_url_that_may_lead_inside_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        check_url(url, allow_private=False)
    with pytest.raises(DeliveryError):
        send(url, allow_private=False)


@pytest.mark.parametrize("url", ["https://example.com", "https://a.b-c.example:443/x?y=1", "https://[2606:4700::1]/"])
def test_a_usual_url_is_taken(url: str) -> None:
    check_url(url, allow_private=False)


@pytest.mark.parametrize("host", ["localhost", "localhost.", "LOCALHOST", "ip6-localhost"])
def test_a_name_that_leads_inside_is_refused_where_it_is_resolved(host: str) -> None:
    with pytest.raises(DeliveryError, match=r"not public|does not resolve"):
        send(f"https://{host}/", allow_private=False)


def resolves_to(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """A name server with these answers, one after another; what was asked."""
    asked: list[str] = []

    def answer(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return asked


def test_one_inner_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    resolves_to(monkeypatch, ["93.184.216.34", "10.0.0.1"])
    with pytest.raises(AddressError, match="not public"):
        addresses_of("example.com", 443, allow_private=False)


def test_a_name_is_resolved_once_and_the_checked_address_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that answers otherwise the second time is not asked a second time."""
    asked = resolves_to(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])
    connected: list[tuple[str, int]] = []

    def connection(address: tuple[str, int], **_: Any) -> socket.socket:
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(webhook_delivery.socket, "create_connection", connection)
    with pytest.raises(DeliveryError, match="refused"):
        send("https://example.com/", allow_private=False)
    assert asked == ["example.com"]
    assert connected == [("93.184.216.34", 443)]


# -- the API ----------------------------------------------------------------------------------------------------


@pytest.fixture
def http(store: JobStore, tmp_path: Path) -> Iterator[httpx.Client]:
    server = ApiServer("127.0.0.1", 0)
    server.start(store, Settings(state_dir=tmp_path, key_sha256=digest(KEY)))
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=20) as http:
        yield http
    server.stop()


def test_a_webhook_from_making_to_deleting(
    http: httpx.Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_WEBHOOK_PRIVATE", "1")
    made = http.post("/v1/webhooks", json={"url": receiver.url, "events": ["job.failed", "job.succeeded"]})
    assert made.status_code == 201, made.text
    assert made.headers["cache-control"] == "no-store"
    document = made.json()
    assert document["secret"].startswith("whsec_")
    assert document["events"] == ["job.succeeded", "job.failed"]
    listed = http.get("/v1/webhooks")
    assert document["secret"] not in listed.text
    assert [webhook["id"] for webhook in listed.json()["data"]] == [document["id"]]
    tried = http.post(f"/v1/webhooks/{document['id']}/test").json()
    assert tried == {"object": "webhook_test", "delivered": True, "status": 204, "error": None}
    assert receiver.documents()[0]["type"] == "webhook.test"
    receiver.answer = lambda handler: handler.send_response(410)
    tried = http.post(f"/v1/webhooks/{document['id']}/test").json()
    assert (tried["delivered"], tried["error"]) == (False, "answered 410")
    renewed = http.post(f"/v1/webhooks/{document['id']}/secret")
    assert (renewed.status_code, renewed.headers["cache-control"]) == (200, "no-store")
    assert renewed.json()["secret"].startswith("whsec_")
    assert renewed.json()["secret"] != document["secret"]
    own = http.post(f"/v1/webhooks/{document['id']}/secret", json={"secret": "a-secret-of-my-own"}).json()
    assert (own["secret"], own["events"]) == ("a-secret-of-my-own", document["events"])
    assert (document["format"], own["format"]) == ("json", "json")
    of_all = http.post("/v1/webhooks", json={"url": receiver.url, "events": list(EVENTS)})
    assert (of_all.status_code, of_all.json()["events"]) == (201, list(EVENTS))
    for wrong in ({"secret": "short"}, {"extra": 1}, []):
        assert http.post(f"/v1/webhooks/{document['id']}/secret", json=wrong).status_code == 422
    assert http.delete(f"/v1/webhooks/{document['id']}").status_code == 204
    for response in (
        http.delete(f"/v1/webhooks/{document['id']}"),
        http.post(f"/v1/webhooks/{document['id']}/test"),
        http.post(f"/v1/webhooks/{document['id']}/secret"),
        http.post("/v1/webhooks/%7Bx%7D/test"),
    ):
        assert response.status_code == 404


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"url": "https://127.0.0.1/"}, "url"),
        ({"url": "http://example.com/"}, "url"),
        ({"url": None}, "url"),
        ({"events": []}, "events"),
        ({"events": ["job.exploded"]}, "events.0"),
        ({"format": "teams"}, "format"),
        ({"secret": "short"}, "secret"),
        ({"secret": "line\nbreak-and-more-than-16"}, "secret"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_wrong_webhook_is_refused_without_repeating_it(
    http: httpx.Client, change: dict[str, Any], param: str
) -> None:
    document = {"url": "https://example.com/canary", "events": ["job.failed"], **change}
    response = http.post("/v1/webhooks", json=document)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == param
    assert "canary" not in response.text
    assert http.get("/v1/webhooks").json()["data"] == []


def test_an_owner_has_so_many_webhooks_at_most(http: httpx.Client) -> None:
    document = {"url": "https://example.com/", "events": ["job.failed"]}
    for _ in range(MAX_WEBHOOKS):
        assert http.post("/v1/webhooks", json=document).status_code == 201
    assert http.post("/v1/webhooks", json=document).json()["error"]["code"] == "too_many_webhooks"


def test_a_chat_is_told_in_sentences(
    http: httpx.Client, store: JobStore, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name or reason that somebody else chose calls nobody, and hides no link."""
    monkeypatch.setenv("EQUIPOISE_WEBHOOK_PRIVATE", "1")
    monkeypatch.setenv("EQUIPOISE_DASHBOARD_URL", "https://eq.example.com/")
    document = {"url": receiver.url, "events": ["job.failed"], "format": "slack"}
    made = http.post("/v1/webhooks", json=document).json()
    assert made["format"] == "slack"
    assert http.post(f"/v1/webhooks/{made['id']}/test").json()["delivered"]
    job_id = f"job-{uuid.uuid4().hex[:12]}"
    store.submit("{}", name="a <!channel> & @here", job_id=job_id, steering={})
    lease = store.claim(job_id, nonce="n", ttl_s=60).lease
    assert lease is not None
    store.finish(lease, JobStatus.FAILED, "out of\nmemory")
    with dispatching(store):
        wait(lambda: len(receiver.got) == 2)
    name = "a &lt;!channel&gt; &amp; @\u200bhere"
    assert receiver.documents() == [
        {"text": "Equipoise: a test of this webhook, which works."},
        {"text": f"{name} ({job_id}) has failed: out of memory. https://eq.example.com/jobs/{job_id}"},
    ]
    headers, sent = receiver.got[1]
    told_at = headers["webhook-signature"].split(",")[0][2:]
    assert (
        webhook_delivery.signature(made["secret"], headers["webhook-id"], int(told_at), sent)
        == headers["webhook-signature"]
    )


def test_a_webhook_of_an_older_version_is_for_programs(store: JobStore) -> None:
    webhooks = WebhookStore(store)
    made = webhooks.add("https://example.com/", ["job.failed"])
    key = f"mo:{store.owner}:webhooks"
    kept = json.loads(store.calls.command("HGET", key, made.webhook_id))
    del kept["format"]
    store.calls.command("HSET", key, made.webhook_id, json.dumps(kept))
    assert webhooks.get(made.webhook_id).format == "json"


def test_webhooks_from_a_terminal(
    http: httpx.Client, receiver: Receiver, tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_WEBHOOK_PRIVATE", "1")
    write_credentials(tmp_path, str(http.base_url).rstrip("/"), KEY)
    run = partial(commands.run, tmp_path, COLUMNS="200", NO_COLOR="1")
    assert "no webhooks: `equipoise webhooks add URL` makes one" in run("webhooks", "list")[2]
    code, secret, errors = run("webhooks", "add", receiver.url, "--event", "job.failed")
    assert (code, secret[:6]) == (0, "whsec_"), errors
    assert run("webhooks", "add", receiver.url, "--format", "slack")[:2] == (0, "")
    first, second = http.get("/v1/webhooks").json()["data"]
    assert (first["events"], first["format"], second["format"]) == (["job.failed"], "json", "slack")
    assert "job.paused" in second["events"]
    _, listed, _ = run("webhooks", "list")
    assert first["id"] in listed
    assert receiver.url in listed
    assert run("webhooks", "test", second["id"])[:2] == (0, "taken, with status 204\n")
    receiver.answer = lambda handler: handler.send_response(410)
    assert run("webhooks", "test", second["id"])[:2] == (1, "not taken: answered 410\n")
    assert run("webhooks", "delete", second["id"])[:2] == (0, f"{second['id']} deleted\n")
    assert [webhook["id"] for webhook in http.get("/v1/webhooks").json()["data"]] == [first["id"]]
    assert "events.0" in run("webhooks", "add", receiver.url, "--event", "job.exploded")[2]
    assert "is no webhook's id" in run("webhooks", "delete", "a/b")[2]


def test_the_status_of_a_job_that_failed_is_told(store: JobStore, receiver: Receiver) -> None:
    WebhookStore(store).add(receiver.url, ["job.failed"])
    job_id = submit(store)
    lease = store.claim(job_id, nonce="n", ttl_s=60).lease
    assert lease is not None
    store.finish(lease, JobStatus.FAILED, "out of memory")
    with dispatching(store):
        wait(lambda: receiver.got)
    assert receiver.documents()[0]["data"]["reason"] == "out of memory"
